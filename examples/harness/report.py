"""What a finished run shows: metrics.json, table.csv, the pictures and the note."""

import argparse
import math
from collections.abc import Mapping

from rich.console import Console

import gradsurgery as gs
from harness.checkpoint import atomic_write
from harness.log import read_log
from harness.metric import Metric
from harness.narrative import balance_sentences, conflict_sentences, dominance_sentences
from harness.plots import plot_conflict, plot_losses
from harness.problem import Problem, Series
from harness.progress import table
from harness.run_folder import RunFolder, write_json
from harness.run_table import Row, write_table

PLACES = {"parameters": "the trunk's parameters"}  # where the tasks' gradients meet, by --form; else at the representation


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
    place = PLACES.get(arguments.form, "the representation")
    plot_losses(log, problem.loss_units, folder.pictures / "losses.png", title=f"Training losses: {title}")
    if len(problem.tasks) > 1:
        plot_conflict(log, problem.tasks, folder.pictures / "conflict.png", title=f"Gradients of the tasks: {title}", place=place)
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
        file.write(_note(problem, arguments, log, last, best, place).encode())
    write_table(folder.table, rows)  # at last: a comparison takes a run that has it for finished
    console.print(f"Run folder: {folder.path} (note.md, metrics.json, pictures/)", highlight=False, soft_wrap=True)


def _note(
    problem: Problem, arguments: argparse.Namespace, log: Series, last: Mapping[str, float], best: Mapping[str, float], place: str
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
        ("Which task dominates", dominance_sentences(log, tasks, place)),
        ("Do the tasks conflict", conflict_sentences(log, tasks)),
        ("Did the weights settle", balance_sentences(log, tasks, balancer=arguments.balancer, method=arguments.method)),
        *problem.notes(log),
    ]  # fmt: skip
    lines = [
        f"# {' + '.join(tasks)} on {problem.name}: {arguments.method}, balancer {arguments.balancer}",
        "",
        f"{problem.describe()}, {epochs} epochs, {steps} steps of batch {size}, seed {arguments.seed}, "
        f"form {arguments.form}, on {device} with {kernels}.",
    ]
    for title, sentences in sections:
        lines += ["", f"## {title}", "", *sentences]
    return "\n".join(lines) + "\n"


def _floor_sentence(metric: Metric, last: Mapping[str, float], floors: Mapping[str, float]) -> str:
    if f"val/{metric.name}" not in last or metric.name not in floors:
        return f"- {metric.task}: no valid target in the validation set."
    value, floor = last[f"val/{metric.name}"], floors[metric.name]
    verdict = "beats" if metric.beats(value, floor) else "does not beat"
    return f"- {metric.task}: {metric.words} {value:.3f}{metric.unit} {verdict} the floor's {floor:.3f}{metric.unit}."
