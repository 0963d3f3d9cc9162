"""Packets built byte by byte, and what a refused CONNECT looks like from outside.

Owns an encoder of its own, small enough to be checked by eye against the
standard: a fault that the broker's encoder and decoder share would be invisible
to tests that use both. Everything here takes bytes, so that strings may be wrong.
Must not know the broker's codec; it borrows packet classes only to look at answers.
"""

from collections.abc import Iterable

from mqttd.core import spec
from mqttd.core.packets import Connack
from tests.harness import FakeClient

NAMES = {3: b"MQIsdp", 4: b"MQTT", 5: b"MQTT"}

PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"
DISCONNECT = b"\xe0\x00"

CLEAN = 0x02
WILL = 0x04
WILL_RETAIN = 0x20
PASSWORD = 0x40
USERNAME = 0x80


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def text(value: bytes) -> bytes:
    """A string or binary field: two bytes of length, then the bytes."""
    return u16(len(value)) + value


def frame(first: int, body: bytes = b"") -> bytes:
    return bytes([first]) + varint(len(body)) + body


def block(version: int, properties: bytes = b"") -> bytes:
    """A property block, which only MQTT 5 has."""
    return varint(len(properties)) + properties if version == spec.MQTT5 else b""


def connect(
    client_id: bytes = b"raw",
    version: int = 5,
    flags: int = CLEAN,
    *,
    name: bytes | None = None,
    level: int | None = None,
    keep_alive: int = 0,
    properties: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """A CONNECT; `tail` holds the payload fields after the client identifier."""
    return frame(
        0x10,
        text(NAMES[version] if name is None else name)
        + bytes([version if level is None else level, flags])
        + u16(keep_alive)
        + block(version, properties)
        + text(client_id)
        + tail,
    )


def will(version: int, topic: bytes = b"will", payload: bytes = b"w", props: bytes = b"") -> bytes:
    """The will fields of a CONNECT payload."""
    return block(version, props) + text(topic) + text(payload)


def publish(version: int, topic: bytes, payload: bytes = b"x", props: bytes = b"") -> bytes:
    """A QoS 0 PUBLISH."""
    return frame(0x30, text(topic) + block(version, props) + payload)


def subscribe(version: int, topic_filter: bytes, packet_id: int = 1, options: int = 0) -> bytes:
    return frame(0x82, u16(packet_id) + block(version) + text(topic_filter) + bytes([options]))


def unsubscribe(version: int, topic_filter: bytes, packet_id: int = 1) -> bytes:
    return frame(0xA2, u16(packet_id) + block(version) + text(topic_filter))


def talk(c: FakeClient, data: bytes) -> bytes:
    """What the broker writes in return, undecoded: the version may not even be settled."""
    c.connection.receive_data(data, c.harness.now)
    return c.connection.data_to_send()


def only_connack(answer: bytes, version: int, reason: int) -> bool:
    """Nothing, or a CONNACK in the layout of MQTT 5 with this reason when that is the version.

    A packet that fails before its version was read may go unanswered; MQTT 3 never answers it.
    """
    if not answer:
        return True
    return version == spec.MQTT5 and answer[0] == 0x20 and answer[2:4] == bytes([0, reason])


def connect_refused(c: FakeClient, reasons: Iterable[int]) -> None:
    """Closed before it was accepted: one CONNACK that says why, and nothing else."""
    got = c.recv()
    assert c.closed
    assert len(got) == 1, got
    (answer,) = got
    assert isinstance(answer, Connack)
    assert answer.session_present is False  # [MQTT-3.2.2-6]
    assert answer.reason in tuple(reasons)


def connect_malformed(c: FakeClient) -> None:
    """A CONNECT that is no CONNECT: MQTT 5 is told so, the older versions have no code for it."""
    if c.version == spec.MQTT5:
        connect_refused(c, (spec.MALFORMED_PACKET, spec.PROTOCOL_ERROR))
    else:
        closed_silently(c)


def closed_silently(c: FakeClient) -> None:
    assert c.recv() == []
    assert c.closed
