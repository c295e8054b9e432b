"""Methods that keep buffers of the gradients' size: their sequences, and what may and may not change their memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from oracles.buffered import DBMTLOracle, ExcessMTLOracle, MoCoOracle
from tolerances import DTYPES, TOLERANCES
from torch import Tensor

import gradsurgery as gs

Oracle = Callable[..., Tensor]

BUFFERED = sorted(name for name, spec in gs.methods().items() if spec.family == "buffered")
ORACLES: dict[str, Callable[..., Oracle]] = {"moco": MoCoOracle, "dbmtl": DBMTLOracle, "excessmtl": ExcessMTLOracle}
VARIANTS = [
    ("moco", {}),
    ("moco", {"beta": 0.3, "beta_sigma": 0.0, "gamma": 2.0, "gamma_sigma": 0.0, "rho": 0.2}),
    ("dbmtl", {}),
    ("dbmtl", {"beta": 0.7, "beta_sigma": 0.5}),
    ("dbmtl", {"beta": 0.0}),
    ("excessmtl", {}),
    ("excessmtl", {"step": 1.0}),
    ("excessmtl", {"step": 0.02, "init": "simplex"}),
]


def steps(count: int, tasks: int, numel: int, device: Any = "cpu", seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """(G [T, N], positive losses [T]) of each step."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(tasks, numel, generator=generator, dtype=torch.float64).to(device),
            (torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.2).to(device),
        )
        for _ in range(count)
    ]


