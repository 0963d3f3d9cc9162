"""The small parts of bridges: templates, rules and their loops, lanes, properties, dead letters."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._bridge.dead_letters import plain
from mqttd_plugins._bridge.identity import hops_of, stamped, via_with
from mqttd_plugins._bridge.lanes import Lanes
from mqttd_plugins._bridge.properties import (
    all_of,
    envelope_of,
    headers_of,
    message_from,
    once_each,
    opened,
    text_of,
)
from mqttd_plugins._bridge.remote import Item, Poison, Refused
from mqttd_plugins._bridge.rules import BridgeConfig, Rule, function, loops, overlap, placed
from mqttd_plugins._bridge.template import INWARD, OUTWARD, Template, Unfit, Values

from mqttd.api import Message, MessageProperties, matches
from tests.bridges.kit import back, out

WALL = 1_700_000_000.0


def message(topic: str = "a/b/c", user: Any = (), client_id: str = "dev") -> Message:
    properties = MessageProperties(user_properties=tuple(user))
    return Message(topic, b"x", 1, properties=properties, client_id=client_id)


# Templates.


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{topic}", "a/b/c"),
        ("{topic[1]}", "b"),
        ("x/{topic[1:]}", "x/b/c"),
        ("x/{topic[3:]}", "x/"),
        ("q-{client_id}-{property[site]}", "q-dev-1"),
        ("{id}", "i-1"),
        ("plain", "plain"),
    ],
)
def test_a_template_is_filled_in(text: str, filled: str) -> None:
    values = Values(message(user=[("site", "1"), ("site", "2")]), "i-1")
    assert Template(text, OUTWARD, 3).fill(values) == filled
    assert Template(text, OUTWARD, 3).target(values) == filled


def test_a_template_inward_knows_keys_and_headers() -> None:
    values = Values(message(), "", "k/1", {"h": "v/2"})
    assert Template("{key}/{header[h]}", INWARD).target(values) == "k/1/v/2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{topic[3]}", "promises 3 levels"),
        ("{topic[4:]}", "promises 3 levels"),
        ("{key}", "unknown here"),
        ("{what}", "unknown here"),
        ("{topic", "a brace without its partner"),
        ("topic}", "a brace without its partner"),
    ],
)
def test_a_template_that_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Template(text, OUTWARD, 3)


@pytest.mark.parametrize("name", ["a/b", "+", "#", "a\0"])
def test_what_a_publisher_is_called_makes_no_levels_and_no_wildcards(name: str) -> None:
    with pytest.raises(Unfit, match="holds a wildcard or a level separator"):
        Template("x/{client_id}", OUTWARD).target(Values(message(client_id=name)))


@pytest.mark.parametrize(
    ("text", "of", "said"),
    [
        ("x/{client_id}", message(client_id=""), "{client_id} is empty"),
        ("x/{property[p]}", message(), "no user property 'p'"),
        ("x/{topic[7]}", message(), "no level 7"),
        ("{property[p]}/x", message(user=[("p", "$SYS")]), "begin with"),
        ("{topic[3:]}", message(), "the target is empty"),
    ],
)
def test_a_message_without_what_a_target_needs(text: str, of: Message, said: str) -> None:
    with pytest.raises(Unfit, match=said):
        Template(text, OUTWARD).target(Values(of))


LEVEL = st.sampled_from(["a", "b", ""])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = st.builds(
    lambda levels, last: "/".join([*levels, *last]),
    st.lists(st.sampled_from(["a", "b", "+", ""]), min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
).filter(bool)


@given(FILTER, TOPIC, st.sampled_from(["{topic}", "p/{topic}", "p/{topic[1:]}", "p/{topic[0]}/x"]))
def test_the_cover_of_a_template_matches_whatever_it_makes(
    source: str, topic: str, text: str
) -> None:
    if matches(source, topic):
        cover = Template(text, OUTWARD).cover(source.split("/"))
        assert matches(cover, Template(text, OUTWARD).target(Values(message(topic))))


@given(FILTER, FILTER, TOPIC)
def test_filters_that_match_one_topic_overlap(one: str, other: str, topic: str) -> None:
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)
        assert overlap(other, one)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/#", "a", True),
        ("a/+", "+/b", True),
        ("a/+", "a/b/c", False),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/b", "a/b", True),
        ("a", "b", False),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


# Rules.


class Mqtt(Rule):
    SOURCE_IS_FILTER = True
    TARGET_IS_TOPIC = True


def test_rules_that_carry_a_message_round_are_found_with_their_places() -> None:
    trees = [out("a/#", "b/{topic[1:]}"), back("b/+", "a/{topic[1]}"), back("c", "d")]
    rules = [Mqtt.model_validate(tree) for tree in trees]
    placed(rules)
    (found,) = loops(rules)
    assert found.startswith("rules[0] and rules[1]: a loop: what goes out as 'b/#'")
    rules = [Mqtt.model_validate(tree) for tree in (out("a/#", "b/{topic}"), back("c/#", "a/x"))]
    assert loops(rules) == []


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (out("a/#/b"), "from: 'a/#/b' is no topic filter"),
        (out("$share/g/a"), "asked for by `share`"),
        (back(""), "from: empty"),
        (out("a/+", "{topic[2]}"), "to: {topic\\[2\\]}: the filter promises 2 levels"),
        (out("a", key="{what}"), "key: {what} is unknown"),
        (out("a", headers={"h": "{"}), "h: '{': a brace"),
        (out("a", ""), "to: empty"),
        (back("q", "a/+"), "holds a wildcard"),
        (back("q", "a", key="x"), "key: only rules with `direction: out`"),
        (back("q", "a", share="g"), "share: only rules with `direction: out`"),
        (out("a", share="a/b"), "share: expected the name of a group"),
        (out("a", function="nowhere"), "function: expected dotted.path:callable"),
    ],
)
def test_what_is_wrong_with_a_rule(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rule.model_validate(tree)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rules": []}, "rules: none"),
        ({"retry_first": 0}, "retry_first is above 0"),
        ({"connect_timeout": 0}, "connect_timeout is above 0"),
        ({"dead_letter": "a/#"}, "dead_letter: no topic"),
        ({"dead_letter": "a/b"}, r"dead_letter: rules\[0\] would take it out again"),
    ],
)
def test_what_is_wrong_with_a_bridge(more: dict[str, Any], said: str) -> None:
    rule = Rule.model_validate(out("a/#"))
    with pytest.raises(ValueError, match=said):
        BridgeConfig(**{"rules": [rule], **more})


def test_a_shared_rule_may_not_overlap_with_another() -> None:
    rules = [Rule.model_validate(tree) for tree in (out("a/b"), out("a/+", share="g"))]
    with pytest.raises(ValueError, match=r"rules\[1\]: with `share` .* overlap with rules\[0\]"):
        BridgeConfig(rules=rules)


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("no.such.module:f", r"rules\[1\].function: .*No module"),
        ("json:nothing", "no attribute 'nothing'"),
        ("json:__name__", "can't be called"),
    ],
)
def test_a_function_that_is_not_there(dotted: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        function(dotted, "rules[1]")


def test_refused_says_where() -> None:
    assert str(Refused("no queue q", "rules[2]")) == "rules[2]: no queue q"


# Lanes.


def item(seq: int, key: str = "k") -> Item:
    rule = Rule.model_validate(out("#"))
    return Item(seq, rule, message(), id=str(seq), target="t", key=key)


def test_lanes_keep_one_key_waiting_and_others_not() -> None:
    lanes = Lanes()
    for seq, key in ((1, "a"), (2, "a"), (3, "b"), (4, "a")):
        lanes.put(item(seq, key))
    first = lanes.take(2)
    assert [each.seq for each in first] == [1, 2]
    lanes.failed(first[0])
    assert [each.seq for each in lanes.take(9)] == [3]  # 4 waits behind 1
    lanes.release("a")
    assert lanes.take(9) == []  # 2 is still under way
    lanes.settled(first[1])
    (again,) = lanes.take(9)
    assert again.seq == 1
    assert lanes.take(9) == []  # alone
    lanes.settled(again)
    assert [each.seq for each in lanes.take(9)] == [4]


def test_lanes_forget_keys_that_have_nothing_left() -> None:
    lanes = Lanes()
    for seq in range(100):
        lanes.put(item(seq, str(seq)))
    for each in lanes.take(100):
        lanes.settled(each)
    assert (len(lanes), lanes.keys) == (0, 0)


@pytest.mark.parametrize("limit", [0, 1])
def test_lanes_send_again_in_the_first_order(limit: int) -> None:
    lanes = Lanes(limit)
    for seq in range(6):
        lanes.put(item(seq, "ab"[seq % 2]))
    lanes.take(9)
    lanes.lost()
    lanes.lost()
    seen: list[int] = []
    while some := lanes.take(9):
        for each in some:
            seen.append(each.seq)
            lanes.settled(each)
    for own in (seen[:], seen[:]):
        assert [seq for seq in own if seq % 2] == [1, 3, 5]
        assert [seq for seq in own if not seq % 2] == [0, 2, 4]


# Properties.

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
PROPERTIES = st.builds(
    MessageProperties,
    st.sampled_from([None, 0, 1]),
    st.none() | TEXT,
    st.none() | TEXT.filter(lambda text: text and not set("+#") & set(text)),
    st.none() | st.binary(max_size=8),
    st.lists(
        st.tuples(TEXT | st.sampled_from(["mqtt-topic", "content-type", "mqtt-user-x"]), TEXT),
        max_size=4,
    ).map(tuple),
)
MESSAGES = st.builds(
    Message,
    st.just("a/b"),
    st.binary(max_size=20),
    st.just(1),
    st.booleans(),
    PROPERTIES,
    st.sampled_from([None, 5.0, 1000.0]),
)


def an_item(of: Message, **more: Any) -> Item:
    rule = Rule.model_validate(out("#"))
    return Item(1, rule, of, id="i-1", via="h", target="t", key="k", **more)


def with_identity(of: Message) -> MessageProperties:
    return stamped(of.properties, "", "")


@given(MESSAGES)
def test_headers_and_back_are_the_same_message(of: Message) -> None:
    headers = headers_of(an_item(of), WALL)
    back_again = message_from("a/b", of.payload, headers, 1, WALL)
    kept = [pair for pair in back_again.properties.user_properties if pair[0] not in OURS]
    assert tuple(kept) == of.properties.user_properties
    assert ("mqttd-id", "i-1") in back_again.properties.user_properties
    assert back_again.replace(properties=of.properties) == of
    for name in ("payload_format_indicator", "content_type", "response_topic", "correlation_data"):
        assert getattr(back_again.properties, name) == getattr(of.properties, name)


OURS = ("mqttd-id", "mqttd-via")


@given(MESSAGES)
def test_an_envelope_and_back_is_the_same_message(of: Message) -> None:
    outer = Message("a/b", envelope_of(of, "i-1", "h", WALL), 1)
    found, headers = opened(outer, WALL)
    kept = [pair for pair in found.properties.user_properties if pair[0] not in OURS]
    assert tuple(kept) == of.properties.user_properties
    assert found.replace(properties=of.properties) == of
    assert headers["mqtt-topic"] == "a/b"
    assert hops_of(found.properties) == ["h"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"payload": 1}',
        b'{"payload_base64": "?"}',
        b'{"payload": "", "user_properties": [["a"]]}',
        b'{"payload": "", "user_properties": [["a", "\\ud800"]]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_envelope_is_poison(payload: bytes) -> None:
    with pytest.raises(Poison):
        opened(Message("t", payload), WALL)


def test_names_that_repeat_are_kept_as_a_list() -> None:
    headers = [("a", "1"), ("a", "2"), ("b", "3")]
    first, listed = once_each(headers)
    assert first == {"a": "1", "b": "3"}
    assert all_of(first, listed) == headers
    assert once_each(headers[1:]) == ({"a": "2", "b": "3"}, None)
    assert all_of({"a": "1"}, "no json") == [("a", "1")]
    assert all_of({"a": "1"}, '[["b","\\ud800"]]') == [("a", "1")]  # half a letter


def test_headers_that_make_no_sense_were_not_ours() -> None:
    headers = [("mqtt-retain", "maybe"), ("mqtt-expires-at", "soon"), ("mqtt-qos", "1")]
    found = message_from("q", b"", headers, 1, WALL)
    assert found.properties.user_properties == tuple(headers[:2])
    assert (found.retain, found.expires_in_s) == (False, None)


def test_texts() -> None:
    assert text_of(b"a b") == "a b"
    assert text_of(b"\xff") is text_of(b"a\0") is text_of(b"a\n") is None
    assert plain("a\nb\0" + "x" * 1000) == "a b " + "x" * 496
    assert via_with([], "a") == via_with(["a"], "a") == "a"
    assert via_with(["a"], "b") == "a,b"
