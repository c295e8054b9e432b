"""The example prints the same for any number of processes, and the page's command lines are its."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import many_gpus
import pytest
import torch
from ranks import gpus
from ranks.launch import ranks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
COMMANDS = [
    ["--space", space, "--wrap", wrap, "--method", method, "--steps", "6"]
    for space, wrap, method in product(("representation", "parameters"), ("ddp", "fsdp"), ("pcgrad", "nashmtl"))
]


def test_any_number_of_processes_prints_the_same() -> None:
    alone = ranks(1, gpus.train, COMMANDS)[0]
    for world in (2, 3):
        for found in ranks(world, gpus.train, COMMANDS):
            for command, outcome, expected in zip(COMMANDS, found, alone, strict=True):
                torch.testing.assert_close(outcome, expected, rtol=1e-10, atol=1e-12, msg=lambda m, c=command: f"{c}: {m}")


def test_the_wrapper_does_not_matter() -> None:
    found = ranks(2, gpus.train, COMMANDS)[0]
    for ddp, fsdp in ((0, 2), (1, 3), (4, 6), (5, 7)):
        torch.testing.assert_close(found[fsdp], found[ddp], rtol=1e-10, atol=1e-12)
    assert not torch.equal(found[0][1], found[4][1])  # the two spaces differ


COMMAND_LINES = re.findall(r"^(?:torchrun|accelerate launch) .*examples/many_gpus\.py(.*)$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("options", COMMAND_LINES)
def test_the_pages_commands_parse(options: str) -> None:
    assert many_gpus.parse(options.split()).steps == 20


def test_there_are_commands_on_the_page() -> None:
    assert len(COMMAND_LINES) == 3
