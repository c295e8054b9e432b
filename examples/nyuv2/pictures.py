"""Pictures of dense predictions beside the truth."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor, nn

from nyuv2.data import NYUv2Dataset
from nyuv2.data.sample import IGNORE

PICTURE_SAMPLES = 4
PALETTE_13 = (  # by index: bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window
    "#1f77b4", "#9c755f", "#c7d3e3", "#d62728", "#b5894e", "#8c564b", "#f0c419", "#e377c2", "#2ca02c", "#ff7f0e",
    "#3b3b58", "#a7b8a8", "#17becf",
)  # fmt: skip
UNLABELLED = "#000000"
TITLES = {"segmentation": "segmentation", "depth": "depth", "normal": "normals", "instance": "way to the center"}


def palette(classes: int) -> NDArray[np.float64]:
    """RGB in 0..1 for every class index, the same in every run. [classes, 3]"""
    if classes <= len(PALETTE_13):
        return np.array([[int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)] for color in PALETTE_13[:classes]])
    golden = 0.618034  # spreads hues evenly however many there are
    shades = ((0.55, 0.9), (0.8, 0.9), (0.55, 0.65), (0.8, 0.65))  # saturation, value
    return np.array([colorsys.hsv_to_rgb(index * golden % 1, *shades[index % 4]) for index in range(classes)])


def plot_predictions(data: NYUv2Dataset, model: nn.Module, tasks: Sequence[str], path: Path) -> None:
    """Samples by row: the image, then truth and prediction of every task. All depth maps share one color scale."""
    samples = _spread(len(data), PICTURE_SAMPLES)
    classes = len(data.info.classes)
    device = next(model.parameters()).device
    batch = [data[index] for index in samples]
    with torch.no_grad():
        prediction = model(torch.stack([sample["image"] for sample in batch]).to(device))
    columns = 1 + 2 * len(tasks)
    height, width = batch[0]["image"].shape[-2:]
    figure = Figure(figsize=(2.5 * columns, 2.2 * height / width * len(batch) + 1.3), layout="constrained")
    figure.suptitle(f"{data.info.name}: validation samples, truth and prediction")
    grid = figure.subplots(len(batch), columns, squeeze=False)
    largest = max((float(sample["depth"].max()) for sample in batch if "depth" in sample), default=1.0)
    depth_title = ("inverse " if data.info.depth.inverse else "") + "depth"
    depth_title += f" [{data.info.depth.unit}]" if data.info.depth.unit else ""
    beyond = "depth" in prediction and float(prediction["depth"].max()) > largest
    present: set[int] = set()
    scale: Any = None
    for row, sample in enumerate(batch):
        grid[row][0].imshow(sample["image"].permute(1, 2, 0).numpy())
        for column, task in enumerate(tasks):
            pair = (sample[task], prediction[task][row].float().cpu())
            for axes, kind, value in zip(grid[row][1 + 2 * column :], ("truth", "prediction"), pair, strict=False):
                if task == "segmentation":
                    labels = value if kind == "truth" else value.argmax(0)
                    present |= set(labels[labels != IGNORE].unique().tolist())
                    axes.imshow(_painted(labels, classes), interpolation="nearest")
                elif task == "depth":
                    shown = np.ma.masked_less_equal(value[0].numpy(), 0)
                    axes.set_facecolor(UNLABELLED)
                    scale = axes.imshow(shown, cmap="viridis", vmin=0, vmax=largest, interpolation="nearest")
                elif task == "normal":
                    axes.imshow(_colored(value), interpolation="nearest")
                else:
                    axes.imshow(_directions(value, sample[task]), interpolation="nearest")
                if row == 0:
                    axes.set_title(f"{TITLES[task]}: {kind}", fontsize=10)
        grid[row][0].set_ylabel(f"sample {samples[row]}", fontsize=10)
    grid[0][0].set_title("image", fontsize=10)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    if scale is not None:
        figure.colorbar(
            scale, ax=grid, location="right", shrink=0.6, label=depth_title, pad=0.01, extend="max" if beyond else "neither"
        )
    if present:
        colors = palette(classes)
        handles = [Patch(color=colors[index], label=data.info.classes[index]) for index in sorted(present)]
        handles.append(Patch(color=UNLABELLED, label="no truth here"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _painted(labels: Tensor, classes: int) -> NDArray[np.float64]:
    colors = np.vstack([palette(classes), np.zeros((1, 3))])  # the last row is UNLABELLED
    return colors[np.where(labels.numpy() == IGNORE, classes, labels.numpy())]


def _colored(normals: Tensor) -> NDArray[np.float64]:
    """Unit vectors [3, H, W] -> RGB [H, W, 3] by x, y, z from -1..1 to 0..1, black where there is none."""
    vectors: NDArray[np.float64] = normals.permute(1, 2, 0).double().numpy()
    colors: NDArray[np.float64] = (vectors.clip(-1, 1) + 1) / 2 * (np.abs(vectors).sum(-1, keepdims=True) > 0)
    return colors


def _directions(offsets: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Offsets [2, H, W] -> RGB [H, W, 3]: hue by direction, dark when short beside the longest true one, black without truth."""
    down, right = offsets.double().nan_to_num().numpy()
    farthest = max(float(truth.double().nan_to_num().norm(dim=0).max()), 1e-6)
    hue = np.arctan2(down, right) / (2 * np.pi) % 1
    value = (np.hypot(down, right) / farthest).clip(0.15, 1) * truth.isfinite().all(0).numpy()
    colors: NDArray[np.float64] = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.8), value], -1))
    return colors


def _spread(count: int, wanted: int) -> Sequence[int]:
    """Up to `wanted` indices, evenly over 0..count-1."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(wanted, count))})
