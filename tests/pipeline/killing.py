"""Kills trainings, and looks at what each kill has left.

    python -m tests.pipeline.killing --kills 2000        # progress, and a line of JSON at the end

Each training is a process of its own (``tests.pipeline.killed`` forks them) and is sent SIGKILL at a moment that is
drawn: any of its life, any of a save, or after so many changes of what is in the folder while it saves. Then the
snapshots in the folder are looked at, and the next training goes on from them, until one arrives at the end and a new
one begins in the same folder. What is required after each kill is said in ``Witness``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.checkpoints import Snapshots
from tests.pipeline.killed import KEEP, STEPS, Job, of_state

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds until a training that says nothing counts as hanging
TURN, FITS = 100, 0.05  # kills in a turn; a share of them is of the slower kind of training
MOMENTS = (  # of a save, in their order: the files that appear, and the oldest snapshot's that go
    "checkpoint",
    "snapshot-{step}_temp",
    "snapshot-{step}_temp/part-00000-of-00001.data-00000-of-00001",
    "snapshot-{step}_temp/part-00000-of-00001.index",
    "snapshot-{step}.data-00000-of-00001",
    "snapshot-{step}.index",
    "snapshot-{old}.index",
    "snapshot-{old}.data-00000-of-00001",
)
BESIDE = 0.0003  # seconds after such a moment, at most
LONGEST = 0.1  # seconds that a moment is waited for, which may not come in this save


class Trainings:
    """The process that forks trainings, and the one that it has forked last."""

    def __init__(self, errors: Any) -> None:
        self._errors = errors
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.killed"],
            cwd=ROOT,
            # With one thread: those of OpenBLAS would not survive the fork.
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
        )
        self._read = b""
        self._number = 0
        self._answer("ready")

    def start(self, job: Job) -> None:
        self._ask(json.dumps(asdict(job)))
        self._number = int(self._answer("forked"))

    def line(self, seconds: float) -> list[str] | None:
        """What it says next, in words; None where it is silent for so long."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                raise RuntimeError(f"the process that forks has ended: {self.said_wrong()}")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode().split()

    def kill(self) -> None:
        os.kill(self._number, signal.SIGKILL)

    def reap(self) -> None:
        """Wait for its end; its last lines and then ``ended`` can be read."""
        self._ask("")

    def said_wrong(self) -> str:
        self._errors.seek(0)
        return str(self._errors.read().decode()[-2000:])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def _answer(self, word: str) -> str:
        words = self.line(PATIENCE)
        assert words is not None, f"it did not say {word!r}"
        assert words[0] == word, words
        return words[-1]


@contextmanager
def trainings() -> Iterator[Trainings]:
    with tempfile.TemporaryFile() as errors:
        made = Trainings(errors)
        try:
            yield made
        finally:
            made.close()


# --- one training, and its end ---


@dataclass(frozen=True)
class Aim:
    """When to kill: ``seconds`` after the start; or, once it said ``word`` so many ``times``, so many seconds ``after``
    that, or after the ``moment`` when a file then appears or goes.
    """

    seconds: float = PATIENCE
    word: str = ""
    times: int = 0
    moment: str = ""
    after: float = 0.0


NEVER = Aim()


@dataclass
class Attempt:
    """What a training said until its end."""

    begun_at: int | None = None  # where it was restored to
    draws: list[tuple[int, str]] = field(default_factory=list)
    saving: int | None = None  # the step whose save has begun, and has not returned
    saved: int = 0  # the last step whose save has returned
    result: str | None = None
    status: int = 0
    seconds: float = 0.0
    save_seconds: list[float] = field(default_factory=list)
    wrong: str = ""  # an error, or silence

    @property
    def killed(self) -> bool:
        return self.result is None and not self.wrong

    def hear(self, word: str, *rest: str) -> bool:
        """Whether more may follow."""
        if word == "from":
            self.begun_at = int(rest[0])
        elif word == "draw":
            self.draws.append((int(rest[0]), rest[1]))
        elif word == "save":
            self.saving = int(rest[0])
        elif word == "saved":
            self.saving, self.saved = None, int(rest[0])
        elif word == "done":
            self.result = rest[0]
        elif word == "ended":
            self.status = int(rest[0])
        return word not in ("done", "failed", "ended")


