"""What was decided, for whoever asks later, and what has happened, for whoever watches.

Owns: `Watcher`, which writes down in passing what becomes of messages and clients: a bounded ring
of `Trace`s for `mqttd explain`, and a list of them for the plugins that observe. Without a watcher
nothing of this costs more than a comparison with None.

What goes well leaves one trace: that a message was accepted, and the names of all who match. Only
what differs from "it was sent to them" is written down for each receiver: dropped, queued, sent
out of the queue. What is still in flight stands in the sessions. A run of messages that differ in
nothing but their payload is one trace with a count, so that a flood doesn't wash away the rest.

Must not know: files and lines of rules (they come as text), the wall clock, who reads it.

Invariants: a trace keeps no session, message or payload alive (an observed one its payload, until
the next tick); the ring holds `limit` traces at most, `pending` `MAX_PENDING`; what no longer fits
is counted in `lost`.
"""

from collections import deque
from typing import Final

from mqttd.core.message import Message
from mqttd.core.trie import Matched

PUBLISHED: Final = 0  # accepted, and routed to `names`
DENIED: Final = 1  # a PUBLISH, refused for `reason`
DROPPED: Final = 2  # not for `client_id`
QUEUED: Final = 3  # waits for `client_id`
SENT: Final = 4  # was queued, has left now; of a shared group `reason` is the member it went to
DELIVERED: Final = 5  # acknowledged; at QoS 0 handed to the transport. For observers alone.
CONNECTED: Final = 6
DISCONNECTED: Final = 7
REFUSED: Final = 8  # a connection that never was a client
SUBSCRIBED: Final = 9
SUBSCRIBE_DENIED: Final = 10
UNSUBSCRIBED: Final = 11
CREATED: Final = 12  # a session
EXPIRED: Final = 13
TAKEN_OVER: Final = 14
CHANGED: Final = 15  # a hook changed the message, or took it

MAX_PENDING: Final = 20000
_MAX_MEMBERS: Final = 16  # of a group that are named in one trace


class Trace:
    """One line of the record. `topic` is a filter for what concerns subscriptions."""

    def __init__(
        self,
        kind: int,
        at: float,
        client_id: str,
        origin: str,
        topic: str,
        qos: int,
        serial: int,
        reason: str,
    ) -> None:
        self.kind = kind
        self.at = at  # of the first, in the core's clock
        self.until = at  # of the last
        self.client_id = client_id
        self.origin = origin  # client id of the publisher, or where a client connected from
        self.topic = topic
        self.qos = qos
        self.retain = False
        self.serial = serial  # of the message, 0 where there is none; of the first of `count`
        self.last_serial = serial
        self.count: int = 1
        self.reason = reason
        self.names: tuple[str, ...] = ()  # who matches
        # How many each member of a shared group was handed at once; "" for all who aren't named.
        self.members: dict[str, dict[str, int]] | None = None
        self.payload: bytes = b""  # for observers alone
        self.username: str | None = None


