"""Images beside what they are and what the model takes them for."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from cifar10.data import CLASSES_OF, CIFAR10Dataset

ROWS, COLUMNS = 3, 6
_RIGHT, _WRONG = "#009e73", "#d55e00"


def plot_predictions(data: CIFAR10Dataset, model: nn.Module, name: str, path: Path) -> None:
    """The first images; below each, by task, the prediction, and the truth where it is another."""
    count = min(len(data), ROWS * COLUMNS)
    samples = [data[index] for index in range(count)]
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(torch.stack([sample["image"] for sample in samples]).to(device))
    guesses = {task: logits[task].argmax(1).tolist() for task in data.tasks}
    figure = Figure(figsize=(1.9 * COLUMNS, (1.6 + 0.2 * len(data.tasks)) * ROWS + 0.7), layout="constrained")
    figure.suptitle(f"{name}: validation images, predictions (wrong ones in red, with the truth)")
    grid = figure.subplots(ROWS, COLUMNS)
    for axes in grid.flat:
        axes.axis("off")
    for index, sample in enumerate(samples):
        axes = grid.flat[index]
        axes.imshow(sample["image"].permute(1, 2, 0).numpy(), interpolation="nearest")
        for line, task in enumerate(data.tasks):
            guess, truth = guesses[task][index], int(sample[task])
            words = CLASSES_OF[task][guess] + ("" if guess == truth else f" (is {CLASSES_OF[task][truth]})")
            axes.text(0.5, -0.04 - 0.13 * line, words, color=_RIGHT if guess == truth else _WRONG, fontsize=9,
                      ha="center", va="top", transform=axes.transAxes)  # fmt: skip
    figure.savefig(path, dpi=110)
