"""One MQTT client as a state machine: bytes in, bytes out, no socket and no clock.

Owns the protocol side of a device: CONNECT and its answer, subscriptions, keep-alive pings, the
packet identifiers in flight in both directions, and the acknowledgements that QoS 1 and 2 ask for.
What the messages mean is the ledger's business: a PUBLISH goes to the `watcher`, the outcome of a
publication to one of the `senders`. When and how fast to publish is the publisher's. A device that
answers messages has an `inbox`, too.

A client outlives its connection: `reopen`, and CONNACK decides what becomes of the session. If the
broker has it, what was in flight goes out again, as it was and in its order [MQTT-4.4.0-1]; if not,
it is given up.

`receive_data` has a lean path for what comes by the hundred thousand (PUBLISH and the four
acknowledgements read straight from the buffer, nothing built); all else is decoded by the core
codec and handed to the caller in `events`. The broker is not trusted: malformed bytes end the
connection with `error` set, and what is well-formed but wrong (an acknowledgement for nothing) is
counted in `violations`.

Invariants: an identifier is in at most one of `inflight` (awaits PUBACK or PUBREC) and `releasing`
(awaits PUBCOMP), with the number of its message and, above LANE_BITS, the place of its sender among
`senders`; `frames` has the packets of `inflight` when they may be needed again; `receiving` holds
the QoS 2 identifiers between PUBREC and PUBCOMP, whose repeated PUBLISH is the same message and
never reaches the ledger twice.
"""

from typing import Final

from device_sim.judge.ledger import Watcher
from device_sim.judge.tracks import Sender
from mqttd.core import spec
from mqttd.core.decode import decode_packet
from mqttd.core.encode import encode_connect, encode_disconnect, encode_subscribe
from mqttd.core.errors import ProtocolError
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingresp,
    Record,
    Suback,
    Subscribe,
)

NEW: Final = 0
CONNECTING: Final = 1
CONNECTED: Final = 2
CLOSED: Final = 3

PINGREQ_FRAME: Final = b"\xc0\x00"
MAX_PACKET_ID: Final = 65535
LANE_BITS: Final = 40
_NUMBER: Final = (1 << LANE_BITS) - 1

_PUBACK: Final = b"\x40\x02"
_PUBREC: Final = b"\x50\x02"
_PUBREL: Final = b"\x62\x02"
_PUBCOMP: Final = b"\x70\x02"

_RETURN_CODES: Final = (
    "accepted",
    "unacceptable protocol version",
    "identifier rejected",
    "server unavailable",
    "bad user name or password",
    "not authorized",
)


def reason_text(reason: int, version: int) -> str:
    """A reason code (or, before MQTT 5, a return code) in words."""
    if version < spec.MQTT5 and reason < len(_RETURN_CODES):
        return _RETURN_CODES[reason]
    return f"{spec.REASON_NAMES.get(reason, 'unknown reason')} (0x{reason:02x})"


class Arrival:
    """A PUBLISH as it came: `properties` without their length, empty before MQTT 5."""

    def __init__(self, topic: bytes, properties: bytes, payload: bytes) -> None:
        self.topic = topic
        self.properties = properties
        self.payload = payload


