"""Files that are read again when they have changed.

Owns: `FileWatch`, which compares time, size and inode of some files every so often and calls back
when one of them differs. Polling sees what notification misses: a file system over the network, a
directory mounted in place of another, a link that leads elsewhere. And `Followed`, what some files
amount to: read at the start, at a reload, and after a change.

Must not know: what is in the files, what a change means.

Invariants: what was seen is noted before the files are read, so a change while they are read is
seen the next time. A file that is gone is a change like any other, told once. All or nothing: files
that are no good stop a start or a reload, and after a change leave what was read before in force.
What is being read when other files are followed instead is never taken.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, Generic, TypeVar

from pydantic import AfterValidator

from mqttd.api import BrokerServices, Duration, Timer

Stamp = tuple[int, int, int] | None
T = TypeVar("T")

_SHORTEST_S: Final = 0.1


def _not_too_often(interval_s: float) -> float:
    if interval_s and interval_s < _SHORTEST_S:
        raise ValueError("expected 100ms or more, or 0 for never")
    return interval_s


Interval = Annotated[Duration, AfterValidator(_not_too_often)]
"""How often files are looked at; 0: never."""


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


class Followed(Generic[T]):
    """What some files amount to. `changed` gets it after each change; `what` it is, in the log.

    A file that was changed is left alone for `settle_s`: its writer may not be done.
    """

    def __init__(
        self,
        broker: BrokerServices,
        what: str,
        changed: Callable[[T], Awaitable[None] | None],
        settle_s: float = 0.0,
    ) -> None:
        self._broker = broker
        self._what = what
        self._changed = changed
        self._settle_s = settle_s
        self._watch = FileWatch(broker, (), 0.0, self._settle)
        self._read: Callable[[], T] | None = None
        self._settling: Timer | None = None

    async def follow(self, paths: Sequence[Path], interval_s: float, read: Callable[[], T]) -> T:
        """Read, and look for changes from then on. As `read` raises; then nothing has changed.

        `read` blocks and is called in a thread. It raises ValueError, OSError or RuntimeError.
        """
        watch = FileWatch(self._broker, paths, interval_s, self._settle)
        await watch.start()
        try:
            value = await self._broker.run_blocking(read)
        except BaseException:
            watch.stop()
            raise
        self.stop()
        self._watch, self._read = watch, read
        return value

    def stop(self) -> None:
        """Look no more; what is being read isn't taken."""
        self._watch.stop()
        self._read = None
        if self._settling is not None:
            self._settling.cancel()

    async def _settle(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        if self._settle_s > 0:
            self._settling = self._broker.call_later(self._settle_s, self._take)
        else:
            await self._take()

    async def _take(self) -> None:
        read = self._read
        if read is None:
            return
        try:
            value = await self._broker.run_blocking(read)
        except (ValueError, OSError, RuntimeError) as error:
            if self._read is read:
                self._broker.count("reload_failures")
                self._broker.log.error("the old %s stay in force: %s", self._what, error)
            return
        if self._read is read:
            done = self._changed(value)
            if done is not None:
                await done


def _stamps(paths: Sequence[Path]) -> list[Stamp]:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
