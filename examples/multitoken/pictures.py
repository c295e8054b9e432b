"""Pictures of the heads: what each pays for the bytes of a passage, and how their gradients agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from gradsurgery.report.axes import COLORS
from multitoken.data.windows import window
from multitoken.objective import NATS_PER_BIT, FutureTokens

if TYPE_CHECKING:
    from multitoken.problem import MultiTokenProblem

PASSAGE = 56  # bytes


def plot_predictions(problem: MultiTokenProblem, path: Path) -> None:
    """Above, a head's bits a byte over the validation windows beside the floor's; below, its bits for each byte of a passage."""
    device = problem.model.trunk.position.device
    batches = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in problem.validation())
    with torch.no_grad():
        metrics = problem.evaluate(batches)
    names = [f"{task}/bits_per_byte" for task in problem.tasks]
    figure = Figure(figsize=(0.2 * PASSAGE + 1.5, 3.6 + 0.4 * len(names)), layout="constrained")
    figure.suptitle(f"{problem.name}: what each head pays for a byte")
    bars, strip = figure.subplots(2, 1, height_ratios=(2.6, 0.4 * len(names) + 0.6))
    places = np.arange(len(names))
    bars.bar(places - 0.2, [metrics[name] for name in names], 0.4, color=COLORS[0], label="model")
    bars.bar(places + 0.2, [problem.floors[name] for name in names], 0.4, color="0.75", label="floor: frequencies of bytes")
    for place, (task, name) in enumerate(zip(problem.tasks, names, strict=True)):
        bars.annotate(f"{metrics[name]:.2f} bits, {metrics[f'{task}/accuracy']:.0%} right", (place, 0.1), ha="center", fontsize=8,
                      bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "none"})  # fmt: skip
    bars.set_xticks(places, problem.tasks)
    bars.set(ylabel="bits a byte", title="all validation windows")
    bars.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    bits, text = passage_bits(problem)
    image = strip.imshow(bits, aspect="auto", cmap="magma_r", vmin=0, vmax=8)
    strip.set_yticks(places, problem.tasks)
    strip.set_xticks(np.arange(len(text)), [_shown(byte) for byte in text], family="monospace", fontsize=9)
    strip.set_title("a passage, byte by byte, by the head that looked ahead to it")
    figure.colorbar(image, ax=strip, label="bits", pad=0.01)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def passage_bits(problem: MultiTokenProblem) -> tuple[NDArray[np.float64], bytes]:
    """[tasks, bytes] and the bytes: the last ones of the first validation window, −log₂ p by each head; NaN before its reach."""
    context = problem.val_data.context
    sample = window(problem.val_text, 0, context, len(problem.tasks))
    read = sample["input"][None].to(problem.model.trunk.position.device)
    features = problem.model.trunk(read)
    bits = np.full((len(problem.tasks), context), np.nan)
    for row, task in enumerate(problem.tasks):
        ahead = problem.ahead[task]
        logits = problem.model.heads[task](features)[0, : context - ahead]
        losses = F.cross_entropy(logits.double(), read[0, ahead:], reduction="none")
        bits[row, ahead:] = (losses / NATS_PER_BIT).cpu().numpy()
    shown = min(PASSAGE, context)
    return bits[:, context - shown :], bytes(sample["input"][context - shown :].tolist())


def _shown(byte: int) -> str:
    if byte == ord("\n"):
        return "↵"
    return chr(byte) if 32 <= byte < 127 else "·"


def plot_cosines(problem: FutureTokens, name: str, batch: Mapping[str, Tensor], path: Path) -> None:
    """The cosine between every two heads' gradients at the representation, on one batch."""
    cosines = gradient_cosines(problem, batch)
    tasks = problem.tasks
    figure = Figure(figsize=(1.6 + 0.75 * len(tasks), 1.2 + 0.75 * len(tasks)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
    for row, column in np.ndindex(*cosines.shape):
        value = cosines[row, column]
        axes.text(
            column, row, f"{value:+.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black", fontsize=8
        )
    axes.set_xticks(np.arange(len(tasks)), tasks, rotation=45)
    axes.set_yticks(np.arange(len(tasks)), tasks)
    axes.set_title(f"{name}: cosine of the heads' gradients\n({len(batch['input'])} validation windows)", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=110)


def gradient_cosines(problem: FutureTokens, batch: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """[tasks, tasks]: ⟨g_i, g_j⟩ / |g_i||g_j| of the losses' gradients at the representation."""
    device = problem.model.trunk.position.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with torch.no_grad():
        features = problem.represent(batch)
    features.requires_grad_()
    gradients = [torch.autograd.grad(problem.loss(task, features, batch), features)[0].flatten() for task in problem.tasks]
    unit = F.normalize(torch.stack(gradients).double(), dim=1)
    cosines: NDArray[np.float64] = (unit @ unit.T).cpu().numpy()
    return cosines
