"""The MQTT machine of one connection: bytes in, acknowledgements and events out.

Owns: the state between accept and close; every rule about what a client may send when; the
inbound half of QoS 1 and 2; topic aliases from the client; keep alive and the connect timeout. A
whole packet is framed before it is looked at, so nothing a client sends can desynchronise the
stream.

Must not know: asyncio, sockets, clocks (it is told `now`), other connections. What concerns more
than this connection and its session goes through `Router`, which the broker implements.

Invariants: no exception but a bug leaves `receive_data`; `fail` is the one place where a
`ProtocolError` becomes CONNACK, DISCONNECT or a bare close; after `finish` nothing is read or
sent; the session hears of the end exactly once.

States: NEW (waits for CONNECT) → WAITING (a decider or the client's AUTH is awaited) → OPEN →
CLOSED.
"""

from typing import Final

from mqttd.core import counters as count
from mqttd.core import encode, journal, spec
from mqttd.core.decode import (
    PublishFields,
    decode_auth,
    decode_disconnect,
    decode_puback,
    decode_pubcomp,
    decode_pubrec,
    decode_pubrel,
    decode_subscribe,
    decode_unsubscribe,
    scan_publish,
)
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import CLOSED, MAX_REASON, NEW, OPEN, Handshake, check_flags, is_reserved
from mqttd.core.message import Message
from mqttd.core.packets import (
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Pubrec,
    Suback,
    Unsuback,
)
from mqttd.core.properties import Properties
from mqttd.core.router import ListenerInfo, Router
from mqttd.core.session import Session
from mqttd.core.trie import Matched

INFINITY: Final = float("inf")
_PUBACK: Final = b"\x40\x02"
_PUBREC: Final = b"\x50\x02"
_PUBCOMP: Final = b"\x70\x02"
_PINGRESP: Final = b"\xd0\x00"


