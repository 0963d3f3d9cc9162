"""What the fuzzers begin with: the golden vectors, and a few inputs in the language of each target.

Bytes that mean something lead to places where random ones never come. The vectors of the codec's
tests are used as they are; the rest is short and written by hand.
"""

import struct
from itertools import pairwise
from pathlib import Path

from mqttd.core import spec
from mqttd.core.encode import encode_packet
from mqttd.core.packets import (
    Auth,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Subscribe,
    Unsubscribe,
    Will,
)
from mqttd.core.properties import Properties
from tests.core.vectors import BAD, GOOD

ROOT = Path(__file__).parents[1]
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def packets() -> list[bytes]:
    wires = [vector.wire for vector in GOOD + BAD]
    return [*wires, b"".join(vector.wire for vector in GOOD[:20])]


def bodies() -> list[bytes]:
    """PUBLISH packets without their fixed header."""
    return [vector.wire[vector.body :] for vector in GOOD + BAD if vector.wire[0] >> 4 == 3]


def properties() -> list[bytes]:
    """Blocks with their length: each property alone, several together, all user properties."""
    single = [
        b"\x01\x01",
        b"\x02\x00\x00\x00\x3c",
        b"\x03\x00\x04text",
        b"\x08\x00\x03a/b",
        b"\x09\x00\x02\x00\xff",
        b"\x0b\x01",
        b"\x0b\xff\xff\xff\x7f",
        b"\x11\xff\xff\xff\xff",
        b"\x12\x00\x02id",
        b"\x13\x00\x3c",
        b"\x15\x00\x05SCRAM",
        b"\x16\x00\x01x",
        b"\x17\x01",
        b"\x18\x00\x00\x00\x05",
        b"\x19\x01",
        b"\x1a\x00\x01r",
        b"\x1c\x00\x01s",
        b"\x1f\x00\x03why",
        b"\x21\x00\x14",
        b"\x22\x00\x0a",
        b"\x23\x00\x01",
        b"\x24\x01",
        b"\x25\x00",
        b"\x26\x00\x01a\x00\x01b",
        b"\x27\x00\x00\x10\x00",
        b"\x28\x01",
        b"\x29\x01",
        b"\x2a\x01",
    ]
    blocks = [b"", *single, b"".join(single), b"".join(single[:6]), single[23] * 15]
    blocks += [first + second for first, second in pairwise(single)]
    return [_varint(len(block)) + block for block in blocks]


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def topics() -> list[bytes]:
    return [
        b"a/b\na/+\na/#\n#\n+\na/b",
        b"+/+\n/+\n/#\n//\n+//+\n//",
        b"$SYS/#\n#\n+/x\n$SYS/+\n$SYS/x",
        b"$share/g/a\n$share/g/#\n$share/h/+/b\na\na/b",
        b"$share//a\n$share/g\n$share/+/a\n$share/g/\na",
        b"a#\n#/a\na+\n+a\n\n#",
        "ü/ß\n+/ß\nü/ß".encode(),
        b"\xff\xfe\na\x00b",
        b"a/" * 30 + b"\n" + b"+/" * 19 + b"+\n" + b"a/" * 19 + b"a",
    ]


def proxy() -> list[bytes]:
    four = struct.pack(">4s4sHH", bytes(4), bytes(4), 50412, 1883)
    six = struct.pack(">16s16sHH", bytes(16), bytes(16), 50412, 1883)
    return [
        b"PROXY TCP4 192.0.2.7 198.51.100.1 50412 1883\r\n\x10\x00",
        b"PROXY TCP6 2001:db8::7 2001:db8::1 50412 1883\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n",
        *(
            _SIGNATURE + bytes((command, family)) + struct.pack(">H", len(body)) + body + b"\x10"
            for command, family, body in (
                (0x21, 0x11, four),
                (0x21, 0x21, six),
                (0x21, 0x31, bytes(216)),
                (0x21, 0x00, b""),
                (0x20, 0x00, b""),
                (0x21, 0x11, four + b"\x02\x00\x07balance"),
                (0x21, 0x11, four + bytes(4084)),
            )
        ),
    ]


