"""The Hugging Face Trainer's own loop: batches of one task each, and one surgery on the sums of a step's gradients."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from loops.separate_passes import Gradients, assert_same_gradients, recorded_steps, separate_passes
from loops.trainer import after, before
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

import gradsurgery as gs

TASKS = after.TASKS


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    """An Accelerator's settings are the process's."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 16)
        self.layers = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.heads = nn.ModuleDict({task: nn.Linear(16, 3) for task in TASKS})

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        z = self.layers(self.words(input_ids)).mean(1)
        return {task: head(z) for task, head in self.heads.items()}

    def losses(self) -> dict[str, Tensor]:
        return {task: cross_entropy(self(b["input_ids"])[task], b["labels"]) for task, b in zip(TASKS, batches(), strict=True)}

    def train_by(self, loop: ModuleType, steps: int, folder: Path) -> list[Gradients]:
        quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "remove_unused_columns": False}
        arguments = TrainingArguments(
            str(folder),
            use_cpu=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=3,
            num_train_epochs=steps,
            learning_rate=1e-2,
            max_grad_norm=0.0,
            **quiet,
        )
        with recorded_steps(self) as recorded:
            loop.train(self, arguments, batches(), lambda rows: rows[0])
        return recorded


def batches() -> list[dict[str, Any]]:
    """One of every task: other texts, and other labels."""
    g = torch.Generator().manual_seed(1)
    texts, labels = torch.randint(20, (3, 6, 5), generator=g), torch.randint(3, (3, 6), generator=g)
    return [{"input_ids": texts[k], "labels": labels[k], "task": k} for k in range(3)]


def test_the_first_step_is_that_of_separate_passes(tmp_path: Path, built: list[gs.GradientAggregator]) -> None:
    model = Model()
    expected = copy.deepcopy(model)
    (actual,) = model.train_by(after, 1, tmp_path)
    losses = {task: [loss / 3] for task, loss in expected.losses().items()}
    fresh = gs.GradientAggregator("pcgrad", tasks=TASKS)
    assert_same_gradients(actual, separate_passes(dict(expected.named_parameters()), losses, fresh))
    assert [step.present for step in built[0].history] == [(True, True, True)]


@pytest.mark.parametrize("loop", [before, after], ids=["before", "after"])
def test_it_learns(loop: ModuleType, tmp_path: Path) -> None:
    model = Model()
    start = model.losses()
    model.train_by(loop, 12, tmp_path)
    assert all(loss < 0.7 * start[task] for task, loss in model.losses().items())
