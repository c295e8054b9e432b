"""Pickles that are read, and pickles that would run something, hold something else, or are damaged."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar10.data.pickles import read_mapping
from harness.errors import DataError


def test_python_2_batches_are_read_as_pickle_itself_reads_them(tmp_path: Path, batch: Callable[..., bytes]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    content = batch(pixels, [3, 1, 4])
    (tmp_path / "batch").write_bytes(content)
    found, expected = read_mapping(tmp_path / "batch"), pickle.loads(content, encoding="bytes")
    assert found.keys() == expected.keys() == {b"batch_label", b"labels", b"data", b"filenames"}
    np.testing.assert_array_equal(found[b"data"], expected[b"data"])
    assert found[b"data"].dtype == np.uint8
    assert found[b"labels"] == [3, 1, 4]
    assert found[b"filenames"] == expected[b"filenames"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "<i8", ">i4", "int16"])
def test_what_python_3_writes_is_read_too(tmp_path: Path, protocol: int, dtype: str) -> None:
    values = np.arange(-6, 6).astype(dtype).reshape(3, 4)
    for array in (values, np.asfortranarray(values)):
        (tmp_path / "batch").write_bytes(pickle.dumps({b"data": array}, protocol=protocol))
        found = read_mapping(tmp_path / "batch")[b"data"]
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_of_the_file_is_run(tmp_path: Path) -> None:
    for content in (Payload(tmp_path / "ran"), {b"data": Payload(tmp_path / "ran")}):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=r"data_batch_1: .*asks for (pathlib|builtins|posix|nt)[\w.]*, which no array"):
            read_mapping(tmp_path / "data_batch_1")
    for module, name in (("os", "system"), ("builtins", "eval"), ("numpy", "load"), ("numpy.core.multiarray", "fromfile")):
        stream = f"\x80\x02c{module}\n{name}\n(X\x04\x00\x00\x00true\x85R.".encode("latin1")
        (tmp_path / "data_batch_1").write_bytes(stream)
        with pytest.raises(DataError, match=f"asks for {module}.{name}"):
            read_mapping(tmp_path / "data_batch_1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data_batch_1: expected a whole pickle"),
        (b"not a pickle", "data_batch_1: expected a whole pickle"),
        (pickle.dumps([1, 2]), "expected a pickled dictionary, found list"),
        (pickle.dumps(np.arange(3), protocol=2), "expected a pickled dictionary, found an array"),
        (pickle.dumps({b"data": np.array([{}, None])}, protocol=2), "an array of dtype"),
        (pickle.dumps({b"data": np.array([1.5])}, protocol=2), "an array of dtype"),
        (pickle.dumps({b"data": np.array(["a"])}, protocol=2), "an array of dtype"),
    ],
)
def test_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_mapping(tmp_path / "data_batch_1")


def test_damage_is_refused_or_harmless(tmp_path: Path, batch: Callable[..., bytes]) -> None:
    """Cut anywhere it is refused; with any byte changed it is refused or read as something."""
    whole = batch(np.zeros((2, 12), np.uint8), [1, 2])
    path = tmp_path / "data_batch_1"
    rng = np.random.default_rng(0)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="data_batch_1: expected a whole pickle"):
            read_mapping(path)
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([rng.integers(256)]) + whole[position + 1 :])
        try:
            read_mapping(path)
        except DataError:
            refused += 1
    assert refused > len(whole) // 4
