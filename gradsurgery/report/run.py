"""A run's folder, read: log.csv, and layers.csv, config.json and metrics.json where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report.error import ReportError
from gradsurgery.report.layers import Layers, read_layers
from gradsurgery.report.table import read_table

PLACES = {"parameters": "the trunk's parameters"}  # where the tasks' gradients meet, by a trainer's `form`
FAR = 2**53  # steps beyond are not whole numbers any more


@dataclass(frozen=True)
class Run:
    """What was recorded of one training.

    Attributes:
        path: the folder.
        steps: the recorded steps, ascending. [S]
        columns: NaN where a step has no value; infinite where it has one that is not finite. [S] each
        tasks: by the columns norm/… and weight/…, or else loss/….
        pairs: of tasks whose cosine is in the log, with its column.
        layers: of layers.csv; None without it.
        config: of config.json; empty without it.
        metrics: of metrics.json; empty without it.
        remarks: what was left out while reading, in sentences.
    """

    path: Path
    steps: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]
    tasks: tuple[str, ...]
    pairs: Mapping[tuple[str, str], str]
    layers: Layers | None
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    remarks: tuple[str, ...]

    def column(self, name: str) -> NDArray[np.float64]:
        """Finite values of a column, NaN elsewhere; all NaN for one that is not there. [S]"""
        values = self.columns.get(name)
        if values is None:
            return np.full(len(self.steps), np.nan)
        return np.where(np.isfinite(values), values, np.nan)

    def series(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of a column, where it has finite ones."""
        values = self.column(name)
        known = np.isfinite(values)
        return self.steps[known], values[known]

    def setting(self, name: str) -> Any:
        """A value of config.json, or of the arguments in it; None where there is none."""
        arguments = self.config.get("arguments")
        inner = arguments if isinstance(arguments, Mapping) else {}
        return self.config.get(name, inner.get(name))

    @property
    def method(self) -> str | None:
        return None if self.setting("method") is None else str(self.setting("method"))

    @property
    def balancer(self) -> str | None:
        return None if self.setting("balancer") is None else str(self.setting("balancer"))

    @property
    def at(self) -> str:
        """Where the gradients were measured, to end a phrase with: " at the representation"; empty where it is not known."""
        form = self.setting("form")
        return "" if form is None else f" at {PLACES.get(str(form), 'the representation')}"


def read_run(path: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        ReportError: it is no folder, holds no log.csv, or one that is empty, has no rows or no steps, or is malformed.
    """
    path = Path(path)
    log = path / "log.csv"
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        hint = f"name its folder, {path.parent}" if path.name == "log.csv" else "name the folder that gs.Monitor or a trainer wrote"
        raise ReportError(f"run {path}: expected a folder, found {found}; {hint}.")
    if not log.is_file():
        raise ReportError(f"run {path}: expected a log.csv in it, found none; {_instead(path)}")
    table = read_table(log)
    if "step" not in table.columns:
        raise ReportError(f"{log}: expected a column named 'step', found {_listed(list(table.columns))}; is this a run's log?")
    recorded = table.columns["step"]
    if not len(recorded):
        raise ReportError(f"{log}: expected rows, found a header alone; was a step recorded before the run ended?")
    if not (np.abs(recorded) < FAR).all() or (recorded % 1).any():
        bad = recorded[~(np.abs(recorded) < FAR) | (recorded % 1 != 0)][0]
        raise ReportError(f"{log}: expected a whole number in every cell of the column 'step', found {bad}.")
    remarks = []
    if table.torn:
        remarks.append("The last line of log.csv has no end, as in a run that is still being written; it was left out.")
    if table.repeated:
        remarks.append(f"log.csv names {_listed(table.repeated)} more than once; the first of each counts.")
    others = {name: values for name, values in table.columns.items() if name != "step"}
    steps, columns = _by_step(recorded.astype(np.int64), others)
    tasks = _tasks(columns)
    pairs, ambiguous = _pairs(columns, tasks)
    if ambiguous:
        remarks.append(f"{_listed(ambiguous)} may be of more than one pair of tasks, by their names; left out.")
    layers = read_layers(path / "layers.csv") if (path / "layers.csv").is_file() else None
    if layers is not None and layers.torn:
        remarks.append("The last line of layers.csv has no end; it was left out.")
    config, metrics = (_json(path / name, remarks) for name in ("config.json", "metrics.json"))
    return Run(path, steps, columns, tasks, pairs, layers, config, metrics, tuple(remarks))


def _instead(path: Path) -> str:
    if inner := sorted(log.parent.name for log in path.glob("*/log.csv")):
        return f"there are runs in it: name one of {_listed(inner)}."
    if any(path.glob("**/events.out.tfevents.*")):
        return "its TensorBoard events are not read: give gs.Monitor a folder, too."
    return "name the folder that gs.Monitor or a trainer wrote."


def _by_step(
    steps: NDArray[np.int64], columns: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.int64], Mapping[str, NDArray[np.float64]]]:
    """Ascending, each step once: of several rows of a step the last with a value counts, cell by cell."""
    if (np.diff(steps) > 0).all():
        return steps, columns
    order = np.argsort(steps, kind="stable")
    unique, starts = np.unique(steps[order], return_index=True)
    rows = np.arange(len(order))
    merged = {}
    for name, values in columns.items():
        ordered = values[order]
        last = np.maximum.reduceat(np.where(np.isnan(ordered), -1, rows), starts)
        merged[name] = np.where(last >= 0, ordered[last], np.nan)
    return unique, merged


def _tasks(columns: Mapping[str, Any]) -> tuple[str, ...]:
    """In the order of the columns. A loss alone, such as loss/total, is a task only where nothing says which ones there are."""
    for kinds in (("norm", "weight", "balance"), ("loss",)):
        found = [name.partition("/")[2] for name in columns if name.partition("/")[0] in kinds and "/" in name]
        if found:
            return tuple(dict.fromkeys(found))
    return ()


def _pairs(columns: Mapping[str, Any], tasks: Sequence[str]) -> tuple[dict[tuple[str, str], str], list[str]]:
    """The pairs with a column, and columns that could be of several: of a, b-c and of a-b, c for instance."""
    claims: dict[str, list[tuple[str, str]]] = {}
    for one, other in combinations(tasks, 2):
        for name in (f"cosine/{one}-{other}", f"cosine/{other}-{one}"):
            if name in columns:
                claims.setdefault(name, []).append((one, other))
                break
    return {found[0]: name for name, found in claims.items() if len(found) == 1}, [
        n for n, found in claims.items() if len(found) > 1
    ]


def _json(path: Path, remarks: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        remarks.append(f"{path.name} could not be read ({re.sub(r'[.]$', '', str(error))}); its values are missing here.")
        return {}
    if not isinstance(content, dict):
        remarks.append(f"{path.name} holds no JSON object; its values are missing here.")
        return {}
    return content


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown or "no columns"
