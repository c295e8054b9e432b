"""Drafting changes how many passes a text takes, and no byte of it."""

from functools import cache

import pytest
import torch
from multitoken.data.windows import RandomWindows
from multitoken.decoding import window_start, write
from multitoken.model import BYTES, MultiTokenModel
from multitoken.objective import FutureTokens, task_names

CONTEXT, TOKENS = 16, 4
HALF, WHOLE = 40, 80  # steps
VERSE = b"roku: besi[7,tamo(3)] .roku\n"


def _model() -> MultiTokenModel:
    """In float64, so that products of different shapes agree on the likeliest byte."""
    torch.manual_seed(0)
    return MultiTokenModel(task_names(TOKENS), context=CONTEXT, width=16, layers=1, attention_heads=2).double()


@cache
def _trained(steps: int) -> MultiTokenModel:
    """After HALF it knows some of the verse, after WHOLE all of it."""
    model = _model()
    problem = FutureTokens(model)
    text = torch.tensor(list(VERSE * 10), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = RandomWindows(text, CONTEXT, TOKENS, count=8, seed=0)
    for epoch in range(steps):
        data.set_epoch(epoch)
        samples = [data[index] for index in range(8)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        features = problem.represent(batch)
        optimizer.zero_grad()
        torch.stack([problem.loss(task, features, batch) for task in problem.tasks]).sum().backward()
        optimizer.step()
    return model


@torch.no_grad()
def _greedy(model: MultiTokenModel, prompt: bytes, count: int) -> bytes:
    """One byte after the other by the first head, on windows of the text that move on by half a context."""
    text, start = list(prompt), 0
    for _ in range(count):
        while len(text) - start > CONTEXT:
            start += CONTEXT // 2
        text.append(int(model.heads["next1"](model.trunk(torch.tensor([text[start:]])))[0, -1].argmax()))
    return bytes(text[len(prompt) :])


@pytest.mark.parametrize("steps", [HALF, WHOLE])
@pytest.mark.parametrize("count", [1, 2, 5, 61])
@pytest.mark.parametrize("prompt", [b"r", b"roku: b", b"7,tamo(3)] .roku", VERSE * 3, b"\xff\x00?"])
def test_both_ways_write_what_greedy_decoding_writes(prompt: bytes, count: int, steps: int) -> None:
    model = _trained(steps)
    expected = _greedy(model, prompt, count)
    one, several = (write(model, prompt, count, speculative=speculative) for speculative in (False, True))
    assert one.text == several.text == expected
    assert len(expected) == one.passes == count
    assert -(-count // TOKENS) <= several.passes <= count


def test_drafts_save_passes_as_far_as_they_are_right() -> None:
    known, half = (write(_trained(steps), VERSE[:12], 60, speculative=True) for steps in (WHOLE, HALF))
    assert known.text == (VERSE * 3)[12:72]
    assert known.bytes_per_pass == 60 / known.passes > 3
    assert 1 < half.bytes_per_pass < known.bytes_per_pass  # some kept, some dropped


def test_drafts_that_the_first_head_rejects_are_dropped() -> None:
    model = _model()  # untrained: the other heads draft anything
    with torch.no_grad():
        for ahead, head in enumerate(model.heads.values(), start=1):  # each head of its own opinion, whatever it reads
            head.unembedding = torch.nn.Linear(16, BYTES).double()
            head.unembedding.weight.mul_(0.1)
            head.unembedding.bias[64 + ahead] = 50.0
    written = write(model, b"x", 20, speculative=True)
    assert (written.text, written.passes) == (b"A" * 20, 20)


def test_an_empty_prompt_is_a_line_break() -> None:
    assert write(_trained(HALF), b"", 9, speculative=True).text == write(_trained(HALF), b"\n", 9, speculative=True).text


def test_the_window_moves_by_half_a_context_and_never_overflows() -> None:
    assert [window_start(length, 4) for length in range(1, 12)] == [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 8]
    for context in (2, 3, 5, 8):
        for length in range(1, 40):
            start = window_start(length, context)
            assert 1 <= length - start <= context
            assert start == 0 or length - start > context - context // 2 - 1
