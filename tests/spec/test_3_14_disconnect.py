"""DISCONNECT (3.14), in both directions."""

import pytest

from mqttd.core import spec
from mqttd.core.encode import encode_packet
from mqttd.core.packets import Connect, Disconnect, Will
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import (
    MALFORMED,
    each_version,
    messages,
    one,
    persistent,
    props,
    publish,
    refused,
    settings,
)

# --- from the client ---


@each_version
def test_disconnect_closes_without_an_answer(version: int) -> None:
    # [MQTT-3.14.4-1] [MQTT-3.14.4-2]; 3.14.4: the server closes if the client has not
    c = Harness().client("c", version=version)
    c.send(Disconnect())
    raw.closed_silently(c)


@pytest.mark.parametrize("packet", [b"\xe0\x00", b"\xe0\x01\x00", b"\xe0\x02\x00\x00"])
def test_every_form_of_a_normal_disconnect(packet: bytes) -> None:
    # [MQTT-3.14.4-3]; 3.14.2.1: code and property length may be left out
    h = Harness()
    watch = h.client("watch")
    watch.subscribe("will")
    c = h.client("c", will=Will("will", b"w"))
    c.send_raw(packet)
    raw.closed_silently(c)
    assert messages(watch) == []


@each_version
def test_nothing_after_disconnect_is_acted_on(version: int) -> None:
    # [MQTT-3.14.4-1]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("#")
    c = h.client("c", version=version)
    c.send_raw(raw.DISCONNECT + raw.publish(version, b"t") + raw.PINGREQ)
    raw.closed_silently(c)
    c.send_raw(raw.publish(version, b"t"))
    assert c.recv() == []
    assert messages(sub) == []


@each_version
def test_nothing_is_sent_to_a_client_that_said_goodbye(version: int) -> None:
    # [MQTT-3.14.4-1] [MQTT-3.14.4-2]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.send(Disconnect())
    publish(h.client("pub"), "t", qos=1)
    raw.closed_silently(c)


@pytest.mark.parametrize("version", [spec.MQTT31, spec.MQTT311])
def test_disconnect_of_mqtt_3_has_no_body(version: int) -> None:
    # MQTT 3.1.1, 3.14.1
    c = Harness().client("c", version=version)
    c.send_raw(b"\xe0\x01\x00")
    refused(c, ())


LISTED = (
    0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
)  # fmt: skip
UNLISTED = (0x01, 0x02, 0x03, 0x05, 0x10, 0x11, 0x18, 0x19, 0x7F, 0x84, 0x85, 0x86, 0x91, 0xFF)


@pytest.mark.parametrize("reason", LISTED)
def test_listed_reason_codes_are_taken(reason: int) -> None:
    # [MQTT-3.14.2-1]
    c = Harness().client("c")
    c.send_raw(bytes([0xE0, 1, reason]))
    raw.closed_silently(c)


@pytest.mark.parametrize("reason", UNLISTED)
def test_unlisted_reason_code_is_an_error(reason: int) -> None:
    # [MQTT-3.14.2-1] [MQTT-4.13.1-1]
    h = Harness()
    watch = h.client("watch")
    watch.subscribe("will")
    c = h.client("c", will=Will("will", b"w"))
    c.send_raw(bytes([0xE0, 1, reason]))
    refused(c, MALFORMED)
    one(watch)


@pytest.mark.parametrize("flags", [1, 2, 4, 8, 15])
def test_reserved_flags_are_malformed(flags: int) -> None:
    # [MQTT-3.14.1-1] [MQTT-3.1.2-8]
    h = Harness()
    watch = h.client("watch")
    watch.subscribe("will")
    c = h.client("c", will=Will("will", b"w"))
    c.send_raw(bytes([0xE0 | flags, 0]))
    refused(c, (spec.MALFORMED_PACKET,))
    one(watch)


# --- a new session expiry ---


def leave(h: Harness, at_connect: int, at_disconnect: int | None) -> FakeClient:
    c = h.client("c", properties=props(session_expiry_interval=at_connect))
    if at_disconnect is None:
        c.send(Disconnect())
    else:
        c.send(Disconnect(0, props(session_expiry_interval=at_disconnect)))
    return c


def present(h: Harness) -> bool:
    return h.client("c", clean=False).connack.session_present


@pytest.mark.parametrize(
    ("at_connect", "at_disconnect", "lasts"),
    [(60, None, 60), (60, 10, 10), (60, 600, 600), (60, 60, 60)],
)
def test_disconnect_changes_the_session_expiry(
    at_connect: int, at_disconnect: int | None, lasts: int
) -> None:
    # [MQTT-3.1.2-23] [MQTT-4.1.0-2]; 3.14.2.2.2
    h = Harness()
    leave(h, at_connect, at_disconnect)
    h.advance(lasts - 1)
    assert present(h)
    h = Harness()
    leave(h, at_connect, at_disconnect)
    h.advance(lasts + 1)
    assert not present(h)


def test_disconnect_may_end_the_session_at_once() -> None:
    # [MQTT-4.1.0-2]; 3.14.2.2.2
    h = Harness()
    leave(h, 60, 0)
    assert not present(h)


