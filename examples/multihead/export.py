"""Make one file of a run: weights, shape, vocabularies and normalisation, all that predict.py needs.

    python examples/multihead/export.py --run runs/first --out model.pt

The file holds tensors and plain Python values only: torch.load(path, weights_only=True) reads it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.errors import RunError
from harness.resume_point import find_state, load_state
from harness.run_folder import RunFolder

from multihead.model import ProductModel, model_from_state


def export(run: Path, out: Path, checkpoint: str) -> None:
    """Write the model of `run`'s "best" or "last" checkpoint to `out`.

    Raises:
        RunError: there is no such checkpoint, it is not of this trainer, or `out` exists.
    """
    folder = RunFolder.existing(run)
    source = folder.best if checkpoint == "best" else folder.last
    if not (source.is_file() or find_state(source)):
        raise RunError(f"--run {run}: expected the run folder of a trained model, found no {source}; train it first.")
    if out.exists():
        raise RunError(f"--out {out}: the file exists; remove it or choose another name.")
    if not out.parent.is_dir():
        raise RunError(f"--out {out}: the folder {out.parent} does not exist; make it first.")
    state = load_checkpoint(source) if source == folder.best else load_state(source)
    _model_of(state, source)
    save_checkpoint(out, {"model": state["model"]})


def load_exported(path: Path) -> ProductModel:
    """The model of an exported file, ready to predict.

    Raises:
        RunError: the file is missing, damaged, or holds no model of this trainer.
    """
    if not path.is_file():
        raise RunError(f"--model {path}: expected a file that export.py wrote, found none.")
    return _model_of(load_checkpoint(path), path)


def _model_of(state: dict[str, Any], path: Path) -> ProductModel:
    try:
        return model_from_state(state["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(
            f"{path}: expected a model of the multi-head trainer, found another ({str(error).splitlines()[0]})."
        ) from error


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="best by score, or last epoch")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        export(arguments.run, arguments.out, arguments.checkpoint)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: the {arguments.checkpoint} model of {arguments.run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
