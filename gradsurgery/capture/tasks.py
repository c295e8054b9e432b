"""The tasks' names: declared once, or numbered and named as they first appear."""

from __future__ import annotations

from collections.abc import Sequence


class TaskNames:
    """The names known so far, in the order that K, weights and memory have.

    Args:
        tasks: the names, or their number; None: tasks become known as they appear.

    Attributes:
        known: the names. [T]
        declared: whether they were given, and no other is allowed.
    """

    def __init__(self, tasks: Sequence[str] | int | None) -> None:
        self.declared = tasks is not None
        self.known: list[str] = [] if tasks is None else task_names(tasks)

    def __len__(self) -> int:
        return len(self.known)

    def __str__(self) -> str:
        return ", ".join(self.known)

    def index(self, name: str) -> int:
        """Position of a task; one that was not declared is appended as it appears.

        Raises:
            ValueError: tasks are declared, and this is none of them.
        """
        if name not in self.known:
            if self.declared:
                raise ValueError(f"tasks: expected one of {self}, found {name!r}.")
            self.known.append(name)
        return self.known.index(name)

    def present(self, tasks: Sequence[str] | int | None) -> list[str]:
        """The names of the tasks of a step, given by name, by their number, or all (None).

        Raises:
            ValueError, TypeError: unknown or repeated names, no task, or a number that contradicts the names.
        """
        if tasks is None:
            if not self.known:
                raise ValueError("tasks: expected a number or names, as none were declared: GradientAggregator(..., tasks=...).")
            return list(self.known)
        if isinstance(tasks, int):
            if self.declared and tasks != len(self):
                raise ValueError(f"tasks: expected {len(self)} ({self}), found {tasks}. Name the tasks present instead.")
            names = task_names(tasks)
            if self.known[: len(names)] != names[: len(self)]:  # they have names of their own
                if tasks != len(self):
                    raise ValueError(f"tasks: expected names, as {self} are known by name; found the number {tasks}.")
                names = list(self.known)
        else:
            names = task_names(tasks)
        for name in names:
            self.index(name)
        return names

    def restore(self, names: Sequence[str]) -> None:
        """Takes the names of a saved state.

        Raises:
            ValueError: others are declared.
        """
        self.check_restorable(names)
        self.known = list(names)

    def check_restorable(self, names: Sequence[str]) -> None:
        """Raises where other names are declared than those of a saved state."""
        if self.declared and list(names) != self.known:
            raise ValueError(f"state_dict: expected the tasks {self.known}, found {list(names)}.")


def task_names(tasks: Sequence[str] | int) -> list[str]:
    """The names of tasks that are given by name, or by their number: "0", "1" and so on.

    Raises:
        TypeError: neither a number nor a sequence of strings.
        ValueError: no task, or the same name twice.
    """
    if isinstance(tasks, bool) or not isinstance(tasks, (int, Sequence)) or isinstance(tasks, str):
        raise TypeError(f"tasks: expected a number or a sequence of names, found {tasks!r}.")
    names = [str(t) for t in range(tasks)] if isinstance(tasks, int) else list(tasks)
    if not names:
        raise ValueError(f"tasks: expected at least one task, found {tasks!r} (T=0).")
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"tasks: expected names to be strings, found {names}.")
    if len(set(names)) < len(names):
        raise ValueError(f"tasks: expected different names, found {names}.")
    return names
