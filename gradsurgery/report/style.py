"""How the page looks: one style sheet, for phones and desks, light and dark, screen and paper."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1c2029; --soft: #5a6172; --line: #e3e5ea; --tint: #f3f4f1;
  --ok: #17714f; --note: #2b5f9e; --warning: #b04a12; --ok-tint: #eaf4ef; --note-tint: #ebf1f9; --warning-tint: #fcf0e7;
  --figure: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161b; --card: #1c1f26; --ink: #e6e8ee; --soft: #a0a7b8; --line: #2f343f; --tint: #22262e;
    --ok: #6cc9a1; --note: #8db8ee; --warning: #f2a26b; --ok-tint: #172a23; --note-tint: #1b2a3f; --warning-tint: #38261a;
    --figure: #f4f5f7;
  }
}
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main, header.top, footer { max-width: 76rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header.top { padding-top: clamp(1.75rem, 5vw, 3.5rem); }
.eyebrow { margin: 0; color: var(--soft); font-size: .8125rem; letter-spacing: .08em; text-transform: uppercase; }
h1 {
  margin: .25rem 0 .5rem;
  font: 600 clamp(1.75rem, 5vw, 2.6rem)/1.15 ui-serif, "Iowan Old Style", Georgia, "Liberation Serif", serif;
  letter-spacing: -.01em;
}
h2 { margin: 3rem 0 1rem; font: 600 1.375rem/1.3 ui-serif, "Iowan Old Style", Georgia, "Liberation Serif", serif; }
h3 { margin: 0; font-size: 1rem; line-height: 1.4; font-weight: 650; }
p { margin: 0 0 .75rem; max-width: 68ch; }
a { color: var(--note); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--note); outline-offset: 2px; }
.lead { color: var(--soft); font-size: 1.0625rem; }
.settings {
  display: flex; flex-wrap: wrap; gap: .375rem .5rem; margin: 1rem 0 0; padding: 0; list-style: none;
  font-size: .8125rem;
}
.settings li {
  padding: .125rem .625rem; border: 1px solid var(--line); border-radius: 1rem; background: var(--card); max-width: 100%;
}
.settings b { font-weight: 400; color: var(--soft); margin-right: .375rem; }
.verdict {
  display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem; margin: 2rem 0 0; padding: clamp(1.125rem, 3vw, 1.75rem);
  border-radius: 14px; border: 1px solid var(--line); border-left: 6px solid var(--tone); background: var(--back);
}
.verdict h2 { margin: 0 0 .5rem; font-size: clamp(1.2rem, 2.6vw, 1.5rem); text-wrap: pretty; max-width: 52ch; }
.verdict p { margin: 0; }
.verdict details { grid-column: 2; }
.ok { --tone: var(--ok); --back: var(--ok-tint); }
.note { --tone: var(--note); --back: var(--note-tint); }
.warning { --tone: var(--warning); --back: var(--warning-tint); }
.icon { flex: none; width: 1.375rem; height: 1.375rem; margin-top: .125rem; color: var(--tone); }
.verdict .icon { width: 2rem; height: 2rem; }
.findings { margin: 0; padding: 0; list-style: none; }
.findings > li {
  display: grid; grid-template-columns: auto minmax(0, 1fr); grid-template-rows: auto 1fr;
  gap: 0 .875rem; padding: .9375rem 0; border-top: 1px solid var(--line);
}
.findings p { margin: 0; max-width: 78ch; text-wrap: pretty; }
.findings .advice, .verdict .advice { margin-top: .375rem; color: var(--soft); font-size: .9375rem; max-width: 78ch; }
@media (min-width: 64rem) {
  .columns { display: grid; grid-template-columns: 1fr 1fr; column-gap: 3rem; }
  .columns > li:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .columns > li:last-child:nth-child(odd) > p { max-width: none; }
  .rows > li { grid-template-columns: auto minmax(0, 3fr) minmax(0, 2fr); grid-template-rows: auto; column-gap: .875rem; }
  .rows > li > .beside { grid-column: 3; padding-left: 2.125rem; }
  .rows .beside > :first-child { margin-top: .125rem; }
}
.beside { grid-column: 2; min-width: 0; }
.fine > summary { font-size: .9375rem; padding: .75rem 0; }
details { margin-top: .375rem; font-size: .875rem; }
summary { color: var(--soft); cursor: pointer; width: fit-content; padding: .1875rem 0; }
summary:hover { color: var(--ink); }
.evidence {
  display: grid; grid-template-columns: fit-content(16rem) minmax(0, 1fr); gap: .125rem 1.25rem;
  margin: .375rem 0 .25rem; width: fit-content;
}
.evidence dt { color: var(--soft); }
.evidence dd { margin: 0; }
.figures {
  display: grid; gap: 1.25rem;
}
@media (min-width: 48rem) {
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures > :last-child:nth-child(odd) { grid-column: 1 / -1; }
}
@media (min-width: 72rem) {
  .figures { grid-template-columns: repeat(6, minmax(0, 1fr)); }
  .figures > figure, .figures > :last-child:nth-child(odd) { grid-column: span 2; }
  .figures > figure.half, .figures > figure.half:last-child:nth-child(odd) { grid-column: span 3; }
}
figure {
  display: flex; flex-direction: column;
  margin: 0; border: 1px solid var(--line); border-radius: 12px; background: var(--card); overflow: hidden;
  break-inside: avoid;
}
figcaption { padding: .875rem 1rem .75rem; }
figcaption p { margin: .125rem 0 0; color: var(--soft); font-size: .875rem; line-height: 1.45; }
figure .plate { flex: 1; background: var(--figure); padding: .5rem .5rem .625rem; border-top: 1px solid var(--line); }
figure img { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; mix-blend-mode: multiply; }
.scroll {
  overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); margin: 0 0 1.5rem;
  max-width: 100%; width: fit-content;
}
table { border-collapse: collapse; font-size: .875rem; line-height: 1.45; }
th, td { padding: .4375rem .875rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
thead th { vertical-align: bottom; border-bottom: 1px solid var(--line); }
tbody th {
  color: var(--ink); text-align: left; position: sticky; left: 0; background: var(--card); max-width: 15rem;
  white-space: normal; overflow-wrap: break-word; min-width: 7rem;
}
thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody tr:not(:last-child) > * { border-bottom: 1px solid var(--line); }
td.wide { white-space: normal; text-align: left; min-width: 14rem; }
.negative { color: var(--warning); }
.tables h3 { margin: 1.5rem 0 .625rem; }
.reading { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 0 2.5rem; }
.reading dt { font-weight: 650; }
.reading dd { margin: 0 0 1rem; color: var(--soft); }
.reading div { break-inside: avoid; }
footer { margin-top: 3rem; padding-top: 1.25rem; padding-bottom: 3rem; color: var(--soft); font-size: .8125rem; }
footer p { max-width: none; margin: 0 0 .25rem; }
footer hr { border: 0; border-top: 1px solid var(--line); margin: 0 0 1.25rem; }
@media (max-width: 30rem) {
  body { font-size: 15.5px; }
  .verdict { grid-template-columns: 1fr; }
  .verdict details { grid-column: 1; }
  .findings > li { gap: 0 .625rem; }
  .evidence { grid-template-columns: 1fr; gap: 0; }
  .evidence dd { margin-bottom: .375rem; }
  figure .plate { padding: .25rem; }
  th, td { padding: .375rem .625rem; }
  tbody th { max-width: 9rem; min-width: 6rem; }
}
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc; --figure: #fff; }
  body { font-size: 10pt; }
  .figures { grid-template-columns: repeat(2, 1fr); }
  .figures > figure, .figures > figure.half { grid-column: auto; }
  .findings > li, tr, .verdict { break-inside: avoid; }
  .scroll { overflow: visible; }
  details:not([open]) { display: none; }
}
"""
