"""Arrivals: the mean is the same for all kinds, and each has the shape that its name says."""

import statistics
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.language.actions import ArrivalModel
from device_sim.language.arrival import MessageTimes, connect_times
from device_sim.language.chance import Chance
from device_sim.language.scenario import PublishEntry

STEP4 = ArrivalModel.model_validate({"step": {"steps": 4}})
BURST10 = ArrivalModel.model_validate({"burst": {"size": 10}})
kinds = st.sampled_from(["linear", "poisson", STEP4, BURST10])


def times(index: int = 0, factor: float = 1.0, seed: int = 1, **keys: Any) -> MessageTimes:
    entry = PublishEntry.model_validate({"topic": "t", "every": 2, **keys})
    return MessageTimes(entry, seed, "g", index, 10, "publish[0]", factor)


def first(count: int, source: MessageTimes) -> list[float]:
    return [source.next() for _ in range(count)]


@given(kinds, st.integers(1, 300), st.floats(0.001, 1000))
def test_connects_come_in_order_and_in_time(kind: Any, count: int, over: float) -> None:
    arrivals = connect_times(count, over, kind, Chance(1))
    assert len(arrivals) == count
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] <= over


def test_linear_connects() -> None:
    assert connect_times(4, 2.0, "linear", Chance(1)) == [0.0, 0.5, 1.0, 1.5]
    assert connect_times(3, 0.0, "linear", Chance(1)) == [0.0, 0.0, 0.0]


def test_connects_in_steps() -> None:
    arrivals = connect_times(100, 40.0, STEP4, Chance(1))
    assert [sum(low <= at < low + 10 for at in arrivals) for low in (0, 10, 20, 30)] == [
        10,
        20,
        30,
        40,
    ]


def test_connects_in_bursts() -> None:
    arrivals = connect_times(25, 30.0, BURST10, Chance(1))
    assert arrivals == [0.0] * 10 + [10.0] * 10 + [20.0] * 5


def test_poisson_connects_have_exponential_gaps() -> None:
    arrivals = connect_times(5000, 5000.0, "poisson", Chance(2))
    gaps = [later - sooner for sooner, later in pairwise(arrivals)]
    # Mean and standard deviation of an exponential distribution are the same.
    assert abs(statistics.fmean(gaps) - 1) < 0.05
    assert abs(statistics.stdev(gaps) - 1) < 0.1


def test_linear_messages_are_spread_over_the_devices() -> None:
    assert first(3, times()) == [0.0, 2.0, 4.0]
    assert first(3, times(5)) == [1.0, 3.0, 5.0]
    assert first(3, times(5, together=True)) == [0.0, 2.0, 4.0]
    assert first(3, times(5, factor=4)) == [0.25, 0.75, 1.25]
    assert times(5).even


@given(st.integers(0, 9), st.floats(0.1, 50))
def test_even_times_can_be_calculated(index: int, factor: float) -> None:
    source = times(index, factor)
    expected = [source.first_s + number * source.step_s for number in range(20)]
    assert first(20, source) == pytest.approx(expected)


def test_bursts() -> None:
    source = times(arrival={"burst": {"size": 3}})
    assert first(7, source) == [0.0] * 3 + [6.0] * 3 + [12.0]
    assert not source.even
    assert first(1, times(5, arrival={"burst": {"size": 3}})) == [3.0]


def test_steps() -> None:
    # At half a message a second, four stairs of 40 s: 5, 10, 15, 20 messages, then 20 in 40 s.
    arrivals = first(80, times(arrival={"step": {"steps": 4, "over": 160}}))
    counts = [sum(low <= at < low + 40 for at in arrivals) for low in range(0, 200, 40)]
    assert counts == [5, 10, 15, 20, 20]


def test_poisson_messages() -> None:
    arrivals = first(5000, times(arrival="poisson"))
    assert abs(arrivals[-1] / 5000 - 2) < 0.1
    assert arrivals != first(5000, times(1, arrival="poisson"))


def test_together_is_together_by_chance_too() -> None:
    one = first(10, times(1, arrival="poisson", together=True))
    assert one == first(10, times(2, arrival="poisson", together=True))


arrivals = st.sampled_from(
    ["linear", "poisson", {"burst": {"size": 4}}, {"step": {"steps": 3, "over": 9}}]
)


@given(st.integers(0, 2**63 - 1), st.integers(0, 9), arrivals, st.booleans())
def test_same_seed_same_times(seed: int, index: int, arrival: Any, together: bool) -> None:
    one = first(30, times(index, seed=seed, arrival=arrival, together=together))
    assert one == first(30, times(index, seed=seed, arrival=arrival, together=together))
    assert one == sorted(one)
    assert one[0] >= 0


def test_a_closed_loop_has_no_times() -> None:
    entry = PublishEntry.model_validate({"topic": "t"})
    with pytest.raises(ValueError, match="closed loop"):
        MessageTimes(entry, 1, "g", 0, 1, "publish[0]")
