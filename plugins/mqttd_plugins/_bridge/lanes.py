"""Who may be sent next: many keys at once, each in its order.

Owns: the items that were taken out of the outbox and aren't settled. Usually they are sent one
after the other as fast as the connection takes them, whatever their keys. When one fails, its key
goes into stop-and-wait: what of the key is already under way is waited for, then the failed item
is tried again, alone, and only when it is settled the rest of the key follows at full speed. Other
keys don't notice. When the connection is lost, everything that was under way is sent again, in the
order of the first time.

Must not know: connections, what an item holds, the clock: whoever calls `failed` calls `release`
when the item may be tried again.

Invariants: an item is in exactly one of ready, urgent, parked and flying; items of one key are
taken in the order of `seq`, but for copies; with `limit` 1 never two of a key are flying.
"""

from __future__ import annotations

from bisect import insort
from collections import deque

from mqttd_plugins._bridge.remote import Item


class _Lane:
    """One key with something to do."""

    __slots__ = ("failed", "held", "items", "out", "parked")

    def __init__(self) -> None:
        self.items = 0  # all of the key
        self.out = 0  # flying, or urgent and about to be
        self.parked: list[Item] = []  # by seq
        self.failed: set[int] = set()  # seqs that have failed and aren't settled
        self.held = False  # a failed one waits for its time


class Lanes:
    """The items in hand."""

    def __init__(self, limit: int = 0) -> None:
        """`limit`: items of one key that may be flying at once; 0: any number."""
        self.limit = limit
        self.flying: dict[int, Item] = {}
        self._lanes: dict[str, _Lane] = {}
        self._ready: deque[Item] = deque()
        self._urgent: deque[Item] = deque()

    def __len__(self) -> int:
        return sum(lane.items for lane in self._lanes.values())

    @property
    def keys(self) -> int:
        """How many keys have something in hand."""
        return len(self._lanes)

    @property
    def waiting(self) -> bool:
        """There may be something to take."""
        return bool(self._urgent or self._ready)

    def put(self, item: Item) -> None:
        """A new item, later than all before it."""
        lane = self._lanes.get(item.key)
        if lane is None:
            lane = self._lanes[item.key] = _Lane()
        lane.items += 1
        self._ready.append(item)

    def take(self, most: int) -> list[Item]:
        """The next items to send, `most` at most. They are flying from here on."""
        out: list[Item] = []
        while self._urgent and len(out) < most:
            item = self._urgent.popleft()
            self.flying[item.seq] = item
            out.append(item)
        while self._ready and len(out) < most:
            item = self._ready.popleft()
            lane = self._lanes[item.key]
            if lane.parked or not self._may_go(lane):
                lane.parked.append(item)  # later than all that are parked
                continue
            lane.out += 1
            self.flying[item.seq] = item
            out.append(item)
        return out

    def settled(self, item: Item) -> None:
        """A flying item is done with."""
        del self.flying[item.seq]
        lane = self._lanes[item.key]
        lane.out -= 1
        lane.items -= 1
        lane.failed.discard(item.seq)
        if not lane.items:
            del self._lanes[item.key]
        elif lane.parked:
            self._advance(lane)

    def failed(self, item: Item) -> None:
        """A flying item has to be tried again, once `release` is called for it."""
        del self.flying[item.seq]
        lane = self._lanes[item.key]
        lane.out -= 1
        lane.failed.add(item.seq)
        lane.held = True
        insort(lane.parked, item, key=_seq)

    def release(self, key: str) -> None:
        """The wait after a failure is over."""
        lane = self._lanes.get(key)
        if lane is not None and lane.held:
            lane.held = False
            self._advance(lane)

    def lost(self) -> None:
        """The connection is over: what was flying isn't any more."""
        again = sorted([*self.flying.values(), *self._urgent], key=_seq)
        self.flying.clear()
        self._urgent.clear()
        lanes: dict[str, _Lane] = {}
        for item in again:
            lane = lanes[item.key] = self._lanes[item.key]
            lane.out -= 1
            insort(lane.parked, item, key=_seq)
        for lane in lanes.values():
            self._advance(lane)

    def _may_go(self, lane: _Lane) -> bool:
        if lane.held:
            return False
        limit = 1 if lane.failed else self.limit
        return not limit or lane.out < limit

    def _advance(self, lane: _Lane) -> None:
        while lane.parked and self._may_go(lane):
            lane.out += 1
            self._urgent.append(lane.parked.pop(0))


def _seq(item: Item) -> int:
    return item.seq
