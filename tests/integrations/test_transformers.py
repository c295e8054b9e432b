"""Surgery in a Hugging Face Trainer: its real loop, against the steps by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded

import numpy as np
import pytest
import torch
from integrations.problems import assert_same_parameters, by_hand
from tolerances import TOLERANCES
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import BertConfig, BertModel, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import gradsurgery as gs
from gradsurgery.integrations.transformers import FILE, SurgeryTrainerMixin

pytestmark = pytest.mark.usefixtures("own_accelerator")
TASKS = ("topic", "tone", "length")
BATCH, WORDS, CLASSES = 4, 6, 3
BATCHES = 8  # of one task each, the tasks in turn


class TextModel(PreTrainedModel):
    """A tiny BERT from its configuration, and a head a task on its first token.

    Like most models it takes any keyword, from which the Trainer concludes that it divides losses by the number of labels.
    """

    config_class = BertConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.trunk = BertModel(config, add_pooling_layer=False)
        self.heads = nn.ModuleDict({task: nn.Linear(config.hidden_size, CLASSES) for task in TASKS})
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> dict[str, Tensor]:
        z = self.trunk(input_ids).last_hidden_state[:, 0]
        return {task: head(z) for task, head in self.heads.items()}


def text_model(dropout: float = 0.0) -> TextModel:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=WORDS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return TextModel(config)


class Texts(Dataset[dict[str, Tensor]]):
    """The same words with a label a task, in batches of one task, or of all."""

    def __init__(self, batches: int = BATCHES, ignored: int = 0) -> None:
        g = torch.Generator().manual_seed(1)
        self.words = torch.randint(40, (batches * BATCH, WORDS), generator=g)
        self.labels = torch.randint(CLASSES, (batches * BATCH,), generator=g)
        self.labels[:ignored] = -100

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[i], "labels": self.labels[i], "task": torch.tensor(i // BATCH % len(TASKS))}


def task_losses(outputs: dict[str, Tensor], labels: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """The tasks want different classes of the same words."""
    each = {task: nn.functional.cross_entropy(outputs[task].float(), (labels + i) % CLASSES) for i, task in enumerate(TASKS)}
    return {task: (i + 1) * each[task] for i, task in enumerate(TASKS) if task in tasks}


class OneTaskTrainer(SurgeryTrainerMixin, Trainer):
    """Each batch holds one task."""

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        return task_losses(model(inputs["input_ids"]), inputs["labels"], [TASKS[int(inputs["task"][0])]])

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class AllTasksTrainer(OneTaskTrainer):
    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        outputs = model(inputs["input_ids"])
        return task_losses(outputs, inputs["labels"], TASKS), {"loss": None, **outputs}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "num_train_epochs": 1,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "label_names": ["labels"],
    }
    return TrainingArguments(str(folder), **{**defaults, **options})


def ascending() -> gs.GradientAggregator:
    return gs.GradientAggregator("pcgrad", tasks=TASKS, order="ascending")


def trained_by_hand(model: TextModel, accumulation: int, single: bool) -> float:
    """The trainer's steps, and the training loss that it is to report."""
    data = Texts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    total, steps = 0.0, range(0, BATCHES, accumulation)
    for first in steps:
        window = range(first, min(first + accumulation, BATCHES))
        losses = []
        for b in window:
            rows = slice(b * BATCH, (b + 1) * BATCH)
            tasks = [TASKS[b % len(TASKS)]] if single else TASKS
            each = task_losses(model(data.words[rows]), data.labels[rows], tasks)
            losses.append({task: loss / len(window) for task, loss in each.items()})
            total += sum(loss.item() for loss in losses[-1].values())
        for p, grad in zip(model.parameters(), by_hand(model, model.trunk, losses).values(), strict=True):
            p.grad = None if grad is None else grad.to(p.dtype)
        optimizer.step()
    return total / len(steps)


# --- training ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["trunk named", "trunk found"])
def test_single_task_batches(tmp_path: Path, named: bool) -> None:
    """Surgery on the tasks' gradients over each step's micro-batches, of which the last step has fewer."""
    model, twin = text_model(), text_model()
    surgery = ascending()
    shared = model.trunk.parameters() if named else None
    trainer = OneTaskTrainer(
        model, arguments(tmp_path, gradient_accumulation_steps=3), train_dataset=Texts(), surgery=surgery, shared=shared
    )
    found = trainer.train()
    expected = trained_by_hand(twin, 3, single=True)
    assert_same_parameters(model, twin, rtol=1e-5)
    assert found.training_loss == pytest.approx(expected, rel=1e-5)
    assert [step.present for step in surgery.history] == [(True, True, True)] * 2 + [(True, True, False)]
    assert sum(int(step.conflicts) for step in surgery.history) > 0


