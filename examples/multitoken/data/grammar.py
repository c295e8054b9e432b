"""Text by a small grammar, in which the bytes ahead follow from bytes further back.

    roku: besi[7,tamo(3)] + nel<sido(1),4,nel<2,2,9>> .roku

A line is a name, some terms, and the name again. A term is a digit or a call; the call's word alone decides how many arguments
follow and which brackets hold them. So the first letters of a word give away the rest of it, a bracket closes when the arguments
its word wants are there, and the end of a line copies its beginning: who looks several bytes ahead has to know words, brackets and
lines.
"""

from dataclasses import dataclass
from random import Random

BRACKETS = ("()", "[]", "{}", "<>")
WORDS = 24
MOST_TERMS = 3
DEEPEST = 3


@dataclass(frozen=True)
class Word:
    """How a call is spelled, what encloses its arguments, and how many there are."""

    letters: str
    brackets: str
    arguments: int


class Grammar:
    """The words of `seed`, of which few are frequent (Zipf's law), and lines made of them."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        spellings: list[str] = []
        while len(spellings) < WORDS:
            letters = "".join(self.rng.choice("bdfgklmnprstv") + self.rng.choice("aeiou") for _ in range(self.rng.randint(1, 3)))
            letters += self.rng.choice(("", "l", "n", "r", "s"))
            if letters not in spellings:
                spellings.append(letters)
        self.words = [Word(letters, self.rng.choice(BRACKETS), self.rng.randint(1, 3)) for letters in spellings]
        self.frequencies = [1 / rank for rank in range(1, WORDS + 1)]

    def line(self) -> str:
        """One line with its line break."""
        name = self._word().letters
        terms = " + ".join(self._term(0) for _ in range(self.rng.randint(1, MOST_TERMS)))
        return f"{name}: {terms} .{name}\n"

    def _term(self, depth: int) -> str:
        if depth == DEEPEST or self.rng.random() < 0.25 * depth:
            return str(self.rng.randint(0, 9))
        word = self._word()
        inside = ",".join(self._term(depth + 1) for _ in range(word.arguments))
        return f"{word.letters}{word.brackets[0]}{inside}{word.brackets[1]}"

    def _word(self) -> Word:
        return self.rng.choices(self.words, self.frequencies)[0]


def write_text(seed: int, length: int) -> str:
    """The first `length` characters of the text of `seed`; ASCII."""
    grammar = Grammar(seed)
    lines: list[str] = []
    written = 0
    while written < length:
        lines.append(grammar.line())
        written += len(lines[-1])
    return "".join(lines)[:length]
