"""GradientAggregator.aggregate: explicit gradients with memory, names and statistics; every method resumes mid-sequence."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from host_copies import NoHostCopies
from torch import Tensor

import gradsurgery as gs
from gradsurgery.capture.gradients import TaskGradients

SPECS = gs.methods()
T = 4


def build(method: str, **more: Any) -> gs.GradientAggregator:
    options = {"seed": 3} if "seed" in SPECS[method].options else {}
    return gs.GradientAggregator(method, **options, **more)


def remembers(method: str) -> bool:
    built = SPECS[method].build()
    return bool(built.initial_state() or built.task_state(TaskGradients.of(torch.ones(T, 3))))


STATEFUL = sorted(name for name in SPECS if remembers(name))
STATELESS = sorted(set(SPECS) - set(STATEFUL))


def draw(seed: int, device: Any = "cpu", numel: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """G [T, N], the losses [T], and the second batch's G."""
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(T, numel, generator=generator)
    second = G + 0.3 * torch.randn(T, numel, generator=generator)
    return G.to(device), (torch.rand(T, generator=generator) + 0.5).to(device), second.to(device)


def step(surgery: gs.GradientAggregator, seed: int, device: Any = "cpu") -> Tensor:
    G, losses, second = draw(seed, device)
    needs = surgery.method.spec.needs
    out = surgery.aggregate(G, losses if "losses" in needs else None, against=second if "against" in needs else None)
    assert isinstance(out, Tensor)
    return out


def test_there_are_both_kinds() -> None:
    assert {"pcgrad", "moco", "dbmtl", "excessmtl", "sdmgrad", "modo"} <= set(STATEFUL)
    assert {"sum", "mean", "krum"} <= set(STATELESS)


