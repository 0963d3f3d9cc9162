"""The inbound half of a connection's messages: PUBLISH, and what acknowledges it.

Owns: what may be published, and when; topic aliases from the client; the inbound exchanges of QoS 1
and 2; what a client was granted by the hooks, topic by topic, and the one PUBLISH that waits for
their answer.

Must not know: how packets come, other packets, who receives (`Router` does).

Invariants: a PUBLISH that hooks have to see is made whole before they are asked, so that it can
wait as plain data; while it waits the connection is suspended and nothing after it is read; what
was refused or taken has never been routed; a repeated QoS 2 PUBLISH meets no hook again.
"""

from typing import Final

from mqttd.core import encode, journal, spec
from mqttd.core.auth import Grant, Ruling
from mqttd.core.decode import PublishFields, scan_publish
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import CLOSED, Handshake, is_reserved
from mqttd.core.message import Message
from mqttd.core.outbound import MAX_REMEMBERED
from mqttd.core.packets import Puback, Pubcomp, Pubrec
from mqttd.core.router import ListenerInfo, Router
from mqttd.core.session import Session
from mqttd.core.trie import Matched
from mqttd.core.watch import CHANGED, DENIED

_PUBACK: Final = b"\x40\x02"
_PUBREC: Final = b"\x50\x02"
_PUBCOMP: Final = b"\x70\x02"
_RESERVED: Final = Grant(spec.NOT_AUTHORIZED, "a topic that only the broker writes")


