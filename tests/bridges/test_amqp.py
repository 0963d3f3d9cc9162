"""MQTT 5 as AMQP properties and back; what of it RabbitMQ may not act on."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp import block_of, message_of, properties_of, routing_key
from mqttd_plugins._bridge.remote import Item, Poison
from mqttd_plugins.bridge_rabbitmq import RabbitRule

from mqttd.api import Message, MessageProperties
from tests.bridges.faces import item

RULE = RabbitRule.model_validate({"direction": "out", "from": "#"})
WALL = 1_700_000_000.0
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
WORDS = TEXTS | st.sampled_from(["CC", "x-death", "mqtt-topic", "content-type", "mqtt-user-a"])


def arrives(properties: dict[str, Any], key: str = "k") -> Message:
    """What comes back of it, as if a queue had held it."""
    found = wire.Properties()
    vars(found).update(properties)
    return message_of(key, b"x", found, WALL)[0]


def user_of(one: Message) -> list[tuple[str, str]]:
    ours = ("mqttd-id", "mqttd-via")
    return [pair for pair in one.properties.user_properties if pair[0] not in ours]


@given(
    user=st.lists(st.tuples(WORDS, WORDS), max_size=5),
    content_type=st.none() | TEXTS,
    correlation=st.none() | st.binary(min_size=1, max_size=300),
    response=st.none() | st.sampled_from(["a", "a/b", "ü" * 200]),
    expires=st.none() | st.integers(1, 10**6),
)
def test_properties_come_back_as_they_went(
    user: list[tuple[str, str]],
    content_type: str | None,
    correlation: bytes | None,
    response: str | None,
    expires: int | None,
) -> None:
    sent = item(
        RULE,
        user_properties=tuple(user),
        content_type=content_type or None,
        correlation_data=correlation,
        response_topic=response,
        expires_in_s=expires,
    )
    back = arrives(properties_of(sent, WALL))
    assert user_of(back) == user
    assert back.properties.content_type == (content_type or None)
    assert back.properties.correlation_data == correlation
    assert back.properties.response_topic == response
    assert back.expires_in_s == pytest.approx(expires) if expires else back.expires_in_s is None


@given(
    topic=st.sampled_from(["a/b", "ü/ü", "t" * 600]),
    client_id=st.sampled_from(["", "one", "c" * 600]),
    via=st.sampled_from(["", "o,p"]),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    rule=st.sampled_from([RULE, RULE.model_copy(update={"retain": False, "payload": "envelope"})]),
    user=st.sampled_from([(), (("a", "1"),)]),
    more=st.sampled_from([(), (("b", "2"),)]),
    expires=st.none() | st.just(9.0),
)
def test_the_short_way_leads_where_the_long_one_does(
    topic: str,
    client_id: str,
    via: str,
    qos: int,
    retain: bool,
    rule: RabbitRule,
    user: tuple[tuple[str, str], ...],
    more: tuple[tuple[str, str], ...],
    expires: float | None,
) -> None:
    properties = MessageProperties(user_properties=user)
    message = Message(topic, b"x", qos, retain, properties, expires, client_id)
    made = Item(1, rule, message, id="o-1-1", via=via, target="t", key="k", headers=more)
    header = wire.content_header(1, 1, block_of(made, WALL))
    read = wire.content_from(header[7:-1])[1]
    assert vars(read) == properties_of(made, WALL)


def test_an_id_that_a_publisher_made_too_long_is_poison() -> None:
    for length, fits in ((255, True), (256, False)):
        properties = MessageProperties(user_properties=(("mqttd-id", "i" * length),))
        message = Message("a", b"x", 1, properties=properties)
        made = Item(1, RULE, message, id="i" * length, target="a", key="a")
        if fits:
            assert block_of(made, WALL)
        else:
            with pytest.raises(Poison, match="its mqttd-id has 256 bytes, and AMQP takes 255"):
                block_of(made, WALL)


def test_what_amqp_has_a_place_for_stands_there() -> None:
    sent = item(RULE, content_type="a/b", correlation_data=b"c", expires_in_s=1.5)
    made = properties_of(sent, WALL)
    assert made["content_type"] == "a/b"
    assert made["correlation_id"] == "c"
    assert made["expiration"] == "1500"
    assert made["message_id"] == made["headers"]["mqttd-id"] == "o-1-1"
    assert made["delivery_mode"] == 2
    assert made["headers"]["mqtt-topic"] == "a/b"
    assert properties_of(item(RULE, qos=0), WALL)["delivery_mode"] == 1


@pytest.mark.parametrize("name", ["CC", "BCC", "x-death", "x-delay", "x-mqtt-user-properties"])
def test_a_publisher_can_not_use_what_means_something_to_rabbitmq(name: str) -> None:
    sent = item(RULE, user_properties=((name, "elsewhere"),), headers=((name, "mine"),))
    table = properties_of(sent, WALL)["headers"]
    assert table[f"mqtt-user-{name}"] == "elsewhere"
    assert table[name] == "mine"  # of the rule, so of the operator


def test_names_that_amqp_can_not_hold_are_in_the_list() -> None:
    long = "n" * 300
    table = properties_of(item(RULE, user_properties=((long, "v"),)), WALL)["headers"]
    assert long not in table
    assert user_of(arrives({"headers": table})) == [(long, "v")]


def test_a_routing_key_has_dots_and_at_most_255_bytes() -> None:
    def key(topic: str, slashes: bool = False) -> str:
        made: Item = item(RULE, topic=topic)
        return routing_key(made, slashes=slashes)

    assert key("a/b/c") == "a.b.c"
    assert key("a/b/c", slashes=True) == "a/b/c"
    assert key("ü" * 127) == "ü" * 127
    with pytest.raises(Poison, match="256 bytes"):
        key("ü" * 128)


def test_headers_of_other_publishers_become_text() -> None:
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    table = {
        "n": 7,
        "yes": True,
        "none": None,
        "raw": b"\xff",
        "when": when,
        "price": decimal.Decimal("1.5"),
        "x-death": [{"queue": "q", "count": 2, "time": when, "price": decimal.Decimal(1)}],
    }
    got = dict(user_of(arrives({"headers": table, "app_id": "a", "reply_to": "r"})))
    assert got["n"] == "7"
    assert got["yes"] == "true"
    assert got["none"] == "null"
    assert got["raw"] == "\N{REPLACEMENT CHARACTER}"
    assert got["when"] == "2026-01-02T00:00:00+00:00"
    assert got["price"] == "1.5"
    assert got["x-death"].startswith('[{"queue":"q","count":2,"time":"2026-01-02T')
    assert (got["amqp-app-id"], got["amqp-reply-to"]) == ("a", "r")


@pytest.mark.parametrize(
    ("sent", "arrived"),
    [
        (b"\xff", b"\xff"),
        ("text", b"text"),
        (-1, b"-1"),
        (2**62, b"4611686018427387904"),
        ([300, 1], b"[300,1]"),
        (1.5, b"1.5"),
        ({"a": None}, b'{"a":null}'),
        (None, None),
        (b"x" * 65535, b"x" * 65535),
        (b"x" * 65536, None),
    ],
)
def test_correlation_data_of_other_publishers_may_be_anything(
    sent: object, arrived: bytes | None
) -> None:
    back = arrives({"headers": {"x-correlation-id": sent}})
    assert back.properties.correlation_data == arrived
    assert user_of(back) == []


def test_what_no_mqtt_property_can_hold_is_left_out() -> None:
    table = {"nul": "a\0b", "long": "x" * 65536, "good": "1", "x-mqtt-user-properties": "no JSON"}
    assert user_of(arrives({"headers": table})) == [("good", "1")]


def test_the_list_of_user_properties_can_not_pose_as_ours() -> None:
    listed = '[["mqttd-via","x"],["mqtt-topic","y"],["a","1"]]'
    back = arrives({"headers": {"x-mqtt-user-properties": listed}})
    assert back.properties.user_properties == (("a", "1"),)


def test_what_lives_longer_than_rabbitmq_counts_has_its_end_in_a_header_alone() -> None:
    for left_s, expiration in ((4294967.0, "4294967000"), (4294968.0, None)):
        made = properties_of(item(RULE, expires_in_s=left_s), WALL)
        assert made.get("expiration") == expiration
        assert made["headers"]["mqtt-expires-at"] == str(int((WALL + left_s) * 1000))


@pytest.mark.parametrize(("expiration", "left"), [("1500", 1.5), ("0", 0.0), ("soon", None)])
def test_expiration_of_other_publishers(expiration: str, left: float | None) -> None:
    assert arrives({"expiration": expiration}).expires_in_s == left


def test_the_topic_is_the_routing_key_with_slashes() -> None:
    assert arrives({}, "a.b.c").topic == "a/b/c"
