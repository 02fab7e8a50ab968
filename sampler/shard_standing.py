"""Where the shards of a store stand, as far as they have told: with every answer comes a ``Status``.

    standing = Standing(shards=4, name="importance")
    if standing.take(2, status):                        # it is news
        standing.sum("seen")

A status with another ``life`` than the one before is that of a shard that has died meanwhile. What it had learnt since
its last snapshot is lost: the updates that it was known to have, less those it began its new life with.
"""

from __future__ import annotations

import logging

from sampler.shard_server import Status

logger = logging.getLogger("sampler")


class Standing:
    """The newest status of each shard, and how often one has died. Not safe for threads by itself."""

    def __init__(self, shards: int, *, name: str) -> None:
        self.restarts = 0  # of shards, as far as it was seen
        self.lost_updates = 0  # that a shard knew, and does not know any more
        self._name = name
        self._status: list[Status | None] = [None] * shards
        self._known: dict[int, int] = {}  # the most updates that a life was known to have, those that are over too
        self._after: dict[int, int] = {}  # and with how many the life after it began

    def take(self, shard: int, status: Status) -> bool:
        """Take in a status; False for one that is older than the last, which is left. A death is logged."""
        before, known = self._status[shard], self._known.get(status.life, -1)
        self._known[status.life] = max(known, status.received)
        if before is not None and before.life == status.life and status.received < known:
            return False
        if before is not None and before.life != status.life:
            if known >= 0:  # of a life that is over; what it had learnt beyond what was known is lost, too
                self.lost_updates += max(0, status.received - max(known, self._after[status.life]))
                return False
            self._is_back(shard, before, status)
        self._status[shard] = status
        if status.trouble and (before is None or before.trouble != status.trouble):
            logger.warning("%s", status.trouble)
        return True

    def _is_back(self, shard: int, before: Status, status: Status) -> None:
        lost = max(0, self._known[before.life] - status.loaded)
        self.restarts += 1
        self.lost_updates += lost
        self._after[before.life] = status.loaded
        logger.warning(
            "shard %d of %r has died, and is back with what its last snapshot knew: %d updates since then are lost",
            shard,
            self._name,
            lost,
        )

    @property
    def complete(self) -> bool:
        """Whether every shard has told."""
        return all(status is not None for status in self._status)

    def all(self) -> list[Status]:
        """The newest status of each shard that has told, in order."""
        return [status for status in self._status if status is not None]
