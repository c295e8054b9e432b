"""The count of held bytes on steps known by hand, and the promise: heads one at a time add little to a step's peak."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from multitoken import memory
from torch import nn

CPU = torch.device("cpu")
KIB = 1024
SMALL = memory.Sizes(vocabulary=256, context=32, batch=2, width=32, layers=1, attention_heads=2)


def _bytes(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


def test_the_peak_is_what_is_held_at_once() -> None:
    before = _bytes(512 * KIB)

    def step() -> None:
        one = _bytes(64 * KIB)
        two = _bytes(32 * KIB)
        del one
        three, four = _bytes(48 * KIB), _bytes(8 * KIB)  # 88 KiB held, less than the 96 of a moment ago
        del two, three, four

    assert memory.peak_of(step, [], CPU) == 96 * KIB
    assert memory.peak_of(lambda: None, [], CPU) == 0
    assert before.nbytes == 512 * KIB


def test_gradients_that_stay_do_not_count_and_gradients_that_go_do() -> None:
    kept, dropped = nn.Parameter(torch.zeros(4 * KIB)), nn.Parameter(torch.zeros(2 * KIB))  # 16 and 8 KiB

    def step() -> None:
        kept.grad = torch.ones(4 * KIB)
        dropped.grad = torch.ones(2 * KIB)
        dropped.grad = None

    assert memory.peak_of(step, [kept, dropped], CPU) == 8 * KIB


@pytest.mark.parametrize("method", ["sum", "pcgrad"])
def test_the_peak_hardly_grows_with_heads_one_at_a_time_and_does_with_all_at_once(method: str) -> None:
    rows = [memory.measure(form, tokens, SMALL, method, CPU) for form in memory.FORMS for tokens in (1, 8)]
    assert memory.growth_of(rows, "detach", 256) <= 1.3
    assert memory.growth_of(rows, "sum", 256) > 1.3
    # All logits at once, O(n·V), are in the summed step: 7 more heads keep at least their float32 log-softmax.
    step = {(row.form, row.tokens): row.step for row in rows}
    assert step["sum", 8] - step["sum", 1] >= 7 * SMALL.batch * SMALL.context * SMALL.vocabulary * 4
    assert rows[0].state == rows[2].state < rows[1].state == rows[3].state


def test_the_state_is_parameters_gradients_and_two_moments() -> None:
    row = memory.measure("detach", 2, SMALL, "sum", CPU)
    layer = 12 * 32**2 + 13 * 32
    parameters = (256 + 32) * 32 + 3 * layer + 2 * 32 + 256 * 32  # trunk's tables, 1 + 2 layers, what heads share
    tensors = 2 + 3 * 12 + 3
    assert row.state == 4 * 4 * parameters + 4 * tensors  # and a step counter a tensor


def test_the_command_writes_table_numbers_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--tokens", "2", "1", "--vocabulary", "64", "--context", "8", "--batch-size", "1", "--width", "8", "--layers", "1",
               "--heads", "2", "--device", "cpu")  # fmt: skip
    assert memory.main([*options, "--out", str(tmp_path / "memory")]) == 0
    content = json.loads((tmp_path / "memory/memory.json").read_text())
    rows = [memory.Row(**row) for row in content["rows"]]
    assert [(row.form, row.tokens) for row in rows] == [("sum", 1), ("sum", 2), ("detach", 1), ("detach", 2)]
    document = (tmp_path / "memory/memory.md").read_text()
    assert "## Vocabulary 64" in document
    assert f"all heads, one backward × {rows[1].step / rows[0].step:.2f}" in document
    assert f"one head at a time × {rows[3].step / rows[2].step:.2f}" in document
    assert "From 1 to 2 heads" in capsys.readouterr().out
    assert imread(tmp_path / "memory/memory.png").std() > 0.05
    assert memory.main([*options, "--width", "9", "--out", str(tmp_path / "other")]) == 1
    assert "--width 9: expected a multiple of --heads 2" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
