"""One timer wheel for all connections of a loop.

Owns: which entry has to be asked next, rounded up to a bucket of half a second. A connection costs
one set entry and no event-loop timer; a packet costs nothing at all, since keep alive is checked by
asking the connection when its bucket comes, and putting it into a later one if something was
received in the meantime.

Must not know: the loop, the clock, what a deadline means. `advance(now)` is called by whoever has
both, about once per bucket; so tests turn the wheel by hand.

Invariants: an entry stands in at most one bucket, the one its `tick` says (0: none); it is asked at
or after its deadline, never before; an entry that was removed is never asked.
"""

from __future__ import annotations

from typing import Final, Protocol

GRANULARITY: Final = 0.5
NEVER: Final = float("inf")


class Timed(Protocol):
    """What the wheel keeps. `tick` belongs to the wheel and starts as 0."""

    tick: int

    def on_timer(self, now: float) -> float:
        """The deadline has come; returns the next one, `NEVER` for none."""


class Wheel:
    """Entries by the bucket in which they are asked next."""

    __slots__ = ("_buckets", "_tick")

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, set[Timed]] = {}
        self._tick = int(now / GRANULARITY)

    def put(self, entry: Timed, at: float) -> None:
        """Ask `entry` at `at` instead of whenever it was to be asked before."""
        if at == NEVER:
            self.remove(entry)
            return
        # Rounded up, and never into the bucket that is being emptied right now.
        tick = max(-int(-at // GRANULARITY), self._tick + 1)
        if entry.tick == tick:
            return
        self.remove(entry)
        entry.tick = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
        bucket.add(entry)

    def remove(self, entry: Timed) -> None:
        """Forget `entry`; harmless if it isn't here."""
        if not entry.tick:
            return
        bucket = self._buckets.get(entry.tick)
        entry.tick = 0
        if bucket is not None:
            bucket.discard(entry)

    def advance(self, now: float) -> None:
        """Ask every entry whose bucket has come."""
        reached = int(now / GRANULARITY)
        while self._tick < reached:
            if not self._buckets:
                self._tick = reached
                return
            self._tick += 1
            bucket = self._buckets.pop(self._tick, None)
            if bucket is None:
                continue
            for entry in bucket:
                # Whoever was asked first may have removed or moved this one.
                if entry.tick != self._tick:
                    continue
                entry.tick = 0
                at = entry.on_timer(now)
                if at != NEVER:
                    self.put(entry, at)

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())
