"""Writes the tables of committed results into Markdown files: ``python benchmarks/table.py [FILE ...] [--check]``.

Without a file, README.md and docs/benchmarks.md. They stand between ``<!-- benchmark:begin -->`` and ``<!-- benchmark:end -->``.
With --check nothing is written, and the exit status tells whether the files are current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cases import Case
from parameter_step import CONTENDERS, RIVALS
from providers import PROVIDERS
from providers.compiled import compiled_providers
from results import FOLDER, Results, Row, latest

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
FILES = [Path(__file__).resolve().parents[1] / name for name in ("README.md", "docs/benchmarks.md")]
OURS = "gradsurgery"
QUIET = 0.05  # of the CPUs' time; beyond, the table says that the machine was busy


def seconds(t: float) -> str:
    """Three digits, in the unit that suits: 5.2 us is "5.20 µs"."""
    value, unit = (t * 1e6, "µs") if t < 1e-3 else (t * 1e3, "ms") if t < 1 else (t, "s")
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Three significant digits, never in exponents."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def power(numel: int) -> str:
    """1,000 as 10³, 30,000,000 as 3·10⁷."""
    exponent = len(str(numel)) - 1
    factor = numel // 10**exponent
    raised = "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return raised if factor == 1 else f"{factor}·{raised}"


def megabytes(count: int) -> str:
    """Decimal megabytes: 40 MB."""
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e6:.1f} MB"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, numbers to the right."""
    return [f"| {' | '.join(header)} |", "|" + " --: |" * len(header), *(f"| {' | '.join(row)} |" for row in rows), ""]


def render(results: Results) -> str:
    """One device's section."""
    parts = [_heading(results), *_times(results), *_device(results), *_solvers(results), *_memory(results)]
    parts += [*_parameters(results), *_facts(results)]
    return "\n".join(parts)


def _heading(results: Results) -> str:
    e = results.environment
    name = e["device"] if e["kind"] == "cuda" else f"{e['device']}, {e['cores']} cores"
    versions = ", ".join(f"{package} {version}" for package, version in e["versions"].items() if version)
    build = f"{e['build']['cpu_capability']} kernels" if e["kind"] == "cpu" and e["build"]["cpu"] else ""
    if not e["build"][e["kind"]]:
        build = "pure-PyTorch reference"
    lines = [f"**{name}** ({', '.join(filter(None, [e['date'], versions, build, 'commit ' + (e['commit'] or 'unknown')]))})", ""]
    share = e["others_share"]
    if share is None or share > QUIET:
        busy = "an unknown share" if share is None else f"{share:.0%}"
        lines += [f"*Preliminary: other processes took {busy} of the CPUs' time meanwhile.*", ""]
    return "\n".join(lines)


def _times(results: Results) -> list[str]:
    surgery = results.where("surgery")
    shown = [r for r in surgery if r["tasks"] == 4] + [r for r in surgery if r["tasks"] != 4 and r["numel"] == 1_000_000]
    points = sorted({(r["dtype"] != "float32", r["dtype"], r["tasks"], r["numel"]) for r in shown})
    rows = []
    for _, dtype, tasks, numel in points:
        at = {r["provider"]: r for r in results.where("surgery", tasks=tasks, numel=numel, dtype=dtype)}
        mine = at[OURS]["p50"]
        cells = [_against(at.get(name), mine) for name in PROVIDERS if name != OURS]
        rows.append([dtype, str(tasks), power(numel), seconds(mine), *cells, digits(at[OURS]["floor_gb_per_s"])])
    if not rows:
        return []
    titles = [p.title for p in PROVIDERS.values()]
    return [
        "One PCGrad call on T gradients of N coordinates, in random order; medians over rounds in which all take turns, each "
        "result checked first against float64 surgery on the full vectors. In brackets: how many times gradsurgery's time. GB/s: "
        "the bytes of (2T + 1) N coordinates in gradsurgery's time.",
        "",
        *table(["", "T", "N", *titles, "GB/s"], rows),
    ]


def _against(row: Row | None, mine: float) -> str:
    return "–" if row is None else f"{seconds(row['p50'])} ({digits(row['p50'] / mine)}×)"