def _connect(version: int, client_id: str, **values: int) -> bytes:
    asked = Properties()
    for name, value in values.items():
        setattr(asked, name, value)
    name = "MQIsdp" if version == spec.MQTT31 else "MQTT"
    will = Will("t/will", b"w", 1, True, 5)
    clean = version == spec.MQTT5
    return encode_packet(
        Connect(name, version, clean, 30, client_id, will, "user", properties=asked), version
    )


# What a connection begins with; none is among them.
CONNECTS = (
    b"",
    _connect(5, "five"),
    _connect(5, "lasting", session_expiry_interval=60, receive_maximum=2, topic_alias_maximum=5),
    _connect(5, "narrow", session_expiry_interval=60, maximum_packet_size=60),
    _connect(4, "four"),
    _connect(3, "three"),
    _connect(5, "reader", session_expiry_interval=60),  # takes over
)

# Somebody else, who listens and has left something to be found.
READER = _connect(5, "reader", session_expiry_interval=60) + b"".join(
    encode_packet(packet, 5)
    for packet in (
        Subscribe(1, [Filter("#", 1), Filter("$share/g/t", 2), Filter("t", 2, True)], 7),
        Publish("t/kept", b"kept", 0, True),
        Publish("t/later", b"later", 1, True, packet_id=2, message_expiry=100),
    )
)


def conversations() -> list[bytes]:
    """The byte that picks a CONNECT, then packets; every vector too."""
    spoken: list[list[Record]] = [
        [Subscribe(1, [Filter("t/#", 2), Filter("$share/g/t", 1)])],
        [
            Publish("t", b"x"),
            Publish("t", b"y", 1, packet_id=1),
            Publish("t", b"z", 2, packet_id=2),
        ],
        [Publish("t", b"z", 2, packet_id=2), Pubrel(2), Publish("t", b"z", 2, packet_id=2)],
        [Subscribe(1, [Filter("t", 2)]), Publish("t", b"z", 2, packet_id=2), Pubrec(1), Pubcomp(1)],
        [Subscribe(1, [Filter("t", 1)]), Publish("t", b"z", 1, packet_id=2), Puback(1)],
        [Publish("t", b"1", topic_alias=1), Publish("", b"2", topic_alias=1)],
        [Unsubscribe(1, ["t", "#"]), Pingreq(), Disconnect(4)],
        [Publish("t/r", b"x", 1, True, packet_id=1), Publish("t/r", b"", 1, True, packet_id=2)],
        [*(Publish("t", b"x", 2, packet_id=packet_id) for packet_id in range(1, 8))],
        [Auth(0x19)],
    ]
    found: list[bytes] = []
    for choice in (*range(len(CONNECTS)), 0x82):
        version = 4 if choice == 4 else (3 if choice == 5 else 5)
        for sequence in spoken:
            body = b"".join(
                encode_packet(packet, version)
                for packet in sequence
                if version == 5 or not isinstance(packet, Auth)
            )
            found.append(bytes([choice]) + body)
    for number, vector in enumerate(GOOD + BAD):
        found.append(bytes([number % len(CONNECTS)]) + vector.wire)
        if vector.wire[0] >> 4 == spec.CONNECT:
            found.append(b"\x00" + vector.wire)
    return found


def configs() -> list[bytes]:
    shipped = [path.read_bytes() for path in sorted((ROOT / "config").glob("*.yaml"))]
    return [
        *shipped,
        b"",
        b"listeners:\n  - {name: a, bind: '127.0.0.1:1883'}\nlimits: {max_packet_size: 1MiB}\n",
        b"limits: {session_expiry_max: never, connect_timeout: 1h30m, max_keep_alive: 0}\n",
        b"listeners:\n  - name: u\n    bind: unix:/run/x.sock\n    tls: {cert: c, key: k}\n",
        b"a: &a [1, 2]\nb: *a\nc: !!python/object:os.system {}\n",
        b"logging: {level: debug, format: json}\nlogging: 0o17\nlimits: .5e3\n? [x] : y\n",
    ]