class Inbound(Handshake):
    """The part of a connection that takes messages in."""

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
        self._grants: dict[bytes, Grant] | None = None  # by topic, as the hooks have said
        self._waiting: Message | None = None  # the PUBLISH that hooks are asked about
        self._waiting_id: int = 0

    def on_publish(
        self, first: int, data: bytes, start: int, pos: int, end: int, now: float
    ) -> None:
        """A PUBLISH of the client: `data` from `start` to `end`, its body from `pos`."""
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
        rule = ""
        if self.context.hooks.publish is not None and not reserved:
            grants = self._grants
            grant = None if grants is None else grants.get(key)
            if grant is None or grant.code or self.context.hooks.transforms:
                self._ask(self._message_of(first, data, end, matched, now), grant, now)
                return
            rule = grant.rule
        qos = first >> 1 & 3
        if first & 15 or alias or fields.message_expiry >= 0:
            message = self._message_of(first, data, end, matched, now)
            if first & 9 == 0 and not alias and not message.expires_at:
                # Neither DUP nor RETAIN, and nothing to change: what came around the identifier
                # serves a receiver of the same version at the same QoS.
                message.split_as_received(
                    data[start : fields.rest_at - 2],
                    message.payload if self.version < 5 else data[fields.rest_at : end],
                    qos | 8 if self.version >= 5 else qos,
                )
            if reserved:
                self._refuse(message, fields.packet_id, session, _RESERVED)
            else:
                self._take(message, qos, fields.packet_id, matched, session, rule, False, now)
        elif reserved:
            self.counters.publish_refused += 1
        else:
            # QoS 0 and nothing to change: a receiver of the same version gets what came.
            frame = data if start == 0 and end == len(data) else data[start:end]
            router.forward(frame, fields.payload_at - start, matched, session, now)

    def _message_of(
        self, first: int, data: bytes, end: int, matched: Matched, now: float
    ) -> Message:
        """The PUBLISH in `Router.fields` as a message of its own."""
        fields = self.router.fields
        expires_at = 0.0
        if fields.message_expiry >= 0:
            expires_at = now + fields.message_expiry
        return Message(
            matched.topic,
            matched.key,
            data[fields.payload_at : end],
            first >> 1 & 3,
            first & 1 != 0,
            fields.properties,
            expires_at,
            self.client_id,
        )

    def _take(
        self,
        message: Message,
        qos: int,
        packet_id: int,
        matched: Matched,
        session: Session,
        rule: str,
        taken: bool,
        now: float,
    ) -> None:
        """A message that may be published, after a PUBLISH of `qos`.

        `taken`: a hook has it, and nobody else gets it.
        """
        watcher = self.context.watcher
        if watcher is not None and (qos != 2 or packet_id not in session.inbound):
            if taken:
                matched = Matched(matched.topic, matched.key, 0, [], [], 1)
            watcher.published(message, matched, rule)
        if qos == 1:  # [MQTT-3.3.4-1]
            self.counters.publish_received_qos1 += 1
            self._publish_qos1(packet_id, message, matched, session, taken, now)
        elif qos == 2:
            self.counters.publish_received_qos2 += 1
            self._publish_qos2(packet_id, message, matched, session, taken, now)
        elif not taken:
            # [MQTT-3.3.1-8] At QoS 0 a broker need not retain: with a full disk it doesn't.
            if self.journal.refusing:
                message.qos = 0
            elif message.retain:
                self.router.retain(message)
            self.router.route(message, matched, session, now)

    # Hooks.

    def _ask(self, message: Message, grant: Grant | None, now: float) -> None:
        """Have the hooks decide on a message, now or later."""
        session = self.session
        assert session is not None
        packet_id = self.router.fields.packet_id
        if message.qos == 2 and packet_id in session.inbound:
            # A repetition: it was decided, and is acknowledged again.
            matched = self.router.trie.lookup(message.key)
            self._take(message, 2, packet_id, matched, session, "", False, now)
            return
        if grant is not None and grant.code:
            self._refuse(message, packet_id, session, grant)
            return
        ask = self.context.hooks.publish
        assert ask is not None
        self._waiting = message
        self._waiting_id = packet_id
        self.suspended = True
        try:
            ruling = ask(self, message, grant is not None)
        except Exception:  # fail closed
            self.counters.hook_failures += 1
            ruling = Ruling(Grant(spec.UNSPECIFIED_ERROR, "a hook failed"), None)
        if ruling is not None and self.state != CLOSED:  # a hook may have closed it
            self.suspended = False
            self._rule(ruling, now)

    def ruled(self, ruling: Ruling, now: float) -> None:
        """The late answer of `Hooks.publish`."""
        if self.state == CLOSED or self._waiting is None:
            return
        self.context.at(now)
        try:
            self._rule(ruling, now)
        except ProtocolError as error:
            self.fail(error, now)
        self.go_on(now)

    def _rule(self, ruling: Ruling, now: float) -> None:
        asked = self._waiting
        session = self.session
        assert asked is not None
        assert session is not None
        packet_id = self._waiting_id
        self._waiting = None
        grant = ruling.grant
        if ruling.cache:
            self._remember(asked.key, grant)
        if grant.code:
            self._refuse(asked, packet_id, session, grant)
            if ruling.disconnect:
                raise ProtocolError(grant.code, "", grant.reason)
            return
        message = asked if ruling.message is None else ruling.message
        if message is not asked and is_reserved(message.topic):
            self._refuse(asked, packet_id, session, _RESERVED)
            return
        matched = self.router.trie.lookup(message.key)
        taken = ruling.message is None
        rule = grant.rule
        if not rule and self._grants is not None:
            known = self._grants.get(asked.key)  # allowed before, which no rule was asked again for
            rule = "" if known is None else known.rule
        # What the client is answered follows from the QoS that it chose.
        self._take(message, asked.qos, packet_id, matched, session, rule, taken, now)
        if ruling.changes and self.context.watcher is not None:
            self.context.watcher.outcome(CHANGED, self.client_id, message, ruling.changes)

    def _remember(self, key: bytes, grant: Grant) -> None:
        grants = self._grants
        if grants is None:
            grants = self._grants = {}
        elif len(grants) >= MAX_REMEMBERED:
            grants.clear()
        grants[key] = grant

    def forget_decisions(self) -> None:
        super().forget_decisions()
        self._grants = None

    def _refuse(self, message: Message, packet_id: int, session: Session, grant: Grant) -> None:
        """A message that may not be published."""
        watcher = self.context.watcher
        if watcher is not None:
            watcher.serial += 1
            message.serial = watcher.serial
            why = grant.reason if not grant.rule else grant.rule
            watcher.outcome(DENIED, self.client_id, message, why)
        if message.qos == 0:
            self.counters.publish_refused += 1
            return
        if self.inbound_open >= self._receive_maximum:
            self._overrun()
        self._deny(packet_id, message.qos == 2, grant.code)

    def _publish_qos1(
        self,
        packet_id: int,
        message: Message,
        matched: Matched,
        session: Session,
        taken: bool,
        now: float,
    ) -> None:
        if self.inbound_open >= self._receive_maximum:
            self._overrun()
        if self.journal.refusing and (taken or self.router.storable(message, matched)):
            if self.version >= 5:
                self._deny(packet_id, False, self.journal.refusing)
            return  # MQTT 3 has no word for it: without an acknowledgement the client keeps it
        if taken:
            barrier = self.journal.last() if self.journal.enabled else 0
            found = 1
        else:
            barrier = self.router.retain(message) if message.retain else 0  # [MQTT-3.3.1-8]
            # [MQTT-4.3.2-5] an identifier is never compared with that of another PUBLISH.
            found = self.router.route(message, matched, session, now)
            if self.context.letters is not None:
                barrier = max(barrier, self.router.bury(now))
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
            frame = encode.encode_puback(puback, self.version)
            self.promise(frame, barrier, waits_for, frees, self.last_received)
        else:  # [MQTT-4.3.2-4] [MQTT-2.2.1-5]
            self.promise_ack(_PUBACK, packet_id, barrier, waits_for, frees, self.last_received)

    def _publish_qos2(
        self,
        packet_id: int,
        message: Message,
        matched: Matched,
        session: Session,
        taken: bool,
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
        if self.journal.refusing and (
            taken or session.durable or self.router.storable(message, matched)
        ):
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
        if taken:
            barrier = self.journal.last() if self.journal.enabled else 0
            found = 1
        else:
            if message.retain:  # [MQTT-3.3.1-8]
                barrier = max(barrier, self.router.retain(message))
            found = self.router.route(message, matched, session, now)
            if self.context.letters is not None:
                barrier = max(barrier, self.router.bury(now))
        if message.undurable:
            barrier = self.journal.seq
        if found == 0 and self.version >= 5:
            # [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.1.2-29]
            pubrec = Pubrec(packet_id, spec.NO_MATCHING_SUBSCRIBERS)
            frame = encode.encode_pubrec(pubrec, self.version)
            self.promise(frame, barrier, None, False, self.last_received)
        else:  # [MQTT-4.3.3-8]
            self.promise_ack(_PUBREC, packet_id, barrier, None, False, self.last_received)

    def on_pubrel(self, session: Session, packet_id: int) -> None:
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

    def _overrun(self) -> None:
        raise ProtocolError(
            spec.RECEIVE_MAXIMUM_EXCEEDED, "MQTT-3.3.4-7", "more QoS > 0 in flight than allowed"
        )

    def _deny(self, packet_id: int, qos2: bool, code: int) -> None:
        """A message that isn't taken: an error for MQTT 5, silence before."""
        self.counters.publish_refused += 1
        if code not in spec.PUBACK_REASONS:  # [MQTT-3.4.2-1] [MQTT-3.5.2-1]
            code = spec.NOT_AUTHORIZED  # whatever a hook came up with
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
