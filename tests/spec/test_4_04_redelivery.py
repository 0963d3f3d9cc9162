"""Redelivery (4.4): what is sent again on resume, how it looks, and that it is never sent else."""

from typing import Any

import pytest

from mqttd.core import spec
from mqttd.core.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    by_hand,
    dropped,
    each_version,
    manual,
    messages,
    one,
    props,
    publish,
)


def subscriber(h: Harness, version: int, qos: int) -> FakeClient:
    """A persistent subscriber of "t" that acknowledges nothing by itself."""
    sub = by_hand(h, "sub", version)
    sub.subscribe("t", qos=qos)
    return sub


def back(h: Harness, version: int = 5, **values: Any) -> FakeClient:
    return by_hand(h, "sub", version, **values)


def fill(h: Harness, version: int, qos: int, count: int) -> None:
    pub = h.client("pub", version=version)
    for n in range(count):
        publish(pub, "t", bytes([n]), qos=qos)


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_unacknowledged_messages_are_resent_on_resume(version: int, qos: int) -> None:
    # [MQTT-4.4.0-1] [MQTT-3.3.1-1]
    h = Harness()
    sub = subscriber(h, version, qos)
    fill(h, version, qos, 3)
    first = messages(sub)
    sub.drop()
    again = messages(back(h, version))
    assert [m.packet_id for m in again] == [m.packet_id for m in first]
    assert [m.payload for m in again] == [b"\x00", b"\x01", b"\x02"]
    assert all(m.dup and m.qos == qos for m in again)


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_is_resent_while_connected(version: int, qos: int) -> None:
    # [MQTT-4.4.0-1]
    h = Harness()
    sub = subscriber(h, version, qos)
    fill(h, version, qos, 1)
    sub.expect(Publish)
    for _ in range(10):
        h.advance(60)
    sub.expect_nothing()


@each_version
def test_pubrel_is_resent_on_resume(version: int) -> None:
    # [MQTT-4.4.0-1] [MQTT-4.3.3-5] [MQTT-4.3.3-6]
    h = Harness()
    sub = subscriber(h, version, 2)
    fill(h, version, 2, 1)
    packet_id = sub.expect(Publish).packet_id
    sub.send(Pubrec(packet_id))
    sub.expect(Pubrel)
    sub.drop()
    sub = back(h, version)
    assert sub.expect(Pubrel).packet_id == packet_id
    sub.expect_nothing()
    sub.send(Pubcomp(packet_id))
    sub.drop()
    back(h, version).expect_nothing()


@each_version
def test_pubrec_after_resume_completes_the_exchange(version: int) -> None:
    # [MQTT-4.4.0-1] [MQTT-4.3.3-4]
    h = Harness()
    sub = subscriber(h, version, 2)
    fill(h, version, 2, 1)
    packet_id = sub.expect(Publish).packet_id
    sub.drop()
    sub = back(h, version)
    assert sub.expect(Publish).packet_id == packet_id
    sub.send(Pubrec(packet_id))
    assert sub.expect(Pubrel).packet_id == packet_id
    sub.send(Pubcomp(packet_id))
    sub.drop()
    back(h, version).expect_nothing()


@each_version
def test_pubrec_for_a_resent_pubrel_is_answered(version: int) -> None:
    # [MQTT-4.3.3-4]
    h = Harness()
    sub = subscriber(h, version, 2)
    fill(h, version, 2, 1)
    packet_id = sub.expect(Publish).packet_id
    sub.send(Pubrec(packet_id))
    sub.drop()
    sub = back(h, version)
    sub.expect(Pubrel)
    sub.send(Pubrec(packet_id))
    rel = sub.expect(Pubrel)
    assert (rel.packet_id, rel.reason) == (packet_id, 0)


