"""The JSON file: a list of {"image": path, "company": …, "model": …, "diameter": …, "length": …} records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from harness.errors import DataError, MissingDataError
from torch import Tensor

from multihead.data.images import read_image
from multihead.data.labels import CLASSES, TASKS, Label, Labels

LARGEST = torch.finfo(torch.float32).max


class JsonProducts:
    """The records of one file; image paths are relative to it, and other keys are nobody's business.

    A label is missing where it is null, '' or -1. A class is a string or a whole number (7 and "7" are one class); a number is
    finite (as float32) and not negative. Everything but the pictures is checked here, they when they are loaded. With `count`,
    so many records are taken evenly from the list, which may be sorted.

    Raises:
        DataError: the file is missing, does not parse or is not such a list, or an image is not there.
    """

    unit = ""

    def __init__(self, path: Path, *, count: int | None = None) -> None:
        self.where = str(path)
        self.name = path.resolve().parent.name
        records = _parse(path)
        self._chosen = _spread(len(records), count)
        self.labels: tuple[Labels, ...] = tuple(
            {task: _label(records[at][task], task, self._origin(index)) for task in TASKS} for index, at in enumerate(self._chosen)
        )
        self._images = [self._image(records[at]["image"], path.parent, index) for index, at in enumerate(self._chosen)]

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, size: int) -> Tensor:
        try:
            return read_image(self._images[index], size)
        except OSError as error:
            raise DataError(
                f"{self._origin(index)}: expected an image in {self._images[index]}, {error}; restore it or remove the record"
            ) from error

    def _origin(self, index: int) -> str:
        return f"{self.where}, record {self._chosen[index]}"

    def _image(self, named: Any, folder: Path, index: int) -> Path:
        if not isinstance(named, str) or not named:
            raise DataError(f"{self._origin(index)}: expected a path under 'image', found {named!r}; correct the record")
        path = folder / named
        if not path.is_file():
            raise MissingDataError(
                f"{self._origin(index)}: expected the image {named!r} at {path}, found no file there; "
                "paths are relative to the JSON file: restore the image or remove the record"
            )
        return path


def _spread(length: int, count: int | None) -> list[int]:
    """At most `count` indices, evenly over 0..length-1."""
    count = length if count is None else min(count, length)
    return [index * length // count for index in range(count)]


def _parse(path: Path) -> list[dict[str, Any]]:
    advice = 'expected a list of {"image", "company", "model", "diameter", "length"} records'
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MissingDataError(f"{path}: {advice}, found no readable file ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # bytes, syntax, and whole numbers of thousands of digits
        raise DataError(f"{path}: {advice}, found text that is not valid JSON ({error}); correct it") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: {advice}, found {_kind(content)}; wrap the records in [ ]")
    if not content:
        raise DataError(f"{path}: {advice}, found an empty list")
    for index, record in enumerate(content):
        if not isinstance(record, dict):
            raise DataError(f"{path}, record {index}: expected an object, found {_kind(record)}; correct the record")
        if missing := [key for key in ("image", *TASKS) if key not in record]:
            raise DataError(
                f"{path}, record {index}: expected the keys image, {', '.join(TASKS)}, found none named {', '.join(missing)}; "
                "a label that is not known is null, not left out"
            )
    return content


def _label(value: Any, task: str, origin: str) -> Label:
    if value is None or value == "" or (value == -1 and not isinstance(value, bool)):
        return None
    if task in CLASSES:
        if isinstance(value, str):
            return None if value == "-1" else value  # as the whole number that it is equal to
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        expected = "a name or a whole number"
    else:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LARGEST:
            return float(value)
        expected = "a number that is finite (as float32) and not negative"
    raise DataError(
        f"{origin}: expected {expected} under {task!r} (null, '' or -1 where missing), found {value!r}; correct the record"
    )


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )
