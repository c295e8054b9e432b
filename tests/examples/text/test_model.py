"""The packed LSTM: as each text by itself, blind to padding, to what stands beside a text, and to garbage without a label."""

import pytest
import torch
from harness.classification import MISSING, classification_loss
from text.data.tokens import PADDING
from text.model import TextNet
from torch import Tensor, nn

LENGTHS = torch.tensor([3, 7, 1, 5])
CLASSES = {"sentiment": 3, "topic": 4}


@pytest.fixture
def net() -> TextNet:
    return TextNet(20, CLASSES, embedding=6, width=5, dropout=0.0)


@pytest.fixture
def batch() -> Tensor:
    words = torch.randint(1, 20, (4, 7))
    for row, length in enumerate(LENGTHS):
        words[row, length:] = PADDING
    return words


def test_packed_is_each_text_by_itself(net: TextNet, batch: Tensor) -> None:
    """The reference steps an LSTM cell with the trunk's weights over one unpadded text, in each direction."""
    packed = net.trunk(batch, LENGTHS)
    lstm = net.trunk.lstm
    for row, length in enumerate(LENGTHS.tolist()):
        embedded = net.trunk.embedding(batch[row, :length])
        ends = []
        for suffix, steps in (("", range(length)), ("_reverse", range(length - 1, -1, -1))):
            cell = nn.LSTMCell(6, 5)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(cell, name).data = getattr(lstm, f"{name}_l0{suffix}").data
            state = (torch.zeros(5), torch.zeros(5))
            for step in steps:
                state = cell(embedded[step], state)
            ends.append(state[0])
        torch.testing.assert_close(packed[row], torch.cat(ends))


def test_padding_and_neighbours_do_not_matter(net: TextNet, batch: Tensor) -> None:
    whole = net(batch, LENGTHS)
    wider = torch.cat([batch, torch.randint(1, 20, (4, 3))], dim=1)  # garbage behind the texts
    torch.testing.assert_close(net(wider, LENGTHS), whole)
    for row in range(4):
        alone = net(batch[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1])
        for task in CLASSES:
            torch.testing.assert_close(alone[task][0], whole[task][row])


def test_the_order_of_words_matters(net: TextNet) -> None:
    one, other = (net.trunk(torch.tensor([words]), torch.tensor([3])) for words in ([2, 3, 4], [3, 2, 4]))
    assert (one - other).abs().max() > 1e-3


def test_padding_is_not_trained(net: TextNet, batch: Tensor) -> None:
    net.trunk(batch, LENGTHS).sum().backward()
    gradient = net.trunk.embedding.weight.grad
    assert gradient is not None
    assert gradient[PADDING].eq(0).all()
    assert gradient[1:].abs().sum() > 0


def test_other_words_under_missing_labels_change_neither_loss_nor_gradient(net: TextNet, batch: Tensor) -> None:
    labels = torch.tensor([2, MISSING, 0, MISSING])
    garbage = batch.clone()
    garbage[1], garbage[3, :5] = torch.randint(1, 20, (7,)), torch.randint(1, 20, (5,))
    assert not torch.equal(garbage, batch)
    losses, gradients = [], []
    for words in (batch, garbage):
        net.zero_grad()
        loss = classification_loss(net(words, LENGTHS)["topic"], labels)
        assert loss is not None
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: value.grad for name, value in net.named_parameters() if value.grad is not None})
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not any("sentiment" in name for name in gradients[0])
