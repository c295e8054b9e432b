"""Lightning's Trainer around an aggregator: the same numbers as a loop written by hand, whatever the Trainer adds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradsurgery as gs
from gradsurgery.integrations.lightning import SurgeryStatistics
from gradsurgery.monitor import Statistics

TASKS = ("seg", "depth", "normal")
Batch = tuple[Tensor, dict[str, Tensor]]


def batches(number: int = 4) -> list[Batch]:
    g = torch.Generator().manual_seed(7)
    return [(torch.randn(6, 5, generator=g), {t: torch.randn(6, 2, generator=g) for t in TASKS}) for _ in range(number)]


class Network(L.LightningModule):
    """GradVac, which remembers cosines: a step that is lost, or taken twice, shows in all later ones."""

    def __init__(self, absent: Mapping[int, tuple[str, ...]] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in TASKS})
        self.surgery = gs.GradientAggregator("gradvac", tasks=TASKS, seed=0)
        self.absent = absent or {}
        self.seen: list[list[Tensor]] = []  # the parameters' gradients before every step

    def losses(self, batch: Batch, index: int = -1) -> dict[str, Tensor | None]:
        x, y = batch
        z = self.trunk(x)
        losses: dict[str, Tensor | None] = {t: (self.heads[t](z) - y[t]).square().mean() * 2.0**k for k, t in enumerate(TASKS)}
        return losses | dict.fromkeys(self.absent.get(index, ()))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        total = self.surgery.total(self.losses(batch, index))
        self.log("total", total)
        return total

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("val", sum(loss for loss in self.losses(batch).values() if loss is not None))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters()])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.5)


class Lines(DummyLogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, metrics))


def trainer(folder: Path, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return L.Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


def loader(number: int = 4) -> DataLoader[Batch]:
    return DataLoader(batches(number), batch_size=None)


def half(scale: float = 2.0**10) -> MixedPrecision:
    """Lightning turns precision="16-mixed" into bfloat16 on a CPU; its plugin with a scaler of the CPU does not."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def assert_equal_networks(actual: nn.Module, expected: nn.Module) -> None:
    """Parameters, and the aggregator's memory and step, to the bit."""
    a, b = actual.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name], name


# --- automatic optimisation -------------------------------------------------------------------------------------------------------

PRECISIONS: dict[str, tuple[Callable[[], dict[str, Any]], torch.dtype]] = {
    "32-true": (lambda: {"precision": "32-true"}, torch.float32),
    "bf16-mixed": (lambda: {"precision": "bf16-mixed"}, torch.bfloat16),
    "16-mixed": (lambda: {"plugins": [half()]}, torch.float16),
}


def by_hand(net: Network, dtype: torch.dtype, accumulate: int, clip: float | None) -> float:
    """The loop that the Trainer runs, in the open; returns the last batch's sum of losses."""
    optimizer = net.configure_optimizers()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype == torch.float16)
    for index, batch in enumerate(batches()):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
            losses = net.losses(batch, index)
        total = net.surgery.total(losses)
        scaler.scale(total / accumulate).backward()
        if (index + 1) % accumulate == 0:
            scaler.unscale_(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return total.item()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.5)])
def test_the_trainer_is_the_loop_by_hand(tmp_path: Path, precision: str, accumulate: int, clip: float | None) -> None:
    options, dtype = PRECISIONS[precision]
    net, expected = Network(), Network()
    fit = trainer(tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=clip, **options())
    fit.fit(net, loader(), loader())  # with Lightning's sanity check of the validation
    total = by_hand(expected, dtype, accumulate, clip)
    assert_equal_networks(net, expected)
    assert fit.callback_metrics["total"].item() == total
    assert len(net.surgery.history) == 4
    assert len(net.seen) == 4 // accumulate


def test_first_gradients_are_those_of_separate_passes(tmp_path: Path) -> None:
    net, expected = Network(), Network()
    trainer(tmp_path, limit_train_batches=1).fit(net, loader())
    losses = expected.losses(batches()[0])
    trunk = list(expected.trunk.parameters())
    rows = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in losses.values()]
    combined = expected.surgery.aggregate([torch.cat([g.double().flatten() for g in row]) for row in rows])
    assert expected.surgery.statistics().conflicts
    flat = torch.cat([g.double().flatten() for g in net.seen[0][: len(trunk)]])
    torch.testing.assert_close(flat, combined, rtol=1e-5, atol=1e-5 * float(combined.abs().max()))
    own = [g for t in TASKS for g in torch.autograd.grad(losses[t], expected.heads[t].parameters(), retain_graph=True)]
    assert all(torch.equal(a, b) for a, b in zip(net.seen[0][len(trunk) :], own, strict=True))


def test_an_overflow_skips_the_step_and_leaves_the_memory(tmp_path: Path) -> None:
    net = Network()
    trainer(tmp_path, plugins=[half()]).fit(net, loader())
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    plugin = half(2.0**40)
    trainer(tmp_path, plugins=[plugin], limit_train_batches=1).fit(net, loader())
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == 2.0**39
    assert net.surgery.statistics().nonfinite
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_a_checkpoint_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    whole, first, second = Network(), Network(), Network()
    trainer(tmp_path, max_epochs=2).fit(whole, loader())
    begun = trainer(tmp_path)
    begun.fit(first, loader())
    begun.save_checkpoint(tmp_path / "half.ckpt")
    resumed = trainer(tmp_path, max_epochs=2)
    resumed.fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert_equal_networks(second, whole)
    forgetful = Network()
    forgetful.load_state_dict(first.state_dict())
    forgetful.surgery = gs.GradientAggregator("gradvac", tasks=TASKS, seed=0)
    trainer(tmp_path).fit(forgetful, loader())
    assert not torch.equal(forgetful.surgery.statistics().weights, whole.surgery.statistics().weights), "the memory matters"


