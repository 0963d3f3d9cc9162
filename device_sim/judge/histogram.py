"""A histogram of durations in logarithmic buckets, on one plain list of integers.

Owns the counts and the arithmetic between a value and its bucket. Knows nothing of clocks or units:
callers record non-negative integers (device_sim records microseconds).

Values below 256 have a bucket each. Above, every power of two is cut in 128 buckets of equal width,
so a bucket is never wider than 1/128 of its values: a percentile, reported as the middle of its
bucket, is off by at most 0.4 %, and a value below 256 not at all. Minimum, maximum, count and sum
are exact.

Invariants: recording costs a fixed number of integer operations and never allocates; `counts` has a
fixed length (values above MAX_VALUE land in the last bucket, `maximum` still tells the truth);
two histograms merge exactly, by adding their counts.
"""

from typing import Final

SUB_BITS: Final = 7
SUB_BUCKETS: Final = 1 << SUB_BITS
LINEAR_LIMIT: Final = SUB_BUCKETS * 2
MAX_BITS: Final = 40
MAX_VALUE: Final = (1 << MAX_BITS) - 1
BUCKETS: Final = (MAX_BITS - SUB_BITS + 1) * SUB_BUCKETS
RESOLUTION: Final = 1.0 / LINEAR_LIMIT
"""The largest relative error of a reported percentile: half a bucket."""
_BITS: Final = bytes(number.bit_length() for number in range(256))


def bucket_of(value: int) -> int:
    """The bucket that counts `value`; the order of buckets is the order of values."""
    if value < LINEAR_LIMIT:
        return value if value > 0 else 0
    if value > MAX_VALUE:
        return BUCKETS - 1
    # The bit lengths of small numbers are looked up: the method is a slow call once compiled.
    high = value >> SUB_BITS + 1
    if high < 256:
        shift = _BITS[high]
    elif high < 65536:
        shift = 8 + _BITS[high >> 8]
    else:
        shift = high.bit_length()
    return (shift << SUB_BITS) + (value >> shift)


def bucket_bounds(index: int) -> tuple[int, int]:
    """The lowest value a bucket counts and the lowest one it no longer counts."""
    if index < LINEAR_LIMIT:
        return index, index + 1
    shift = (index >> SUB_BITS) - 1
    low = (index - (shift << SUB_BITS)) << shift
    return low, low + (1 << shift)


class Histogram:
    """Counts by bucket, with exact extremes and sum."""

    def __init__(self) -> None:
        self.counts: list[int] = [0] * BUCKETS
        self.count: int = 0
        self.total: int = 0
        self.minimum: int = MAX_VALUE
        self.maximum: int = 0

    def record(self, value: int) -> None:
        """Count one value. A negative one, which only a clock that ran backwards yields, is 0."""
        if value < 0:
            value = 0
        if value < LINEAR_LIMIT:
            self.counts[value] += 1
        else:
            self.counts[bucket_of(value)] += 1
        self.count += 1
        self.total += value
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the recorded ones do not exceed; 0.0 when there are none."""
        if self.count == 0:
            return 0.0
        if percent >= 100.0:
            return float(self.maximum)
        rank = int(percent / 100.0 * self.count)
        if rank < percent / 100.0 * self.count or rank == 0:
            rank += 1
        seen = 0
        for index in range(BUCKETS):
            seen += self.counts[index]
            if seen >= rank:
                low, high = bucket_bounds(index)
                middle = float(low + high - 1) / 2.0
                return min(max(middle, float(self.minimum)), float(self.maximum))
        return float(self.maximum)

    def mean(self) -> float:
        """The exact mean of what was recorded; 0.0 when nothing was."""
        return self.total / self.count if self.count else 0.0

    def merge(self, other: "Histogram") -> None:
        """Add what another histogram counted, as if it had been recorded here."""
        counts = self.counts
        for index, count in enumerate(other.counts):
            if count:
                counts[index] += count
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def copy(self) -> "Histogram":
        """A snapshot that later records leave alone."""
        twin = Histogram()
        twin.merge(self)
        return twin

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was recorded after the snapshot `earlier` of this histogram was taken.

        The extremes of an interval are known to the bucket only, hence its bounds.
        """
        part = Histogram()
        for index in range(BUCKETS):
            count = self.counts[index] - earlier.counts[index]
            if count:
                part.counts[index] = count
                low, high = bucket_bounds(index)
                part.minimum = min(part.minimum, low)
                part.maximum = min(max(part.maximum, high - 1), self.maximum)
        part.count = self.count - earlier.count
        part.total = self.total - earlier.total
        return part

    def buckets(self) -> list[tuple[int, int, int]]:
        """The buckets that count something, as (low, high, count), in the order of values."""
        found: list[tuple[int, int, int]] = []
        for index, count in enumerate(self.counts):
            if count:
                low, high = bucket_bounds(index)
                found.append((low, high, count))
        return found
