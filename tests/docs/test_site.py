"""The site: it builds without a warning, has a page for everything registered, and asks for nothing from elsewhere."""

from __future__ import annotations

import functools
import html
import http.server
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from snippets import ROOT

import gradsurgery as gs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason='there is no mkdocs: pip install -e ".[docs]"',
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as the README says."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Page(HTMLParser):
    """What a page loads, where it links to, and which anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in {"canonical", "prev", "next"} and "href" in values:
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for target in Page(path).loads:
            if path.name == "404.html":  # its addresses begin at the server's root
                assert target.startswith("/"), target
            else:
                assert not re.match(r"\w+:|//", target), f"{path.name}: {target}"
                assert (path.parent / target.partition("?")[0]).is_file(), f"{path.name}: {target}"


def test_links_lead_somewhere(site: Path) -> None:
    """MkDocs looks at the links of Markdown; here are those that templates and docstrings made, too."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"\w+:", link):
                continue
            target, _, anchor = link.partition("#")
            there = (path.parent / target).resolve() if target else path
            assert there.is_file(), f"{path.relative_to(site)}: {link}"
            if anchor and there in pages:
                assert anchor in pages[there].anchors or anchor.startswith("__"), f"{path.relative_to(site)}: {link}"


def test_no_address_is_made_up(site: Path) -> None:
    """The repository has no known public one."""
    for path in site.rglob("*.html"):
        assert not [link for link in Page(path).links if re.match(r"https?://.*gradsurgery", link)], path.name


def words_of(path: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("table", ["methods", "balancers"])
def test_everything_registered_is_documented(site: Path, table: str) -> None:
    text = (site / "api" / f"{table}.html").read_text(encoding="utf-8")
    for name, spec in getattr(gs, table)().items():
        _, found, rest = text.partition(f'id="{spec.cls.__module__}.{spec.cls.__qualname__}"')
        assert found, name
        words = html.unescape(re.sub(r"<[^>]+>", "", rest.partition("<h2")[0]))
        assert spec.paper in words, name
        assert all(re.search(rf"\b{option}\b", words) for option in spec.options), name


def test_tables_are_tables(site: Path) -> None:
    """Inside of HTML, such as <details>, Markdown is left as it is unless the element says ``markdown="1"``."""
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "| ---" not in text, path.relative_to(site)


def test_every_public_name_is_documented(site: Path) -> None:
    anchors: set[str] = set()
    for path in (site / "api").glob("*.html"):
        anchors |= {anchor.rpartition(".")[2] for anchor in Page(path).anchors}
    assert [name for name in gs.__all__ if name not in anchors] == []


def test_nothing_private_is_documented(site: Path) -> None:
    for path in (site / "api").glob("*.html"):
        assert not [anchor for anchor in Page(path).anchors if "._" in anchor and "__" not in anchor], path.name


def test_docstrings_leave_no_other_markup(site: Path) -> None:
    for path in (site / "api").glob("*.html"):
        words = words_of(path)
        assert "::\n" not in words, path.name
        assert "====" not in words, path.name
        assert "Options:" not in words, path.name


# --- in a browser -----------------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site, served: from disk a browser would not let it search."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_pages_fit_the_window_and_ask_for_nothing(browser: Any, site: Path, address: str) -> None:
    """Every page, but one alone of those that show a file: all of these are a heading and a block."""
    context = browser.new_context(viewport={"width": 390, "height": 900})
    page = context.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    none = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8")) | {"docs": []}
    page.route("**/search_index.json", lambda route: route.fulfill(json=none))  # every page would index all of them anew
    showing = sorted((site / "repository").rglob("*.html"))
    pages = {*site.rglob("*.html")} - {*showing[1:], site / "404.html"}
    assert len(pages) > 20
    wide = [site / name for name in ("index.html", "benchmarks.html", "api/methods.html")]  # of the widest tables
    for width, paths in ((390, sorted(pages)), (1440, wide)):
        page.set_viewport_size({"width": width, "height": 900})
        for path in paths:
            page.goto(address + path.relative_to(site).as_posix())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path.relative_to(site)}: {width}"
    assert errors == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    context.close()


def test_search_finds(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(f"{address}index.html")
    page.click("input.md-search__input")
    page.keyboard.type("diagnose")
    first = page.wait_for_selector(".md-search-result__item a", timeout=30_000)
    assert first.get_attribute("href").startswith(address)
    context.close()


# --- the hooks and the extension by themselves ------------------------------------------------------------------------------------


def module(name: str):  # type: ignore[no-untyped-def]  # types.ModuleType, whose attributes nobody declares
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "docs/amp.md#x", "amp.md#x"),
        ("README.md", "CONTRIBUTING.md#a-new-method", "contributing.md#a-new-method"),
        ("docs/amp.md", "../README.md#methods", "index.md#methods"),
        ("docs/amp.md", "loops.md", "loops.md"),
        ("docs/api/index.md", "../../README.md", "../index.md"),
        ("docs/api/index.md", "../amp.md", "../amp.md"),
        ("docs/distributed.md", "../examples/many_gpus.py", "repository/examples/many_gpus.py.md"),
        ("docs/amp.md", "https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("docs/amp.md", "../examples/gone.py", "../examples/gone.py"),
    ],
)
def test_links_of_the_repository_become_the_sites(source: str, link: str, expected: str) -> None:
    text = f"[`a`]({link}) and\n\n```text\n[b]({link})\n```\n"
    assert module("site").for_the_site(text, source) == f"[`a`]({expected}) and\n\n```text\n[b]({link})\n```\n"


def test_a_link_to_nothing_is_a_warning(tmp_path: Path) -> None:
    """With what mkdocs.yml asks MkDocs to look at."""
    checked = re.search(r"^validation:\n(?:  .*\n)+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert checked is not None
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](../examples/gone.py) and [here](#nowhere)\n")
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\n{checked.group()}")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("WARNING") == 2, done.stderr


def test_docstrings_in_markdown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    text = """Sums.

Like so::

    a = [1]

=== ======
f   R | S
=== ======
uw  1 | 2
=== ======

Options:
    a, b: numbers,
        both.
    c: one.

Raises:
    TypeError, ValueError: as for ``f``."""
    assert (
        module("docstrings").in_markdown(text)
        == """Sums.

Like so:

```python
a = [1]
```

| f | R \\| S |
| --- | --- |
| uw | 1 \\| 2 |

Args:
    a: numbers,
        both.
    b: numbers,
        both.
    c: one.

Raises:
    TypeError, ValueError: as for ``f``."""
    )
