"""docs/failure_modes.md: every message on the page is raised, in these words; its code is run with that of the other pages."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from docs.failures import FAILURES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "failure_modes.md").read_text()
MESSAGES = dict(re.findall(r"<!-- raised: (\w+) -->\n```text\n(.*?)\n```\n", PAGE, flags=re.DOTALL))


@pytest.fixture(autouse=True)
def _new_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_the_page_has_every_failure() -> None:
    assert PAGE.count("<!-- raised: ") == len(MESSAGES)
    assert list(MESSAGES) == list(FAILURES), "in the same order"


@pytest.mark.parametrize("name", MESSAGES)
def test_the_message_is_raised(name: str) -> None:
    kind, _, said = MESSAGES[name].partition(": ")
    found = raised(FAILURES[name])
    assert type(found).__name__ == kind
    assert len(said.split()) >= 6, "enough words to search for"
    if said.endswith(" …"):
        assert str(found).startswith(said.removesuffix(" …"))
        assert str(found) != said.removesuffix(" …"), "nothing is left out"
    else:
        assert str(found) == said


def raised(does: Callable[[], object]) -> Exception:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            does()
        except Exception as error:
            return error
    pytest.fail("nothing was raised")
