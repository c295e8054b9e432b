"""Networks of every kind of architecture, with three tasks each: their losses, from one forward pass on a seed's batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

TASKS = ("a", "b", "c")


def objective(task: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Losses of different shapes, so that gradients differ in length and direction, and conflict."""
    error = prediction - target.reshape(prediction.shape)
    upwards = -prediction.square().mean() - prediction.mean()
    return {"a": error.square().mean() * 3, "b": (error + 1).abs().mean(), "c": upwards}[task]


class Network(nn.Module):
    """A network that draws its batches by itself."""

    def losses(self, seed: int = 0) -> dict[str, Tensor]:
        """Three losses from one forward pass. The same seed gives the same batch and the same dropout."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.forward()

    def draw(self, *shape: int) -> Tensor:
        """A batch in the dtype of the parameters, of the same numbers in each."""
        return torch.randn(shape, dtype=torch.float64).to(next(self.parameters()).dtype)

    def each(self, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective of every prediction, on targets of its shape."""
        return {task: objective(task, z, self.draw(*z.shape)) for task, z in predictions.items()}

    def forward(self) -> dict[str, Tensor]:
        raise NotImplementedError


def linear_heads(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({task: nn.Linear(width, 2) for task in TASKS})


class Perceptron(Network):
    """A trunk, three heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(7, 4))
        return self.each({task: head(z) for task, head in self.heads.items()})


class Convolutions(Network):
    """Batch statistics, and activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        )
        self.heads = nn.ModuleDict({task: nn.Conv2d(4, 1, 1) for task in TASKS})

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(3, 2, 5, 5))
        return self.each({task: head(z) for task, head in self.heads.items()})


class Transformer(Network):
    """Attention, layer norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=12, dropout=0.1, batch_first=True)
        self.heads = linear_heads(8)

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(2, 5, 8))
        return self.each({"a": self.heads["a"](z), "b": self.heads["b"](z[:, 0]), "c": self.heads["c"](z.mean(1))})


class Recurrent(Network):
    """Two layers of LSTM in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.LSTM(3, 4, num_layers=2, batch_first=True)
        self.heads = linear_heads(4)

    def forward(self) -> dict[str, Tensor]:
        z, (h, c) = self.trunk(self.draw(2, 4, 3))
        return self.each({"a": self.heads["a"](z), "b": self.heads["b"](h[-1]), "c": self.heads["c"](c[0])})


class Unrolled(Network):
    """A cell called by hand, its parameters used at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.heads = linear_heads(4)

    def forward(self) -> dict[str, Tensor]:
        state, hidden = (self.draw(2, 4), self.draw(2, 4)), []
        for x in self.draw(4, 2, 3):
            state = self.cell(x, state)
            hidden.append(state[0])
        return self.each(
            {"a": self.heads["a"](torch.stack(hidden)), "b": self.heads["b"](hidden[-1]), "c": self.heads["c"](hidden[1])}
        )


class Embedded(Network):
    """A table of vectors, of which each task reads other rows."""

    sparse = False

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 5, padding_idx=0, sparse=self.sparse)
        self.mix = nn.Linear(5, 5)
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        tokens = torch.randint(9, (3, 4))
        z = torch.tanh(self.mix(self.table(tokens)))
        return self.each({"a": self.heads["a"](z), "b": self.heads["b"](z[:, :2]), "c": self.heads["c"](z.mean(1))})


class SparselyEmbedded(Embedded):
    """The table's gradients are sparse."""

    sparse = True


class SparseHead(Network):
    """A sparse table that one task alone reads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 5)
        self.table = nn.Embedding(9, 5, sparse=True)
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = torch.tanh(self.trunk(self.draw(3, 4)))
        seen = {"a": z * self.table(torch.tensor([1, 4, 1])), "b": z, "c": z}
        return self.each({task: head(seen[task]) for task, head in self.heads.items()})


class TiedLanguageModel(Network):
    """One matrix is the input's table and the output's projection."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.mix = nn.Linear(6, 6)
        self.heads = nn.ModuleDict({"b": nn.Linear(6, 2), "c": nn.Linear(6, 2)})

    def forward(self) -> dict[str, Tensor]:
        tokens = torch.randint(9, (3, 5))
        z = torch.tanh(self.mix(self.table(tokens)))
        logits = F.linear(z[:, :-1], self.table.weight)
        others = self.each({task: head(z.mean(1)) for task, head in self.heads.items()})
        return {"a": F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()), **others}


