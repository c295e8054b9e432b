"""Checkpoints of a method's memory: what is taken is what the method declares, and what is refused leaves everything as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import gradsurgery as gs

NAMES = sorted(gs.methods())


def stepped(method: str, count: int = 3, numel: int = 12, steps: int = 2, **options: Any) -> gs.GradientAggregator:
    surgery = gs.GradientAggregator(method, **options)
    for step in range(steps):
        G = torch.randn(count, numel, generator=torch.Generator().manual_seed(step))
        surgery.aggregate([[row[:5], row[5:]] for row in G], [torch.tensor(1.0 + t) for t in range(count)])
    return surgery


def options_of(method: str) -> dict[str, Any]:
    return {"weights": (1.0, 2.0, 3.0)} if method == "constant" else {}


def contents(surgery: gs.GradientAggregator) -> dict[str, Any]:
    return copy.deepcopy(dict(surgery.state_dict()))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], Tensor) else one[name] == other[name] for name in one
    )


WITH_MEMORY = [name for name in NAMES if len(stepped(name, **options_of(name)).state_dict()) > 1]


def test_most_methods_with_memory_are_here() -> None:
    assert {"crmogm", "dbmtl", "excessmtl", "gradvac", "moco", "modo", "pcgrad", "random", "sdmgrad"} <= set(WITH_MEMORY)


@pytest.mark.parametrize("method", WITH_MEMORY)
def test_tensors_of_another_shape_are_refused(method: str) -> None:
    """A kernel would read and write beyond them."""
    state = contents(stepped(method))
    for name, tensor in [(name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor)]:
        for wrong in (torch.zeros(1, 7, dtype=tensor.dtype), tensor[None], torch.zeros(0, dtype=tensor.dtype), 1.0):
            for surgery in (gs.GradientAggregator(method), stepped(method, steps=1)):
                before = contents(surgery)
                with pytest.raises(ValueError, match=f"state_dict: expected '{name}' of shape .*, found"):
                    surgery.load_state_dict({**state, name: wrong})
                assert same(contents(surgery), before)


def test_memory_for_fewer_tasks_than_it_says() -> None:
    surgery = gs.GradientAggregator("gradvac", tasks=40)
    surgery.aggregate(torch.randn(40, 3))
    state = contents(surgery)
    state["similarity"] = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected 'similarity' of shape \[40, 40\], .* found \[1\]"):
        gs.GradientAggregator("gradvac", tasks=40).load_state_dict(state)
    state = contents(surgery)
    state["_extra_state"]["state_tasks"] = 41
    with pytest.raises(ValueError, match="expected memory of at most 40 tasks"):
        gs.GradientAggregator("gradvac", tasks=40).load_state_dict(state)


@pytest.mark.parametrize("method", WITH_MEMORY)
def test_a_missing_tensor_is_reported(method: str) -> None:
    state = contents(stepped(method))
    for name in [name for name in state if name != "_extra_state"]:
        part = {key: value for key, value in state.items() if key != name}
        for surgery in (gs.GradientAggregator(method), stepped(method, steps=1)):
            before = contents(surgery)
            with pytest.raises(RuntimeError, match=f'Missing key.* "{name}"'):
                surgery.load_state_dict(part)
            assert same(contents(surgery), before)
            assert name in surgery.load_state_dict(part, strict=False).missing_keys
            assert same(contents(surgery), before), "half a memory is none"


@pytest.mark.parametrize("method", ["sum", "pcgrad", "gradvac", "moco"])
@pytest.mark.parametrize("junk", ["method", "a.b", "training", "weights", "buffer_7", "junk"])
def test_names_that_the_method_does_not_declare_are_unexpected(method: str, junk: str) -> None:
    state = contents(stepped(method))
    surgery = gs.GradientAggregator(method)
    with pytest.raises(RuntimeError, match=f'Unexpected key.* "{junk}"'):
        surgery.load_state_dict({**state, junk: torch.ones(2)})
    surgery = gs.GradientAggregator(method)
    assert surgery.load_state_dict({**state, junk: torch.ones(2)}, strict=False).unexpected_keys == [junk]
    assert same(contents(surgery), state)


@pytest.mark.parametrize(
    ("method", "saved", "built"),
    [
        ("crmogm", {"inner": "cagrad"}, {"inner": "mgda"}),
        ("crmogm", {"inner": "pcgrad"}, {"inner": "mgda"}),
        ("crmogm", {"inner": gs.methods()["cagrad"].build(c=0.3)}, {}),
        ("excessmtl", {"init": "ones"}, {"init": "simplex"}),
    ],
)
def test_memory_of_another_meaning_is_refused(method: str, saved: dict[str, Any], built: dict[str, Any]) -> None:
    state = contents(stepped(method, **saved))
    surgery = stepped(method, steps=1, **built)
    before = contents(surgery)
    with pytest.raises(ValueError, match=f"state_dict: expected the state of '{method}' with .*, found one with"):
        surgery.load_state_dict(state)
    assert same(contents(surgery), before)


def test_numbers_may_change_and_a_built_method_is_its_name() -> None:
    state = contents(stepped("crmogm", inner="cagrad", alpha=0.5))
    surgery = gs.GradientAggregator("crmogm", inner=gs.methods()["cagrad"].build(c=0.3), alpha=0.9)
    surgery.load_state_dict(state)
    assert same(contents(surgery), state)
    shifted = stepped("crmogm", inner="mgda", initial_weights=(1.0, 2.0, 3.0))
    gs.GradientAggregator("crmogm", inner="mgda", initial_weights=(1.0, 2.0, 3.0)).load_state_dict(contents(shifted))


@pytest.mark.parametrize("method", WITH_MEMORY)
def test_a_refused_state_of_other_tasks_changes_nothing(method: str) -> None:
    state = contents(stepped(method))
    surgery = stepped(method, steps=1, tasks=("a", "b", "c"))
    before = contents(surgery)
    with pytest.raises(ValueError, match="state_dict: expected the tasks"):
        surgery.load_state_dict(state)
    assert same(contents(surgery), before)


@pytest.mark.parametrize("method", WITH_MEMORY)
def test_a_module_of_other_sizes_becomes_the_checkpoint(method: str) -> None:
    """Fewer tasks, other shapes of gradients, or no step at all: in either direction."""
    large, small, fresh = stepped(method), stepped(method, count=2, numel=9, steps=1), gs.GradientAggregator(method)
    states = [contents(large), contents(small), contents(fresh)]
    for surgery in (large, small, fresh):
        for state in states:
            surgery.load_state_dict(copy.deepcopy(state))
            assert same(contents(surgery), state)


def test_buffers_keep_the_layout_of_the_gradients() -> None:
    surgery = gs.GradientAggregator("moco")
    grads = [torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    surgery.aggregate(grads, [torch.tensor(1.0)] * 2)
    resumed = gs.GradientAggregator("moco")
    resumed.load_state_dict(surgery.state_dict())
    assert resumed.buffer_0.stride() == surgery.buffer_0.stride()
    assert torch.equal(
        resumed.aggregate(grads, [torch.tensor(2.0)] * 2),  # type: ignore[arg-type]
        surgery.aggregate(grads, [torch.tensor(2.0)] * 2),  # type: ignore[arg-type]
    )
