"""The state that a run goes on from: a folder of torch.distributed.checkpoint, read back by however many processes.

Written beside the old one, flushed to disk, then renamed into its place. It holds pickles: resume runs of your own alone.
"""

import io
import json
import os
import pickle
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_with_path, tree_unflatten

from harness.checkpoint import atomic_write, flush_folder
from harness.errors import RunError
from harness.processes import barrier, is_first, of_first, world

FORMAT = "gradsurgery-example-state-2"
CHECKSUMS = "checksums.json"
REST = "rest"


def find_state(folder: Path) -> Path | None:
    """Where the state is: `folder`, or, where a crash came between the two renames of a replacement, its predecessor."""
    return next((place for place in (folder, _old(folder)) if place.is_dir()), None)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` to `folder`; collective. Of tensors, which all ranks have alike, each writes a share; the rest is the first's.

    All processes have to see the same file system.
    """
    partial, old = folder.with_name(folder.name + ".partial"), _old(folder)
    if is_first():
        shutil.rmtree(partial, ignore_errors=True)
    barrier()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # told even where no_dist asks for it
            dcp.save(_divided({"format": FORMAT, **state}), checkpoint_id=partial, no_dist=world() == 1)
        if is_first():
            checksums = _checksums(partial)
            with atomic_write(partial / CHECKSUMS) as file:
                file.write(json.dumps(checksums).encode())
            flush_folder(partial)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(folder, old)
            os.replace(partial, folder)
            flush_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if is_first():
            shutil.rmtree(partial, ignore_errors=True)
        raise
    barrier()


def load_state(folder: Path) -> dict[str, Any]:
    """Read a state onto the CPU. Every rank reads all of it.

    Raises:
        RunError: it is missing, torn, damaged (by its checksums) or of another format.
    """
    advice = "delete it and start the run again, or put a good copy in its place"
    found = find_state(folder)
    if found is None:
        raise RunError(f"{folder}: there is no checkpoint here; start the run without --resume.")
    try:
        expected, present = json.loads((found / CHECKSUMS).read_bytes()), _checksums(found)
        damaged = [name for name in expected.keys() | present.keys() if expected.get(name) != present.get(name)]
        if damaged:
            raise RunError(f"{found}: the checkpoint is corrupt (checksum of {min(damaged)!r} does not match); {advice}.")
        state = _read(found)
    except (OSError, ValueError, AttributeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{found}: the checkpoint is corrupt or not a checkpoint ({reason}); {advice}.") from error
    if state.get("format") != FORMAT:
        raise RunError(f"{found}: expected a checkpoint of format {FORMAT!r}, found {state.get('format')!r}; {advice}.")
    return state


def _divided(state: dict[str, Any]) -> dict[str, Any]:
    """Every tensor under the path that leads to it, and the rest, with None in their places: a tuple, which is written as it is."""
    leaves, structure = tree_flatten_with_path(state)
    tensors = {keystr(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}
    rest = tree_unflatten([None if isinstance(leaf, torch.Tensor) else leaf for _, leaf in leaves], structure)
    return {**tensors, REST: (of_first(rest),)}


def _read(folder: Path) -> dict[str, Any]:
    content = io.BytesIO()
    dcp_to_torch_save(folder, content)  # type: ignore[arg-type]  # torch.save takes a file, too
    content.seek(0)
    stored = torch.load(content, map_location="cpu", weights_only=True)
    state: dict[str, Any] = tree_map_with_path(lambda path, leaf: stored.get(keystr(path), leaf), stored[REST][0])
    return state


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file but their own list."""
    return {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")