class BlockTwice(Network):
    """A block that the features pass twice; the first task looks after the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        once = self.block(self.draw(6, 5))
        twice = self.block(once)
        return self.each({"a": self.heads["a"](once), "b": self.heads["b"](twice), "c": self.heads["c"](twice + once)})


class UNet(Network):
    """Skip connections around a coarser level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.join = nn.Conv2d(6, 4, 3, padding=1)
        self.heads = nn.ModuleDict({task: nn.Conv2d(4, 1, 1) for task in TASKS})

    def forward(self) -> dict[str, Tensor]:
        skip = torch.tanh(self.stem(self.draw(2, 2, 6, 6)))
        coarse = torch.tanh(self.down(skip))
        z = torch.tanh(self.join(torch.cat([skip, self.up(coarse)], 1)))
        return self.each({task: head(z) for task, head in self.heads.items()})


class Pyramid(Network):
    """Three levels with lateral connections; the tasks' heads stand on different levels."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(2, 3, 3, padding=1), *(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(2))])
        self.lateral = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.heads = nn.ModuleDict({task: nn.Conv2d(3, 1, 1) for task in TASKS})

    def forward(self) -> dict[str, Tensor]:
        x, maps = self.draw(2, 2, 8, 8), []
        for level in self.levels:
            x = torch.tanh(level(x))
            maps.append(x)
        p2 = self.lateral[2](maps[2])
        p1 = self.lateral[1](maps[1]) + F.interpolate(p2, scale_factor=2.0)
        p0 = self.lateral[0](maps[0]) + F.interpolate(p1, scale_factor=2.0)
        coarse = self.heads["c"](p2).mean() + self.heads["c"](p1).mean()
        return self.each({"a": self.heads["a"](p0), "b": self.heads["b"](p1), "c": coarse})


class ChainedFeatures(Network):
    """Two feature tensors, the second computed from the first; the first task does not reach what lies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(4, 5), nn.Linear(5, 5)
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        one = torch.tanh(self.early(self.draw(6, 4)))
        two = torch.tanh(self.late(one))
        return self.each({"a": self.heads["a"](one), "b": self.heads["b"](two), "c": self.heads["c"](one * two)})


class Checkpointed(Network):
    """Activations computed again in every backward pass, with dropout among them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.25), nn.Linear(6, 5), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        self.heads = nn.ModuleDict({task: nn.Linear(5, 2) for task in ("b", "c")})

    def forward(self) -> dict[str, Tensor]:
        z = checkpoint(self.trunk, self.draw(7, 4), use_reentrant=False)
        first = checkpoint(self.head, z, use_reentrant=False)
        return self.each({"a": first, "b": self.heads["b"](z), "c": self.heads["c"](z)})


class Dropped(Network):
    """One mask for all tasks, as there is one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 5), nn.Dropout(0.5))
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(7, 4))
        return self.each({task: head(z) for task, head in self.heads.items()})


class OverlappingHeads(Network):
    """Decoders that two tasks of three share."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 5)
        self.ab, self.bc = nn.Linear(5, 5), nn.Linear(5, 5)
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = torch.tanh(self.trunk(self.draw(6, 4)))
        ab, bc = torch.tanh(self.ab(z)), torch.tanh(self.bc(z))
        return self.each({"a": self.heads["a"](ab), "b": self.heads["b"](ab - bc), "c": self.heads["c"](bc)})


class LearnedVariance(Network):
    """A loss that itself is a leaf, and weighs another one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(5, 2) for task in ("a", "b")})
        self.log_variance = nn.Parameter(torch.tensor(0.3))

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(6, 4))
        losses = self.each({task: head(z) for task, head in self.heads.items()})
        return {"a": losses["a"] * torch.exp(-self.log_variance), "b": losses["b"], "c": self.log_variance}


