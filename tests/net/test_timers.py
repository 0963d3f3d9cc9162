"""The wheel, turned by hand."""

import random

from mqttd.net.timers import GRANULARITY, NEVER, Wheel


class Entry:
    """Asked at most as often as it has deadlines."""

    def __init__(self, *later: float) -> None:
        self.tick = 0
        self.asked: list[float] = []
        self.later = list(later)

    def on_timer(self, now: float) -> float:
        self.asked.append(now)
        return self.later.pop(0) if self.later else NEVER


def test_asked_in_the_first_bucket_after_its_deadline_and_only_once() -> None:
    wheel = Wheel(100.0)
    entry = Entry()
    wheel.put(entry, 101.2)
    wheel.advance(101.0)
    assert entry.asked == []
    wheel.advance(101.4)
    assert entry.asked == []
    wheel.advance(101.5)
    assert entry.asked == [101.5]
    wheel.advance(200.0)
    assert entry.asked == [101.5]
    assert len(wheel) == 0


def test_put_again_replaces_what_was_asked_before() -> None:
    wheel = Wheel(0.0)
    entry = Entry()
    wheel.put(entry, 2.0)
    wheel.put(entry, 5.0)
    assert len(wheel) == 1
    wheel.advance(4.0)
    assert entry.asked == []
    wheel.put(entry, 4.1)
    wheel.advance(5.0)
    assert entry.asked == [5.0]


def test_an_answer_is_the_next_deadline() -> None:
    wheel = Wheel(0.0)
    entry = Entry(3.0, 7.0)
    wheel.put(entry, 1.0)
    for now in range(10):
        wheel.advance(float(now))
    assert entry.asked == [1.0, 3.0, 7.0]


def test_a_deadline_in_the_past_comes_with_the_next_bucket() -> None:
    wheel = Wheel(50.0)
    entry = Entry(1.0)  # and answers with the past again
    wheel.put(entry, 3.0)
    wheel.advance(50.0)
    assert entry.asked == []
    wheel.advance(50.0 + GRANULARITY)
    wheel.advance(50.0 + 2 * GRANULARITY)
    assert entry.asked == [50.5, 51.0]


def test_never_is_no_entry() -> None:
    wheel = Wheel(0.0)
    entry = Entry()
    wheel.put(entry, 1.0)
    wheel.put(entry, NEVER)
    assert len(wheel) == 0
    wheel.remove(entry)
    wheel.advance(10.0)
    assert entry.asked == []


def test_removed_by_another_entry_of_the_same_bucket() -> None:
    wheel = Wheel(0.0)

    class Rival(Entry):
        other: Entry

        def on_timer(self, now: float) -> float:
            wheel.remove(self.other)
            return super().on_timer(now)

    first, second = Rival(), Rival()
    first.other, second.other = second, first
    wheel.put(first, 1.0)
    wheel.put(second, 1.0)
    wheel.advance(1.0)
    assert len(first.asked) + len(second.asked) == 1
    wheel.advance(5.0)
    assert len(first.asked) + len(second.asked) == 1


def test_moved_by_another_entry_of_the_same_bucket() -> None:
    wheel = Wheel(0.0)
    late = Entry()

    class Mover(Entry):
        def on_timer(self, now: float) -> float:
            wheel.put(late, 3.0)
            return super().on_timer(now)

    movers = [Mover() for _ in range(8)]  # one of them comes before `late` in any order of a set
    for entry in (late, *movers):
        wheel.put(entry, 1.0)
    wheel.advance(1.0)
    wheel.advance(3.0)
    assert late.asked[-1] == 3.0
    assert len(late.asked) <= 2


def test_a_loop_that_stood_still_misses_nobody() -> None:
    wheel = Wheel(0.0)
    entries = [Entry() for _ in range(100)]
    for number, entry in enumerate(entries):
        wheel.put(entry, 1.0 + number)
    wheel.advance(1000.0)
    assert all(entry.asked == [1000.0] for entry in entries)


def test_never_before_its_deadline_whatever_happens() -> None:
    dice = random.Random(7)
    wheel = Wheel(0.0)
    entries = [Entry() for _ in range(50)]
    wanted: dict[int, float] = {}
    now = 0.0
    for _ in range(2000):
        index = dice.randrange(50)
        entry = entries[index]
        action = dice.random()
        if action < 0.6:
            at = now + dice.random() * 20
            wheel.put(entry, at)
            entry.asked.clear()
            wanted[index] = at
        elif action < 0.7:
            wheel.remove(entry)
            entry.asked.clear()
            wanted.pop(index, None)
        else:
            now += dice.random()
            wheel.advance(now)
        for index, at in list(wanted.items()):
            asked = entries[index].asked
            if asked:
                assert asked[0] >= at
                del wanted[index]
                asked.clear()
            else:
                assert now < at + 2 * GRANULARITY
        assert len(wheel) == len(wanted)
