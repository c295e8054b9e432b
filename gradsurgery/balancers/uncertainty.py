"""Uncertainty weighting: each task's loss is divided by a noise variance that is learned with the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradsurgery.options import check_choice

from .base import Balancer, PerTask
from .registry import register

Form = Literal["kendall", "exponential", "liebel"]
Kind = Literal["regression", "classification"]


@register(
    "uw",
    paper="Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018 (arXiv:1705.07115)",
    properties=("learned", "separable", "permutation_equivariant"),
)
class UncertaintyWeighting(Balancer):
    """sum_t f_t exp(-s_t) L_t + R(s_t), with learned log-variances s_t = log sigma_t^2.

    =========== =========================== ================= ==========================================
    form        f (regression | class.)     R(s)              source
    =========== =========================== ================= ==========================================
    kendall     1/2 | 1                     s/2               Kendall et al. 2018 (arXiv:1705.07115)
    exponential 1 | 1                       s                 the same with s for both, as widely coded
    liebel      1/2 | 1                     log(1 + sigma^2)  Liebel and Körner 2018 (arXiv:1805.06334)
    =========== =========================== ================= ==========================================

    The optimum of the first two is sigma^2 = L (kendall, regression); Liebel's regulariser is never negative, so the loss is not,
    and its optimum is sigma^2 = (L + sqrt(L^2 + 8 L)) / 4, which is not the noise's variance.

    Args:
        tasks: the tasks' names, or their number.
        form: see above.
        kinds: "regression" or "classification", for all tasks or one each.
        initial_log_vars: s at the start, for all tasks or one each.
        process_group: as for every ``Balancer``.
    """

    _factors: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | int,
        *,
        form: Form = "kendall",
        kinds: Kind | Sequence[Kind] = "regression",
        initial_log_vars: PerTask = 0.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(form=form, kinds=kinds, initial_log_vars=initial_log_vars)
        T = len(self.tasks)
        check_choice("form", form, ("kendall", "exponential", "liebel"))
        each = [kinds] * T if isinstance(kinds, str) else list(kinds) if isinstance(kinds, Sequence) else []
        if len(each) != T:
            raise ValueError(f"kinds: expected 'regression' or 'classification', for all or each of {T} tasks, found {kinds!r}.")
        for task, kind in zip(self.tasks, each, strict=True):
            check_choice(f"kinds[{task!r}]", kind, ("regression", "classification"))
        start = self._each("initial_log_vars", initial_log_vars)
        self.form = form
        self.kinds = tuple(each)
        self.factors = tuple(1.0 if form == "exponential" or kind == "classification" else 0.5 for kind in each)
        self.log_vars = nn.Parameter(torch.tensor(start))
        self.register_buffer("_factors", torch.tensor(self.factors), persistent=False)

    @property
    def variances(self) -> Tensor:
        """sigma^2 = exp(s). [T]"""
        return self.log_vars.detach().exp()

    @property
    def weights(self) -> Tensor:
        """f_t / sigma_t^2. [T]"""
        return self._factors * (-self.log_vars.detach()).exp()

    def terms(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """f_t exp(-s_t) L_t + R(s_t) by task; a task that is absent leaves its s_t alone."""
        result = {}
        for t, loss in losses.items():
            s = self.log_vars[t]
            regulariser = {"kendall": 0.5 * s, "exponential": s, "liebel": nn.functional.softplus(s)}[self.form]
            result[t] = self.factors[t] * (-s).exp() * loss + regulariser
        return result

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, form={self.form!r}, kinds={list(self.kinds)}"
