"""Pictures of the model at work: validation images with truth and prediction, and predicted against true numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from multihead.data import ProductDataset
from multihead.model import ProductModel
from multihead.targets import Vocabulary

SHOWN = 12
RIGHT, WRONG, UNKNOWN = "#00724f", "#b33c00", "#555555"


def plot_predictions(model: ProductModel, data: ProductDataset, path: Path) -> None:
    """Up to `SHOWN` pictures, evenly over the data set; below each, every task's truth and prediction."""
    indices = sorted({round(index) for index in np.linspace(0, len(data) - 1, min(SHOWN, len(data)))})
    samples = [data[index] for index in indices]
    answers = predict_all(model, torch.stack([sample["image"] for sample in samples]))
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(3.0 * columns, (2.1 + 0.26 * len(model.targets)) * rows + 0.5), layout="constrained")
    figure.suptitle(f"{data.name}: validation pictures, truth → prediction", parse_math=False)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for place, (axes, sample) in enumerate(zip(panels.flat, samples, strict=False)):
        axes.imshow(sample["image"].permute(1, 2, 0).numpy(), interpolation="nearest")
        for line, (task, target) in enumerate(model.targets.items()):
            known, truth, answer = bool(sample[f"{task}/known"]), float(sample[task]), answers[task][place]
            if isinstance(target, Vocabulary):
                said = target.names[int(answer.argmax())]
                meant = target.names[int(truth)] if known else "?"
                color = UNKNOWN if not known else RIGHT if said == meant else WRONG
                text = f"{_short(meant)} → {_short(said)} ({answer.max():.0%})"
            else:
                meant = f"{truth:.1f}" if known else "?"
                color, text = UNKNOWN, f"{task} {meant} → {float(answer):.1f}{data.unit}"
            axes.text(0.5, -0.06 - 0.11 * line, text, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=color,
                      parse_math=False)  # fmt: skip
    figure.savefig(path, dpi=110)


def plot_numbers(model: ProductModel, data: ProductDataset, path: Path) -> None:
    """One panel a number: predicted against true over all samples whose label is known."""
    batches = DataLoader(data, batch_size=64, generator=torch.Generator())
    parts = [predict_all(model, batch["image"]) for batch in batches]
    tasks = [task for task, target in model.targets.items() if not isinstance(target, Vocabulary)]
    figure = Figure(figsize=(4.4 * len(tasks), 4.2), layout="constrained")
    figure.suptitle(f"{data.name}: numbers of the validation set", parse_math=False)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        truth, answer = data.known_targets(task).numpy(), torch.cat([part[task] for part in parts])[data.known(task)].numpy()
        axes.scatter(truth, answer, s=12, alpha=0.6, color="#0072b2", linewidths=0)
        if len(truth):
            ends = [min(truth.min(), answer.min()), max(truth.max(), answer.max())]
            axes.plot(ends, ends, color="black", linewidth=0.8)
        unit = f" [{data.unit.strip()}]" if data.unit else ""
        axes.set(title=task, xlabel=f"true{unit}", ylabel=f"predicted{unit}")
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def predict_all(model: ProductModel, image: Tensor) -> dict[str, Tensor]:
    """The model's answers on the CPU."""
    device = next(model.parameters()).device
    return {task: answer.cpu() for task, answer in model.predict(image.to(device)).items()}


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"
