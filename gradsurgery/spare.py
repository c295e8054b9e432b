"""Gradients of an earlier step, kept so that their memory serves the next one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from gradsurgery.capture.passes import Rows


class Spare:
    """T - 1 gradients of each parameter, from one step to the next.

    On the CPU memory that is freed goes back to the system, and costs a fault for each page when it is asked for again, which
    takes longer than surgery. So gradients that are not needed any more stay until the next step's take their place, and each is
    let go of right before the pass that needs as much: the peak of the backward passes is none the higher. ``eval()`` and
    ``reset()`` let go of all, and so does a step that goes another way. On CUDA torch keeps freed memory itself.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[Tensor]] = {}

    def keep(self, leaves: Iterable[Tensor], rows: Rows) -> None:
        """Keeps the gradients of a step that is done, but for those that are ``.grad`` now."""
        self._held = {
            id(leaf): [g for g in rows.get(id(leaf), {}).values() if g is not leaf.grad and not g.is_sparse]
            for leaf in leaves
            if leaf.device.type == "cpu"
        }

    def make_room(self, count: int) -> None:
        """Lets go of so many bytes, the same number of gradients of each parameter, as far as they are there."""
        while count > 0 and any(self._held.values()):
            for held in self._held.values():
                if held:
                    count -= held.pop().nbytes

    def before_pass(self, leaves: Sequence[Tensor], left: int) -> None:
        """Lets go of the gradients that a task's pass needs the memory of.

        Args:
            leaves: that it reaches.
            left: how many passes come after it. One gradient less than that may stay.
        """
        for leaf in leaves:
            del self._held.get(id(leaf), [])[max(left - 1, 0) :]

    def clear(self) -> None:
        """Lets go of all."""
        self._held = {}
