"""What gets surgery of its own: groups of tensors, numbered 0..G-1 from names or from labels; or the samples of a batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Final, Literal, TypeAlias

GroupBy: TypeAlias = Literal["tensor", "layer", "sample"] | Callable[[str], Hashable]
"""A group a tensor, a group a module, or the label of a tensor's name; or each sample of a batch."""

SAMPLE: Final = "sample"

# The last component of a dotted name, or of a pytree's key path such as ``['neck'][0].p3``; quoted keys may hold any character.
_LAST = re.compile(
    r"""(?: \[ '(?: [^'\\] | \\. )*' \]  |  \[ "(?: [^"\\] | \\. )*" \]  |  \[ [^][]* \]  |  (?: ^ | \. ) [^].[]+ ) $""", re.VERBOSE
)


def group_labels(paths: Sequence[str], by: GroupBy) -> tuple[list[int], list[str]]:
    """A group for every tensor, numbered in the order in which groups appear.

    Args:
        paths: the tensors' names: of parameters ("backbone.layer1.0.conv1.weight") or key paths of a pytree ("['p3']"). [P]
        by: "tensor": every tensor is a group. "layer": tensors whose names differ in their last component alone are one, which are
            the parameters of one module. A function: the tensors of which it gives the same label are one.

    Returns:
        The groups of the tensors, in 0..G-1 [P], and the groups' names [G].

    Raises:
        ValueError, TypeError: ``by`` is none of these, or gives a label that cannot be hashed. The messages call it ``group_by``.
    """
    if by == "tensor":
        return list(range(len(paths))), list(paths)
    label = _label_function(by)
    labels = [label(path) for path in paths]
    for path, found in zip(paths, labels, strict=True):
        _check_hashable(found, f"group_by({path!r})")
    groups, distinct = _numbered(labels)
    return groups, [str(name) for name in distinct]


def group_indices(groups: Sequence[Hashable], pieces: int) -> list[int]:
    """The labels of P tensors as numbers 0..G-1, in the order in which they appear. [P]

    Raises:
        TypeError: ``groups`` is no sequence, or a label cannot be hashed.
        ValueError: not one label a tensor.
    """
    if not isinstance(groups, Sequence) or isinstance(groups, (str, bytes)):
        raise TypeError(f"groups: expected a sequence with one label a tensor, found {type(groups).__name__}.")
    if len(groups) != pieces:
        raise ValueError(
            f"groups: expected {pieces} labels, one a tensor of a task's gradient, found {len(groups)}; "
            "tensors with equal labels are one group."
        )
    for p, label in enumerate(groups):
        _check_hashable(label, f"groups[{p}]")
    return _numbered(groups)[0]


def check_samples(shapes: Sequence[Sequence[int] | None], names: Callable[[], Sequence[str]]) -> int:
    """B of tensors [B, ...].

    Args:
        shapes: of the tensors; None for one that nobody knows. [P]
        names: gives the tensors' names, for an error. [P]

    Raises:
        ValueError: one has no dimensions, or another B than the first.
    """
    first, *others = [p for p, shape in enumerate(shapes) if shape is not None]
    for p in (first, *others):
        shape, like = shapes[p], shapes[first]
        if not shape:
            raise ValueError(f"{names()[p]}: expected a batch as first dimension, for surgery by sample, found a shape of [].")
        assert like is not None
        if shape[0] != like[0]:
            raise ValueError(
                f"{names()[p]}: expected {like[0]} samples in the first dimension like {names()[first]}, for surgery by sample, "
                f"found a shape of {list(shape)}."
            )
    batch = shapes[first]
    assert batch is not None
    return batch[0]


@lru_cache(maxsize=8)
def sample_names(samples: int) -> tuple[str, ...]:
    """Of the groups that samples are. [B]"""
    return tuple(map(str, range(samples)))


def _label_function(by: object) -> Callable[[str], Hashable]:
    if by == "layer":
        return lambda path: _LAST.sub("", path)
    if callable(by):
        return by
    error = ValueError if isinstance(by, str) else TypeError
    raise error(f"group_by: expected 'layer', 'tensor', 'sample' or a function from a tensor's name to a label, found {by!r}.")


def _check_hashable(label: object, name: str) -> None:
    try:
        hash(label)
    except TypeError:
        raise TypeError(f"{name}: expected a hashable label, such as a number or a string, found {type(label).__name__}.") from None


def _numbered(labels: Sequence[Hashable]) -> tuple[list[int], list[Hashable]]:
    """Labels as numbers by first appearance, and the distinct ones in that order."""
    index: dict[Hashable, int] = {}
    numbers = [index.setdefault(label, len(index)) for label in labels]
    return numbers, list(index)
