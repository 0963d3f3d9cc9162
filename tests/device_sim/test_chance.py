"""Chance repeats itself for the same seed and names and for nothing else; it is spread well."""

import statistics

from hypothesis import given
from hypothesis import strategies as st

from device_sim.language.chance import Chance, running_sums

seeds = st.integers(0, 2**63 - 1)
names = st.lists(st.one_of(st.text(max_size=5), st.integers(0, 99)), max_size=3)


def test_known_numbers() -> None:
    # Written down once, so that no release changes what a seed means.
    chance = Chance(1, "values", "sensor", 0)
    assert [chance.bits() for _ in range(2)] == [1256748559679308338, 15904866225990599331]


def test_the_generator_is_splitmix64() -> None:
    # From the state 1234567 the reference implementation prints these three.
    chance = Chance(0)
    chance._state = 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [chance.bits() for _ in range(3)] == expected


@given(seeds, names)
def test_same_seed_same_numbers(seed: int, who: list[str | int]) -> None:
    one, other = Chance(seed, *who), Chance(seed, *who)
    assert [one.random() for _ in range(5)] == [other.random() for _ in range(5)]
    assert one.normal(0, 1) == other.normal(0, 1)


def test_devices_dont_share_their_chance() -> None:
    drawn = {Chance(seed, "g", index).bits() for seed in range(30) for index in range(30)}
    assert len(drawn) == 900
    assert Chance(1, "a", "b").bits() != Chance(1, "ab").bits()


@given(seeds, st.integers(1, 10**6))
def test_below_stays_below(seed: int, end: int) -> None:
    chance = Chance(seed)
    assert all(0 <= chance.below(end) < end for _ in range(20))
    assert all(0 <= chance.random() < 1 for _ in range(20))


@given(seeds, st.integers(0, 60), st.integers(0, 40))
def test_a_sample_is_different_numbers_in_order(seed: int, size: int, count: int) -> None:
    count = min(size, count)
    drawn = Chance(seed).sample(count, size)
    assert len(drawn) == count
    assert drawn == sorted(set(drawn))
    assert all(0 <= each < size for each in drawn)


def test_every_number_has_its_turn_in_a_sample() -> None:
    chance = Chance(3)
    counts = [0] * 10
    for _ in range(2000):
        for each in chance.sample(3, 10):
            counts[each] += 1
    assert min(counts) > 520
    assert max(counts) < 680


def test_means_and_deviations() -> None:
    chance = Chance(11)
    normal = [chance.normal(5, 2) for _ in range(5000)]
    assert abs(statistics.fmean(normal) - 5) < 0.1
    assert abs(statistics.stdev(normal) - 2) < 0.1
    waits = [chance.exponential(3) for _ in range(5000)]
    assert abs(statistics.fmean(waits) - 3) < 0.2
    assert abs(statistics.fmean(chance.uniform(-1, 3) for _ in range(5000)) - 1) < 0.1


def test_weights() -> None:
    chance = Chance(12)
    sums = running_sums([0, 3, 0, 1])
    counts = [0] * 4
    for _ in range(4000):
        counts[chance.weighted(sums)] += 1
    assert counts[0] == counts[2] == 0
    assert abs(counts[1] - 3000) < 150
