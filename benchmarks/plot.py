"""A picture of the comparison; needs matplotlib, which the extra `benchmarks` brings."""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import Failed
from benchmarks.mounted import OURS, Results

MARKERS = "osD^vP*Xp"


def draw(results: Results, path: Path, heading: str) -> None:
    """One row for each workload, one mark for each peer, cowfs being 1; the suffix (svg, png) says what is written."""
    try:
        importlib.import_module("matplotlib").use("agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise Failed("a plot needs matplotlib: pip install cowfs[benchmarks]") from error
    titles = [f"{title}, {unit}" for title, unit in results.lines]
    drawing, axes = pyplot.subplots(figsize=(12, 1.8 + 0.36 * len(titles)), layout="constrained")
    others = [name for name in results.peers if name != OURS]
    for number, name in enumerate(others):
        places, rows = [], []
        for row, (title, unit) in enumerate(results.lines):
            ratios = results.ratios(title, unit, name)
            if ratios:
                places.append(1 / statistics.median(ratios))
                rows.append(row)
        axes.plot(places, rows, MARKERS[number % len(MARKERS)], label=name, alpha=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.grid(axis="both", alpha=0.3)
    axes.set_xlabel(f"times as good as {OURS}, which is the line at 1 (to the right: ahead of it)")
    axes.set_title(heading, fontsize="small")
    drawing.legend(loc="outside lower center", ncols=len(others), frameon=False)
    drawing.savefig(path)
    pyplot.close(drawing)