def _device(results: Results) -> list[str]:
    copy = results.one("copy")
    if copy is None:
        return []
    entered = {**PROVIDERS, **compiled_providers("inductor")}
    surgery = results.where("device", what="surgery")
    rivals = [name for name in entered if name != OURS and any(r["provider"] == name for r in surgery)]
    rows = []
    for mine in (r for r in surgery if r["provider"] == OURS):
        point = {key: mine[key] for key in ("tasks", "numel", "dtype", "flushed")}
        at = {r["provider"]: r for r in results.where("device", what="surgery", **point)}
        K = results.one("device", what="gram", provider=OURS, **point)
        cells = [mine["dtype"], str(mine["tasks"]), power(mine["numel"]), "flushed" if mine["flushed"] else "as it was"]
        cells += [seconds(mine["p50"]), f"{mine['of_floor']:.0%}", f"{K['of_floor']:.0%}" if K else "–"]
        rows.append([*cells, *(_against(at.get(name), mine["p50"]) for name in rivals)])
    lines = [
        f"PCGrad on the device, by its own events; each result checked first. %: (2T + 1) N coordinates at {copy['gb_per_s']:.0f} "
        "GB/s, the bandwidth of a copy, over gradsurgery's time; likewise T N for its Gram matrix alone.",
        "",
        *table(["", "T", "N", "L2 cache", "gradsurgery", "%", "K, %", *(entered[name].title for name in rivals)], rows),
    ]
    steps = {r["form"]: r for r in results.where("device step")}
    if steps:
        plain = steps["plain"]
        said = {"plain": "the sum", "split": "`split`", **{form: c.title for form, c in CONTENDERS.items() if form != "plain"}}
        cells = [[said[form], _over(r["p50"], plain["p50"]), megabytes(r["extra_bytes"])] for form, r in steps.items()]
        lines += [
            f"Forward and backward pass of ResNet-50 with {plain['tasks']} tasks ({_batch(plain)}, autocast in "
            f"{plain['precision']}), and the peak memory of one.",
            "",
            *table(["", "time", "memory"], cells),
        ]
    for mine in results.where("replay", provider=OURS):
        at = {r["provider"]: r for r in results.where("replay", **{k: mine[k] for k in ("tasks", "numel", "dtype")})}
        others = ", ".join(f"{entered[name].title} {_against(r, mine['p50'])}" for name, r in at.items() if name != OURS)
        point = f"T = {mine['tasks']}, N = {mine['numel']:,}, {mine['dtype']}"
        lines.append(f"- A replay of PCGrad in a CUDA graph ({point}) takes {seconds(mine['p50'])}; {others}.")
    return [*lines, ""]


def _solvers(results: Results) -> list[str]:
    mine = results.where("solver", provider=OURS)
    if not mine:
        return []
    tasks = sorted({r["tasks"] for r in mine})
    rows = []
    for method in dict.fromkeys(r["method"] for r in mine):
        cells = []
        for T in tasks:
            at = {r["provider"]: r for r in results.where("solver", method=method, tasks=T)}
            cells.append(_solver(at[OURS], at["torchjd"]) if at else "–")
        rows.append([f"`{method}`", *cells])
    return [
        "`gradsurgery.weights(K, method)` on K [T, T] in float64, each answer checked first by its method's conditions, to "
        f"{max(r['error'] for r in mine):.0e} at worst. In brackets: how many times that TorchJD takes for the same K, and how far "
        "at most its gradient is off, relative to its length. Of Nash-MTL and ConFIG it offers no weights: there it is given "
        "gradients of 4T coordinates.",
        "",
        *table(["", *(f"T = {T}" for T in tasks)], rows),
    ]


def _solver(mine: Row, theirs: Row) -> str:
    return f"{seconds(mine['p50'])} ({digits(theirs['p50'] / mine['p50'])}×, {theirs['error']:.0e})"


def _memory(results: Results) -> list[str]:
    found = {(r["tasks"], r["numel"], r["dtype"]) for r in results.where("memory")}
    rows = []
    for tasks, numel, dtype in sorted(found):
        at = {r["provider"]: r for r in results.where("memory", tasks=tasks, numel=numel, dtype=dtype)}
        cells = [f"{megabytes(at[n]['extra_bytes'])}, {megabytes(at[n]['call_bytes'])}" if n in at else "–" for n in PROVIDERS]
        rows.append([str(tasks), power(numel), megabytes(numel * Case(tasks, numel, dtype).itemsize), *cells])
    if not rows:
        return []
    titles = [p.title for p in PROVIDERS.values()]
    return [
        "Peak memory above the gradients, the result included; and what one more call takes on top of what is kept between calls.",
        "",
        *table(["T", "N", "result", *titles], rows),
    ]


