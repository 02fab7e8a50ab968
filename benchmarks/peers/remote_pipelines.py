"""Our side of the input pipelines of others: one worker each, which opens it anew for each data set and batch size.

    with RemotePipelines(setting_folder, cores=1) as remotes:
        contestant = remotes.open("torch DataLoader", data="images", batch=256, seed=0)
        contestant.turn(64)                   # (µs for B samples, 0.0)
        contestant.epoch(196)                 # the same from the beginning of the iterator on

Whatever goes wrong in a worker is raised as ``Lost``. One that answers with a reason can be asked again; one that has
ended stays lost for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import pipeline_names as names
from benchmarks.measuring import Lost
from benchmarks.peers.remote import Peer, Remote
from benchmarks.pipeline_turns import lead_in

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class PeerPipeline(Peer):
    """An input pipeline of others.

    It is measured on the data sets ``only``, or on all, and where there are ``cores`` at least. With ``on_disk`` it
    reads an ArrayRecord file, and is measured cold as well.
    """

    only: tuple[str, ...] = ()
    cores: int = 1
    on_disk: bool = False


PIPELINES: Mapping[str, PeerPipeline] = {
    names.TORCH: PeerPipeline("torchrl", "torch", "others"),
    names.TORCH_BATCHES: PeerPipeline("torchrl", "torch_batches", "others"),
    names.TORCH_WORKERS: PeerPipeline("torchrl", "torch_workers", "others", cores=2),
    names.GRAIN: PeerPipeline("grain", "grain", "others"),
    names.GRAIN_RECORDS: PeerPipeline("grain", "grain_records", "others", only=("images",), on_disk=True),
}


class RemotePipeline:
    """An opened pipeline in a worker; a contestant."""

    def __init__(self, remote: Remote, batch: int, told: dict[str, Any]) -> None:
        self._remote, self._batch = remote, batch
        self.ahead = int(told.pop("ahead"))
        self.told = told

    def turn(self, steps: int) -> tuple[float, float]:
        """Take ``steps`` batches; the mean µs for B samples, and nothing for what comes after."""
        return self._take(steps, lead_in(self.ahead, steps)), 0.0

    def epoch(self, steps: int) -> float:
        """The same from the beginning of the iterator on."""
        return self._take(steps, 0)

    def _take(self, steps: int, lead: int) -> float:
        told = self._remote.ask(self._remote.asking, do="take", steps=steps, lead=lead)
        return float(told["us"]) * self._batch / told["samples"]


class RemotePipelines:
    """The workers of one run."""

    def __init__(self, folder: Path, cores: int, pipelines: Mapping[str, PeerPipeline] = PIPELINES) -> None:
        self._folder, self._cores, self._pipelines = folder, cores, pipelines
        self._running: dict[str, Remote] = {}
        self._lost: dict[str, str] = {}

    def __enter__(self) -> RemotePipelines:
        """Workers are started when something is opened."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all workers."""
        for remote in self._running.values():
            remote.close()

    def open(self, name: str, data: str, batch: int, seed: int) -> RemotePipeline:
        """Open one, and check a batch of it. Raises ``Lost``."""
        if name in self._lost:
            raise Lost(self._lost[name])
        peer = self._pipelines[name]
        try:
            if name not in self._running:
                threads = dict.fromkeys(THREADS, str(self._cores))
                self._running[name] = Remote(peer.command(), environment=threads)
            remote = self._running[name]
            told = remote.ask(
                remote.building,
                do="open",
                pipeline=peer.system,
                folder=str(self._folder),
                data=data,
                batch=batch,
                seed=seed,
                cores=self._cores,
            )
        except Lost as lost:
            if name not in self._running or not self._running[name].alive:
                self.lose(name, str(lost))
            raise
        return RemotePipeline(remote, batch, told)

    def lose(self, name: str, reason: str) -> None:
        """Give one up."""
        self._lost[name] = reason
        remote = self._running.pop(name, None)
        if remote is not None:
            remote.close(at_once=True)
