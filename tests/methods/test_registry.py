"""The registry: what it knows, how others add to it, what it refuses."""

from __future__ import annotations

import importlib
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Method, build, register
from gradsurgery.methods import registry as room
from gradsurgery.methods.registry import NO_STEP, Step

pytestmark = pytest.mark.usefixtures("own_registry")


def test_every_spec_is_complete() -> None:
    assert {"pcgrad", "sum", "mean"} <= set(gs.methods())
    for name, spec in gs.methods().items():
        assert spec.name == name == name.lower()
        assert spec.family in room.FAMILIES
        assert spec.paper
        assert spec.summary
        assert spec.summary in (spec.cls.__doc__ or "")
        assert spec.properties <= set(room.PROPERTIES)
        assert spec.cls.spec is spec
        built = spec.build()
        for option, default in spec.options.items():
            assert getattr(built, option) == default
        with pytest.raises(TypeError):
            spec.options["order"] = "ascending"  # type: ignore[index]


def test_a_changed_copy_is_no_registration() -> None:
    gs.methods().clear()
    assert "pcgrad" in gs.methods()


def test_others_register_by_decorator() -> None:
    @register("norms", family="gram", paper="none", properties=("permutation_equivariant",))
    @dataclass(frozen=True)
    class Norms(Method):
        """w_t = power-th power of |g_t|.

        More words.
        """

        power: float = 1.0

        def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
            return gram.diagonal().sqrt() ** self.power

    spec = gs.methods()["norms"]
    assert (spec.summary, dict(spec.options)) == ("w_t = power-th power of |g_t|.", {"power": 1.0})
    G = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert gs.weights(gs.gram(G), "norms").tolist() == [5.0, 2.0]
    for form in (G, list(G), [[row] for row in G]):
        out = gs.aggregate(form, "norms", power=2.0)
        assert torch.equal(out[0] if isinstance(out, list) else out, 25 * G[0] + 4 * G[1])
    assert torch.equal(gs.aggregate(G, Norms(-1.0)), G[0] / 5 + G[1] / 2)  # type: ignore[arg-type]

    surgery = gs.GradientAggregator("norms", power=2.0)
    z = torch.zeros(2, requires_grad=True)
    a, b = surgery.split(z, 2)
    ((a * G[0]).sum() + (b * G[1]).sum()).backward()
    assert z.grad is not None
    assert torch.equal(z.grad, 25 * G[0] + 4 * G[1])


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name: a method 'pcgrad' is registered already, by PCGrad"):

        @register("pcgrad", family="gram", paper="none")
        @dataclass(frozen=True)
        class Other(Method):
            """Another."""

    assert gs.methods()["pcgrad"].cls.__name__ == "PCGrad"


def test_an_unknown_property_is_refused() -> None:
    with pytest.raises(ValueError, match=r"properties: expected some of \[.*'non_conflicting'.*\], found \['always_right'\]"):
        register("better", family="gram", paper="none", properties=("non_conflicting", "always_right"))
    assert "better" not in gs.methods()


def test_build_shares_what_cannot_change() -> None:
    assert build("pcgrad") is build("pcgrad")
    assert build("pcgrad", seed=1) is build("pcgrad", seed=1)
    assert build("pcgrad", seed=1) is not build("pcgrad", seed=2)
    with pytest.raises(TypeError, match=r"seed: expected an integer or None, found float"):
        build("pcgrad", seed=1.0)
    order = torch.tensor([[0, 1], [1, 0]])
    assert build("pcgrad", order=order) is not build("pcgrad", order=order), "a tensor would be kept alive"
    method = build("sum")
    assert build(method) is method
    with pytest.raises(TypeError, match=r"options \['seed'\] cannot change the given Sum"):
        build(method, seed=1)


@pytest.mark.parametrize("name", [name for name, spec in gs.methods().items() if "against" not in spec.needs])
def test_a_second_batch_that_would_be_ignored_is_refused(name: str) -> None:
    G = torch.randn(3, 4)
    for form in (G, list(G), [[row] for row in G]):
        with pytest.raises(ValueError, match=rf"against: expected none, as method '{name}' .* those .* are modo, sdmgrad"):
            gs.aggregate(form, name, against=form)


def test_needs_are_those_of_the_options() -> None:
    for name, spec in gs.methods().items():
        assert build(name).needs == spec.needs
    assert build("mgda", gn="l2").needs == set()
    assert build("mgda", gn="loss").needs == build("mgda", gn="loss+").needs == {"losses"}
    assert build("crmogm", gn="loss").needs == {"losses"}
    assert build("crmogm", inner="imtlg").needs == set()