def _parameters(results: Results) -> list[str]:
    steps, memory = _by_tasks(results.where("parameter step"), "p50"), _by_tasks(results.where("parameter memory"), "extra_bytes")
    if not steps:
        return []
    times, peaks = [], []
    for form, contender in CONTENDERS.items():
        if form == "plain":
            times.append([contender.title, *(seconds(at[form]) for at in steps.values())])
        else:
            times.append([contender.title, *(_over(at.get(form), at["plain"]) for at in steps.values())])
            peaks.append([contender.title, *(_above(at.get(form), at["plain"]) for at in memory.values())])
    step = results.where("parameter step")[0]
    lines = [
        f"The gradients of a training step by PCGrad in the space of ResNet-18's parameters ({_batch(step)}, forward pass "
        "included), each checked first against float64 PCGrad on the gradients of T separate backward passes; medians over rounds "
        f"in which all take turns{', each in a process of its own' if step.get('own_process') else ''}. In brackets: how many "
        "times the time of the sum's one backward pass.",
        "",
        *table(["", *(f"T = {T}" for T in steps)], times),
    ]
    if memory:
        lines += [
            "Their peak memory above that of the sum's one backward pass, over several steps from the first, so that what is kept "
            "between steps counts.",
            "",
            *table(["", *(f"T = {T}" for T in memory)], peaks),
        ]
    return lines


def _by_tasks(rows: list[Row], key: str) -> dict[int, dict[str, Any]]:
    """T -> form -> what the row has under this key."""
    return {T: {r["form"]: r[key] for r in rows if r["tasks"] == T} for T in sorted({r["tasks"] for r in rows})}


def _over(time: float | None, plain: float) -> str:
    return "–" if time is None else f"{seconds(time)} ({digits(time / plain)}×)"


def _above(peak: int | None, plain: int) -> str:
    return "–" if peak is None else megabytes(max(peak - plain, 0))


def _parameter_facts(results: Results) -> list[str]:
    lines = []
    steps = {T: at for T, at in _by_tasks(results.where("parameter step"), "p50").items() if T > 1}
    if steps:
        rival = _shares({T: at["full"] / min(at[r] for r in RIVALS) for T, at in steps.items()})
        floor = _shares({T: at["full"] / at["floor"] for T, at in steps.items()})
        lines.append(
            f"- In parameter space a step of gradsurgery takes, of the time of TorchJD's fastest configuration, {rival}; of the "
            f"time of one forward and T plain backward passes, {floor}."
        )
    memory = {T: at for T, at in _by_tasks(results.where("parameter memory"), "extra_bytes").items() if T > 1}
    if memory:
        above = {T: {form: max(peak - at["plain"], 0) for form, peak in at.items()} for T, at in memory.items()}
        least = {T: min(at[r] for r in RIVALS) for T, at in above.items()}
        lines.append(
            "- Its peak memory above the plain step's is, of that of TorchJD's leanest configuration, "
            f'{_shares({T: at["full"] / least[T] for T, at in above.items()})}; with `memory="low"` '
            f"{_shares({T: at['low'] / least[T] for T, at in above.items()})}; of TorchJD's default, "
            f"{_shares({T: at['full'] / at['torchjd'] for T, at in above.items()})}."
        )
    for form in dict.fromkeys(r["form"] for r in results.where("weights distance")):
        rows = results.where("weights distance", form=form)
        off = ", ".join(f"{r['weights_mean']:.2g} and {r['weights_max']:.2g} (`{r['method']}`)" for r in rows)
        cosines = ", ".join(f"{r['cosine_mean']:.4f} and {r['cosine_min']:.4f}" for r in rows)
        lines.append(
            f"- With {CONTENDERS[form].title}, in {rows[0]['steps']} steps of training with {rows[0]['tasks']} tasks, the weight "
            f"that differs most from that of the full Gram matrix differs, on average over the steps and at most, by {off}; the "
            f"cosine between the two gradients of the trunk is, on average and at least, {cosines}."
        )
    return lines