@each_version
def test_publishes_and_pubrels_are_resent_in_the_order_of_the_messages(version: int) -> None:
    # [MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT-4.6.0-4]
    h = Harness()
    sub = subscriber(h, version, 2)
    fill(h, version, 2, 4)
    first = messages(sub)
    sub.send(Pubrec(first[0].packet_id))
    sub.send(Pubrec(first[1].packet_id))
    sub.drop()
    got = back(h, version).recv()
    ids = [m.packet_id for m in first]
    assert [p.packet_id for p in got if isinstance(p, Pubrel)] == ids[:2]
    assert [p.packet_id for p in got if isinstance(p, Publish)] == ids[2:]


@each_version
def test_only_what_is_unacknowledged_is_resent(version: int) -> None:
    # [MQTT-4.4.0-1]
    h = Harness()
    sub = subscriber(h, version, 1)
    fill(h, version, 1, 3)
    first = messages(sub)
    sub.send(Puback(first[1].packet_id))
    sub.drop()
    assert [m.payload for m in messages(back(h, version))] == [b"\x00", b"\x02"]


@each_version
def test_resent_again_on_each_resume(version: int) -> None:
    # [MQTT-4.4.0-1]
    h = Harness()
    sub = subscriber(h, version, 1)
    fill(h, version, 1, 1)
    packet_id = sub.expect(Publish).packet_id
    for _ in range(3):
        sub.drop()
        sub = back(h, version)
        again = sub.expect(Publish)
        assert (again.packet_id, again.dup) == (packet_id, True)


@each_version
def test_takeover_resumes_like_a_reconnect(version: int) -> None:
    # [MQTT-4.4.0-1] [MQTT-3.1.4-3]
    h = Harness()
    sub = subscriber(h, version, 1)
    fill(h, version, 1, 1)
    packet_id = sub.expect(Publish).packet_id
    again = back(h, version).expect(Publish)
    assert sub.closed
    assert (again.packet_id, again.dup) == (packet_id, True)


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_clean_start_resends_nothing(version: int, qos: int) -> None:
    # [MQTT-4.4.0-1] [MQTT-3.1.2-4]
    h = Harness()
    sub = subscriber(h, version, qos)
    fill(h, version, qos, 2)
    assert len(messages(sub)) == 2
    sub.drop()
    h.client("sub", version=version, clean=True).expect_nothing()


@each_version
def test_queued_message_that_was_never_sent_has_no_dup(version: int) -> None:
    # [MQTT-3.3.1-1] [MQTT-3.3.1-3] [MQTT-4.3.2-2]
    h = Harness()
    sub = subscriber(h, version, 1)
    fill(h, version, 1, 1)
    sub.expect(Publish)
    sub.drop()
    publish(h.client("pub", version=version), "t", b"queued", qos=1, dup=True)
    again = messages(back(h, version))
    assert [(m.payload, m.dup) for m in again] == [(b"\x00", True), (b"queued", False)]


def test_resent_messages_keep_within_a_smaller_receive_maximum() -> None:
    # [MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-3.3.4-9]
    h = Harness()
    sub = subscriber(h, 5, 1)
    fill(h, 5, 1, 3)
    first = messages(sub)
    sub.drop()
    sub = back(h, receive_maximum=1)
    for expected in first:
        again = sub.expect(Publish)
        sub.expect_nothing()
        assert (again.packet_id, again.payload) == (expected.packet_id, expected.payload)
        assert again.dup
        sub.send(Puback(again.packet_id))
    sub.expect_nothing()


def test_new_messages_wait_behind_the_resent_ones() -> None:
    # [MQTT-4.6.0-5] [MQTT-4.4.0-1]
    h = Harness()
    sub = subscriber(h, 5, 1)
    fill(h, 5, 1, 3)
    assert len(messages(sub)) == 3
    sub.drop()
    sub = back(h, receive_maximum=2)
    publish(h.client("pub"), "t", b"new", qos=1)
    order = []
    while got := messages(sub):
        for m in got:
            order.append(m.payload)
            sub.send(Puback(m.packet_id))
    assert order == [b"\x00", b"\x01", b"\x02", b"new"]


