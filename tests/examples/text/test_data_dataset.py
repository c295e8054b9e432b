"""Encoded texts, batches, classes, and the generated reviews."""

from collections import Counter

import pytest
import torch
from harness.classification import MISSING
from harness.errors import DataError
from text.data.dataset import TextDataset, classes_of, collate
from text.data.sentences import _OWN, _THINGS, _TOPICS, MISSING_RATE, write_reviews
from text.data.tables import Table
from text.data.tokens import PADDING, UNKNOWN, Vocabulary, words

TRAIN = Table("train.csv", ("a b", "b b c a", "a"), {"sentiment": ("good", "bad", None), "topic": ("x", None, "y")})
VAL = Table("val.csv", ("b", "z a", "a"), {"sentiment": ("bad", "meh", "good"), "topic": (None, "x", "w")})


def _data(table: Table, longest: int = 10) -> TextDataset:
    return TextDataset(table, Vocabulary(TRAIN.texts, size=10, min_count=1), classes_of(TRAIN), longest=longest)


def test_labels_are_numbers_in_alphabetical_order() -> None:
    assert classes_of(TRAIN) == {"sentiment": ("bad", "good"), "topic": ("x", "y")}
    data = _data(TRAIN)
    assert data.labels["sentiment"].tolist() == [1, 0, MISSING]
    assert data.labels["topic"].tolist() == [0, MISSING, 1]
    assert data.unknown == {"sentiment": (), "topic": ()}
    assert data[1]["words"].tolist() == [3, 3, 4, 2]
    assert data[1]["labels"] == {"sentiment": 0, "topic": MISSING}


def test_what_training_does_not_know_is_masked_and_counted() -> None:
    data = _data(VAL)
    assert data.labels["sentiment"].tolist() == [0, MISSING, 1]
    assert data.labels["topic"].tolist() == [MISSING, 0, MISSING]
    assert data.unknown == {"sentiment": ("meh",), "topic": ("w",)}
    assert data[1]["words"].tolist() == [UNKNOWN, 2]


def test_long_texts_are_cut() -> None:
    data = _data(TRAIN, longest=2)
    assert [sample.tolist() for sample in data.words] == [[2, 3], [3, 3], [2]]
    assert data.cut == 1


def test_batches_are_padded_behind() -> None:
    data = _data(TRAIN)
    batch = collate([data[index] for index in range(3)])
    assert batch["words"].tolist() == [[2, 3, PADDING, PADDING], [3, 3, 4, 2], [2, PADDING, PADDING, PADDING]]
    assert batch["lengths"].tolist() == [2, 4, 1]
    assert batch["topic"].tolist() == [0, MISSING, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}


@pytest.mark.parametrize(("column", "found"), [(("x", "x", None), "only 'x'"), ((None, None, None), "no label at all")])
def test_a_single_class_is_refused(column: tuple[str | None, ...], found: str) -> None:
    table = Table("train.csv", TRAIN.texts, {"topic": column})
    with pytest.raises(DataError, match=f"train.csv: expected at least two classes in the column 'topic', found {found}"):
        classes_of(table)


def test_indices_outside() -> None:
    for index in (3, -1):
        with pytest.raises(IndexError, match=rf"expected 0\.\.2, found {index}"):
            _data(TRAIN)[index]


def test_reviews_are_functions_of_seed_split_and_index() -> None:
    table = write_reviews("train", count=40, seed=0)
    again = write_reviews("train", count=15, seed=0)
    assert table.take(range(15)) == again
    for seed, split in ((1, "train"), (0, "val")):
        other = write_reviews(split, count=15, seed=seed)  # type: ignore[arg-type]
        assert sum(a == b for a, b in zip(other.texts, again.texts, strict=True)) < 3


def test_reviews_are_what_their_labels_say() -> None:
    table = write_reviews("train", count=600, seed=0)
    counts = {task: Counter(column) for task, column in table.labels.items()}
    for task, tally in counts.items():
        assert 0.5 * MISSING_RATE < tally[None] / 600 < 2 * MISSING_RATE, task
    assert set(counts["topic"]) == {*_TOPICS, None}
    assert set(counts["sentiment"]) == {"positive", "negative", "neutral", None}
    topic_of = {thing: topic for topic, things in _THINGS.items() for thing in things}
    for text, topic in zip(table.texts, table.labels["topic"], strict=True):
        things = [topic_of[word] for word in words(text) if word in topic_of]
        assert topic is None or things[-1] == topic, text  # in passing comes first
    for verdicts in _OWN.values():
        assert len(set(verdicts.values())) <= 2
        assert set(verdicts) <= set(_TOPICS)
