"""What only a GPU can show: agreement with the CPU kernels at size, streams, CUDA graphs, and that the host never waits.

``test_operators.py`` runs the same operators over every layout. Without a GPU these are skipped; where
GRADSURGERY_REQUIRE_CUDA=1 promises one, its absence is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cuda_kernels import kernels_of
from host_copies import no_synchronization
from ops.samples import LAYOUTS, Sample, maker, sample, weights_of
from tolerances import DTYPES, assert_combined_close, assert_gram_close
from torch import Tensor, nn

import gradsurgery as gs

OPS = torch.ops.gradsurgery
pytestmark = pytest.mark.parametrize("device", ["cuda"], indirect=True)


@pytest.fixture(autouse=True)
def _compiled(device: torch.device) -> None:
    assert gs.build_info()["cuda"] is True, f"the CUDA kernels are missing: {gs.build_info()['missing']}"


def on_cpu(given: Sample) -> Sample:
    return Sample([None if g is None else g.cpu() for g in given.grads], given.tasks, given.stacked)


def everything(given: Sample, key: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
    """All operators on gradients once. -> (combined, K, w) of the fused one"""
    K = OPS.gram(given.grads, given.tasks, given.stacked)
    w = OPS.pcgrad_weights(K, None, None if key is None else key.clone())
    out = given.empty()
    OPS.combine_(out, given.grads, w, given.stacked)
    fused = given.empty()
    fused_K, fused_w = OPS.pcgrad_(fused, given.grads, given.tasks, given.stacked, None, key)
    for mine, other in ((K, fused_K), (w, fused_w), *zip(out, fused, strict=True)):
        assert mine.data_ptr() != other.data_ptr() or mine.numel() == 0
    T = given.tasks
    for rule, options in (("graddrop", [0.5] * T), ("sign_agreement", [1.0, 1.0]), ("trimmed_mean", [0.0]), ("median", [])):
        draws = key if rule == "graddrop" else None
        if rule != "graddrop" or draws is not None:
            OPS.coordinatewise_(given.empty(), given.grads, T, given.stacked, rule, options, None, draws)
    return fused, fused_K, fused_w


def grouped(given: Sample, key: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Two groups where there are two positions. -> (combined, K [G, T, T], w [G, T])"""
    groups = [p % 2 for p in range(given.pieces)]
    K = OPS.gram(given.grads, given.tasks, given.stacked, groups)
    w = OPS.pcgrad_weights(K, None, key)
    out = given.empty()
    OPS.combine_(out, given.grads, w, given.stacked, False, groups)
    return out, K, w


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8, 9, 16, 17, 32, 33, 100])
@pytest.mark.parametrize("numel", [65_537, 1_000_003])
def test_agrees_with_the_cpu(device: torch.device, tasks: int, numel: int, dtype: torch.dtype) -> None:
    if tasks * numel > 2e7:
        numel //= 16
    given = Sample([maker(dtype, device)(tasks, numel), maker(dtype, device, 1)(tasks, 77)], tasks, stacked=True)
    plain = on_cpu(given)
    K = OPS.gram(given.grads, tasks, True)
    exact = OPS.gram(plain.grads, tasks, True).to(device)
    assert_gram_close(K, exact, dtype)
    w = weights_of(tasks, device)
    out = given.empty()
    OPS.combine_(out, given.grads, w, True)
    for p, target in enumerate(out):
        G = given.grads[p]
        assert G is not None
        assert_combined_close(target, w @ G.double(), w.abs() @ G.double().abs())
    key = torch.tensor([3, 1], device=device)
    on_gpu = OPS.pcgrad_weights(exact, None, key)
    torch.testing.assert_close(on_gpu.cpu(), OPS.pcgrad_weights(exact.cpu(), None, torch.tensor([3, 1])), rtol=1e-9, atol=0)
    assert key.tolist() == [3, 2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_in_every_run(device: torch.device, dtype: torch.dtype) -> None:
    """K, w and the combined gradient, by each operator and by the fused one: 20 runs."""
    for tasks in (3, 8, 20, 40):
        given = Sample([maker(dtype, device)(tasks, 300_001)], tasks, stacked=True)
        first = OPS.gram(given.grads, tasks, True)
        assert torch.equal(first, first.T)
        (combined,), K, w = everything(given, torch.tensor([5, 0], device=device))
        assert torch.equal(K, first)
        for _ in range(20):
            assert torch.equal(OPS.gram(given.grads, tasks, True), first)
            (again,), again_K, again_w = everything(given, torch.tensor([5, 0], device=device))
            assert torch.equal(again_K, K)
            assert torch.equal(again_w, w)
            assert torch.equal(again, combined)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_host_never_waits(device: torch.device, layout: str) -> None:
    """torch's own check for synchronizing calls, and a stream that is still asleep when the operators have returned."""
    given = sample(layout, 5, torch.float32, device)
    key = torch.tensor([1, 0], device=device)
    everything(given, key)  # loads the kernels, and fills the memory pool
    grouped(given, key)
    torch.cuda.synchronize()
    with no_synchronization():
        torch.cuda._sleep(2_000_000_000)
        everything(given, key)
        grouped(given, key)
        assert not torch.cuda.current_stream().query(), "the operators waited for the device"
    torch.cuda.synchronize()


def _told(name: str, some: bool) -> tuple[list[list[Tensor | None]], dict[str, Any]]:
    """Gradients of four tasks over two tensors, the third absent in ``some``; and what else the method asks for, on the device."""
    grads: list[list[Tensor | None]] = [[*row.split(40_000)] for row in maker(torch.float32, "cuda")(4, 70_001)]
    losses: list[Any] = [torch.ones((), device="cuda"), 2.0, torch.ones((), device="cuda"), torch.full((), 0.5, device="cuda")]
    if some:
        grads[2], losses[2] = [None, None], None
    return grads, {"losses": losses} | ({"against": grads} if "against" in gs.methods()[name].needs else {})


@pytest.mark.parametrize("groups", [None, "tensor"])
@pytest.mark.parametrize("name", sorted(gs.methods()))
def test_a_step_of_every_method_never_waits(device: torch.device, name: str, groups: str | None) -> None:
    """All tasks, then one absent, then all again; and the result is the CPU's."""
    spec = gs.methods()[name]
    if groups and spec.family in ("buffered", "coordinatewise"):
        pytest.skip("works on the whole gradient")
    options: dict[str, Any] = {"seed": 3} if "seed" in spec.options else {}
    options |= {"weights": (1.0, 2.0, 3.0, 4.0)} if name == "constant" else {}
    surgery = gs.GradientAggregator(name, tasks=4, group_by=groups, **options)
    plain = gs.GradientAggregator(name, tasks=4, group_by=groups, **options)
    steps = [_told(name, some) for some in (False, True, False, True)]
    results = [surgery.aggregate(grads, **more) for grads, more in steps[:2]]  # loads the kernels, and makes the memory
    torch.cuda.synchronize()
    with no_synchronization():
        torch.cuda._sleep(2_000_000_000)
        results += [surgery.aggregate(grads, **more) for grads, more in steps[2:]]
        _ = surgery.weights
        assert not torch.cuda.current_stream().query(), "the step waited for the device"
    for result, (grads, more) in zip(results, steps, strict=True):
        there = torch.utils._pytree.tree_map_only(Tensor, Tensor.cpu, (grads, more))
        expected = plain.aggregate(there[0], **there[1])
        for mine, other in zip(result, expected, strict=True):
            assert mine is not None
            assert other is not None
            scale = float(other.abs().max())
            torch.testing.assert_close(mine.cpu(), other, rtol=1e-4, atol=1e-4 * scale)
    for mine, other in zip(surgery.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(gs.balancers()))
def test_a_call_of_every_balancer_never_waits(device: torch.device, name: str) -> None:
    layer = nn.Linear(3, 3, device=device)
    options = {"layer": layer} if "reads_gradients" in gs.balancers()[name].properties else {}
    balancer = gs.balancers()[name].build(3, **options).to(device)
    batches = [torch.randn(2, 3, device=device) for _ in range(4)]

    def call(batch: Tensor, some: bool) -> None:
        losses: list[Tensor | None] = list(layer(batch).square().mean(0))
        if some:
            losses[1] = None
        balancer(losses).backward()
        for after in {"update", "end_epoch"} & set(dir(balancer)):
            getattr(balancer, after)(*[losses] * (after == "update"))
        _ = balancer.weights

    for batch, some in zip(batches[:2], (False, True), strict=True):
        call(batch, some)
    torch.cuda.synchronize()
    with no_synchronization():
        torch.cuda._sleep(2_000_000_000)
        for batch, some in zip(batches[2:], (False, True), strict=True):
            call(batch, some)
        assert not torch.cuda.current_stream().query(), "the balancer waited for the device"


def test_launches_go_to_the_current_stream(device: torch.device) -> None:
    rows = torch.zeros(4, 100_000, device=device)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)
        rows.fill_(1.0)  # visible to what follows on this stream alone
        K = OPS.gram([rows], 4, True)
        out = torch.empty(100_000, device=device)
        OPS.combine_([out], [rows], torch.ones(4, dtype=torch.float64, device=device), True)
    stream.synchronize()
    assert torch.equal(K, torch.full_like(K, 100_000.0))
    assert torch.equal(out, torch.full_like(out, 4.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8, 9])
