"""One step: the forms agree, and without a method each is the plain gradient of the summed loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._functorch.config
from harness.arguments import BALANCERS, FORMS
from harness.errors import RunError
from harness.step import SurgicalStep
from harness.training import Training
from methods.gradients import FEWEST
from torch import Tensor

import gradsurgery as gs

BATCH = (torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([[0.0], [1], [1], [0]]), torch.ones(4, 1))


def _gradients(problem: Any, step: SurgicalStep, batch: tuple[Tensor, ...] = BATCH) -> list[Tensor]:
    """The gradients that the step leaves, for a model that is not updated and has no dropout."""
    problem.model.eval()
    step(batch)
    return [parameter.grad.clone() for parameter in problem.model.parameters()]


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("method", ["sum", "pcgrad"])
def test_both_forms_leave_the_same_gradients(toy: Any, start: Callable[..., Training], method: str, balancer: str) -> None:
    found = []
    for form in ("split", "detach"):
        problem = toy()
        training = start(problem, "--form", form, "--method", method, "--balancer", balancer, "--lr", "0", out=form)
        found.append((_gradients(problem, training.update), training))
        training.log.close()
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(one, other)
    learned = [[] if training.balancer is None else list(training.balancer.parameters()) for _, training in found]
    assert len(learned[0]) == (balancer in ("uncertainty", "uw", "gradnorm", "imtll"))
    for one, other in zip(*learned, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", sorted(gs.methods()))
def test_every_method_trains_or_says_what_it_wants(toy: Any, start: Callable[..., Training], method: str, form: str) -> None:
    problem = toy()
    if method in FEWEST:
        with pytest.raises(RunError, match=rf"--method {method}: .*2"):
            start(problem, "--method", method)
        return
    training = start(problem, "--form", form, "--method", method)
    before = [parameter.clone() for parameter in problem.model.parameters()]
    for _ in range(3):
        result = training.update(BATCH)
    assert {"norm/side", "norm/height", "conflicts"} <= set(training._measurements(result))
    training.log.close()
    after = list(problem.model.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_sum_is_the_plain_gradient(toy: Any, start: Callable[..., Training], form: str) -> None:
    problem, plain = toy(), toy()
    training = start(problem, "--method", "sum", "--lr", "0", "--form", form)
    found = _gradients(problem, training.update)
    training.log.close()
    plain.model.eval()
    features = plain.represent(BATCH)
    (plain.loss("side", features, BATCH) + plain.loss("height", features, BATCH)).backward()
    for one, parameter in zip(found, plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_the_norm_is_clipped(toy: Any, start: Callable[..., Training]) -> None:
    problem = toy()
    training = start(problem, "--clip-norm", "0.01")
    found = _gradients(problem, training.update)
    training.log.close()
    assert torch.stack([gradient.norm() for gradient in found]).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_any_target_changes_nothing(toy: Any, start: Callable[..., Training], form: str) -> None:
    problem = toy()
    training = start(problem, "--form", form)
    problem.loss = lambda task, features, batch: None
    before = [parameter.clone() for parameter in problem.model.parameters()]
    assert training.update(BATCH).losses == {}
    assert training.update(BATCH).losses == {}  # the detached form is ready for the next step
    training.log.close()
    for one, other in zip(before, problem.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_and_reports_unscaled_norms(toy: Any, start: Callable[..., Training], amp: str, form: str) -> None:
    norms = []
    for name in ("off", amp):
        problem = toy()
        training = start(problem, "--amp", name, "--lr", "0", "--form", form, out=name)
        problem.model.eval()
        for _ in range(12):  # fp16 starts with a scale that overflows, and halves it until it does not
            result = training.update(BATCH)
        assert (training.precision.scaler.get_scale() > 1) == (name == "fp16")
        norms.append(training._measurements(result)["norm/height"])
        training.log.close()
        assert all(torch.isfinite(parameter.grad).all() for parameter in problem.model.parameters())
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_parameter_space_is_surgery_on_whole_gradients(toy: Any, start: Callable[..., Training], form: str) -> None:
    problem, plain = toy(), toy()
    for one in (problem, plain):  # in conflict: the heads pull in opposite directions, and both want less
        with torch.no_grad():
            one.model.heads["height"].weight.copy_(-one.model.heads["side"].weight)
    batch = (BATCH[0], torch.zeros(4, 1), torch.full((4, 1), -2.0))
    training = start(problem, "--method", "pcgrad", "--method-option", "order='ascending'", "--lr", "0", "--form", form)
    found = _gradients(problem, training.update, batch)
    training.log.close()
    plain.model.eval()
    trunk = list(plain.model.trunk.parameters())
    whole = []
    for task in plain.tasks:
        loss = plain.loss(task, plain.represent(batch), batch)
        whole.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, trunk)]))
    expected = gs.aggregate(torch.stack(whole), "pcgrad", order="ascending")
    assert not torch.allclose(expected, whole[0] + whole[1])
    same = torch.allclose(torch.cat([grad.flatten() for grad in found[: len(trunk)]]), expected)
    assert same == (form == "parameters")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compiled_parts_leave_the_same_gradients(
    toy: Any, start: Callable[..., Training], form: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(torch.compiler.reset)
    with torch._functorch.config.patch(donated_buffer=True), torch.compiler.config.patch(cache_key_tag=""):
        found = []
        for name, options in (("eager", ()), ("compiled", ("--compile",))):
            problem = toy()
            training = start(problem, "--form", form, "--lr", "0", *options, out=name)
            assert (problem.model.trunk._compiled_call_impl is not None) == (name == "compiled")
            found.append(_gradients(problem, training.update))
            training.log.close()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_unknown_method_options_are_an_error_for_the_user(toy: Any, start: Callable[..., Training]) -> None:
    with pytest.raises(RunError, match=r"--method sum: .*no option 'c'"):
        start(toy(), "--method", "sum", "--method-option", "c=0.4")


def test_balancers_take_options_and_refuse_others(toy: Any, start: Callable[..., Training]) -> None:
    training = start(toy(), "--balancer", "uw", "--balancer-option", "form=liebel")
    training.log.close()
    assert training.balancer is not None
    assert training.balancer.form == "liebel"
    assert training.balancer.kinds == ("classification", "regression")
    with pytest.raises(RunError, match=r"--balancer gls: .*no option 'temp'"):
        start(toy(), "--balancer", "gls", "--balancer-option", "temp=2", out="other")


@pytest.mark.parametrize("form", FORMS)
def test_famo_sees_the_losses_after_the_update(toy: Any, start: Callable[..., Training], form: str) -> None:
    problem = toy()
    training = start(problem, "--balancer", "famo", "--form", form)
    problem.model.eval()
    before = training.update(BATCH).losses
    training.log.close()
    features = problem.represent(BATCH)
    after = {task: problem.loss(task, features, BATCH).detach() for task in problem.tasks}
    expected = gs.FAMO(problem.tasks)
    expected(before)
    expected.update(after)
    assert isinstance(training.balancer, gs.FAMO)
    assert torch.equal(training.balancer.logits, expected.logits)
    assert training.balancer.logits.abs().max() > 0


def test_famo_may_wait_for_the_next_batch(toy: Any, start: Callable[..., Training]) -> None:
    problem = toy()
    training = start(problem, "--balancer", "famo", "--balancer-option", "update_on_next_call=True")
    for _ in range(3):
        training.update(BATCH)
    training.log.close()
    assert isinstance(training.balancer, gs.FAMO)
    assert training.balancer._steps.tolist() == [2, 2]
    assert problem.passes == 3, "no second pass"
