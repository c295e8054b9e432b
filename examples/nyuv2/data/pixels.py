"""Reading the pixels of one picture file, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness.errors import DataError
from PIL import Image

from nyuv2.data.sample import Array

GREY_8, GREY_16, COLOR = ("L", "P"), ("I;16", "I;16B", "I"), ("RGB",)
"""Pillow's modes of 8-bit numbers, 16-bit numbers and colors."""


def read_pixels(path: Path, modes: tuple[str, ...], expected: str) -> Array:
    """The pixels of a picture file, [H, W] or [H, W, 3]; a DataError where it does not decode or its mode is none of `modes`."""
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            pixels = np.array(picture)
    except Exception as error:  # a damaged file leads its decoder to errors of many kinds
        raise DataError(f"{path}: expected an image, found one that does not decode ({error}); restore the file") from error
    if mode not in modes:
        raise DataError(f"{path}: expected {expected}, found an image of mode {mode}; convert it")
    return pixels