@pytest.mark.parametrize("method", STATELESS)
def test_without_memory_it_is_the_function(method: str, device: torch.device) -> None:
    surgery = build(method)
    G, losses, _ = draw(0, device)
    told = losses if SPECS[method].needs else None
    expected = gs.aggregate(G, method, losses=told)
    assert torch.equal(surgery.aggregate(G, told), expected)  # type: ignore[arg-type]
    forms = (list(G), [[row] for row in G], [[row[:7], None, row[7:]] for row in G])
    for form in forms:
        out, plain = surgery.aggregate(form, told), gs.aggregate(form, method, losses=told)
        pairs = [(out, plain)] if isinstance(out, Tensor) else list(zip(out, plain, strict=True))
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", STATEFUL)
def test_with_memory_it_begins_as_the_function(method: str, device: torch.device) -> None:
    G, losses, second = draw(0, device)
    needs, options = SPECS[method].needs, {"seed": 3} if "seed" in SPECS[method].options else {}
    given = {"losses": losses if "losses" in needs else None, "against": second if "against" in needs else None}
    assert torch.equal(step(build(method), 0, device), gs.aggregate(G, method, **given, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", sorted(SPECS))
def test_every_method_resumes_to_the_same_bits(method: str, device: torch.device) -> None:
    surgery = build(method)
    for seed in range(3):
        step(surgery, seed, device)
    file = io.BytesIO()
    torch.save(surgery.state_dict(), file)
    copied = copy.deepcopy(surgery)
    file.seek(0)
    resumed = build(method).to(device)
    resumed.load_state_dict(torch.load(file))
    for seed in range(3, 6):
        expected = step(surgery, seed, device)
        for other in (resumed, copied):
            assert torch.equal(step(other, seed, device), expected)
            if surgery.method.finds_gram:
                assert torch.equal(other.statistics().gram, surgery.statistics().gram)
                assert torch.equal(other.statistics().weights, surgery.statistics().weights)
    assert resumed.statistics().step == 5
    for (name, one), (other_name, two) in zip(surgery.named_buffers(), resumed.named_buffers(), strict=True):
        assert name == other_name
        assert torch.equal(one, two)


@pytest.mark.parametrize("method", STATEFUL)
def test_memory_matters(method: str) -> None:
    """Without what it remembers, some step would come out otherwise: else the test above shows nothing."""
    surgery = build(method)
    outs = [step(surgery, seed % 2) for seed in range(6)]
    fresh = [step(build(method), seed) for seed in range(2)]
    assert not all(torch.equal(out, fresh[k % 2]) for k, out in enumerate(outs))


# GradDrop reduces nothing that could tell it before it draws.
@pytest.mark.parametrize("method", sorted({*STATEFUL} - {"graddrop"}))
def test_a_step_that_is_not_finite_changes_no_memory(method: str, device: torch.device) -> None:
    surgery = build(method)
    step(surgery, 0, device)
    before = {name: tensor.clone() for name, tensor in surgery.named_buffers()}
    G, losses, second = draw(1, device)
    needs = surgery.method.spec.needs
    for value in (torch.nan, torch.inf):
        bad = G.clone()
        bad[2, 5] = value
        out = surgery.aggregate(bad, losses if "losses" in needs else None, against=second if "against" in needs else None)
        assert torch.as_tensor(out).isnan().any()
        assert all(torch.equal(before[name], tensor) for name, tensor in surgery.named_buffers())


def test_names_statistics_and_hooks(device: torch.device) -> None:
    surgery = gs.GradientAggregator("sum", tasks=["a", "b", "c"])
    heard = []
    surgery.register_step_hook(lambda statistics, gram: heard.append(statistics.step))
    G = torch.randn(3, 5, dtype=torch.float64, device=device)
    surgery.aggregate(G)
    surgery.aggregate([G[0], None, G[2]])
    first, second = surgery.history
    assert (first.tasks, first.present, second.present) == (("a", "b", "c"), (True, True, True), (True, False, True))
    torch.testing.assert_close(first.gram, (G @ G.T).cpu())
    assert second.weights.tolist() == [1.0, 0.0, 1.0]
    assert heard == [0, 1]
    with pytest.raises(ValueError, match=r"grads: expected 3 tasks \(a, b, c\), found 2; give None"):
        surgery.aggregate(G[:2])


def test_tasks_are_numbered_as_they_come() -> None:
    surgery = gs.GradientAggregator("sum")
    surgery.aggregate(torch.ones(2, 3))
    surgery.aggregate(torch.ones(3, 3))
    assert surgery.tasks == ("0", "1", "2")


def test_out(device: torch.device) -> None:
    surgery = gs.GradientAggregator("sum")
    G = torch.randn(2, 5, device=device)
    out = torch.empty(5, device=device)
    assert surgery.aggregate(G, out=out) is out
    torch.testing.assert_close(out, G.sum(0))
    pieces = [torch.full((2,), 7.0, device=device), torch.full((3,), 7.0, device=device)]
    assert surgery.aggregate([[G[0, :2], None], [G[1, :2], None]], out=pieces) is pieces
    torch.testing.assert_close(pieces[0], G[:, :2].sum(0))
    assert not pieces[1].any(), "a position that no task reaches is zeroed"
    rows = list(G.clone())
    assert surgery.aggregate(rows, out=rows[0]) is rows[0]
    torch.testing.assert_close(rows[0], G.sum(0))
    with pytest.raises(ValueError, match=r"out: expected shape \[5\], found \[4\]"):
        surgery.aggregate(G, out=torch.empty(4, device=device))


def test_losses_in_every_form() -> None:
    G = torch.randn(2, 5)
    results = []
    a, b = torch.tensor(1.0), torch.tensor(2.0)
    for losses in (torch.tensor([1.0, 2.0]), [a, b], {"b": b, "a": a}):
        surgery = gs.GradientAggregator("dbmtl", tasks=["a", "b"])
        results.append(surgery.aggregate(G, losses))
    surgery = gs.GradientAggregator("dbmtl", tasks=["a", "b"])
    surgery.observe([torch.tensor(1.0), torch.tensor(2.0)])
    results.append(surgery.aggregate(G))
    assert all(torch.equal(result, results[0]) for result in results[1:])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"losses: expected 2 \(a, b\), found 3"):
        surgery.aggregate(G, torch.ones(3))


def test_it_works_in_eval_mode_and_without_grad() -> None:
    surgery = gs.GradientAggregator("sum").eval()
    with torch.no_grad():
        assert torch.equal(surgery.aggregate(torch.ones(2, 3)), torch.full((3,), 2.0))  # type: ignore[arg-type]
    out = surgery.aggregate(torch.ones(2, 3, requires_grad=True))
    assert not out.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize("method", sorted(gs.methods()))
def test_no_number_comes_from_the_host(method: str) -> None:
    """Once there is memory, whether a task is absent or not, and losses are tensors, numbers or unknown. Meta has none to read."""
    spec = gs.methods()[method]
    options: dict[str, Any] = {"weights": (1.0, 2.0, 3.0, 4.0)} if method == "constant" else {}
    surgery = gs.GradientAggregator(method, tasks=4, **options)
    G = torch.randn(4, 6, device="meta")
    loss = torch.ones((), device="meta")
    against = {"against": G} if "against" in surgery.method.needs else {}
    surgery.aggregate(G, [loss] * 4, **against)
    some = [G[0], None, G[2], G[3]]
    against = {"against": some} if against else {}
    with NoHostCopies():
        surgery.aggregate(G, [loss, 2.0, loss, 0.5], **dict.fromkeys(against, G))  # type: ignore[list-item]
        surgery.aggregate(some, [loss, None, 2.0, loss], **against)  # type: ignore[list-item]
        if "losses" not in spec.needs:
            surgery.aggregate(some, **against)
        assert surgery.weights is None or surgery.weights.device.type == "meta"


@pytest.mark.parametrize("options", [{"method": "mgda", "gn": "loss"}, {"method": "crmogm", "inner": "mgda", "gn": "loss"}])
def test_a_loss_that_the_options_ask_for(options: dict[str, Any]) -> None:
    surgery = gs.GradientAggregator(**options, tasks=("a", "b"))
    grads = [torch.ones(3), torch.arange(3.0)]
    with pytest.raises(ValueError, match="losses: expected one of every task with a gradient, found none of b"):
        surgery.aggregate(grads, [torch.tensor(1.0), None])
    with pytest.raises(ValueError, match="needs the tasks' losses, found none"):
        surgery.aggregate(grads)
    out = surgery.aggregate([grads[0], None], [torch.tensor(1.0), None])
    torch.testing.assert_close(out, grads[0])


@pytest.mark.parametrize("method", ["mgda", "moco", "median"])
def test_a_second_batch_that_would_be_ignored(method: str) -> None:
    surgery = gs.GradientAggregator(method)
    G = torch.ones(2, 3)
    with pytest.raises(ValueError, match=f"against: expected none, as method '{method}' works on one batch's gradients"):
        surgery.aggregate(G, [torch.tensor(1.0)] * 2, against=G)


@pytest.mark.parametrize("losses", [torch.ones(()), None, "ab", 3.0])
def test_observe_names_what_it_was_given(losses: Any) -> None:
    surgery = gs.GradientAggregator("moco", tasks=["a", "b"])
    with pytest.raises(TypeError, match=rf"losses: expected a dict by task or a sequence, found {type(losses).__name__}"):
        surgery.observe(losses)
