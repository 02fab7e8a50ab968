"""How ``train.py`` saves a run and goes on with it: its folder, its snapshots, and the signals that end it.

    python train.py --output runs/mine --save-every 500steps        # killed, or interrupted with Ctrl-C
    python train.py --output runs/mine --resume                     # goes on as if nothing had happened

The folder of a run holds ``config.yaml`` from its beginning and ``summary.json`` from its end; between the two it is
not finished, and its snapshots are not overwritten by another run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import KEYS, Config, OptionError, to_yaml

if TYPE_CHECKING:
    import keras

    from pipeline.data import Data
    from pipeline.saving import Saving
    from pipeline.workers import Workers

SNAPSHOTS = "snapshots"  # in the output folder
NOT_ABOUT = ("output", "save_every", "compare", "seeds", "workers")  # options in which a run that goes on may differ


class Interrupted(Exception):
    """A signal ended the training after a step, whose snapshot was saved."""

    def __init__(self, number: int, step: int, folder: Path) -> None:
        super().__init__(
            f"interrupted after step {step:,}; a snapshot of it was saved, and --output {folder} --resume goes on from "
            "there"
        )
        self.number = number


def check_folder(folder: Path) -> None:
    """Make the folder and see that it can be written, before hours are spent; ``OptionError`` where it cannot."""
    try:
        str(folder).encode()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except UnicodeEncodeError as error:
        raise OptionError(f"--output {str(folder)!a} is no UTF-8; choose another folder") from error
    except OSError as error:
        raise OptionError(f"--output {folder} cannot be written: {error}; choose another folder") from error


def check_unfinished(config: Config, workers: Workers | None = None) -> None:
    """``OptionError`` where a run would take the place of one that is not finished, or that is running.

    One of several ``workers`` looks into its own folder alone for the latter, since the others may have begun.
    """
    from sampler.locks import LockError, check_free

    root = config.folder / SNAPSHOTS
    folders = [root, *root.glob("worker-*-of-*")]
    own = folders if workers is None else [root / f"worker-{workers.rank}-of-{workers.world}"]
    try:
        for folder in own:
            check_free(folder / "lock")
    except LockError as error:
        raise OptionError(error) from error
    begun = any(path for folder in folders for path in folder.glob("snapshot-[0-9]*.index"))
    if begun and not config.resume and not is_finished(config):
        raise OptionError(
            f"{config.folder} holds the snapshots of a run that was not finished; go on with --resume, choose another "
            f"--output, or remove {root}"
        )


def is_finished(config: Config) -> bool:
    """Whether the folder holds a run that came to its end."""
    return (config.folder / "summary.json").exists()


def saving_of(config: Config, data: Data, stop: Callable[[], bool]) -> Saving:
    """Where and when a run saves itself."""
    from pipeline.saving import Saving

    # Those that are not as always: so an option that a later version adds refuses no snapshot of this one.
    options = {key: value for key in KEYS if (value := getattr(config, key)) != getattr(Config(), key)}
    options = {key: value for key, value in options.items() if key not in NOT_ABOUT}
    if config.dataset.startswith("npz:"):
        options["dataset"] = "npz"  # wherever it lies
    if config.reference not in (None, "auto"):
        options["reference_values"] = f"{zlib.crc32(Path(str(config.reference)).read_bytes()):08x}"
    about = {**options, "num_samples": len(data), "values": data.fingerprint()}
    return Saving(config.folder / SNAPSHOTS, config.save_every, resume=config.resume, about=about, stop=stop)


def going_on(config: Config) -> str:
    """Where a run with ``--resume`` will go on, in words."""
    from pipeline.checkpoints import Snapshots
    from pipeline.going_on import layouts

    there = layouts(config.folder / SNAPSHOTS)
    if not there:
        return f"no snapshot in {config.folder}: it begins anew"
    if set(there) != {0}:
        return f"goes on from the newest step that all of its {max(there)} workers have saved"
    found = Snapshots(config.folder / SNAPSHOTS, {}).paths()
    before = f" and {len(found) - 1} before it" if len(found) > 1 else ""
    return f"goes on from the newest whole snapshot, of {found[0]}{before}"


def write_report(folder: Path) -> str | None:
    """Write the page for people from what is in the folder of a finished run; what to say where it cannot be."""
    from pipeline.report import NoReport, report

    try:
        report(folder)
    except ImportError as error:
        return f", without report.html ({error}; the extra report has it)"
    except (NoReport, OSError) as error:
        return f", without report.html ({error})"
    return None


def beginning(config: Config) -> keras.callbacks.Callback:
    """What a run does in its folder as it begins: it leaves how to go on, and nothing of the run before."""
    import keras

    from pipeline.results import write_whole

    def begin(logs: dict[str, Any] | None) -> None:
        for name in ("summary.json", "comparison.json", "report.html"):
            (config.folder / name).unlink(missing_ok=True)
        write_whole(config.folder / "config.yaml", to_yaml(config))

    return keras.callbacks.LambdaCallback(on_train_begin=begin)


@contextlib.contextmanager
def caught() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, to be heeded when the step is done, as they come; a second one ends the program at once, with
    the exit status of its own. One that is ignored, as a shell has it of what it starts in the background, stays so.

    Python lets the main thread alone ask for signals; in another one none come.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handle(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt(number)
        came.append(number)
        with contextlib.suppress(OSError):
            os.write(2, b"\ninterrupted: the step is finished and saved; a second time ends at once\n")

    heeded = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
