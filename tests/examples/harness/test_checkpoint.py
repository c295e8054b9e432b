"""Checkpoints survive crashes whole, and damaged ones are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.checkpoint import atomic_write, load_checkpoint, save_checkpoint
from harness.errors import RunError


def test_round_trip(tmp_path: Path) -> None:
    tensor, nested = torch.arange(6.0).view(2, 3), {"step": 3, "names": ["a", "b"], "none": None}
    save_checkpoint(tmp_path / "last.pt", {"tensor": tensor, "nested": nested})
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded["tensor"], tensor)
    assert loaded["nested"] == nested
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_an_error_before_the_rename_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def no_space(source: object, target: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert not (tmp_path / "last.pt.partial").exists()


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"new, but only", "half way"])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert not (tmp_path / "note.md.partial").exists()


def test_a_process_that_dies_before_the_rename_leaves_the_old_file_and_does_not_stop_the_next(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom harness.checkpoint import save_checkpoint\n"
        "os.replace = lambda source, target: os._exit(9)\n"
        "save_checkpoint(Path(sys.argv[1]), {'step': 2})\n"
    )
    examples = Path(__file__).parents[3] / "examples"
    died = subprocess.run([sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": str(examples)}, check=False)
    assert died.returncode == 9
    assert (tmp_path / "last.pt.partial").exists()
    assert load_checkpoint(path)["step"] == 1
    save_checkpoint(path, {"step": 3})
    assert load_checkpoint(path)["step"] == 3
    assert not (tmp_path / "last.pt.partial").exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_torn_checkpoint_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(RunError, match=r"last\.pt: the checkpoint is corrupt"):
        load_checkpoint(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    weights = torch.randn(1000)
    save_checkpoint(path, {"weights": weights})
    content = bytearray(path.read_bytes())
    at = content.index(weights.numpy().tobytes()) + 100
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="checksum"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(RunError, match="expected a checkpoint of format"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(RunError, match="there is no checkpoint here"):
        load_checkpoint(tmp_path / "missing.pt")
