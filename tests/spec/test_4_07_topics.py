"""Topic names and filters (4.7) through the broker: what a subscription receives and what not."""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Disconnect, Filter, Suback, Subscribe
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    MALFORMED,
    each_version,
    messages,
    payloads,
    publish,
    refused,
    send_publish,
    settings,
)

MATCHES = (
    ("sport/tennis/player1", "sport/tennis/player1"),
    ("sport/tennis/player1/#", "sport/tennis/player1"),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
    ("sport/#", "sport"),
    ("sport/#", "sport/"),
    ("sport/#", "sport//"),
    ("#", "sport"),
    ("#", "/"),
    ("#", "/a/b"),
    ("#", "a/$b"),
    ("+", "sport"),
    ("+/+", "/finance"),
    ("/+", "/finance"),
    ("+/", "a/"),
    ("+/#", "a"),
    ("+/#", "a/b/c"),
    ("+/#", "/"),
    ("/#", "/"),
    ("/#", "/a/b"),
    ("+/+/+", "//"),
    ("a//b", "a//b"),
    ("a/+/b", "a//b"),
    ("a/+/#", "a/"),
    ("+/tennis/#", "sport/tennis"),
    ("sport/+/player1", "sport/tennis/player1"),
    ("sport/+", "sport/"),
    ("$SYSTEM/#", "$SYSTEM/a"),
    ("$SYSTEM/+", "$SYSTEM/a"),
    ("$SYSTEM/#", "$SYSTEM"),
    ("$a", "$a"),
    ("a/+", "a/$b"),
    (" ", " "),
    ("a b/ c", "a b/ c"),
    ("ACCOUNTS", "ACCOUNTS"),
    ("\ufeffa", "\ufeffa"),
    ("A\u030a/\U0002a6d4", "A\u030a/\U0002a6d4"),
    ("+", "\ufffe"),
)

MISSES = (
    ("sport/tennis/player1", "sport/tennis/player2"),
    ("sport/#", "sports"),
    ("sport/#", "sportx/tennis"),
    ("sport/tennis/#", "sport"),
    ("sport/+", "sport"),
    ("sport/+", "sport/tennis/player1"),
    ("sport/tennis/+", "sport/tennis/player1/ranking"),
    ("+", "/finance"),
    ("+", "a/"),
    ("+", "a/b"),
    ("+/", "a"),
    ("/+", "finance"),
    ("+/+", "a"),
    ("a/b", "a/b/"),
    ("a/b/", "a/b"),
    ("a/b", "/a/b"),
    ("/a", "a"),
    ("a//b", "a/b"),
    ("#", "$SYSTEM/a"),
    ("+/a", "$SYSTEM/a"),
    ("+", "$a"),
    ("#", "$"),
    ("+/#", "$SYSTEM/a"),
    ("+/monitor/#", "$SYSTEM/monitor/Clients"),
    ("ACCOUNTS", "Accounts"),
    ("\u00c5", "A\u030a"),
    ("a", "\ufeffa"),
    ("a", "a "),
    ("\ufb01", "fi"),
)


def flt(topic_filter: str) -> Filter:
    return Filter(topic_filter, 0, False, False, 0)


@each_version
@pytest.mark.parametrize(("topic_filter", "topic"), MATCHES)
def test_filter_receives_the_topic(version: int, topic_filter: str, topic: str) -> None:
    # [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-4] [MQTT-1.5.4-3] [MQTT-3.3.2-3]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe(topic_filter)
    send_publish(h.client("pub", version=version), topic, b"m")
    assert [(m.topic, m.payload) for m in messages(sub)] == [(topic, b"m")]


@each_version
@pytest.mark.parametrize(("topic_filter", "topic"), MISSES)
def test_filter_does_not_receive_the_topic(version: int, topic_filter: str, topic: str) -> None:
    # [MQTT-4.7.2-1] [MQTT-4.7.3-4] [MQTT-1.5.4-3] [MQTT-4.7.0-1]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe(topic_filter)
    send_publish(h.client("pub", version=version), topic, b"m")
    assert messages(sub) == []


