"""FAMO: weights that let all losses fall at one rate, learned from the losses before and after a step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.options import check_bool, check_number

from .base import Losses, PerTask
from .loss_only import LossOnlyBalancer
from .registry import register

_BETAS = (0.9, 0.999)
_ADAM_EPS = 1e-8


@register(
    "famo",
    paper="Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023 (arXiv:2306.03792)",
    properties=("updates_after_step", "positive_losses", "permutation_equivariant", "weights_sum_to_one"),
)
class FAMO(LossOnlyBalancer):
    """sum_t z_t log D_t / c with z = softmax(x), D = L - L_min + eps, c = sum_t z_t / D_t, hence w_t = z_t / (c D_t).

    x learns to let every log D_t fall by the same amount in a step: its gradient is J_z (log D_before - log D_after) with
    J_z = diag(z) - z z^T. The Adam that applies it lives here, state and all; there is nothing to give to an optimizer. After the
    step come the losses of the same batch, computed anew::

        balancer(losses(batch)).backward()
        optimizer.step()
        with torch.no_grad():
            balancer.update(losses(batch))

    With ``update_on_next_call=True`` the next call's losses stand for them: no second forward pass and no ``update``, but another
    batch, whose noise x has to average out.

    Where several calls precede a step, the last one's losses count. A task that is absent leaves its x and its moments alone.
    Where a loss before or after the step is not finite, or not above L_min - eps, x stays as it is for all tasks, as the model
    does when a GradScaler skips the step.

    Of several processes all call ``update``, which exchanges the losses once more; one without any of the tasks, ``update({})``.

    Args:
        tasks: the tasks' names, or their number.
        min_losses: L_min, what a loss cannot fall below, for all tasks or one each.
        lr: learning rate of x, 0.025 in the paper.
        weight_decay: gamma, pulls x towards equal weights: gamma x is added to its gradient (Adam's L2 form).
        eps: the authors' 1e-8; with 0 the weights do not depend on the losses' scale, and a loss at its minimum gives NaN.
        update_on_next_call: see above.
        process_group: as for every ``Balancer``.
    """

    logits: Tensor
    _exp_avg: Tensor
    _exp_avg_sq: Tensor
    _steps: Tensor
    _previous: Tensor
    _min_losses: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | int,
        *,
        min_losses: PerTask = 0.0,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        eps: float = 1e-8,
        update_on_next_call: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(min_losses=min_losses, lr=lr, weight_decay=weight_decay, eps=eps, update_on_next_call=update_on_next_call)
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            check_number(name, value, at_least=0)
        check_bool("update_on_next_call", update_on_next_call)
        self.lr, self.weight_decay, self.eps = lr, weight_decay, eps
        self.update_on_next_call = update_on_next_call
        zeros = torch.zeros(len(self.tasks), dtype=torch.float64)
        for name in ("logits", "_exp_avg", "_exp_avg_sq", "_steps", "_previous"):
            self.register_buffer(name, zeros.clone())
        minima = torch.tensor(self._each("min_losses", min_losses), dtype=torch.float64)
        self.register_buffer("_min_losses", minima, persistent=False)
        self._waiting: list[int] = []  # the tasks whose losses before the step are in _previous
        self._warned = False

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        if self._learning:
            self._before_step(losses.detach(), here)
        z = self._taken(self.logits, here).softmax(0)
        D = losses - self._taken(self._min_losses, here) + self.eps
        c = (z / D.detach()).sum()
        return (z * D.log()).sum() / c, z / (c * D.detach())

    def update(self, losses: Losses) -> None:
        """Adam's step on x, after the optimizer's.

        Args:
            losses: those of the last call in training, computed anew.

        Raises:
            RuntimeError: no call in training came before, or ``update_on_next_call`` is on.
            ValueError: other tasks than in that call.
            TypeError, ValueError: as in ``balancer(losses)``.
        """
        if self.update_on_next_call:
            raise RuntimeError("FAMO.update: with update_on_next_call=True the next call updates; leave one of the two out.")
        given = self._given(losses, or_none=self._ranks is not None)
        if not self._waiting:
            raise RuntimeError(
                "FAMO.update: expected balancer(losses) in training mode since the last update, found none; "
                "the order is balancer(losses).backward(), optimizer.step(), balancer.update(losses computed anew)."
            )
        if self._ranks is not None:
            given = self._over_ranks(given)
        if list(given) != self._waiting:
            names = [", ".join(self.tasks[t] for t in tasks) for tasks in (self._waiting, given)]
            raise ValueError(f"losses: expected the tasks of the last call ({names[0]}), found {names[1]}.")
        after = torch.stack(list(given.values())).detach().double()
        self._follow(after.device)
        self._learn(after, self._waiting)
        self._waiting = []

    def _before_step(self, losses: Tensor, here: list[int]) -> None:
        if self._waiting and self.update_on_next_call:
            both = [t for t in here if t in self._waiting]
            if both:
                self._learn(torch.stack([losses[here.index(t)] for t in both]), both)
        elif self._waiting and not self._warned:
            self._warned = True
            warnings.warn(
                "FAMO: a second call in training without balancer.update(losses) after the first; without updates the weights "
                "learn nothing. Call it after optimizer.step(), or build FAMO(..., update_on_next_call=True).",
                UserWarning,
                stacklevel=8,
            )
        self._previous = self._scattered(losses, here)
        self._waiting = here

    @torch.no_grad()
    def _learn(self, after: Tensor, here: list[int]) -> None:
        """One step of Adam on x of the tasks ``here``, from their losses ``after`` the optimizer's step. [n]"""
        olds = {name: self._taken(getattr(self, name), here) for name in ("logits", "_exp_avg", "_exp_avg_sq", "_steps")}
        x, m, v, step = olds["logits"], olds["_exp_avg"], olds["_exp_avg_sq"], olds["_steps"] + 1
        floor = self._taken(self._min_losses, here) - self.eps
        fall = (self._taken(self._previous, here) - floor).log() - (after - floor).log()
        z = x.softmax(0)
        gradient = z * (fall - (z * fall).sum()) + self.weight_decay * x
        m = m.lerp(gradient, 1 - _BETAS[0])
        v = _BETAS[1] * v + (1 - _BETAS[1]) * gradient.square()
        size = self.lr / (1 - _BETAS[0] ** step)
        x = x - size * m / (v.sqrt() / (1 - _BETAS[1] ** step).sqrt() + _ADAM_EPS)
        fine = fall.isfinite().all()
        news = {"logits": x, "_exp_avg": m, "_exp_avg_sq": v, "_steps": step}
        for name, new in news.items():
            setattr(self, name, self._scattered(torch.where(fine, new, olds[name]), here, getattr(self, name)))

    def get_extra_state(self) -> dict[str, Any]:
        """Which tasks wait for their losses after the step."""
        return super().get_extra_state() | {"waiting": list(self._waiting)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken."""
        self._waiting = list(state["waiting"])

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, lr={self.lr}, weight_decay={self.weight_decay}"
