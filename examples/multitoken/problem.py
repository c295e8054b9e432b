"""Multi-token prediction as the training loop sees it: text, model, losses, metrics and floors."""

import argparse
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from harness.problem import Series
from torch import Tensor
from torch.utils.data import DataLoader

from gradsurgery.balancers.uncertainty import Kind
from multitoken.data import GENERATED, open_text
from multitoken.data.windows import RandomWindows, TiledWindows
from multitoken.decoding import Written, write
from multitoken.metrics import Tally, Unigram, metrics_of
from multitoken.model import BYTES, MultiTokenModel, check_width
from multitoken.objective import FutureTokens, task_names
from multitoken.pictures import plot_cosines, plot_predictions

Batch = dict[str, Tensor]
WRITTEN = 400  # bytes of sample.txt


class MultiTokenProblem(FutureTokens):
    """See `harness.problem.Problem`. Task `next2` is to name the byte after the next one, and so on."""

    collate: Callable[[list[Any]], Any] | None = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        check_width(arguments.width, arguments.heads)
        context, tokens = arguments.context, arguments.tokens
        train, self.val_text = open_text(arguments.data, seed=arguments.seed, at_least=context + tokens)
        self.name = "generated text" if arguments.data == GENERATED else Path(arguments.data).name
        self.train_data = RandomWindows(
            train, context, tokens, count=arguments.train_count or len(train) // context, seed=arguments.seed
        )
        self.val_data = TiledWindows(self.val_text, context, tokens, count=arguments.val_count)
        self.batch_size = arguments.batch_size
        torch.manual_seed(arguments.seed)  # the initial weights are a function of the seed, whatever was drawn before
        super().__init__(build_model(arguments))
        self.kinds: tuple[Kind, ...] = ("classification",) * tokens
        self.loss_units = dict.fromkeys(self.tasks, "cross-entropy, nats")
        self.metrics = metrics_of(self.tasks)
        self.unigram = Unigram(train, BYTES)
        self.floors = self.unigram.measure(self, self.validation())

    def validation(self) -> Iterable[Batch]:
        """The validation windows in batches, on the CPU."""
        return DataLoader(self.val_data, self.batch_size, generator=torch.Generator())

    def start_epoch(self, epoch: int) -> None:
        """Other windows."""
        self.train_data.set_epoch(epoch)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """{"task/metric": value} over the batches, one head's logits in memory at a time."""
        tallies = {task: Tally(task) for task in self.tasks}
        for batch in batches:
            features = self.represent(batch)
            for task, tally in tallies.items():
                tally.update(self.model.heads[task](features), self.target(task, batch))
        return {name: value for tally in tallies.values() for name, value in tally.compute().items()}

    def describe(self) -> str:
        """How many windows, and their length."""
        windows = f"{len(self.train_data)} training windows an epoch and {len(self.val_data)} for validation"
        return f"{windows}, {self.val_data.context} bytes each"

    def describe_floor(self) -> str:
        """The frequencies, by the most frequent byte."""
        byte = self.unigram.most_frequent
        share = self.unigram.log_shares[byte].exp()
        return f"the shares of the bytes in the training text ({bytes([byte]).decode('latin-1')!r} leads with {share:.1%})"

    @cached_property
    def sample(self) -> tuple[bytes, Written]:
        """The first half window of the validation text, and what the model writes after it."""
        prompt = bytes(self.val_text[: self.val_data.context // 2].tolist())
        return prompt, write(self.model, prompt, WRITTEN, speculative=True)

    def draw(self, folder: Path) -> None:
        """predictions.png: bits by head, and by byte of a passage; cosines.png: how heads agree; sample.txt: written text."""
        plot_predictions(self, folder / "predictions.png")
        if len(self.tasks) > 1:
            plot_cosines(self, self.name, next(iter(self.validation())), folder / "cosines.png")
        prompt, written = self.sample
        (folder / "sample.txt").write_bytes(prompt + b"\n--- written by the model: ---\n" + written.text + b"\n")

    def notes(self, log: Series) -> list[tuple[str, list[str]]]:
        """How far the heads carry greedy decoding."""
        _, written = self.sample
        told = (
            f"After half a window of validation text, {len(written.text)} bytes (pictures/sample.txt) took {written.passes} passes "
            f"of the model: {written.bytes_per_pass:.2f} bytes a pass, of {len(self.tasks)} at most. The other heads draft, and "
            "what the first head would not have written itself is dropped, so the text is that of next-byte decoding."
        )
        return [("Writing with the extra heads", [told])]


def build_model(arguments: argparse.Namespace) -> MultiTokenModel:
    """The model that the arguments of a run describe."""
    return MultiTokenModel(
        task_names(arguments.tokens), context=arguments.context, width=arguments.width, layers=arguments.layers,
        attention_heads=arguments.heads,
    )  # fmt: skip
