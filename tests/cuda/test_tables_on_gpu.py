"""Large tables where only a GPU can show that they are right: in CUDA graphs, on several streams, and beside other threads.

Without a GPU these are skipped, as in ``test_gpu.py``; ``test_table_cache.py`` has what the emulator can show.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from cuda_kernels import kernels_of
from torch import Tensor

import gradsurgery as gs

OPS = torch.ops.gradsurgery
pytestmark = pytest.mark.parametrize("device", ["cuda"], indirect=True)


@pytest.fixture(autouse=True)
def _compiled(device: torch.device) -> None:
    assert gs.build_info()["cuda"] is True, f"the CUDA kernels are missing: {gs.build_info()['missing']}"


@dataclass
class Step:
    """A thousand gradients of three tasks; all numbers are small integers, so that every sum is exact in any order."""

    seed: int = 0
    pieces: int = 1000
    tasks: int = 3
    grads: list[Tensor] = field(init=False)
    out: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.grads = [torch.empty(37, device="cuda") for _ in range(self.tasks * self.pieces)]
        self.out = [torch.full((37,), torch.nan, device="cuda") for _ in range(self.pieces)]
        self.refill(self.seed)

    def refill(self, seed: int) -> None:
        """Other values at the same addresses."""
        generator = torch.Generator("cuda").manual_seed(seed)
        whole = torch.randint(-4, 5, (len(self.grads), 37), generator=generator, device="cuda").float()
        torch._foreach_copy_(self.grads, list(whole))

    def run(self) -> Tensor:
        """Gram, then a combination whose weights come from it. -> K"""
        K = OPS.gram(self.grads, self.tasks, False)
        OPS.combine_(self.out, self.grads, K.diagonal().sign(), False)
        return K

    def check(self, K: Tensor) -> None:
        G = torch.stack([torch.cat(self.grads[t * self.pieces : (t + 1) * self.pieces]) for t in range(self.tasks)]).double()
        assert torch.equal(K, (G[:, None] * G).sum(-1))
        assert torch.equal(torch.cat(self.out).double(), G.sum(0))


def fill_the_cache() -> None:
    """On the current stream, with tables of other steps: 6000 words each, of 131072."""
    for step in [Step(seed) for seed in range(30)]:  # all at once, for addresses of their own
        step.check(step.run())


def kernels(run: Step) -> dict[str, int]:
    names = kernels_of(run.run)
    return {part: sum(part in name for name in names) for part in ("write_table", "gram_small", "combine_chunks")}


def test_one_launch_a_pass(device: torch.device) -> None:
    step = Step()
    Random(0).shuffle(step.grads)  # an order that no earlier step at these addresses had
    assert kernels(step)["write_table"] > 0
    step.refill(1)
    assert kernels(step) == {"write_table": 0, "gram_small": 1, "combine_chunks": 1}
    step.check(step.run())


def test_new_addresses_old_addresses_and_the_host_never_waits(device: torch.device) -> None:
    steps = [Step(seed) for seed in range(3)]
    steps[0].run()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)
        results = [(step, step.run()) for step in (*steps, *steps, steps[1], steps[0])]
        assert not torch.cuda.current_stream().query(), "the operators waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for step, K in results:
        step.check(K)


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
def test_a_graph_replays_whatever_the_cache_holds_by_then(device: torch.device, known: bool) -> None:
    step, other = Step(1), Step(2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        (step if known else other).run()  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        K = step.run()
    with torch.cuda.stream(stream):
        other.check(other.run())
        fill_the_cache()
        for seed in range(3):
            step.refill(seed)
            for target in step.out:
                target.fill_(torch.nan)
            graph.replay()
            step.check(K)
            fill_the_cache()
    torch.cuda.synchronize()


def test_eager_calls_do_not_depend_on_a_graphs_memory(device: torch.device) -> None:
    step = Step(1)
    step.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    captured = Step(2)
    with torch.cuda.graph(graph):
        captured.run()
    graph.replay()
    del graph
    torch.cuda.empty_cache()
    captured.check(captured.run())
    step.check(step.run())


def test_a_graph_may_be_captured_while_another_thread_meets_the_cache_first(device: torch.device) -> None:
    """A capture forbids other threads to allocate, unless they say that they take no part in it."""
    step, other = Step(1), Step(2)
    step.run()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        room = torch.empty(1000, device=device)  # torch itself does not say so: keeps a block of its memory for this stream

    def elsewhere() -> Tensor:
        with torch.cuda.stream(stream):  # which has no part of the cache yet
            return other.run()

    with ThreadPoolExecutor(1) as thread, torch.cuda.graph(graph):
        K = step.run()
        result = thread.submit(elsewhere).result()
    torch.cuda.synchronize()
    other.check(result)
    graph.replay()
    step.check(K)
    del room


def test_streams_and_threads(device: torch.device) -> None:
    """Threads with steps of their own, on streams of their own and on one that they share."""
    shared = torch.cuda.Stream()

    def work(thread: int) -> None:
        own = torch.cuda.Stream()
        for turn in range(12):
            with torch.cuda.stream(shared if turn % 2 else own):
                step = Step(100 * thread + turn)
                step.check(step.run())
                step.check(step.run())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    torch.cuda.synchronize()


def test_a_destroyed_streams_handle_says_nothing_about_the_next(device: torch.device) -> None:
    runtime = torch.cuda.cudart()
    step = Step(1)
    torch.cuda.synchronize()
    for _ in range(4):
        handle = torch.empty(1, dtype=torch.int64)
        assert int(runtime.cudaStreamCreate(handle.data_ptr())) == 0
        with torch.cuda.stream(torch.cuda.ExternalStream(int(handle))):
            torch.cuda._sleep(200_000_000)
            K = step.run()
        torch.cuda.synchronize()
        step.check(K)
        assert int(runtime.cudaStreamDestroy(int(handle))) == 0
