"""The site's pages that are not files of docs/: MkDocs calls these functions (``hooks`` in mkdocs.yml).

README.md is the home page and CONTRIBUTING.md a page, without a second copy of either. A link that leaves docs/ leads to a page
that shows the file, so that it works on the site as it does in the repository. Where a page says ``<!-- api: methods -->`` or
``<!-- api: balancers -->``, it gets the documentation of what is registered.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
"""Markdown beside docs/ that is a page of the site."""
SHOWN = "repository"
"""The site's folder of pages that show other files."""
LANGUAGES = {
    ".py": "python",
    ".h": "cpp",
    ".cpp": "cpp",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".toml": "toml",
    ".sh": "bash",
    ".json": "json",
}

PICTURES = {".png", ".svg"}

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}).*?^(?P=indent)(?P=ticks) *$", re.DOTALL | re.MULTILINE)


def source_of(page: str) -> str:
    """Where in the repository a page of the site is written. "api/index.md" -> "docs/api/index.md" """
    return next((source for source, name in PAGES.items() if name == page), f"docs/{page}")


def page_of(file: str) -> str:
    """Where on the site a file of the repository is; a picture lies there as it is, another file outside of docs/ on a page."""
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    return PAGES.get(file) or f"{SHOWN}/{file}" + ("" if Path(file).suffix in PICTURES else ".md")


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """``text`` with ``change`` made to what stands between its fenced blocks."""
    pieces, at = [], 0
    for fence in FENCE.finditer(text):
        pieces += [change(text[at : fence.start()]), fence.group()]
        at = fence.end()
    return "".join([*pieces, change(text[at:])])


def targets(text: str, source: str) -> list[str]:
    """The files of the repository that a page links to."""
    found: list[str] = []

    def look(part: str) -> str:
        for _, target, _ in LINK.findall(part):
            if ":" not in target and not target.startswith("/"):
                found.append(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        return part

    outside_fences(text, look)
    return found


def for_the_site(text: str, source: str) -> str:
    """A page's links between files of the repository as links between pages of the site."""
    here = posixpath.dirname(page_of(source))

    def renewed(link: re.Match[str]) -> str:
        before, target, after = link.groups()
        if ":" in target or target.startswith("/"):
            return link.group()
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / file).is_file():
            return link.group()  # MkDocs reports it
        return before + posixpath.relpath(page_of(file), here or ".") + after

    return outside_fences(text, lambda part: LINK.sub(renewed, part))


def shown(file: str) -> str:
    """A page with the text of a file."""
    text = (ROOT / file).read_text()
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    body = text if file.endswith(".md") else f"{ticks}{LANGUAGES.get(Path(file).suffix, 'text')}\n{text}\n{ticks}\n"
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{file}`\n\n{body}"


def documented(table: str) -> str:
    """mkdocstrings' directives for what is registered, in the order of the names.

    Raises:
        KeyError: there is no such table.
    """
    import gradsurgery

    specs: dict[str, Any] = {"methods": gradsurgery.methods, "balancers": gradsurgery.balancers}[table]()
    lines: list[str] = []
    for name, spec in specs.items():
        cls = spec.cls
        if cls.__module__.split(".")[0] != "gradsurgery":
            continue  # of another package that is installed here
        lines += [f"::: {cls.__module__}.{cls.__qualname__}", "    options:", f"      heading: {name}", f"      toc_label: {name}"]
        lines += ["      show_symbol_type_heading: false", "      show_symbol_type_toc: false"]
        lines += ["      members: false" if table == "methods" else "      inherited_members: false", "", f"*{spec.paper}.*", ""]
    return "\n".join(lines)


# --- called by MkDocs -----------------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie beside docs/, and those that show what pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    wanted: set[str] = set()
    for file in list(files.documentation_pages()):
        wanted.update(targets(file.content_string, source_of(file.src_uri)))
    for file in sorted(wanted):
        if not file.startswith("docs/") and file not in PAGES and (ROOT / file).is_file():
            page = page_of(file)
            made = {"content": shown(file)} if page.endswith(".md") else {"abs_src_path": str(ROOT / file)}
            files.append(File.generated(config, page, inclusion=InclusionLevel.NOT_IN_NAV, **made))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to the site's pages, and fills in what is registered."""
    if page.file.src_uri.startswith(f"{SHOWN}/"):
        return markdown
    text = for_the_site(markdown, source_of(page.file.src_uri))
    return re.sub(r"<!-- api: (\w+) -->", lambda marker: documented(marker.group(1)), text)