class Connection(Handshake):
    """One network connection. Made by `Broker.open`."""

    def __init__(
        self,
        router: Router,
        listener: ListenerInfo,
        peer: str,
        identity: str | None,
        serial: int,
        now: float,
    ) -> None:
        super().__init__(router, listener, peer, identity, serial, now)
        self._aliases_in: dict[int, bytes] | None = None

    # What the shell calls.

    def receive_data(self, data: bytes, now: float) -> bool:
        """Act on bytes from the client. True: the shell should see whether to go on reading."""
        if self.state == CLOSED:
            return False
        self.counters.bytes_received += len(data)
        framer = self._framer
        if self.state == NEW and framer.pending == 0 and data and data[0] >> 4 != spec.CONNECT:
            self._not_connect()  # [MQTT-3.1.0-1] whatever length it announces
            return False
        framer.feed(data)
        self.run(now)
        return self.suspended or self.blocked or self._held is not None

    def next_deadline(self) -> float:
        """When `handle_timeout` wants to be called; infinity for never."""
        if self.state == OPEN:
            if self.keep_alive:
                return self.last_received + 1.5 * self.keep_alive
            return INFINITY
        if self.state == CLOSED:
            return INFINITY
        return self.opened_at + self.router.settings.connect_timeout

    def handle_timeout(self, now: float) -> None:
        """Close if the deadline has passed."""
        if now < self.next_deadline():
            return
        if self.state == OPEN:
            # [MQTT-3.1.2-22] as if the network had failed, after 1.5 times the keep alive.
            self.close(spec.KEEP_ALIVE_TIMEOUT, "keep alive timeout", now)
            return
        self.counters.refuse(count.REFUSED_TIMEOUT)
        self.router.note("refused", self.client_id, self.peer, "no CONNECT in time")
        self._leave(True, now)
        self.finish()

    def connection_lost(self, now: float) -> None:
        """The transport is gone, for whatever reason. Idempotent."""
        if self.session is not None:
            self.router.note("disconnect", self.client_id, self.peer, "connection lost")
        self._leave(True, now)
        self.closed = True
        self.writable = False
        self.router.forget(self)

    def pause_writing(self) -> None:
        """The kernel's buffer is full."""
        self.blocked = True
        self.writable = False

    def resume_writing(self, now: float) -> None:
        """The kernel takes bytes again."""
        self.blocked = False
        if self.state == OPEN and self.session is not None and self.session.link is self:
            self.writable = self.established
            self.session.pump(now)

    def abort(self, now: float) -> None:
        """An exception left the core: end this connection and nothing else."""
        self.counters.bugs += 1
        self.close(spec.UNSPECIFIED_ERROR, "internal error", now)

    def close(self, code: int, reason: str, now: float) -> None:
        """The server ends the connection. The will goes out unless `code` says otherwise."""
        if self.state == CLOSED:
            return
        self.router.note("disconnect", self.client_id, self.peer, reason)
        if self.established and self.version >= 5:  # [MQTT-3.14.0-1] never before CONNACK
            self._send_disconnect(code, reason)
        self._leave(True, now)
        self.finish()  # [MQTT-3.14.4-2] [MQTT-4.13.2-1] whether DISCONNECT left or not

    def unsendable(self) -> None:
        # A client that can't take the answer it has a right to can only be let go.
        self.counters.answers_too_large += 1
        self.close(
            spec.PACKET_TOO_LARGE, "an answer is larger than the client accepts", self.last_received
        )

    # Reading.

    def run(self, now: float) -> None:
        framer = self._framer
        try:
            while self.state != CLOSED and not self.suspended and framer.next():
                self.counters.packets_received += 1
                self.last_received = now  # a whole packet; a part of one is no sign of life
                first = framer.first
                kind = first >> 4
                if self.state != OPEN:
                    self.on_early(first, framer.data, framer.pos, framer.end, now)
                elif kind == spec.PUBLISH:
                    self._on_publish(first, framer.data, framer.start, framer.pos, framer.end, now)
                elif kind == spec.PUBACK:
                    self._on_puback(first, framer.data, framer.pos, framer.end, now)
                else:
                    self._on_packet(kind, first, framer.data, framer.pos, framer.end, now)
        except ProtocolError as error:
            self.fail(error, now)

    def fail(self, error: ProtocolError, now: float) -> None:
        """[MQTT-4.13.1-1] the one place where an error value meets the wire."""
        self.counters.protocol_errors += 1
        if self.state == OPEN:
            self.close(error.code, str(error), now)
            return
        if self.state == CLOSED:
            return
        self.refuse(error.code, str(error))

    def _on_packet(
        self, kind: int, first: int, data: bytes, pos: int, end: int, now: float
    ) -> None:
        session = self.session
        assert session is not None
        flags = first & 15
        if end - pos == 2 and spec.PUBREC <= kind <= spec.PUBCOMP:
            # The usual short form: success, and nothing but the identifier.
            packet_id = (data[pos] << 8) | data[pos + 1]
            if packet_id and first == 0x50:
                if not session.on_pubrec(packet_id, 0, now):
                    self.send_pubrel(packet_id, spec.PACKET_IDENTIFIER_NOT_FOUND, 0)
                return
            if packet_id and first == 0x62:
                self._on_pubrel(session, packet_id)
                return
            if packet_id and first == 0x70:
                session.on_pubcomp(packet_id, now)
                return
        if kind == spec.PUBREC:
            pubrec = decode_pubrec(data, pos, end, flags, self.version)
            known = session.on_pubrec(pubrec.packet_id, pubrec.reason, now)
            if not known and pubrec.reason < 0x80:
                self.send_pubrel(pubrec.packet_id, spec.PACKET_IDENTIFIER_NOT_FOUND, 0)
        elif kind == spec.PUBREL:
            pubrel = decode_pubrel(data, pos, end, flags, self.version)
            self._on_pubrel(session, pubrel.packet_id)
        elif kind == spec.PUBCOMP:
            pubcomp = decode_pubcomp(data, pos, end, flags, self.version)
            session.on_pubcomp(pubcomp.packet_id, now)
        elif kind == spec.PINGREQ:
            check_flags(first, 0)
            if pos != end:
                raise ProtocolError(spec.MALFORMED_PACKET, "", "PINGREQ with a body")
            self.send(_PINGRESP)  # [MQTT-3.12.4-1]
        elif kind == spec.SUBSCRIBE:
            self._on_subscribe(session, data, pos, end, flags, now)
        elif kind == spec.UNSUBSCRIBE:
            self._on_unsubscribe(session, data, pos, end, flags)
        elif kind == spec.DISCONNECT:
            self._on_disconnect(
                session, decode_disconnect(data, pos, end, flags, self.version), now
            )
        elif kind == spec.AUTH and self.version >= 5:
            self.on_reauth(decode_auth(data, pos, end, flags, self.version), now)
        elif kind == spec.CONNECT:
            raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-3.1.0-2", "a second CONNECT")
        else:
            raise ProtocolError(
                spec.PROTOCOL_ERROR, "", spec.PACKET_NAMES[kind] + " is not for a client to send"
            )

    # PUBLISH and its acknowledgements, inbound.

    def _on_publish(
        self, first: int, data: bytes, start: int, pos: int, end: int, now: float
    ) -> None:
        router = self.router
        fields = router.fields
        scan_publish(fields, data, pos, end, first & 15, self.version, True)
        counters = self.counters
        counters.publish_received += 1
        counters.publish_bytes_received += end - fields.payload_at
        alias = fields.topic_alias
        if alias:
            self._resolve_alias(fields)
        key = fields.key
        matched = router.trie.lookup(key)  # [MQTT-3.3.2-2] checked on a miss
        session = self.session
        assert session is not None
        # 36 is "$": only such topics can be reserved, and few topics are such.
        reserved = key[0] == 36 and is_reserved(matched.topic)
        qos = first >> 1 & 3
        if first & 15 or alias or fields.message_expiry >= 0:
            expires_at = 0.0
            if fields.message_expiry >= 0:
                expires_at = now + fields.message_expiry
            message = Message(
                matched.topic,
                key,
                data[fields.payload_at : end],
                qos,
                first & 1 != 0,
                fields.properties,
                expires_at,
                self.client_id,
            )
            if first & 9 == 0 and not alias and not expires_at:
                # Neither DUP nor RETAIN, and nothing to change: what came around the identifier
                # serves a receiver of the same version at the same QoS.
                message.split_as_received(
                    data[start : fields.rest_at - 2],
                    message.payload if self.version < 5 else data[fields.rest_at : end],
                    qos | 8 if self.version >= 5 else qos,
                )
            if qos == 1:  # [MQTT-3.3.4-1]
                counters.publish_received_qos1 += 1
                self._publish_qos1(fields.packet_id, message, matched, session, reserved, now)
            elif qos == 2:
                counters.publish_received_qos2 += 1
                self._publish_qos2(fields.packet_id, message, matched, session, reserved, now)
            elif reserved:
                self.counters.publish_refused += 1
            else:
                # [MQTT-3.3.1-8] At QoS 0 a broker need not retain: with a full disk it doesn't.
                if message.retain and not self.journal.refusing:
                    router.retain(message)
                router.route(message, matched, session, now)
        elif reserved:
            self.counters.publish_refused += 1
        else:
            # QoS 0 and nothing to change: a receiver of the same version gets what came.
            frame = data if start == 0 and end == len(data) else data[start:end]
            router.forward(frame, fields.payload_at - start, matched, session, now)

    def _publish_qos1(
        self,
        packet_id: int,
        message: Message,
        matched: Matched,
        session: Session,
        reserved: bool,
        now: float,
    ) -> None:
        if self.inbound_open >= self._receive_maximum:
            self._overrun()
        if reserved:
            self._deny(packet_id, False, spec.NOT_AUTHORIZED)
            return
        if self.journal.refusing and self.router.storable(message, matched):
            if self.version >= 5:
                self._deny(packet_id, False, self.journal.refusing)
            return  # MQTT 3 has no word for it: without an acknowledgement the client keeps it
        barrier = self.router.retain(message) if message.retain else 0  # [MQTT-3.3.1-8]
        # [MQTT-4.3.2-5] an identifier is never compared with that of another PUBLISH.
        found = self.router.route(message, matched, session, now)
        waits_for: Message | None = None
        frees = False
        if message.undurable:
            if barrier == 0:
                waits_for = message  # nothing but its deliveries: the last to settle frees it
            barrier = self.journal.seq
        if barrier or self._held is not None:
            self.inbound_open += 1
            frees = True
        if found == 0 and self.version >= 5:
            # [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.1.2-29] no acknowledgement has properties.
            puback = Puback(packet_id, spec.NO_MATCHING_SUBSCRIBERS)
            self.promise(encode.encode_puback(puback, self.version), barrier, waits_for, frees)
        else:  # [MQTT-4.3.2-4] [MQTT-2.2.1-5]
            self.promise_ack(_PUBACK, packet_id, barrier, waits_for, frees)

    def _publish_qos2(
        self,
        packet_id: int,
        message: Message,
        matched: Matched,
        session: Session,
        reserved: bool,
        now: float,
    ) -> None:
        serial = session.inbound.get(packet_id, -1)
        if serial >= 0:
            # [MQTT-4.3.3-10] a repetition: acknowledged again, delivered to nobody.
            if serial != self.serial:
                session.inbound[packet_id] = self.serial
                self.inbound_open += 1
            self.promise_ack(_PUBREC, packet_id, session.inbound_barrier, None, False)
            return
        if self.inbound_open >= self._receive_maximum:
            self._overrun()
        if reserved:
            self._deny(packet_id, True, spec.NOT_AUTHORIZED)
            return
        if self.journal.refusing and (session.durable or self.router.storable(message, matched)):
            if self.version >= 5:
                self._deny(packet_id, True, self.journal.refusing)
            return
        session.inbound[packet_id] = self.serial
        self.inbound_open += 1
        barrier = 0
        if session.durable:
            barrier = self.journal.record(journal.INBOUND_ADD, session.client_id, "", packet_id)
            session.inbound_barrier = barrier
        # Routed at once, but sent on only when identifier and deliveries are durable together: a
        # crash in between can neither lose the message nor, by the client's resend, double it.
        message.barrier = barrier
        if message.retain:  # [MQTT-3.3.1-8]
            barrier = max(barrier, self.router.retain(message))
        found = self.router.route(message, matched, session, now)
        if message.undurable:
            barrier = self.journal.seq
        if found == 0 and self.version >= 5:
            # [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.1.2-29]
            pubrec = Pubrec(packet_id, spec.NO_MATCHING_SUBSCRIBERS)
            self.promise(encode.encode_pubrec(pubrec, self.version), barrier, None, False)
        else:  # [MQTT-4.3.3-8]
            self.promise_ack(_PUBREC, packet_id, barrier, None, False)

    def _on_pubrel(self, session: Session, packet_id: int) -> None:
        serial = session.inbound.pop(packet_id, -1)
        if serial < 0:
            reason = spec.PACKET_IDENTIFIER_NOT_FOUND if self.version >= 5 else spec.SUCCESS
            # [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.1.2-29]
            self.promise(
                encode.encode_pubcomp(Pubcomp(packet_id, reason), self.version),
                session.inbound_barrier,
                None,
                False,
            )
            return
        barrier = 0
        if session.durable:
            barrier = self.journal.record(journal.INBOUND_DROP, session.client_id, "", packet_id)
            session.inbound_barrier = barrier
        # [MQTT-4.3.3-11] [MQTT-4.3.3-12]: the identifier may be used anew once PUBCOMP is out.
        # [MQTT-4.3.3-13] Nothing here knows the message any more, nor whether it has expired.
        self.promise_ack(_PUBCOMP, packet_id, barrier, None, serial == self.serial)

    def _on_puback(self, first: int, data: bytes, pos: int, end: int, now: float) -> None:
        session = self.session
        assert session is not None
        if first == 0x40 and end - pos == 2:
            packet_id = (data[pos] << 8) | data[pos + 1]  # the usual short form
            if packet_id:
                session.on_puback(packet_id, 0, now)
                return
        puback = decode_puback(data, pos, end, first & 15, self.version)
        session.on_puback(puback.packet_id, puback.reason, now)

    def _overrun(self) -> None:
        raise ProtocolError(
            spec.RECEIVE_MAXIMUM_EXCEEDED, "MQTT-3.3.4-7", "more QoS > 0 in flight than allowed"
        )

    def _deny(self, packet_id: int, qos2: bool, code: int) -> None:
        """A message that isn't taken: an error for MQTT 5, silence before."""
        self.counters.publish_refused += 1
        reason = code if self.version >= 5 else spec.SUCCESS
        # [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.1.2-29] no properties.
        if qos2:
            # [MQTT-4.3.3-9] the identifier is not kept; MQTT 3 goes on to PUBREL and PUBCOMP.
            frame = encode.encode_pubrec(Pubrec(packet_id, reason), self.version)
        else:
            frame = encode.encode_puback(Puback(packet_id, reason), self.version)
        self.promise(frame, 0, None, False)

    def _resolve_alias(self, fields: PublishFields) -> None:
        alias = fields.topic_alias
        if alias > self.router.settings.topic_alias_maximum:  # [MQTT-3.3.2-12]
            raise ProtocolError(spec.TOPIC_ALIAS_INVALID, "MQTT-3.3.2-9", "alias out of range")
        aliases = self._aliases_in
        if aliases is None:
            aliases = self._aliases_in = {}  # [MQTT-3.3.2-7] lives as long as the connection
        if fields.key:
            aliases[alias] = fields.key
            return
        key = aliases.get(alias)
        if key is None:
            raise ProtocolError(spec.PROTOCOL_ERROR, "", "an alias that was never set")
        fields.key = key

    # SUBSCRIBE, UNSUBSCRIBE, DISCONNECT.

    def _on_subscribe(
        self, session: Session, data: bytes, pos: int, end: int, flags: int, now: float
    ) -> None:
        packet = decode_subscribe(data, pos, end, flags, self.version)
        reasons: list[int] = []
        for entry in packet.filters:  # [MQTT-3.8.4-5] [MQTT-3.9.3-1]
            if self.version < 5 and self.bridge:
                entry = Filter(entry.topic_filter, entry.qos, True, True, 0)
            reason = self.router.subscribe(session, entry, packet.subscription_id)
            if self.version < 5 and reason >= 0x80:
                reason = 0x80
            reasons.append(reason)
        # [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-6] [MQTT-2.2.1-6]; without properties:
        # [MQTT-3.9.2-1] [MQTT-3.9.2-2] [MQTT-3.1.2-29]
        frame = encode.encode_suback(Suback(packet.packet_id, reasons), self.version)
        self.promise(frame, session.barrier, None, False)

    def _on_unsubscribe(
        self, session: Session, data: bytes, pos: int, end: int, flags: int
    ) -> None:
        packet = decode_unsubscribe(data, pos, end, flags, self.version)
        reasons: list[int] = []
        for topic_filter in packet.filters:  # [MQTT-3.10.4-6]
            reasons.append(self.router.unsubscribe(session, topic_filter))
        # [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.11.3-1] [MQTT-2.2.1-6]; without properties:
        # [MQTT-3.11.2-1] [MQTT-3.11.2-2] [MQTT-3.1.2-29]
        frame = encode.encode_unsuback(Unsuback(packet.packet_id, reasons), self.version)
        self.promise(frame, session.barrier, None, False)

    def _on_disconnect(self, session: Session, packet: Disconnect, now: float) -> None:
        properties = packet.properties
        if properties is not None and properties.session_expiry_interval is not None:
            interval = properties.session_expiry_interval
            if session.expiry_interval == 0 and interval != 0:
                raise ProtocolError(
                    spec.PROTOCOL_ERROR, "", "session expiry cannot rise from 0 at DISCONNECT"
                )
            self.router.set_expiry(session, interval)
        self.router.note("disconnect", self.client_id, self.peer, "by the client")
        # [MQTT-3.14.4-3] 0x00 discards the will, anything else lets it go out.
        self._leave(packet.reason != spec.NORMAL_DISCONNECTION, now)
        self.finish()

    # Leaving.

    def displace(self, now: float) -> None:
        """Another connection takes the session over. [MQTT-3.1.4-3]"""
        self.close(spec.SESSION_TAKEN_OVER, "session taken over", now)

    def _leave(self, with_will: bool, now: float) -> None:
        self.state = CLOSED
        session = self.session
        if session is not None:
            self.session = None
            self.writable = False
            self.drop_held()
            self.counters.clients_connected -= 1
            self.router.left(session, self, with_will, now)

    def _send_disconnect(self, code: int, reason: str) -> None:
        if code not in spec.REASONS[spec.DISCONNECT]:  # [MQTT-3.14.2-1]
            code = spec.NOT_AUTHORIZED
        # [MQTT-3.14.2-2] [MQTT-3.14.2-4] a reason string is all that it ever carries.
        properties = Properties()
        if self.wants_reasons and reason:
            properties.reason_string = reason[:MAX_REASON]
        frame = encode.encode_disconnect(Disconnect(code, properties), self.version)
        if self.max_send and len(frame) > self.max_send:  # [MQTT-3.14.2-3]
            frame = encode.encode_disconnect(Disconnect(code), self.version)
        if not self.max_send or len(frame) <= self.max_send:
            self.send(frame)
