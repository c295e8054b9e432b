"""From suspicion to surgery in a minute: do two tasks conflict, where, and what does a method make of it?

python examples/quickstart.py --out runs/quickstart

One trunk, two tasks on drawn points: which of four sectors a point lies in, and how far it is from the middle. It looks at one
batch before training (``gs.diagnose``), trains with the plain sum while a monitor observes, and again with surgery, from the same
numbers. Each run's folder gets a page: open ``runs/quickstart/sum/report/index.html``.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.report import findings, read_run, write_report

TASKS = ("sector", "distance")


class Model(nn.Module):
    """A narrow trunk, for which two tasks have to share what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 6), nn.Tanh())
        self.heads = nn.ModuleDict({"sector": nn.Linear(6, 4), "distance": nn.Linear(6, 1)})


def points(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points [count, 2], the sector of each in 0..3 [count], and its distance from the middle [count, 1]."""
    x = torch.randn(count, 2, generator=generator)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long(), x.norm(dim=1, keepdim=True)


def losses_of(model: Model, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """One scalar a task."""
    x, sector, distance = batch
    z = model.trunk(x)
    return {
        "sector": nn.functional.cross_entropy(model.heads["sector"](z), sector),
        "distance": nn.functional.mse_loss(model.heads["distance"](z), distance),
    }


def train(method: str, steps: int, out: Path) -> dict[str, float]:
    """A run with one method; returns the losses on points that it has not seen."""
    torch.manual_seed(0)
    model, generator = Model(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    surgery = gs.GradientAggregator(method, tasks=TASKS)
    with gs.Monitor(surgery, out):
        for _ in range(steps):
            optimizer.zero_grad()
            surgery.backward(losses_of(model, points(64, generator)), shared=model.trunk)
            optimizer.step()
    with torch.no_grad():
        unseen = losses_of(model, points(4096, torch.Generator().manual_seed(2)))
    return {task: loss.item() for task, loss in unseen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", default="pcgrad", choices=sorted(gs.methods()), help="compared with the plain sum")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    batch = points(64, torch.Generator().manual_seed(1))
    print("One batch, before training:\n")
    print(gs.diagnose(model := Model(), batch, losses_of, shared=model.trunk))
    for method in ("sum", arguments.method):
        out = arguments.out / method
        unseen = train(method, arguments.steps, out)
        page = write_report(out)
        print(f"\n{method}: " + ", ".join(f"{task} {loss:.4f}" for task, loss in unseen.items()) + " on points not seen")
        print(f"  {findings(read_run(out))[0].sentence}\n  {page}")


if __name__ == "__main__":
    main()
