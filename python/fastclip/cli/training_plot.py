"""Training runs as a picture: loss and gradient norm over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastclip.cli.training import BY_GLOBAL_NORM, BY_VALUE, NO_CLIPPING, Run

# Okabe and Ito's palette, which stays distinct without full colour vision.
_COLOURS = {NO_CLIPPING.name: "#D55E00", BY_VALUE.name: "#0072B2", BY_GLOBAL_NORM.name: "#009E73"}
_SMOOTHING = 15  # steps


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw the loss and, on a logarithmic axis, the gradient norm of each run.

    Thin lines are single steps, thick lines running medians. A run that diverged ends in a cross.

    Parameters
    ----------
    runs : sequence of Run
        What to draw; each has at least one step.
    path : Path
        The file to write; its suffix says the format, such as ".png".
    """
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    losses, norms = figure.subplots(2, 1, sharex=True)
    for run in runs:
        _draw(losses, run, run.losses, top=1.5 * runs[0].losses[0])
        _draw(norms, run, run.norms)
    norms.axhline(BY_GLOBAL_NORM.bound, color=_COLOURS[BY_GLOBAL_NORM.name], linestyle="--", linewidth=1.2)
    norms.annotate(
        f"the global norm is clipped to {BY_GLOBAL_NORM.bound:g}",
        (0.02, BY_GLOBAL_NORM.bound),
        xycoords=("axes fraction", "data"),
        xytext=(0, -5),
        textcoords="offset points",
        va="top",
        color=_COLOURS[BY_GLOBAL_NORM.name],
    )
    norms.set_yscale("log")
    losses.set_ylim(0, 1.5 * runs[0].losses[0])
    losses.set_ylabel("loss of the batch")
    norms.set_ylabel("gradient norm before clipping")
    norms.set_xlabel("step")
    for axes in (losses, norms):
        axes.grid(linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
    losses.set_title("The same first weights, batches and learning rate: only the clipping differs", pad=14)
    losses.legend(loc="upper right", frameon=False, title="clipping")
    norms.text(
        0.99,
        0.97,
        f"thin: each step; thick: median of {_SMOOTHING} steps",
        transform=norms.transAxes,
        ha="right",
        va="top",
        fontsize=9,
        color="dimgray",
    )
    figure.savefig(path, dpi=130)


def _draw(axes: Axes, run: Run, values: Sequence[float], top: float = np.inf) -> None:
    """Draw a line of a run, which leaves the picture above `top`."""
    colour = _COLOURS[run.clipping.name]
    steps = np.arange(1, run.steps + 1)
    shown = np.array(values)
    shown[~np.isfinite(shown)] = np.nan
    if run.diverged:
        axes.plot(steps, shown, color=colour, linewidth=1.6, label=run.clipping.name)
    else:
        medians = [np.median(shown[max(0, step - _SMOOTHING) : step]) for step in steps]
        axes.plot(steps, shown, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(steps, medians, color=colour, linewidth=1.8, label=run.clipping.name)
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
