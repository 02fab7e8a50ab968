"""The page of a report: what stands on it, and how it becomes HTML.

    html = to_html(Page(title, subtitle, facts, sections))

All text is escaped by Jinja2, which the extra ``report`` brings: a class may be called ``<script>``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.samples import as_text

LONGEST = 200  # characters of a text that are shown
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """A plot for a light and a dark page, and what it shows in words.

    Attributes:
        name: of its file, without the ending.
        light, dark: PNG.
        alt: what one sees on it, for those who do not.
        caption: how to read it.
    """

    name: str
    light: bytes
    dark: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[bool] = ()
    folded: bool = False


@dataclass(frozen=True)
class Item:
    """A sample to look at: an image as PNG, or a text."""

    index: int
    label: str
    prediction: str
    loss: str
    image: bytes | None = None
    text: str | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page; ``said`` stands before the pictures, ``after`` behind the tables."""

    name: str
    title: str
    said: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    gallery: Sequence[Item] = ()
    tables: Sequence[Table] = ()
    after: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """All of it."""

    title: str
    subtitle: str
    facts: dict[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()


def to_html(page: Page) -> str:
    """One file that needs no other."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("pipeline.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    return template.render(
        title=page.title, subtitle=page.subtitle, facts=page.facts, sections=[_told(one) for one in page.sections]
    )


def _told(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "title": section.title,
        "said": section.said,
        "after": section.after,
        "figures": [
            {"light": _inside(one.light), "dark": _inside(one.dark), "alt": one.alt, "caption": one.caption}
            for one in section.pictures
        ],
        "gallery": [dict(vars(item), image=item.image and _inside(item.image)) for item in section.gallery],
        "tables": [
            {
                "caption": table.caption,
                "names": table.names,
                "folded": table.folded,
                "rows": [
                    {"cells": cells, "marked": bool(table.marked) and table.marked[place]}
                    for place, cells in enumerate(table.rows)
                ],
            }
            for table in section.tables
        ],
    }


def _inside(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def image(x: Array) -> bytes | None:
    """An input (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as PNG, its own range from dark to light; None for another."""
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[:, :, 0]
    if not (x.ndim == 2 or (x.ndim == 3 and x.shape[2] in (3, 4))) or min(x.shape[:2]) < 2:
        return None
    import matplotlib.image

    low, high = float(np.nanmin(x)), float(np.nanmax(x))
    low, high = min(low, 0.0), max(high, 1.0)
    scaled = np.nan_to_num((x - low) / (high - low)).clip(0.0, 1.0)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, scaled, format="png", cmap="gray", vmin=0.0, vmax=1.0, metadata={"Software": ""})
    return buffer.getvalue()


def text(x: Array) -> str:
    """An input that is no image, in a line: its text, or its numbers, those of a row of tokens without the padding."""
    flat = as_text(x).reshape(-1)
    if flat.dtype.kind == "U":
        words = " | ".join(flat)
        return words if len(words) <= LONGEST else words[: LONGEST - 3] + "..."
    if flat.dtype.kind in "iu" and flat.any():
        flat = np.trim_zeros(flat)
    shown = ", ".join(f"{value:.3g}" for value in flat[:12])
    return shown + (f", ... ({flat.size} in all)" if flat.size > 12 else "")
