"""The report's files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gradsurgery.report.error import ReportError
from gradsurgery.report.rules import findings
from gradsurgery.report.run import Run, read_run

PAGE = "index.html"
PICTURES = r"losses|cosines|conflict-rate|lengths|weight|balance|variance|layers(-\d+)?"  # the names that figures.py gives


def write_report(run: str | Path | Run, out: str | Path | None = None) -> Path:
    """Read a run's folder and write index.html and its pictures as PNGs.

    Each file is replaced whole, the page last: who opens it meanwhile sees the old one or the new one.

    Args:
        run: the folder, or what ``read_run`` found in it.
        out: where to write; None: the folder ``report`` in it.

    Returns:
        The page.

    Raises:
        ReportError: the run cannot be read, the folder not be written, or Matplotlib is not there.
    """
    found = run if isinstance(run, Run) else read_run(run)
    try:
        from gradsurgery.report.figures import pictures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ReportError(
            "report: the pictures need Matplotlib, which is not installed; run pip install gradsurgery[report]."
        ) from error
    from gradsurgery.report.page import page

    drawn = pictures(found)
    text = page(found, findings(found), drawn)
    folder = found.path / "report" if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in drawn:
            _replace(folder / f"{picture.name}.png", picture.png)
        _replace(folder / PAGE, text.encode("utf-8", "replace"))
        for stale in {folder / f"{name}.png" for name in names(folder)} - {folder / f"{picture.name}.png" for picture in drawn}:
            stale.unlink()
    except OSError as error:
        raise ReportError(f"out {folder}: the report cannot be written there ({error.strerror}); name another folder.") from error
    return folder / PAGE


def names(folder: Path) -> list[str]:
    """The pictures of a report that are in a folder; others are not touched."""
    return [file.stem for file in folder.glob("*.png") if re.fullmatch(PICTURES, file.stem)]


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
