"""The page: whole in one file, safe for any name, and readable in a browser on a phone and at a desk."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from report.planted import Given, collapse_run, conflict_run, healthy_run, run_columns, write_layers, write_log

from gradsurgery.report import ReportError, write_report
from gradsurgery.report.layer_panels import ROWS, grouped

ODD = ("<b>bold</b>", "left-hand", "_hidden", "深度 $x$", 'a&"quote"', "x" * 90)


class Elements(HTMLParser):
    """Every start tag with its attributes, and whether what was opened was closed."""

    VOID = ("meta", "link", "img", "hr", "path", "circle", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def odd_run(folder: Path) -> Path:
    """Names that are hard to write down, in a log and in layers, and a setting that is a script."""
    write_log(folder, run_columns(80, tasks=ODD, means={f"{ODD[0]}-{ODD[1]}": -0.6}))
    rng = np.random.default_rng(0)
    pairs = [f"{one}-{other}" for one, other in combinations(ODD, 2)]
    names = [f"trunk.<i>{place}</i>.{'deep.' * (place % 5)}w" for place in range(90)]
    write_layers(folder, {name: {pair: 0.2 * rng.standard_normal(80) for pair in pairs} for name in names}, 8)
    (folder / "config.json").write_text('{"arguments": {"method": "<script>alert(1)</script>", "form": "split", "lr": 0.1}}')
    return folder


RUNS = {"conflict": conflict_run, "collapse": collapse_run, "healthy": healthy_run, "odd": odd_run}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_report(make(folder / name)) for name, make in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_the_page_asks_for_nothing(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    elements = Elements(text).found
    for tag, attributes in elements:
        assert tag not in ("script", "iframe", "object", "base")
        for key in ("src", "href", "srcset", "data", "poster"):
            value = attributes.get(key)
            allowed = value is None or value.startswith("data:") or (tag == "a" and value.startswith("https://arxiv.org/abs/"))
            assert allowed, (tag, key, value)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|https?:", style[1])


@pytest.mark.parametrize("name", RUNS)
def test_every_picture_says_in_words_what_it_shows(pages: dict[str, Path], name: str) -> None:
    images = [attributes for tag, attributes in Elements(pages[name].read_text(encoding="utf-8")).found if tag == "img"]
    assert len(images) == len(list(pages[name].parent.glob("*.png")))
    assert all(re.search(r"\d", str(image["alt"])) and len(str(image["alt"])) > 40 for image in images)


def test_alternative_texts_name_the_conflict(pages: dict[str, Path]) -> None:
    alts = " ".join(str(attributes["alt"]) for tag, attributes in Elements(pages["conflict"].read_text()).found if tag == "img")
    assert "seg – depth: mean −0.15, lowest −0.72, in conflict in steps 100–249" in alts
    assert "In conflict: trunk.2 in steps 100–249" in alts


def test_names_and_settings_are_escaped(pages: dict[str, Path]) -> None:
    text = pages["odd"].read_text(encoding="utf-8")
    for raw in ("<b>bold", "<script", "<i>", 'a&"quote"'):
        assert raw not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text


def test_pictures_are_written_beside_the_page_and_a_rerun_replaces(tmp_path: Path) -> None:
    run = conflict_run(tmp_path / "run")
    page = write_report(run)
    assert page == run / "report" / "index.html"
    names = {file.name for file in page.parent.iterdir()}
    assert {"losses.png", "cosines.png", "conflict-rate.png", "lengths.png", "weight.png", "layers.png", "layers-1.png"} < names
    assert all(imread(file).std() > 0.01 for file in page.parent.glob("*.png"))
    before = page.read_bytes()
    (page.parent / "notes.txt").write_text("mine")
    assert write_report(run).read_bytes() == before
    assert {file.name for file in page.parent.iterdir()} == names | {"notes.txt"}
    assert write_report(run, tmp_path / "elsewhere" / "deep").is_file()


def test_pictures_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    run = conflict_run(tmp_path)
    write_report(run)
    (run / "layers.csv").unlink()
    assert not list(write_report(run).parent.glob("layers*.png"))


def test_where_it_cannot_write_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="the report cannot be written there"):
        write_report(healthy_run(tmp_path / "run"), tmp_path / "file")


def test_what_was_left_out_stands_at_the_foot(tmp_path: Path) -> None:
    run = healthy_run(tmp_path)
    with open(run / "log.csv", "a") as file:
        file.write("300,0.1")
    assert "The last line of log.csv has no end" in write_report(run).read_text(encoding="utf-8").partition("<footer>")[2]


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path) -> None:
    healthy_run(tmp_path)
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from gradsurgery.report import ReportError, write_report, read_run, findings\n"
        f"assert findings(read_run({str(tmp_path)!r}))\n"
        f"try: write_report({str(tmp_path)!r})\n"
        "except ReportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install gradsurgery[report]" in done.stdout


def test_many_layers_share_rows_by_their_prefix() -> None:
    names = [f"stage{stage}.block{block}.conv{conv}" for stage in range(4) for block in range(10) for conv in range(3)]
    rows, places = grouped(names)
    assert rows[:2] == ("stage0.block0", "stage0.block1")
    assert places[:7].tolist() == [0, 0, 0, 1, 1, 1, 2]
    rows, places = grouped([str(place) for place in range(1000)])
    assert len(rows) == ROWS
    assert places.tolist() == sorted(places.tolist())


numbers = st.one_of(st.just(float("nan")), st.just(Given("nan")), st.floats(), st.floats(-1, 1), st.sampled_from([0.0, 1.0, 1e308]))


@st.composite
def odd_logs(draw: st.DrawFn) -> dict[str, Any]:
    """Any columns of any numbers, absent ones, constants, and names."""
    tasks = draw(st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=5)), max_size=4, unique=True))
    length = draw(st.sampled_from([0, 1, 2, 9, 25, 60]))
    names = [f"{kind}/{task}" for kind in ("loss", "norm", "weight", "balance", "variance") for task in tasks]
    names += [f"cosine/{one}-{other}" for one, other in combinations(tasks, 2)] + ["nonfinite", "converged", "stationary", "val/x"]
    kept = draw(st.lists(st.sampled_from(names), unique=True))
    few = draw(st.lists(numbers, min_size=1, max_size=5))
    seeds = draw(st.lists(st.integers(0, 2**16), min_size=len(kept), max_size=len(kept)))
    return {name: [few[place] for place in np.random.default_rng(seed).integers(0, len(few), length)]
            for name, seed in zip(kept, seeds, strict=True)}  # fmt: skip


@given(columns=odd_logs(), tail=st.sampled_from(["", "7,", "\n", "x,y\n"]), first=st.sampled_from([0, 10**12]))
def test_no_log_makes_it_fail_but_with_a_report_error(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Any], tail: str, first: int
) -> None:
    folder = write_log(tmp_path_factory.mktemp("odd"), columns, first=first)
    with open(folder / "log.csv", "a", encoding="utf-8") as file:
        file.write(tail)
    with contextlib.suppress(ReportError):
        Elements(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
@pytest.mark.parametrize("name", RUNS)
def test_the_page_in_a_browser(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    errors: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.evaluate("[...document.images].map(one => [one.complete, one.naturalWidth, one.clientWidth])")
    assert images
    for complete, natural, shown in images:
        assert complete
        assert natural >= 1.5 * shown, "sharp where a phone has several pixels for one"
        assert shown >= 0.7 * min(width, 480) - 40
    # 7.5 pt, the smallest letters of a picture, at the size in which it is shown.
    assert min(shown / 3.7 * 7.5 / 72 for _, _, shown in images) >= 9
    texts = "[...document.querySelectorAll('p, li, td, th, dd, dt, summary')]"
    sizes = page.evaluate(f"{texts}.map(one => parseFloat(getComputedStyle(one).fontSize))")
    assert min(sizes) >= 12.5
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert errors == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    context.close()
