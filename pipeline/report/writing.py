"""Reads a folder, and writes its report there."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.comparison import of_comparison
from pipeline.report.folder import Compared, NoReport, Run
from pipeline.report.page import to_html
from pipeline.report.samples import SUSPECTS, suspect_rows
from pipeline.report.training import of_run
from pipeline.results import to_csv, write_whole
from sampler import files

REPORT, PLOTS = "report.html", "plots"


def report(folder: str | Path, *, uniform: str | Path | None = None) -> Path:
    """Write the report of a training or a comparison into its folder, and give the path of the page.

    Args:
        folder: the output folder of ``train.py``.
        uniform: the folder of another training, whose test loss is drawn beside. None: where ``folder`` is named after
            its sampling, as ``train.py`` names it, that of uniform sampling next to it, if it is of the same task.

    Raises ``NoReport`` for a folder without a result, ``ImportError`` without the extra ``report``, and ``OSError``.
    """
    folder = Path(folder)
    compared = Compared.read(folder)
    if compared is not None:
        page = of_comparison(compared)
    else:
        run = Run.read(folder)
        beside = _beside(run) if uniform is None else Run.read(Path(uniform))
        page = of_run(run, beside)
        if run.samples is not None and run.samples.num_classes:
            write_whole(folder / SUSPECTS, to_csv(suspect_rows(run.samples)))
    (folder / PLOTS).mkdir(exist_ok=True)
    for section in page.sections:
        for picture in section.pictures:
            files.write_whole(folder / PLOTS / f"{picture.name}.png", picture.light)
            files.write_whole(folder / PLOTS / f"{picture.name}-dark.png", picture.dark)
    files.write_whole(folder / REPORT, to_html(page).encode("utf-8", "replace"))
    return folder / REPORT


def _beside(run: Run) -> Run | None:
    """The uniform run next to a run, where both are named as ``train.py`` does."""
    sampling = str(run.summary.get("sampling"))
    folder = run.folder.resolve()
    if sampling == "uniform" or f"-{sampling}-" not in folder.name:
        return None
    try:
        other = Run.read(folder.parent / folder.name.replace(f"-{sampling}-", "-uniform-"))
    except NoReport:
        return None
    same = ("dataset", "model", "batch_size", "learning_rate")
    return other if all(other.summary.get(name) == run.summary.get(name) for name in same) else None
