"""Retained messages: storing, resumable walks, sweeps."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core.message import Message
from mqttd.core.retained import Cursor, Retained
from mqttd.core.topics import matches


def message(topic: str, payload: bytes = b"x", expires_at: float = 0.0) -> Message:
    return Message(topic, topic.encode(), payload, 0, True, b"", expires_at, "")


def keep(retained: Retained, *topics: str) -> None:
    for topic in topics:
        retained.set(topic, message(topic))


def rest(cursor: Cursor, steps: int = 1000) -> list[str]:
    topics = []
    while not cursor.done:
        topics += [one.topic for one in cursor.take(steps)]
    return topics


def test_one_message_a_topic() -> None:
    # [MQTT-3.3.1-5]
    retained = Retained()
    first, second = message("a/b"), message("a/b", b"y")
    assert retained.get("a/b") is None
    assert retained.set("a/b", first) is None
    assert retained.get("a/b") is first
    assert retained.set("a/b", second) is first
    assert retained.get("a/b") is second
    assert retained.count == 1


def test_topics_on_the_way_and_beyond_hold_nothing() -> None:
    retained = Retained()
    keep(retained, "a/b/c")
    for topic in ("a", "a/b", "a/b/", "a/b/c/d", "a/x", "A/b/c", "/a/b/c", "$a", ""):
        assert retained.get(topic) is None
        assert retained.remove(topic) is None
    assert retained.count == 1


def test_an_empty_payload_removes_and_is_never_stored() -> None:
    # [MQTT-3.3.1-6] [MQTT-3.3.1-7]
    retained = Retained()
    first = message("a")
    retained.set("a", first)
    assert retained.set("a", message("a", b"")) is first
    assert retained.get("a") is None
    assert retained.set("a", message("a", b"")) is None
    assert (retained.count, retained.node_count) == (0, 0)


def test_removal_prunes_what_is_empty_and_no_more() -> None:
    retained = Retained()
    keep(retained, "a", "a/b/c", "a/b/d", "a/e", "$SYS/x", "/")
    assert (retained.count, retained.node_count) == (6, 9)
    counts = []
    for topic in ("a/b/c", "a", "a/b/d", "a/e", "$SYS/x", "/"):
        gone = retained.remove(topic)
        assert gone is not None
        assert gone.topic == topic
        assert retained.remove(topic) is None
        counts.append(retained.node_count)
    assert counts == [8, 8, 6, 4, 2, 0]
    assert retained.count == 0


TOPICS = [
    "/",
    "//",
    "/a",
    "a",
    "a/",
    "a/b",
    "a//b",
    "a/b/c",
    "a/b/c/d",
    "a/x/c",
    "b",
    "b/b/c",
    "a/$x",
    "$SYS",
    "$SYS/x",
    "$SYS/x/y",
]


@pytest.mark.parametrize(
    "topic_filter",
    [
        *TOPICS,
        "#",
        "+",
        "+/+",
        "/+",
        "+/",
        "+/#",
        "/#",
        "a/#",
        "a/+",
        "a/+/c",
        "+/b/#",
        "+/+/+",
        "a/b/c/d/#",
        "a/b/c/d/+",
        "a/b/c/d/e",
        "none/#",
        "$SYS/#",
        "$SYS/+",
        "$SYS/+/#",
        "$none/+",
    ],
)
@pytest.mark.parametrize("steps", [1, 1000])
def test_a_cursor_finds_what_matches(topic_filter: str, steps: int) -> None:
    # [MQTT-4.7.2-1] "#" and "+" in front leave $SYS out, [MQTT-4.7.1-1] [MQTT-4.7.1-2]
    retained = Retained()
    keep(retained, *TOPICS)
    found = rest(retained.cursor(topic_filter), steps)
    assert sorted(found) == sorted(topic for topic in TOPICS if matches(topic_filter, topic))


def test_a_cursor_in_an_empty_tree() -> None:
    cursor = Retained().cursor("#")
    assert not cursor.done
    assert cursor.take(10) == []
    assert cursor.done
    assert cursor.take(10) == []


def test_a_cursor_yields_in_the_order_of_storing() -> None:
    retained = Retained()
    topics = [f"t/{number}" for number in (5, 3, 9, 1)]
    keep(retained, *topics)
    assert rest(retained.cursor("t/+")) == topics


def test_a_slice_visits_no_more_nodes_than_it_may() -> None:
    retained = Retained()
    keep(retained, *(f"a/{number}" for number in range(100)))
    cursor = retained.cursor("#")
    assert cursor.take(0) == []
    # The root and "a" hold nothing.
    assert [len(cursor.take(10)) for _ in range(11)] == [8, *[10] * 9, 2]
    assert cursor.done


def test_a_cursor_walks_only_where_the_filter_leads() -> None:
    retained = Retained()
    keep(retained, *(f"{top}/{number}" for top in "abc" for number in range(100)))
    exact = retained.cursor("b/77")
    assert [one.topic for one in exact.take(3)] == ["b/77"]
    assert exact.done
    below = retained.cursor("+/77")
    assert [one.topic for one in below.take(1 + 3 + 3)] == ["a/77", "b/77", "c/77"]
    assert below.done


def test_what_changes_during_a_walk() -> None:
    retained = Retained()
    keep(retained, *(f"a/{name}" for name in "pqrst"))
    cursor = retained.cursor("a/+")
    assert [one.topic for one in cursor.take(3)] == ["a/p"]
    replaced = message("a/q", b"new")
    retained.set("a/q", replaced)
    retained.remove("a/r")
    retained.remove("a/p")
    keep(retained, "a/new")
    assert cursor.take(1) == [replaced]
    assert rest(cursor) == ["a/s", "a/t"]


def test_a_branch_that_goes_during_a_walk() -> None:
    retained = Retained()
    keep(retained, "a/b/c/d", "e/f")
    cursor = retained.cursor("#")
    cursor.take(3)
    retained.remove("a/b/c/d")
    retained.remove("e/f")
    assert retained.node_count == 0
    keep(retained, "a/b/c/d")
    assert rest(cursor) == []


def test_a_branch_not_yet_reached_is_seen_as_it_is_then() -> None:
    retained = Retained()
    keep(retained, "a/1", "b/1")
    cursor = retained.cursor("+/+")
    assert [one.topic for one in cursor.take(3)] == ["a/1"]
    keep(retained, "b/2")
    assert rest(cursor) == ["b/1", "b/2"]


def test_a_level_of_many_topics_is_copied_row_by_row() -> None:
    retained = Retained(row_size=10)
    topics = [f"t/{number}" for number in range(95)]
    keep(retained, *topics)
    cursor = retained.cursor("t/+")
    # The root, "t", then a row of eleven (the first is made when one too many are there).
    assert [one.topic for one in cursor.take(2 + 12)] == topics[:11]
    assert [len(cursor.take(11)) for _ in range(3)] == [10, 10, 10]
    # One row goes, one loses a topic, and what is new goes to rows that are not looked at, but
    # for what the last one has room for.
    for number in (*range(41, 51), 53):
        retained.remove(f"t/{number}")
    keep(retained, *(f"t/new{number}" for number in range(100)))
    found = rest(cursor)
    kept = [topic for topic in topics[51:] if topic != "t/53"]
    assert found[: len(kept)] == kept
    assert len(found) <= len(kept) + 10
    assert len(rest(retained.cursor("t/+"))) == 95 - 11 + 100


def test_a_level_of_many_topics_can_be_emptied() -> None:
    retained = Retained(row_size=3)
    topics = [f"t/{number}" for number in range(20)]
    for order in (topics, topics[::-1], topics[::2] + topics[1::2]):
        keep(retained, *topics)
        late = retained.cursor("#")
        late.take(3)
        for index, topic in enumerate(order):
            assert sorted(rest(retained.cursor("t/+"))) == sorted(order[index:])
            retained.remove(topic)
        assert retained.node_count == 0
        assert rest(late) == []


@pytest.mark.parametrize("level", ["", "a"])
def test_depth_costs_no_stack_and_linear_work(level: str) -> None:
    depth = 30_000
    topic = "/".join([level] * depth)
    retained = Retained()
    keep(retained, topic)
    assert retained.node_count == depth
    for topic_filter in (topic, "#", "/".join(["+"] * depth), topic + "/#"):
        cursor = retained.cursor(topic_filter)
        assert len(cursor.take(depth + 1)) == 1
        assert cursor.done
    # Too short by a level, too long by one.
    for topic_filter in (topic.removesuffix("/" + level), topic + "/+", topic + "/" + level):
        assert rest(retained.cursor(topic_filter), depth) == []
    assert retained.remove(topic) is not None
    assert retained.node_count == 0
    keep(retained, topic)
    del retained, cursor
    gc.collect()


def test_sweep_removes_what_has_expired() -> None:
    retained = Retained()
    for topic, expires_at in (("a", 10.0), ("a/b", 20.0), ("$x/y", 10.0), ("never", 0.0)):
        retained.set(topic, message(topic, expires_at=expires_at))
    assert retained.expiring == 3
    assert retained.sweep(9.9, 100) == []
    assert sorted(retained.sweep(10.0, 100)) == ["$x/y", "a"]
    assert retained.sweep(10.0, 100) == []
    assert retained.sweep(1e9, 100) == ["a/b"]
    assert (retained.count, retained.expiring, retained.node_count) == (1, 0, 1)


def test_expiring_follows_replacement_and_removal() -> None:
    retained = Retained()
    retained.set("a", message("a", expires_at=5.0))
    retained.set("a", message("a", expires_at=6.0))
    assert retained.expiring == 1
    retained.set("a", message("a"))
    assert retained.expiring == 0
    retained.set("a", message("a", expires_at=5.0))
    retained.remove("a")
    assert (retained.expiring, retained.count) == (0, 0)


def test_sweep_goes_on_where_it_stopped_and_starts_again() -> None:
    retained = Retained()
    for number in range(100):
        topic = f"t/{number}"
        retained.set(topic, message(topic, expires_at=float(number + 1)))
    # Two roots, "t" and its hundred: eleven slices of ten make a round.
    swept = [len(retained.sweep(50.0, 10)) for _ in range(11)]
    assert sum(swept) == 50
    assert max(swept) <= 10
    assert retained.count == 50
    again = [len(retained.sweep(1000.0, 10)) for _ in range(7)]
    assert sum(again) == 50
    assert retained.count == 0


def test_sweep_costs_nothing_while_nothing_can_expire() -> None:
    retained = Retained()
    retained.set("a/b", message("a/b", expires_at=1.0))
    keep(retained, "a/c", "a/d")
    assert retained.sweep(0.5, 3) == []
    retained.remove("a/b")
    assert retained.sweep(2.0, 3) == []
    # The round that was under way is not resumed: the next one begins at the roots.
    retained.set("a", message("a", expires_at=3.0))
    assert retained.sweep(3.0, 3) == ["a"]


levels = st.sampled_from(["", "a", "b", "$a"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
filters = (
    st.tuples(st.lists(st.one_of(levels, st.just("+")), max_size=4), st.booleans())
    .map(lambda parts: "/".join([*parts[0], "#"] if parts[1] else parts[0]))
    .filter(bool)
)
changes = st.lists(st.tuples(st.booleans(), topics), max_size=6)


@given(
    st.lists(topics, max_size=20),
    filters,
    st.lists(changes, max_size=10),
    st.integers(1, 3),
    st.sampled_from([1, 2, 512]),
)
def test_a_walk_among_changes(
    start: list[str],
    topic_filter: str,
    between: list[list[tuple[bool, str]]],
    steps: int,
    row_size: int,
) -> None:
    """What stays all the time is found once; what is found was there, as found, at that time."""
    retained = Retained(row_size)
    held: dict[str, Message] = {}
    for topic in start:
        held[topic] = message(topic)
        retained.set(topic, held[topic])
    stayed = set(held)
    found: list[str] = []
    cursor = retained.cursor(topic_filter)
    while not cursor.done:
        for one in cursor.take(steps):
            assert held[one.topic] is one
            found.append(one.topic)
        for adding, topic in between.pop() if between else []:
            previous = held.pop(topic, None)
            if adding:
                held[topic] = message(topic)
                assert retained.set(topic, held[topic]) is previous
            else:
                stayed.discard(topic)
                assert retained.remove(topic) is previous
    assert all(matches(topic_filter, topic) for topic in found)
    wanted = sorted(topic for topic in stayed if matches(topic_filter, topic))
    assert sorted(topic for topic in found if topic in stayed) == wanted
    assert retained.count == len(held)
    for topic in held:
        assert retained.get(topic) is held[topic]
        retained.remove(topic)
    assert retained.node_count == 0