def memory(surgery: gs.GradientAggregator) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in surgery.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_buffered_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(BUFFERED)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_is_the_papers(method: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    for tasks in (1, 2, 3, 9):
        oracle, surgery = ORACLES[method](**options), gs.GradientAggregator(method, **options)
        for G, losses in steps(6, tasks, 700, device):
            given = G.to(dtype)
            expected = oracle(given.cpu(), losses.tolist()).to(device)
            out = surgery.aggregate(given, losses if gs.methods()[method].needs else None)
            assert isinstance(out, Tensor)
            # Buffers of float32 carry one rounding a step; sums of 16 bits are rounded to them once.
            allowed = 3 * TOLERANCES[dtype].rounding + (1e-12 if dtype == torch.float64 else 1e-6)
            assert float((out.double() - expected).abs().max()) <= allowed * float(expected.abs().max()) * tasks
            assert abs(surgery.statistics().norm - float(expected.norm())) <= allowed * tasks * float(expected.norm())


@pytest.mark.parametrize("method", BUFFERED)
def test_every_form_gives_one_answer(method: str, device: torch.device) -> None:
    forms: list[Callable[[Tensor], Any]] = [
        lambda G: G.reshape(3, 4, 5, 6),
        lambda G: list(G.reshape(3, 4, 5, 6)),
        lambda G: [row.reshape(2, 4, 5, 3).contiguous(memory_format=torch.channels_last) for row in G],
        lambda G: [[row[:50], row[50:51].reshape(()), row[51:]] for row in G],
    ]
    results = []
    for form in forms:
        surgery = gs.GradientAggregator(method)
        for G, losses in steps(3, 3, 120, device):
            out = surgery.aggregate(form(G.float()), losses)
        flat = torch.cat([part.reshape(-1) for part in out]) if isinstance(out, list) else out.reshape(-1)
        results.append(flat)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_absent_tasks_are_skipped(method: str, options: dict[str, Any], device: torch.device) -> None:
    pattern = [(True, True, True), (True, False, True), (False, True, True), (False, False, True), (True, True, True)]
    oracle, surgery = ORACLES[method](**options), gs.GradientAggregator(method, tasks=3, **options)
    for (G, losses), present in zip(steps(5, 3, 50, device), pattern, strict=True):
        before = memory(surgery)
        out = surgery.aggregate([row if here else None for row, here in zip(G, present, strict=True)], losses)
        expected = oracle(G.cpu(), losses.tolist(), present).to(device)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
        weights = surgery.statistics().weights
        for t, here in enumerate(present):
            if not here:
                assert weights[t] == 0
                if before:
                    assert torch.equal(before["buffer_0"][t], memory(surgery)["buffer_0"][t])


@pytest.mark.parametrize("method", BUFFERED)
def test_a_gap_of_a_present_task_counts_as_zeros(method: str, device: torch.device) -> None:
    one, other = gs.GradientAggregator(method), gs.GradientAggregator(method)
    for k, (G, losses) in enumerate(steps(3, 2, 20, device)):
        pieces: list[list[Tensor | None]] = [[row[:8], row[8:]] for row in G]
        zeros = [list(row) for row in pieces]
        if k:
            pieces[1][0], zeros[1][0] = None, torch.zeros_like(G[0, :8])
        a, b = one.aggregate(pieces, losses), other.aggregate(zeros, losses)
        torch.testing.assert_close(a, b)
    assert same(memory(one), memory(other))


@pytest.mark.parametrize("method", BUFFERED)
@pytest.mark.parametrize("broken", ["nan", "inf", "overflow", "loss"])
def test_a_step_that_a_scaler_skips_leaves_the_memory_alone(method: str, broken: str, device: torch.device) -> None:
    if broken == "loss" and not gs.methods()[method].needs:
        pytest.skip("a method that asks for no losses")
    surgery = gs.GradientAggregator(method)
    for G, losses in steps(2, 3, 3000, device):
        surgery.aggregate(G.half(), losses)
    untouched = copy.deepcopy(surgery)
    before = memory(surgery)
    ((G, losses),) = steps(1, 3, 3000, device, seed=5)
    bad, bad_losses = G.half(), losses.clone()
    if broken == "overflow":
        bad[1] *= 60_000
        assert bad[1].isinf().any()
        assert bad[1].isfinite().any()
    elif broken == "loss":
        bad_losses[1] = torch.nan
    else:
        bad[1, 2999] = float(broken)
    out = surgery.aggregate(bad, bad_losses)
    assert isinstance(out, Tensor)
    assert out.isnan().all(), "a gradient scaler must see that this step is to be skipped"
    assert same(memory(surgery), before)
    assert torch.equal(surgery.aggregate(G.half(), losses), untouched.aggregate(G.half(), losses))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", BUFFERED)
def test_zero_gradients(method: str, device: torch.device) -> None:
    oracle, surgery = ORACLES[method](), gs.GradientAggregator(method)
    for k, (G, losses) in enumerate(steps(4, 3, 30, device)):
        if k != 2:
            G[1] = 0
            losses[1] = 0  # nothing is left to learn, and nothing to divide by
        expected = oracle(G.cpu(), losses.tolist()).to(device)
        torch.testing.assert_close(surgery.aggregate(G, losses), expected, rtol=1e-10, atol=1e-12)
    nothing = gs.GradientAggregator(method)
    out = nothing.aggregate(torch.zeros(3, 30, device=device), losses)
    assert torch.equal(out, torch.zeros(30, device=device))  # type: ignore[arg-type]


def test_losses_that_are_not_positive_give_nan_for_db_mtl() -> None:
    for value in (0.0, -1.0):
        surgery = gs.GradientAggregator("dbmtl")
        out = surgery.aggregate(torch.randn(2, 5), torch.tensor([1.0, value]))
        assert torch.as_tensor(out).isnan().all()
        assert not surgery.buffer_0.any()
        assert surgery.dbmtl_count == 0


@pytest.mark.parametrize("method", BUFFERED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_result_scales_with_the_gradients_as_declared(method: str, dtype: torch.dtype, device: torch.device) -> None:
    degree = gs.methods()[method].degree
    assert degree is not None
    for factor in (2.0**-20, 2.0**20):
        plain, scaled = gs.GradientAggregator(method), gs.GradientAggregator(method)
        for G, losses in steps(4, 3, 200, device):
            a = plain.aggregate(G.to(dtype), losses)
            b = scaled.aggregate((G * factor).to(dtype), losses)
            torch.testing.assert_close(
                torch.as_tensor(b).double() / factor**degree, torch.as_tensor(a).double(), rtol=1e-6 if degree else 1e-5, atol=1e-7
            )


def test_excess_risks_of_gradients_whose_squares_float32_cannot_hold() -> None:
    for scale in (1e-28, 1e28):
        oracle, surgery = ExcessMTLOracle(step=1.0), gs.GradientAggregator("excessmtl", step=1.0)
        for G, _ in steps(4, 3, 100):
            given = (G * scale).float()
            torch.testing.assert_close(surgery.aggregate(given), oracle(given).float(), rtol=1e-5, atol=0)


def permutation_equivariant(method: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    one, other = gs.GradientAggregator(method), gs.GradientAggregator(method)
    for G, losses in steps(5, 4, 60):
        out, permuted = one.aggregate(G, losses), other.aggregate(G[order], losses[order])
        torch.testing.assert_close(permuted, out, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other.statistics().weights, one.statistics().weights[order], rtol=1e-9, atol=1e-12)


def weights_nonnegative(method: str) -> None:
    surgery = gs.GradientAggregator(method)
    for G, losses in steps(20, 5, 8):
        surgery.aggregate(G, losses)
        assert bool((surgery.statistics().weights >= 0).all())


def weights_sum_to_one(method: str) -> None:
    surgery = gs.GradientAggregator(method)
    for G, losses in steps(20, 5, 8):
        surgery.aggregate(G, losses)
        assert abs(float(surgery.statistics().weights.sum()) - 1) <= 1e-14


PROOFS = {proof.__name__: proof for proof in (permutation_equivariant, weights_nonnegative, weights_sum_to_one)}


@pytest.mark.parametrize(("method", "declared"), [(name, p) for name in BUFFERED for p in sorted(gs.methods()[name].properties)])
def test_declared_properties_hold_over_a_sequence(method: str, declared: str) -> None:
    PROOFS[declared](method)


@pytest.mark.parametrize("method", BUFFERED)
def test_a_call_without_memory_takes_the_first_step(method: str, device: torch.device) -> None:
    ((G, losses),) = steps(1, 3, 40, device)
    surgery = gs.GradientAggregator(method)
    first = surgery.aggregate(G, losses)
    for _ in range(2):
        assert torch.equal(gs.aggregate(G, method, losses=losses), first)  # type: ignore[arg-type]
    out = torch.empty(40, dtype=torch.float64, device=device)
    assert gs.aggregate(list(G), method, losses=losses.tolist(), out=out) is out
    torch.testing.assert_close(out, first)


@pytest.mark.parametrize("method", BUFFERED)
def test_out_may_be_a_gradient(method: str, device: torch.device) -> None:
    ((G, losses),) = steps(1, 3, 40, device)
    expected = gs.aggregate(G.clone(), method, losses=losses)
    rows = list(G)
    assert gs.aggregate(rows, method, losses=losses, out=rows[1]) is rows[1]
    torch.testing.assert_close(rows[1], expected)


@pytest.mark.parametrize("method", BUFFERED)
def test_tasks_that_appear_later(method: str, device: torch.device) -> None:
    def feed(surgery: gs.GradientAggregator, names: Sequence[str], seed: int) -> Tensor:
        z = torch.zeros(2, 6, dtype=torch.float64, device=device, requires_grad=True)
        ((G, losses),) = steps(1, len(names), 12, device, seed)
        views = surgery.split(z, names)
        told = {
            name: (view * row.reshape(2, 6)).sum() + loss for name, view, row, loss in zip(names, views, G, losses, strict=True)
        }
        torch.stack(list(surgery.observe(told).values())).sum().backward()
        assert z.grad is not None
        return z.grad

    surgery = gs.GradientAggregator(method)
    feed(surgery, ["a", "b"], 0)
    kept = surgery.buffer_0.clone()
    feed(surgery, ["b", "c"], 1)
    assert surgery.tasks == ("a", "b", "c")
    assert surgery.buffer_0.shape == (3, 2, 6)
    assert torch.equal(surgery.buffer_0[0], kept[0])
    assert not torch.equal(surgery.buffer_0[1], kept[1])
    assert feed(surgery, ["a", "b", "c"], 2).isfinite().all()


@pytest.mark.parametrize("method", BUFFERED)
def test_shapes_that_change_are_an_error_that_says_what_to_do(method: str, device: torch.device) -> None:
    losses = [1.0, 2.0]
    surgery = gs.GradientAggregator(method)
    surgery.aggregate(torch.randn(2, 8, 3, device=device), losses)  # type: ignore[arg-type]
    before = memory(surgery)
    with pytest.raises(ValueError, match=rf"shapes \[\[8, 3\]\].*{method}.*found \[\[5, 3\]\].*drop_last=True"):
        surgery.aggregate(torch.randn(2, 5, 3, device=device), losses)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="drop_last=True"):  # while the number of tasks grows, too
        surgery.aggregate(torch.randn(3, 5, 3, device=device), [*losses, 1.0])  # type: ignore[arg-type]
    assert same(memory(surgery), before)

    surgery = gs.GradientAggregator(method)
    a, b = torch.randn(4, device=device), torch.randn(4, device=device)
    surgery.aggregate([[a, None], [b, None]], losses)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"positions \[0\].*{method}.*found them at \[1\]"):
        surgery.aggregate([[None, a], [None, b]], losses)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", BUFFERED)
def test_half_leaves_the_memory_its_types(method: str) -> None:
    surgery = gs.GradientAggregator(method)
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3), surgery])
    (first, second) = steps(2, 2, 10)
    surgery.aggregate(first[0].float(), first[1])
    before = memory(surgery)
    model.half()
    assert model[0].weight.dtype == torch.float16
    assert same(memory(surgery), before)
    surgery.aggregate(second[0].half(), second[1])


