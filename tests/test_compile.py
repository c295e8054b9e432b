"""torch.compile around an aggregator, and with one inside: one graph without breaks, and the steps of an uncompiled twin."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch.compiler.config
from tolerances import TOLERANCES
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.capture import traced
from gradsurgery.capture.compiled import check_several_passes, is_compiled
from gradsurgery.capture.probe import probing

TASKS = ("seg", "depth", "normal")
LOWERING = ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow))
BACKENDS = ("eager", *LOWERING)


@pytest.fixture(autouse=True)
def _nothing_is_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Trunk(nn.Module):
    """One map of features, or a pyramid whose finest level stands in two places."""

    def __init__(self, pyramid: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.pyramid = pyramid

    def forward(self, x: Tensor) -> Any:
        fine = torch.tanh(self.first(x))
        coarse = nn.functional.gelu(self.norm(self.second(fine)))
        return {"levels": [fine, coarse], "finest": fine} if self.pyramid else coarse


class Head(nn.Module):
    def __init__(self, pyramid: bool) -> None:
        super().__init__()
        self.out = nn.Linear(16 if pyramid else 8, 3)
        self.pyramid = pyramid

    def forward(self, z: Any) -> Tensor:
        result: Tensor = self.out(torch.cat([z["finest"], z["levels"][1]], 1) if self.pyramid else z)
        return result


class Model(nn.Module):
    """Trunk, boundary and heads."""

    def __init__(self, method: str = "pcgrad", pyramid: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = Trunk(pyramid)
        self.surgery = gs.GradientAggregator(method, tasks=TASKS, **options)
        self.heads = nn.ModuleDict({task: Head(pyramid) for task in TASKS})

    def forward(self, x: Tensor, present: tuple[str, ...] = TASKS) -> dict[str, Tensor]:
        views = self.surgery.split(self.trunk(x), present)
        return {task: self.heads[task](z) for task, z in zip(present, views, strict=True)}


def batch(seed: int, size: int = 5) -> Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))


def losses(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses in conflict, of different scales."""
    of = {"seg": lambda p: 3 * p.square().mean(), "depth": lambda p: 4 * (2 - p).abs().mean(), "normal": lambda p: p.exp().mean()}
    return {task: of[task](prediction) for task, prediction in outputs.items()}


def total(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses(outputs).values())).sum()


