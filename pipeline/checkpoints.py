"""Snapshots of a training: all of it in one, so that a run that was killed goes on as if nothing had happened.

    snapshots = Snapshots("runs/mine/snapshots", {"variables": Variables(model), "sampler": sampler})
    step = snapshots.restore()                  # of the newest whole snapshot; None where there is none
    snapshots.save(step=1200)                   # now and then

They are TensorFlow's own checkpoints: ``tf.train.CheckpointManager`` writes them and makes each one appear as a whole.
Which go as others come is decided here: it would take the name of a folder for a pattern, and ``runs/lr[01]`` for
another's. Inside is a single string, what ``sampler.state_bytes`` makes of the parts' states, so a snapshot is
of one step or it is none: its checksum covers every part of it. Nothing in it can be run.

A *part* is anything with ``state_dict`` and ``load_state_dict``. They are loaded in their order; a part that refuses
its state raises ``ValueError``, and then the run should not go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator  # which Keras names nowhere else

from pipeline.results import write_whole
from sampler import checks
from sampler.locks import Lock, LockError
from sampler.state_bytes import NewerFormatError, State, from_bytes, sought, to_bytes

FORMAT = 1
NAME = "snapshot"
LOCK = "lock"
LIST = "checkpoint"  # TensorFlow's, of the snapshots
OURS = re.compile(  # all that TensorFlow writes of snapshots and of their list, or leaves where a save is killed
    rf"{NAME}-[0-9]{{1,18}}(_temp|\.(index|data-[0-9]{{5}}-of-[0-9]{{5}})(\.tempstate[0-9]+)?)"
    rf"|{LIST}(\.tmp[0-9a-f]+)?|\.{LIST}-[0-9a-f]+"
)
GONE = 20  # snapshots that the list may name beyond those that are there
ROOM = 1.1  # so many times its bytes a snapshot takes on the disk, and a little

logger = logging.getLogger("pipeline")


class SnapshotError(ValueError):
    """No snapshot can be gone on from, or this one cannot: what was found, and how to mend it."""


class Part(Protocol):
    """What a snapshot is made of."""

    def state_dict(self) -> State:
        """All of it, as a dict of numbers, strings, arrays, and dicts and lists of these."""

    def load_state_dict(self, state: State) -> None:
        """Take back what ``state_dict`` gave."""


class Variables:
    """The variables of a model, as a part: weights, seeds of dropout, those of the optimizer.

    Args:
        model: built.
        optimizer: that trains it; built here where it is not yet. None: the one that the model was compiled with.

    Variables are told by their place, since names may be another in a process that has built other models before.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> None:
        self._model = model
        self._optimizer: Any = getattr(model, "optimizer", None) if optimizer is None else optimizer
        if self._optimizer is None:
            raise ValueError(f"the model {model.name!r} is not compiled; give the optimizer that trains it")
        if not model.built:
            raise ValueError(f"the model {model.name!r} has no weights yet; build it, or give it an Input")
        if not self._optimizer.built:
            with model.distribute_strategy.scope():
                self._optimizer.build(model.trainable_variables)

    def _all(self) -> dict[str, list[Any]]:
        return {"model": self._model.variables, "optimizer": self._optimizer.variables}

    def state_dict(self) -> State:
        """Their values, as two lists of arrays: ``model``, ``optimizer``."""
        return {kind: self.values(those) for kind, those in self._all().items()}

    def load_state_dict(self, state: State) -> None:
        """Set them; ``ValueError``, and no change, where their number or a shape is another."""
        kinds = self._all()
        checked = {kind: self._checked(kind, those, state[kind]) for kind, those in kinds.items()}
        for kind, those in kinds.items():
            _set(those, checked[kind])

    @staticmethod
    def values(variables: list[Any]) -> list[np.ndarray]:
        """A copy of each."""
        return [_plain(_here(variable).numpy()) for variable in variables]

    @classmethod
    def assign(cls, kind: str, variables: list[Any], values: list[np.ndarray]) -> None:
        """Set them all; ``ValueError`` and no change where these are not theirs."""
        _set(variables, cls._checked(kind, variables, values))

    @staticmethod
    def _checked(kind: str, variables: list[Any], values: list[np.ndarray]) -> list[np.ndarray]:
        if len(values) != len(variables):
            raise ValueError(f"{len(values)} variables of the {kind} were saved, here are {len(variables)}")
        return [
            checks.array(variable.path, value, _plain(_here(variable).numpy()))
            for variable, value in zip(variables, values, strict=True)
        ]


class Seeds:
    """The seeds that belong to no model, as a part: of ``keras.random`` where no ``SeedGenerator`` is given, and of
    ``tf.random.get_global_generator()``. What ``tf.random.uniform`` and its like count, inside TensorFlow, nobody can
    read: a model that draws from them does not go on exactly.
    """

    def state_dict(self) -> State:
        """Two arrays: ``keras``, ``tensorflow``."""
        return {name: seeds.numpy() for name, seeds in self._all().items()}

    def load_state_dict(self, state: State) -> None:
        """Set them; ``ValueError``, and no change, where they are of another kind."""
        seeds = self._all()
        checked = {name: checks.array(name, state[name], variable.numpy()) for name, variable in seeds.items()}
        for name, variable in seeds.items():
            variable.assign(checked[name])

    @staticmethod
    def _all() -> dict[str, Any]:
        return {"keras": global_seed_generator().state, "tensorflow": tf.random.get_global_generator().state}


