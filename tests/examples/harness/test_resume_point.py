"""The state that runs go on from survives crashes whole, keeps what it is given, and is refused where it is damaged."""

import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.errors import RunError
from harness.reproducibility import random_state
from harness.resume_point import find_state, load_state, save_state
from torch import nn
from torch.utils._pytree import tree_flatten


def test_round_trip(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state: dict[str, Any] = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state(), "empty": {}, "none": None,
        "nested": OrderedDict(a=[1, (2, torch.arange(3))], b={3: "x", "y": torch.tensor(2.0, dtype=torch.float64)}),
    }  # fmt: skip
    save_state(tmp_path / "last", state)
    loaded = load_state(tmp_path / "last")
    assert loaded.pop("format")
    leaves, structure = tree_flatten(state)
    found, same = tree_flatten(loaded)
    assert same == structure
    for one, other in zip(leaves, found, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_crash_leaves_the_old_state_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """It comes before the first rename of folders, between the two, and after both."""
    path = tmp_path / "last"
    save_state(path, {"step": 1, "w": torch.ones(2)})
    replace, done = os.replace, 0

    class Crash(BaseException):
        pass

    def crashing(source: Any, target: Any) -> None:
        nonlocal done
        if Path(source).is_dir():
            if done == renames:
                raise Crash
            done += 1
        replace(source, target)

    def kept(folder: Path, **_: Any) -> None:
        if renames == 2 and Path(folder).name == "last.old" and done == 2:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crashing)
        patched.setattr(shutil, "rmtree", kept)  # a process that dies removes nothing
        with pytest.raises(Crash):
            save_state(path, {"step": 2, "w": torch.zeros(2)})
    assert load_state(path)["step"] == (2 if renames == 2 else 1)
    save_state(path, {"step": 3, "w": torch.zeros(2)})
    assert load_state(path)["step"] == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata"])
@pytest.mark.parametrize("damage", ["torn", "flipped", "missing"])
def test_a_damaged_state_is_refused(tmp_path: Path, file: str, damage: str) -> None:
    path = tmp_path / "last"
    save_state(path, {"weights": torch.randn(1000)})
    content = bytearray((path / file).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        (path / file).unlink()
    else:
        (path / file).write_bytes(content if damage == "flipped" else content[:-20])
    with pytest.raises(RunError, match=rf"last: the checkpoint is corrupt \(checksum of '{file}' does not match\)"):
        load_state(path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    with pytest.raises(RunError, match="last: the checkpoint is corrupt or not a checkpoint"):
        load_state(tmp_path / "last")
    assert find_state(tmp_path / "missing") is None
    with pytest.raises(RunError, match="there is no checkpoint here"):
        load_state(tmp_path / "missing")
    save_state(tmp_path / "other", {"format": "another", "step": 1})
    with pytest.raises(RunError, match="expected a checkpoint of format"):
        load_state(tmp_path / "other")
