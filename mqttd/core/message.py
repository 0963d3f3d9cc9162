"""An application message in flight, and the frames it becomes.

Owns: `Message`, immutable after construction but for its frame cache and its barrier count, and
the rule "encode once per layout": a layout is protocol version (5 or older) × retain × QoS. A
fan-out to a thousand subscribers of one layout encodes once; only the two bytes of the packet
identifier differ, and they stand between the two halves that are cached here.

Must not know: sessions, connections, windows. What differs per receiver (topic alias,
subscription identifiers, remaining expiry, DUP) goes through `encode_once`, which caches nothing.

Who holds an acknowledgement for a message that was settled before it was stored still waits for
its dead letter, if it has one (`owed`).

Invariants: `key` is the UTF-8 of `topic`; `properties` is the validated, forwardable property
block in the order received, without its length prefix; an inbound QoS 0 frame that needs no
change is forwarded as the very bytes that came.
"""

from typing import Final

from mqttd.core.packets import Will
from mqttd.core.wire import u8, u16, u32, varint

OWED: Final = 1 << 62  # above every batch
_NO_PROPERTIES: Final = b"\x00"
_MESSAGE_EXPIRY: Final = b"\x02"
_TOPIC_ALIAS: Final = b"\x23"


class Holder:
    """Somebody who holds an acknowledgement back until a message is safe (a connection)."""

    def release(self) -> None:
        """Look again at what is held: a reason to wait has gone."""
        raise AssertionError("a Holder has to override release")


class Message:
    """One application message. `expires_at` is in the core's clock, 0.0 for never."""

    def __init__(
        self,
        topic: str,
        key: bytes,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: bytes,
        expires_at: float,
        origin: str,
    ) -> None:
        self.topic = topic
        self.key = key
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.expires_at = expires_at
        self.origin = origin  # client id of the publisher, "" for the broker itself
        self.barrier: int = 0  # journal batch that must be durable before this is sent on
        self.serial: int = 0  # in the record of decisions, 0 where there is none
        self.undurable: int = 0  # journalled deliveries neither committed nor settled yet
        self.owed: int = 0  # batch of the dead letter that stands for it; OWED: not yet written
        self.holder: Holder | None = None  # whose acknowledgement waits for undurable == 0
        # The frame of the layout used last, around the packet identifier; see `use`.
        self.layout: int = -1
        self.head: bytes = b""
        self.tail: bytes = b""
        self._other: dict[int, tuple[bytes, bytes]] | None = None

    def forward_as_received(self, frame: bytes, layout: int) -> None:
        """Use `frame`, the bytes that arrived, for QoS 0 receivers of `layout`."""
        self.layout = layout
        self.head = frame

    def split_as_received(self, head: bytes, tail: bytes, layout: int) -> None:
        """Use what came before and after the packet identifier, for receivers of `layout`."""
        self.layout = layout
        self.head = head
        self.tail = tail

    def use(self, layout: int) -> None:
        """Make `head` and `tail` those of `layout` (see `layout_of`).

        At QoS 0 `head` is the whole frame; above, the packet identifier goes between the two. Only
        for messages without an expiry interval or for receivers older than MQTT 5; see
        `encode_once`.
        """
        if self.layout < 0:  # most messages meet one layout and need no dict
            self._encode(layout)
            return
        other = self._other
        if other is None:
            other = self._other = {}
        other[self.layout] = (self.head, self.tail)
        found = other.get(layout)
        if found is None:
            self._encode(layout)
        else:
            self.layout = layout
            self.head, self.tail = found

    def _encode(self, layout: int) -> None:
        qos = layout & 3
        key = self.key
        tail = self.payload
        if layout & 8:
            properties = self.properties
            if properties:
                tail = varint(len(properties)) + properties + tail
            else:
                tail = _NO_PROPERTIES + tail
        length = 2 + len(key) + len(tail)
        if qos:
            length += 2
        first = 0x30 | ((layout & 4) >> 2) | (qos << 1)
        head = u8(first) + varint(length) + u16(len(key)) + key
        self.layout = layout
        if qos:
            self.head = head
            self.tail = tail
        else:
            self.head = head + tail
            self.tail = b""

    def encode_once(
        self,
        version: int,
        first: int,
        key: bytes,
        packet_id: bytes,
        alias: int,
        identifiers: bytes,
        now: float,
    ) -> bytes:
        """A whole frame for one receiver. `key` is b"" where an alias stands for the topic.

        `first` is the fixed header byte, `packet_id` its two bytes or b"" at QoS 0, `identifiers`
        the encoded Subscription Identifier properties.
        """
        body = u16(len(key)) + key + packet_id
        if version >= 5:
            block = self.properties
            if self.expires_at:
                # [MQTT-3.3.2-6] what is left of the interval, never 0 for one still alive.
                left = int(self.expires_at - now)
                block = _MESSAGE_EXPIRY + u32(left if left > 0 else 1) + block
            if alias:
                block = _TOPIC_ALIAS + u16(alias) + block
            if identifiers:
                block = block + identifiers
            body += varint(len(block)) + block
        return u8(first) + varint(len(body) + len(self.payload)) + body + self.payload


def layout_of(version: int, retain: bool, qos: int) -> int:
    """The cache key of a frame: bit 3 MQTT 5, bit 2 retain, bits 1–0 QoS."""
    layout = qos
    if retain:
        layout |= 4
    if version >= 5:
        layout |= 8
    return layout


def will_message(will: Will, client_id: str, now: float) -> Message:
    """The message a will becomes when it is published. [MQTT-3.1.2-14] [MQTT-3.1.2-15]"""
    expires_at = 0.0
    if will.message_expiry >= 0:
        expires_at = now + will.message_expiry
    return Message(
        will.topic,
        will.topic.encode("utf-8"),
        will.payload,
        will.qos,
        will.retain,
        will.properties,
        expires_at,
        client_id,
    )