@pytest.mark.parametrize("method", BUFFERED)
def test_the_buffers_lie_as_the_gradients_do(method: str, device: torch.device) -> None:
    rows = [torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    surgery = gs.GradientAggregator(method)
    surgery.aggregate(rows, [1.0, 2.0])  # type: ignore[list-item]
    assert surgery.buffer_0[0].is_contiguous(memory_format=torch.channels_last)
    assert surgery.buffer_0.dtype == torch.float32
    resumed = gs.GradientAggregator(method)
    resumed.load_state_dict(surgery.state_dict())
    assert resumed.buffer_0.stride() == surgery.buffer_0.stride()


@pytest.mark.parametrize("method", BUFFERED)
def test_a_gram_matrix_is_not_enough(method: str) -> None:
    with pytest.raises(ValueError, match=rf"method: '{method}' keeps buffers of the gradients' size.*GradientAggregator"):
        gs.weights(torch.eye(2, dtype=torch.float64), method)


@pytest.mark.parametrize("method", [name for name in BUFFERED if gs.methods()[name].needs])
def test_losses_that_were_not_told(method: str) -> None:
    G = torch.randn(2, 4)
    with pytest.raises(ValueError, match=rf"losses: method '{method}' needs the tasks' losses"):
        gs.aggregate(G, method)
    surgery = gs.GradientAggregator(method, tasks=["a", "b"])
    with pytest.raises(ValueError, match=rf"losses: method '{method}' needs the tasks' losses"):
        surgery.aggregate(G)
    with pytest.raises(ValueError, match=r"losses: expected one of every task with a gradient, found none of b"):
        surgery.aggregate(G, {"a": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("moco", {"beta": 0.0}, r"beta: expected a finite number > 0 and <= 1, found 0.0"),
        ("moco", {"gamma": -1.0}, r"gamma: expected a finite number >= 0, found -1.0"),
        ("moco", {"rho": float("nan")}, r"rho: expected a finite number >= 0, found nan"),
        ("dbmtl", {"beta": 1.0}, r"beta: expected a finite number >= 0 and < 1, found 1.0"),
        ("excessmtl", {"step": 0.0}, r"step: expected a finite number > 0, found 0.0"),
        ("excessmtl", {"init": "zeros"}, r"init: expected 'ones' or 'simplex', found 'zeros'"),
    ],
)
def test_options_out_of_bounds(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gs.GradientAggregator(method, **options)


def test_an_option_that_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"beta: expected a number, found str"):
        gs.GradientAggregator("moco", beta="large")


@pytest.mark.parametrize("method", BUFFERED)
def test_groups_are_refused(method: str) -> None:
    built = gs.GradientAggregator(method).method
    from gradsurgery.capture.gradients import TaskGradients

    given = TaskGradients.of(torch.randn(2, 4))
    with pytest.raises(ValueError, match=rf"group_by: method '{method}' works on the whole gradient"):
        built.surgery_(given.empty(), given, groups=(0,))


@pytest.mark.parametrize("method", BUFFERED)
def test_compiled(method: str, device: torch.device) -> None:
    ((G, losses),) = steps(1, 3, 40, device)
    torch.compiler.reset()
    run = torch.compile(lambda g, told: gs.aggregate(g, method, losses=told), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(G, losses), gs.aggregate(G, method, losses=losses))


def test_an_excess_weight_that_vanished_comes_back() -> None:
    surgery, unit = gs.GradientAggregator("excessmtl", step=1.0), torch.ones(2, 4, dtype=torch.float64)
    weights = []
    for sizes in ([1.0, 1.0], [1e4, 1.0], [1.0, 1e6], [1.0, 1.0]):
        surgery.aggregate(torch.tensor(sizes, dtype=torch.float64)[:, None] * unit)
        weights.append(surgery.statistics().weights.tolist())
        assert surgery.excess_log_weights.isfinite().all()
    assert weights == [[1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]


def test_an_excess_risk_out_of_range_of_its_baseline_changes_no_weight() -> None:
    surgery = gs.GradientAggregator("excessmtl")
    surgery.aggregate(torch.full((2, 3), 1e-160, dtype=torch.float64))
    before = surgery.excess_log_weights.clone()
    out = surgery.aggregate(torch.tensor([[1e150] * 3, [1e-160] * 3], dtype=torch.float64))
    assert torch.as_tensor(out).isnan().all()
    assert torch.equal(surgery.excess_log_weights, before)


@pytest.mark.parametrize("method", BUFFERED)
def test_a_wider_dtype_than_the_buffers_is_refused(method: str) -> None:
    needs = gs.methods()[method].needs
    losses = {"losses": [torch.tensor(1.0), torch.tensor(2.0)]} if "losses" in needs else {}
    surgery = gs.GradientAggregator(method, tasks=2)
    rows = [torch.randn(4), torch.randn(4)]
    surgery.aggregate([row.half() for row in rows], **losses)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in surgery.named_buffers()}
    with pytest.raises(
        ValueError, match=rf"gradients: expected .* method '{method}' keeps buffers of torch.float32; found float64"
    ):
        surgery.aggregate([row.double() for row in rows], **losses)  # type: ignore[arg-type]
    for name, tensor in surgery.named_buffers():
        assert torch.equal(tensor, before[name])
    surgery.aggregate(rows, **losses)  # type: ignore[arg-type]
    wide = gs.GradientAggregator(method, tasks=2)
    wide.aggregate([row.double() for row in rows], **losses)  # type: ignore[arg-type]
    wide.aggregate(rows, **losses)  # type: ignore[arg-type]
    assert wide.get_buffer("buffer_0").dtype == torch.float64