@pytest.mark.parametrize(
    "method", [build("moco"), build("dbmtl"), build("mgda", gn="loss"), build("crmogm", gn="loss+")], ids=lambda m: m.spec.name
)
def test_a_present_task_without_loss_is_refused(method: Method) -> None:
    G = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"losses: expected one of every task with a gradient, found none of tasks \[1\]"):
        gs.aggregate(G, method, losses=[1.0, None, 2.0])
    with pytest.raises(ValueError, match=r"losses: method '\w+' needs the tasks' losses, found none"):
        gs.aggregate(G, method)
    out = gs.aggregate([G[0], None, G[2]], method, losses=[1.0, None, 2.0])
    assert isinstance(out, Tensor)
    assert out.isfinite().all()
    if method.spec.name != "moco":  # whose weights begin at 1/T over all tasks
        torch.testing.assert_close(out, gs.aggregate([G[0], G[2]], method, losses=[1.0, 2.0]))


def test_what_is_no_name_is_no_method() -> None:
    for wrong in (["pcgrad"], None, 3, {"pcgrad"}, Method):
        with pytest.raises(TypeError, match=r"method: expected a method's name or a built method, found"):
            build(wrong)  # type: ignore[arg-type]


# --- packages that bring methods --------------------------------------------------------------------------------------------------

MODULE = '''
from dataclasses import dataclass

import gradsurgery as gs
from gradsurgery.methods import Method, register

known_while_imported = set(gs.methods())


@register("{name}", family="scalarization", paper="none")
@dataclass(frozen=True)
class Twice(Method):
    """w_t = 2."""

    def weights(self, gram, step=None):
        return gram.new_full((gram.shape[-1],), 2.0)
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, str], modules: dict[str, str]) -> None:
    """A package that looks installed, with entry points and modules; nothing of it is imported yet."""
    info = folder / "their_surgery-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-surgery\nVersion: 1.2\n")
    lines = [f"{name} = {module}" for name, module in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[gradsurgery.methods]", *lines, ""]))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    monkeypatch.setattr(room._loading, "done", False)


def test_an_installed_package_brings_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {"twice": "their_twice"}, {"their_twice": MODULE.format(name="twice")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "their_twice" not in sys.modules, "nothing is imported before it is asked for"
        assert gs.weights(torch.eye(2, dtype=torch.float64), "sum").tolist() == [1.0, 1.0]
        assert "their_twice" not in sys.modules, "a name that is known needs no search"
        assert gs.weights(torch.eye(2, dtype=torch.float64), "twice").tolist() == [2.0, 2.0]
        assert "twice" in gs.methods()
    assert "pcgrad" in sys.modules["their_twice"].known_while_imported


def test_the_list_of_methods_has_those_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {"twice": "their_twice:Twice"}, {"their_twice": MODULE.format(name="twice")})
    assert gs.methods()["twice"].summary == "w_t = 2."
    assert gs.GradientAggregator("twice").method.spec is gs.methods()["twice"]


BROKEN = {
    "missing": ("no_such_module", None, r"ModuleNotFoundError: No module named 'no_such_module'"),
    "failing": ("their_failing", "1 / 0", "ZeroDivisionError: division by zero"),
    "silent": ("their_silent", "", "their_silent registers no method of this name"),
    "taken": ("their_taken", MODULE.format(name="pcgrad"), "ValueError: name: a method 'pcgrad' is registered already"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_named_and_breaks_nothing_else(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, text, problem = BROKEN[name]
    modules = {"their_twice": MODULE.format(name="twice")} | ({} if text is None else {module: text})
    install(tmp_path, monkeypatch, {name: module, "twice": "their_twice"}, modules)
    expected = rf"The method '{name}' of the package 'their-surgery' is left out \({module} in .*gradsurgery.methods.*: {problem}"
    with pytest.warns(RuntimeWarning, match=expected) as caught:
        found = gs.methods()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "twice" in found
    assert "pcgrad" in found
    assert name not in found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gs.methods() == found, "said once"
    with pytest.raises(ValueError, match=rf"method: expected one of .*twice.*, found '{name}'"):
        gs.weights(torch.eye(2, dtype=torch.float64), name)


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (torch.ones(2), "torch.float32 [2] on cpu"),
        (torch.ones(3, dtype=torch.float64), "torch.float64 [3] on cpu"),
        ([1.0, 1.0], "list"),
        (None, "NoneType"),
    ],
)
def test_wrong_weights_are_named(returned: object, found: str) -> None:
    @register("wrong", family="gram", paper="none")
    @dataclass(frozen=True)
    class Wrong(Method):
        """w_t = what it should not be."""

        def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
            return returned  # type: ignore[return-value]

    K = torch.eye(2, dtype=torch.float64)
    for grams in (K, K.expand(3, 2, 2)):
        with pytest.raises(TypeError) as caught:
            gs.weights(grams, "wrong")
        assert str(caught.value) == f"method 'wrong': weights() must return torch.float64 [2] on cpu, found {found}."


def test_a_method_without_weights_says_what_is_missing() -> None:
    @register("empty", family="gram", paper="none")
    @dataclass(frozen=True)
    class Empty(Method):
        """Nothing."""

    with pytest.raises(NotImplementedError, match=r"method 'empty': define weights\(self, gram, step\)"):
        gs.weights(torch.eye(2, dtype=torch.float64), "empty")
