"""Draws the loss and the gradient norm of training runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastclip.cli.demo.training import CLASSES, GLOBAL_NORM_BOUND, Run

# Okabe and Ito's palette, which is distinct to colour-blind readers too.
_COLOURS = {"none": "#D55E00", "by value": "#0072B2", "by global norm": "#009E73"}
_SMOOTHING = 15  # steps


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw the loss and the gradient norm of each run on logarithmic axes, one column per optimizer.

    Thin lines show single steps, thick lines running medians. A run that diverged ends in a cross.

    Parameters
    ----------
    runs : sequence of Run
        The runs. Each has at least one step.
    path : Path
        The file to write. Its suffix determines the format, such as ".png".
    """
    rules = list(dict.fromkeys(run.method.rule for run in runs))
    figure = Figure(figsize=(6 * len(rules), 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(rules), sharex=True, sharey="row", squeeze=False)
    tops = [_top(runs, kind) for kind in ([run.losses for run in runs], [run.norms for run in runs])]
    for rule, (losses, norms) in zip(rules, grid.T, strict=True):
        in_column = [run for run in runs if run.method.rule == rule]
        for run in in_column:
            _draw(losses, run, run.losses, tops[0])
            _draw(norms, run, run.norms, tops[1])
        losses.set_title(f"{rule}, learning rate up to {in_column[0].method.learning_rate:g}")
        _draw_reference(losses, math.log(CLASSES), "a guess", "dimgray")
        _draw_reference(
            norms, GLOBAL_NORM_BOUND, f"global_clipnorm={GLOBAL_NORM_BOUND:g}", _COLOURS["by global norm"]
        )
        norms.set_xlabel("step")
        losses.legend(loc="upper right", frameon=False, title="clipping")
    for axes in grid.flat:
        axes.set_yscale("log")
        axes.grid(linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
    for (first, *_), top, label in zip(
        grid, tops, ("loss of the batch", "gradient norm before clipping"), strict=True
    ):
        first.set_ylim(top=top)
        first.set_ylabel(label)
    figure.suptitle("The same first weights and batches; the runs of an optimizer differ in clipping alone")
    grid[1, -1].text(
        0.99,
        0.97,
        f"thin: each step; thick: median of {_SMOOTHING} steps",
        transform=grid[1, -1].transAxes,
        ha="right",
        va="top",
        fontsize=9,
        color="dimgray",
    )
    figure.savefig(path, dpi=130)


def _top(runs: Sequence[Run], series: Sequence[Sequence[float]]) -> float:
    """Return the upper end of an axis.

    It ignores all but the first value of runs that diverged: an axis for their largest values would
    compress the curves of the other runs.
    """
    shown = [
        value
        for run, values in zip(runs, series, strict=True)
        for value in (values[:1] if run.diverged else values)
        if math.isfinite(value)
    ]
    return 10 * max(shown, default=1.0)


def _draw(axes: Axes, run: Run, values: Sequence[float], top: float) -> None:
    """Draw the curve of a run. If it diverged, its cross is at `top` at most."""
    colour = _COLOURS[run.method.clipping]
    steps = np.arange(1, run.steps + 1)
    shown = np.array(values)
    shown[~np.isfinite(shown)] = np.nan
    if run.diverged:
        axes.plot(steps, shown, color=colour, linewidth=1.6, label=run.method.clipping)
    else:
        medians = [np.median(shown[max(0, step - _SMOOTHING) : step]) for step in steps]
        axes.plot(steps, shown, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(steps, medians, color=colour, linewidth=1.8, label=run.method.clipping)
    finite = np.flatnonzero(np.isfinite(shown))
    if run.diverged and finite.size:
        end = (float(steps[finite[-1]]), min(float(shown[finite[-1]]), top))
        axes.plot(*end, marker="X", markersize=10, color=colour, clip_on=False, zorder=4)
        axes.annotate(
            f"{shown[finite[-1]]:.0e}, then NaN",
            end,
            xytext=(11, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        )


def _draw_reference(axes: Axes, value: float, text: str, colour: str) -> None:
    """Draw a dashed horizontal line with a label."""
    axes.axhline(value, color=colour, linestyle="--", linewidth=1.2)
    axes.annotate(
        text,
        (0.02, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        va="top",
        color=colour,
        fontsize=9,
    )
