"""Draws committed results beside their files: ``python benchmarks/plot.py`` writes benchmarks/results/<device>-<date>.png, and
<device>-<date>-roofline.png where there are rows of a GPU's own time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cases import DTYPES
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from providers import PROVIDERS, Provider
from providers.compiled import compiled_providers
from results import FOLDER, Results, Row, latest

ENTERED: dict[str, Provider] = {**PROVIDERS, **compiled_providers("inductor")}
PALETTE = ("#1b6ca8", "#d1495b", "#edae49", "#7a7a7a", "#b0b0b0", "#66a182", "#8d6a9f")
COLORS = dict(zip(ENTERED, PALETTE, strict=True))
MARKERS = {"float32": "o", "bfloat16": "s"}


def draw(results: Results) -> Path | None:
    """Time against N for T = 4, and against T for N = 10^6: medians, with the 20th to 80th percentile shaded; None without rows."""
    if not results.where("surgery"):
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _curves(left, results, "numel", tasks=4)
    left.set(xscale="log", yscale="log", xlabel="coordinates N", ylabel="seconds a call", title="T = 4, float32")
    _curves(right, results, "tasks", numel=1_000_000)
    right.set(xscale="log", yscale="log", xlabel="tasks T", title="N = $10^6$, float32")
    ticks = sorted({r["tasks"] for r in results.where("surgery", numel=1_000_000)})
    right.set_xticks(ticks, [str(t) for t in ticks])
    right.minorticks_off()
    left.legend(frameon=False)
    e = results.environment
    figure.suptitle(f"PCGrad, {e['device']}" + (f", {e['cores']} cores" if e["kind"] == "cpu" else ""))
    path = results.path.with_suffix(".png")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def roofline(results: Results) -> Path | None:
    """Arithmetic against traffic under the roof of the copy bandwidth, and what is attained of it at every size; or None."""
    copy = results.one("copy")
    if copy is None:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    bandwidth = copy["gb_per_s"]
    rows = results.where("device", flushed=True)
    intensities = [flops(row) / row["floor_bytes"] for row in rows]
    ends = (min(intensities) / 1.5, max(intensities) * 1.5)
    left.plot(ends, [x * bandwidth for x in ends], color="black", linewidth=1, label=f"copy, {bandwidth:.0f} GB/s")
    for row, x in zip(rows, intensities, strict=True):
        left.plot(x, flops(row) / row["p50"] / 1e9, **_point_of(row))
    left.set(xscale="log", yscale="log", xlabel="flop a byte of the floor", ylabel="Gflop/s", title="the L2 cache flushed")
    sizes = sorted({_size(row) for row in rows})
    right.plot(sizes, [bandwidth] * len(sizes), color="black", linewidth=1)
    for row in results.where("device", what="surgery"):
        right.plot(_size(row), row["floor_bytes"] / row["p50"] / 1e9, **_point_of(row))
    right.set(
        xscale="log", yscale="log", xlabel="bytes of G", ylabel="GB/s of (2T + 1) N b", title="surgery; hollow: cache as it was"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_minor_formatter(NullFormatter())
    there = {row["provider"] for row in rows}
    names = [name for name in ENTERED if name in there]
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=COLORS[name], label=ENTERED[name].title) for name in names]
    figure.legend(handles=[left.lines[0], *handles], frameon=False, loc="outside right center")
    figure.suptitle(f"{results.environment['device']}: circles float32, squares bfloat16; large: surgery, small: K")
    path = results.path.with_name(f"{results.path.stem}-roofline.png")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def flops(row: Row) -> int:
    """T (T + 1) / 2 products and sums a coordinate for K, and T for the combination."""
    T, N = row["tasks"], row["numel"]
    return int(T * (T + 1) + (2 * T if row["what"] == "surgery" else 0)) * int(N)


def _size(row: Row) -> int:
    return int(row["tasks"] * row["numel"] * DTYPES[row["dtype"]].itemsize)


def _point_of(row: Row) -> dict[str, Any]:
    color = COLORS[row["provider"]]
    size = 7 if row["what"] == "surgery" else 4
    style = {"marker": MARKERS[row["dtype"]], "markersize": size, "color": color, "linestyle": ""}
    return style | {"markerfacecolor": color if row["flushed"] else "none"}


def _curves(axes: Axes, results: Results, along: str, **point: int) -> None:
    for name, provider in PROVIDERS.items():
        rows = sorted(results.where("surgery", provider=name, dtype="float32", **point), key=lambda r: r[along])
        x = [r[along] for r in rows]
        axes.plot(x, [r["p50"] for r in rows], "o-", markersize=4, color=COLORS[name], label=provider.title)
        axes.fill_between(x, [r["p20"] for r in rows], [r["p80"] for r in rows], color=COLORS[name], alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of results")
    for results in latest(parser.parse_args().results):
        print(*filter(None, (draw(results), roofline(results))), sep="\n")


if __name__ == "__main__":
    main()
