"""Text → words → numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text in lower case, and every other character that is not a space by itself: "Don't!" -> ["don't", "!"].

    A text that is not blank has at least one.
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


class Vocabulary:
    """The words that have a number: the most frequent ones of the training texts. 0 pads, 1 stands for all other words.

    Words that occur equally often stand in alphabetical order.

    Args:
        texts: the training texts.
        size: at most so many words.
        min_count: a word has to occur so often.
    """

    def __init__(self, texts: Iterable[str], *, size: int, min_count: int) -> None:
        counts = Counter(word for text in texts for word in words(text))
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        self._number = {word: number for number, (_, word) in enumerate(frequent[:size], start=UNKNOWN + 1)}

    def __len__(self) -> int:
        """How many words have a number of their own."""
        return len(self._number)

    @property
    def numbers(self) -> int:
        """How many numbers there are, 0 and 1 included."""
        return len(self._number) + UNKNOWN + 1

    def encode(self, text: str) -> list[int]:
        """The numbers of the text's words."""
        return [self._number.get(word, UNKNOWN) for word in words(text)]

    def __contains__(self, word: str) -> bool:
        return word in self._number