def assert_same(ours: nn.Module, twin: nn.Module) -> None:
    """Gradients that differ by the rounding of a few operations at most: Inductor orders them anew."""
    for (name, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            allowed = 512 * TOLERANCES[p.dtype].rounding * float(q.grad.abs().max())
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_steps(ours: gs.GradientAggregator, twin: gs.GradientAggregator) -> None:
    """The same steps taken, and the same memory kept."""
    assert [s.step for s in ours.history] == [s.step for s in twin.history]
    assert [s.present for s in ours.history] == [s.present for s in twin.history]
    assert ours.get_extra_state() == twin.get_extra_state()
    tensors = [*ours.named_buffers(), *(("weights", s.device_weights) for s in ours.history)]
    others = [*twin.named_buffers(), *(("weights", s.device_weights) for s in twin.history)]
    for (name, a), (_, b) in zip(tensors, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def run_beside_a_twin(
    model: Model,
    backend: str,
    step: Callable[[Model, Callable[..., Any], Tensor], Tensor],
    batches: list[Tensor],
    compiling: Callable[[Model], Callable[..., Any]] = lambda model: model,
) -> int:
    """Steps of a model that is compiled and of a copy that is not, compared. -> how many graphs were made"""
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(compiling(model), backend=counter, fullgraph=True)
    plain = compiling(twin)
    for x in batches:
        for each, function in ((model, compiled), (twin, plain)):
            each.zero_grad()
            step(each, function, x).backward()
        assert_same(model, twin)
    assert_same_steps(model.surgery, twin.surgery)
    assert len(model.surgery.history) == len(batches)
    return counter.frame_count


# --- split inside ---------------------------------------------------------------------------------------------------------------

METHODS: list[tuple[str, bool, dict[str, Any]]] = [
    ("pcgrad", False, {"order": "ascending"}),
    ("pcgrad", True, {"seed": 3}),
    ("cagrad", False, {}),
    ("mgda", False, {}),
    ("upgrad", True, {}),
    ("crmogm", False, {"inner": "pcgrad", "alpha": 0.5, "seed": 3}),
    ("graddrop", True, {"seed": 3}),
    ("median", False, {}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("method", "pyramid", "options"), METHODS, ids=lambda value: "-".join(value) if isinstance(value, dict) else None
)
def test_a_compiled_model_takes_the_steps_of_an_uncompiled_one(
    method: str, pyramid: bool, options: dict[str, Any], backend: str
) -> None:
    """Gradients, weights, and what is remembered: orders drawn anew, averages, the number of steps."""
    model = Model(method, pyramid, **options)
    assert run_beside_a_twin(model, backend, lambda _, f, x: total(f(x)), [batch(k) for k in range(5)]) == 1
    if method == "pcgrad":
        assert any(s.conflicts for s in model.surgery.history), "the test needs a conflict to mean anything"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group_by", [None, "tensor"])
def test_a_whole_step_in_one_graph(backend: str, group_by: Any) -> None:
    model = Model(pyramid=True, group_by=group_by, seed=3)
    whole = lambda model: lambda x: total(model(x))  # noqa: E731
    assert run_beside_a_twin(model, backend, lambda _, f, x: f(x), [batch(k) for k in range(3)], whole) == 1
    assert model.surgery.statistics().groups == (() if group_by is None else ("['levels'][0]", "['levels'][1]"))


@pytest.mark.parametrize("inside", [True, False])
def test_losses_that_are_told(inside: bool) -> None:
    """In the graph, or between its forward and backward pass."""
    model = Model("dbmtl")

    def observed(model: Model) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.stack(list(model.surgery.observe(losses(model(x))).values())).sum()

    def outside(model: Model, function: Callable[..., Any], x: Tensor) -> Tensor:
        return torch.stack(list(model.surgery.observe(losses(function(x))).values())).sum()

    batches = [batch(k) for k in range(4)]
    if inside:
        assert run_beside_a_twin(model, "aot_eager", lambda _, f, x: f(x), batches, observed) == 1
    else:
        assert run_beside_a_twin(model, "aot_eager", outside, batches) == 1


def test_batches_of_other_sizes_and_autocast() -> None:
    """The last batch of an epoch is smaller: the graph becomes one of any size, once."""
    sizes = [batch(k, size) for k, size in enumerate((5, 5, 3, 4, 7))]
    assert run_beside_a_twin(Model(seed=3), "aot_eager", lambda _, f, x: total(f(x)), sizes) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run_beside_a_twin(Model(seed=3), "aot_eager", lambda _, f, x: total(f(x)).float(), sizes[:2]) == 1


def test_checkpointed_trunk_inside() -> None:
    def checkpointed(model: Model) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            views = model.surgery.split(checkpoint(model.trunk, x, use_reentrant=False))
            return total({task: model.heads[task](z) for task, z in zip(TASKS, views, strict=True)})

        return run

    assert run_beside_a_twin(Model(seed=3), "aot_eager", lambda _, f, x: f(x), [batch(0), batch(1)], checkpointed) == 1


LEAVING: dict[str, Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]] = {
    "views": lambda z, h: z,
    "views of views": lambda z, h: tuple(v.flatten() for v in z),
    "views twice": lambda z, h: (*z, *(v.mT for v in z)),
    "one inside": lambda z, h: (z[0].sin(), *z[1:]),
    "features beside": lambda z, h: (*z, h, h.flatten()),
}


@pytest.mark.parametrize("backend", LOWERING)
@pytest.mark.parametrize(
    ("leaving", "entering"), [*((name, False) for name in LEAVING), ("views", True), ("features beside", True)]
)
def test_views_that_leave_the_graph(leaving: str, entering: bool, backend: str) -> None:
    """With heads outside, where a compiler may hand out one memory for all of them, or lead gradients past the boundary."""

    def cut(model: Model) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def run(x: Tensor) -> tuple[Tensor, ...]:
            h = x if entering else model.trunk(x)
            return LEAVING[leaving](model.surgery.split(h), h)

        return run

    def step(model: Model, function: Callable[..., Any], x: Tensor) -> Tensor:
        views = function(model.trunk(x) if entering else x)
        return torch.stack([(-2.0) ** k * (v + k).square().sum() for k, v in enumerate(views)]).sum()

    model = Model(order="ascending")
    assert run_beside_a_twin(model, backend, step, [batch(k) for k in range(2)], cut) == 1
    assert model.surgery.statistics().conflicts > 0


def test_tasks_that_were_not_declared() -> None:
    """The graph that first sees them is made anew, now that their names are known; after that no more."""
    surgery = gs.GradientAggregator("pcgrad")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: [z.sin() for z in surgery.split(x.tanh(), 2)], backend=counter, fullgraph=True)
    x = torch.randn(4, 3, requires_grad=True)
    for _ in range(4):
        a, b = compiled(x)
        (a.sum() - b.sum()).backward()
    assert surgery.tasks == ("0", "1")
    assert len(surgery.history) == 4
    assert counter.frame_count == 2


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_eval_and_no_grad_pass_through(backend: str) -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=2)
    compiled = torch.compile(lambda x: surgery.split(x.sin()), backend=backend, fullgraph=True)
    x = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        assert not any(z.requires_grad for z in compiled(x))
    surgery.eval()
    sum(z.sum() for z in compiled(x)).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(x.grad, 2 * x.detach().cos())
    assert not surgery.history


