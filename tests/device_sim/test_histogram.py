"""Buckets keep order and resolution, percentiles are within it, merging is exact."""

from hypothesis import given
from hypothesis import strategies as st

from device_sim.judge.histogram import (
    BUCKETS,
    LINEAR_LIMIT,
    MAX_VALUE,
    RESOLUTION,
    Histogram,
    bucket_bounds,
    bucket_of,
)

values = st.integers(min_value=0, max_value=MAX_VALUE)


def recorded(samples: list[int]) -> Histogram:
    histogram = Histogram()
    for sample in samples:
        histogram.record(sample)
    return histogram


@given(values)
def test_a_value_lies_in_its_bucket_and_the_bucket_is_narrow(value: int) -> None:
    low, high = bucket_bounds(bucket_of(value))
    assert low <= value < high
    assert high - low == 1 or (high - low) / low <= 1 / 128


def test_buckets_are_contiguous_from_zero_to_the_maximum() -> None:
    assert bucket_bounds(0) == (0, 1)
    for index in range(1, BUCKETS):
        assert bucket_bounds(index)[0] == bucket_bounds(index - 1)[1]
    assert bucket_bounds(BUCKETS - 1)[1] == MAX_VALUE + 1


def test_small_values_are_exact() -> None:
    assert [bucket_of(value) for value in range(LINEAR_LIMIT)] == list(range(LINEAR_LIMIT))


def test_values_out_of_range_are_kept_in_the_outer_buckets() -> None:
    histogram = recorded([-5, MAX_VALUE + 1000])
    assert histogram.counts[0] == 1
    assert histogram.counts[BUCKETS - 1] == 1
    assert histogram.minimum == 0
    assert histogram.maximum == MAX_VALUE + 1000


@given(st.lists(values, min_size=1), st.floats(min_value=0.0, max_value=100.0))
def test_percentiles_are_within_the_resolution(samples: list[int], percent: float) -> None:
    ordered = sorted(samples)
    exact_rank = percent / 100.0 * len(samples)
    rank = min(max(int(exact_rank) + (int(exact_rank) < exact_rank), 1), len(samples))
    wanted = ordered[rank - 1]
    got = recorded(samples).percentile(percent)
    assert abs(got - wanted) <= wanted * RESOLUTION + 0.5


def test_an_empty_histogram_answers_zero() -> None:
    histogram = Histogram()
    assert histogram.percentile(50) == 0.0
    assert histogram.mean() == 0.0
    assert histogram.buckets() == []


def test_mean_and_extremes_are_exact() -> None:
    histogram = recorded([1_000_003, 1_000_001, 7])
    assert histogram.mean() == (1_000_003 + 1_000_001 + 7) / 3
    assert (histogram.minimum, histogram.maximum) == (7, 1_000_003)
    assert histogram.percentile(100) == 1_000_003


@given(st.lists(values), st.lists(values))
def test_merging_equals_recording_in_one(left: list[int], right: list[int]) -> None:
    merged = recorded(left)
    merged.merge(recorded(right))
    together = recorded(left + right)
    assert merged.counts == together.counts
    assert (merged.count, merged.total) == (together.count, together.total)
    assert (merged.minimum, merged.maximum) == (together.minimum, together.maximum)


@given(st.lists(values), st.lists(values))
def test_since_takes_an_earlier_snapshot_away(before: list[int], after: list[int]) -> None:
    histogram = recorded(before)
    snapshot = histogram.copy()
    for sample in after:
        histogram.record(sample)
    part = histogram.since(snapshot)
    assert part.counts == recorded(after).counts
    assert part.count == len(after)
    assert part.total == sum(after)
    if after:
        assert part.minimum <= min(after)
        assert part.maximum >= max(after)


def test_buckets_lists_what_was_counted() -> None:
    assert recorded([3, 3, 300]).buckets() == [(3, 4, 2), (300, 302, 1)]
