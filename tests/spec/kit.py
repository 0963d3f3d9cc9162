"""Short-hands for the chapter tests: what a test says, not how bytes travel.

Owns the few exchanges that every chapter repeats (a whole publish, a persistent
client, "the broker refused this"), all of them built on tests/harness.py.
Must not know the broker's insides: only packets that a client can see, the
public counters and the settings.

A handshake here is spelled out packet by packet, so that a test which uses
`publish` also asserts that the exchange completed with the identifier it began
with.
"""

from collections.abc import Iterable
from typing import Any

import pytest

from mqttd.core import spec
from mqttd.core.encode import encode_packet
from mqttd.core.packets import (
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
)
from mqttd.core.properties import Properties, encode_forwardable
from mqttd.core.settings import Settings
from tests.harness import FakeClient, Harness

VERSIONS = (spec.MQTT31, spec.MQTT311, spec.MQTT5)
each_version = pytest.mark.parametrize("version", VERSIONS)
each_qos = pytest.mark.parametrize("qos", [0, 1, 2])

MALFORMED = (spec.MALFORMED_PACKET, spec.PROTOCOL_ERROR)


def props(**values: Any) -> Properties:
    """Properties with the given attributes set."""
    made = Properties()
    for name, value in values.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    return made


def raw_props(**values: Any) -> bytes:
    """The forwardable properties of a PUBLISH, encoded."""
    return encode_forwardable(props(**values))


def settings(**values: Any) -> Settings:
    """Settings that differ from the defaults by `values`."""
    made = Settings()
    for name, value in values.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    return made


def persistent(
    h: Harness,
    client_id: str,
    version: int = 5,
    *,
    auto_ack: bool = True,
    **values: Any,
) -> FakeClient:
    """A client whose session outlives its connection, resumed if it was there before."""
    if version == spec.MQTT5:
        values.setdefault("session_expiry_interval", 3600)
    else:
        assert not values
    return h.client(
        client_id, version=version, clean=False, properties=props(**values), auto_ack=auto_ack
    )


def by_hand(h: Harness, client_id: str, version: int = 5, **values: Any) -> FakeClient:
    """The same, leaving every acknowledgement to the test from the first packet on."""
    return persistent(h, client_id, version, auto_ack=False, **values)


def manual(c: FakeClient) -> FakeClient:
    """The same client, leaving every acknowledgement to the test."""
    c.auto_ack = False
    return c


def send_publish(
    c: FakeClient,
    topic: str,
    payload: bytes = b"x",
    qos: int = 0,
    packet_id: int = 1,
    *,
    retain: bool = False,
    dup: bool = False,
    properties: bytes = b"",
    alias: int = 0,
    expiry: int = -1,
) -> None:
    """One PUBLISH packet, nothing read back."""
    c.send(
        Publish(
            topic,
            payload,
            qos,
            retain,
            dup,
            packet_id if qos else 0,
            properties,
            topic_alias=alias,
            message_expiry=expiry,
        )
    )


def publish(
    c: FakeClient,
    topic: str,
    payload: bytes = b"x",
    qos: int = 0,
    packet_id: int = 1,
    **options: Any,
) -> int:
    """A whole publish by a client that receives nothing else; the broker's reason code."""
    automatic = c.auto_ack
    c.auto_ack = False
    try:
        send_publish(c, topic, payload, qos, packet_id, **options)
        if qos == 0:
            return spec.SUCCESS
        if qos == 1:
            ack = c.expect(Puback)
            assert ack.packet_id == packet_id
            return ack.reason
        rec = c.expect(Pubrec)
        assert rec.packet_id == packet_id
        if rec.reason < 0x80:
            c.send(Pubrel(packet_id))
            comp = c.expect(Pubcomp)
            assert comp.packet_id == packet_id
            assert comp.reason == spec.SUCCESS
        return rec.reason
    finally:
        c.auto_ack = automatic


def messages(c: FakeClient) -> list[Publish]:
    """The PUBLISH packets that arrived since the last look."""
    return [p for p in c.recv() if isinstance(p, Publish)]


def payloads(c: FakeClient) -> list[bytes]:
    return [p.payload for p in messages(c)]


def one(c: FakeClient) -> Publish:
    """The only PUBLISH that arrived."""
    got = messages(c)
    assert len(got) == 1, got
    return got[0]


def refused(c: FakeClient, reasons: Iterable[int]) -> None:
    """The broker closed this connection, telling an MQTT 5 client why."""
    got = c.recv()
    assert c.closed
    told = [p for p in got if isinstance(p, Disconnect)]
    if c.version == spec.MQTT5:
        assert len(told) == 1
        assert got[-1] is told[0]
        assert told[0].reason in tuple(reasons)
    else:
        assert told == []


def alive(c: FakeClient) -> bool:
    """The connection still answers."""
    if c.closed:
        return False
    c.send(Pingreq())
    return any(isinstance(p, Pingresp) for p in c.recv())


def size_of(packet: Record, version: int = 5) -> int:
    """Bytes of a packet on the wire."""
    return len(encode_packet(packet, version))


def dropped(h: Harness) -> int:
    """Messages dropped so far, for whatever reason."""
    return sum(h.broker.counters.dropped.values())
