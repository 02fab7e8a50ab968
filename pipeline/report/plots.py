"""The pictures of a report, each for a light and for a dark page.

    for theme in THEMES.values():
        figure = losses_on_test({"importance": run.curve}, "step", theme)
        png(figure)                             # bytes

A picture is 4.8 inches wide, so that its words can be read on a phone. The colours are those of Okabe and Ito, which
stay apart for all common kinds of colour blindness; lines differ in their dashes, too.

Needs matplotlib, which the extra ``report`` brings: ``ImportError`` without it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.report.findings import REGIONS, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 4.8, 3.2, 200
LEAST = 1e-7  # a loss below it is drawn there, as the scale is logarithmic
DASHES = ("-", "--", "-.", ":")
MOST_POINTS = 20_000  # of a data map; the others are left out at random
MOST_GROUPS = 20  # of a picture by class: those of the highest losses

Row = Mapping[str, float]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Theme:
    """The colours of a page."""

    name: str
    paper: str
    ink: str
    grid: str
    lines: tuple[str, ...]


THEMES = {
    "light": Theme(
        "light", "#ffffff", "#1d1d1f", "#e4e4e7", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#333333")
    ),
    "dark": Theme(
        "dark", "#16181d", "#e8e8ea", "#33363d", ("#56B4E9", "#E69F00", "#2FBF92", "#E39AC0", "#F0E442", "#BBBBBB")
    ),
}


def png(figure: Figure) -> bytes:
    """The picture as a file: the same bytes for the same picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _new(theme: Theme, rows: int = 1, height: float = HEIGHT, *, names: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, one above the other; with ``names`` there are words of any length beside the axis, and
    matplotlib makes room for them, which takes as long as all else.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor=theme.paper, layout="constrained" if names else None)
    FigureCanvasAgg(figure)
    if not names:
        figure.subplots_adjust(left=0.17, right=0.97, top=1.0 - 0.12 / height, bottom=0.55 / height, hspace=0.12)
    panels = list(np.atleast_1d(figure.subplots(rows, 1, sharex=True)))
    for panel in panels:
        panel.set_facecolor(theme.paper)
        panel.grid(which="major", color=theme.grid, linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(theme.ink)
        panel.tick_params(colors=theme.ink, which="both", labelsize=9)
        for label in (panel.xaxis.label, panel.yaxis.label):
            label.set_color(theme.ink)
    return figure, panels


def _log(panel: Axes) -> None:
    """A logarithmic axis with plain numbers, as few as matplotlib would have powers of ten."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(Plain())
    panel.yaxis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def _plain(name: str) -> str:
    """A name of the user's, in which matplotlib is to see no formula."""
    return name.replace("$", r"\$")


def _legend(panel: Axes, theme: Theme, **options: Any) -> None:
    panel.legend(frameon=False, labelcolor=theme.ink, fontsize=9, **options)


# --- training -------------------------------------------------------------------------------------


def losses_on_test(curves: Mapping[str, Sequence[Row]], across: str, theme: Theme) -> Figure:
    """The test loss of one run or several against ``"step"`` or ``"seconds"``, with a band from ``lowest`` to
    ``highest`` where the rows have them.
    """
    figure, (panel,) = _new(theme)
    for place, (name, rows) in enumerate(curves.items()):
        color = theme.lines[place % len(theme.lines)]
        points = [row for row in rows if "test_loss" in row and across in row]
        where = [row[across] for row in points]
        losses = [max(row["test_loss"], LEAST) for row in points]
        marker = "o" if len(points) == 1 else ""  # a line of one point is none
        dashes = DASHES[place % len(DASHES)]
        panel.plot(where, losses, color=color, linestyle=dashes, linewidth=1.8, marker=marker, label=_plain(name))
        if points and all("lowest" in row for row in points):
            low, high = ([max(row[end], LEAST) for row in points] for end in ("lowest", "highest"))
            panel.fill_between(where, low, high, color=color, alpha=0.15, lw=0)
    _log(panel)
    panel.set_xlabel("steps" if across == "step" else "seconds of training")
    panel.set_ylabel("test loss")
    if len(curves) > 1:
        _legend(panel, theme)
    return figure


def losses_over_time(rows: Sequence[Row], theme: Theme) -> Figure:
    """How the newest losses of all samples were distributed after each epoch."""
    figure, (panel,) = _new(theme)
    steps = [row["step"] for row in rows]
    values = {name: np.maximum([row[name] for row in rows], LEAST) for name in rows[0] if name != "step"}
    color, marker = theme.lines[0], "o" if len(rows) == 1 else ""
    panel.fill_between(steps, values["loss_0.05"], values["loss_0.95"], color=color, alpha=0.2, lw=0, label="5 - 95 %")
    panel.fill_between(steps, values["loss_0.25"], values["loss_0.75"], color=color, alpha=0.4, lw=0, label="25 - 75 %")
    panel.plot(steps, values["loss_0.5"], color=color, linewidth=1.8, marker=marker, label="median")
    panel.plot(steps, values["mean"], color=theme.lines[1], ls="--", lw=1.8, marker=marker, label="mean")
    panel.plot(steps, values["loss_1"], color=theme.ink, linestyle=":", lw=1.2, marker=marker, label="highest")
    _log(panel)
    panel.set_xlabel("steps")
    panel.set_ylabel("loss of a sample")
    _legend(panel, theme, ncols=2)
    return figure


def sampling(history: Sequence[Row], theme: Theme) -> Figure:
    """What draws were like in each epoch; behind them whether most were by priority."""
    wanted = {
        "effective_fraction": "effective share",
        "max_weight": "largest weight",
        "gain": "gain",
    }
    figure, panels = _new(theme, rows=len(wanted), height=4.6)
    steps = [row["step"] for row in history]
    for place, (panel, (name, label)) in enumerate(zip(panels, wanted.items(), strict=True)):
        panel.plot(steps, [row.get(name, np.nan) for row in history], color=theme.lines[place], marker=".", lw=1.6)
        panel.set_ylabel(label, fontsize=9)
        label_once: str | None = "by priority"
        for begin, row in zip([0.0, *steps], history, strict=False):
            if row.get("by_priority", 0.0) > 0.5:
                panel.axvspan(begin, row["step"], color=theme.lines[2], alpha=0.15, lw=0, label=label_once)
                label_once = None
    panels[0].set_ylim(0.0, 1.05)
    panels[2].axhline(1.0, color=theme.ink, linewidth=0.8, linestyle=":")
    if any(row.get("by_priority", 0.0) > 0.5 for row in history):
        _legend(panels[0], theme, loc="lower right")
    panels[-1].set_xlabel("steps")
    return figure


# --- samples --------------------------------------------------------------------------------------


def losses_by_group(groups: Sequence[Group], theme: Theme) -> Figure:
    """The mean loss at the end, a bar each; the rare classes are marked."""
    shown = _shown(groups)
    figure, (panel,) = _new(theme, height=1.2 + 0.2 * len(shown), names=True)
    places = np.arange(len(shown))
    colors = [theme.lines[1] if group.rare else theme.lines[0] for group in shown]
    panel.barh(places, [group.loss for group in shown], color=colors, height=0.7)
    panel.set_yticks(places, [group.name + (" (rare)" if group.rare else "") for group in shown])
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("mean loss at the end")
    return figure


def draws_by_group(groups: Sequence[Group], theme: Theme) -> Figure:
    """How often samples were drawn, and what they counted for, over uniform draws."""
    shown = _shown(groups)
    figure, (panel,) = _new(theme, height=1.4 + 0.2 * len(shown), names=True)
    places = np.arange(len(shown))
    panel.axvline(1.0, color=theme.ink, linewidth=0.8, linestyle=":")
    panel.plot([group.attention for group in shown], places, "o", color=theme.lines[1], markersize=6, label="drawn")
    weighted = [group.weighted / group.share for group in shown]
    errors = [2.0 * group.error / group.share for group in shown]
    panel.errorbar(
        weighted, places, xerr=errors, fmt="s", color=theme.lines[0], markersize=4, lw=1.2, label="counted, by weight"
    )
    panel.set_yticks(places, [group.name for group in shown])
    panel.invert_yaxis()
    panel.set_xlabel("times as often as uniform draws")
    panel.figure.legend(
        *panel.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, labelcolor=theme.ink,
        fontsize=9,
    )  # fmt: skip
    return figure


def _shown(groups: Sequence[Group]) -> list[Group]:
    if len(groups) <= MOST_GROUPS:
        return list(groups)
    return sorted(groups, key=lambda group: -group.loss)[:MOST_GROUPS]


def data_map(mean: Array, deviation: Array, region: Array, theme: Theme) -> Figure:
    """Mean against variability of each sample's loss."""
    figure, (panel,) = _new(theme, height=4.0)
    known = np.flatnonzero(region >= 0)
    if known.size > MOST_POINTS:
        known = np.random.default_rng(0).choice(known, MOST_POINTS, replace=False)
    for place, (name, marker) in enumerate(zip(REGIONS, ("o", "^", "s"), strict=True)):
        chosen = known[region[known] == place]
        color = theme.lines[(2, 0, 1)[place]]
        label = f"{name} ({(region == place).sum():,})"
        panel.scatter(deviation[chosen], mean[chosen], s=9, marker=marker, color=color, alpha=0.5, lw=0, label=label)
    panel.set_xlabel("variability: standard deviation of the loss")
    panel.set_ylabel("mean loss in the course of training")
    legend = panel.legend(frameon=False, labelcolor=theme.ink, fontsize=9, markerscale=1.8)
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1.0)
    return figure


def ages(age: Array, theme: Theme) -> Figure:
    """How long ago, in steps, each sample was last trained on."""
    figure, (panel,) = _new(theme)
    panel.hist(age, bins=min(40, max(int(age.max()) + 1, 1)), color=theme.lines[0])
    panel.set_xlabel("steps since its loss was last seen")
    panel.set_ylabel("samples")
    return figure
