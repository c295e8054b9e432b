"""Groups of tensors from names and from labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from gradsurgery.capture.grouping import group_indices, group_labels

PATHS = ["backbone.conv1.weight", "backbone.conv1.bias", "backbone.layer1.0.weight", "head", "backbone.conv1.scale"]


def test_a_group_a_tensor() -> None:
    assert group_labels(PATHS, "tensor") == ([0, 1, 2, 3, 4], PATHS)
    assert group_labels(["a", "a"], "tensor") == ([0, 1], ["a", "a"])


def test_a_group_a_layer() -> None:
    assert group_labels(PATHS, "layer") == ([0, 0, 1, 2, 0], ["backbone.conv1", "backbone.layer1.0", ""])


def test_layers_are_the_modules_that_own_the_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)), nn.Linear(3, 1))
    groups, names = group_labels([name for name, _ in net.named_parameters()], "layer")
    for name, group in zip(dict(net.named_parameters()), groups, strict=True):
        owner = net.get_submodule(names[group])
        assert name in {f"{names[group]}.{own}" for own, _ in owner.named_parameters(recurse=False)}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"p3": 0, "p4": 1}, [""]),
        ({"neck": {"p.3": 0, "p[4]": 1}, "it's.me": 2}, ["['neck']", ""]),
        ([[0, 1], (2,), 3], ["[0]", "[1]", ""]),
        ({"a": [{"b.c": 0}, {'q"]': 1, 'r".s': 2}]}, ["['a'][0]", "['a'][1]"]),
    ],
)
def test_layers_of_a_pytree_are_its_containers(tree: Any, names: list[str]) -> None:
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    groups, found = group_labels(paths, "layer")
    assert sorted(found) == sorted(names)
    assert max(groups) + 1 == len(names)


def test_a_single_tensor_has_an_empty_path() -> None:
    assert group_labels([""], "layer") == ([0], [""])
    assert group_labels([""], "tensor") == ([0], [""])


def test_a_label_from_the_name() -> None:
    assert group_labels(PATHS, lambda name: name.split(".")[0]) == ([0, 0, 0, 1, 0], ["backbone", "head"])
    assert group_labels(PATHS, lambda name: name.count(".")) == ([0, 0, 1, 2, 0], ["2", "3", "0"])


@pytest.mark.parametrize(
    ("by", "error", "message"),
    [
        ("layers", ValueError, r"group_by: expected 'layer', 'tensor', 'sample' or a function .* found 'layers'"),
        (3, TypeError, r"group_by: expected 'layer', 'tensor', 'sample' or a function .* found 3"),
        (None, TypeError, r"group_by: .* found None"),
        (lambda name: [name], TypeError, r"group_by\('head'\): expected a hashable label, .* found list"),
    ],
)
def test_bad_ways_to_group(by: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        group_labels(["head"], by)


def test_labels_are_numbered_as_they_appear() -> None:
    assert group_indices(["b", 7, "b", None, 7], 5) == [0, 1, 0, 2, 1]
    assert group_indices((3,), 1) == [0]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("ab", TypeError, r"groups: expected a sequence with one label a tensor, found str"),
        (torch.zeros(2), TypeError, r"groups: .* found Tensor"),
        (5, TypeError, r"groups: .* found int"),
        ([0], ValueError, r"groups: expected 2 labels, .* found 1"),
        ([], ValueError, r"groups: expected 2 labels, .* found 0"),
        ([0, [1]], TypeError, r"groups\[1\]: expected a hashable label, .* found list"),
    ],
)
def test_bad_labels(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        group_indices(groups, 2)
