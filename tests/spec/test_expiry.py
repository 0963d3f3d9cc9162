"""Message Expiry Interval (3.3.2.3.3): counted down, kept in queues and on retained messages."""

import pytest

from mqttd.core.packets import Puback, Pubrec, Pubrel, Will
from tests.harness import Harness
from tests.spec.kit import (
    dropped,
    each_qos,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    send_publish,
    settings,
)


@each_qos
def test_expiry_is_forwarded_at_once_as_received(qos: int) -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    publish(h.client("pub"), "t", qos=qos, expiry=100)
    assert one(sub).message_expiry == 100


@pytest.mark.parametrize("expiry", [2**31, 2**32 - 1])
def test_large_expiry_is_forwarded(expiry: int) -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t")
    publish(h.client("pub"), "t", expiry=expiry)
    assert one(sub).message_expiry == expiry


def test_message_without_expiry_never_expires_and_gets_none() -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    sub = persistent(h, "sub", session_expiry_interval=1_000_000)
    sub.subscribe("t", qos=1)
    sub.drop()
    publish(h.client("pub"), "t", qos=1)
    h.advance(900_000)
    assert one(persistent(h, "sub")).message_expiry == -1


@pytest.mark.parametrize("waited", [1, 30, 99])
def test_time_in_the_queue_is_taken_off(waited: int) -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    sub = persistent(h, "sub")
    sub.subscribe("t", qos=1)
    sub.drop()
    publish(h.client("pub"), "t", qos=1, expiry=100)
    h.advance(waited)
    assert one(persistent(h, "sub")).message_expiry == 100 - waited


def test_expired_message_is_not_delivered_from_the_queue() -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    sub = persistent(h, "sub")
    sub.subscribe("t", qos=1)
    sub.drop()
    pub = h.client("pub")
    publish(pub, "t", b"short", qos=1, expiry=10)
    publish(pub, "t", b"long", qos=1, expiry=1000)
    h.advance(11)
    assert payloads(persistent(h, "sub")) == [b"long"]
    assert h.broker.counters.dropped == {"expired": 1}


def test_expired_message_is_not_delivered_from_behind_a_full_window() -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t", qos=1)
    pub = h.client("pub")
    publish(pub, "t", b"first", qos=1)
    publish(pub, "t", b"short", qos=1, expiry=10)
    publish(pub, "t", b"last", qos=1)
    first = one(sub)
    h.advance(11)
    sub.send(Puback(first.packet_id))
    assert one(sub).payload == b"last"
    assert h.broker.counters.dropped == {"expired": 1}


def test_time_behind_a_full_window_is_taken_off() -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t", qos=1)
    pub = h.client("pub")
    publish(pub, "t", qos=1)
    publish(pub, "t", qos=1, expiry=100)
    first = one(sub)
    h.advance(40)
    sub.send(Puback(first.packet_id))
    assert one(sub).message_expiry == 60


def test_expiry_0_is_kept_for_nobody() -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    away = persistent(h, "away")
    away.subscribe("t", qos=1)
    away.drop()
    publish(h.client("pub"), "t", b"now", qos=1, expiry=0)
    h.advance(1)
    assert messages(persistent(h, "away")) == []


def test_begun_delivery_completes_after_the_expiry() -> None:
    # [MQTT-4.3.3-7] [MQTT-4.3.3-13]
    h = Harness()
    sub = manual(h.client("sub"))
    sub.subscribe("t", qos=2)
    publish(h.client("pub"), "t", qos=2, expiry=10)
    packet_id = one(sub).packet_id
    h.advance(60)
    sub.send(Pubrec(packet_id))
    rel = sub.expect(Pubrel)
    assert (rel.packet_id, rel.reason) == (packet_id, 0)


def test_every_copy_counts_down_on_its_own() -> None:
    # [MQTT-3.3.2-5] [MQTT-3.3.2-6]
    h = Harness()
    for name in ("early", "late", "too late"):
        c = persistent(h, name)
        c.subscribe("t", qos=1)
        c.drop()
    publish(h.client("pub"), "t", qos=1, expiry=100)
    h.advance(10)
    assert one(persistent(h, "early")).message_expiry == 90
    h.advance(80)
    assert one(persistent(h, "late")).message_expiry == 10
    h.advance(10)
    assert messages(persistent(h, "too late")) == []


