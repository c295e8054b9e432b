"""Of several processes rank 0 alone writes; all keep rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from ranks.launch import ranks
from ranks.monitored import separately


@pytest.mark.parametrize("ends_first", [False, True], ids=["open", "ended"])
def test_rank_0_writes(tmp_path: Path, ends_first: bool) -> None:
    first, second = ranks(2, separately, str(tmp_path), ends_first)
    assert first[3]
    assert not second[3]
    assert (first[2], second[2]) == ([str(step) for step in range(5)], [])
    assert first[0] == second[0], "K is of both ranks' samples"
    assert len(second[1]) == 5
    assert first[1] != second[1], "losses are each rank's own"
    with open(tmp_path / "0" / "log.csv", newline="") as file:
        assert [float(row["loss/seg"]) for row in csv.DictReader(file)] == first[1]
