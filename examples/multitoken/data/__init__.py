"""Bytes to predict: a file's, or generated text; split by position into a training and a validation part."""

from pathlib import Path

import numpy as np
import torch
from harness.errors import DataError, MissingDataError
from torch import Tensor

from multitoken.data.grammar import write_text

GENERATED = "generated"
GENERATED_BYTES = 300_000
VALIDATION_SHARE = 0.1


def open_text(source: str | Path, *, seed: int, at_least: int) -> tuple[Tensor, Tensor]:
    """The first 90 % of the bytes for training and the last 10 % for validation, uint8 [bytes] each.

    Args:
        source: "generated", or the path of any file; it is read as bytes, so every encoding and language will do.
        seed: of generated text.
        at_least: how many bytes each part has to have.

    Raises:
        MissingDataError: the path names nothing.
        DataError: it names a folder, or a file that is empty, too short or not to be read.
    """
    text = generate(seed) if source == GENERATED else _read(Path(source))
    held_out = int(len(text) * VALIDATION_SHARE)
    if held_out < at_least:
        raise DataError(
            f"--data {source}: expected at least {round(at_least / VALIDATION_SHARE)} bytes, so that the last tenth of them, for "
            f"validation, holds a window of {at_least}; found {len(text)}. Take a longer text, or a smaller --context."
        )
    return text[:-held_out], text[-held_out:]


def generate(seed: int) -> Tensor:
    """Text of the grammar of `seed`, uint8 [GENERATED_BYTES]."""
    return torch.frombuffer(bytearray(write_text(seed, GENERATED_BYTES), "ascii"), dtype=torch.uint8)


def _read(path: Path) -> Tensor:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir())[:8]
        raise DataError(f"--data {path}: expected a file, found a folder with {inside or 'nothing in it'}; name one file.")
    if not path.exists():
        raise MissingDataError(f"--data {path}: expected {GENERATED!r} or the path of a file, found nothing there.")
    if not path.is_file():
        raise DataError(f"--data {path}: expected an ordinary file, whose length is known; found a device or a pipe.")
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"--data {path}: could not be read ({error.strerror or error}).") from error
    if not len(content):
        raise DataError(f"--data {path}: expected text, found an empty file.")
    return torch.from_numpy(content)
