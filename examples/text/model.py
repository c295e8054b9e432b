"""A bidirectional LSTM over the words, a linear head for each task."""

from collections.abc import Mapping

import torch
from harness.model import MultiTaskModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from text.data.tokens import PADDING


class Trunk(nn.Module):
    """Words [B, L] of which the first lengths [B] count -> the shared representation [B, 2·width], where task gradients meet.

    It is the state of the forward LSTM (Hochreiter & Schmidhuber 1997) after a text's last word beside that of the backward one
    after its first. The sequences are packed: padding is never read, and a text's representation does not depend on its batch.
    """

    def __init__(self, vocabulary: int, *, embedding: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, width, batch_first=True, bidirectional=True)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(words))  # [B, L, embedding]
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)  # [2, B, width]
        features: Tensor = self.dropout(torch.cat([last[0], last[1]], dim=1))
        return features


class TextNet(MultiTaskModel):
    """The trunk, and for each task of `classes` (task -> number of classes) logits [B, classes].

    Args:
        vocabulary: how many numbers words have.
        classes: the tasks.
        embedding: length of a word's vector.
        width: length of the LSTM's state, in each direction.
        dropout: share of the embeddings and of the representation that is dropped in training.
    """

    def __init__(self, vocabulary: int, classes: Mapping[str, int], *, embedding: int, width: int, dropout: float) -> None:
        trunk = Trunk(vocabulary, embedding=embedding, width=width, dropout=dropout)
        super().__init__(trunk, {task: nn.Linear(2 * width, count) for task, count in classes.items()})

    def forward(self, words: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Every task's logits."""
        features = self.trunk(words, lengths)
        return {task: head(features) for task, head in self.heads.items()}
