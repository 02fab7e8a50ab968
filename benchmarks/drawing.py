"""What the pictures of the results share: colours, panels with logarithmic axes, lines, one legend for all panels.

This project's lines are thick, those of others thin. The colours are those of Okabe and Ito, which stay apart for all
common kinds of colour blindness; markers repeat what they say. The background is white, so a picture reads on any
page.

Needs matplotlib, which the extra ``plots`` brings; ``plotted`` goes without it and says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GROUND = "#222222", "#8a8a8a", "#d9d9d9"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#B8A600",  # of Okabe and Ito, darkened: the original is too light on white
)
DPI = 150

Row = dict[str, Any]
Line = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Style:
    """How a system is drawn; ``label`` is its name in the legend."""

    label: str
    color: str
    marker: str
    dashed: bool = False
    ours: bool = False


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def logarithmic(axes: Axes, title: str) -> None:
    """A panel with two logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, color=INK, fontsize=12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=12))
        axis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    quiet(axes)


def quiet(axes: Axes, grid: Literal["x", "both"] = "both", **ticks: Any) -> None:
    """Faint lines of a grid behind everything, no ticks, and no frame but the two axes."""
    axes.grid(which="major", axis=grid, color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, **ticks)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GROUND)


def line(rows: Sequence[Row], name: str, x: str, y: str) -> Line:
    """What a system has of the fields ``x`` and ``y``, by ascending x."""
    found = sorted((row[x], row[y]) for row in rows if row["system"] == name and "skipped" not in row)
    return [first for first, _ in found], [second for _, second in found]


def lines(axes: Axes, styles: dict[str, Style], line_of: Callable[[str], Line]) -> None:
    """The lines of all systems that have one; the first of the styles, which are ours, on top."""
    for name, style in reversed(styles.items()):
        across, up = line_of(name)
        if across:
            axes.plot(
                across,
                up,
                label=style.label,
                color=style.color,
                marker=style.marker,
                markersize=7 if style.ours else 5,
                markeredgecolor="white" if style.marker not in "1" else style.color,
                markeredgewidth=0.7,
                linewidth=3.2 if style.ours else 1.3,
                linestyle=(0, (4, 2)) if style.dashed else "-",
                alpha=1.0 if style.ours else 0.9,
                zorder=4 if style.ours else 3,
            )


def legend(figure: Figure, styles: dict[str, Style], columns: int) -> None:
    """One for all panels, in the order of the styles."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    order = [style.label for style in styles.values() if style.label in handles]
    order += [label for label in handles if label not in order]
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="outside lower center",
        ncols=min(columns, len(order)) or 1,
        frameon=False,
        fontsize=9.5,
        handlelength=2.8,
        columnspacing=1.8,
    )


def save(figure: Figure, title: str, path: Path) -> None:
    """Give the figure its title and write it as a PNG."""
    figure.suptitle(title, color=INK, fontsize=14, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def plotted(module: str, rows: Sequence[Row], path: Path) -> str:
    """Have ``draw`` of a module draw the rows; what to say of it."""
    try:
        importlib.import_module(module).draw(rows, path)
    except ImportError as error:
        return f"; not plotted ({error}; the extra plots has it)"
    return f" and {path}"
