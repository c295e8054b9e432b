"""The quickstart: a page of each run, and numbers that the runs' logs hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradsurgery.report import read_run

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


@pytest.mark.parametrize("method", ["pcgrad", "graddrop"])  # one that K decides, one that treats every coordinate by itself
def test_both_runs_and_their_pages(tmp_path: Path, method: str) -> None:
    command = [sys.executable, str(QUICKSTART), "--method", method, "--steps", "60", "--out", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert "2 tasks at 2 shared layers, one batch" in said.stdout
    for run in ("sum", method):
        told = re.search(rf"^{run}: sector ([\d.]+), distance ([\d.]+) on points not seen$", said.stdout, re.MULTILINE)
        assert told is not None
        assert 0 < float(told[1]) < 1.45  # the losses before training, or less
        assert 0 < float(told[2]) < 2.51
        log = read_run(tmp_path / run)
        assert log.tasks == ("sector", "distance")
        assert (tmp_path / run / "report" / "index.html").read_text().rstrip().endswith("</html>")