def test_retained_message_counts_down() -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    publish(h.client("pub"), "t", expiry=100, retain=True)
    for waited, left in ((0, 100), (25, 75), (50, 25)):
        h.advance(waited)
        sub = h.client("sub")
        sub.subscribe("t")
        assert one(sub).message_expiry == left


@pytest.mark.parametrize("topic_filter", ["t/1", "t/+", "#"])
def test_expired_retained_message_is_not_replayed(topic_filter: str) -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    publish(h.client("pub"), "t/1", expiry=10, retain=True)
    h.advance(10)
    sub = h.client("sub")
    sub.subscribe(topic_filter)
    assert messages(sub) == []


def test_retained_message_expires_while_its_replay_waits() -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    pub = h.client("pub")
    publish(pub, "t/1", b"1", qos=1, retain=True, expiry=10)
    publish(pub, "t/2", b"2", qos=1, retain=True, expiry=10)
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t/+", qos=1)
    first = one(sub)
    h.advance(20)
    sub.send(Puback(first.packet_id))
    assert messages(sub) == []


def test_replacing_a_retained_message_replaces_its_expiry() -> None:
    # [MQTT-3.3.1-5] [MQTT-3.3.2-6]
    h = Harness()
    pub = h.client("pub")
    publish(pub, "t", b"short", retain=True, expiry=10)
    publish(pub, "t", b"for ever", retain=True)
    h.advance(1000)
    sub = h.client("sub")
    sub.subscribe("t")
    got = one(sub)
    assert (got.payload, got.message_expiry) == (b"for ever", -1)


def test_expired_retained_message_makes_way_for_a_new_one() -> None:
    # [MQTT-3.3.1-5] [MQTT-3.3.2-5]
    h = Harness()
    pub = h.client("pub")
    publish(pub, "t", b"old", retain=True, expiry=10)
    h.advance(100)
    publish(pub, "t", b"new", retain=True, expiry=50)
    h.advance(10)
    sub = h.client("sub")
    sub.subscribe("t")
    got = one(sub)
    assert (got.payload, got.message_expiry) == (b"new", 40)


@pytest.mark.parametrize("version", [3, 4])
def test_expiry_holds_for_older_subscribers_too(version: int) -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    sub = persistent(h, "sub", version)
    sub.subscribe("t", qos=1)
    sub.drop()
    pub = h.client("pub")
    publish(pub, "t", b"short", qos=1, expiry=10)
    publish(pub, "t", b"long", qos=1, expiry=1000)
    h.advance(20)
    assert payloads(persistent(h, "sub", version)) == [b"long"]


def test_expiry_of_a_will_counts_from_its_publication() -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=1)
    will = Will("t", b"will", 1, False, 30, 100, b"")
    c = h.client("c", clean=False, will=will, properties=props(session_expiry_interval=1000))
    c.drop()
    h.advance(31)
    got = one(sub)
    assert (got.payload, got.message_expiry) == (b"will", 100)


@pytest.mark.parametrize("packet_id", [1, 2])
def test_puback_is_given_for_a_message_that_expires_at_once(packet_id: int) -> None:
    # [MQTT-4.3.2-4]
    h = Harness()
    pub = manual(h.client("pub"))
    send_publish(pub, "t", qos=1, packet_id=packet_id, expiry=0)
    assert pub.expect(Puback).packet_id == packet_id


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_expired_messages_do_not_crowd_out_a_live_one(overflow: str) -> None:
    # [MQTT-3.3.2-5]
    h = Harness(settings(max_queued_messages=3, queue_overflow=overflow))
    sub = persistent(h, "sub")
    sub.subscribe("t", qos=1)
    sub.drop()
    pub = h.client("pub")
    for _ in range(3):
        publish(pub, "t", b"short", qos=1, expiry=10)
    h.advance(20)
    publish(pub, "t", b"live", qos=1)
    assert payloads(persistent(h, "sub")) == [b"live"]
    assert dropped(h) == 3
