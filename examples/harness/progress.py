"""What the terminal shows: a bar of steps, and the table at the end."""

from collections.abc import Mapping, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class StepBar:
    """A bar over one epoch's steps; silent where the output is not a terminal."""

    def __init__(self, console: Console, epoch: int, epochs: int, done: int, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._bar = self._progress.add_task(f"epoch {epoch + 1}/{epochs}", total=total, completed=done, losses="")

    def __enter__(self) -> "StepBar":
        self._progress.start()
        return self

    def advance(self, losses: Mapping[str, torch.Tensor]) -> None:
        """One more step done."""
        if not self._progress.disable:  # reading the losses waits for the device
            shown = "  ".join(f"{task} {loss.item():.3f}" for task, loss in losses.items())
            self._progress.update(self._bar, advance=1, losses=shown)

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    result = Table(title=title, title_justify="left")
    for index, header in enumerate(headers):
        result.add_column(header, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result
