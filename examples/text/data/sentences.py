"""Generated reviews: what is judged is the topic, how it is judged the sentiment. Some labels are missing on purpose.

The last judgement counts ("… was slow, but …"), "not" turns it around, some words praise one thing and blame another, and things of
other topics are mentioned in passing: word counts do not do.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from text.data.tables import Table

GENERATED = "generated"
COUNTS = {"train": 2000, "val": 500}
"""How many texts are generated where nothing else is asked for."""

MISSING_RATE = 0.1
"""How many labels of each task are left out."""

_SPLITS = {"train": 0, "val": 1}
_SENTIMENTS = {"positive": 0.45, "negative": 0.35, "neutral": 0.2}
_TOPICS = {"food": 0.35, "film": 0.3, "travel": 0.2, "phone": 0.15}
_THINGS = {
    "food": ("soup", "bread", "menu", "dessert", "dinner", "kitchen", "curry", "salad", "breakfast"),
    "film": ("film", "plot", "actor", "ending", "scene", "soundtrack", "director", "dialogue", "sequel"),
    "travel": ("hotel", "train", "flight", "beach", "tour", "museum", "station", "room", "ferry"),
    "phone": ("phone", "battery", "screen", "camera", "charger", "keyboard", "speaker", "app", "update"),
}
_GENERAL = {
    "positive": ("good", "great", "lovely", "excellent", "wonderful", "superb", "fine", "perfect", "better than ever"),
    "negative": ("bad", "awful", "poor", "terrible", "disappointing", "dreadful", "worse than ever", "a mess", "boring"),
}
_OWN = {  # what a word says depends on what it is said of
    "hot": {"food": "positive", "phone": "negative"},
    "cold": {"food": "negative", "travel": "negative"},
    "long": {"film": "negative", "travel": "negative", "phone": "positive"},
    "dark": {"film": "positive", "travel": "negative", "phone": "negative"},
    "predictable": {"film": "negative", "travel": "positive", "phone": "positive"},
    "light": {"food": "positive", "film": "negative", "phone": "positive"},
    "quiet": {"film": "negative", "travel": "positive", "phone": "negative"},
    "sharp": {"film": "positive", "food": "negative", "phone": "positive"},
}
_FACTS = (
    "we had the {thing} on monday", "the {thing} is near the corner", "i asked about the {thing} twice",
    "this is the second {thing}", "my sister chose the {thing}", "the {thing} was mentioned in the paper",
    "there is one more {thing} next week",
)  # fmt: skip
_JUDGED = (
    "the {thing} was {word}", "the {thing} is {word}", "honestly, this {thing} was {word}", "i found the {thing} {word}",
    "what a day: the {thing} was {word}", "that {thing} looked {word}",
)  # fmt: skip
_PASSING = (
    "after the {thing}, ", "unlike the {thing}, ", "{name} came with the {thing}; ", "never mind the {thing}: ",
    "on the way to the {thing}, ",
)  # fmt: skip
_TAILS = ("", "", " .", " !", " , said {name}", " , as always", " , i think")
_NAMES = (
    "ana",
    "bo",
    "chen",
    "dara",
    "emeka",
    "farid",
    "greta",
    "hiro",
    "ines",
    "jun",
    "kofi",
    "lena",
    "mads",
    "noor",
    "olga",
    "pavel",
)
_OPPOSITE = {"positive": "negative", "negative": "positive"}


def write_reviews(split: Literal["train", "val"], *, count: int, seed: int) -> Table:
    """`count` reviews, each a function of (seed, split, index)."""
    rows = [_review(np.random.default_rng((seed, _SPLITS[split], index))) for index in range(count)]
    texts, sentiments, topics = zip(*rows, strict=True)
    return Table("generated reviews", texts, {"sentiment": sentiments, "topic": topics})


def _review(rng: np.random.Generator) -> tuple[str, str | None, str | None]:
    """Text, sentiment, topic."""
    sentiment, topic = _drawn(rng, _SENTIMENTS), _drawn(rng, _TOPICS)
    text = ""
    if rng.random() < 0.4:
        other = _one(rng, [name for name in _TOPICS if name != topic])
        text = _one(rng, _PASSING).format(thing=_one(rng, _THINGS[other]), name=_one(rng, _NAMES))
    thing = _one(rng, _THINGS[topic])
    if sentiment == "neutral":
        text += _one(rng, _FACTS).format(thing=thing)
    else:
        if rng.random() < 0.3:
            text += f"{_judgement(rng, topic, _one(rng, _THINGS[topic]), _OPPOSITE[sentiment])} , but "
        text += _judgement(rng, topic, thing, sentiment)
    text += _one(rng, _TAILS).format(name=_one(rng, _NAMES))
    known = rng.random(2) >= MISSING_RATE
    return text, sentiment if known[0] else None, topic if known[1] else None


def _judgement(rng: np.random.Generator, topic: str, thing: str, sentiment: str) -> str:
    said = sentiment
    negated = rng.random() < 0.25
    if negated:
        said = _OPPOSITE[sentiment]
    own = [word for word, verdicts in _OWN.items() if verdicts.get(topic) == said]
    word = _one(rng, own) if own and rng.random() < 0.4 else _one(rng, _GENERAL[said])
    return _one(rng, _JUDGED).format(thing=thing, word=f"not {word}" if negated else word)


def _drawn(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return list(shares)[rng.choice(len(shares), p=list(shares.values()))]


def _one(rng: np.random.Generator, choices: list[str] | tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]
