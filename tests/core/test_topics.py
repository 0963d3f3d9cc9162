"""Topic grammar, `$share` and the plain definition of matching."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.topics import (
    MAX_LEVELS,
    is_wildcard,
    matches,
    split_shared,
    validate_topic_filter,
    validate_topic_name,
)

VALID_NAMES = [
    "a",
    "/",
    "//",
    "/a",
    "a/",
    "a//b",
    " ",
    "a b/c d",
    "$SYS/broker/uptime",
    "$share",
    "a$/b",
    "/$a",
    "Zürich/Temperatur",
    "\ufeff",
    "\U0001f600/x",
    "__class__/{0}/%s/None",
    "\x01\x1f\x7f",
]
VALID_FILTERS = [
    *(name for name in VALID_NAMES if name != "$share"),
    "#",
    "+",
    "/#",
    "/+",
    "+/",
    "+/+",
    "+/#",
    "a/#",
    "a/+/b",
    "+//+",
    "$SYS/#",
    "$shared/g",
    "$SHARE/g",
    "$share/g/t",
    "$share/g/#",
    "$share/g/+/t",
    "$share/g//",
    "$share/g/$SYS/#",
    "$share/$share/t",
]


@pytest.mark.parametrize("topic", VALID_NAMES)
def test_valid_names(topic: str) -> None:
    # [MQTT-4.7.3-1] [MQTT-4.7.3-4] any text of at least one character, taken as it is
    validate_topic_name(topic)


@pytest.mark.parametrize("topic_filter", VALID_FILTERS)
def test_valid_filters(topic_filter: str) -> None:
    validate_topic_filter(topic_filter)


@pytest.mark.parametrize(
    ("topic", "clause"),
    [
        ("", "MQTT-4.7.3-1"),
        ("a\0b", "MQTT-4.7.3-2"),
        ("a" * 65536, "MQTT-4.7.3-3"),
        ("ü" * 32768, "MQTT-4.7.3-3"),
        ("a/\ud800", "MQTT-4.7.3-3"),
        ("#", "MQTT-4.7.0-1"),
        ("+", "MQTT-4.7.0-1"),
        ("a/#", "MQTT-4.7.0-1"),
        ("a/+/b", "MQTT-4.7.0-1"),
        ("a+", "MQTT-4.7.0-1"),
        ("a/b#c", "MQTT-4.7.0-1"),
    ],
)
def test_invalid_names(topic: str, clause: str) -> None:
    # [MQTT-4.7.0-1] [MQTT-3.3.2-2] [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.7.3-3]
    with pytest.raises(ProtocolError) as caught:
        validate_topic_name(topic)
    assert (caught.value.code, caught.value.clause) == (spec.TOPIC_NAME_INVALID, clause)


@pytest.mark.parametrize(
    ("topic_filter", "clause"),
    [
        ("", "MQTT-4.7.3-1"),
        ("a\0b", "MQTT-4.7.3-2"),
        ("a" * 65536, "MQTT-4.7.3-3"),
        ("ü" * 32768, "MQTT-4.7.3-3"),
        ("a/\ud800", "MQTT-4.7.3-3"),
        ("#/", "MQTT-4.7.1-1"),
        ("#/a", "MQTT-4.7.1-1"),
        ("a/#/b", "MQTT-4.7.1-1"),
        ("a#", "MQTT-4.7.1-1"),
        ("a/b#", "MQTT-4.7.1-1"),
        ("##", "MQTT-4.7.1-1"),
        ("#/#", "MQTT-4.7.1-1"),
        ("+#", "MQTT-4.7.1-1"),
        ("a+", "MQTT-4.7.1-2"),
        ("+a/b", "MQTT-4.7.1-2"),
        ("a/b+/c", "MQTT-4.7.1-2"),
        ("++", "MQTT-4.7.1-2"),
        ("$share/g/a+", "MQTT-4.7.1-2"),
        ("$share/g/#/a", "MQTT-4.7.1-1"),
    ],
)
def test_invalid_filters(topic_filter: str, clause: str) -> None:
    # [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.7.3-3]
    with pytest.raises(ProtocolError) as caught:
        validate_topic_filter(topic_filter)
    assert (caught.value.code, caught.value.clause) == (spec.TOPIC_FILTER_INVALID, clause)


@pytest.mark.parametrize("validate", [validate_topic_name, validate_topic_filter])
def test_the_longest_topic_is_valid(validate: Callable[[str], None]) -> None:
    # [MQTT-4.7.3-3]
    validate("a" * 65535)
    validate("ü" * 32767 + "a")


@pytest.mark.parametrize("validate", [validate_topic_name, validate_topic_filter])
def test_levels_are_bounded(validate: Callable[[str], None]) -> None:
    validate("/" * (MAX_LEVELS - 1))
    for topic in ("/" * MAX_LEVELS, "/" * 65535, "a/" * 32767):
        with pytest.raises(ProtocolError, match="too many levels"):
            validate(topic)


def test_the_bound_of_levels_can_be_chosen() -> None:
    validate_topic_name("a/b", 2)
    validate_topic_filter("+/#", 2)
    validate_topic_filter("$share/g/+/#", 2)
    with pytest.raises(ProtocolError, match="too many levels"):
        validate_topic_name("a/b/c", 2)
    with pytest.raises(ProtocolError, match="too many levels"):
        validate_topic_filter("$share/g/a/b/#", 2)


@pytest.mark.parametrize(
    ("topic_filter", "parts"),
    [
        ("a", ("", "a")),
        ("a/$share/b", ("", "a/$share/b")),
        ("$SYS/#", ("", "$SYS/#")),
        ("$shared/g/t", ("", "$shared/g/t")),
        ("$share/g/t", ("g", "t")),
        ("$share/g/t/#", ("g", "t/#")),
        ("$share/g//", ("g", "/")),
        ("$share/g//t", ("g", "/t")),
        ("$share/g/$share/h/t", ("g", "$share/h/t")),
        ("$share/ /t", (" ", "t")),
        ("$share/None/t", ("None", "t")),
    ],
)
def test_split_shared(topic_filter: str, parts: tuple[str, str]) -> None:
    assert split_shared(topic_filter) == parts


@pytest.mark.parametrize(
    ("topic_filter", "clause"),
    [
        ("$share", "MQTT-4.8.2-1"),
        ("$share/", "MQTT-4.8.2-1"),
        ("$share//", "MQTT-4.8.2-1"),
        ("$share//t", "MQTT-4.8.2-1"),
        ("$share/g", "MQTT-4.8.2-2"),
        ("$share/g/", "MQTT-4.8.2-2"),
        ("$share/a+/t", "MQTT-4.8.2-2"),
        ("$share/+/t", "MQTT-4.8.2-2"),
        ("$share/#/t", "MQTT-4.8.2-2"),
        ("$share/#", "MQTT-4.8.2-2"),
        ("$share/a#b/t", "MQTT-4.8.2-2"),
    ],
)
def test_malformed_shared_filters(topic_filter: str, clause: str) -> None:
    # [MQTT-4.8.2-1] [MQTT-4.8.2-2]
    for check in (split_shared, validate_topic_filter):
        with pytest.raises(ProtocolError) as caught:
            check(topic_filter)
        assert (caught.value.code, caught.value.clause) == (spec.TOPIC_FILTER_INVALID, clause)


def test_is_wildcard() -> None:
    assert is_wildcard("#")
    assert is_wildcard("a/+/b")
    assert not is_wildcard("a/b")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a", "a", True),
        ("a", "A", False),
        ("a", "a/", False),
        ("a/", "a", False),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("/", "/", True),
        ("/", "//", False),
        ("+", "a", True),
        ("+", " ", True),
        ("+", "a/b", False),
        ("+", "/", False),
        ("+", "/a", False),
        ("/+", "/a", True),
        ("+/+", "/a", True),
        ("+/+", "/", True),
        ("+/", "a/", True),
        ("+/", "a/b", False),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+/c", "a//c", True),
        ("#", "a", True),
        ("#", "/", True),
        ("#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("/#", "/", True),
        ("/#", "a", False),
        ("+/#", "a", True),
        ("a/+/#", "a", False),
        ("a/+/#", "a/b", True),
        # [MQTT-4.7.2-1] wildcards in front do not reach topics that begin with "$"
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("+", "$x", False),
        ("+/#", "$SYS", False),
        ("$SYS/#", "$SYS/x", True),
        ("$SYS/#", "$SYS", True),
        ("$SYS/+", "$SYS/x", True),
        ("$x", "$x", True),
        ("a/+", "a/$x", True),
        ("#", "a/$x", True),
        ("+", "x$", True),
        # [MQTT-4.7.3-4] no normalisation: one letter against letter and combining mark
        ("caf\u00e9", "cafe\u0301", False),
        ("\ufeffa", "a", False),
        # What would be special to a regular expression is not.
        ("a.c", "abc", False),
        (".*", "a", False),
        ("[a]", "a", False),
    ],
)
def test_matches(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


def as_pattern(topic_filter: str) -> str:
    """The filter as a regular expression: a second opinion, written quite differently."""
    body = "/".join(
        "[^/]*" if level == "+" else re.escape(level)
        for level in topic_filter.removesuffix("#").split("/")
    )
    if topic_filter.endswith("/#"):
        body = body.removesuffix("/") + "(/.*)?"
    elif topic_filter == "#":
        body = ".*"
    guard = r"(?!\$)" if topic_filter[0] in "+#" else ""
    return guard + body


levels = st.sampled_from(["", "a", "b", "$a", "a.b"])
filter_levels = st.one_of(levels, st.just("+"))
topics = st.lists(levels, min_size=1, max_size=5).map("/".join).filter(bool)
filters = (
    st.tuples(st.lists(filter_levels, max_size=5), st.booleans())
    .map(lambda parts: "/".join([*parts[0], "#"] if parts[1] else parts[0]))
    .filter(bool)
)


@given(filters, topics)
def test_matches_agrees_with_a_regular_expression(topic_filter: str, topic: str) -> None:
    validate_topic_filter(topic_filter)
    validate_topic_name(topic)
    expected = re.fullmatch(as_pattern(topic_filter), topic, re.DOTALL) is not None
    assert matches(topic_filter, topic) is expected


def is_refused(text: str) -> bool:
    try:
        validate_topic_filter(text)
    except ProtocolError:
        return True
    return False


@given(st.text(alphabet="$share/+#a\0\ud800", max_size=20))
def test_whatever_is_accepted_has_an_inner_filter_of_its_own(text: str) -> None:
    if not is_refused(text):
        group, inner = split_shared(text)
        assert inner
        assert not is_wildcard(group)