def test_all_tasks_in_every_batch(tmp_path: Path) -> None:
    model, twin = text_model(), text_model()
    trainer = AllTasksTrainer(model, arguments(tmp_path), train_dataset=Texts(), surgery=ascending())
    found = trainer.train()
    expected = trained_by_hand(twin, 1, single=False)
    assert_same_parameters(model, twin, rtol=1e-5)
    assert found.training_loss == pytest.approx(expected, rel=1e-5)


def test_bfloat16(tmp_path: Path) -> None:
    model, twin = text_model(), text_model()
    seen = set()
    model.heads["tone"].register_forward_hook(lambda _, __, z: seen.add(z.dtype))
    options = {"gradient_accumulation_steps": 3, "bf16": True}
    OneTaskTrainer(model, arguments(tmp_path, **options), train_dataset=Texts(), surgery=ascending()).train()
    trained_by_hand(twin, 3, single=True)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same_parameters(model, twin, rtol=2 * TOLERANCES[torch.bfloat16].rounding)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # its new name is not in all versions
def test_activation_checkpointing(tmp_path: Path) -> None:
    model, twin = text_model(), text_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    model.trunk.encoder.layer[0].intermediate.register_forward_pre_hook(lambda *_: calls.append(1))
    args = arguments(tmp_path, gradient_accumulation_steps=3)
    OneTaskTrainer(model, args, train_dataset=Texts(), surgery=ascending()).train()
    assert len(calls) == 2 * BATCHES, "each batch's activations are computed again"
    trained_by_hand(twin, 3, single=True)
    assert_same_parameters(model, twin, rtol=1e-5)


def test_a_scaler(tmp_path: Path) -> None:
    """float16 wants a GPU; the scaler works on the CPU as well. A power of two changes nothing."""
    model, twin = text_model(), text_model()
    trainer = OneTaskTrainer(model, arguments(tmp_path, gradient_accumulation_steps=3), train_dataset=Texts(), surgery=ascending())
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.train()
    trained_by_hand(twin, 3, single=True)
    assert trainer.accelerator.scaler.get_scale() == 2.0**10
    assert_same_parameters(model, twin, rtol=1e-5)


def test_losses_divided_by_the_number_of_labels(tmp_path: Path) -> None:
    """A third parameter asks the Trainer to count the labels of a step; then nothing else divides."""
    data = Texts(2, ignored=3)
    told = []

    class Counting(OneTaskTrainer):
        def compute_losses(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            told.append(int(num_items_in_batch))
            task = TASKS[int(inputs["task"][0])]
            outputs = model(inputs["input_ids"])[task]
            return {task: nn.functional.cross_entropy(outputs, inputs["labels"], reduction="sum") / num_items_in_batch}

    model, twin = text_model(), text_model()
    surgery = ascending()
    Counting(model, arguments(tmp_path, gradient_accumulation_steps=2), train_dataset=data, surgery=surgery).train()
    assert told == [2 * BATCH - 3] * 2
    losses = []
    for b, task in enumerate(TASKS[:2]):
        rows = slice(b * BATCH, (b + 1) * BATCH)
        outputs = twin(data.words[rows])[task]
        losses.append({task: nn.functional.cross_entropy(outputs, data.labels[rows], reduction="sum") / told[0]})
    with torch.no_grad():
        for p, grad in zip(twin.parameters(), by_hand(twin, twin.trunk, losses).values(), strict=True):
            p.sub_(0.0 if grad is None else 0.5 * grad.to(p.dtype))
    assert_same_parameters(model, twin, rtol=1e-5)


class StopBetweenMicroBatches(TrainerCallback):
    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = True
        return control


def test_a_step_that_was_given_up_is_dropped(tmp_path: Path) -> None:
    model, twin = text_model(), text_model()
    trainer = OneTaskTrainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=3),
        train_dataset=Texts(),
        surgery=ascending(),
        callbacks=[StopBetweenMicroBatches()],
    )
    trainer.train()
    assert_same_parameters(model, twin)
    trainer.remove_callback(StopBetweenMicroBatches)
    trainer.train()
    trained_by_hand(twin, 3, single=True)
    assert_same_parameters(model, twin, rtol=1e-5)


