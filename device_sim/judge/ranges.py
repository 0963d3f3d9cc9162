"""A set of integers kept as sorted, disjoint ranges: what the ledger remembers of holes.

Losses and refusals come in runs, so a range stands for thousands of messages. The number of ranges
is bounded: when one more would be kept, the oldest is folded, which means that it is remembered by
its size alone (`folded`) and everything below `floor` can no longer be looked up. That bound is
what makes a verdict cost memory by stream and never by message.

Invariants: `starts` and `ends` (exclusive) have equal length and are strictly increasing with
`starts[i] < ends[i] < starts[i + 1]`; nothing in them lies below `floor`; `size` counts the members
that can be looked up.
"""

from bisect import bisect_right
from typing import Final

MAX_RANGES: Final = 1024


class Ranges:
    """A bounded set of integers; members are added at the upper end, removed anywhere."""

    def __init__(self, limit: int = MAX_RANGES) -> None:
        self.limit: int = limit
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.size: int = 0
        self.folded: int = 0
        self.floor: int = 0

    def append(self, start: int, end: int) -> None:
        """Add `start` up to, without, `end`; all of it above every member so far."""
        if start >= end:
            return
        self.size += end - start
        if self.ends and self.ends[-1] == start:
            self.ends[-1] = end
            return
        self.starts.append(start)
        self.ends.append(end)
        if len(self.starts) > self.limit:
            self._fold()

    def add(self, member: int) -> None:
        """Add one member wherever it belongs; what is below the floor is counted as folded."""
        if member < self.floor:
            self.folded += 1
            return
        at = bisect_right(self.starts, member)
        if at and member < self.ends[at - 1]:
            return
        self.size += 1
        joins_left = at > 0 and self.ends[at - 1] == member
        joins_right = at < len(self.starts) and self.starts[at] == member + 1
        if joins_left and joins_right:
            self.ends[at - 1] = self.ends[at]
            del self.starts[at], self.ends[at]
        elif joins_left:
            self.ends[at - 1] = member + 1
        elif joins_right:
            self.starts[at] = member
        else:
            self.starts.insert(at, member)
            self.ends.insert(at, member + 1)
            if len(self.starts) > self.limit:
                self._fold()

    def remove(self, member: int) -> bool:
        """Take one member out; False when it isn't one."""
        at = bisect_right(self.starts, member) - 1
        if at < 0 or member >= self.ends[at]:
            return False
        start = self.starts[at]
        end = self.ends[at]
        self.size -= 1
        if end - start == 1:
            del self.starts[at], self.ends[at]
        elif member == start:
            self.starts[at] = start + 1
        elif member == end - 1:
            self.ends[at] = member
        else:
            self.ends[at] = member
            self.starts.insert(at + 1, member + 1)
            self.ends.insert(at + 1, end)
            if len(self.starts) > self.limit:
                self._fold()
        return True

    def contains(self, member: int) -> bool:
        """Whether it is a member that can be looked up."""
        at = bisect_right(self.starts, member) - 1
        return at >= 0 and member < self.ends[at]

    def below(self, limit: int) -> int:
        """How many members that can be looked up are smaller than `limit`."""
        count = 0
        for at in range(len(self.starts)):
            if self.starts[at] >= limit:
                break
            count += min(self.ends[at], limit) - self.starts[at]
        return count

    def common(self, other: "Ranges") -> int:
        """How many members both sets have; linear in the number of ranges."""
        count = mine = theirs = 0
        while mine < len(self.starts) and theirs < len(other.starts):
            low = max(self.starts[mine], other.starts[theirs])
            high = min(self.ends[mine], other.ends[theirs])
            if low < high:
                count += high - low
            if self.ends[mine] < other.ends[theirs]:
                mine += 1
            else:
                theirs += 1
        return count

    def intersection(self, other: "Ranges") -> "Ranges":
        """The members that both sets have; linear in the number of ranges."""
        both = Ranges(self.limit + other.limit)
        mine = theirs = 0
        while mine < len(self.starts) and theirs < len(other.starts):
            low = max(self.starts[mine], other.starts[theirs])
            high = min(self.ends[mine], other.ends[theirs])
            both.append(low, high)
            if self.ends[mine] < other.ends[theirs]:
                mine += 1
            else:
                theirs += 1
        return both

    def clipped(self, limit: int) -> "Ranges":
        """A copy without the members from `limit` on."""
        copy = Ranges(self.limit)
        copy.floor = self.floor
        copy.folded = self.folded
        for at in range(len(self.starts)):
            if self.starts[at] >= limit:
                break
            copy.append(self.starts[at], min(self.ends[at], limit))
        return copy

    def _fold(self) -> None:
        start = self.starts.pop(0)
        end = self.ends.pop(0)
        self.folded += end - start
        self.size -= end - start
        self.floor = end
