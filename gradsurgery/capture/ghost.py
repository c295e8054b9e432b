"""Layers whose weights' gradients need not be formed to know their products: ghosts.

The gradient of a dense or a convolutional layer's weight is g_t = D_t^T X, a sum over M positions (samples, times places of the
kernel): X [M, I] is what the layer was given, D_t [M, O] what arrives at its output in task t's pass. Hence

    <g_i, g_j> = sum(D_i * (X X^T) D_j),        sum_t w_t g_t = (sum_t w_t D_t)^T X,

and where M is small beside I and O, as in the last stages of a convolutional network, K costs less by the first than by T products
of [O, M] and [M, I], and the result costs one of these instead of T. In memory are T times D, instead of T gradients [O, I].

X and D are of the layer's type, and their products float64: K is that of gradients which were never rounded. In float32 it would
not do: where the gradients of the positions cancel, as before a batch norm, |g| is small beside |D| |X|, whose square it is
that rounds; and K of tasks that depend on each other would not show it.

The products of one sample's gradient with itself are known as ghost norms (Goodfellow 2015, https://arxiv.org/abs/1510.01799;
convolutions: Rochette et al. 2019, https://arxiv.org/abs/1912.06015; chosen layer by layer: Bu et al. 2022,
https://arxiv.org/abs/2205.10683). Here they are of tasks, and of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import unfold

from .graph import Edge, Graph

_DTYPES = (torch.float64, torch.float32)
_CONVOLUTION = "ConvolutionBackward0"
_PRODUCTS = {"AddmmBackward0": (2, "mat1"), "MmBackward0": (1, "self")}
"""Which of a node's outputs leads to the weight, and under which name it saves what is multiplied with it."""
_OF_NO_AXIS = {"dilation": 1, "padding": 0, "stride": 1}
"""What ``unfold`` is told of an axis that is not there."""
LEAST = 2**20
"""How many multiplications a layer has to save to be worth the calls that it takes."""


@dataclass
class Ghost:
    """One layer of a graph, whose weight W is used nowhere else and watched by no hook.

    Attributes:
        leaf: W, of I x O entries.
        edge: where the gradient of the layer's output arrives.
        given: what the layer was given, as it came.
        arrived: the gradient of the layer's output in each task's pass.
        bias: the layer's bias, if its gradients are to be had from what arrives as well.
    """

    leaf: Tensor
    edge: Edge
    given: Tensor
    arrived: dict[int, Tensor] = field(default_factory=dict)
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Of what arrives in one task's pass."""
        node, index = self.edge
        entries: int = math.prod(node._input_metadata[index].shape)
        return entries * self.given.itemsize

    def take(self, task: int, arriving: Tensor) -> None:
        """Keeps what arrives in a task's pass."""
        self.arrived[task] = arriving.to_dense() if arriving.is_sparse else arriving

    @torch.no_grad()
    def gram(self, tasks: int) -> Tensor:
        """K of what has arrived, of one task at least. [T, T] float64"""
        X = self._inputs().double()
        S = X @ X.mT
        nothing = torch.zeros_like(next(iter(self.arrived.values())))
        D = torch.stack([self._outputs(self.arrived.get(t, nothing)) for t in range(tasks)]).double()
        K = D.flatten(1) @ (S @ D).flatten(1).mT
        return (K + K.mT) / 2

    @torch.no_grad()
    def gradient(self, arriving: Tensor) -> Tensor:
        """Of W, where some combination of the tasks' gradients arrives at the layer's output."""
        with torch.autocast(arriving.device.type, enabled=False):
            return self._weight(self._outputs(arriving).mT @ self._inputs())

    def of_bias(self, task: int) -> Tensor:
        """One task's gradient of the bias. [O]"""
        return self._outputs(self.arrived[task]).sum(0)

    def _inputs(self) -> Tensor:
        """X. [M, I]"""
        raise NotImplementedError

    def _outputs(self, arriving: Tensor) -> Tensor:
        """D. [M, O]"""
        raise NotImplementedError

    def _weight(self, gradient: Tensor) -> Tensor:
        """D^T X [O, I] in W's shape."""
        raise NotImplementedError


@dataclass
class Dense(Ghost):
    """X W^T, or X W.

    Attributes:
        turned: whether it is the former, as in ``torch.nn.Linear``.
    """

    turned: bool = True

    def _inputs(self) -> Tensor:
        return self.given

    def _outputs(self, arriving: Tensor) -> Tensor:
        return arriving

    def _weight(self, gradient: Tensor) -> Tensor:
        return gradient if self.turned else gradient.mT


