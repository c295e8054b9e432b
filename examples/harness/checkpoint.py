"""Files that a crash cannot tear: written beside the old one, flushed to disk, then renamed over it."""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from harness.errors import RunError

FORMAT = "gradsurgery-example-checkpoint-1"


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when the block ends well, and leaves the old `path` untouched when it does not."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Names live in their directory, which has to reach the disk, too."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) to `path` atomically."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running no code from it.

    Raises:
        RunError: the file is missing, torn, damaged (its checksums are verified) or not one of these checkpoints.
    """
    advice = "delete it and start the run again, or put a good copy in its place"
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not notice flipped bits
            damaged = archive.testzip()
        if damaged is not None:
            raise RunError(f"{path}: the checkpoint is corrupt (checksum of {damaged!r} does not match); {advice}.")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: there is no checkpoint here; start the run without --resume.") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: the checkpoint is corrupt or not a checkpoint ({reason}); {advice}.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise RunError(f"{path}: expected a checkpoint of format {FORMAT!r}, found {found!r}; {advice}.")
    return state
