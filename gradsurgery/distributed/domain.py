"""Which leaves the ranks write: compared once, as messages carry gradients without names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from gradsurgery.capture.parameters import Parameter

from .ranks import Ranks

ASK = "inputs= with all parameters to train, such as the whole model"


class Domain:
    """The leaves that get gradients, in the same order on every rank. Making it is collective.

    Args:
        ranks: among which the batch is divided.
        shared: the parameters to operate on; None: each rank finds its own (surgery before averaging).
        inputs: the only leaves to get gradients, by id; None: those that are reached in this step.
        reached: by this step's losses, in the order of the graph.
        tasks: of this step on this rank.

    Attributes:
        shared: the parameters to operate on.
        others: the leaves besides.

    Raises:
        ValueError: on every rank, where one has others.
    """

    def __init__(
        self,
        ranks: Ranks,
        shared: Sequence[Parameter] | None,
        inputs: Mapping[int, Parameter] | None,
        reached: Iterable[Tensor],
        tasks: Sequence[str],
    ) -> None:
        self.shared = [p for p in shared or [] if inputs is None or id(p.tensor) in inputs]
        operated = {id(p.tensor) for p in self.shared}
        found = [Parameter(leaf, f"[{k}]") for k, leaf in enumerate(reached)] if inputs is None else inputs.values()
        others = [p for p in found if id(p.tensor) not in operated]
        self.others = [p.tensor for p in others]
        self._asked = _ids(shared), _ids(inputs)
        told: dict[str, object] = {"number of parameters in shared": len(self.shared)}
        told |= _described("shared", self.shared)
        if inputs is None:
            told[f"the tasks of the first step (where they differ, pass {ASK})"] = tuple(tasks)
            told[f"number of further parameters that the losses reach (where it differs, pass {ASK})"] = len(others)
            told |= _described("a parameter that the losses reach, ", others)
        else:
            told["number of parameters in inputs"] = len(inputs)
            told |= _described("inputs", others)
        ranks.agree(told, "backward")

    def serves(self, shared: Sequence[Parameter] | None, inputs: Mapping[int, Parameter] | None) -> bool:
        """Whether a step names the same leaves."""
        return self._asked == (_ids(shared), _ids(inputs))

    @property
    def leaves(self) -> list[Tensor]:
        """All of them."""
        return [*(p.tensor for p in self.shared), *self.others]

    def check(self, reached: Iterable[Tensor]) -> None:
        """Raises where losses reach a leaf that they did not in the first step, when the ranks were compared."""
        known = {id(leaf) for leaf in self.leaves}
        for leaf in reached:
            if id(leaf) not in known:
                raise ValueError(
                    f"inputs: expected the losses to reach the same parameters as in the first step, with process_group=, found a "
                    f"further one of shape {list(leaf.shape)}. Pass {ASK}."
                )


def _ids(named: Iterable[Parameter] | Mapping[int, Parameter] | None) -> tuple[int, ...] | None:
    if named is None:
        return None
    return tuple(named) if isinstance(named, Mapping) else tuple(id(p.tensor) for p in named)


def _described(argument: str, parameters: Sequence[Parameter]) -> dict[str, object]:
    """What the ranks compare, by what an error is to call it; of parameters without names, which all have alike, some values."""
    return {
        f"{argument}[{k}]": (p.name, list(p.tensor.shape), str(p.tensor.dtype).removeprefix("torch."), *_first_values(p))
        for k, p in enumerate(parameters)
    }


def _first_values(parameter: Parameter) -> list[object]:
    """Of a parameter without a name: one of two experts of the same shape is no more than that."""
    return parameter.tensor.detach().flatten()[:4].tolist() if parameter.name.startswith("[") else []