class Client:
    """The protocol state of one device."""

    def __init__(self, client_id: str, version: int, ready: list[Sender]) -> None:
        self.client_id = client_id
        self.version = version
        self.state = NEW
        self.error = ""
        self.out = bytearray()
        self.events: list[Record] = []
        self.senders: list[Sender] = []
        self.watcher: Watcher | None = None
        self.inbox: list[Arrival] | None = None
        self.keeps_frames = False
        self.frames: dict[int, bytes] = {}
        self.inflight: dict[int, int] = {}
        self.releasing: dict[int, int] = {}
        self.receiving: set[int] = set()
        self.violations: dict[str, int] = {}
        self.harmed = False
        """The scenario has damaged bytes of this connection: what is wrong on it is `forgiven`."""
        self.forgiven = 0
        self.redelivered = 0
        self.resumed = False
        self.receive_maximum = MAX_PACKET_ID
        self.maximum_qos = 2
        self.maximum_packet_size = 0
        self.keep_alive = 0
        self._ready = ready
        self._last_id = 0
        self._tail = bytearray()
        self._need = 0

    def connect(self, packet: Connect) -> None:
        """Open the session."""
        self.state = CONNECTING
        self.keep_alive = packet.keep_alive
        self.out += encode_connect(packet, self.version)

    def reopen(self) -> None:
        """The connection is gone: be ready for the next one."""
        self.state = NEW
        self.error = ""
        self.out = bytearray()
        self.events.clear()
        self.harmed = False
        self.receive_maximum = MAX_PACKET_ID
        self._tail = bytearray()

    def subscribe(self, filters: list[Filter]) -> int:
        """Ask for subscriptions; the Suback among the events carries the identifier returned."""
        packet_id = self.next_id()
        self.out += encode_subscribe(Subscribe(packet_id, filters), self.version)
        return packet_id

    def ping(self) -> None:
        """Keep the connection alive."""
        self.out += PINGREQ_FRAME

    def disconnect(self) -> None:
        """Say goodbye; what comes after it is ignored."""
        if self.state == CONNECTED:
            self.out += encode_disconnect(Disconnect(), self.version)
        self.state = CLOSED

    def next_id(self) -> int:
        """A packet identifier that is not in flight."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % MAX_PACKET_ID + 1
            if packet_id not in self.inflight and packet_id not in self.releasing:
                self._last_id = packet_id
                return packet_id

    def in_flight(self) -> int:
        """How many publications have not seen the end of their acknowledgement."""
        return len(self.inflight) + len(self.releasing)

    def unanswered(self, lane: int = 0) -> list[int]:
        """The message numbers of these publications, of one sender."""
        values = [*self.inflight.values(), *self.releasing.values()]
        return [value & _NUMBER for value in values if value >> LANE_BITS == lane]

    def data_to_send(self) -> bytearray:
        """Everything that waits to be written."""
        data = self.out
        self.out = bytearray()
        return data

    def receive_data(self, data: bytes, now_ns: int) -> None:
        """Take what the network brought, whole packets or pieces."""
        if self.state == CLOSED:
            return
        if self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return
            data = bytes(self._tail)
            self._tail = bytearray()
        try:
            self._packets(data, now_ns)
        except ProtocolError as error:
            self._fail(f"sent a malformed packet: {error.detail}")

    def _packets(self, data: bytes, now_ns: int) -> None:
        pos = 0
        size = len(data)
        while self.state != CLOSED:
            body = pos + 2
            if body > size:
                self._keep(data, pos, 2)
                return
            first = data[pos]
            length = data[pos + 1]
            if length >= 128:
                length &= 127
                shift = 7
                while True:
                    if body >= size:
                        self._keep(data, pos, body + 1 - pos)
                        return
                    byte = data[body]
                    body += 1
                    length |= (byte & 127) << shift
                    if byte < 128:
                        break
                    shift += 7
                    if shift > 21:
                        raise ProtocolError(spec.MALFORMED_PACKET, "", "remaining length")
            end = body + length
            if end > size:
                self._keep(data, pos, end - pos)
                return
            if first & 0xF0 == 0x30 and self.state == CONNECTED:
                self._publish(first, data, body, end, now_ns)
            elif 0x40 <= first <= 0x70 and self.state == CONNECTED and length >= 2:
                self._acknowledgement(first, data, body, end)
            else:
                self._control(first, data, body, end)
            pos = end

    def _keep(self, data: bytes, pos: int, need: int) -> None:
        self._tail += data[pos:]
        self._need = need

    def _publish(self, first: int, data: bytes, body: int, end: int, now_ns: int) -> None:
        topic_at = body + 2
        if topic_at > end:
            raise ProtocolError(spec.MALFORMED_PACKET, "", "PUBLISH without a topic")
        topic_end = topic_at + (data[body] << 8 | data[body + 1])
        pos = topic_end
        properties_at = 0
        qos = first >> 1 & 3
        packet_id = 0
        if qos:
            pos += 2
            if pos > end or qos == 3:
                raise ProtocolError(spec.MALFORMED_PACKET, "", "PUBLISH with a bad QoS or no id")
            packet_id = data[topic_end] << 8 | data[topic_end + 1]
        if self.version == spec.MQTT5:
            if pos >= end:
                raise ProtocolError(spec.MALFORMED_PACKET, "", "PUBLISH without properties")
            length = data[pos]
            pos += 1
            if length >= 128:
                length &= 127
                shift = 7
                while pos < end:
                    byte = data[pos]
                    pos += 1
                    length |= (byte & 127) << shift
                    if byte < 128:
                        break
                    shift += 7
            properties_at = pos
            pos += length
        if pos > end:
            raise ProtocolError(spec.MALFORMED_PACKET, "", "PUBLISH shorter than its fields")
        if qos == 1:
            self.out += _PUBACK
            self.out += data[topic_end : topic_end + 2]
        elif qos == 2:
            self.out += _PUBREC
            self.out += data[topic_end : topic_end + 2]
            if packet_id in self.receiving:
                self.redelivered += 1
                if not first & 8:
                    self._violation("QoS 2 identifier used again before PUBREL, without DUP")
                return
            self.receiving.add(packet_id)
        inbox = self.inbox
        if inbox is not None:
            properties = data[properties_at:pos] if properties_at else b""
            inbox.append(Arrival(data[topic_at:topic_end], properties, data[pos:end]))
        watcher = self.watcher
        if watcher is None:
            self._violation("PUBLISH without a subscription")
            return
        watcher.receive(data[topic_at:topic_end], data, pos, end, first & 15, now_ns)

    def _acknowledgement(self, first: int, data: bytes, body: int, end: int) -> None:
        packet_id = data[body] << 8 | data[body + 1]
        reason = data[body + 2] if end > body + 2 else 0
        if first == 0x40:
            number = self.inflight.pop(packet_id, -1)
            if number < 0:
                self._violation("PUBACK for an identifier that is not in flight")
            else:
                if self.keeps_frames:
                    self.frames.pop(packet_id, None)
                self._settled(number, reason)
        elif first == 0x50:
            number = self.inflight.pop(packet_id, -1)
            if number < 0:
                if packet_id not in self.releasing:
                    self._violation("PUBREC for an identifier that is not in flight")
                self.out += _PUBREL
                self.out += data[body : body + 2]
                return
            if self.keeps_frames:
                self.frames.pop(packet_id, None)
            if reason >= 0x80:
                self._settled(number, reason)
            else:
                self.releasing[packet_id] = number
                self.out += _PUBREL
                self.out += data[body : body + 2]
        elif first == 0x62:
            if packet_id in self.receiving:
                self.receiving.remove(packet_id)
            elif not self.resumed:
                # A session that is resumed may not have got our last PUBCOMP. [MQTT-4.4.0-1]
                self._violation("PUBREL for an identifier that is not in flight")
            self.out += _PUBCOMP
            self.out += data[body : body + 2]
        elif first == 0x70:
            number = self.releasing.pop(packet_id, -1)
            if number < 0:
                self._violation("PUBCOMP for an identifier that is not in flight")
            else:
                self._settled(number, reason)
        else:
            raise ProtocolError(spec.MALFORMED_PACKET, "", "acknowledgement with wrong flags")

    def _settled(self, number: int, reason: int) -> None:
        sender = self.senders[number >> LANE_BITS]
        if reason >= 0x80:
            sender.refuse(number & _NUMBER)
        if not sender.ready:
            sender.ready = True
            self._ready.append(sender)

    def _control(self, first: int, data: bytes, body: int, end: int) -> None:
        packet = decode_packet(first, data, body, end, self.version)
        if isinstance(packet, Pingresp):
            return
        if isinstance(packet, Connack):
            self._connack(packet)
        elif isinstance(packet, Disconnect):
            self._fail(f"sent DISCONNECT: {reason_text(packet.reason, self.version)}")
        elif not isinstance(packet, Suback) or self.state != CONNECTED:
            self._fail(f"sent a packet out of place (type {first >> 4})")
        if self.state != CLOSED:
            self.events.append(packet)

    def _connack(self, packet: Connack) -> None:
        if self.state != CONNECTING:
            self._fail("sent a second CONNACK")
            return
        if packet.reason:
            self._fail(f"refused the connection: {reason_text(packet.reason, self.version)}")
            return
        self.state = CONNECTED
        properties = packet.properties
        if properties.receive_maximum is not None:
            self.receive_maximum = properties.receive_maximum
        if properties.maximum_qos is not None:
            self.maximum_qos = properties.maximum_qos
        if properties.maximum_packet_size is not None:
            self.maximum_packet_size = properties.maximum_packet_size
        if properties.server_keep_alive is not None:
            self.keep_alive = properties.server_keep_alive
        self.resumed = packet.session_present
        if packet.session_present:
            self._resume()
        else:
            self.begin_anew()

    def begin_anew(self) -> None:
        """There is no session any more: nobody will answer what was in flight."""
        for lane, sender in enumerate(self.senders):
            sender.give_up(self.unanswered(lane))
        self.inflight.clear()
        self.releasing.clear()
        self.frames.clear()
        self.receiving.clear()

    def _resume(self) -> None:
        for packet_id in self.releasing:
            self.out += _PUBREL
            self.out.append(packet_id >> 8)
            self.out.append(packet_id & 0xFF)
        for packet_id, value in self.inflight.items():
            frame = self.frames.get(packet_id)
            if frame is not None:
                self.senders[value >> LANE_BITS].resend(value & _NUMBER)
                self.out.append(frame[0] | 0x08)  # [MQTT-3.3.1-1]
                self.out += frame[1:]

    def _fail(self, error: str) -> None:
        self.state = CLOSED
        self.error = error

    def _violation(self, what: str) -> None:
        if self.harmed:
            self.forgiven += 1
            return
        self.violations[what] = self.violations.get(what, 0) + 1