class Watcher:
    """The one place that the core tells."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.traces: deque[Trace] = deque()
        self.pending: list[Trace] = []
        self.lost: int = 0
        self.wants: int = 0  # kinds that somebody observes, a bit each
        self.now: float = 0.0  # of what the core is doing at the moment
        self.serial: int = 0  # of the last message
        self._last: Trace | None = None
        self._last_matched: Matched | None = None

    # Messages.

    def forwarded(self, client_id: str, matched: Matched, payload: bytes | None) -> None:
        """A QoS 0 PUBLISH was accepted unchanged. `payload`: only where `wants_payload`."""
        self.serial += 1
        last = self._last
        if (
            last is not None
            and matched is self._last_matched
            and last.client_id == client_id
            and last.qos == 0
            and payload is None
        ):
            last.count += 1
            last.until = self.now
            last.last_serial = self.serial
            return
        self._publish(client_id, matched, 0, False, "", payload)

    def published(self, message: Message, matched: Matched, rule: str) -> None:
        """A PUBLISH was accepted, under `rule`; from here on the message has a serial."""
        self.serial += 1
        message.serial = self.serial
        last = self._last
        wanted = self.wants & 1 != 0
        if (
            last is not None
            and matched is self._last_matched
            and last.client_id == message.origin
            and last.qos == message.qos
            and last.retain == message.retain
            and last.reason == rule
            and not wanted
        ):
            last.count += 1
            last.until = self.now
            last.last_serial = self.serial
            return
        payload = message.payload if wanted else None
        self._publish(message.origin, matched, message.qos, message.retain, rule, payload)

    def _publish(
        self,
        client_id: str,
        matched: Matched,
        qos: int,
        retain: bool,
        rule: str,
        payload: bytes | None,
    ) -> None:
        trace = Trace(PUBLISHED, self.now, client_id, "", matched.topic, qos, self.serial, rule)
        trace.retain = retain
        trace.names = names_of(matched)
        self._keep(trace)
        self._last_matched = matched
        if payload is not None:
            copy = Trace(PUBLISHED, self.now, client_id, "", matched.topic, qos, self.serial, "")
            copy.retain = retain
            copy.payload = payload
            self._tell(copy)

    @property
    def wants_payload(self) -> bool:
        """Somebody observes what is published."""
        return self.wants & 1 != 0

    def outcome(self, kind: int, client_id: str, message: Message, reason: str) -> None:
        """What became of a message for one receiver, or on its way to all of them."""
        self.note(
            kind, client_id, message.origin, message.topic, message.qos, message.serial, reason
        )

    def handed(self, group: str, client_id: str, message: Message) -> None:
        """A shared group has given a message to one of its members."""
        last = self._last
        if last is None or last.kind != PUBLISHED or last.last_serial != message.serial:
            self.note(SENT, group, message.origin, message.topic, 0, message.serial, client_id)
            return
        if last.members is None:
            last.members = {}
        found = last.members.get(group)
        if found is None:
            found = last.members[group] = {}
        if client_id not in found and len(found) >= _MAX_MEMBERS:
            client_id = ""
        found[client_id] = found.get(client_id, 0) + 1

    # Everything.

    def note(
        self,
        kind: int,
        client_id: str,
        origin: str,
        topic: str,
        qos: int,
        serial: int,
        reason: str,
        username: str | None = None,
    ) -> None:
        if kind != DELIVERED:
            last = self._last
            if (
                last is not None
                and last.kind == kind
                and last.client_id == client_id
                and last.topic == topic
                and last.origin == origin
                and last.reason == reason
                and last.qos == qos
                and serial
            ):
                last.count += 1
                last.until = self.now
                last.last_serial = serial
            else:
                self._keep(Trace(kind, self.now, client_id, origin, topic, qos, serial, reason))
                self._last_matched = None
        if self.wants >> kind & 1:
            trace = Trace(kind, self.now, client_id, origin, topic, qos, serial, reason)
            trace.username = username
            self._tell(trace)

    def _keep(self, trace: Trace) -> None:
        traces = self.traces
        traces.append(trace)
        if len(traces) > self.limit:
            traces.popleft()
        self._last = trace

    def _tell(self, trace: Trace) -> None:
        if len(self.pending) >= MAX_PENDING:
            self.lost += 1
        else:
            self.pending.append(trace)

    def take(self) -> list[Trace]:
        """What observers have not been told yet."""
        pending = self.pending
        self.pending = []
        return pending


def names_of(matched: Matched) -> tuple[str, ...]:
    """The client ids that a topic leads to, and the shared groups as `$share/NAME/FILTER`."""
    names = matched.names
    if names is None:
        found = [target.subscriber.client_id for target in matched.targets]
        for group in matched.groups:
            found.append(group.title)
        names = matched.names = tuple(found)
    return names
