"""Pickles of plain values and arrays, read without running anything from the file.

A pickle names functions and classes that the reader is to call. Only the four names that an array of numbers takes are known here,
and each stands for code of this file, not for NumPy's: an array is its bytes read as whole numbers, as many as its shape says.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from harness.errors import DataError

_KINDS = {kind.encode() for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")}


class _Dtype:
    """What a pickled numpy.dtype of integers becomes."""

    def __init__(self, code: Any, *_: Any) -> None:
        name = code.encode() if isinstance(code, str) else code
        if name not in _KINDS:
            raise pickle.UnpicklingError(f"an array of dtype {code!r}")
        self.dtype = np.dtype(name.decode())

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order in ("<", b"<", "|", b"|"):
            self.dtype = self.dtype.newbyteorder("<")
        elif order in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")
        else:
            raise pickle.UnpicklingError(f"a dtype of byte order {order!r}")


class _Array:
    """What a pickled numpy.ndarray becomes; `value` is set once its state has been read."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not numbers")
        self.value = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in protocols below 3."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2's name
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array of numbers needs") from None


def read_mapping(path: Path) -> dict[Any, Any]:
    """The dictionary that the pickle holds; Python 2's strings are bytes, and arrays of integers are NumPy's.

    Raises:
        DataError: the file is damaged, cut short, no dictionary, or asks for more than arrays, numbers, bytes and text.
    """
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged stream leads the machine that a pickle is to errors of every kind
        raise DataError(
            f"{path}: expected a whole pickle of arrays, numbers and text, found one that is not read "
            f"({str(error) or type(error).__name__}); extract it again from cifar-10-python.tar.gz."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a pickled dictionary, found {_named(content)}; extract the file again.")
    return {key: value.value if isinstance(value, _Array) else value for key, value in content.items()}


def _named(content: Any) -> str:
    return "an array" if isinstance(content, _Array) else type(content).__name__
