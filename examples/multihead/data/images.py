"""From an image file to the square that the model sees: the same for training, validation and prediction."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def read_image(path: Path, size: int) -> Tensor:
    """The file as RGB, fitted into a square without distortion, its edge pixels repeated beside the shorter side.

    Diameter and length are to be read off the picture, so its aspect ratio stays. What is transparent becomes white.

    Returns:
        uint8 [3, size, size].

    Raises:
        OSError: no file, or one that does not decode to its end; the message says what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError("found no such file")
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits and more: convert() would clip, not scale
                raise OSError(f"expected 8 bits a channel, found an image of mode {picture.mode}")
            if "A" in picture.getbands() or "transparency" in picture.info:
                layer = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)  # noqa: PLW2901
            image: Tensor = F.pil_to_tensor(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(f"found one that does not decode ({error})") from error
    return fit(image, size)


def fit(image: Tensor, size: int) -> Tensor:
    """[3, H, W] -> [3, size, size]: the longer side becomes `size`, the shorter is padded."""
    height, width = image.shape[-2:]
    rows, columns = (max(1, round(side * size / max(height, width))) for side in (height, width))
    image = F.resize(image, [rows, columns], antialias=True)
    top, left = (size - rows) // 2, (size - columns) // 2
    padded: Tensor = F.pad(image, [left, top, size - columns - left, size - rows - top], padding_mode="edge")
    return padded


def as_float(image: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1."""
    return image.to(torch.float32) / 255
