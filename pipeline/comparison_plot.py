"""The picture of a comparison: test loss against steps and against seconds, a line and a band a method.

    draw(comparison, Path("comparison.png"), title="checker")

The line is the geometric mean over the seeds, the band reaches from the lowest to the highest of them. The colours are
those of Okabe and Ito, which stay apart for all common kinds of colour blindness.

Needs matplotlib, which the extra ``plots`` brings: ``ImportError`` without it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.comparing import LEAST_LOSS, Comparison

COLORS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A600")
DPI = 150


def draw(comparison: Comparison, path: Path, title: str) -> None:
    """Write the picture as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, label, column in zip(panels, ("steps", "seconds of training"), (0, 1), strict=True):
        for place, method in enumerate(comparison.methods):
            points = points_of(comparison, method)
            if points is None:
                continue
            across = points[:, :, column].mean(axis=0)
            logs = np.log(points[:, :, 2])
            color = COLORS[place % len(COLORS)]
            panel.plot(across, np.exp(logs.mean(axis=0)), color=color, linewidth=2.0, label=method)
            panel.fill_between(
                across, np.exp(logs.min(axis=0)), np.exp(logs.max(axis=0)), color=color, alpha=0.15, lw=0
            )
        panel.set_yscale("log")
        panel.set_xlabel(label)
        panel.grid(which="major", color="#ececec", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test loss")
    if any(panel.lines for panel in panels):
        panels[1].legend(frameon=False)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.savefig(path, format="png", metadata={"Software": None})


def points_of(comparison: Comparison, method: str) -> npt.NDArray[np.float64] | None:
    """(seeds, points, 3) steps, seconds and test losses > 0 of the runs that did not diverge; None without any.

    The runs of a method record at the same steps. A point that is not finite is drawn as the method's largest.
    """
    curves = [run.curve for run in comparison.runs if run.method == method and not run.diverged]
    if not curves:
        return None
    points = np.array(curves, np.float64)
    losses = points[:, :, 2]
    finite = np.isfinite(losses)
    points[:, :, 2] = np.maximum(np.where(finite, losses, losses[finite].max()), LEAST_LOSS)
    return points
