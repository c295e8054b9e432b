"""What a finished run shows: metrics.json, the table, the pictures and the note."""

import argparse
import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.checkpoint import atomic_write
from harness.log import read_log
from harness.narrative import balance_sentences, conflict_sentences, dominance_sentences
from harness.plots import plot_conflict, plot_losses
from harness.progress import table
from harness.run_folder import RunFolder, write_json
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

import gradsurgery as gs
from nyuv2.data.sample import IGNORE
from nyuv2.metrics import HIGHER_IS_BETTER, PRIMARY
from nyuv2.problem import NYUv2Problem

PICTURE_SAMPLES = 4
PALETTE_13 = (  # by index: bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window
    "#1f77b4", "#9c755f", "#c7d3e3", "#d62728", "#b5894e", "#8c564b", "#f0c419", "#e377c2", "#2ca02c", "#ff7f0e",
    "#3b3b58", "#a7b8a8", "#17becf",
)  # fmt: skip
UNLABELLED = "#000000"
TITLES = {"segmentation": "segmentation", "depth": "depth", "normal": "normals"}


def write_report(problem: NYUv2Problem, arguments: argparse.Namespace, folder: RunFolder, console: Console) -> None:
    """Write metrics.json, pictures/ and note.md from log.csv and the model as it stands, and print the table."""
    log = read_log(folder.log)
    last = {name: series[max(series)] for name, series in log.items() if series}
    scores = log["score"]
    best_step = max(scores, key=scores.__getitem__)
    best = {"best/score": scores[best_step], "best/epoch": log["epoch"][best_step] + 1}
    write_json(folder.metrics, {**last, **{f"floor/{name}": value for name, value in problem.floors.items()}, **best})
    title = f"{problem.info.name}, {arguments.method}, balancer {arguments.balancer}"
    plot_losses(log, problem.loss_units, folder.pictures / "losses.png", title=f"Training losses: {title}")
    if len(problem.tasks) > 1:
        plot_conflict(log, problem.tasks, folder.pictures / "conflict.png", title=f"Gradients of the tasks: {title}")
    plot_predictions(problem, folder.pictures / "predictions.png")
    rows = [
        [name, f"{problem.floors[name]:.4f}", f"{last[f'val/{name}']:.4f}", "yes" if _beats(problem, last, name) else "no"]
        for name in problem.metric_names
        if f"val/{name}" in last and name in problem.floors
    ]
    console.print(table("Validation after the last epoch", ["metric", "floor", "model", "better"], rows))
    with atomic_write(folder.note) as file:
        file.write(_note(problem, arguments, log, last, best).encode())
    console.print(f"Run folder: {folder.path} (note.md, metrics.json, pictures/)", highlight=False, soft_wrap=True)


def _beats(problem: NYUv2Problem, last: dict[str, float], name: str) -> bool:
    value, floor = last[f"val/{name}"], problem.floors[name]
    return value > floor if name.split("/")[1] in HIGHER_IS_BETTER else value < floor


def _note(problem: NYUv2Problem, arguments: argparse.Namespace, log: Any, last: dict[str, float], best: dict[str, float]) -> str:
    tasks = problem.tasks
    train, val = len(problem.train_data), len(problem.val_data)
    steps, epochs = max(log["epoch"]), int(max(log["epoch"].values())) + 1  # validation logs a row at the last step
    device = next(problem.model.parameters()).device.type
    kernels = "compiled kernels" if gs.build_info().get(device) else "plain PyTorch operations"
    lines = [
        f"# {' + '.join(tasks)} on {problem.info.name}: {arguments.method}, balancer {arguments.balancer}",
        "",
        f"{train} training and {val} validation samples at {arguments.size[0]}×{arguments.size[1]}, {epochs} epochs, {steps} steps "
        f"of batch {min(arguments.batch_size, train)}, seed {arguments.seed}, form {arguments.form}, on {device} with {kernels}.",
        "",
        "## Against the floors",
        "",
        f"The floor answers every image alike, with what suits the training set best: {_floor_words(problem)}.",
        "",
        *_floor_sentences(problem, last),
        f"Mean share of the floors' error removed: {last['score']:.0%} after the last epoch, {best['best/score']:.0%} "
        f"after the best (epoch {best['best/epoch']:.0f}).",
        "",
        "## Which task dominates",
        "",
        *dominance_sentences(log, tasks),
        "",
        "## Do the tasks conflict",
        "",
        *conflict_sentences(log, tasks),
        "",
        "## Did the weights settle",
        "",
        *balance_sentences(log, tasks, balancer=arguments.balancer, method=arguments.method),
    ]
    return "\n".join(lines) + "\n"


