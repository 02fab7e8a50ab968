"""Where the shards of a store stand, as far as they have told: with every answer comes a ``Status``.

    standing = Standing(shards=4, name="importance")
    if standing.take(2, status, call.sent):        # it is news
        standing.all()[2].seen

A status with another ``life`` than the one before is that of a shard that has died meanwhile. What it had learnt since
its last snapshot is lost: the updates that it was known to have, less those its next life began with.

Answers come out of order, so that one of a life that is over may come after one of the next. A life that answers a call
which was sent when another one had answered already is newer than that; of others it is not known, and then it is taken
for the older one, until it answers such a call.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass

from sampler.shard_server import Status

logger = logging.getLogger("sampler")


@dataclass
class Life:
    """A process of a shard: its newest status, and when it first answered, on the clock of ``time.monotonic``."""

    status: Status
    since: float


class Standing:
    """The newest status of each shard, and how often one has died. Not safe for threads by itself."""

    def __init__(self, shards: int, *, name: str) -> None:
        self._name = name
        self._lives: list[list[Life]] = [[] for _ in range(shards)]  # of each shard, the newest last

    def take(self, shard: int, status: Status, sent: float) -> bool:
        """Take in the status that answers a call sent at ``sent``, on the clock of ``time.monotonic``.

        False for one that is older than the newest, which is left. A death is logged.
        """
        lives = self._lives[shard]
        before = lives[-1] if lives else None
        trouble = before.status.trouble if before else ""
        life = self._life(lives, status, newer=before is None or sent > before.since)
        late = status.received < life.status.received
        if not late:
            life.status = status
        if late or life is not lives[-1]:
            return False
        if before is not None and before is not life:
            self._say_it_is_back(shard, before, life)
        if status.trouble and status.trouble != trouble:
            logger.warning("%s", status.trouble)
        return True

    def _life(self, lives: list[Life], status: Status, *, newer: bool) -> Life:
        """The life that a status is of, in its place: the last one where it is ``newer`` than the one that is."""
        known = [life for life in lives if life.status.life == status.life]
        life = known[0] if known else Life(status, time.monotonic())
        if newer and known:
            lives.remove(life)
        if newer:
            lives.append(life)
        elif not known:
            lives.insert(len(lives) - 1, life)
        return life

    def _say_it_is_back(self, shard: int, before: Life, life: Life) -> None:
        logger.warning(
            "shard %d of %r has died, and is back with what its last snapshot knew: %d updates since then are lost",
            shard,
            self._name,
            _lost(before, life),
        )

    @property
    def restarts(self) -> int:
        """How often a shard has died, as far as it was seen."""
        return sum(max(0, len(lives) - 1) for lives in self._lives)

    @property
    def lost_updates(self) -> int:
        """How many updates shards knew, and do not know any more."""
        return sum(_lost(*pair) for lives in self._lives for pair in itertools.pairwise(lives))

    @property
    def complete(self) -> bool:
        """Whether every shard has told."""
        return all(self._lives)

    def all(self) -> list[Status]:
        """The newest status of each shard that has told, in order."""
        return [lives[-1].status for lives in self._lives if lives]


def _lost(life: Life, after: Life) -> int:
    return max(0, life.status.received - after.status.loaded)
