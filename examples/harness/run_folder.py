"""The run folder: `config.json`, `log.csv`, `metrics.json`, `table.csv`, `note.md`, `pictures/`, `checkpoints/`, `tensorboard/`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.checkpoint import atomic_write
from harness.errors import RunError


class RunFolder:
    """One folder a run. A folder that already holds something is only ever opened to resume the run in it.

    Raises:
        RunError: `path` is a file; or holds something and `resume` is False; or `resume` is True and no run lies there.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._name(path)
        if path.exists() and not path.is_dir():
            raise RunError(f"--out {path}: expected a folder, found a file; choose another name.")
        if resume and not self.config.is_file():
            raise RunError(f"--resume: {self.config} does not exist, so there is no run to resume; leave --resume out.")
        if not resume and path.exists() and (present := sorted(entry.name for entry in path.iterdir())):
            raise RunError(
                f"--out {path}: the folder is not empty (it holds {', '.join(present[:4])}); "
                "choose another folder, or continue the run in it with --resume."
            )

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """The folder of a run to read from, there or not."""
        folder = cls.__new__(cls)
        folder._name(path)
        return folder

    def _name(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.log = path / "log.csv"
        self.metrics = path / "metrics.json"
        self.table = path / "table.csv"
        self.note = path / "note.md"
        self.pictures = path / "pictures"
        self.tensorboard = path / "tensorboard"
        self.last = path / "checkpoints" / "last"
        self.best = path / "checkpoints" / "best.pt"

    def create(self, configuration: Mapping[str, Any]) -> None:
        """Make the folder and its config.json: the moment from which the run can be resumed."""
        for folder in (self.pictures, self.last.parent):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(self.config, configuration)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` atomically as indented JSON; a number that is not finite becomes null, since JSON has none."""
    with atomic_write(path) as file:
        file.write((json.dumps(_finite(content), indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote; RunError when it is not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); restore it or start the run in another folder.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not valid JSON ({error}); restore it or start the run in another folder.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
