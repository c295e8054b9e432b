"""The data set the trainer sees: numbers of words, and a class for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from harness.classification import MISSING
from harness.errors import DataError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from text.data.tables import Table
from text.data.tokens import PADDING, Vocabulary


class Sample(TypedDict):
    """A text and its labels."""

    words: Tensor  # int64 [L], L ≥ 1
    labels: dict[str, int]


def classes_of(table: Table) -> dict[str, tuple[str, ...]]:
    """Each task's class names in alphabetical order, as the training table has them.

    Raises:
        DataError: a task without two classes.
    """
    classes = {task: tuple(sorted({label for label in column if label is not None})) for task, column in table.labels.items()}
    for task, names in classes.items():
        if len(names) < 2:
            found = f"only {names[0]!r}" if names else "no label at all"
            raise DataError(f"{table.name}: expected at least two classes in the column {task!r}, found {found}; check the column.")
    return classes


class TextDataset(Dataset[Sample]):
    """Encoded texts. A label that is missing, or that training has no class for, is MISSING.

    Args:
        table: the texts and their labels.
        vocabulary: of the training texts.
        classes: task -> class names.
        longest: so many words of a text are used.
    """

    def __init__(self, table: Table, vocabulary: Vocabulary, classes: Mapping[str, Sequence[str]], *, longest: int) -> None:
        self.table = table
        encoded = [vocabulary.encode(text) for text in table.texts]
        self.cut = sum(len(numbers) > longest for numbers in encoded)
        """How many texts are longer than that."""
        self.words = [torch.tensor(numbers[:longest]) for numbers in encoded]
        numbers = {task: {name: number for number, name in enumerate(names)} for task, names in classes.items()}
        self.labels = {
            task: torch.tensor([MISSING if label is None else numbers[task].get(label, MISSING) for label in table.labels[task]])
            for task in classes
        }
        self.unknown = {
            task: tuple(label for label in table.labels[task] if label is not None and label not in numbers[task])
            for task in classes
        }
        """The labels, task by task, that training has no class for."""

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, found {index}")
        return {"words": self.words[index], "labels": {task: int(column[index]) for task, column in self.labels.items()}}


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """words int64 [B, longest] with PADDING behind, lengths int64 [B], and each task's label int64 [B]."""
    words = [sample["words"] for sample in samples]
    return {
        "words": pad_sequence(words, batch_first=True, padding_value=PADDING),
        "lengths": torch.tensor([len(sequence) for sequence in words]),
        **{task: torch.tensor([sample["labels"][task] for sample in samples]) for task in samples[0]["labels"]},
    }
