"""The official data set in small, written opcode by opcode as Python 2 wrote it."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

FILES = {**{f"data_batch_{number}": number for number in range(1, 6)}, "test_batch": 6}


def _string(content: bytes) -> bytes:
    """A str of Python 2."""
    return b"U" + bytes([len(content)]) + content if len(content) < 256 else b"T" + struct.pack("<i", len(content)) + content


def _number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def _array(values: np.ndarray, code: bytes, order: bytes) -> bytes:
    shape = b"(" + b"".join(map(_number, values.shape)) + b"t"
    dtype = b"cnumpy\ndtype\n" + _string(code) + b"K\x00K\x01\x87R(K\x03" + _string(order) + b"NNN" + 2 * _number(-1) + b"K\x00tb"
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _string(b"b") + b"\x87R"
    return head + b"(K\x01" + shape + dtype + b"\x89" + _string(values.tobytes()) + b"tb"


def python_2_batch(pixels: np.ndarray, labels: Sequence[int], *, code: bytes = b"u1", order: bytes = b"|") -> bytes:
    """The bytes of a batch file, as cPickle's protocol 2 has them."""
    numbers = b"](" + b"".join(map(_number, labels)) + b"e"
    items = _string(b"batch_label") + _string(b"testing batch 1 of 1") + _string(b"labels") + numbers
    items += _string(b"data") + _array(pixels, code, order)
    items += _string(b"filenames") + b"](" + b"".join(_string(b"picture_%d.png" % index) for index in range(len(labels))) + b"e"
    return b"\x80\x02}(" + items + b"u."


@pytest.fixture(scope="session")
def batch() -> Callable[..., bytes]:
    return python_2_batch


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """cifar-10-batches-py with ten images in each file; the first value of image i in file f is 10·f + i."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, number in FILES.items():
        pixels = np.random.default_rng(number).integers(0, 256, (10, 3072), dtype=np.uint8)
        pixels[:, 0] = 10 * number + np.arange(10)
        (folder / name).write_bytes(python_2_batch(pixels, [(number + index) % 10 for index in range(10)]))
    (folder / "batches.meta").write_bytes(b"\x80\x02}.")
    (folder / "readme.html").touch()
    return folder
