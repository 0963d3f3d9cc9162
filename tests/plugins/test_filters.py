"""The algebra of filters against its definition: every topic of a small world, one by one."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._filters import Chosen, covers, fits, intersection, levels_of, text_of

from mqttd.api import matches, validate_topic_filter

WORDS = ("a", "b", "", "$s")
TOPICS = [
    topic
    for length in range(1, 5)
    for topic in map("/".join, product(WORDS, repeat=length))
    if topic
]
LEVEL = st.sampled_from(("a", "b", "", "$s", "+"))


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(LEVEL, min_size=0, max_size=3))
    if draw(st.booleans()) or not "/".join(levels):
        levels.append("#")
    text = "/".join(levels)
    validate_topic_filter(text)
    return text


def held(topic_filter: str) -> set[str]:
    return {topic for topic in TOPICS if matches(topic_filter, topic)}


@given(filters(), filters())
def test_the_intersection_is_the_filter_of_what_both_hold(one: str, other: str) -> None:
    common = intersection(levels_of(one), levels_of(other))
    expected = held(one) & held(other)
    assert (set() if common is None else held(text_of(common))) == expected
    assert common == intersection(levels_of(other), levels_of(one))


@given(filters(), filters())
def test_a_filter_covers_another_if_it_holds_all_of_its_topics(one: str, other: str) -> None:
    assert covers(levels_of(one), levels_of(other)) == (held(other) <= held(one))


@given(filters(), st.sampled_from(TOPICS))
def test_a_topic_fits_as_the_broker_matches_it(one: str, topic: str) -> None:
    assert fits(levels_of(one), topic.split("/"), topic.startswith("$")) == matches(one, topic)


@given(st.lists(filters(), max_size=6), st.sampled_from(TOPICS))
def test_the_first_that_fits_is_found(many: list[str], topic: str) -> None:
    chosen = Chosen((levels_of(text), place) for place, text in enumerate(many))
    expected = next((place for place, text in enumerate(many) if matches(text, topic)), None)
    assert chosen.first(topic) == expected


def test_all_topics_have_two_spellings_and_a_parent_is_held_by_its_subtree() -> None:
    assert levels_of("#") == levels_of("+/#")
    assert intersection(levels_of("a/#"), levels_of("+")) == ("a",)
    assert intersection(levels_of("#"), levels_of("$SYS/x")) is None
