"""What a training looked at, which samples are hard, and whether it paid: one page for people.

    python -m pipeline.report runs/digits-importance-0
    python -m pipeline.report runs/mine --uniform runs/mine-uniform     # with the test loss of another run beside

    from pipeline.report import report

    path = report("runs/digits-importance-0")

It writes ``report.html``, which needs no network, ``plots/*.png`` and ``suspects.csv`` into the folder. ``train.py``
does so at its end, and the callback :class:`pipeline.report.fitting.TrainingReport` at that of a ``fit``. The extra
``report`` brings matplotlib and Jinja2.
"""

from __future__ import annotations

from pipeline.report.folder import NoReport as NoReport
from pipeline.report.writing import report as report
