"""``gradsurgery report``"""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from gradsurgery.report import ReportError, findings, read_run, write_report


def show(folder: Path, out: Path | None, *, in_browser: bool) -> int:
    """Writes a run's page and prints its findings and where it is. -> exit status"""
    try:
        run = read_run(folder)
        page = write_report(run, out)
        found = findings(run)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for finding in found:
        print(f"{finding.severity:8} {finding.sentence}")
    print(page)
    if in_browser:
        webbrowser.open(page.resolve().as_uri())
    return 0