def test_session_expiry_of_disconnect_is_capped_too() -> None:
    # 3.14.2.2.2
    h = Harness(settings(session_expiry_max=100))
    leave(h, 60, 1000)
    h.advance(101)
    assert not present(h)


@pytest.mark.parametrize("at_connect", [0, None])
def test_disconnect_cannot_make_a_session_last_that_was_to_end(at_connect: int | None) -> None:
    # [MQTT-4.13.1-1]; 3.14.2.2.2: 0x82, and it is not taken for a DISCONNECT
    h = Harness()
    watch = h.client("watch")
    watch.subscribe("will")
    properties = props() if at_connect is None else props(session_expiry_interval=at_connect)
    c = h.client("c", will=Will("will", b"w"), properties=properties)
    c.send(Disconnect(0, props(session_expiry_interval=60)))
    refused(c, (spec.PROTOCOL_ERROR,))
    one(watch)
    assert not present(h)


def test_session_expiry_0_again_is_no_error() -> None:
    # 3.14.2.2.2
    raw.closed_silently(leave(Harness(), 0, 0))


# --- from the server ---


def errors(h: Harness, version: int, **values: object) -> list[FakeClient]:
    """Connections that the server has just ended, each for another reason."""
    properties = props(**values)
    made: list[FakeClient] = []
    for i, packet in enumerate(
        (raw.PINGRESP, b"\x00\x00", raw.publish(version, b"a/#"), raw.connect(b"x", version))
    ):
        c = h.client(f"bad{i}", version=version, properties=properties)
        c.send_raw(packet)
        made.append(c)
    made.append(h.client("twice", version=version, properties=properties))
    h.client("twice", version=version)
    made.append(h.client("silent", version=version, keep_alive=10, properties=properties))
    h.advance(16)
    return made


def test_server_uses_listed_codes_and_closes() -> None:
    # [MQTT-3.14.2-1] [MQTT-3.14.4-2] [MQTT-4.13.2-1]
    for c in errors(Harness(), 5):
        got = c.expect(Disconnect)
        assert got.reason in (0x81, 0x82, 0x8D, 0x8E, 0x90)
        raw.closed_silently(c)


def test_server_never_sends_a_session_expiry() -> None:
    # [MQTT-3.14.2-2]
    for c in errors(Harness(), 5, session_expiry_interval=60):
        properties = c.expect(Disconnect).properties
        assert properties is None or properties.session_expiry_interval is None


@pytest.mark.parametrize("version", [spec.MQTT31, spec.MQTT311])
def test_server_sends_no_disconnect_before_mqtt_5(version: int) -> None:
    # MQTT 3.1.1, 3.14: client to server only
    for c in errors(Harness(), version):
        raw.closed_silently(c)


@pytest.mark.parametrize("limit", [*range(1, 6), 10, 20, 30, 50])
def test_disconnect_leaves_out_what_the_client_cannot_take(limit: int) -> None:
    # [MQTT-3.14.2-3] [MQTT-3.14.2-4] [MQTT-3.1.2-24] [MQTT-4.13.2-1]
    h = Harness()
    c = h.client("c", properties=props(maximum_packet_size=64))
    c.send_raw(raw.PINGRESP)
    for packet in c.recv():
        assert len(encode_packet(packet, 5)) <= 64
    assert c.closed
    d = h.open()
    d.send(Connect(client_id="d", properties=props(maximum_packet_size=limit)))
    d.send_raw(raw.PINGRESP)
    assert d.closed
    for packet in d.recv():
        assert len(encode_packet(packet, 5)) <= limit


def test_reason_string_explains_the_disconnect() -> None:
    # 3.14.2.2.3
    for c in errors(Harness(), 5):
        properties = c.expect(Disconnect).properties
        assert properties is not None
        assert properties.reason_string


def test_server_sends_nothing_after_its_disconnect() -> None:
    # [MQTT-3.14.4-1]
    h = Harness()
    c = h.client("c", clean=False, properties=props(session_expiry_interval=60))
    c.subscribe("t", qos=1)
    c.send_raw(raw.PINGRESP + raw.PINGREQ)
    publish(h.client("pub"), "t", qos=1)
    c.expect(Disconnect)
    c.expect_nothing()
    assert c.closed


@each_version
def test_server_sends_no_disconnect_before_its_connack(version: int) -> None:
    # [MQTT-3.14.0-1]
    for packet in (
        b"\x00\x00",
        raw.DISCONNECT,
        raw.connect(b"c", version, raw.CLEAN | raw.WILL | 0x18, tail=raw.will(version)),
        raw.connect(b"c", version, tail=b"\x00"),
        b"\x10\xff\xff\xff\xff\x7f",
    ):
        c = Harness().open(version=version)
        assert raw.talk(c, packet)[:1] in (b"", b"\x20")
        assert c.connection.closing


def test_drain_tells_every_client() -> None:
    # 3.14.2.1: 0x8B, the server is shutting down
    h = Harness()
    clients = [h.client(f"c{i}", version=v) for i, v in enumerate((3, 4, 5, 5))]
    waiting = h.open()
    h.broker.drain(h.now)
    h.flush()
    for c in clients:
        refused(c, (spec.SERVER_SHUTTING_DOWN,))
    raw.closed_silently(waiting)
