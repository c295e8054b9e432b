"""No output looks ahead, what heads share stands behind the trunk, and the detached step is the sum of the losses."""

import copy
from typing import cast

import pytest
import torch
from harness.errors import RunError
from harness.precision import Precision
from harness.problem import Problem
from harness.step import SurgicalStep
from multitoken.data.windows import IGNORE, window
from multitoken.model import MultiTokenModel, check_width
from multitoken.objective import FutureTokens, cross_entropy, task_names

import gradsurgery as gs

CONTEXT, TOKENS, VOCABULARY = 10, 3, 13


def _model() -> MultiTokenModel:
    torch.manual_seed(1)
    return MultiTokenModel(
        task_names(TOKENS), context=CONTEXT, width=8, layers=2, attention_heads=2, vocabulary=VOCABULARY
    ).double()  # fmt: skip


def _batch() -> dict[str, torch.Tensor]:
    text = torch.randint(VOCABULARY, (40,), generator=torch.Generator().manual_seed(2))
    samples = [window(text, start, CONTEXT, TOKENS) for start in (0, 7, 31)]  # the last one runs beyond the end
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


@pytest.mark.parametrize("changed", range(CONTEXT))
def test_a_byte_changes_what_stands_at_it_and_after_it_alone(changed: int) -> None:
    model = _model()
    before = torch.randint(VOCABULARY, (2, CONTEXT))
    after = before.clone()
    after[:, changed] = (before[:, changed] + 1) % VOCABULARY
    with torch.no_grad():
        one, other = model.trunk(before), model.trunk(after)
        pairs = [(one, other), *((head(one), head(other)) for head in model.heads.values())]
    for first, second in pairs:
        differs = (first != second).any(0).any(-1)
        assert not differs[:changed].any()
        assert differs[changed:].all()


def test_heads_see_no_later_representation() -> None:
    model = _model()
    features = torch.randn(1, CONTEXT, 8, dtype=torch.float64, requires_grad=True)
    for head in model.heads.values():
        (gradient,) = torch.autograd.grad(head(features)[0, 4].sum(), features)
        assert (gradient[0, 5:] == 0).all()
        assert (gradient[0, :5] != 0).any(-1).all()


def test_a_prefix_gives_the_same_answers_as_the_whole() -> None:
    model = _model()
    read = torch.randint(VOCABULARY, (1, CONTEXT))
    with torch.no_grad():
        whole = model.heads["next2"](model.trunk(read))
        prefix = model.heads["next2"](model.trunk(read[:, :4]))
    torch.testing.assert_close(prefix, whole[:, :4])


def test_the_unembedding_is_one_and_no_part_of_the_trunk() -> None:
    model = _model()
    tables = {id(head.unembedding[1].weight) for head in model.heads.values()}
    assert len(tables) == 1
    assert not tables & {id(parameter) for parameter in model.trunk.parameters()}
    groups = model.parameter_groups(0.1, 0.2)
    assert sorted(map(id, (p for group in groups for p in group["params"]))) == sorted(map(id, model.parameters()))


def test_a_width_that_attention_heads_cannot_share_is_refused() -> None:
    check_width(12, 4)
    with pytest.raises(RunError, match=r"--width 13: expected a multiple of --heads 4, which share it evenly; take 12\."):
        check_width(13, 4)
    with pytest.raises(RunError, match=r"take 4\."):
        check_width(1, 4)


def test_the_loss_is_the_mean_over_what_is_asked() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    target = torch.tensor([[1, 4, IGNORE], [IGNORE, IGNORE, 0]])
    asked = [(0, 0, 1), (0, 1, 4), (1, 2, 0)]
    terms = [-(logits[b, t, k] - logits[b, t].exp().sum().log()) for b, t, k in asked]
    torch.testing.assert_close(cross_entropy(logits, target), sum(terms) / 3)
    torch.testing.assert_close(cross_entropy(logits, target, "sum"), sum(terms))
    assert cross_entropy(logits.bfloat16(), target).dtype == torch.float32
    # What is predicted where nothing is asked does not matter.
    planted = logits.clone()
    planted[1, :2] = 1e6
    assert torch.equal(cross_entropy(planted, target), cross_entropy(logits, target))


@pytest.mark.parametrize("form", ["detach", "split", "parameters"])
def test_one_head_after_the_other_gives_the_gradients_of_the_summed_loss(form: str) -> None:
    model, batch = _model(), _batch()
    reference = copy.deepcopy(model)
    features = reference.trunk(batch["input"])
    total = torch.zeros((), dtype=torch.float64)
    for ahead, head in enumerate(reference.heads.values(), start=1):  # by hand: shift the bytes, leave out what is missing
        logits = head(features).log_softmax(-1)
        for row, (read, target) in enumerate(zip(batch["input"], batch["target"], strict=True)):
            following = [*read[1:2].tolist(), *target[1:].tolist()]  # the bytes from position 1 on
            asked = [(t, following[t + ahead - 1]) for t in range(CONTEXT) if following[t + ahead - 1] != IGNORE]
            count = int((batch["target"][:, ahead - 1 : ahead - 1 + CONTEXT] != IGNORE).sum())
            total = total - sum(logits[row, t, byte] for t, byte in asked) / count
    total.backward()

    problem = FutureTokens(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    surgery = gs.GradientAggregator("sum", tasks=problem.tasks)
    step = SurgicalStep(
        cast(Problem, problem), surgery, None, optimizer, Precision("off", torch.device("cpu")), form=form, clip_norm=0.0
    )
    losses = step(batch).losses
    assert float(sum(losses.values())) == pytest.approx(total.item(), rel=1e-12)
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
