"""GradNorm: task weights that equalise the rates at which the tasks learn."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradsurgery.aggregator import GradientAggregator
from gradsurgery.capture.probe import probing
from gradsurgery.distributed import Ranks, mean_
from gradsurgery.monitor import Statistics
from gradsurgery.options import check_choice, check_integer, check_number

from .base import Balancer, PerTask
from .registry import register

# Weights are positive by meaning; a long step of the optimizer must not turn a task's gradient around.
_SMALLEST = 1e-3


def gradnorm_gradient(norms: Tensor, weights: Tensor, rates: Tensor, alpha: float) -> Tensor:
    """d/dw_t sum_t |G_t - mean(G) r_t^alpha| = sign(G_t - target_t) n_t, the target held constant.

    Args:
        norms: G_t = w_t n_t, the norm of the gradient of the weighted loss, over the tasks present. [T]
        weights: w_t. [T]
        rates: r_t, the relative inverse training rates. [T]
        alpha: strength of the restoring force.
    """
    target = norms.mean() * rates**alpha
    difference = norms - target
    # sign(NaN) is 0: a broken step would look like a balanced one.
    return torch.where(difference.isnan(), difference, torch.sign(difference) * norms / weights)


def logits_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """d/ds_t = w_t (d/dw_t - sum_u w_u d/dw_u / sum_u w_u) for w proportional to softmax(s), over the tasks present. [T]"""
    return weights * (gradient - (weights * gradient).sum() / weights.sum())


@register(
    "gradnorm",
    paper="Chen et al., GradNorm, ICML 2018 (arXiv:1711.02257)",
    properties=("learned", "reads_gradients", "permutation_equivariant", "homogeneous", "weights_sum_to_tasks"),
)
class GradNorm(Balancer):
    """sum_t w_t L_t, with w trained so that G_t = ‖grad of w_t L_t‖ approaches mean(G) r_t^alpha.

    r_t = (L_t / L_t(0)) / mean(L / L(0)) is the task's relative inverse training rate. The gradient goes to w alone, in closed form
    (no double backward), and w is renormalised to sum to T at every call, as in Chen et al., GradNorm, ICML 2018
    (arXiv:1711.02257). Beyond the paper, w is clamped to 0.001 from below
    before it is renormalised.

    ``balancer.parameters()`` belongs in an optimizer; the paper uses Adam with a learning rate of its own (0.025). The gradients'
    norms come from one of two places:

    * ``aggregator``: the Gram matrix of the surgery that takes place anyway, at the shared representation; costs nothing. A copy
      or a pickle does not listen to it, and says so when it should learn.
    * ``layer``: the parameters of a shared layer, the paper's W; costs one partial backward pass a task, down to that layer. Under
      float16 these passes are not scaled; use ``aggregator`` there.

    Of several processes G_t is the norm of the gradient of the whole batch. An aggregator that has a process group brings it along
    with K, and the balancer takes the group from there: 8 T bytes a call in training, for the losses. With ``layer`` and
    ``process_group`` each such call exchanges the gradients as well: another all-reduce of T N numbers of the layer's N (of n N
    where n tasks are there at all; 4 bytes each, 8 in float64).

    Args:
        tasks: the tasks' names, or their number; with ``aggregator``, the names it uses.
        aggregator: a GradientAggregator through which the balanced loss is propagated.
        layer: a module, a parameter, or several parameters that all tasks share.
        alpha: restoring force; 1.5 in the paper's NYUv2 experiments, 0.12 in its toy example.
        initial_losses: L(0), for all tasks or one each; by default the mean of the task's first ``initial_steps`` losses.
        initial_steps: see ``initial_losses``.
        parametrisation: "weights", the paper's: ``task_weights`` holds w. "softmax": it holds s with w = T softmax(s), as in
            LibMTL; w is positive by itself, and neither clamped nor renormalised.
        process_group: as for every ``Balancer``, with ``layer``. With ``aggregator`` it is the aggregator's.
    """

    _initial: Tensor
    _seen: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | int,
        *,
        aggregator: GradientAggregator | None = None,
        layer: nn.Module | Tensor | Iterable[Tensor] | None = None,
        alpha: float = 1.5,
        initial_losses: PerTask | None = None,
        initial_steps: int = 1,
        parametrisation: Literal["weights", "softmax"] = "weights",
        process_group: Any = None,
    ) -> None:
        if (aggregator is None) == (layer is None):
            raise ValueError(
                "GradNorm: expected exactly one of aggregator= (norms from its Gram matrix) and layer= (a shared layer)."
            )
        wanted: object = aggregator
        if not isinstance(wanted, GradientAggregator | None):
            raise TypeError(f"aggregator: expected a GradientAggregator, found {type(wanted).__name__}.")
        if process_group is not None and layer is None:
            raise ValueError("process_group: expected none with aggregator=, which has its own; give it to GradientAggregator.")
        super().__init__(tasks, process_group=process_group)
        if aggregator is not None:
            self._ranks = _ranks_of(aggregator)
        parameters = None if layer is None else _parameters(layer)
        self._agree(
            layer=None if parameters is None else [list(p.shape) for p in parameters],
            alpha=alpha,
            initial_losses=initial_losses,
            initial_steps=initial_steps,
            parametrisation=parametrisation,
        )
        check_number("alpha", alpha, at_least=0)
        check_integer("initial_steps", initial_steps, at_least=1)
        check_choice("parametrisation", parametrisation, ("weights", "softmax"))
        T = len(self.tasks)
        self.parametrisation = parametrisation
        self.alpha = alpha
        self.initial_steps = initial_steps
        self.task_weights = nn.Parameter(torch.ones(T))
        self.register_buffer("_initial", torch.zeros(T))
        self.register_buffer("_seen", torch.zeros(T))
        if initial_losses is not None:
            self._initial.copy_(torch.tensor(self._each("initial_losses", initial_losses, above=0)))
            self._seen.fill_(initial_steps)
        # In a tuple, since neither the layer's parameters nor the aggregator's state are this module's.
        self._layer = None if parameters is None else (parameters,)
        self._rates: dict[int, Tensor] = {}
        self._here: frozenset[int] = frozenset()  # the tasks of this rank in the last call of all ranks
        self._listens = aggregator is not None
        if aggregator is not None:
            if aggregator.declared and not set(aggregator.tasks) <= set(self.tasks):
                raise ValueError(
                    f"tasks: expected the aggregator's ({', '.join(aggregator.tasks)}) among them, found {list(self.tasks)}."
                )
            me = weakref.ref(self)  # a balancer that was replaced must not go on listening

            def listen(step: Statistics, gram: Tensor) -> None:
                balancer = me()
                if balancer is not None:
                    balancer._on_surgery(step, gram)

            handle = aggregator.register_step_hook(listen)
            weakref.finalize(self, handle.remove)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what comes out of a pickle, is not the object that the aggregator calls.
        return {**self.__dict__, "_listens": False}

    @property
    def weights(self) -> Tensor:
        """w, positive and summing to T. [T]"""
        if self.parametrisation == "softmax":
            return len(self.tasks) * self.task_weights.detach().softmax(0)
        w = self.task_weights.detach().clamp_min(_SMALLEST)
        return w * (len(self.tasks) / w.sum())

    def terms(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """w_t L_t by task; in training also renormalises w ("weights"), follows L(0), and prepares the gradient of w."""
        w = self.weights
        weighted = {t: w[t] * loss for t, loss in losses.items()}
        if not self._learning:
            return weighted
        if self._layer is None and not self._listens:
            raise RuntimeError(
                "GradNorm: expected an aggregator to listen to, found a copy, which has none; build a GradNorm with aggregator= "
                "and load the copy's state_dict(), or put the copy in eval mode."
            )
        with torch.no_grad():
            if self.parametrisation == "weights":
                self.task_weights.copy_(w)
            self._rates = self._training_rates(losses)
        if self._layer is None:
            return weighted
        gradient = self._gradient({t: w[t] * norm for t, norm in self._norms(losses).items()})
        # Adds nothing to the value and `gradient` to the gradient of w.
        return {t: term + (self.task_weights[t] - self.task_weights[t].detach()) * gradient[t] for t, term in weighted.items()}

    def _training_rates(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """r_t of the tasks present, after the first losses have entered L(0)."""
        ratios = {}
        for t, loss in losses.items():
            value = loss.detach().to(self._initial)
            fresh = (self._seen[t] < self.initial_steps) & value.isfinite()  # the first step may overflow and be skipped
            mean = self._initial[t] + (value - self._initial[t]) / (self._seen[t] + 1)
            self._initial[t] = torch.where(fresh, mean, self._initial[t])
            self._seen[t] += fresh
            ratios[t] = value / self._initial[t]
        mean = torch.stack(list(ratios.values())).mean()
        return {t: ratio / mean for t, ratio in ratios.items()}

    def _over_ranks(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        self._here = frozenset(losses)
        return super()._over_ranks(losses)

    def _norms(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """n_t = |grad of L_t at the shared layer| of the tasks present, on several ranks on any of them."""
        if self._ranks is None:
            return {t: _norm(self._at_layer(loss)) for t, loss in losses.items()}
        assert self._layer is not None
        layer = self._layer[0]
        dtype = reduce(torch.promote_types, (p.dtype for p in layer), torch.float32)
        rows = torch.zeros(len(losses), sum(p.numel() for p in layer), dtype=dtype, device=layer[0].device)
        for row, (t, loss) in zip(rows, losses.items(), strict=True):
            if t in self._here:
                for part, g in zip(row.split([p.numel() for p in layer]), self._at_layer(loss), strict=True):
                    if g is not None:
                        part.copy_(g.flatten())
        mean_(rows, self._ranks, f"of the layer's gradients ({rows.numel()} numbers)")
        return {t: _norm([row]) for t, row in zip(losses, rows, strict=True)}

    def _at_layer(self, loss: Tensor) -> list[Tensor | None]:
        """The gradient of a loss at the shared layer, None for a parameter that it does not reach."""
        assert self._layer is not None
        with probing():
            grads = list(torch.autograd.grad(loss, self._layer[0], retain_graph=True, allow_unused=True))
        if all(g is None for g in grads):
            raise ValueError("layer: a task's loss does not reach the shared layer; give a layer that all tasks share.")
        return grads

    @torch.no_grad()
    def _gradient(self, norms: dict[int, Tensor]) -> dict[int, Tensor]:
        """The gradient of ``task_weights`` over the tasks present, from G_t = |grad of w_t L_t|."""
        here = list(norms)
        G = torch.stack([norms[t] for t in here])
        r = torch.stack([self._rates[t] for t in here]).to(G)
        every = self.weights if self.parametrisation == "softmax" else self.task_weights
        w = torch.stack([every[t] for t in here]).to(G)
        gradient = gradnorm_gradient(G, w, r, self.alpha)
        if self.parametrisation == "softmax":
            gradient = logits_gradient(gradient, w)
        return dict(zip(here, gradient.to(self.task_weights.dtype), strict=True))

    @torch.no_grad()
    def _on_surgery(self, step: Statistics, gram: Tensor) -> None:
        """Adds to w's gradient what the surgery's Gram matrix says: sqrt(K_tt) is G_t, for the losses came in weighted."""
        if not self.training:
            return
        present = {name: gram[i, i].sqrt() for i, name in enumerate(step.tasks) if step.present[i]}
        unknown = sorted(set(present) - set(self.tasks))
        if unknown:
            raise ValueError(
                f"GradNorm: the aggregator names tasks {unknown} that the balancer does not know ({list(self.tasks)})."
            )
        norms = {t: present[name] for t, name in enumerate(self.tasks) if name in present and t in self._rates}
        if not norms:
            raise RuntimeError("GradNorm: surgery took place before balancer(losses) was called; propagate the balanced loss.")
        grad = torch.zeros_like(self.task_weights)
        for t, value in self._gradient(norms).items():
            grad[t] = value
        self.task_weights.grad = grad if self.task_weights.grad is None else self.task_weights.grad + grad


def _norm(gradient: Iterable[Tensor | None]) -> Tensor:
    """|g| of a gradient in pieces, float64. []"""
    return torch.stack([g.double().square().sum() for g in gradient if g is not None]).sum().sqrt()


def _ranks_of(aggregator: GradientAggregator) -> Ranks | None:
    """The ranks over which an aggregator's K is.

    Raises:
        ValueError: they do not share one K.
    """
    if aggregator._ranks is not None and aggregator._together is None:
        raise ValueError(
            "aggregator: expected sync='global', so that every rank hears of the same K, found 'local'; or give layer= and "
            "process_group=."
        )
    return aggregator._together


def _parameters(layer: nn.Module | Tensor | Iterable[Tensor]) -> list[Tensor]:
    found: object = layer
    if isinstance(found, str) or not isinstance(found, Iterable | nn.Module):
        raise TypeError(f"layer: expected a module, a parameter or several, found {type(found).__name__}.")
    given = [layer] if isinstance(layer, Tensor) else list(layer.parameters() if isinstance(layer, nn.Module) else chain(layer))
    parameters = [p for p in given if isinstance(p, Tensor) and p.requires_grad]
    if not parameters:
        raise ValueError("layer: expected a module or parameters with at least one parameter that requires grad, found none.")
    return parameters