# --- absent tasks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_view_that_no_loss_of_the_graph_uses_is_an_absent_task(backend: str) -> None:
    model = Model("mean")

    def without_depth(model: Model) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            outputs = model(x)
            del outputs["depth"]
            return total(outputs)

        return run

    assert run_beside_a_twin(model, backend, lambda _, f, x: f(x), [batch(0), batch(1)], without_depth) == 1
    assert model.surgery.statistics().present == (True, False, True)


def test_an_output_that_no_loss_uses_is_a_task_with_zeros() -> None:
    """AOTAutograd makes zeros of a gradient that never came, and nothing tells them from others. Naming the tasks does."""
    model, twin = Model("mean"), Model("mean")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outputs = compiled(batch(0))
    del outputs["depth"]
    total(outputs).backward()
    assert model.surgery.statistics().present == (True, True, True)
    assert model.surgery.statistics().norms[1] == 0
    total(twin(batch(0), ("seg", "normal"))).backward()
    for p, q in zip(model.trunk.parameters(), twin.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad * 3, q.grad * 2)  # type: ignore[operator]  # divided by three tasks rather than by two


def test_each_set_of_names_compiles_once() -> None:
    steps = [TASKS, ("seg", "normal"), TASKS, ("depth",), ("seg", "normal"), ("depth",)]
    present = iter([names for names in steps for _ in range(2)])  # a step of the model, and one of its twin
    model = Model("mean")
    made = run_beside_a_twin(model, "aot_eager", lambda _, f, x: total(f(x, next(present))), [batch(k) for k in range(6)])
    assert made == 3
    assert model.surgery.statistics().present == (False, True, False)


# --- the object behind a graph --------------------------------------------------------------------------------------------------