def _floor_words(problem: NYUv2Problem) -> str:
    normal = ", ".join(f"{value:+.2f}" for value in problem.answer.mean_normal.tolist())
    words = {
        "segmentation": f"the class {problem.info.classes[problem.answer.majority]!r}",
        "depth": f"a depth of {problem.answer.median_depth:.2f} m (the median)",
        "normal": f"the normal ({normal}) (the mean)",
    }
    return ", ".join(words[task] for task in problem.tasks)


def _floor_sentences(problem: NYUv2Problem, last: dict[str, float]) -> list[str]:
    sentences = []
    for task in problem.tasks:
        name = f"{task}/{PRIMARY[task][0]}"
        if f"val/{name}" not in last or name not in problem.floors:
            sentences.append(f"- {task}: no valid validation pixel.")
            continue
        verdict = "beats" if _beats(problem, last, name) else "does not beat"
        words = PRIMARY[task][0].removesuffix("_m").removesuffix("_deg").replace("_", " ")
        unit = {"depth": " m", "normal": "°"}.get(task, "")
        value, floor = last[f"val/{name}"], problem.floors[name]
        sentences.append(f"- {task}: {words} {value:.3f}{unit} {verdict} the floor's {floor:.3f}{unit}.")
    return [*sentences, ""]


def palette(classes: int) -> NDArray[np.float64]:
    """RGB in 0..1 for every class index, the same in every run. [classes, 3]"""
    if classes <= len(PALETTE_13):
        return np.array([[int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)] for color in PALETTE_13[:classes]])
    golden = 0.618034  # spreads hues evenly however many there are
    shades = ((0.55, 0.9), (0.8, 0.9), (0.55, 0.65), (0.8, 0.65))  # saturation, value
    return np.array([colorsys.hsv_to_rgb(index * golden % 1, *shades[index % 4]) for index in range(classes)])


def plot_predictions(problem: NYUv2Problem, path: Path) -> None:
    """Validation samples by row: the image, then truth and prediction of every task. All depth maps share one color scale."""
    samples = _spread(len(problem.val_data), PICTURE_SAMPLES)
    device = next(problem.model.parameters()).device
    batch = [problem.val_data[index] for index in samples]
    problem.model.eval()
    with torch.no_grad():
        prediction = problem.model(torch.stack([sample["image"] for sample in batch]).to(device))
    columns = 1 + 2 * len(problem.tasks)
    height, width = batch[0]["image"].shape[-2:]
    figure = Figure(figsize=(2.5 * columns, 2.2 * height / width * len(batch) + 1.3), layout="constrained")
    figure.suptitle(f"{problem.info.name}: validation samples, truth and prediction")
    grid = figure.subplots(len(batch), columns, squeeze=False)
    farthest = max((float(sample["depth"].max()) for sample in batch), default=1.0)
    present: set[int] = set()
    scale: Any = None
    for row, sample in enumerate(batch):
        grid[row][0].imshow(sample["image"].permute(1, 2, 0).numpy())
        for column, task in enumerate(problem.tasks):
            pair = (sample[task], prediction[task][row].float().cpu())
            for axes, kind, value in zip(grid[row][1 + 2 * column :], ("truth", "prediction"), pair, strict=False):
                if task == "segmentation":
                    labels = value if kind == "truth" else value.argmax(0)
                    present |= set(labels[labels != IGNORE].unique().tolist())
                    axes.imshow(_painted(labels, problem.classes), interpolation="nearest")
                elif task == "depth":
                    shown = np.ma.masked_less_equal(value[0].numpy(), 0)
                    axes.set_facecolor(UNLABELLED)
                    scale = axes.imshow(shown, cmap="viridis", vmin=0, vmax=farthest, interpolation="nearest")
                else:
                    axes.imshow(_colored(value), interpolation="nearest")
                if row == 0:
                    axes.set_title(f"{TITLES[task]}: {kind}", fontsize=10)
        grid[row][0].set_ylabel(f"sample {samples[row]}", fontsize=10)
    grid[0][0].set_title("image", fontsize=10)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    if scale is not None:
        figure.colorbar(scale, ax=grid, location="right", shrink=0.6, label="depth [m]", pad=0.01)
    if present:
        colors = palette(problem.classes)
        handles = [Patch(color=colors[index], label=problem.info.classes[index]) for index in sorted(present)]
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


def _spread(count: int, wanted: int) -> Sequence[int]:
    """Up to `wanted` indices, evenly over 0..count-1."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(wanted, count))})
