"""Files that are read again when they have changed.

Owns: `FileWatch`, which compares time, size and inode of some files every so often and calls back
when one of them differs. Polling sees what notification misses: a file system over the network, a
directory mounted in place of another, a link that leads elsewhere.

Must not know: what is in the files, what a change means.

Invariants: what was seen is noted before the files are read, so a change while they are read is
seen the next time. A file that is gone is a change like any other, told once.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from mqttd.api import BrokerServices, Timer

Stamp = tuple[int, int, int] | None


class FileWatch:
    """Calls `changed` when one of `paths` is another file than before; never with interval 0."""

    def __init__(
        self,
        broker: BrokerServices,
        paths: Sequence[Path],
        interval_s: float,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._paths = tuple(paths)
        self._interval_s = interval_s
        self._changed = changed
        self._seen: list[Stamp] = []
        self._timer: Timer | None = None
        self._stopped = False

    async def start(self) -> None:
        """Note how the files are now: to be called before they are read."""
        if self._interval_s > 0 and self._paths:
            self._seen = await self._broker.run_blocking(_stamps, self._paths)
            self._again()

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        if not self._stopped:
            self._timer = self._broker.call_later(self._interval_s, self._look)

    async def _look(self) -> None:
        try:
            now = await self._broker.run_blocking(_stamps, self._paths)
            if now != self._seen and not self._stopped:
                self._seen = now
                await self._changed()
        finally:
            self._again()


def _stamps(paths: Sequence[Path]) -> list[Stamp]:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
