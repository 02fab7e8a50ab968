"""The pages on several processes: docs/ray.md on a Ray of this machine, docs/scale.md as two workers.

A page's Python blocks are one program; tests/test_docs.py has the other pages, tests/test_docs_commands.py the other
commands. 40 s on two cores: ten until Ray has started and ended, ten until TensorFlow is loaded for the workers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.scorers import Scorers
from sampler import ShardedSampler
from sampler.ray_cluster import connect

from ..pages import PAGES, ROOT, Command, blocks, commands, on_ray, run
from ..pipeline.together import ended, started
from .conftest import patiently, until


@pytest.fixture
def on_a_ray(with_token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder in which what Ray starts finds modules, as it does in that of a program."""
    ray = pytest.importorskip("ray")
    ray.shutdown()  # of what a file that came before may have left
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    patiently(lambda: connect(None))
    yield
    ray.shutdown()
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("patient", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_page_on_ray(on_a_ray: None, patient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training is over before the scorers have loaded TensorFlow, unless it waits for them."""
    known: dict[str, int] = {}  # of each store, how many samples, as it is removed
    remove, leave = ShardedSampler.remove, Scorers.__exit__

    def look(sampler: ShardedSampler) -> None:
        sampler.flush()
        known[sampler.name] = int((sampler.ages() <= sampler.step).sum())
        assert (sampler.step == 0) == (sampler.name == "mine")  # which the scorer fills, and no draw
        remove(sampler)

    def wait(scorers: Scorers, *error: Any) -> None:
        if patient:
            until(lambda: scorers.summary()["scored"] > 0)
        leave(scorers, *error)

    monkeypatch.setattr(ShardedSampler, "remove", look)
    monkeypatch.setattr(Scorers, "__exit__", wait)
    names = run("docs/ray.md", tmp_path)
    assert known == dict.fromkeys(["importance", "mine", "scored"], len(names["x"]))
    assert (names["scorers"].summary()["scored"] > 0) >= patient


def test_the_page_on_several_workers(tmp_path: Path) -> None:
    """The block is the script of both; in its last line each says what it has seen and what it has learnt."""
    (block,) = blocks("docs/scale.md", "python")
    says = "import json; print(json.dumps([sampler.summary()['seen'], [w.tolist() for w in model.get_weights()]]))"
    script = tmp_path / "mine.py"
    script.write_text(f"{block.text}\n{says}\n")
    said = ended(started(2, [str(script)]))
    assert [status for status, _, _ in said] == [0, 0], said[0][2][-3000:]
    (seen, weights), (their_seen, theirs) = (json.loads(output.splitlines()[-1]) for _, output, _ in said)
    assert (seen, their_seen) == (1000, 1001)  # each all of its own samples
    assert weights == theirs
    assert all(np.isfinite(each).all() for each in map(np.asarray, weights))


ON_RAY = [page for page in PAGES if re.search("--(workers|scorers)", str(blocks(page, "bash")))]


@pytest.mark.soak
@pytest.mark.parametrize("page", ON_RAY)
def test_trainings_on_ray_run(page: str, with_token: Path, tmp_path: Path) -> None:
    """``train.py`` with workers or scorers, for an epoch."""
    told = [command for block in blocks(page, "bash") for command in commands(block.text, tmp_path)]
    for command in filter(on_ray, told):
        train(command, tmp_path)


def train(command: Command, folder: Path) -> None:
    words = [str(ROOT / "train.py"), *command.words[2:], "--epochs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(folder.glob("runs/*/summary.json")), done.stdout