def _shares(by_tasks: dict[int, float]) -> str:
    return ", ".join(f"{share:.2f}× at T = {T}" for T, share in by_tasks.items())


def _facts(results: Results) -> list[str]:
    lines = []
    reads = results.where("read")
    probes = [r for r in reads if r["name"] != "gram"]
    if probes:
        best = max(probes, key=lambda r: r["gb_per_s"])
        share = ", ".join(
            f"{r['gb_per_s']:.1f} GB/s ({r['gb_per_s'] / best['gb_per_s']:.0%}) at T = {r['tasks']}, N = {power(r['numel'])}"
            for r in reads
            if r["name"] == "gram"
        )
        lines.append(f"- `gram` reads {share}; the machine's fastest plain read is {best['gb_per_s']:.1f} GB/s ({best['name']}).")
    read = [r for r in results.where("solver", provider=OURS) if "read_p50" in r]
    if read:
        share = []
        for T in sorted({r["tasks"] for r in read}):
            slowest = max((r for r in read if r["tasks"] == T), key=lambda r: r["p50"] / r["read_p50"])
            share.append(f"{slowest['p50'] / slowest['read_p50']:.0%} at T = {T} (`{slowest['method']}`)")
        lines.append(
            "- The slowest method's weights take, of the time in which `gram` reads T gradients of 10⁵ coordinates: "
            f"{', '.join(share)}."
        )
    largest = max((r["numel"] for r in results.where("surgery", tasks=4, dtype="float32")), default=0)
    errors = results.where("surgery", tasks=4, dtype="float32", numel=largest)
    if errors:
        found = ", ".join(f"{PROVIDERS[r['provider']].title} {r['error']:.0e}" for r in errors)
        lines.append(
            f"- Relative error against float64 surgery on the full vectors at T = 4, N = {power(largest)}, float32: {found}."
        )
    for ours in results.where("by sample", provider=OURS):
        point = {name: ours[name] for name in ("tasks", "batch", "numel", "dtype")}
        others = {r["provider"]: r["p50"] / ours["p50"] for r in results.where("by sample", **point)}
        lines.append(
            f"- Surgery by sample, T = {ours['tasks']}, B = {ours['batch']}, N = {ours['numel']}, {ours['dtype']}: "
            f"{seconds(ours['p50'])}; a loop over the samples takes {others['loop']:.1f}× of that, torch.bmm {others['bmm']:.1f}×."
        )
    steps = {r["form"]: r for r in results.where("step")}
    if steps:
        plain = steps["plain"]
        against = ", ".join(f"`{form}` {r['p50'] / plain['p50']:.3f}×" for form, r in steps.items() if form != "plain")
        lines.append(
            f"- A training step of ResNet-18 with {plain['tasks']} tasks ({_batch(plain)}) takes {seconds(plain['p50'])} with the "
            f"summed loss; {against} of that."
        )
    memory = {r["form"]: r for r in results.where("step memory")}
    if memory:
        plain = memory["plain"]
        peaks = ", ".join(f"`{form}` {megabytes(r['extra_bytes'])}" for form, r in memory.items())
        lines.append(f"- Its peak memory with dense heads ({_batch(plain)}): {peaks}.")
    lines += _parameter_facts(results)
    return [*lines, ""] if lines else []


def _batch(row: Row) -> str:
    return f"batch {row['batch']}, {row['size']}×{row['size']}"


def insert(text: str, section: str, name: str) -> str:
    """``text`` with ``section`` between the markers.

    Raises:
        ValueError: the markers are not there, or not in order.
    """
    start, stop = text.find(BEGIN), text.find(END)
    if start < 0 or stop < start or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{name}: expected one {BEGIN} followed by one {END}, found {text.count(BEGIN)} and {text.count(END)}.")
    return f"{text[: start + len(BEGIN)]}\n{section}{text[stop:]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", default=FILES)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of results")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    a = parser.parse_args(arguments)
    try:
        section = "\n".join(render(results) for results in latest(a.results))
        texts = {file: file.read_text() for file in a.files}
        renewed = {file: insert(text, section, str(file)) for file, text in texts.items()}
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for file, text in renewed.items():
        if not a.check:
            file.write_text(text)
        elif text != texts[file]:
            print(f"{file}: the benchmark tables are not those of {a.results}; run python benchmarks/table.py.", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
