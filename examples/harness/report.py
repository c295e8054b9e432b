"""What a finished run shows: metrics.json, table.csv, the pictures and the note."""

import argparse
import math
from collections.abc import Mapping, Sequence

from rich.console import Console

import gradsurgery as gs
from gradsurgery.report import Finding, findings, read_run
from gradsurgery.report.figures import conflict_figure, losses_figure, write_png
from harness.checkpoint import atomic_write
from harness.log import read_log
from harness.metric import Metric
from harness.problem import Problem, Series
from harness.progress import table
from harness.run_folder import RunFolder, write_json
from harness.run_table import Row, write_table

SECTIONS = {  # of note.md, with the kinds of findings that stand in them
    "In short": ("verdict",),
    "Which task dominates": ("dominance",),
    "Do the tasks conflict": ("conflict",),
    "Did the weights settle": ("weights", "surgery"),
    "What went wrong on the way": ("collapse", "loss", "steps", "absence"),
}


def write_report(problem: Problem, arguments: argparse.Namespace, folder: RunFolder, console: Console) -> None:
    """Write metrics.json, table.csv, pictures/ and note.md from log.csv and the model as it stands, and print the table."""
    log = read_log(folder.log)
    last = {name: series[max(series)] for name, series in log.items() if series}
    scores = log["score"]
    # As early stopping sees it: NaN is never better, and the first of equals counts.
    best_step = max(scores, key=lambda step: -math.inf if math.isnan(scores[step]) else scores[step])
    best = {"best/score": scores[best_step], "best/epoch": log["epoch"][best_step] + 1}
    write_json(folder.metrics, {**last, **{f"floor/{name}": value for name, value in problem.floors.items()}, **best})
    title = f"{problem.name}, {arguments.method}, balancer {arguments.balancer}"
    run = read_run(folder.path)
    losses = losses_figure(run, problem.loss_units, title=f"Training losses: {title}", columns=min(4, len(problem.tasks)))
    write_png(losses, folder.pictures / "losses.png")
    if len(problem.tasks) > 1:
        write_png(conflict_figure(run, title=f"Gradients of the tasks: {title}"), folder.pictures / "conflict.png")
    problem.model.eval()
    problem.draw(folder.pictures)
    measured = [metric for metric in problem.metrics if f"val/{metric.name}" in last and metric.name in problem.floors]
    rows = [Row(metric, problem.floors[metric.name], last[f"val/{metric.name}"]) for metric in measured]
    shown = [
        [row.metric.name, f"{row.floor:.4f}", f"{row.value:.4f}", "yes" if row.metric.beats(row.value, row.floor) else "no"]
        for row in rows
    ]
    console.print(table("Validation after the last epoch", ["metric", "floor", "model", "better"], shown))
    with atomic_write(folder.note) as file:
        file.write(_note(problem, arguments, log, last, best, findings(run)).encode())
    write_table(folder.table, rows)  # at last: a comparison takes a run that has it for finished
    console.print(f"Run folder: {folder.path} (note.md, metrics.json, pictures/)", highlight=False, soft_wrap=True)


def _note(
    problem: Problem,
    arguments: argparse.Namespace,
    log: Series,
    last: Mapping[str, float],
    best: Mapping[str, float],
    found: Sequence[Finding],
) -> str:
    tasks = problem.tasks
    samples = len(problem.train_data)  # type: ignore[arg-type]  # the loop asks for a data set with a length
    size = min(arguments.batch_size, samples)
    steps, epochs = max(log["epoch"]), int(max(log["epoch"].values())) + 1  # validation logs a row at the last step
    device = next(problem.model.parameters()).device.type
    kernels = "compiled kernels" if gs.build_info().get(device) else "plain PyTorch operations"
    sections = [
        ("Against the floors", [
            f"The floor answers every input alike, with what suits the training set best: {problem.describe_floor()}.",
            "",
            *(_floor_sentence(metric, last, problem.floors) for metric in problem.metrics if metric.primary),
            "",
            f"Mean share of the floors' error removed: {last['score']:.0%} after the last epoch, {best['best/score']:.0%} "
            f"after the best (epoch {best['best/epoch']:.0f}).",
        ]),
        *((title, [_sentence(one) for one in found if one.kind in kinds]) for title, kinds in SECTIONS.items()),
        *problem.notes(log),
    ]  # fmt: skip
    lines = [
        f"# {' + '.join(tasks)} on {problem.name}: {arguments.method}, balancer {arguments.balancer}",
        "",
        f"{problem.describe()}, {epochs} epochs, {steps} steps of batch {size}, seed {arguments.seed}, "
        f"form {arguments.form}, on {device} with {kernels}.",
    ]
    for title, sentences in sections:
        if sentences:
            lines += ["", f"## {title}", "", *sentences]
    return "\n".join(lines) + "\n"


def _sentence(finding: Finding) -> str:
    return f"{finding.sentence} {finding.advice}".rstrip()


def _floor_sentence(metric: Metric, last: Mapping[str, float], floors: Mapping[str, float]) -> str:
    if f"val/{metric.name}" not in last or metric.name not in floors:
        return f"- {metric.task}: no valid target in the validation set."
    value, floor = last[f"val/{metric.name}"], floors[metric.name]
    verdict = "beats" if metric.beats(value, floor) else "does not beat"
    return f"- {metric.task}: {metric.words} {value:.3f}{metric.unit} {verdict} the floor's {floor:.3f}{metric.unit}."
