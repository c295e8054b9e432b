"""How much memory one training step takes with n future-token heads: one head at a time, or all of them and one backward pass.

    python examples/multitoken/memory.py --out runs/memory

A step of n heads on the sum of their losses holds the logits of all, O(n·V) a position (V: vocabulary). With one head after the
other on the detached representation, the paper's way and the trainer's `--form detach`, it holds those of one, and with surgery n
gradients of the representation of width d: O(V + n·d).

Counted is what torch's allocator hands out during one optimizer step, surgery and update included, above what was held before it
(parameters, optimizer state, batch), without the parameters' gradients that the step leaves behind. So it is what a step needs
beyond the training state, which grows with n whatever the form, and which the table shows beside it. The count is exact, and the
same in every run of one version of torch.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's remarks on a machine without a GPU

import torch
from harness.arguments import at_least
from harness.errors import RunError
from harness.precision import Precision, choose_device
from harness.problem import Problem
from harness.run_folder import write_json
from harness.step import SurgicalStep
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

import gradsurgery as gs
from gradsurgery.report.axes import COLORS
from multitoken.data.windows import window
from multitoken.model import MultiTokenModel, check_width
from multitoken.objective import FutureTokens, task_names

MIB = 2**20
FORMS = {"sum": "all heads, one backward", "detach": "one head at a time"}


@dataclass(frozen=True)
class Sizes:
    """Of the model and its batch."""

    vocabulary: int
    context: int
    batch: int
    width: int
    layers: int
    attention_heads: int


@dataclass(frozen=True)
class Row:
    """One measurement, in bytes. `step`: the peak beyond the training state; `state`: parameters, gradients, optimizer state."""

    form: str
    tokens: int
    vocabulary: int
    step: int
    state: int


def measure(form: str, tokens: int, sizes: Sizes, method: str, device: torch.device) -> Row:
    """The second step of a new model on random tokens (the first one makes the optimizer's state)."""
    torch.manual_seed(0)
    model = MultiTokenModel(
        task_names(tokens), context=sizes.context, width=sizes.width, layers=sizes.layers,
        attention_heads=sizes.attention_heads, vocabulary=sizes.vocabulary,
    ).to(device)  # fmt: skip
    problem = FutureTokens(model)
    text = torch.randint(sizes.vocabulary, (sizes.batch * (sizes.context + tokens),))
    samples = [window(text, i * (sizes.context + tokens), sizes.context, tokens) for i in range(sizes.batch)]
    batch = {name: torch.stack([sample[name] for sample in samples]).to(device) for name in samples[0]}
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)  # its temporaries are of one parameter at a time
    surgery = gs.GradientAggregator(method, tasks=problem.tasks)
    # A step asks of a problem no more than its model, tasks, representation and losses.
    surgical = SurgicalStep(
        cast(Problem, problem), surgery, None, optimizer, Precision("off", device), form="detach", clip_norm=0.0
    )

    def step() -> None:
        if form == "detach":
            surgical(batch)
            return
        optimizer.zero_grad()
        features = problem.represent(batch)
        torch.stack([problem.loss(task, features, batch) for task in problem.tasks]).sum().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    peak = peak_of(step, model.parameters(), device)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    moments = sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())
    return Row(form, tokens, sizes.vocabulary, peak, 2 * parameters + moments)


