"""Write text with a trained model, greedily: byte by byte, and several bytes a pass by means of the extra heads.

python examples/multitoken/generate.py runs/second --prompt "First " --count 400
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from harness.arguments import at_least
from harness.checkpoint import load_checkpoint
from harness.errors import RunError
from harness.precision import choose_device
from harness.run_folder import RunFolder, read_json

from multitoken.decoding import write
from multitoken.model import MultiTokenModel
from multitoken.problem import build_model


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of examples/multitoken/train.py; its best checkpoint is taken")
    parser.add_argument("--prompt", default="", help="text to go on from")
    parser.add_argument("--count", type=at_least(1), default=400, help="bytes to write")
    parser.add_argument("--device", default="auto")
    return parser


def load_model(run: Path) -> MultiTokenModel:
    """The best model of a run of train.py.

    Raises:
        RunError: no such run, none that finished an epoch, or one of another trainer.
    """
    folder = RunFolder.existing(run)
    for file, what in ((folder.config, "the run folder of train.py"), (folder.best, "a run that finished an epoch")):
        if not file.is_file():
            raise RunError(f"{run}: expected {what}, found no {file.relative_to(run)}; train first, or name another folder.")
    weights = load_checkpoint(folder.best)["model"]
    try:
        model = build_model(argparse.Namespace(**read_json(folder.config)["arguments"]))
        model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{run}: expected a run of multitoken/train.py; its model cannot be built ({reason}).") from error
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Write in both ways and compare; returns the exit status."""
    a = build_parser().parse_args(argv)
    try:
        model = load_model(a.run).to(choose_device(a.device))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    prompt = a.prompt.encode()
    took = {}
    for speculative in (True, False):
        began = time.perf_counter()
        written = write(model, prompt, a.count, speculative=speculative)
        took[speculative] = (written, time.perf_counter() - began)
    print((prompt + took[True][0].text).decode("utf-8", errors="replace"))
    for speculative, name in ((True, f"drafted by {len(model.heads)} heads"), (False, "byte by byte")):
        written, seconds = took[speculative]
        print(f"{name}: {written.passes} passes, {written.bytes_per_pass:.2f} bytes a pass, {seconds:.2f} s", file=sys.stderr)
    print(f"the texts are {'the same' if took[True][0].text == took[False][0].text else 'NOT the same'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
