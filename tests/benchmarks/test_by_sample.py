"""Surgery by sample is checked before it is timed, and told in the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_sample import CONTENDERS, Batch, check, sample_rows
from results import Results
from table import _facts
from timing import Effort
from torch import Tensor

CPU = torch.device("cpu")
TINY = Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tasks", [2, 4, 8])
@pytest.mark.parametrize("name", CONTENDERS)
def test_right(name: str, tasks: int, dtype: str) -> None:
    grads = Batch(tasks, 5, 33, dtype).gradients(CPU)
    before = grads.clone()
    if (name, dtype) == ("bmm", "bfloat16"):
        pytest.skip("a Gram matrix in bfloat16 decides otherwise")
    check(name, CONTENDERS[name](grads), grads)
    assert torch.equal(grads, before)


def of_the_whole(grads: Tensor) -> Callable[[], Tensor]:
    """Another algorithm: one K for all samples."""
    flat = grads.flatten(1)
    return lambda: CONTENDERS["loop"](flat[:, None])()[0].view_as(grads[0])


def test_a_wrong_one_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"whole: off by .* of the float64 oracle by sample"):
        sample_rows([Batch(4, 5, 33)], TINY, CPU, {**CONTENDERS, "whole": of_the_whole})


def test_rows_and_what_the_table_says_of_them() -> None:
    rows = sample_rows([Batch(3, 4, 20)], TINY, CPU)
    assert [row["provider"] for row in rows] == list(CONTENDERS)
    assert all(row["kind"] == "by sample" and row["p50"] > 0 and row["error"] < 1e-5 for row in rows)
    ours, loop, bmm = (row["p50"] for row in rows)
    (line, _) = _facts(Results(Path("x.json"), {}, rows))
    assert line.startswith("- Surgery by sample, T = 3, B = 4, N = 20, float32: ")
    assert line.endswith(f"a loop over the samples takes {loop / ours:.1f}× of that, torch.bmm {bmm / ours:.1f}×.")
    assert _facts(Results(Path("x.json"), {}, [])) == []
