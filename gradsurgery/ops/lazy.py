"""Gradients whose values do not lie in their memory: negated by a bit (the imaginary part of a conjugate), or zeros without any.

Autograd hands out both. PyTorch's own fallback resolves them for tensors and lists of tensors, but not for lists with gaps, and a
kernel would read the wrong sign or no memory at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .reference import Gradients
from .schema import LIBRARY, SCHEMAS


def _resolved(tensor: Tensor) -> Tensor:
    return tensor.clone() if torch._is_zerotensor(tensor) else tensor.resolve_neg()


def _resolving(operator: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        named = dict(zip(names, args, strict=False)) | kwargs
        for name in ("gram", "weights", "scales", "rate", "uniform"):
            if named.get(name) is not None:
                named[name] = _resolved(named[name])
        if "grads" in named:
            grads: Gradients = named["grads"]
            named["grads"] = [None if g is None else _resolved(g) for g in grads]
        written_to = "buffers" if "buffers" in named else "out"
        targets = named.get(written_to, ())
        if targets:
            named[written_to] = [_resolved(target) for target in targets]
        result = operator(**named)
        for target, written in zip(targets, named.get(written_to, ()), strict=True):
            if written is not target:
                target.copy_(written)
        return result

    names = [argument.name for argument in operator._schema.arguments]  # type: ignore[attr-defined]
    return run


for _schema in SCHEMAS:
    _name = _schema.split("(")[0]
    for _key in ("Negative", "ZeroTensor"):
        LIBRARY.impl(_name, _resolving(getattr(torch.ops.gradsurgery, _name).default), _key)