# --- evaluation and checkpoints ---------------------------------------------------------------------------------------------


def test_evaluation_and_prediction(tmp_path: Path) -> None:
    model, data = text_model(), Texts()
    surgery = ascending()

    def accuracy(prediction: Any) -> dict[str, float]:
        topic = prediction.predictions[0]
        assert topic.shape == (len(data), CLASSES)
        return {"accuracy": float((topic.argmax(-1) == prediction.label_ids).mean())}

    options = arguments(tmp_path)
    trainer = AllTasksTrainer(model, options, eval_dataset=data, surgery=surgery, compute_metrics=accuracy)
    found = trainer.evaluate()
    with torch.no_grad():
        outputs = model.eval()(data.words)
        expected = sum(loss.item() for loss in task_losses(outputs, data.labels, TASKS).values())
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["eval_accuracy"] == pytest.approx(float((outputs["topic"].argmax(-1) == data.labels).float().mean()))
    assert surgery.history == []
    assert all(p.grad is None for p in model.parameters())

    without_outputs = OneTaskTrainer(text_model(), options, eval_dataset=data, surgery=ascending())
    assert np.isfinite(without_outputs.evaluate()["eval_loss"])
    assert without_outputs.predict(data).metrics["test_loss"] == pytest.approx(without_outputs.evaluate()["eval_loss"])


def test_resuming_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    """Dropout, the random order of PCGrad, and a checkpoint in the middle of an epoch."""

    def trainer(seed: int, folder: str) -> OneTaskTrainer:
        options = {"gradient_accumulation_steps": 3, "optim": "adamw_torch", "learning_rate": 0.01, "num_train_epochs": 3}
        saving = {"save_strategy": "steps", "save_steps": 4}
        surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, seed=seed)
        args = arguments(tmp_path / folder, **options, **saving)
        return OneTaskTrainer(text_model(dropout=0.2), args, train_dataset=Texts(), surgery=surgery)

    through = trainer(5, "through")
    through.train()
    checkpoint = tmp_path / "through" / "checkpoint-4"
    assert (checkpoint / FILE).is_file()
    resumed = trainer(6, "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_parameters(resumed.model, through.model)
    (checkpoint / FILE).unlink()
    with pytest.warns(UserWarning, match=rf"checkpoint-4 has no {FILE}"):
        trainer(5, "without").train(resume_from_checkpoint=str(checkpoint))


# --- misuse -----------------------------------------------------------------------------------------------------------------


def test_what_is_refused(tmp_path: Path) -> None:
    args, data = arguments(tmp_path), Texts(1)
    with pytest.raises(TypeError, match="surgery: expected a GradientAggregator, found str"):
        OneTaskTrainer(text_model(), args, surgery="pcgrad")
    with pytest.raises(ValueError, match="compute_loss_func: expected none"):
        OneTaskTrainer(text_model(), args, surgery=ascending(), compute_loss_func=lambda *_, **__: None)
    with pytest.raises(ValueError, match="label_smoothing_factor: expected none"):
        OneTaskTrainer(text_model(), arguments(tmp_path, label_smoothing_factor=0.1), surgery=ascending())

    with pytest.raises(ValueError, match="optim: expected one that steps after the backward pass, found 'adalomo'"):
        OneTaskTrainer(text_model(), arguments(tmp_path, optim="adalomo"), surgery=ascending())

    def training(losses: Any) -> None:
        class Wrong(OneTaskTrainer):
            def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
                return losses(model(inputs["input_ids"]))

        Wrong(text_model(), args, train_dataset=data, surgery=ascending()).train()

    for wrong, error, message in (
        (lambda z: list(z.values()), TypeError, "compute_losses: expected a dict of losses by task, found list"),
        (lambda z: z, TypeError, r"compute_losses\(\)\['topic'\]: expected a scalar, found a tensor of shape \[4, 3\]"),
        (lambda z: {"topic": None}, ValueError, "compute_losses: expected at least one task's loss, found none"),
        (lambda z: {"topic": z["topic"].sum(), "other": z["tone"].sum()}, ValueError, "expected one of .* found 'other'"),
    ):
        with pytest.raises(error, match=message):
            training(wrong)

    class Undefined(SurgeryTrainerMixin, Trainer):
        pass

    with pytest.raises(NotImplementedError, match="Undefined: define compute_losses"):
        Undefined(text_model(), args, train_dataset=data, surgery=ascending()).train()
