"""The Hugging Face Trainer: each batch is of one task, and a step accumulates several."""

from torch.nn.functional import cross_entropy
from transformers import Trainer

TASKS = ("topic", "tone", "intent")


class MultiTaskTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["input_ids"])
        task = TASKS[inputs["task"]]
        loss = cross_entropy(outputs[task], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def train(model, arguments, data, collate):
    MultiTaskTrainer(model, arguments, collate, data).train()
