"""The way to the host: what arrives, and that nothing waits on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from host_copies import no_synchronization
from monitor.problem import TASKS, Net, batch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gradsurgery as gs
from gradsurgery.monitor import Statistics
from gradsurgery.monitor.transfer import Transfer
from gradsurgery.monitor.window import Entry, Window


def test_what_arrives() -> None:
    given = [
        torch.randn(2, 3, dtype=torch.float64),
        torch.tensor(3, dtype=torch.int64),
        torch.randn(4, dtype=torch.bfloat16),
        torch.randn(3, 5).mT,
        torch.tensor(True),
        torch.empty(0, 2),
        torch.tensor(0.1, requires_grad=True),
    ]
    transfer = Transfer(given)
    assert transfer.ready()
    copies = [tensor.detach().clone() for tensor in given]
    with torch.no_grad():
        for tensor in given:
            tensor.zero_()
    for numbers, tensor in zip(transfer.wait(), copies, strict=True):
        assert numbers.dtype == np.float64
        assert numbers.shape == tensor.shape
        assert np.array_equal(numbers, tensor.double().numpy())
    assert Transfer([]).wait() == []


class Event:
    """A CUDA event that is told when it has happened."""

    def __init__(self) -> None:
        self.happened = False

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        self.happened = True


class Stream:
    """A CUDA stream, of which it is enough that it records events."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.waited_for: list[Stream] = []

    def record_event(self) -> Event:
        self.events.append(Event())
        return self.events[-1]

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Copies(TorchDispatchMode):
    """Every operator that brings something from a CUDA device to the host, and whether the host goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in args if isinstance(a, Tensor)]
        name = func.overloadpacket.__name__
        result = func(*args, **kwargs)
        if name == "_local_scalar_dense" or (
            any(t.is_cuda for t in tensors) and any(isinstance(t, Tensor) and not t.is_cuda for t in (*tensors, result))
        ):
            self.found.append((name, bool(kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False))))
        return result


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """CUDA tensors without values, on a machine without CUDA: asking for a value is an error there, as no value exists."""
    stream, empty = Stream(), torch.empty

    def unpinned(*args: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        return empty(*args, **options)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "empty", unpinned)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield stream


def test_a_step_and_the_start_of_a_window_read_nothing(fake_cuda: Stream) -> None:
    """One copy a dtype for all steps of a window, and the host goes on."""
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
    monitor = gs.Monitor(surgery, read_every=4)
    monitor._handles[1].remove()

    def step(number: int) -> None:
        numbers = [torch.empty(3, 3, dtype=torch.float64, device="cuda"), torch.empty(3, dtype=torch.float64, device="cuda")]
        losses = tuple(torch.empty((), device="cuda") for _ in TASKS)
        assert isinstance(losses[0], FakeTensor)
        surgery._history.add(Statistics(number, TASKS, (True,) * 3, *numbers, None, (), None, losses), numbers[0])
        monitor.log({"lr": 0.1, "grad": torch.empty((), device="cuda")})

    with Copies() as copies:
        for number in range(13):
            step(number)
    assert copies.found == [("copy_", True)] * 2 * 3
    assert len(monitor._in_flight) == 3
    assert not any(event.happened for event in fake_cuda.events)
    monitor._closed = True  # no value will ever come


@pytest.mark.parametrize("method", ["sum", "pcgrad", "mgda"])
def test_a_whole_step_of_surgery_reads_nothing(fake_cuda: Stream, method: str) -> None:
    """On fake CUDA gradients (autograd's engine wants a real device): losses told, surgery, and the start of a window."""
    surgery = gs.GradientAggregator(method, tasks=TASKS)
    monitor = gs.Monitor(surgery, read_every=2)
    with Copies() as copies:
        for _ in range(5):
            rows = [torch.empty(40, device="cuda") for _ in TASKS]
            surgery.aggregate(rows, [torch.empty((), device="cuda") for _ in TASKS])
    assert copies.found == [("copy_", True)] * 2 * 2
    monitor._closed = True


def test_other_streams_are_waited_for(fake_cuda: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind whatever computes what was recorded, by the device and not by the host."""
    window, training = Window(), Stream()
    with monkeypatch.context() as context:
        context.setattr(torch.cuda, "current_stream", lambda device=None: training)
        window.add(Entry(0, None, {}, {"x": torch.empty((), device="cuda")}))
    window.start()
    assert fake_cuda.waited_for == [training]
    assert not window.ready()
    fake_cuda.events[0].happened = True
    assert window.ready()


# --- with a GPU -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("method", ["sum", "pcgrad", "mgda"])
def test_nothing_waits_on_a_gpu(device: torch.device, method: str) -> None:
    net = Net(dropout=0.0).to(device)
    surgery = gs.GradientAggregator(method, tasks=TASKS)
    balancer = gs.UncertaintyWeighting(TASKS).to(device)
    monitor = gs.Monitor(surgery, balancer=balancer, read_every=5)
    batches = [tuple(part.to(device) for part in batch(step)) for step in range(40)]

    def step(x: Tensor, y: Tensor) -> None:
        views = surgery.split(net.trunk(x))
        losses = {task: (net.heads[task](z) - y[:, :4]).abs().mean() for task, z in zip(TASKS, views, strict=True)}
        balancer(surgery.observe(losses)).backward()
        monitor.log({"lr": 0.1, "first": losses["seg"]})

    for x, y in batches[:12]:  # pools and caches
        step(x, y)
    torch.cuda.synchronize()
    with no_synchronization():
        for x, y in batches[12:]:
            torch.cuda._sleep(1_000_000)
            step(x, y)
    monitor.flush()
    assert [row.step for row in monitor.rows] == list(range(40))
    for row, known in zip(monitor.rows, surgery.history, strict=True):
        assert {name: row.values[name] for name in known.scalars()} == known.scalars()
        assert row.values["first"] == row.values["loss/seg"]


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_captured_step_is_said_to_be_lost(device: torch.device) -> None:
    surgery = gs.GradientAggregator("sum", tasks=2)
    monitor = gs.Monitor(surgery)
    x = torch.ones(8, device=device, requires_grad=True)

    def step() -> None:
        a, b = surgery.split(x * 1)
        (a.sum() + b.sum()).backward()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    monitor.flush()
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with pytest.warns(UserWarning, match="Monitor: a CUDA graph is being captured"), torch.cuda.graph(graph):
        step()
    graph.replay()
    monitor.flush()
    assert len(monitor.rows) == 3
