"""PUBACK, PUBREC, PUBREL, PUBCOMP (3.4 to 3.7): forms, reason codes, identifiers nobody knows.

The exchanges they belong to are chapter 4.3. "Error" here is a reason code of 0x80 or above.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    MALFORMED,
    alive,
    by_hand,
    each_version,
    manual,
    messages,
    persistent,
    props,
    publish,
    refused,
    send_publish,
    size_of,
)

ACKS = {"puback": 0x40, "pubrec": 0x50, "pubrel": 0x62, "pubcomp": 0x70}
each_ack = pytest.mark.parametrize("first", ACKS.values(), ids=ACKS.keys())


def receiver(h: Harness, qos: int, version: int = 5) -> tuple[FakeClient, Publish]:
    """A client that holds one unacknowledged message of this QoS."""
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=qos)
    publish(h.client("pub", version=version), "t", qos=qos)
    return sub, sub.expect(Publish)


@each_version
@each_ack
def test_acknowledgement_of_packet_identifier_0_is_refused(version: int, first: int) -> None:
    # [MQTT-2.2.1-5]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(bytes([first, 2, 0, 0]))
    refused(c, MALFORMED)


@each_version
@pytest.mark.parametrize(
    "first", [0x41, 0x42, 0x48, 0x4F, 0x51, 0x52, 0x5F, 0x60, 0x61, 0x63, 0x6F, 0x71, 0x72, 0x7F]
)
def test_reserved_header_flags_are_checked(version: int, first: int) -> None:
    # [MQTT-2.1.3-1] [MQTT-3.6.1-1]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(bytes([first, 2, 0, 1]))
    refused(c, (spec.MALFORMED_PACKET,))


@each_version
@each_ack
@pytest.mark.parametrize("size", [0, 1])
def test_acknowledgement_without_a_whole_identifier_is_malformed(
    version: int, first: int, size: int
) -> None:
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(bytes([first, size]) + b"\x01" * size)
    refused(c, MALFORMED)


@pytest.mark.parametrize("version", [3, 4])
@each_ack
def test_older_versions_know_no_reason_code(version: int, first: int) -> None:
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(bytes([first, 3, 0, 1, 0]))
    refused(c, MALFORMED)


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"", id="identifier only"),
        pytest.param(b"\x00", id="reason"),
        pytest.param(b"\x00\x00", id="no properties"),
        pytest.param(b"\x00\x04\x1f\x00\x01r", id="reason string"),
        pytest.param(b"\x00\x0e" + b"\x26\x00\x01a\x00\x01b" * 2, id="user properties"),
    ],
)
def test_every_form_of_puback_settles_the_message(tail: bytes) -> None:
    # [MQTT-4.3.2-3]
    h = Harness()
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t", qos=1)
    pub = h.client("pub")
    publish(pub, "t", b"1", qos=1)
    publish(pub, "t", b"2", qos=1)
    first = sub.expect(Publish)
    sub.send_raw(bytes([0x40, 2 + len(tail)]) + first.packet_id.to_bytes(2, "big") + tail)
    assert sub.expect(Publish).payload == b"2"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (0x40, 0x01),
        (0x40, 0x92),
        (0x50, 0x82),
        (0x62, 0x10),
        (0x62, 0x80),
        (0x70, 0x10),
        (0x70, 0x80),
    ],
)
def test_unlisted_reason_code_is_refused(first: int, reason: int) -> None:
    # [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]
    h = Harness()
    c = h.client("c")
    c.send_raw(bytes([first, 3, 0, 1, reason]))
    refused(c, MALFORMED)


@each_ack
@pytest.mark.parametrize(
    "properties",
    [
        pytest.param(b"\x1f\x00\x01a" * 2, id="reason string twice"),
        pytest.param(b"\x1f\x00\x01\xff", id="reason string not UTF-8"),
        pytest.param(b"\x01\x00", id="payload format"),
        pytest.param(b"\x26\x00\x01a\x00\x02b", id="user property cut short"),
    ],
)
def test_bad_properties_of_an_acknowledgement_are_refused(first: int, properties: bytes) -> None:
    h = Harness()
    c = h.client("c")
    body = b"\x00\x01\x00" + bytes([len(properties)]) + properties
    c.send_raw(bytes([first, len(body)]) + body)
    refused(c, MALFORMED)


@each_version
@pytest.mark.parametrize("ack", [Puback, Pubcomp])
def test_unknown_identifier_in_a_last_acknowledgement_changes_nothing(
    version: int, ack: type[Puback] | type[Pubcomp]
) -> None:
    h = Harness()
    c = manual(h.client("c", version=version))
    c.send(ack(999))
    c.expect_nothing()
    assert alive(c)


@each_version
def test_unknown_identifier_in_pubrel_is_answered(version: int) -> None:
    # [MQTT-4.3.3-11] [MQTT-3.7.2-1]
    h = Harness()
    c = manual(h.client("c", version=version))
    c.send(Pubrel(999))
    comp = c.expect(Pubcomp)
    assert comp.packet_id == 999
    assert comp.reason == (spec.PACKET_IDENTIFIER_NOT_FOUND if version == 5 else 0)
    assert alive(c)


def test_unknown_identifier_in_pubrec_is_answered() -> None:
    # [MQTT-3.6.2-1]
    h = Harness()
    c = manual(h.client("c"))
    c.send(Pubrec(999))
    rel = c.expect(Pubrel)
    assert (rel.packet_id, rel.reason) == (999, spec.PACKET_IDENTIFIER_NOT_FOUND)
    assert alive(c)


def test_error_pubrec_for_an_unknown_identifier_gets_no_pubrel() -> None:
    # [MQTT-4.3.3-4]
    h = Harness()
    c = manual(h.client("c"))
    c.send(Pubrec(999, spec.UNSPECIFIED_ERROR))
    c.expect_nothing()
    assert alive(c)


@pytest.mark.parametrize("version", [3, 4])
def test_acknowledgements_to_older_clients_are_two_bytes_long(version: int) -> None:
    h = Harness()
    c = manual(h.client("c", version=version))
    send_publish(c, "nobody", qos=1, packet_id=1)
    send_publish(c, "nobody", qos=2, packet_id=2)
    c.send(Pubrel(2))
    c.send(Pubrel(3))
    got = c.recv()
    assert [type(p) for p in got] == [Puback, Pubrec, Pubcomp, Pubcomp]
    assert all(getattr(p, "reason", 0) == 0 for p in got)


@pytest.mark.parametrize("qos", [1, 2])
def test_error_from_the_receiver_ends_the_message(qos: int) -> None:
    # [MQTT-4.4.0-2] [MQTT-4.3.3-4]
    h = Harness()
    sub = by_hand(h, "sub")
    sub.subscribe("t", qos=qos)
    publish(h.client("pub"), "t", qos=qos)
    got = sub.expect(Publish)
    ack = Puback if qos == 1 else Pubrec
    sub.send(ack(got.packet_id, spec.IMPLEMENTATION_SPECIFIC_ERROR))
    sub.expect_nothing()
    sub.drop()
    assert messages(persistent(h, "sub")) == []
    assert h.broker.counters.dropped == {"refused_by_receiver": 1}


def test_puback_for_a_qos_2_message_does_not_settle_it() -> None:
    # [MQTT-4.3.3-3]
    h = Harness()
    sub, got = receiver(h, qos=2)
    sub.send(Puback(got.packet_id))
    if not sub.closed:
        sub.recv()
        sub.send(Pubrec(got.packet_id))
        assert sub.expect(Pubrel).reason == spec.SUCCESS


def test_pubcomp_before_pubrec_does_not_settle_the_message() -> None:
    # [MQTT-4.3.3-3]
    h = Harness()
    sub, got = receiver(h, qos=2)
    sub.send(Pubcomp(got.packet_id))
    if not sub.closed:
        sub.recv()
        sub.send(Pubrec(got.packet_id))
        assert sub.expect(Pubrel).reason == spec.SUCCESS


def test_pubrec_for_a_qos_1_message_does_not_settle_it() -> None:
    # [MQTT-4.3.2-3]
    h = Harness()
    sub, got = receiver(h, qos=1)
    sub.send(Pubrec(got.packet_id))
    if not sub.closed:
        assert all(p.reason >= 0x80 for p in sub.recv() if isinstance(p, Pubrel))
        assert alive(sub)


@each_version
def test_pubrec_is_accepted_again_after_pubrel_was_sent(version: int) -> None:
    # [MQTT-4.3.3-4]
    h = Harness()
    sub, got = receiver(h, qos=2, version=version)
    for _ in range(3):
        sub.send(Pubrec(got.packet_id))
        rel = sub.expect(Pubrel)
        assert (rel.packet_id, rel.reason) == (got.packet_id, 0)
    sub.send(Pubcomp(got.packet_id))
    sub.expect_nothing()


@pytest.mark.parametrize("limit", [40, 64])
def test_acknowledgements_fit_the_clients_packet_limit(limit: int) -> None:
    # [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2]
    # [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.1.2-24]
    h = Harness()
    c = manual(h.client("c", properties=props(maximum_packet_size=limit)))
    long_topic = "nobody/" + "x" * 200
    send_publish(c, long_topic, qos=1, packet_id=1)
    send_publish(c, long_topic, qos=2, packet_id=2)
    c.send(Pubrel(3))
    c.send(Pubrec(4))
    got = c.recv()
    assert [type(p) for p in got] == [Puback, Pubrec, Pubcomp, Pubrel]
    assert all(size_of(p) <= limit for p in got)


def test_problem_information_can_be_declined() -> None:
    # [MQTT-3.1.2-29]
    h = Harness()
    c = manual(h.client("c", properties=props(request_problem_information=0)))
    c.send(Pubrel(3))
    c.send(Pubrec(4))
    for packet in c.recv():
        assert isinstance(packet, Pubcomp | Pubrel)
        assert packet.reason == spec.PACKET_IDENTIFIER_NOT_FOUND
        found = packet.properties
        assert found is None or (found.reason_string is None and not found.user_properties)
