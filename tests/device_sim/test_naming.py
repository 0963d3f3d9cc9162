"""Templates, tags, and the simulator's own rules of which filter fits a topic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.language.naming import Filters, Names, Template, deal, filter_fault, topic_fault
from mqttd.core.topics import matches, validate_topic_filter

VALUES: dict[str, str | int] = {"index": 7, "group": "g", "line": 300}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{group}-{index:05d}", "g-00007"),
        ("{index}/{line:x}", "7/12c"),
        ("a{{{index}}}b", "a{7}b"),
        ("{index:3}|", "  7|"),
        ("", ""),
    ],
)
def test_templates(text: str, expected: str) -> None:
    assert Template(text).render(VALUES) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "}",
        "a}b",
        "{}",
        "{0}",
        "{index!r}",
        "{index.real}",
        "{index[0]}",
        "{index:>5}",
        "{a b}",
    ],
)
def test_nothing_else_of_the_format_language(text: str) -> None:
    with pytest.raises(ValueError, match="at character"):
        Template(text)


def test_a_text_has_no_decimal_form() -> None:
    with pytest.raises(ValueError, match="format code"):
        Template("{group:d}").render(VALUES)


def test_parts() -> None:
    assert Template("{a}/{b:02d}/{a}").parts == {"a", "b"}


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 200))
def test_every_combination_of_tags_comes_up_before_one_repeats(m: int, n: int, start: int) -> None:
    tags: dict[str, int | list[str]] = {"room": [f"r{i}" for i in range(m)], "home": n}
    dealt = [tuple(deal(tags, index).values()) for index in range(start, start + m * n)]
    assert len(set(dealt)) == m * n
    assert deal(tags, start) == deal(tags, start + m * n)


def test_the_first_tag_is_the_fastest() -> None:
    tags: dict[str, int | list[str]] = {"room": ["hall", "bath"], "home": 100}
    assert [deal(tags, index) for index in range(3)] == [
        {"room": "hall", "home": 0},
        {"room": "bath", "home": 0},
        {"room": "hall", "home": 1},
    ]


def test_names_of_a_device() -> None:
    names = Names("0a", "lamp", 3, Template("{run}-{group}-{room}"), {"room": ["a", "b"]})
    assert names.client_id == "0a-lamp-b"
    assert names.render(Template("x/{id}/{n}"), {"n": 1}) == "x/0a-lamp-b/1"
    assert names.as_target({"room": ["a", "b"]}) == {
        "target": "0a-lamp-b",
        "target_index": 3,
        "target_room": "b",
    }


levels = st.lists(st.sampled_from(["a", "b", "", "$x", "$SYS"]), min_size=1, max_size=4)
filter_levels = st.lists(st.sampled_from(["a", "b", "", "+", "$x", "$SYS"]), min_size=0, max_size=4)


@given(st.lists(st.tuples(filter_levels, st.booleans()), max_size=8), levels)
def test_the_matcher_agrees_with_the_brokers(
    patterns: list[tuple[list[str], bool]], topic_levels: list[str]
) -> None:
    topic = "/".join(topic_levels)
    filters: Filters[int] = Filters()
    expected = []
    for at, (names, open_end) in enumerate(patterns):
        pattern = "/".join([*names, "#"] if open_end or not names else names)
        filters.add(pattern, at)
        if matches(pattern, topic):
            expected.append(at)
    assert sorted(filters.match(topic)) == expected


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a/b", ""),
        ("a/+", "has a wildcard"),
        ("#", "has a wildcard"),
        ("$SYS/x", "the broker's"),
        ("", "is empty"),
        ("a\0", "NUL"),
        ("\ud800", "no valid text"),
        ("a" * 65536, "65536 bytes"),
    ],
)
def test_topics(name: str, fault: str) -> None:
    assert fault in topic_fault(name)
    assert bool(topic_fault(name)) == bool(fault)


@given(st.text("a+#/$", max_size=6))
def test_filters_are_judged_as_the_broker_judges_them(pattern: str) -> None:
    try:
        validate_topic_filter(pattern)
        good = True
    except Exception:
        good = False
    assert (filter_fault(pattern) == "") == good


def test_shared_subscriptions_are_written_otherwise() -> None:
    assert "share" in filter_fault("$share/g/a")
