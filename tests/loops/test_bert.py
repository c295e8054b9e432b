"""Three tasks with batches of their own: a graph for each loss, collected over micro-batches, in mixed precision."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from loops.bert import after, before
from loops.separate_passes import Watched, assert_same_gradients, recorded_steps, separate_passes
from torch import Tensor, nn

import gradsurgery as gs

TASKS = ("topic", "stars", "tags")
SCALE = 2.0**10
HALVES = [torch.bfloat16, torch.float16]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(6, 16) / 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.words(tokens) + self.places)


class Pooled(nn.Linear):
    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states.mean(1))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder()
        self.heads = nn.ModuleDict({"topic": Pooled(16, 4), "stars": Pooled(16, 1), "tags": nn.Linear(16, 3)})
        ce = nn.CrossEntropyLoss()
        self.losses = nn.ModuleDict({"topic": Watched(ce), "stars": Watched(nn.MSELoss()), "tags": Watched(Tags())})

    def train_by(self, loop: ModuleType, steps: int, dtype: torch.dtype) -> None:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=dtype == torch.float16)
        loop.train(self.encoder, self.heads, self.losses, loaders(), optimizer, scaler, steps, accumulate=2, dtype=dtype)


class Tags(nn.CrossEntropyLoss):
    def forward(self, scores: Tensor, tags: Tensor) -> Tensor:
        return super().forward(scores.flatten(0, 1), tags.flatten())


def loaders() -> dict[str, Iterator[tuple[Tensor, Tensor]]]:
    """Two batches a task, again and again, of another size for every task; labels follow from the tokens."""

    def batches(task: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        g = torch.Generator().manual_seed(size)
        texts = torch.randint(20, (2, size, 6), generator=g)
        for tokens in itertools.cycle(texts):
            yield tokens, {"topic": tokens[:, 0] % 4, "stars": tokens[:, :1] / 5.0, "tags": tokens % 3}[task]

    return {task: batches(task, size) for task, size in zip(TASKS, (6, 8, 4), strict=True)}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_first_step_is_that_of_separate_passes(dtype: torch.dtype, built: list[gs.GradientAggregator]) -> None:
    model = Model()
    expected = copy.deepcopy(model)
    with recorded_steps(model) as steps:
        model.train_by(after, 1, dtype)
    losses: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    for task, loader in loaders().items():
        for _ in range(2):
            tokens, target = next(loader)
            with torch.autocast("cpu", dtype=dtype):
                losses[task].append(expected.losses[task](expected.heads[task](expected.encoder(tokens)), target) / 2)
    fresh = gs.GradientAggregator("pcgrad", tasks=TASKS)
    assert_same_gradients(
        steps[0], separate_passes(dict(expected.named_parameters()), losses, fresh, SCALE if dtype == torch.float16 else 1.0)
    )
    assert len(built[0].history) == 1, "one surgery on the sum of the micro-batches' gradients"
    torch.testing.assert_close(built[0].statistics().gram, fresh.statistics().gram, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("loop", [before, after], ids=["before", "after"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_it_learns(loop: ModuleType, dtype: torch.dtype) -> None:
    model = Model()
    model.train_by(loop, 25, dtype)
    assert {task: loss.fell(10) for task, loss in model.losses.items()} == dict.fromkeys(TASKS, True)
