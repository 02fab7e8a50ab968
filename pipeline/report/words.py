"""Words, numbers and pictures that several sections need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report import plots
from pipeline.report.folder import Row
from pipeline.report.page import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(name: str, draw: Callable[[plots.Theme], Figure], alt: str, caption: str) -> Picture:
    """A plot in both themes."""
    light, dark = (plots.png(draw(plots.THEMES[theme])) for theme in ("light", "dark"))
    return Picture(name, light, dark, alt, caption)


def number(value: Any) -> str:
    """Four figures, or a dash for what is not there."""
    if value is None or value == "" or (value := float(value)) != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1e4 and value % 1 == 0 else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share, or a dash for what is not there."""
    return "-" if value is None else f"{value:.1%}"


def loss_pictures(curves: Mapping[str, Sequence[Row]], compiling: str) -> list[Picture]:
    """The test loss of these runs against steps and against seconds, of which ``compiling`` is part, or is not."""
    ends = "; ".join(
        f"{name} from {number(rows[0]['test_loss'])} to {number(rows[-1]['test_loss'])}"
        for name, rows in curves.items()
        if rows
    )
    return [
        picture(
            f"test-loss-{across}",
            functools.partial(plots.losses_on_test, curves, across),
            f"Line plot of the test loss against {words}, on a logarithmic scale: {ends}.",
            f"Test loss against {words}; lower is better.",
        )
        for across, words in (("step", "steps"), ("seconds", f"seconds of training, {compiling}"))
    ]
