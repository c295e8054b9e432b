"""The Hugging Face Trainer: each batch is of one task, and a step accumulates several."""

from torch.nn.functional import cross_entropy
from transformers import Trainer

import gradsurgery.integrations.transformers

TASKS = ("topic", "tone", "intent")


class MultiTaskTrainer(gradsurgery.integrations.transformers.SurgeryTrainerMixin, Trainer):
    def compute_losses(self, model, inputs):
        outputs = model(inputs["input_ids"])
        task = TASKS[inputs["task"]]
        loss = cross_entropy(outputs[task], inputs["labels"])
        return {task: loss}, outputs


def train(model, arguments, data, collate):
    MultiTaskTrainer(model, arguments, collate, data, surgery=gradsurgery.GradientAggregator("pcgrad", tasks=TASKS)).train()