def attempt(trained: Trainings, job: Job, aim: Aim = NEVER) -> Attempt:
    """Run a training until it is killed, or ends before."""
    found, said = Attempt(), Counter()
    begin = save_began = time.monotonic()
    trained.start(job)
    goes_on = True
    while goes_on:
        words = trained.line(begin + aim.seconds - time.monotonic())
        if words is None:
            found.wrong = "silence" if aim.seconds == PATIENCE else ""
            break
        goes_on = found.hear(*words)
        said[words[0]] += 1
        if words[0] == aim.word and said[aim.word] == aim.times:
            wait_for(aim, Path(job.folder), found.saving or 0)
            break
        if words[0] == "save":
            save_began = time.monotonic()
        elif words[0] == "saved":
            found.save_seconds.append(time.monotonic() - save_began)
    if goes_on:
        trained.kill()
    trained.reap()
    while not words or words[0] != "ended":
        words = trained.line(PATIENCE)
        assert words is not None, "a training that was killed has not ended"
        found.hear(*words)
    found.seconds = time.monotonic() - begin
    if found.result is None and found.status != -signal.SIGKILL:
        found.wrong = f"status {found.status}: {trained.said_wrong()}"
    return found


def wait_for(aim: Aim, folder: Path, step: int) -> None:
    """Until the moment that is aimed at; without sleep, which would be too coarse."""
    if aim.moment:
        path = str(folder / aim.moment.format(step=step, old=step - KEEP))
        there, end = os.path.exists(path), time.monotonic() + LONGEST
        while os.path.exists(path) == there and time.monotonic() < end:
            pass
    end = time.monotonic() + aim.after
    while time.monotonic() < end:
        pass


# --- what is required ---


class Witness:
    """Looks at the folder of a training's snapshots after each kill. Required is:

    - each snapshot that is seen there can be read, and is that of the uninterrupted training after as many steps, bit
      for bit (times left out): so all its parts are of one step;
    - the newest is the last whose save has returned, or a newer one;
    - a training that goes on begins at the newest; each batch that is drawn has the samples, probabilities and weights
      of the uninterrupted training, and so has the result;
    - what was left by kills before is gone after a save: beside the last few snapshots there is at most what one save
      leaves that was killed.
    """

    def __init__(self, trained: Trainings, kind: str, folder: Path, fault: str = "") -> None:
        self.job = Job(kind, str(folder / "run"), fault=fault)
        whole = Job(kind, str(folder / "whole"), keep=STEPS[kind] + 1, fault="" if fault == "in place" else fault)
        self.reference = attempt(trained, whole)
        if self.reference.result is None:
            raise AssertionError(f"the uninterrupted training failed: {self.reference.wrong}")
        self.draws = dict(self.reference.draws)
        self.states = self._read(Path(whole.folder), [])
        shutil.rmtree(whole.folder)
        if set(self.states) != set(range(1, STEPS[kind] + 1)) or not set(range(STEPS[kind])) <= set(self.draws):
            raise AssertionError(f"the uninterrupted training is none: {sorted(self.states)}, {sorted(self.draws)}")

    def look(self, found: Attempt, resumed_from: int) -> tuple[int, list[str]]:
        """The newest step in the folder, and what is not as it must be."""
        wrong = [found.wrong] if found.wrong else []
        folder = Path(self.job.folder)
        states = self._read(folder, wrong)
        newest = max(states, default=0)
        if newest < max(found.saved, resumed_from):
            wrong.append(f"lost: {max(found.saved, resumed_from)} was saved, the newest is {newest}")
        wrong += [f"mixed: the snapshot of step {step}" for step in states if states[step] != self.states.get(step)]
        if found.begun_at not in (None, resumed_from):
            wrong.append(f"it went on from {found.begun_at}, not from {resumed_from}")
        wrong += [f"other: the draw {step}" for step, drawn in found.draws if drawn != self.draws.get(step, drawn)]
        if found.result not in (None, self.reference.result):
            wrong.append("other: the result")
        if found.result is not None and newest != STEPS[self.job.kind]:
            wrong.append(f"lost: the end, the newest is {newest}")
        return newest, wrong + (piled_up(folder, self.job.keep) if found.saved else [])

    def _read(self, folder: Path, wrong: list[str]) -> dict[int, str]:
        """A digest of each snapshot, by its step."""
        snapshots, found = Snapshots(folder, {}), {}
        for path in snapshots.paths():
            try:
                state = snapshots.read(path)
            except ValueError as error:
                wrong.append(f"unloadable: {path.name}: {error}")
                continue
            if path.name != f"snapshot-{state['step']}":
                wrong.append(f"mixed: {path.name} is of step {state['step']}")
            found[state["step"]] = of_state(self.job.kind, state)
        return found