def test_a_graph_knows_its_aggregator_from_copies_of_it() -> None:
    model = Model(seed=3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    total(compiled(batch(0))).backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        total(torch.compile(twin, backend="aot_eager", fullgraph=True)(batch(1))).backward()
        assert len(twin.surgery.history) == 2
        assert len(model.surgery.history) == 1
    total(compiled(batch(1))).backward()
    assert len(model.surgery.history) == 2


def test_graphs_keep_no_aggregator_alive() -> None:
    gc.collect()
    before = len(traced._enrolled)

    def outputs() -> list[Tensor]:
        surgery = gs.GradientAggregator("pcgrad", tasks=2)
        compiled = torch.compile(lambda x: [z.sin() for z in surgery.split(x.cos())], backend="aot_eager", fullgraph=True)
        result: list[Tensor] = compiled(torch.ones(3, requires_grad=True))
        return result

    a, b = outputs()
    torch.compiler.reset()
    gc.collect()
    assert len(traced._enrolled) == before
    with pytest.raises(RuntimeError, match="split: the GradientAggregator that a compiled function was traced with is gone"):
        (a.sum() + b.sum()).backward()


def test_probing_takes_no_step() -> None:
    model, twin = Model(), Model("sum")
    loss = total(torch.compile(model, backend="aot_eager", fullgraph=True)(batch(0)))
    parameters = list(model.trunk.parameters())
    with probing():
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert not model.surgery.history
    total(twin(batch(0))).backward()
    for g, p in zip(found, twin.trunk.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad)
    loss.backward()
    assert len(model.surgery.history) == 1


# --- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled:UserWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_propagated_one_by_one(backend: str) -> None:
    model = Model()
    with torch.compiler.config.patch(force_disable_caches=True):  # or torch may be the one to refuse, for a graph that lies there
        outputs = losses(torch.compile(model, backend=backend, fullgraph=True)(batch(0)))
    with pytest.raises(RuntimeError, match=r"split: retain_graph=True .* compiled .* call backward\(\) once"):
        outputs["seg"].backward(retain_graph=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: s.split(x.sin(), ("a", "c")), "tasks: expected one of a, b, found 'c'"),
        (lambda s, x: s.split(x.detach()), "features: split expected features that require grad"),
        (lambda s, x: s.detach(x.sin()), "Compile trunk and heads, and call detach"),
    ],
)
def test_errors_of_the_call_are_told_when_it_is_traced(call: Callable[..., Any], message: str) -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b"))
    with pytest.raises(Exception, match=message):
        torch.compile(lambda x: call(surgery, x), backend="eager", fullgraph=True)(torch.ones(3, requires_grad=True))


def test_errors_of_the_step_are_told_in_backward() -> None:
    model = Model("dbmtl")
    loss = total(torch.compile(model, backend="aot_eager", fullgraph=True)(batch(0)))
    with pytest.raises(ValueError, match="losses: method 'dbmtl' needs the tasks' losses, found none"):
        loss.backward()


# --- compiled trunk and heads around an aggregator --------------------------------------------------------------------------------


def parts(model: Model, backend: str) -> tuple[Callable[..., Any], dict[str, Callable[..., Any]]]:
    """Trunk and heads, each a graph without breaks."""
    trunk = torch.compile(model.trunk, backend=backend, fullgraph=True)
    return trunk, {task: torch.compile(model.heads[task], backend=backend, fullgraph=True) for task in TASKS}


def by_split(model: Model, trunk: Callable[..., Any], heads: dict[str, Callable[..., Any]], x: Tensor) -> None:
    total({task: heads[task](z) for task, z in zip(TASKS, model.surgery.split(trunk(x)), strict=True)}).backward()


def by_detach(model: Model, trunk: Callable[..., Any], heads: dict[str, Callable[..., Any]], x: Tensor) -> None:
    z = model.surgery.detach(trunk(x))
    for task in TASKS:
        with model.surgery.task(task):
            losses({task: heads[task](z)})[task].backward()
    model.surgery.backward()


def by_losses(model: Model, trunk: Callable[..., Any], heads: dict[str, Callable[..., Any]], x: Tensor) -> None:
    z = trunk(x)
    model.surgery.backward(losses({task: heads[task](z) for task in TASKS}), shared=model.trunk)


FORMS = {"split": by_split, "detach": by_detach, "losses": by_losses}


@contextmanager
def several_passes() -> Iterator[None]:
    """What ``check_several_passes`` asks for."""
    with torch._functorch.config.patch(donated_buffer=False), torch.compiler.config.patch(cache_key_tag="several passes"):
        yield


