"""Whole training steps, in every form: the host never waits; in a CUDA graph, captured by hand and by torch.compile.

Without a GPU these are skipped, as in ``test_gpu.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs

pytestmark = pytest.mark.parametrize("device", ["cuda"], indirect=True)

TASKS = ("seg", "depth", "normal", "edges")


@pytest.fixture(autouse=True)
def _compiled(device: torch.device) -> None:
    assert gs.build_info()["cuda"] is True, f"the CUDA kernels are missing: {gs.build_info()['missing']}"


class Model(nn.Module):
    def __init__(self, method: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
        self.surgery = gs.GradientAggregator(method, tasks=TASKS, **options)
        self.heads = nn.ModuleDict({task: nn.Linear(32, 3) for task in TASKS})

    def loss(self, task: str, z: Tensor) -> Tensor:
        k = TASKS.index(task)
        return (self.heads[task](z) * (-1.5) ** k - k).square().mean()

    def forward(self, x: Tensor) -> list[Tensor]:
        losses = {task: self.loss(task, z) for task, z in zip(TASKS, self.surgery.split(self.trunk(x)), strict=True)}
        if "losses" in self.surgery.method.needs:
            self.surgery.observe(losses)
        return list(losses.values())


def by_split(model: Model, x: Tensor) -> None:
    torch.stack(model(x)).sum().backward()


def by_detach(model: Model, x: Tensor) -> None:
    z = model.surgery.detach(model.trunk(x))
    losses = {}
    for task in TASKS:
        with model.surgery.task(task):
            losses[task] = model.loss(task, z)
            losses[task].backward()
    if "losses" in model.surgery.method.needs:
        model.surgery.observe(losses)
    model.surgery.backward()


def by_losses(model: Model, x: Tensor) -> None:
    z = model.trunk(x)
    model.surgery.backward({task: model.loss(task, z) for task in TASKS})


def assert_same(ours: Model, twin: Model) -> None:
    for (name, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        scale = float(q.grad.abs().max())
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}")
    for (name, a), b in zip(ours.surgery.named_buffers(), twin.surgery.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    if twin.surgery.weights is not None:
        torch.testing.assert_close(ours.surgery.weights, twin.surgery.weights, rtol=1e-3, atol=1e-4)


def batches(count: int, device: torch.device) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(16, 12, generator=g).to(device) for _ in range(count)]


@pytest.mark.parametrize("method", sorted(gs.methods()))
@pytest.mark.parametrize("step", [by_split, by_detach, by_losses], ids=["split", "detach", "losses"])
def test_a_step_of_every_method_and_form_never_waits(
    device: torch.device, step: Callable[[Model, Tensor], None], method: str
) -> None:
    """torch's own check for synchronizing calls, and a stream that is still asleep when the step has returned."""
    options: dict[str, Any] = {"seed": 3} if "seed" in gs.methods()[method].options else {}
    options |= {"weights": (1.0, 2.0, 3.0, 4.0)} if method == "constant" else {}
    model = Model(method, **options).to(device)
    for x in batches(2, device):  # loads kernels, and makes what the method remembers
        step(model, x)
        model.zero_grad()
    (x,) = batches(1, device)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)
        step(model, x)
        assert not torch.cuda.current_stream().query(), "the step waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["pcgrad", "gradvac", "cagrad", "mgda", "upgrad", "graddrop", "median", "moco", "dbmtl"])
@pytest.mark.parametrize("step", [by_split, by_detach, by_losses], ids=["split", "detach", "losses"])
def test_a_captured_step(device: torch.device, step: Callable[[Model, Tensor], None], method: str) -> None:
    """Forward, surgery and backward of new batches by replay; orders and memory advance with each, as they lie on the device."""
    ours = Model(method, **({"seed": 3} if "seed" in gs.methods()[method].options else {})).to(device)
    twin = copy.deepcopy(ours)
    x = torch.empty(16, 12, device=device)
    warming, replaying = batches(3, device), batches(4, device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for each in warming:  # loads kernels, and makes what the method remembers
            x.copy_(each)
            step(ours, x)
            ours.zero_grad()
    torch.cuda.current_stream().wait_stream(side)
    for each in warming:
        step(twin, each)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(ours, x)
    for each in replaying:
        x.copy_(each)
        graph.replay()
        twin.zero_grad()
        step(twin, each)
        assert_same(ours, twin)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pcgrad", "median", "dbmtl"])
def test_compiled_into_cuda_graphs(device: torch.device, method: str) -> None:
    """``reduce-overhead`` replays trunk and heads, and calls the surgery between them each time."""
    torch.compiler.reset()
    ours = Model(method, **({"seed": 3} if "seed" in gs.methods()[method].options else {})).to(device)
    twin = copy.deepcopy(ours)
    compiled = torch.compile(ours, mode="reduce-overhead", fullgraph=True)
    for x in batches(6, device):
        torch.compiler.cudagraph_mark_step_begin()
        ours.zero_grad()
        twin.zero_grad()
        torch.stack(compiled(x)).sum().backward()
        by_split(twin, x)
        assert_same(ours, twin)
    assert len(ours.surgery.history) == len(twin.surgery.history) == 6
