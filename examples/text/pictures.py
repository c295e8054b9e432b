"""What the model takes the validation texts for: a confusion matrix for each task, and some of the texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from harness.classification import MISSING
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from text.data.dataset import TextDataset, collate

TEXTS = 8
MANY = 12  # classes above which a matrix has no numbers in its cells
_LONGEST = 24  # characters of a class name
_RIGHT, _WRONG, _NONE = "#009e73", "#d55e00", "#777777"


def predictions(data: TextDataset, model: nn.Module) -> dict[str, Tensor]:
    """The model's class for every text, by task. int64 [N]"""
    device = next(model.parameters()).device
    answers: dict[str, list[Tensor]] = {task: [] for task in data.labels}
    with torch.no_grad():
        for batch in DataLoader(data, 256, collate_fn=collate):
            for task, logits in model(batch["words"].to(device), batch["lengths"]).items():
                answers[task].append(logits.argmax(1).cpu())
    return {task: torch.cat(parts) for task, parts in answers.items()}


def confusion(truth: Tensor, answer: Tensor, classes: int) -> NDArray[np.int64]:
    """How many texts of class i (row) are taken for class j (column); texts without a label are left out. [C, C]"""
    known = truth != MISSING
    cells = torch.bincount(truth[known] * classes + answer[known], minlength=classes**2)
    matrix: NDArray[np.int64] = cells.view(classes, classes).numpy()
    return matrix


def plot_predictions(data: TextDataset, model: nn.Module, classes: Mapping[str, Sequence[str]], name: str, path: Path) -> None:
    """Above, the confusion matrix of each task; below, the first texts with predictions, and truths where they are others."""
    answers = predictions(data, model)
    tasks, count = tuple(classes), min(TEXTS, len(data))
    figure = Figure(figsize=(5.2 * len(tasks) + 1, 4.6 + 0.42 * count), layout="constrained")
    figure.suptitle(f"{name}: validation texts", parse_math=False)
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[4.2, 0.42 * count])
    for axes, task in zip(above.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        _matrix(axes, confusion(data.labels[task], answers[task], len(classes[task])), classes[task], task)
    lines = below.subplots()
    lines.axis("off")
    lines.set(xlim=(0, 1), ylim=(count, 0))
    for row in range(count):
        text = shorten(data.table.texts[row], 60, placeholder=" …")
        lines.text(0.0, row + 0.5, text, va="center", fontsize=9, parse_math=False)
        for column, task in enumerate(tasks):
            truth, answer = int(data.labels[task][row]), int(answers[task][row])
            names = [shorten(classes[task][index], _LONGEST, placeholder="…") for index in (answer, truth)]
            words = names[0] if truth == answer else f"{names[0]} ({'no label' if truth == MISSING else f'is {names[1]}'})"
            color = _NONE if truth == MISSING else _RIGHT if truth == answer else _WRONG
            lines.text(0.55 + 0.45 / len(tasks) * column, row + 0.5, words, va="center", fontsize=9, color=color,
                       parse_math=False)  # fmt: skip
    figure.savefig(path, dpi=110)


def _matrix(axes: Axes, counts: NDArray[np.int64], names: Sequence[str], task: str) -> None:
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=f"{task}: share of each class (row) by prediction", xlabel="prediction", ylabel="truth")
    axes.title.set_fontsize(10)
    if len(names) <= MANY:
        labels = [shorten(name, _LONGEST, placeholder="…") for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=30, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), labels, parse_math=False)
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