def test_one_launch_gives_the_bits_of_several(device: torch.device, tasks: int, dtype: torch.dtype) -> None:
    """Gradients that stay on chip as a whole, in part, and hardly; off the 16-byte border; the output is one of them."""
    for numel in (1, 1000, 260_001, 2_500_000, 6_000_003):
        G = maker(dtype, device)(tasks, numel + 1)
        for first in (0, 1):
            given = [[*G[:, first : first + numel]], [*maker(dtype, device, 1)(tasks, 77)]]
            entries: list[Tensor | None] = [rows[t] for t in range(tasks) for rows in given]
            keys = [torch.tensor([3, 1], device=device) for _ in range(2)]
            K = OPS.gram(entries, tasks)
            w = OPS.pcgrad_weights(K, None, keys[0])
            separate = [rows[0].clone() for rows in given]
            OPS.combine_(separate, entries, w, False, True)
            out = [rows[0] for rows in given]
            fused_K, fused_w = OPS.pcgrad_(out, entries, tasks, False, None, keys[1], False, 1.0, True)
            assert torch.equal(fused_K, K)
            assert torch.equal(fused_w, w)
            assert torch.equal(keys[0], keys[1])
            assert all(torch.equal(mine, other) for mine, other in zip(out, separate, strict=True))


def test_launches_of_whole_grids_on_several_streams(device: torch.device) -> None:
    """Grids that each want the whole device meet there, and neither wait for each other's blocks nor count them."""
    samples = [Sample([maker(torch.float32, device, seed)(4, 400_001)], 4, stacked=True) for seed in range(4)]
    expected = []
    for given in samples:
        out = given.empty()
        expected.append((out, *OPS.pcgrad_(out, given.grads, 4, True)))
    streams = [torch.cuda.Stream() for _ in samples]
    torch.cuda.synchronize()
    results = []
    for _ in range(50):
        for given, stream in zip(samples, streams, strict=True):
            with torch.cuda.stream(stream):
                out = given.empty()
                results.append((out, *OPS.pcgrad_(out, given.grads, 4, True)))
    torch.cuda.synchronize()
    for k, (out, K, w) in enumerate(results):
        other_out, other_K, other_w = expected[k % 4]
        assert torch.equal(K, other_K)
        assert torch.equal(w, other_w)
        assert torch.equal(out[0], other_out[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("numel", [1, 50_001, 1_000_000])
def test_small_gradients_take_one_launch(device: torch.device, tasks: int, numel: int, dtype: torch.dtype) -> None:
    """Else the tests above compare several launches with themselves."""
    given = Sample([maker(dtype, device)(tasks, numel)], tasks, stacked=True)
    out, key = given.empty(), torch.tensor([1, 0], device=device)
    kernels = kernels_of(lambda: OPS.pcgrad_(out, given.grads, tasks, True, None, key))
    assert ["pcgrad_fused" in name for name in kernels] == [True], kernels


@pytest.mark.parametrize("tasks", [3, 12])
def test_threads_that_want_shared_memory_of_their_own(device: torch.device, tasks: int) -> None:
    """What one of them is given by the device is no less for the other."""
    samples = [maker(torch.float32, device)(tasks, 20, size) for size in (900, 3000)]

    def surgery(G: Tensor) -> list[tuple[Tensor, ...]]:
        results = []
        for _ in range(50):
            out = torch.empty_like(G[0])
            results.append((out, *OPS.pcgrad_samples_([out], [G], tasks, True)))
        return results

    expected = [surgery(G)[0] for G in samples]
    with ThreadPoolExecutor(len(samples)) as pool:
        found = list(pool.map(surgery, samples))
    for results, right in zip(found, expected, strict=True):
        for result in results:
            assert all(torch.equal(mine, other) for mine, other in zip(result, right, strict=True))


def _stacked(device: torch.device, tasks: int) -> Sample:
    return Sample([maker(torch.float32, device)(tasks, 50_001)], tasks, stacked=True)


def _many(device: torch.device, tasks: int) -> Sample:
    """A table of pointers far beyond the 4 KB of a launch's parameters."""
    make = maker(torch.float32, device)
    return Sample([make(1 + p % 50, 3) for _ in range(tasks) for p in range(1000)], tasks)


def _strided(device: torch.device, tasks: int) -> Sample:
    return sample("layouts_differ", tasks, torch.float32, device)


@pytest.mark.parametrize("form", [_stacked, _many, _strided], ids=lambda form: form.__name__[1:])
@pytest.mark.parametrize("tasks", [3, 8, 12, 33])
def test_cuda_graph(device: torch.device, tasks: int, form: Callable[[torch.device, int], Sample]) -> None:
    """A captured pcgrad_ draws a new order at each replay, reads new gradients, and gives the bits of an eager call."""
    given = form(device, tasks)
    key = torch.tensor([7, 0], device=device)
    out = given.empty()

    def step() -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = OPS.pcgrad_(out, given.grads, tasks, given.stacked, None, key)
        return result

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    key.copy_(torch.tensor([7, 0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        K, w = step()
    assert key.tolist() == [7, 0], "capture must not run anything"

    seen = set()
    for replay in range(4):
        for g in given.grads:
            if g is not None and g.is_contiguous():
                g.mul_(0.5)
        graph.replay()
        expected = given.empty()
        eager_K, eager_w = OPS.pcgrad_(expected, given.grads, tasks, given.stacked, None, torch.tensor([7, replay], device=device))
        assert torch.equal(K, eager_K)
        assert torch.equal(w, eager_w)
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
        assert key.tolist() == [7, replay + 1]
        seen.add(tuple(w.tolist()))
    assert len(seen) > 1 or tasks < 4


@pytest.mark.parametrize("form", [_stacked, _many, _strided], ids=lambda form: form.__name__[1:])
def test_cuda_graph_of_graddrop(device: torch.device, form: Callable[[torch.device, int], Sample]) -> None:
    """Each replay draws new numbers, those of the eager call of its step."""
    given, leak = form(device, 3), [0.0, 0.5, 1.0]
    key = torch.tensor([7, 0], device=device)
    out = given.empty()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        OPS.coordinatewise_(out, given.grads, 3, given.stacked, "graddrop", leak, None, key)
    torch.cuda.current_stream().wait_stream(side)
    key.copy_(torch.tensor([7, 0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        OPS.coordinatewise_(out, given.grads, 3, given.stacked, "graddrop", leak, None, key)
    results = []
    for replay in range(3):
        graph.replay()
        expected = given.empty()
        eager = torch.tensor([7, replay], device=device)
        OPS.coordinatewise_(expected, given.grads, 3, given.stacked, "graddrop", leak, None, eager)
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
        assert key.tolist() == [7, replay + 1]
        results.append(torch.cat([o.reshape(-1) for o in out]))
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])


@pytest.mark.parametrize("tasks", [3, 8, 12, 33])
def test_cuda_graph_of_groups(device: torch.device, tasks: int) -> None:
    """Every group draws a new order at each replay, and the key advances once."""
    given = _many(device, tasks)
    key = torch.tensor([7, 0], device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        grouped(given, key)
    torch.cuda.current_stream().wait_stream(side)
    key.copy_(torch.tensor([7, 0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, K, w = grouped(given, key)
    for replay in range(3):
        for g in given.grads:
            if g is not None:
                g.mul_(0.5)
        graph.replay()
        expected, eager_K, eager_w = grouped(given, torch.tensor([7, replay], device=device))
        assert torch.equal(K, eager_K)
        assert torch.equal(w, eager_w)
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
        assert key.tolist() == [7, replay + 1]


@pytest.mark.parametrize("tasks", [1, 3, 8, 12, 32, 33])
@pytest.mark.parametrize("numel", [64, 769, 4096, 100_001])
def test_samples_agree_with_the_cpu(device: torch.device, tasks: int, numel: int) -> None:
    """Samples of a warp, of a block, of more shared memory than a launch gets without asking, and of none that is enough."""
    G = maker(torch.float32, device)(tasks, 20, numel) - 0.1
    out, plain, key = torch.empty_like(G[0]), torch.empty_like(G[0], device="cpu"), torch.tensor([5, 6], device=device)
    K, w = OPS.pcgrad_samples_([out], [G], tasks, True, None, key)
    exact = OPS.gram_samples([G.cpu()], tasks, True)
    for mine, other in zip(K, exact.to(device), strict=True):
        assert_gram_close(mine, other, torch.float32)
    assert torch.equal(K, OPS.gram_samples([G], tasks, True))
    torch.testing.assert_close(w.cpu(), OPS.pcgrad_weights(K.cpu(), None, torch.tensor([5, 6])), rtol=1e-9, atol=0)
    OPS.combine_samples_([plain], [G.cpu()], w.cpu(), True)
    torch.testing.assert_close(out.cpu(), plain, rtol=1e-5, atol=1e-4)
    assert key.tolist() == [5, 7]


@pytest.mark.parametrize("tasks", [3, 12, 33])
def test_cuda_graph_of_samples(device: torch.device, tasks: int) -> None:
    """Every sample draws a new order at each replay; and neither capture nor an eager call waits."""
    G, key = maker(torch.float32, device)(tasks, 20, 5000), torch.tensor([7, 0], device=device)
    out = torch.empty_like(G[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), no_synchronization():
        OPS.pcgrad_samples_([out], [G], tasks, True, None, key)
    torch.cuda.current_stream().wait_stream(side)
    key.copy_(torch.tensor([7, 0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        K, w = OPS.pcgrad_samples_([out], [G], tasks, True, None, key)
    for replay in range(3):
        G.mul_(0.5)
        graph.replay()
        expected = torch.empty_like(out)
        eager_K, eager_w = OPS.pcgrad_samples_([expected], [G], tasks, True, None, torch.tensor([7, replay], device=device))
        assert torch.equal(K, eager_K)
        assert torch.equal(w, eager_w)
        assert torch.equal(out, expected)
        assert key.tolist() == [7, replay + 1]


def test_another_device_than_the_current_one(device: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    rows = maker(torch.float32, "cuda:1")(3, 5000)
    with torch.cuda.device(0):
        K = OPS.gram([rows], 3, True)
    assert K.device == rows.device
    assert_gram_close(K, rows.double() @ rows.double().T, torch.float32)
    with pytest.raises(RuntimeError, match="on the device of the first gradient"):
        OPS.gram([rows[0], rows[1].to("cuda:0"), rows[2]], 3)


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "graddrop", "dbmtl"])
def test_a_step_on_another_device_than_the_current_one(device: torch.device, name: str) -> None:
    """Memory, orders and result lie with the gradients, and a stream that is current there is the one that is used."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    options: dict[str, Any] = {"seed": 3} if "seed" in gs.methods()[name].options else {}
    there, here = (gs.GradientAggregator(name, tasks=3, **options) for _ in range(2))
    rows = maker(torch.float32, "cuda:1")(3, 70_001)
    stream = torch.cuda.Stream("cuda:1")
    for _ in range(2):
        with torch.cuda.stream(stream), torch.cuda.device(0):
            found = there.aggregate(rows)
        stream.synchronize()
        assert found.device == rows.device
        assert torch.cuda.current_device() == 0
        assert torch.equal(found.cpu(), here.aggregate(rows.to("cuda:0")).cpu())
