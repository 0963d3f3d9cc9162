"""The MQTT machine of one connection: bytes in, acknowledgements and events out.

Owns: the state between accept and close; every rule about what a client may send when; the packets
but PUBLISH (`mqttd.core.inbound`) and CONNECT (`mqttd.core.handshake`); keep alive and the connect
timeout. A whole packet is framed before it is looked at, so nothing a client sends can
desynchronise the stream.

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
from mqttd.core import encode, spec
from mqttd.core.auth import FilterRuling, Grant
from mqttd.core.decode import (
    decode_auth,
    decode_disconnect,
    decode_puback,
    decode_pubcomp,
    decode_pubrec,
    decode_pubrel,
    decode_subscribe,
    decode_unsubscribe,
)
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import CLOSED, MAX_REASON, NEW, OPEN, check_flags
from mqttd.core.inbound import Inbound
from mqttd.core.packets import (
    Disconnect,
    Filter,
    Suback,
    Subscribe,
    Unsuback,
)
from mqttd.core.properties import Properties
from mqttd.core.router import ListenerInfo, Router
from mqttd.core.session import Session
from mqttd.core.watch import SUBSCRIBE_DENIED, SUBSCRIBED, UNSUBSCRIBED

INFINITY: Final = float("inf")
_PINGRESP: Final = b"\xd0\x00"


class Connection(Inbound):
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
        self._subscribing: Subscribe | None = None  # the SUBSCRIBE that hooks are asked about

    # What the shell calls.

    def receive_data(self, data: bytes, now: float) -> bool:
        """Act on bytes from the client. True: the shell should see whether to go on reading."""
        if self.state == CLOSED:
            return False
        self.counters.bytes_received += len(data)
        self.context.at(now)
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
            at = INFINITY
            if self.keep_alive:
                at = self.last_received + 1.5 * self.keep_alive
            if self.valid_until and self.valid_until < at:
                return self.valid_until
            return at
        if self.state == CLOSED:
            return INFINITY
        return self.opened_at + self.router.settings.connect_timeout

    def handle_timeout(self, now: float) -> None:
        """Close if the deadline has passed."""
        if now < self.next_deadline():
            return
        self.context.at(now)
        if self.state == OPEN:
            if self.valid_until and now >= self.valid_until:
                self.close(spec.NOT_AUTHORIZED, "the credentials have expired", now)
                return
            if self.suspended:
                self.last_received = now  # a hook keeps us from reading: the client is not to blame
                return
            # [MQTT-3.1.2-22] as if the network had failed, after 1.5 times the keep alive.
            self.close(spec.KEEP_ALIVE_TIMEOUT, "keep alive timeout", now)
            return
        if self.suspended:  # a hook keeps us from answering: again the client is not to blame
            late = ProtocolError(spec.SERVER_BUSY, "", "the decision took too long")
            self.refuse(late.code, str(late))
            return
        self.counters.refuse(count.REFUSED_TIMEOUT)
        self.router.note("refused", self.client_id, self.peer, "no CONNECT in time")
        self._leave(True, now, count.GONE_LOST)
        self.finish()

    def connection_lost(self, now: float) -> None:
        """The transport is gone, for whatever reason. Idempotent."""
        self.context.at(now)
        if self.session is not None:
            self._note_end("connection lost")
        self.gave_up()
        self._leave(True, now, count.GONE_LOST)
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
        self._note_end(self.for_the_log(reason))
        if code not in spec.REASONS[spec.DISCONNECT]:  # [MQTT-3.14.2-1]
            code = spec.NOT_AUTHORIZED
        if self.established and self.version >= 5:  # [MQTT-3.14.0-1] never before CONNACK
            self._send_disconnect(code, reason)
        self._leave(True, now, spec.reason_word(code, spec.DISCONNECT))
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
                    self.counters.received[kind] += 1
                    self.on_early(first, framer.data, framer.pos, framer.end, now)
                elif kind == spec.PUBLISH:
                    self.on_publish(first, framer.data, framer.start, framer.pos, framer.end, now)
                elif kind == spec.PUBACK:
                    self.counters.received[kind] += 1
                    self._on_puback(first, framer.data, framer.pos, framer.end, now)
                else:
                    self.counters.received[kind] += 1
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
                self.on_pubrel(session, packet_id)
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
            self.on_pubrel(session, pubrel.packet_id)
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

    # SUBSCRIBE, UNSUBSCRIBE, DISCONNECT.

    def _on_subscribe(
        self, session: Session, data: bytes, pos: int, end: int, flags: int, now: float
    ) -> None:
        packet = decode_subscribe(data, pos, end, flags, self.version)
        if self.version < 5 and self.bridge:
            packet.filters = [Filter(e.topic_filter, e.qos, True, True, 0) for e in packet.filters]
        ask = self.context.hooks.subscribe
        if ask is None:
            self._subscribe(session, packet, None)
            return
        self._subscribing = packet
        self.suspended = True
        try:
            rulings = ask(self, packet.filters)
        except Exception:  # fail closed
            self.counters.hook_failures += 1
            failed = Grant(spec.UNSPECIFIED_ERROR, "a hook failed")
            rulings = [FilterRuling(entry, failed) for entry in packet.filters]
        if rulings is not None and self.state != CLOSED:  # a hook may have closed it
            self.suspended = False
            self._subscribing = None
            self._subscribe(session, packet, rulings)

    def filtered(self, rulings: list[FilterRuling], now: float) -> None:
        """The late answer of `Hooks.subscribe`."""
        packet = self._subscribing
        session = self.session
        if self.state == CLOSED or packet is None or session is None:
            return
        self.context.at(now)
        self._subscribing = None
        self._subscribe(session, packet, rulings)
        self.go_on(now)

    def _subscribe(
        self, session: Session, packet: Subscribe, rulings: list[FilterRuling] | None
    ) -> None:
        """Subscribe to every filter that may be, and say what became of each."""
        reasons: list[int] = []
        watcher = self.context.watcher
        for place in range(len(packet.filters)):  # [MQTT-3.8.4-5] [MQTT-3.9.3-1]
            entry = packet.filters[place]
            why = ""
            reason = 0
            if rulings is not None:
                ruling = rulings[place]
                entry = ruling.entry
                reason = ruling.grant.code
                why = ruling.grant.rule if ruling.grant.rule else ruling.grant.reason
            if reason == 0:
                reason = self.router.subscribe(session, entry, packet.subscription_id)
            if watcher is not None:
                kind = SUBSCRIBE_DENIED if reason >= 0x80 else SUBSCRIBED
                if reason >= 0x80 and not why:
                    why = spec.reason_name(reason)
                topic = entry.topic_filter
                watcher.note(
                    kind, self.client_id, self.peer, topic, entry.qos, 0, why, self.username
                )
            if self.version < 5 and reason >= 0x80:
                reason = 0x80
            elif reason not in spec.SUBACK_REASONS:  # [MQTT-3.9.3-2] whatever a hook came up with
                reason = spec.NOT_AUTHORIZED
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
        meant = self.context.hooks.unsubscribe
        watcher = self.context.watcher
        for topic_filter in packet.filters:  # [MQTT-3.10.4-6]
            if meant is not None:
                try:
                    topic_filter = meant(self, topic_filter)
                except Exception:  # a hook that fails changes nothing
                    self.counters.hook_failures += 1
            if watcher is not None:
                watcher.note(
                    UNSUBSCRIBED, self.client_id, self.peer, topic_filter, 0, 0, "", self.username
                )
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
        self._note_end("by the client")
        # [MQTT-3.14.4-3] 0x00 discards the will, anything else lets it go out.
        with_will = packet.reason != spec.NORMAL_DISCONNECTION
        self._leave(with_will, now, count.GONE_BY_CLIENT)
        self.finish()

    # Leaving.

    def displace(self, now: float) -> None:
        """Another connection takes the session over. [MQTT-3.1.4-3]"""
        self.close(spec.SESSION_TAKEN_OVER, "session taken over", now)

    def _note_end(self, reason: str) -> None:
        self.router.note("disconnect", self.client_id, self.peer, reason, self.username)

    def _leave(self, with_will: bool, now: float, why: str) -> None:
        self.state = CLOSED
        session = self.session
        if session is not None:
            self.session = None
            self.writable = False
            self.drop_held()
            self.counters.leave(why)
            self.router.left(session, self, with_will, now)

    def _send_disconnect(self, code: int, reason: str) -> None:
        # [MQTT-3.14.2-2] [MQTT-3.14.2-4] a reason string is all that it ever carries.
        properties = Properties()
        if self.wants_reasons and reason:
            properties.reason_string = reason[:MAX_REASON]
        frame = encode.encode_disconnect(Disconnect(code, properties), self.version)
        if self.max_send and len(frame) > self.max_send:  # [MQTT-3.14.2-3]
            frame = encode.encode_disconnect(Disconnect(code), self.version)
        if not self.max_send or len(frame) <= self.max_send:
            self.send(frame)
