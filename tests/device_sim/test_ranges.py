"""A bounded set of ranges behaves like a set as long as nothing had to be folded."""

from hypothesis import given
from hypothesis import strategies as st

from device_sim.judge.ranges import Ranges

members = st.integers(0, 60)


def built(wanted: set[int], limit: int = 1000) -> Ranges:
    ranges = Ranges(limit)
    for member in sorted(wanted):
        ranges.append(member, member + 1)
    return ranges


def listed(ranges: Ranges) -> set[int]:
    found: set[int] = set()
    for start, end in zip(ranges.starts, ranges.ends, strict=True):
        found.update(range(start, end))
    return found


def check(ranges: Ranges) -> None:
    assert ranges.size == len(listed(ranges))
    for at in range(len(ranges.starts)):
        assert ranges.starts[at] < ranges.ends[at]
        if at:
            assert ranges.ends[at - 1] < ranges.starts[at]


@given(st.lists(st.tuples(st.booleans(), members)))
def test_adding_and_removing_is_like_a_set(steps: list[tuple[bool, int]]) -> None:
    ranges = Ranges()
    model: set[int] = set()
    for adds, member in steps:
        if adds:
            ranges.add(member)
            model.add(member)
        else:
            assert ranges.remove(member) == (member in model)
            model.discard(member)
        assert listed(ranges) == model
        assert ranges.contains(member) == (member in model)
        check(ranges)


@given(st.sets(members), st.sets(members), members)
def test_questions_are_answered_like_a_set(left: set[int], right: set[int], limit: int) -> None:
    ranges = built(left)
    check(ranges)
    assert ranges.common(built(right)) == len(left & right)
    assert ranges.below(limit) == len([member for member in left if member < limit])
    assert listed(ranges.clipped(limit)) == {member for member in left if member < limit}


def test_appending_nothing_changes_nothing() -> None:
    ranges = Ranges()
    ranges.append(4, 4)
    assert ranges.starts == []


def test_the_oldest_range_is_folded_when_there_are_too_many() -> None:
    ranges = Ranges(2)
    ranges.append(0, 3)
    ranges.append(10, 11)
    ranges.append(20, 22)
    assert (ranges.starts, ranges.ends) == ([10, 20], [11, 22])
    assert (ranges.size, ranges.folded, ranges.floor) == (3, 3, 3)
    ranges.add(1)
    assert ranges.folded == 4


def test_splitting_and_inserting_fold_too() -> None:
    ranges = Ranges(2)
    ranges.append(0, 3)
    ranges.append(10, 20)
    assert ranges.remove(15)
    assert (ranges.starts, ranges.ends, ranges.folded) == ([10, 16], [15, 20], 3)
    ranges.add(30)
    assert (ranges.starts, ranges.ends, ranges.folded) == ([16, 30], [20, 31], 8)
