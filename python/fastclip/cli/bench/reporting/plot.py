"""Draws the results of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastclip.cli.bench.reporting.timed_row import TimedRow

_MARKERS = {
    "fastclip": ("o", "C3"),
    "numpy": ("s", "C0"),
    "expert": ("D", "C9"),
    "torch": ("^", "C1"),
    "torch-foreach": ("<", "C6"),
    "deepspeed": (">", "C7"),
    "tf": ("v", "C2"),
    "jax": ("P", "C4"),
    "fastclip-f32": ("*", "C5"),
    "fastclip-list": ("*", "C5"),
    "fastclip-reference": ("*", "C5"),
    "fastclip-f32-moments": ("*", "C5"),
    "fastclip-without-hooks": ("*", "C5"),
}


def plot_rows(rows: Sequence[TimedRow], title: str, path: Path) -> None:
    """Draw the median time of each contender as a multiple of the limit, one line per row.

    Parameters
    ----------
    rows : sequence of TimedRow
        The rows, from top to bottom.
    title : str
        The title of the plot.
    path : Path
        The file to write. Its suffix determines the format, such as ".png".
    """
    figure = Figure(figsize=(9, 1.8 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (marker, colour) in _MARKERS.items():
        shown = [(place, row) for place, row in enumerate(rows) if name in row.timings]
        if not shown:
            continue
        axes.scatter(
            [row.timings[name].median / row.timings["limit"].median for _, row in shown],
            [place for place, _ in shown],
            marker=marker,
            color=colour,
            s=64 if name == "fastclip" else 36,
            zorder=3 if name == "fastclip" else 2,
            label=name,
        )
    axes.axvline(1.0, color="black", linewidth=1, label="limit")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [row.row.name.replace("/", "  ") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="both", linewidth=0.5, alpha=0.4)
    axes.set_xlabel("median time / limit (the time this machine takes to move the same bytes); logarithmic")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(path, dpi=130)
