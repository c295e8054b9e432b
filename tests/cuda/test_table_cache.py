"""Tables too large for a launch's parameters: written to the device by few launches, and not again while they stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cuda_emulator import Emulator
from tolerances import TOLERANCES
from torch import Tensor

Array = npt.NDArray[np.int64]


@pytest.fixture(autouse=True)
def _new_cache(emulator: Emulator) -> Iterator[None]:
    emulator.library.gs_forget_tables()
    yield
    emulator.library.gs_driver_version(13000)
    emulator.library.gs_out_of_memory(0)


@dataclass
class Step:
    """Gradients [P] of T tasks, task-major, and where their combination goes."""

    pieces: int
    tasks: int = 3
    seed: int = 0
    grads: list[Tensor | None] = field(init=False)
    out: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.grads = [torch.randn(5, generator=generator) for _ in range(self.tasks * self.pieces)]
        self.out = [torch.full((5,), torch.nan) for _ in range(self.pieces)]

    def matrix(self) -> Tensor:
        """[T, N] in float64"""
        whole = [torch.zeros(5) if g is None else g for g in self.grads]
        return torch.stack([torch.cat(whole[t * self.pieces : (t + 1) * self.pieces]) for t in range(self.tasks)]).double()

    def gram(self, emulator: Emulator) -> dict[str, int]:
        """The launches of one call, whose result is checked."""
        with emulator.launches() as launches:
            K = emulator.operators.gram(self.grads, self.tasks, False)
        G = self.matrix()
        norms = G.norm(dim=1)
        assert bool(((K - G @ G.T).abs() <= TOLERANCES[torch.float32].gram * torch.outer(norms, norms)).all())
        return launches

    def combine(self, emulator: Emulator) -> dict[str, int]:
        w = torch.linspace(-1.0, 2.0, self.tasks, dtype=torch.float64)
        for target in self.out:
            target.fill_(torch.nan)
        with emulator.launches() as launches:
            emulator.operators.combine_(self.out, self.grads, w, False)
        G = self.matrix()
        allowed = TOLERANCES[torch.float32].combine * (w.abs() @ G.abs())
        assert bool(((torch.cat(self.out) - w @ G).abs() <= allowed).all())
        return launches


def table(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).integers(1 << 62, size=count)


def uploads(emulator: Emulator, words: Array, stream: int = 0, device: int = 0) -> int:
    """How many launches it takes to have the words in the cache; that they are there is checked."""
    with emulator.launches() as launches, emulator.held(words, stream, device) as memory:
        assert memory is not None
        assert np.array_equal(memory, words)
    return launches["upload_slice"]


# --- through the operators ---


def test_a_thousand_parameters_are_one_launch_a_pass(emulator: Emulator) -> None:
    step = Step(1000)
    assert step.gram(emulator) == {"upload_slice": 2, "gram_partials_cuda": 1, "gram_finish_cuda": 1}
    assert step.gram(emulator) == {"gram_partials_cuda": 1, "gram_finish_cuda": 1}
    assert step.combine(emulator) == {"upload_slice": 1, "combine_cuda": 1}, "the rows are known from the Gram matrix"
    assert step.combine(emulator) == {"combine_cuda": 1}


def test_another_address_is_another_table(emulator: Emulator) -> None:
    step = Step(120)
    step.gram(emulator)
    before = step.grads[200]
    step.grads[200] = torch.randn(5)
    assert step.gram(emulator)["upload_slice"] == 1
    step.grads[201] = None
    assert step.gram(emulator)["upload_slice"] == 1
    step.grads[201], step.grads[200] = torch.randn(5), before
    step.gram(emulator)
    assert step.gram(emulator)["upload_slice"] == 0


def test_the_same_addresses_with_other_values_need_nothing(emulator: Emulator) -> None:
    step = Step(120)
    step.gram(emulator)
    for g in step.grads:
        assert g is not None
        g.mul_(-3.0)
    assert step.gram(emulator)["upload_slice"] == 0


def test_small_outputs_ride_beside_large_rows(emulator: Emulator) -> None:
    step = Step(120)
    assert step.gram(emulator)["upload_slice"] == 1
    assert step.combine(emulator)["upload_slice"] == 0
    step.out = [torch.empty(5) for _ in step.out]
    assert step.combine(emulator)["upload_slice"] == 0


def test_small_tables_are_not_uploaded(emulator: Emulator) -> None:
    step = Step(80)
    assert step.combine(emulator) == {"combine_cuda": 1}, "80 * (3 + 2 + 1) words"


def test_outputs_of_another_type_have_entries_of_their_own(emulator: Emulator) -> None:
    step = Step(120)
    step.gram(emulator)
    step.out = [torch.empty(5, dtype=torch.float64) for _ in step.out]
    assert step.combine(emulator)["upload_slice"] == 1
    assert step.combine(emulator)["upload_slice"] == 0
    assert step.gram(emulator)["upload_slice"] == 0


def test_a_captured_call_writes_what_it_reads(emulator: Emulator) -> None:
    """In a CUDA graph, at each replay, whatever the cache holds then; and leaves nothing of its memory behind."""
    known, unknown = Step(120, seed=1), Step(120, seed=2)
    known.gram(emulator)
    with emulator.capture():
        for step in (known, unknown, known, unknown):
            assert step.gram(emulator)["upload_slice"] == 1
    assert known.gram(emulator)["upload_slice"] == 0
    assert unknown.gram(emulator)["upload_slice"] == 1


def test_tables_that_push_each_other_out(emulator: Emulator) -> None:
    """Each fills most of the cache: right in every order, and kept only when it follows itself."""
    first, second = (Step(100, tasks=1000, seed=seed) for seed in (1, 2))
    for step in (first, second):
        step.grads[300:] = [None] * (len(step.grads) - 300)
        step.grads[-50:] = [torch.randn(5) for _ in range(50)]
    many = first.combine(emulator)["upload_slice"]
    assert many > 10
    assert [step.combine(emulator)["upload_slice"] for step in (second, first, first, second)] == [many, many, 0, many]


def test_more_than_the_cache_holds(emulator: Emulator) -> None:
    step = Step(100, tasks=1400)
    step.grads[300:] = [None] * (len(step.grads) - 300)
    assert step.combine(emulator)["upload_slice"] == step.combine(emulator)["upload_slice"] > 10


def test_large_tables_of_groups_rules_and_buffers(emulator: Emulator) -> None:
    """Every part of a large table, against the same operator on the CPU; the second call finds it in the cache."""
    P, T = 120, 3
    step = Step(P)
    groups = [p % 7 for p in range(P)]
    options, uniform = [0.0, 0.5, 1.0], torch.rand(5 * P, dtype=torch.float64)
    w = torch.randn(7, T, dtype=torch.float64)
    scales, rate = torch.ones(T, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)

    def run(ops: object) -> list[Tensor]:
        K = ops.gram(step.grads, T, False, groups)  # type: ignore[attr-defined]
        combined, dropped = ([torch.full((5,), torch.nan) for _ in range(P)] for _ in range(2))
        ops.combine_(combined, step.grads, w, False, False, groups)  # type: ignore[attr-defined]
        ops.coordinatewise_(dropped, step.grads, T, False, "graddrop", options, uniform, None)  # type: ignore[attr-defined]
        buffers = [torch.ones(T, 5) for _ in range(P)]
        averaged = ops.ema_gram_(buffers, step.grads, T, False, scales, rate, None)  # type: ignore[attr-defined]
        return [K, torch.cat(combined), torch.cat(dropped), averaged, torch.cat(buffers)]

    expected = run(torch.ops.gradsurgery)
    for _ in range(2):
        for mine, other in zip(run(emulator.operators), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


# --- the cache itself ---


@pytest.mark.parametrize(
    ("version", "count", "launches"),
    [(13000, 481, 1), (13000, 4080, 1), (13000, 4081, 2), (12010, 5000, 2), (12000, 5000, 11), (12000, 480, 1)],
)
def test_slices_are_as_large_as_the_driver_launches(emulator: Emulator, version: int, count: int, launches: int) -> None:
    emulator.library.gs_driver_version(version)
    assert uploads(emulator, table(0, count)) == launches


def test_one_word_makes_a_difference(emulator: Emulator) -> None:
    words = table(0, 600)
    assert uploads(emulator, words) == 1
    for place in (0, 300, 599):
        other = words.copy()
        other[place] ^= 1 << 40
        assert uploads(emulator, other) == 1
    assert uploads(emulator, words[:599]) == 1, "what begins like another is another"
    assert uploads(emulator, words) == 0


def test_a_stream_does_not_read_what_another_wrote(emulator: Emulator) -> None:
    """There is no order between them, nor between devices."""
    words = table(0, 600)
    places = set()
    for stream, device in ((0, 0), (1, 0), (0, 1)):
        assert uploads(emulator, words, stream, device) == 1
        with emulator.held(words, stream, device) as memory:
            assert memory is not None
            places.add(memory.ctypes.data)
    assert len(places) == 3


def test_streams_beyond_the_last_ring_are_not_cached(emulator: Emulator) -> None:
    words = table(0, 8)
    for stream in range(emulator.library.gs_max_rings()):
        uploads(emulator, words, stream)
    with emulator.held(words, 1000) as memory:
        assert memory is None
    assert uploads(emulator, words, 0) == 0


def test_without_memory_for_the_cache_calls_go_on(emulator: Emulator) -> None:
    emulator.library.gs_out_of_memory(1)
    step = Step(120)
    for _ in range(2):
        assert step.gram(emulator)["upload_slice"] == 1
    assert emulator.library.gs_last_error() == 0, "it would be taken for that of a launch"


@pytest.mark.parametrize("seed", range(3))
def test_what_is_in_use_is_never_overwritten(emulator: Emulator, seed: int) -> None:
    """Tables of many sizes, some in use for long, many times the size of the cache: each is whole for as long as it is in use."""
    draw = np.random.default_rng(seed)
    tables = [table(k, int(draw.integers(1, emulator.library.gs_ring_words() // 2))) for k in range(8)]
    using: list[tuple[ExitStack, Array, Array]] = []
    taken = refused = 0
    with ExitStack() as all_uses:
        for _ in range(60):
            words = tables[draw.integers(len(tables))]
            use = all_uses.enter_context(ExitStack())
            memory = use.enter_context(emulator.held(words))
            if memory is None:
                refused += 1
            else:
                taken += 1
                using.append((use, memory, words))
            assert all(np.array_equal(memory, words) for _, memory, words in using)
            while len(using) > draw.integers(2, 6):
                using.pop(draw.integers(len(using)))[0].close()
    assert taken > 20
    assert refused > 0


def test_threads_may_share_a_stream(emulator: Emulator) -> None:
    tables = [table(k, 30_000 + k) for k in range(6)]

    def work(thread: int) -> int:
        taken = 0
        draw = np.random.default_rng(thread)
        for _ in range(8):
            words = tables[draw.integers(len(tables))]
            with emulator.held(words) as memory:
                if memory is not None:
                    taken += 1
                    for _ in range(20):
                        assert np.array_equal(memory, words)
        return taken

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(work, range(4))) > 16