@pytest.mark.parametrize("backend", LOWERING)
@pytest.mark.parametrize("pyramid", [False, True], ids=["tensor", "pyramid"])
@pytest.mark.parametrize("form", FORMS)
def test_compiled_parts(form: str, pyramid: bool, backend: str) -> None:
    """Losses that are propagated through one trunk need its buffers several times, and the compiler must be told."""
    model = Model(pyramid=pyramid, order="ascending")
    twin = copy.deepcopy(model)
    compiled, plain = parts(model, backend), (twin.trunk, dict(twin.heads.items()))
    with several_passes() if form == "losses" else nullcontext():
        for k in range(3):
            for each, (trunk, heads) in ((model, compiled), (twin, plain)):
                each.zero_grad()
                FORMS[form](each, trunk, heads, batch(k))
            assert_same(model, twin)
    assert_same_steps(model.surgery, twin.surgery)
    assert any(s.conflicts for s in model.surgery.history)


@pytest.mark.parametrize("backend", LOWERING)
def test_a_trunk_that_keeps_its_buffers(backend: str) -> None:
    """Whatever was compiled and cached without that, and whichever form comes first."""
    model, twin = Model(order="ascending"), Model(order="ascending")
    by_split(model, *parts(model, backend), batch(0))
    torch.compiler.reset()
    with several_passes():
        trunk, heads = parts(model, backend)
        for form in (by_split, by_losses, by_detach, by_losses):
            for each, parted in ((model, (trunk, heads)), (twin, (twin.trunk, dict(twin.heads.items())))):
                each.zero_grad()
                form(each, *parted, batch(1))
            assert_same(model, twin)


class Whole(nn.Module):
    """Trunk and heads in one function, as most models are compiled."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.trunk, self.heads = model.trunk, model.heads

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: self.heads[task](z) for task in TASKS}


def test_a_whole_model_needs_to_be_told_its_trunk() -> None:
    """torch reports of every output of a compiled function that it depends on all parameters."""
    model = Model(order="ascending")
    twin = copy.deepcopy(model)
    with several_passes():
        compiled = torch.compile(Whole(model), backend="aot_eager", fullgraph=True)
        with pytest.raises(ValueError, match="shared: expected the parameters that the tasks share, found None: one compiled"):
            model.surgery.backward(losses(compiled(batch(0))))
        assert all(p.grad is None for p in model.parameters())
        for k in range(3):
            model.zero_grad()
            twin.zero_grad()
            model.surgery.backward(losses(compiled(batch(k))), shared=model.trunk)
            by_losses(twin, twin.trunk, dict(twin.heads.items()), batch(k))
            assert_same(model, twin)
    assert any(s.conflicts for s in model.surgery.history)


def test_a_compiled_trunk_alone_is_found() -> None:
    model = Model(order="ascending")
    twin = copy.deepcopy(model)
    with several_passes():
        trunk, heads = parts(model, "aot_eager")
        z = trunk(batch(0))
        model.surgery.backward(losses({task: heads[task](z) for task in TASKS}))
        by_losses(twin, twin.trunk, dict(twin.heads.items()), batch(0))
    assert_same(model, twin)


def test_a_trunk_that_gives_its_buffers_away() -> None:
    """Nothing is written when a graph that was compiled for one backward pass is to be propagated several times."""
    model = Model()
    trunk, heads = parts(model, "aot_eager")
    by_split(model, trunk, heads, batch(0))
    before = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="donated_buffer"):
        by_losses(model, trunk, heads, batch(1))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))  # type: ignore[arg-type]


def test_what_the_compiler_must_be_told() -> None:
    x = torch.ones(3, requires_grad=True)
    assert is_compiled(torch.compile(torch.sin, backend="aot_eager")(x).grad_fn)
    assert not is_compiled(x.sin().grad_fn)  # type: ignore[arg-type]
    message = r"several losses .*donated_buffer = False; .*cache_key_tag = .* split\(\) or detach\(\).*"
    with pytest.raises(RuntimeError, match=message + "Found donated_buffer=True, cache_key_tag=''"):
        check_several_passes()
    with torch._functorch.config.patch(donated_buffer=False):
        with pytest.raises(RuntimeError, match="Found donated_buffer=False, cache_key_tag=''"):
            check_several_passes()
        with torch.compiler.config.patch(force_disable_caches=True):
            check_several_passes()
    with several_passes():
        check_several_passes()
