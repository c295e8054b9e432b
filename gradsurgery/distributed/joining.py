"""Ranks with different numbers of batches: one that has none left shadows the others' messages, surgery's among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from gradsurgery.surgery import Surgery


def joined(
    model: Any, surgeries: Sequence[Surgery], divide_by_initial_world_size: bool, enable: bool, throw_on_early_termination: bool
) -> Join:
    """See ``GradientAggregator.join``.

    Args:
        model: the DistributedDataParallel.
        surgeries: those that take part, besides those in the model.
        divide_by_initial_world_size, enable, throw_on_early_termination: as of ``DistributedDataParallel.join``.

    Raises:
        TypeError: another model.
        ValueError: surgery over other ranks than the model's; a mean over the ranks that are left, where the number counts.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"model: join expected a DistributedDataParallel, found {type(model).__name__}. Others cannot shadow the messages of "
            "their backward pass: give every rank the same number of batches."
        )
    from gradsurgery.surgery import Surgery

    every = {id(s): s for s in [*surgeries, *(m for m in model.modules() if isinstance(m, Surgery))]}
    together = [surgery for surgery in every.values() if surgery._together is not None]
    ranks = sorted(dist.get_process_group_ranks(model.process_group))
    for surgery in together:
        assert surgery._together is not None
        if surgery._together.members != ranks:
            raise ValueError(
                f"model: join expected the ranks of the aggregator's process group, {surgery._together.members}, found {ranks}."
            )
        if not divide_by_initial_world_size and surgery.method.spec.degree != 1.0:
            raise ValueError(
                f"divide_by_initial_world_size: expected True with method {surgery.method.spec.name!r}, whose weights depend on "
                "the length of the gradients, and so on how many ranks are left; found False."
            )
    return _Loops(
        [_Joined(model, together)],
        enable,
        throw_on_early_termination,
        divide_by_initial_world_size=divide_by_initial_world_size,
    )


class _Loops(Join):
    """``Join`` during which its surgeries know that ranks may have left."""

    def __enter__(self) -> None:
        super().__enter__()
        self._mark(True)

    def __exit__(self, *exception: Any) -> None:
        self._mark(False)
        super().__exit__(*exception)

    def _mark(self, joining: bool) -> None:
        for joinable in self._joinables:
            assert isinstance(joinable, _Joined)
            for surgery in joinable.surgeries:
                surgery._joining = joining


class _Joined(Joinable):
    """A model in which surgery takes place, for ``Join``; all but the hooks is the model's.

    Args:
        model: the model.
        surgeries: the surgery in it.
    """

    def __init__(self, model: DistributedDataParallel, surgeries: Sequence[Surgery]) -> None:
        self._model = model  # whose configuration Joinable.__init__ would overwrite
        self.surgeries = surgeries

    @property
    def _join_config(self) -> Any:
        return self._model._join_config

    @_join_config.setter
    def _join_config(self, config: Any) -> None:
        self._model._join_config = config  # the model's forward pass asks its own whether to tell those that have left

    def join_hook(self, **kwargs: Any) -> JoinHook:
        return _Hook(self._model.join_hook(**kwargs), self.surgeries, self.join_device)

    @property
    def join_device(self) -> torch.device:
        return torch.device(self._model.join_device)

    @property
    def join_process_group(self) -> Any:
        return self._model.join_process_group


class _Hook(JoinHook):
    """What a rank that has left its loop does in each step of the others.

    They come to surgery's message in the midst of their backward pass, before they have sent all of the model's, which this rank
    awaits in the model's hook. So its part of K goes out before that, and the answer is awaited after it.
    """

    def __init__(self, of_model: JoinHook, surgeries: Sequence[Surgery], device: torch.device) -> None:
        self._of_model, self._surgeries, self._device = of_model, surgeries, device

    def main_hook(self) -> None:
        steps = [surgery._absent(self._device) for surgery in self._surgeries]
        self._of_model.main_hook()
        for finish in steps:
            finish()

    def post_hook(self, is_last_joiner: bool) -> None:
        self._of_model.post_hook(is_last_joiner)