@dataclass
class Convolution(Ghost):
    """Over one axis or two.

    Who asks autograd for the gradient of its bias alone has that of its weight computed, too; so its bias is always taken with it.

    Attributes:
        geometry: of the kernel: its dilation, padding and stride along both axes.
    """

    geometry: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def _inputs(self) -> Tensor:
        images = self.given if self.given.dim() == 4 else self.given.unsqueeze(2)
        kernel = (1, 1, *self.leaf.shape[2:])[-2:]
        return unfold(images, kernel, **self.geometry).mT.flatten(0, 1)

    def _outputs(self, arriving: Tensor) -> Tensor:
        return arriving.flatten(2).mT.flatten(0, 1)

    def _weight(self, gradient: Tensor) -> Tensor:
        return gradient.view(self.leaf.shape)


def ghosts_in(graph: Graph, shared: Mapping[int, Tensor]) -> dict[int, Ghost]:
    """The layers whose weights' gradients need not be formed, by the weight's id; of those weights that the tasks share.

    On the CPU alone, where it has been measured; in float64 and float32, as half precision would round what arrives rather than the
    gradients. What saved-tensor hooks have packed (a checkpoint, an offload) is left where it is.
    """
    able = {key for key, leaf in shared.items() if _unwatched(leaf) and leaf.dtype in _DTYPES and leaf.device.type == "cpu"}
    if not any(_may_pay(graph.reach[key].bit_count(), graph.leaves[key].numel()) for key in able):
        return {}
    users = graph.sole_users()
    leaf_at = {(node, index): key for key, (node, index, turned) in users.items() if not turned}
    found: dict[int, Ghost] = {}
    for key, (node, index, turned) in users.items():
        if key not in able:
            continue
        leaf, tasks = graph.leaves[key], graph.reach[key].bit_count()
        ghost: Ghost | None = None
        if node.name() == _CONVOLUTION and index == 1 and not turned:
            bias = graph.leaves[leaf_at[node, 2]] if (node, 2) in leaf_at else None
            if _unwatched(bias) if bias is not None else 2 not in graph.outputs(node):
                ghost = _convolution(leaf, bias, node, tasks)
        elif node.name() in _PRODUCTS and index == _PRODUCTS[node.name()][0] and leaf.dim() == 2:
            ghost = _dense(leaf, node, turned, tasks)
        if ghost is not None and _plain(ghost.given) and ghost.given.dtype == leaf.dtype:
            found[key] = ghost
    return found


def _convolution(leaf: Tensor, bias: Tensor | None, node: Any, tasks: int) -> Ghost | None:
    axes = leaf.dim() - 2
    if axes not in (1, 2) or node._saved_transposed or node._saved_groups != 1:
        return None
    samples, outputs, *places = node._input_metadata[0].shape
    worth = saved(tasks, samples * math.prod(places), leaf.numel() // outputs, outputs) >= LEAST
    if not worth or not _as_saved(node, "input"):
        return None
    geometry = {}
    for name, of_no_axis in _OF_NO_AXIS.items():
        along = tuple(getattr(node, f"_saved_{name}"))
        geometry[name] = (of_no_axis, *(along * axes if len(along) == 1 else along))[-2:]
    return Convolution(leaf, (node, 0), node._saved_input.detach(), bias=bias, geometry=geometry)


def _dense(leaf: Tensor, node: Any, turned: bool, tasks: int) -> Ghost | None:
    inputs, outputs = reversed(leaf.shape) if turned else leaf.shape
    name = _PRODUCTS[node.name()][1]
    worth = saved(tasks, node._input_metadata[0].shape[0], inputs, outputs) >= LEAST
    if not worth or getattr(node, "_saved_alpha", 1) != 1 or not _as_saved(node, name):
        return None
    return Dense(leaf, (node, 0), getattr(node, f"_saved_{name}").detach(), turned=turned)


def saved(tasks: int, positions: int, inputs: int, outputs: int) -> int:
    """By how many multiplications K [T, T] and one combined gradient take fewer this way than T gradients take to be formed.

    One in float64 counts as two. What a convolution takes to lay out its X is not counted.
    """
    formed = tasks * positions * inputs * outputs
    products = positions**2 * (inputs + tasks * outputs) + tasks**2 * positions * outputs
    return formed - 2 * products - positions * inputs * outputs


def _may_pay(tasks: int, entries: int) -> bool:
    """Whether ``saved`` reaches ``LEAST`` for any number of positions and any shape of a weight of so many entries.

    (T - 1) M I O - 2 M^2 (I + T O) is largest at M = (T - 1) I O / (4 (I + T O)), and I + T O is at least 2 sqrt(T I O).
    """
    bound: float = (tasks - 1) ** 2 * entries**1.5 / (16 * tasks**0.5)
    return bound >= LEAST


def _plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided


def _unwatched(leaf: Tensor) -> bool:
    return _plain(leaf) and not leaf._backward_hooks


def _as_saved(node: Any, name: str) -> bool:
    """Whether what a node has saved is there as it was, and no hook has to bring it back."""
    return getattr(getattr(node, f"_raw_saved_{name}"), "unpack_hook", ...) is None