# --- manual optimisation ----------------------------------------------------------------------------------------------------------


class Manual(Network):
    automatic_optimization = False

    def training_step(self, batch: Batch, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.surgery.total(self.losses(batch, index)))
        optimizer.step()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_manual_optimisation_is_automatic_optimisation(tmp_path: Path, precision: str) -> None:
    options, _ = PRECISIONS[precision]
    manual, automatic = Manual(), Network()
    trainer(tmp_path, **options()).fit(manual, loader())
    trainer(tmp_path, **options()).fit(automatic, loader())
    assert_equal_networks(manual, automatic)


class Collecting(Network):
    """One surgery on the sum of two micro-batches' gradients, rather than one on those of each."""

    automatic_optimization = False

    def training_step(self, batch: Batch, index: int) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of float16; the other precisions have none
        self.surgery.collect({task: loss / 2 for task, loss in self.losses(batch).items()}, scaler=scaler)
        if index % 2 == 1:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.surgery.backward(scaler=scaler)
            optimizer.step()


@pytest.mark.parametrize(("precision", "rtol"), [("32-true", 1e-5), ("bf16-mixed", 2e-2), ("16-mixed", 2e-3)])
def test_surgery_on_accumulated_gradients_is_surgery_on_the_large_batch(tmp_path: Path, precision: str, rtol: float) -> None:
    options, _ = PRECISIONS[precision]
    collecting, large = Collecting(), Network()
    trainer(tmp_path, **options()).fit(collecting, loader())
    pairs = zip(batches()[::2], batches()[1::2], strict=True)
    joined = [(torch.cat([x, u]), {t: torch.cat([y[t], v[t]]) for t in TASKS}) for (x, y), (u, v) in pairs]
    trainer(tmp_path, **options()).fit(large, DataLoader(joined, batch_size=None))
    start = Network()
    for p, q, before in zip(collecting.parameters(), large.parameters(), start.parameters(), strict=True):
        assert (p - q).norm().item() <= rtol * (q - before).norm().item()
    assert len(collecting.surgery.history) == len(large.surgery.history) == 2
    assert large.surgery.history[0].conflicts


# --- statistics in the log --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps whose statistics were brought to the host."""
    steps: list[int] = []
    transfer = Statistics._host.func

    def counted(statistics: Statistics) -> list[Tensor | None]:
        steps.append(statistics.step)
        return transfer(statistics)

    monkeypatch.setattr(Statistics._host, "func", counted)
    return steps


@pytest.mark.parametrize(("accumulate", "logged"), [(1, {1: 1, 3: 3, 5: 5}), (2, {1: 3})])
def test_statistics_are_logged_and_read_where_the_trainer_logs(
    tmp_path: Path, reads: list[int], accumulate: int, logged: dict[int, int]
) -> None:
    net, lines = Network(), Lines()
    fit = trainer(tmp_path, logger=lines, callbacks=[SurgeryStatistics()], log_every_n_steps=2, accumulate_grad_batches=accumulate)
    fit.fit(net, loader(6))
    found = {step: values for step, values in lines.lines if "surgery/norm" in values}
    assert reads == list(logged.values())
    assert list(found) == list(logged)
    for step, surgery_step in logged.items():
        scalars = net.surgery.history[surgery_step].scalars()
        assert found[step] == {f"surgery/{key}": value for key, value in scalars.items()}
        assert {"norm/seg", "weight/depth", "cosine/seg-normal", "conflicts", "norm"} <= set(scalars)


def test_a_batch_with_one_task_logs_no_statistics(tmp_path: Path) -> None:
    net, lines = Network(absent={1: ("depth", "normal"), 2: ("seg",)}), Lines()
    trainer(tmp_path, logger=lines, callbacks=[SurgeryStatistics()]).fit(net, loader(3))
    found = {step: values for step, values in lines.lines if "surgery/norm" in values}
    assert list(found) == [0, 2]
    assert "surgery/norm/seg" not in found[2]
    assert found[2]["surgery/norm/depth"] > 0


def test_statistics_without_an_aggregator_or_a_logger(tmp_path: Path) -> None:
    net = Network()
    net.training_step = lambda batch, index: sum(net.losses(batch).values())  # type: ignore[method-assign]
    del net.surgery
    with pytest.raises(ValueError, match=r"expected a GradientAggregator among the module's submodules, found none"):
        trainer(tmp_path, logger=Lines(), callbacks=[SurgeryStatistics()]).fit(net, loader())
    with pytest.raises(ValueError, match="expected a Trainer with a logger, found none"):
        trainer(tmp_path, callbacks=[SurgeryStatistics()]).fit(Network(), loader())


def test_without_lightning_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "gradsurgery.integrations.lightning")
    with pytest.raises(ImportError, match="pip install lightning"):
        importlib.import_module("gradsurgery.integrations.lightning")