def piled_up(folder: Path, keep: int) -> list[str]:
    """Complaints about more than one killed save can leave."""
    whole = {path.name for path in Snapshots(folder, {}).paths()}
    names = set(os.listdir(folder)) - {"lock", "checkpoint"} if folder.exists() else set()
    left = {name for name in names if re.sub(r"\.(index|data-\d+-of-\d+)$", "", name) not in whole}
    steps = {found[1] for name in left if (found := re.match(r"snapshot-(\d+)", name))}
    others = [name for name in left if not name.startswith("snapshot-")]
    wrong = [f"piled up: {sorted(left)}"] if len(steps) > 1 or len(others) > 1 else []
    return wrong + ([f"piled up: {len(whole)} snapshots"] if len(whole) > keep + 1 else [])


def where(folder: Path, step: int) -> str:
    """How far a save came that was killed."""
    paths = [folder / moment.format(step=step, old=step - KEEP) for moment in MOMENTS]
    _, temporary, _, written, data, index, old_index, old_data = (path.exists() for path in paths)
    if index:
        return "temporary files there" if temporary else "old ones there" if old_index or old_data else "all done"
    return "data in place" if data else "written" if written else "being written" if temporary else "before writing"


# --- many kills ---


@dataclass
class Campaign:
    """What many kills came to."""

    kills: int = 0
    in_saves: int = 0
    resumes: int = 0
    finished: int = 0
    seconds: float = 0.0
    stages: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: Campaign) -> Campaign:
        mine, theirs = vars(self), vars(other)
        return Campaign(**{name: mine[name] + theirs[name] for name in mine})


def drawn_aim(rng: random.Random, life: float, save: float, resume: bool) -> Aim:
    """At any moment of a life, or of a save; when a file appears or goes; or while old snapshots are removed."""
    kind = rng.choices(("life", "save", "moment", "clear"), (4, 2, 4, 0 if resume else 5))[0]
    if kind == "life":
        return Aim(seconds=rng.uniform(0.0, life))
    if kind == "clear":
        return Aim(word="clear", times=1, after=rng.uniform(0.0, BESIDE))
    if kind == "save":
        return Aim(word="save", times=rng.randint(1, 4), after=rng.uniform(0.0, 1.2 * save))
    moment, after = rng.choice(MOMENTS), rng.uniform(0.0, BESIDE)
    return Aim(word="save", times=rng.randint(1, 4), moment=moment, after=after)


def campaign(
    trained: Trainings, kind: str, folder: Path, kills: int, *, seed: int, fault: str = "", until: str | None = None
) -> Campaign:
    """Kill trainings of a kind until ``kills`` have been killed, or ``until`` something of that name was found."""
    rng, result, begin = random.Random(seed), Campaign(), time.monotonic()
    witness = Witness(trained, kind, folder, fault)
    life, save = witness.reference.seconds, statistics.median(witness.reference.save_seconds)
    newest, job = 0, witness.job
    while result.kills < kills and not (until and any(until in text for text in result.failures)):
        aim = drawn_aim(rng, life, save, job.resume)
        found = attempt(trained, job, aim)
        if found.killed and found.saving is not None:
            result.stages[where(Path(job.folder), found.saving)] += 1
        newest, wrong = witness.look(found, newest if job.resume else 0)
        result.failures += [f"{kind} {fault}, kill {result.kills}, {aim}: {text}" for text in wrong]
        result.kills += found.killed
        result.in_saves += found.killed and found.saving is not None
        result.resumes += bool(found.begun_at)
        result.finished += found.result is not None
        ended = found.result is not None or bool(found.wrong)
        job = replace(job, resume=not ended)  # a new one begins in the same folder
        if found.wrong:
            shutil.rmtree(job.folder, ignore_errors=True)
    result.seconds = time.monotonic() - begin
    return result


def campaigns(kills: int, *, seed: int) -> Campaign:
    """So many kills in folders of their own, a few of them of the slower kind; says how far it is."""
    total = Campaign()
    with tempfile.TemporaryDirectory() as folder, trainings() as trained:
        for turn, first in enumerate(range(0, kills, TURN)):
            count = min(TURN, kills - first)
            fits = round(FITS * count)
            for kind, share in (("fit", fits), ("loop", count - fits)):
                result = campaign(trained, kind, Path(folder, f"{kind}-{turn}"), share, seed=seed + turn)
                for failure in result.failures:
                    print(failure, file=sys.stderr)
                total += result
                shutil.rmtree(Path(folder, f"{kind}-{turn}"), ignore_errors=True)
            print(f"{total.kills:,} kills, {len(total.failures)} failures", file=sys.stderr, flush=True)
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill trainings and look at what is left.")
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    total = campaigns(options.kills, seed=options.seed)
    print(json.dumps(vars(total)))
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
