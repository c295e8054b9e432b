"""Words and the vocabulary, by hand."""

import pytest
from text.data.tokens import PADDING, UNKNOWN, Vocabulary, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The soup was good.", ["the", "soup", "was", "good", "."]),
        ("Don't  you\tdare!\n", ["don't", "you", "dare", "!"]),
        ("Don’t", ["don't"]),
        ("rock'n'roll 'quoted'", ["rock'n'roll", "'", "quoted", "'"]),
        ("naïve façade, 東京", ["naïve", "façade", ",", "東京"]),
        ("4.5/5 :-) 👍", ["4", ".", "5", "/", "5", ":", "-", ")", "👍"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_most_frequent_words_have_the_first_numbers() -> None:
    texts = ["b b b a a c c d", "c b E e"]
    vocabulary = Vocabulary(texts, size=10, min_count=1)
    assert vocabulary.encode("b c a e d") == [2, 3, 4, 5, 6]  # 4, 3, 2, 2, 1 times; a before e
    assert (len(vocabulary), vocabulary.numbers) == (5, 7)
    assert vocabulary.encode("b zebra B") == [2, UNKNOWN, 2]
    assert PADDING not in vocabulary.encode("b zebra c")


def test_rare_words_are_unknown() -> None:
    texts = ["b b b a a c c d", "c b E e"]
    frequent = Vocabulary(texts, size=10, min_count=3)
    assert frequent.encode("b c a e d") == [2, 3, UNKNOWN, UNKNOWN, UNKNOWN]
    assert "c" in frequent
    assert "a" not in frequent
    assert Vocabulary(texts, size=1, min_count=1).encode("b c a") == [2, UNKNOWN, UNKNOWN]
    assert len(Vocabulary(texts, size=10, min_count=9)) == 0
