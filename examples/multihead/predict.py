"""Say company, model, diameter and length of the products in pictures, with a model that export.py wrote.

    python examples/multihead/predict.py --model model.pt one.png two.jpg
    python examples/multihead/predict.py --model model.pt --json *.png

A picture that does not decode is named on stderr and left out; the exit status is then 1.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from harness.arguments import at_least
from harness.errors import RunError
from harness.precision import choose_device
from torch import Tensor

from multihead.data.images import as_float, read_image
from multihead.export import load_exported
from multihead.model import ProductModel
from multihead.targets import Binned, Target, Vocabulary

Answer = dict[str, Any]  # value, and where there is one its probability


@torch.no_grad()
def answers(model: ProductModel, images: Tensor) -> list[dict[str, Answer]]:
    """images float32 [B, 3, S, S] in 0..1 -> for every one, task -> answer."""
    outputs = model(images.to(next(model.parameters()).device))
    return [
        {task: _answer(model.targets[task], output[row : row + 1].cpu()) for task, output in outputs.items()}
        for row in range(len(images))
    ]


def _answer(target: Target, output: Tensor) -> Answer:
    """output [1, outputs]. A class with its probability; a number, of bins with the most probable bin and its probability."""
    said = target.predict(output)[0]
    if isinstance(target, Vocabulary):
        best = int(said.argmax())
        return {"value": target.names[best], "probability": float(said[best])}
    if isinstance(target, Binned):
        probabilities = output.float().softmax(-1)[0]
        best = int(probabilities.argmax())
        ends = (None, *target.edges, None)  # the outer bins are open
        return {"value": float(said), "bin": [ends[best], ends[best + 1]], "probability": float(probabilities[best])}
    return {"value": float(said)}


def _batches(paths: Sequence[Path], size: int, count: int, broken: list[Path]) -> Iterator[tuple[list[Path], Tensor]]:
    """Up to `count` pictures at a time; what does not decode is reported, and added to `broken`."""
    names: list[Path] = []
    images: list[Tensor] = []
    for path in paths:
        try:
            images.append(as_float(read_image(path, size)))
            names.append(path)
        except OSError as error:
            print(f"error: {path}: expected an image, {error}", file=sys.stderr)
            broken.append(path)
        if len(images) == count:
            yield names, torch.stack(images)
            names, images = [], []
    if images:
        yield names, torch.stack(images)


def _line(path: Path, answer: dict[str, Answer]) -> str:
    parts = []
    for task, said in answer.items():
        value = said["value"] if isinstance(said["value"], str) else f"{said['value']:.1f}"
        sure = "" if "bin" in said or "probability" not in said else f" ({said['probability']:.0%})"
        parts.append(f"{task} {value}{sure}")
    return f"{path}: {', '.join(parts)}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", type=Path, required=True, help="what export.py wrote")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--batch-size", type=at_least(1), default=32)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict; returns the exit status: 0, or 1 when anything was left out."""
    arguments = build_parser().parse_args(argv)
    broken: list[Path] = []
    try:
        model = load_exported(arguments.model).to(choose_device(arguments.device))
        for paths, images in _batches(arguments.images, model.shape.size, arguments.batch_size, broken):
            for path, answer in zip(paths, answers(model, images), strict=True):
                print(json.dumps({"image": str(path), **answer}, ensure_ascii=False) if arguments.json else _line(path, answer))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