class Decayed(Network):
    """A task whose loss has the trunk's parameters in it beside what they compute."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(6, 4))
        losses = self.each({task: head(z) for task, head in self.heads.items()})
        return {**losses, "b": losses["b"] - 0.7 * torch.stack([p.square().sum() for p in self.trunk.parameters()]).sum()}


class PartlyFrozen(Network):
    """Parameters that are frozen, and parameters that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        self.trunk[2].weight.requires_grad_(False)
        self.trunk.register_parameter("unused", nn.Parameter(torch.ones(3)))
        self.heads = linear_heads(5)
        self.heads["b"].bias.requires_grad_(False)
        self.nobody = nn.Linear(5, 2)

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk[:4](self.draw(7, 4))
        return self.each({task: self.heads[task](z) for task in TASKS})


class Parametrized(Network):
    """A weight computed from two parameters each time it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh())
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(6, 4))
        return self.each({task: head(z) for task, head in self.heads.items()})


class SeveralOutputs(Network):
    """Operations of several outputs, of which each task reads another, before and after more of the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.mix = nn.Linear(4, 9), nn.Linear(3, 3)
        self.heads = linear_heads(3)

    def forward(self) -> dict[str, Tensor]:
        one, two, three = torch.tanh(self.trunk(self.draw(6, 4))).chunk(3, -1)
        mixed = torch.tanh(self.mix(torch.stack([one, two]))).unbind()
        largest, _ = torch.stack([mixed[0], mixed[1], three]).max(0)
        return self.each({"a": self.heads["a"](mixed[0]), "b": self.heads["b"](three), "c": self.heads["c"](-largest)})


class Broadcasts(Network):
    """Features that are smaller than what they are added to, and written into in place."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.query = nn.Linear(4, 5), nn.Parameter(torch.randn(1, 5))
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = torch.tanh(self.trunk(self.draw(6, 4)) + self.query) * self.gain
        context = z.mean(0, keepdim=True)
        written = z.clone()
        written[:2] = context
        written[:, 1] *= 0.5
        return self.each(
            {"a": self.heads["a"](written), "b": self.heads["b"](z + context), "c": self.heads["c"](context.expand(3, 5))}
        )


class _Apart(torch.autograd.Function):
    """Sum and difference. What does not come back stays None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        order = torch.arange(3)
        ctx.mark_non_differentiable(order)
        return x + y, x - y, order

    @staticmethod
    def backward(ctx: Any, plus: Tensor | None, minus: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None]:
        if plus is None or minus is None:
            return (plus, plus) if minus is None else (minus, -minus)
        return plus + minus, plus - minus


class CustomFunction(Network):
    """A function of several inputs and outputs, some of which are reached by no task."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.late = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 5)
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        x = self.draw(6, 4)
        plus, minus, _ = _Apart.apply(torch.tanh(self.left(x)), torch.tanh(self.right(x)))
        late, _, _ = _Apart.apply(torch.tanh(self.late(plus)), minus)
        return self.each({"a": self.heads["a"](minus), "b": self.heads["b"](late), "c": self.heads["c"](plus)})


class NestedLosses(Network):
    """Losses that are computed from other tasks' losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.heads = linear_heads(5)

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(6, 4))
        losses = self.each({task: head(z) for task, head in self.heads.items()})
        losses["b"] = losses["b"] - 0.3 * losses["a"].sqrt()
        losses["c"] = (losses["c"] * losses["b"]).sin()
        return losses


ZOO: dict[str, Callable[[], Network]] = {
    "perceptron": Perceptron,
    "convolutions": Convolutions,
    "transformer": Transformer,
    "lstm": Recurrent,
    "lstm-cell": Unrolled,
    "embedding": Embedded,
    "sparse-embedding": SparselyEmbedded,
    "sparse-head": SparseHead,
    "tied": TiedLanguageModel,
    "block-twice": BlockTwice,
    "unet": UNet,
    "pyramid": Pyramid,
    "chained-features": ChainedFeatures,
    "checkpointed": Checkpointed,
    "dropout": Dropped,
    "overlapping-heads": OverlappingHeads,
    "learned-variance": LearnedVariance,
    "decayed": Decayed,
    "partly-frozen": PartlyFrozen,
    "parametrized": Parametrized,
    "several-outputs": SeveralOutputs,
    "broadcasts": Broadcasts,
    "custom-function": CustomFunction,
    "nested-losses": NestedLosses,
}


def build(kind: str, dtype: torch.dtype = torch.float64) -> Network:
    """A network of the zoo, with the same parameters each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return ZOO[kind]().to(dtype)