def peak_of(step: Callable[[], None], parameters: Iterable[nn.Parameter], device: torch.device) -> int:
    """The most bytes held at any moment of `step` beyond what was held before it and the gradients it leaves in `parameters`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    kind = {"cpu": 0, "cuda": 1}[device.type]
    events = sorted((event for event in events if event["args"]["Device Type"] == kind), key=lambda event: event["ts"])
    gradients = {parameter.grad.data_ptr() for parameter in parameters if parameter.grad is not None}
    last = {event["args"]["Addr"]: place for place, event in enumerate(events)}  # an address may be handed out more than once
    held = peak = 0
    for place, event in enumerate(events):
        address, change = event["args"]["Addr"], event["args"]["Bytes"]
        if not (address in gradients and last[address] == place):
            held += change
            peak = max(peak, held)
    return peak


def to_markdown(rows: Sequence[Row], sizes: Sequence[Sizes], device: torch.device) -> str:
    """The document of the measurements: for each vocabulary a table, and how the peak grows from the fewest heads to the most."""
    one = sizes[0]
    lines = [
        "# Peak memory of one training step",
        "",
        f"{one.layers} + 1 layers of width {one.width}, {one.batch} windows of {one.context} tokens, float32, on "
        f"{device.type}. Step: peak beyond the training state; state: parameters, gradients and optimizer state; MiB.",
    ]
    for size in sizes:
        step = {(row.form, row.tokens): row for row in rows if row.vocabulary == size.vocabulary}
        counts = sorted({tokens for _, tokens in step})
        lines += [
            "",
            f"## Vocabulary {size.vocabulary}",
            "",
            "| heads | step, " + " | step, ".join(FORMS.values()) + " | state | total, " + " | total, ".join(FORMS.values()) + " |",
            "| ---: |" + " ---: |" * (2 * len(FORMS) + 1),
        ]
        for tokens in counts:
            found = [step[form, tokens] for form in FORMS]
            cells = [*(row.step for row in found), found[0].state, *(row.step + row.state for row in found)]
            lines.append(f"| {tokens} | " + " | ".join(f"{cell / MIB:.1f}" for cell in cells) + " |")
        growth = [f"{name} × {growth_of(rows, form, size.vocabulary):.2f}" for form, name in FORMS.items()]
        lines += ["", f"From {counts[0]} to {counts[-1]} heads the step's peak grows: {'; '.join(growth)}."]
    return "\n".join(lines) + "\n"


def growth_of(rows: Sequence[Row], form: str, vocabulary: int) -> float:
    """The step's peak with the most heads as a multiple of that with the fewest."""
    step = {row.tokens: row.step for row in rows if (row.form, row.vocabulary) == (form, vocabulary)}
    return step[max(step)] / step[min(step)]


def plot(rows: Sequence[Row], path: Path) -> None:
    """One panel a vocabulary: the step's peak over the number of heads, in both forms."""
    vocabularies = sorted({row.vocabulary for row in rows})
    figure = Figure(figsize=(4.6 * len(vocabularies), 3.8), layout="constrained")
    figure.suptitle("Peak memory of one training step beyond parameters, gradients and optimizer state")
    for axes, vocabulary in zip(figure.subplots(1, len(vocabularies), squeeze=False)[0], vocabularies, strict=True):
        for form, color in zip(FORMS, COLORS, strict=False):
            points = sorted((row.tokens, row.step / MIB) for row in rows if (row.form, row.vocabulary) == (form, vocabulary))
            axes.plot(*zip(*points, strict=True), marker="o", color=color, label=FORMS[form])
        axes.set(title=f"vocabulary {vocabulary}", xlabel="future-token heads", ylabel="peak [MiB]")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=at_least(1), nargs="+", default=[1, 2, 4, 8], help="numbers of heads")
    parser.add_argument("--vocabulary", type=at_least(2), nargs="+", default=[256, 32000], help="bytes, and a tokenizer's")
    parser.add_argument("--context", type=at_least(1), default=256)
    parser.add_argument("--batch-size", type=at_least(1), default=4)
    parser.add_argument("--width", type=at_least(1), default=256)
    parser.add_argument("--layers", type=at_least(1), default=4, help="of the trunk; each head has one more")
    parser.add_argument("--heads", type=at_least(1), default=4, help="attention heads of a layer")
    parser.add_argument("--method", choices=sorted(gs.methods()), default="pcgrad", help="surgery of the detached form")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for memory.md, memory.json and memory.png")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    console = Console()
    a = build_parser().parse_args(argv)
    try:
        check_width(a.width, a.heads)
        device = choose_device(a.device)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sizes = [Sizes(V, a.context, a.batch_size, a.width, a.layers, a.heads) for V in sorted(set(a.vocabulary))]
    rows: list[Row] = []
    for size in sizes:
        for form, name in FORMS.items():
            for tokens in sorted(set(a.tokens)):
                row = measure(form, tokens, size, a.method, device)
                console.print(f"V {size.vocabulary}, n {tokens}, {name}: {row.step / MIB:.1f} MiB", highlight=False)
                rows.append(row)
    a.out.mkdir(parents=True, exist_ok=True)
    document = to_markdown(rows, sizes, device)
    (a.out / "memory.md").write_text(document)
    write_json(a.out / "memory.json", {"sizes": [asdict(size) for size in sizes], "rows": [asdict(row) for row in rows]})
    plot(rows, a.out / "memory.png")
    console.print(document, highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
