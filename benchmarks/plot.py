"""Draws committed results beside their files: ``python benchmarks/plot.py`` writes benchmarks/results/<device>-<date>.png."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from providers import PROVIDERS
from results import FOLDER, Results, latest

COLORS = dict(zip(PROVIDERS, ("#1b6ca8", "#d1495b", "#edae49", "#7a7a7a", "#b0b0b0"), strict=True))


def draw(results: Results) -> Path:
    """Time against N for T = 4, and against T for N = 10^6: medians, with the 20th to 80th percentile shaded."""
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
        print(draw(results))


if __name__ == "__main__":
    main()
