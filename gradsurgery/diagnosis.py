"""What one batch says of the tasks: lengths and angles of their gradients at the parameters that they share, layer by layer."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

from gradsurgery.monitor import Statistics
from gradsurgery.report import words
from gradsurgery.report.facts import CONFLICT, MODERATE
from gradsurgery.report.rules.dominance import LOPSIDED
from gradsurgery.report.rules.verdict import ENOUGH, FIRST

WIDTH = 100  # of the text
MOST = 10  # rows of a table in the text
MATRIX = 8  # tasks of which all cosines stand in the text
LEAST = 0.01  # the smallest share of a conflict that stands in the text
FAR = 5 * LOPSIDED  # lengths so uneven that directions come second: the sum is the longest gradient, whatever it points to
NAME = 36  # the longest name of a layer in the text; 16 of a task


class Conflict(NamedTuple):
    """Two tasks with <g_a, g_b> < 0 over all shared parameters."""

    a: str
    b: str
    cosine: float


class LayerConflict(NamedTuple):
    """A layer in which two tasks have <g_a, g_b> < 0.

    Attributes:
        layer: its name.
        cosine: of the two gradients there.
        share: of all that is negative in the two tasks' product, how much this layer brings; 1 in all.
    """

    layer: str
    cosine: float
    share: float


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found on one batch; ``print`` shows it as tables with a suggestion.

    Attributes:
        statistics: K of each layer, the losses, and what follows from them.
        ranks: this process's number and how many there are, where there are several: the batch is this one's alone.
    """

    statistics: Statistics
    ranks: tuple[int, int] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names. [T]"""
        return self.statistics.tasks

    @property
    def present(self) -> tuple[bool, ...]:
        """Which tasks had a loss in this batch. [T]"""
        return self.statistics.present

    @property
    def losses(self) -> Tensor:
        """The sum of each task's losses; NaN for an absent one. [T] float64"""
        return self.statistics.losses

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the modules whose parameters some task reaches, among those shared. [G]"""
        return self.statistics.groups

    @property
    def gram(self) -> Tensor:
        """K_ij = <g_i, g_j> over all shared parameters; rows of absent tasks are zero. [T, T] float64"""
        return self.statistics.gram

    @property
    def norms(self) -> Tensor:
        """|g_t|; 0 for an absent task. [T]"""
        return self.statistics.norms

    @property
    def cosines(self) -> Tensor:
        """cos(g_i, g_j); NaN where a gradient is zero or absent. [T, T]"""
        return self.statistics.cosines

    @property
    def layer_norms(self) -> Tensor:
        """|g_t| in each layer. [G, T]"""
        return self.statistics.group_norms

    @property
    def layer_cosines(self) -> Tensor:
        """cos(g_i, g_j) in each layer; NaN where a gradient is zero there, or absent. [G, T, T]"""
        return self.statistics.group_cosines

    @cached_property
    def conflicts(self) -> list[Conflict]:
        """The pairs of tasks that conflict, the most negative cosine first."""
        return sorted((pair for pair in self._pairs if pair.cosine < 0), key=lambda pair: pair.cosine)

    def conflicting_layers(self, a: str, b: str) -> list[LayerConflict]:
        """The layers in which two tasks conflict, the most negative cosine first.

        Raises:
            ValueError: one of them is no task, or they are the same.
        """
        for argument, name in (("a", a), ("b", b)):
            if name not in self.tasks:
                raise ValueError(f"{argument}: expected one of {', '.join(self.tasks)}, found {name!r}.")
        if a == b:
            raise ValueError(f"b: expected another task than a, found {b!r} again.")
        i, j = self.tasks.index(a), self.tasks.index(b)
        products = self.statistics.group_grams[:, i, j].clamp_max(0)
        shares = (products / products.sum()).tolist()
        cosines = self.layer_cosines[:, i, j].tolist()
        found = [LayerConflict(*row) for row in zip(self.layers, cosines, shares, strict=True) if row[1] < 0]
        return sorted(found, key=lambda row: row.cosine)

    @property
    def _pairs(self) -> list[Conflict]:
        """All pairs of which there is a cosine."""
        T, cosines = len(self.tasks), self.cosines.tolist()
        pairs = [Conflict(self.tasks[i], self.tasks[j], cosines[i][j]) for i in range(T) for j in range(i + 1, T)]
        return [pair for pair in pairs if math.isfinite(pair.cosine)]

    @property
    def suggestion(self) -> str:
        """What to try, in plain words: no more than one batch can tell."""
        norms = dict(zip(self.tasks, self.norms.tolist(), strict=True))
        broken = [task for task, norm in norms.items() if not math.isfinite(norm)]
        if broken:
            return (
                f"The gradient of {words.listed(broken)} is not finite on this batch: find out why before anything else "
                "(torch.autograd.detect_anomaly() names the operation). A method of surgery does not mend it."
            )
        silent = [task for task, here in zip(self.tasks, self.present, strict=True) if here and norms[task] == 0]
        said = []
        if silent:
            said.append(
                f"The gradient of {words.listed(silent)} is zero at the shared parameters on this batch: either the loss does not "
                "depend on them, or it is at its best."
            )
        uneven, ratio = self._lengths({task: norm for task, norm in norms.items() if norm > 0})
        directions = self._directions()
        said += [*uneven, *directions] if ratio >= FAR else [*directions, *uneven]
        said.append(
            f"One batch shows a tendency: cosines scatter from batch to batch, and move in training; gradsurgery.Monitor watches "
            f"them, and {ENOUGH} steps are the least that tells more."
        )
        if uneven or any(pair.cosine <= MODERATE for pair in self._pairs):
            said.append(FIRST)
        return " ".join(said)

    def _directions(self) -> list[str]:
        if not self._pairs:
            return ["There is no pair of tasks with a gradient to compare."]
        worst = min(self._pairs, key=lambda pair: pair.cosine)
        cosine = words.signed(worst.cosine)
        if worst.cosine > CONFLICT:
            return [
                f"No pair of tasks conflicts here: the lowest cosine is {cosine}, of {worst.a} and {worst.b}. Surgery would "
                "have nothing to do on this batch."
            ]
        first = max(self.conflicting_layers(worst.a, worst.b), key=lambda row: row.share)
        said = [
            f"{worst.a} and {worst.b} conflict in this batch (cosine {cosine}): {_share(first)} of what is negative in their "
            f"product is in {words.layer(first.layer)}."
        ]
        if worst.cosine > MODERATE:
            return [*said, "That is weak enough to leave alone."]
        return [*said, "If it lasts, it is what surgery of directions (pcgrad, upgrad, cagrad) is for."]

    def _lengths(self, norms: dict[str, float]) -> tuple[list[str], float]:
        """What to say of them, and longest / shortest."""
        if len(norms) < 2:
            return [], 1.0
        longest, shortest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
        ratio = norms[longest] / norms[shortest]
        if ratio < LOPSIDED:
            return [], ratio
        return [
            f"{longest}'s gradient is {ratio:.3g} times as long as {shortest}'s: if {shortest} matters and learns too "
            "slowly, weigh its loss up by hand first; then try a balancer (uw, gradnorm) or a method that evens lengths out "
            "(imtlg, nashmtl)."
        ], ratio

    def __str__(self) -> str:
        batch = "one batch" if self.ranks is None else f"one batch of rank {self.ranks[0]} of {self.ranks[1]}"
        title = f"{len(self.tasks)} tasks at {_count(len(self.layers), 'shared layer')}, {batch}"
        parts = [title, self._task_table(), self._cosine_table(), self._layer_table()]
        parts.append(textwrap.fill(self.suggestion, WIDTH, break_long_words=True, break_on_hyphens=False))
        return "\n\n".join(part for part in parts if part)

    def _task_table(self) -> str:
        norms, losses = self.norms.tolist(), self.losses.tolist()
        total = sum(norms)
        rows = [["task", "loss", "|gradient|", "of all lengths"]]
        for name, here, loss, norm in zip(self.tasks, self.present, losses, norms, strict=True):
            numbers = [_number(loss), _number(norm), words.percent(norm / total) if total else "–"]
            rows.append([_short(name, 16), *(numbers if here else ["absent", "", ""])])
        return _table(rows, 1)

    def _cosine_table(self) -> str:
        if len(self.tasks) <= MATRIX:
            names = [_short(name, 16 if len(self.tasks) < 5 else 9) for name in self.tasks]
            cosines = self.cosines.tolist()
            rows = [["cosines", *names]]
            rows += [[name, *map(_cosine, row[: t + 1])] for t, (name, row) in enumerate(zip(names, cosines, strict=True))]
            return _table(rows, 1)
        if not self.conflicts:
            return "No pair of tasks has a negative cosine."
        rows = [["conflicts", "", "cosine"]]
        rows += [[_short(a, 16), _short(b, 16), _cosine(cosine)] for a, b, cosine in self.conflicts[:MOST]]
        return _table(rows, 2) + _more(len(self.conflicts) - len(rows) + 1, "pair")

    def _layer_table(self) -> str:
        """Pairs that conflict over all shared parameters come first; layers that bring next to nothing are counted alone."""
        found = [(row, a, b) for a, b in combinations(self.tasks, 2) for row in self.conflicting_layers(a, b)]
        conflicts = {(pair.a, pair.b) for pair in self.conflicts}
        shown = sorted(
            (entry for entry in found if entry[0].share >= LEAST),
            key=lambda entry: (entry[1:] not in conflicts, entry[0].cosine),
        )[:MOST]
        if not shown:
            return ""
        rows = [["conflicting layers", "", "", "cosine", "share"]]
        rows += [
            [_short(words.layer(row.layer), NAME), _short(a, 16), _short(b, 16), _cosine(row.cosine), _share(row)]
            for row, a, b in shown
        ]
        share = "\nshare: of all that is negative in the product of the two tasks' gradients, summed over layers"
        return _table(rows, 3) + _more(len(found) - len(shown), "layer") + share


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else words.number(value)


def _cosine(value: float) -> str:
    return "–" if math.isnan(value) else words.signed(value, 3)


def _share(row: LayerConflict) -> str:
    return words.percent(row.share)


def _count(number: int, word: str) -> str:
    return f"{words.whole(number)} {word}{'' if number == 1 else 's'}"


def _more(left: int, word: str) -> str:
    """How many rows are left out of a table."""
    return f"\n… and {_count(left, f'more {word}')} with a negative cosine" if left else ""


def _short(name: str, most: int) -> str:
    """A name whose end, which tells more, stays."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _table(rows: list[list[str]], left: int) -> str:
    """Columns two spaces apart, the first ``left`` of them beginning, and the others ending, at one place."""
    columns = max(map(len, rows))
    full = [row + [""] * (columns - len(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    lines = []
    for row in full:
        cells = [cell.ljust(w) if k < left else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