def _set(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        here = _here(variable)
        here.assign(value if here is variable else tf.cast(value, here.dtype))


def _here(variable: Any) -> Any:
    """The variable as this process has it: of several processes each has its own part of a metric, and to ask for the
    whole would be a message.
    """
    value = getattr(variable, "value", variable)
    parts: Any = getattr(value, "values", ())
    return parts[0] if len(parts) == 1 else variable


def _plain(value: Any) -> np.ndarray:
    """A copy; bfloat16, which NumPy does not know, as float32, which holds it exactly."""
    return np.array(value, np.float32 if value.dtype.kind == "V" else value.dtype)


class Snapshots:
    """The snapshots of one run in a folder of their own.

    Args:
        folder: made if it is not there.
        parts: by name; a model goes in as ``Variables(model)``, or ``Variables(model, optimizer)`` in a loop of one's
            own. What a snapshot has beside them, and they beside it, is refused on loading.
        about: facts that must be the same in the run that goes on, as numbers and strings: of the data, say.
        keep: ≥ 1, how many of the last snapshots stay.

    One process at a time may hold the folder: see ``held``. Nothing in it is removed but snapshots, by their names.
    """

    def __init__(
        self, folder: str | os.PathLike[str], parts: Mapping[str, Part], *, about: State | None = None, keep: int = 3
    ) -> None:
        self.folder = Path(folder)
        self.parts = dict(parts)
        for name, part in self.parts.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                hint = "; give Variables(model)" if isinstance(part, keras.Model) else ""
                raise TypeError(f"the part {name!r} has no state_dict and load_state_dict, it is a {type(part)}{hint}")
        self.about = dict(about or {})
        self._keep = checks.whole("keep", keep, least=1)
        self._run = _Bytes()
        self._manager: tf.train.CheckpointManager | None = None
        self._kept: list[Path] = []  # in the order in which they were saved
        self._lock: Lock | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder: another process that tries to gets a ``SnapshotError`` with the number of this one.

        Where somebody removes the folder meanwhile, the next ``save`` makes it and takes hold of it anew, or raises
        that error where another was there first.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SnapshotError(f"{self.folder} cannot be a folder of snapshots: {error}; name another one") from error
        self._lock = Lock(self.folder / LOCK)
        try:
            self._hold()
            yield
        finally:
            self._lock.release()
            self._lock = None

    def _hold(self) -> None:
        if self._lock is not None:
            try:
                self._lock.take()
            except LockError as error:
                raise SnapshotError(error) from error

    # --- writing ---

    def save(self, step: int) -> Path:
        """Write a snapshot of now, which is after ``step`` steps; gives the path of its files without their endings.

        Whoever looks sees the snapshot before or this one, never a part of it. ``OSError`` where it could not be
        written, with the bytes it takes; the snapshots before are as they were. ``SnapshotError`` where the folder was
        lost to another process.
        """
        state = {
            "format": FORMAT,
            "step": checks.whole("step", step, least=0),
            "about": self.about,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        self._run.data = to_bytes(state)
        needed = int(ROOM * len(self._run.data)) + (1 << 16)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hold()
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise OSError(f"{free:,} bytes are free")
            path = Path(self._open().save(checkpoint_number=step))
            self._kept = [*(each for each in self._kept if each != path), path]
            while len(self._kept) > self._keep:
                _remove_snapshot(self._kept.pop(0))
            if self._manager is not None and len(self._manager.checkpoints) > self._keep + GONE:
                self._manager = None  # the next one does not know of those that are gone
            return path
        except (OSError, tf.errors.OpError) as error:
            self._sweep(step)
            message = getattr(error, "message", None) or error
            raise OSError(
                f"no snapshot was written into {self.folder} at step {step}: {message}. It takes {needed:,} bytes; "
                "make room, or name another folder. The snapshots before it are as they were"
            ) from error
        finally:
            self._run.data = b""

    def _open(self) -> tf.train.CheckpointManager:
        """The manager, told of the snapshots that are there: its own list may be behind, or damaged."""
        if self._manager is None:
            _remove(self._left())
            self._kept = self.paths()[::-1]
            if self._kept:
                write_whole(self.folder / LIST, _listed([path.name for path in self._kept]))
            self._manager = tf.train.CheckpointManager(
                tf.train.Checkpoint(run=self._run), str(self.folder), max_to_keep=None, checkpoint_name=NAME
            )
        return self._manager

    def clear(self) -> None:
        """Remove all snapshots: of a run that another one takes the place of."""
        self._manager = None
        for path in self.paths():
            _remove_snapshot(path)
        _remove(self._left())

    def _left(self) -> list[Path]:
        """What belongs to no snapshot: the list of them, and what saves and removals that were killed have left."""
        names = {path.name for path in self.paths()}
        ours = [path for path in self.folder.glob("*") if OURS.fullmatch(path.name)]
        return [path for path in ours if path.with_suffix("").name not in names]

    def _sweep(self, step: int) -> None:
        """Remove what a save that failed has left."""
        self._manager = None
        with contextlib.suppress(OSError):
            _remove_snapshot(self.folder / f"{NAME}-{step}")
            _remove([self.folder / f"{NAME}-{step}_temp"])

    # --- reading ---

    def paths(self) -> list[Path]:
        """Of all snapshots in the folder, whole or not, the newest first."""
        found = {path.with_suffix("") for path in self.folder.glob(f"{NAME}-*.index") if path.is_file()}
        numbered = [(int(path.name.removeprefix(f"{NAME}-")), path) for path in found if _is_numbered(path)]
        return [path for _, path in sorted(numbered, reverse=True)]

    def restore(self) -> int | None:
        """Load the newest whole snapshot into the parts, and give the steps it is after; None where there is none.

        One that is cut short or altered is passed over with a warning. ``SnapshotError`` where all are, for one of a
        newer format, and for one of other data, another model or other options; ``about`` names what differs.
        """
        refused: list[str] = []
        for path in self.paths():
            try:
                state = self.read(path)
            except NewerFormatError as error:  # an older one beside it would be no way to go on
                raise SnapshotError(f"the snapshot {path} cannot be read: {error}") from error
            except ValueError as error:
                refused.append(f"{path.name}: {error}")
                logger.warning("the snapshot %s is passed over: %s", path, error)
                continue
            self.load(state, path)
            return int(state["step"])
        if refused:
            raise SnapshotError(
                f"none of the snapshots in {self.folder} is whole ({'; '.join(refused)}); start again in another folder"
            )
        return None

    def read(self, path: Path) -> State:
        """The state in a snapshot, checked as a whole; ``ValueError`` where it is damaged or no file of its own."""
        for file in path.parent.glob(f"{path.name}.*"):
            if file.is_symlink():
                raise ValueError(f"{file.name} is a link, and is not followed")
        data_files = list(path.parent.glob(f"{path.name}.data-*"))
        if len(data_files) != 1 or not data_files[0].is_file():
            raise ValueError(f"it has {len(data_files)} files of data, one is needed")
        # Past TensorFlow's reader, which believes the lengths and types in an index, and ends the process over some.
        state = from_bytes(sought(data_files[0].read_bytes()))
        if not isinstance(state.get("format"), int) or state["format"] > FORMAT:
            raise NewerFormatError(
                f"it has format {state.get('format')}, this version reads up to {FORMAT}; install a "
                "newer version of tf-importance-sampling"
            )
        if not isinstance(state.get("parts"), dict) or not isinstance(state.get("about"), dict):
            raise ValueError("it holds no state of a run")
        checks.whole("step", state.get("step"), least=0)
        return state

    def load(self, state: State, path: Path) -> None:
        """Take the state that ``read`` gave of ``path`` into the parts; ``SnapshotError`` where it does not fit."""
        for name in sorted(state["about"].keys() | self.about.keys()):
            theirs, ours = (
                repr(about[name]) if name in about else "at its default" for about in (state["about"], self.about)
            )
            if theirs != ours:
                raise SnapshotError(
                    f"the snapshot {path} is of a run with {name} {theirs}, in this one it is {ours}; go on with the "
                    "same, or start again in another folder"
                )
        if state["parts"].keys() != self.parts.keys():
            raise SnapshotError(
                f"the snapshot {path} has the parts {', '.join(sorted(state['parts']))}, this run "
                f"{', '.join(sorted(self.parts))}; go on with the same options, or start again in another folder"
            )
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state["parts"][name])
            except (LookupError, TypeError, ValueError) as error:
                raise SnapshotError(f"the snapshot {path} does not fit: {name}: {error}") from error


class _Bytes(tf.train.experimental.PythonState):
    """A string as TensorFlow's checkpoints hold it."""

    data = b""

    def serialize(self) -> bytes:
        return self.data

    def deserialize(self, string_value: bytes) -> None:
        self.data = string_value


def _remove(paths: Iterable[Path]) -> None:
    """Remove files, links and whole folders."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _remove_snapshot(path: Path) -> None:
    """Remove its files, the index first: a kill in between leaves no snapshot without data."""
    pattern = re.compile(re.escape(path.name) + r"\.(index|data-[0-9]{5}-of-[0-9]{5})")
    files = sorted((file for file in path.parent.glob("*") if pattern.fullmatch(file.name)), reverse=True)
    _remove(files)


def _listed(names: list[str]) -> str:
    """What TensorFlow writes of snapshots, the oldest first. All of them may go when their time has come."""
    paths = [f'all_model_checkpoint_paths: "{name}"' for name in names]
    times = [f"all_model_checkpoint_timestamps: {place}.0" for place in range(1, len(names) + 1)]
    return "\n".join([f'model_checkpoint_path: "{names[-1]}"', *paths, *times, "last_preserved_timestamp: 0.0", ""])


def _is_numbered(path: Path) -> bool:
    return re.fullmatch(rf"{NAME}-[0-9]{{1,18}}", path.name) is not None