def test_many_filters_match_as_each_would_alone() -> None:
    # [MQTT-4.7.1-1] [MQTT-4.7.1-2]
    h = Harness()
    subs: dict[str, FakeClient] = {}
    for topic_filter in sorted({f for f, _ in MATCHES + MISSES}):
        subs[topic_filter] = h.client(f"c{len(subs)}")
        subs[topic_filter].subscribe(topic_filter)
    pub = h.client("pub")
    expected: dict[str, list[bytes]] = {}
    for n, topic in enumerate(sorted({t for _, t in MATCHES})):
        send_publish(pub, topic, bytes([n]))
        for topic_filter in subs:
            if (topic_filter, topic) in MATCHES:
                expected.setdefault(topic_filter, []).append(bytes([n]))
    for topic_filter, c in subs.items():
        got = payloads(c)
        assert set(expected.get(topic_filter, [])) <= set(got), topic_filter
        assert len(got) == len(set(got)), topic_filter


@each_version
def test_hash_subscriber_may_also_ask_for_a_dollar_topic(version: int) -> None:
    # [MQTT-4.7.2-1]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    sub.subscribe("$other/#")
    pub = h.client("pub", version=version)
    send_publish(pub, "$other/a", b"dollar")
    send_publish(pub, "plain", b"plain")
    assert payloads(sub) == [b"dollar", b"plain"]


@each_version
def test_topic_of_the_greatest_length_is_delivered(version: int) -> None:
    # [MQTT-4.7.3-3]
    h = Harness()
    topic = "x" * 65535
    sub = h.client("sub", version=version)
    sub.subscribe(topic)
    send_publish(h.client("pub", version=version), topic, b"m")
    assert [m.topic == topic for m in messages(sub)] == [True]


@each_version
@pytest.mark.parametrize("kind", ["PUBLISH", "SUBSCRIBE"])
def test_too_many_levels_are_refused(version: int, kind: str) -> None:
    # [MQTT-4.7.3-3]
    h = Harness(settings(max_topic_levels=10))
    c = h.client("c", version=version)
    deep = "/".join("x" * 11)
    if kind == "PUBLISH":
        send_publish(c, deep)
        refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))
        return
    c.send(Subscribe(1, [flt(deep)]))
    for p in c.recv():
        if isinstance(p, Suback):
            assert p.reasons == [spec.TOPIC_FILTER_INVALID if version == 5 else 0x80]
        elif isinstance(p, Disconnect):
            assert p.reason in (*MALFORMED, spec.TOPIC_FILTER_INVALID)
    send_publish(h.client("pub"), "x")
    assert messages(c) == []


@each_version
def test_allowed_number_of_levels_is_served(version: int) -> None:
    # [MQTT-4.7.3-3]
    h = Harness(settings(max_topic_levels=10))
    c = h.client("c", version=version)
    deep = "/".join("x" * 10)
    c.subscribe(deep)
    send_publish(h.client("pub"), deep, b"m")
    assert payloads(c) == [b"m"]


@each_version
def test_subscriptions_made_after_a_publish_do_not_change_it(version: int) -> None:
    h = Harness()
    early = h.client("early", version=version)
    early.subscribe("a/b")
    pub = h.client("pub", version=version)
    send_publish(pub, "a/b", b"1")
    late = h.client("late", version=version)
    late.subscribe("a/+")
    send_publish(pub, "a/b", b"2")
    assert payloads(early) == [b"1", b"2"]
    assert payloads(late) == [b"2"]


@each_version
@pytest.mark.parametrize("name", ["__class__", "{0}", "%s", "None", "\\", "'", "../..", "\n"])
def test_odd_names_are_ordinary_strings(version: int, name: str) -> None:
    # [MQTT-4.7.3-4]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe(name)
    publish(h.client("pub"), name, b"m")
    assert [(m.topic, m.payload) for m in messages(c)] == [(name, b"m")]
