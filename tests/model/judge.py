"""The verdict on every packet that a client receives, by what the reference says it is owed.

Owns: what may be sent now, as what, in which order, and what must have been sent once nothing is
left to do. A violation is an AssertionError that names the promise.
"""

from tests.model.reference import (
    DONE,
    NO_MATCH,
    RELEASED,
    SENT,
    Connection,
    Owed,
    Receipt,
    Reference,
    Session,
    Sub,
    Ticket,
)

Wanted = tuple[str, bytes, int, bool, tuple[int, ...]]  # topic, payload, QoS, RETAIN, identifiers


class Judge(Reference):
    """The reference, shown what clients receive."""

    def dropped(self, count: int) -> None:
        """The broker says that it dropped so many for a full queue since the last call."""
        most = sum(len(victims) for _, victims in self.full)
        assert count <= most, f"{count} dropped, {most} may be"
        for queue, victims in self.full if count else ():
            if count == most:
                queue[:] = [owed for owed in queue if owed not in victims]
                for owed in victims:
                    owed.state = DONE
                continue
            for owed in queue:
                owed.certain = owed.certain and not any(owed.like(each) for each in victims)
        self.full = []

    # What clients receive.

    def established(self, connection: Connection, promise: int) -> None:
        """CONNACK to a client; what it says became true after `promise` commits (-1: long ago)."""
        kept = promise < 0 or self.covered(promise)
        assert kept, "CONNACK before what it says is durable"
        connection.established = True

    def acknowledged(self, receipt: Receipt, reason: int, repeated: bool) -> None:
        """PUBACK or PUBREC: whoever is owed the message has it, or would after a crash."""
        assert reason == (0 if receipt.found else NO_MATCH) or (repeated and reason == 0)
        if self.covered(receipt.since):
            return
        assert not receipt.durable, "acknowledged before it is durable"
        left = [owed for owed in self._due(receipt.owed) if owed.durable and owed.state != DONE]
        assert not left, f"acknowledged before this is durable: {left}"

    def received(
        self, connection: Connection, wanted: Wanted, dup: bool, packet_id: int, expiry: int
    ) -> Owed:
        """PUBLISH to a client: it must be owed, now, like this."""
        session, qos = connection.session, wanted[2]
        wanted = (*wanted[:4], tuple(sorted(wanted[4])))
        assert connection.established, "PUBLISH before CONNACK"
        owed = session.open.get(packet_id) if qos else None
        if owed is None:
            owed = self._first(session, wanted, expiry)
            assert not dup or owed.maybe_sent, "DUP on what was never sent"
            assert not owed.held or self.covered(owed.since), "QoS 2 sent on before it is durable"
            # [MQTT-3.3.2-5] After a crash nobody knows whether it was begun before.
            late = owed.message.expired(self.now) and not (qos and owed.maybe_sent)
            assert not late, "sent after it expired"
        else:
            assert dup, "a packet id that is in use, or a repetition without DUP"
            assert owed.state == SENT, "PUBLISH after PUBREC"  # [MQTT-4.3.3-6]
            assert packet_id not in connection.sent, "sent twice on one connection"
            assert self._again(connection)[0] is owed, "resent out of order"  # [MQTT-4.4.0-1]
            assert wanted == _as_sent(owed), "a repetition that differs"
        assert expiry == _left(owed, self.now), "Message Expiry Interval"  # [MQTT-3.3.2-6]
        if not qos:
            owed.state = DONE
            return owed
        assert connection.quota > 0, "more in flight than Receive Maximum"  # [MQTT-3.3.4-9]
        assert qos < 2 or not owed.durable or self.covered(owed.since), "QoS 2 not durable yet"
        connection.quota -= 1
        connection.sent.add(packet_id)
        owed.state = SENT
        session.open[packet_id] = owed
        return owed

    def _due(self, queue: list[Owed]) -> list[Owed]:
        return [each for each in queue if each.certain and not each.message.expired(self.now)]

    def _again(self, connection: Connection) -> list[Owed]:
        """What is to be sent again on this connection."""
        found = connection.session.open.items()
        return [o for number, o in found if o.state == SENT and number not in connection.sent]

    def _first(self, session: Session, wanted: Wanted, expiry: int) -> Owed:
        """The copy that a first sending is of; taken from where it waited."""
        topic, payload, qos, retain, identifiers = wanted
        fits = [each for each in session.owed if _as_sent(each) == wanted]
        fits.sort(key=lambda each: expiry != _left(each, self.now))
        if fits:
            owed = fits[0]
            before = session.owed[: session.owed.index(owed)]
            passed = [each for each in before if each.lane == owed.lane]
            assert not self._due(passed), f"out of order, or lost: {self._due(passed)}"
            gone = [*passed, owed]
            session.owed[:] = [each for each in session.owed if each not in gone]
            if owed.message.retain and payload:
                versions = [v for v, each in self.history[topic] if each.payload == payload]
                session.seen[topic, qos] = max(session.seen.get((topic, qos), 0), versions[0])
            return owed
        for name, sub in session.subs.items():
            pool = self.state.pools.get(name, [])
            for owed in sorted(pool, key=lambda each: expiry != _left(each, self.now)):
                m = owed.message
                as_published = m.retain and sub.as_published
                if wanted == (m.topic, m.payload, min(m.qos, sub.qos), as_published, _ids(sub)):
                    pool.remove(owed)
                    owed.qos, owed.retain, owed.identifiers = qos, retain, identifiers
                    owed.durable = qos > 0 and session.expiry > 0
                    return owed
        for ticket in session.tickets:
            redeemed = self._redeem(session, ticket, wanted)
            if redeemed is not None:
                session.tickets.remove(ticket)
                return redeemed
        raise AssertionError(f"{session.client} is not owed {wanted}: {session}")

    def _redeem(self, session: Session, ticket: Ticket, wanted: Wanted) -> Owed | None:
        """The retained message of a ticket, if `wanted` can be it."""
        qos, identifiers = wanted[2], wanted[4]
        for version, message in reversed(self.history[ticket.topic]):
            if version < ticket.version:
                return None
            for sub in ticket.subs:
                lowest = min(message.qos, sub.qos)
                as_sent = (message.topic, message.payload, lowest, True, _ids(sub))
                if wanted == as_sent and not (sub.no_local and message.origin == session.client):
                    seen = session.seen.get((ticket.topic, qos), 0)
                    assert version >= seen, "a replay older than what was seen already"
                    kind, durable = f"replay {ticket.number}", qos > 0 and session.expiry > 0
                    owed = Owed(message, qos, True, identifiers, kind, ticket.since, durable)
                    owed.maybe_sent = not ticket.certain
                    return owed
        return None

    def answered(self, connection: Connection, packet_id: int, released: bool) -> None:
        """PUBREC from a client if `released`, otherwise its PUBACK or PUBCOMP."""
        owed = connection.session.open[packet_id]
        if released:
            owed.state, owed.since = RELEASED, self.commits
            return
        owed.state = DONE
        del connection.session.open[packet_id]
        connection.sent.discard(packet_id)
        connection.released.discard(packet_id)
        connection.quota = min(connection.quota + 1, connection.limit)  # [MQTT-4.9.0-2]

    def released(self, connection: Connection, packet_id: int) -> None:
        """PUBREL to a client: PUBREC came, and will have come after a crash as well."""
        owed = connection.session.open.get(packet_id)
        assert owed is not None, "PUBREL for nothing"
        assert owed.state == RELEASED, "PUBREL without PUBREC"  # [MQTT-4.3.3-4]
        assert packet_id not in connection.released, "PUBREL twice"
        assert not owed.durable or self.covered(owed.since), "PUBREL before PUBREC is durable"
        connection.released.add(packet_id)

    def at_rest(self) -> None:
        """Nothing is left to commit or to send: what could have been sent was."""
        for connection in self.connections.values():
            session = connection.session
            if session.connection != connection.number or not connection.established:
                continue
            released = {n for n, owed in session.open.items() if owed.state == RELEASED}
            assert released <= connection.released, "PUBREL is missing"
            waiting = self._due(session.owed)
            assert not [o for o in waiting if o.message.qos == 0], f"QoS 0 is missing: {waiting}"
            if connection.quota <= 0:
                continue
            assert not self._again(connection), f"not resent: {self._again(connection)}"
            assert not waiting, f"not sent: {waiting}"
            for name in session.subs:
                left = self._due(self.state.pools.get(name, []))
                assert not left, f"nobody in the group was sent {left}"
            for ticket in session.tickets:
                retained = self.state.retained.get(ticket.topic)
                gone = retained is None or retained[1].expired(self.now)
                assert gone or not ticket.certain, f"a retained message is missing: {ticket}"
            session.tickets.clear()  # nothing is in the way of a replay: it has ended
            session.replaying.clear()

    def drained(self) -> None:
        """Everybody was here and took everything."""
        for session in self.state.sessions.values():
            assert not session.open, f"never finished: {session.open}"
            assert not self._due(session.owed), f"lost: {session.owed}"
            assert not session.inbound, f"never released: {session.inbound}"


def _ids(sub: Sub) -> tuple[int, ...]:
    return (sub.identifier,) if sub.identifier else ()


def _left(owed: Owed, now: float) -> int:
    """The Message Expiry Interval that goes with it, -1 for none."""
    end = owed.message.expires_at
    return max(1, int(end - now)) if end else -1


def _as_sent(owed: Owed) -> Wanted:
    message = owed.message
    return (message.topic, message.payload, owed.qos, owed.retain, owed.identifiers)