def test_resent_message_keeps_its_properties_and_identifiers() -> None:
    # [MQTT-4.4.0-1] [MQTT-3.3.2-17] [MQTT-3.3.4-3]
    h = Harness()
    sub = by_hand(h, "sub")
    sub.subscribe("t", qos=1, identifier=4)
    raw = b"\x26\x00\x01k\x00\x01v\x03\x00\x01c"
    publish(h.client("pub"), "t", b"m", qos=1, properties=raw)
    first = sub.expect(Publish)
    sub.drop()
    again = back(h).expect(Publish)
    assert (again.properties, again.subscription_ids) == (first.properties, [4])
    assert again.payload == b"m"


def test_resent_message_too_large_for_the_new_connection_is_dropped() -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-25]
    h = Harness()
    sub = subscriber(h, 5, 1)
    pub = h.client("pub")
    publish(pub, "t", b"x" * 200, qos=1)
    publish(pub, "t", b"small", qos=1)
    assert len(messages(sub)) == 2
    sub.drop()
    sub = back(h, maximum_packet_size=100)
    assert one(sub).payload == b"small"
    assert dropped(h) == 1
    sub.drop()
    assert [m.payload for m in messages(back(h))] == [b"small"]


@pytest.mark.parametrize("qos", [1, 2])
def test_message_refused_by_the_receiver_is_not_resent(qos: int) -> None:
    # [MQTT-4.4.0-2]
    h = Harness()
    sub = subscriber(h, 5, qos)
    fill(h, 5, qos, 2)
    first, second = messages(sub)
    ack = Puback if qos == 1 else Pubrec
    sub.send(ack(first.packet_id, spec.NOT_AUTHORIZED))
    sub.drop()
    assert [m.packet_id for m in messages(back(h))] == [second.packet_id]


@pytest.mark.parametrize("qos", [1, 2])
def test_begun_delivery_is_resent_though_its_expiry_has_passed(qos: int) -> None:
    # [MQTT-4.3.3-7] [MQTT-3.3.2-5] [MQTT-4.4.0-1]
    h = Harness()
    sub = subscriber(h, 5, qos)
    publish(h.client("pub"), "t", b"m", qos=qos, expiry=10)
    packet_id = sub.expect(Publish).packet_id
    sub.drop()
    h.advance(60)
    again = back(h).expect(Publish)
    assert (again.packet_id, again.dup, again.payload) == (packet_id, True, b"m")


@each_version
def test_identifier_of_a_resent_message_is_not_given_to_another(version: int) -> None:
    # [MQTT-2.2.1-4]
    h = Harness()
    sub = subscriber(h, version, 1)
    fill(h, version, 1, 3)
    assert len(messages(sub)) == 3
    sub.drop()
    sub = back(h, version)
    fill(h, version, 1, 3)
    got = messages(sub)
    assert len(got) == 6
    assert len({m.packet_id for m in got}) == 6


@pytest.mark.parametrize(("before", "after"), [(4, 5), (5, 4), (3, 5), (5, 3), (3, 4)])
def test_session_resumes_across_protocol_versions(before: int, after: int) -> None:
    # [MQTT-4.4.0-1] [MQTT-3.1.3-2]
    h = Harness()
    sub = subscriber(h, before, 1)
    raw = b"\x26\x00\x01k\x00\x01v"
    publish(h.client("pub"), "t", b"m", qos=1, properties=raw)
    packet_id = sub.expect(Publish).packet_id
    sub.drop()
    again = back(h, after).expect(Publish)
    assert (again.packet_id, again.dup, again.payload) == (packet_id, True, b"m")


def test_message_expiry_is_not_sent_as_zero_or_less_on_resume() -> None:
    # [MQTT-3.3.2-6]
    h = Harness()
    sub = manual(h.client("sub", clean=False, properties=props(session_expiry_interval=3600)))
    sub.subscribe("t", qos=1)
    publish(h.client("pub"), "t", qos=1, expiry=100)
    assert sub.expect(Publish).message_expiry == 100
    sub.drop()
    h.advance(40)
    assert back(h).expect(Publish).message_expiry == 60
