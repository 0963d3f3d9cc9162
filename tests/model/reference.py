"""What MQTT 5 and docs/explanation/delivery.md promise, as a small model of a broker.

Owns: the state a right broker has (sessions, retained messages, the messages of shared groups) and
what each client is owed, in which order. Written from the standard; it knows nothing of how mqttd
does it. `tests.model.judge` compares it with what clients receive.

A crash. What a file holds depends on what was written, and `commit` is when it is written: so
`picture` notes all that has to survive and `restore` goes back to it. That an acknowledgement is
never given for what isn't in the picture is judged as each arrives (`covered`). Together that is
"acknowledged survives, the rest may be gone", without sets of possible worlds.

What the model can't know it doesn't claim: a copy that isn't `certain` may arrive, once, or not at
all. Such are the victims of a full queue that can't be told apart, QoS 0 for a client that leaves,
and retained replays that a lost connection cut short.

Times are the time of day, in steps that a float holds exactly.
"""

import pickle
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

INFINITY: Final = float("inf")
WAITING, SENT, RELEASED, DONE = range(4)
NO_MATCH, NO_SUBSCRIPTION, NOT_FOUND = 0x10, 0x11, 0x92


@dataclass(frozen=True)
class Sub:
    """The options of a subscription."""

    qos: int = 0
    no_local: bool = False
    as_published: bool = False
    handling: int = 0
    identifier: int = 0


@dataclass(frozen=True)
class Message:
    """A message as it was published; `number` is the same for a PUBLISH and its repetitions."""

    number: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    origin: str
    expires_at: float = 0.0  # 0.0: never

    def expired(self, now: float) -> bool:
        return 0.0 < self.expires_at <= now


@dataclass(frozen=True)
class Will:
    message: Message  # its `expires_at` is still an interval
    delay: int


@dataclass(eq=False)
class Owed:
    """One copy of a message that a session, or a shared group, has to get."""

    message: Message
    qos: int
    retain: bool
    identifiers: tuple[int, ...]
    kind: str  # "live", the name of a shared subscription, or "replay" and its number
    since: int  # commits that there were when it came up
    durable: bool
    held: bool = False  # QoS 2 of a session that could send it again after a crash
    certain: bool = True
    state: int = WAITING
    forsaken: bool = False  # its shared group has ended, though one of the name may begin anew
    maybe_sent: bool = False  # a restart lies between: the broker may take it for sent

    def like(self, other: "Owed") -> bool:
        """A client could not tell which of the two it got."""
        mine, its = self.message, other.message
        return (mine.topic, mine.payload, self.qos) == (its.topic, its.payload, other.qos)

    @property
    def lane(self) -> tuple[str, str, int, int, str]:
        """Within a lane the order is promised. [MQTT-4.6.0-6]"""
        message = self.message
        return (message.origin, message.topic, message.qos, self.qos, self.kind)


@dataclass(eq=False)
class Ticket:
    """A retained message that a SUBSCRIBE asked for; a newer one of its topic will do as well."""

    number: int
    topic: str
    topic_filter: str
    version: int
    subs: list[Sub]
    since: int
    certain: bool = True


@dataclass(eq=False)
class Session:
    client: str
    owner: str | None
    life: int  # differs for each session of a client id
    since: int
    expiry: int = 0
    connection: int = 0  # 0: none
    stored: bool = False  # it was to survive its connection at some time
    expires_at: float = 0.0
    will: Will | None = None
    will_at: float = 0.0
    subs: dict[str, Sub] = field(default_factory=dict)
    owed: list[Owed] = field(default_factory=list)  # in the order of publishing
    open: dict[int, Owed] = field(default_factory=dict)  # by packet id, in the order of sending
    tickets: list[Ticket] = field(default_factory=list)
    replaying: set[str] = field(default_factory=set)  # filters that may still lead to replays
    inbound: dict[int, "Receipt"] = field(default_factory=dict)
    seen: dict[tuple[str, int], int] = field(default_factory=dict)  # (topic, QoS) → newest version


@dataclass(eq=False)
class Receipt:
    """What a PUBLISH came to, and hence what its acknowledgement promises."""

    message: Message
    since: int
    found: int
    owed: list[Owed]
    durable: bool  # something besides its deliveries has to survive


@dataclass
class State:
    """All that a restart brings back."""

    sessions: dict[str, Session] = field(default_factory=dict)
    retained: dict[str, tuple[int, Message]] = field(default_factory=dict)  # topic → version, it
    pools: dict[str, list[Owed]] = field(default_factory=dict)  # of shared groups, by filter


@dataclass(eq=False)
class Connection:
    """One connection as its client sees it."""

    number: int
    session: Session
    limit: int  # Receive Maximum
    quota: int = 0
    established: bool = False
    sent: set[int] = field(default_factory=set)  # packet ids of PUBLISH packets on it
    released: set[int] = field(default_factory=set)  # and of PUBREL packets


class Reference:
    """The judge. Told what clients do before the broker is, shown what they receive."""

    def __init__(
        self, durable: bool, max_queued: int, drop_oldest: bool, max_inflight: int
    ) -> None:
        self.durable = durable
        self.max_queued = max_queued
        self.drop_oldest = drop_oldest
        self.max_inflight = max_inflight
        self.now = 0.0
        self.state = State()
        self.connections: dict[int, Connection] = {}
        self.commits = 0
        self.wills = 0  # published by this broker
        self.full: list[tuple[list[Owed], list[Owed]]] = []  # queues that may be full, victims
        self.history: dict[str, list[tuple[int, Message]]] = {}  # what was ever retained
        self.changed: dict[str, int] = {}  # topic → commits when what it retains changed last
        self.ended: dict[str, int] = {}  # client → commits when its last session ended
        self._count = 0
        self._pictured = 0
        self._picture = pickle.dumps(self.state)

    def number(self) -> int:
        self._count += 1
        return self._count

    def covered(self, since: int) -> bool:
        """Whether what came up after `since` commits would survive a crash."""
        return not self.durable or self.commits > since

    # Connections and sessions.

    def connect(
        self,
        client: str,
        owner: str | None,
        clean: bool,
        expiry: int,
        limit: int,
        will: Will | None,
    ) -> tuple[Connection, bool, int] | None:
        """CONNECT: the connection, Session Present, and since when it is a promise (-1: none)."""
        session = self.state.sessions.get(client)
        if session is not None and session.owner != owner:
            return None
        if session is not None and session.connection:
            self.lose(session, True)  # [MQTT-3.1.4-3]
            session = self.state.sessions.get(client)
        if session is not None and clean:  # [MQTT-3.1.2-4]
            self.end(session)
            session = None
        present = session is not None
        promise = self.ended.get(client, -1)
        if session is None:
            session = Session(client, owner, self.number(), self.commits)
            self.state.sessions[client] = session
        else:
            promise = session.since
        session.expiry, session.will = expiry, will
        session.stored = session.stored or expiry > 0
        session.expires_at = session.will_at = 0.0  # [MQTT-3.1.3-9]
        connection = Connection(self.number(), session, min(limit, self.max_inflight))
        # [MQTT-3.3.4-9] what has its PUBREC and no PUBCOMP yet counts, whoever sent it when.
        held = [owed for owed in session.open.values() if owed.state == RELEASED]
        connection.quota = connection.limit - len(held)
        session.connection = connection.number
        self.connections[connection.number] = connection
        return connection, present, promise

    def lose(self, session: Session, with_will: bool) -> None:
        """The connection has ended; `with_will`: not by DISCONNECT with reason 0."""
        session.connection = 0
        for owed in session.owed:
            owed.certain = owed.certain and owed.qos > 0
        for ticket in session.tickets:
            ticket.certain = False
        self._give_back(session, session.subs)
        if session.will is not None and not with_will:  # [MQTT-3.14.4-3]
            session.will = None
        if session.will is not None:  # [MQTT-3.1.2-8]
            session.will_at = self.now + min(session.will.delay, session.expiry)
            if session.will_at <= self.now:
                self._publish_will(session)
        session.expires_at = self.now + session.expiry
        if not session.expiry:
            self.end(session)

    def end(self, session: Session) -> None:
        if session.will_at:
            self._publish_will(session)
        del self.state.sessions[session.client]
        if session.stored:
            self.ended[session.client] = self.commits
        for topic_filter in [name for name in session.subs if is_shared(name)]:
            del session.subs[topic_filter]
            self._dissolve(topic_filter)
        self._give_back(session, self.state.pools)
        for owed in (*session.owed, *session.open.values()):
            owed.state = DONE

    def advance(self, now: float) -> None:
        """Time passes: wills and ends of sessions, each at its instant."""
        while True:
            due = [
                (min(at for at in (s.will_at, s.expires_at) if at), s.client)
                for s in self.state.sessions.values()
                if not s.connection
            ]
            if not due or min(due)[0] > now:
                break
            at, client = min(due)
            self.now = max(self.now, at)
            session = self.state.sessions[client]
            if session.will_at == at:
                self._publish_will(session)
            if session.expires_at <= self.now:
                self.end(session)
        self.now = now

    def _publish_will(self, session: Session) -> None:
        will, session.will, session.will_at = session.will, None, 0.0
        assert will is not None
        m = will.message
        expires_at = self.now + m.expires_at if m.expires_at else 0.0
        self.wills += 1
        self.route(
            Message(m.number, m.topic, m.payload, m.qos, m.retain, m.origin, expires_at), session
        )

    def _give_back(self, session: Session, groups: Collection[str]) -> None:
        """QoS 1 that a member of a shared group leaves unfinished is free for any other."""
        for packet_id, owed in reversed(list(session.open.items())):
            if owed.kind in groups and owed.qos == 1 and not owed.forsaken:
                del session.open[packet_id]
                owed.state = WAITING
                owed.durable = self._outlives(owed.kind)
                self.state.pools[owed.kind].insert(0, owed)

    def _dissolve(self, topic_filter: str) -> None:
        if not any(topic_filter in each.subs for each in self.state.sessions.values()):
            for owed in self.state.pools.pop(topic_filter, []):
                owed.state = DONE
            for session in self.state.sessions.values():
                for owed in session.open.values():
                    owed.forsaken = owed.forsaken or owed.kind == topic_filter

    def is_here(self, session: Session) -> bool:
        connection = self.connections.get(session.connection)
        return connection is not None and connection.established

    def _outlives(self, group: str) -> bool:
        return any(each.expiry and group in each.subs for each in self.state.sessions.values())

    # Subscriptions and publishing.

    def subscribe(self, session: Session, topic_filter: str, sub: Sub) -> None:
        known = session.subs.pop(topic_filter, None)
        session.subs[topic_filter] = sub
        if is_shared(topic_filter):  # [MQTT-4.8.2]: no retained messages
            self.state.pools.setdefault(topic_filter, [])
            return
        replay = sub.handling == 0 or (sub.handling == 1 and known is None)
        for ticket in session.tickets:
            if ticket.topic_filter == topic_filter:
                ticket.certain = ticket.certain and not replay
                ticket.subs.append(sub)
        if replay:  # [MQTT-3.3.1-9] [MQTT-3.3.1-10]
            session.replaying.add(topic_filter)
            for topic in self.state.retained:
                if matches(topic_filter, topic):
                    self._add_ticket(session, topic_filter, topic, True)

    def _add_ticket(self, session: Session, topic_filter: str, topic: str, certain: bool) -> None:
        version, message = self.state.retained[topic]
        sub = session.subs[topic_filter]
        if not message.expired(self.now) and not (
            sub.no_local and message.origin == session.client
        ):
            session.tickets.append(
                Ticket(self.number(), topic, topic_filter, version, [sub], self.commits, certain)
            )

    def unsubscribe(self, session: Session, topic_filter: str) -> int:
        if session.subs.pop(topic_filter, None) is None:
            return NO_SUBSCRIPTION
        session.replaying.discard(topic_filter)
        for ticket in session.tickets:
            ticket.certain = ticket.certain and ticket.topic_filter != topic_filter
        if is_shared(topic_filter):
            self._dissolve(topic_filter)
        return 0

    def publish(self, session: Session, message: Message, packet_id: int) -> Receipt:
        """PUBLISH from a client. At QoS 2 a repetition is recognised. [MQTT-4.3.3-10]"""
        if message.qos == 2 and packet_id in session.inbound:
            return session.inbound[packet_id]
        receipt = self.route(message, session)
        if message.qos == 2:
            session.inbound[packet_id] = receipt
            receipt.durable = receipt.durable or session.expiry > 0
            for owed in receipt.owed:
                owed.held = session.expiry > 0
        return receipt

    def pubrel(self, session: Session, packet_id: int) -> int:
        return NOT_FOUND if session.inbound.pop(packet_id, None) is None else 0

    def route(self, message: Message, origin: Session) -> Receipt:
        """Who is owed a message, and as what."""
        receipt = Receipt(message, self.commits, 0, [], message.retain and self._retain(message))
        sessions = self.state.sessions.values()
        for session in sessions:
            subs = [
                sub
                for name, sub in session.subs.items()
                if matches(name, message.topic) and not (sub.no_local and session is origin)
            ]  # [MQTT-3.8.3-3]
            if subs:
                receipt.owed.append(self._owe(session, message, subs))
        for name, pool in self.state.pools.items():
            if matches(name.split("/", 2)[2], message.topic):
                durable = message.qos > 0 and self._outlives(name)
                owed = Owed(message, message.qos, False, (), name, self.commits, durable)
                if message.qos or any(name in s.subs and self.is_here(s) for s in sessions):
                    self._append(pool, owed)
                receipt.owed.append(owed)
        receipt.found = len(receipt.owed)
        return receipt

    def _retain(self, message: Message) -> bool:
        """Whether there is something in it that a crash could undo."""
        topic = message.topic
        gone = self.state.retained.pop(topic, None)
        if gone or message.payload:
            self.changed[topic] = self.commits
        if message.payload:  # [MQTT-3.3.1-6]
            self.state.retained[topic] = self.number(), message
            self.history.setdefault(topic, []).append(self.state.retained[topic])
        for session in self.state.sessions.values():
            for ticket in session.tickets:
                ticket.certain = ticket.certain and ticket.topic != topic
            for name in session.replaying:  # a replay may meet what came while it ran
                if message.payload and not gone and name in session.subs and matches(name, topic):
                    self._add_ticket(session, name, topic, False)
        return not self.covered(self.changed.get(topic, -1))

    def _owe(self, session: Session, message: Message, subs: list[Sub]) -> Owed:
        """One copy for all subscriptions of a session. [MQTT-3.3.4-2] [MQTT-3.3.4-3]"""
        qos = min(message.qos, max(sub.qos for sub in subs))  # [MQTT-3.8.4-8]
        retain = message.retain and any(sub.as_published for sub in subs)  # [MQTT-3.3.1-12]
        identifiers = tuple(sorted(sub.identifier for sub in subs if sub.identifier))
        durable = qos > 0 and session.expiry > 0
        owed = Owed(message, qos, retain, identifiers, "live", self.commits, durable)
        if qos or self.is_here(session):
            self._append(session.owed, owed)
        return owed

    def _append(self, queue: list[Owed], owed: Owed) -> None:
        """A queue holds no more than what isn't sent yet: less than its bound, and none is lost."""
        if self.max_queued and len(queue) >= self.max_queued:
            victims = queue[: len(queue) - self.max_queued + 1] if self.drop_oldest else [owed]
            self.full.append((queue, victims))
        queue.append(owed)
        if any(each.like(owed) and not each.certain for each in queue):
            owed.certain = False  # it can't be told apart from one that may have been dropped

    def next_event(self) -> float:
        """When time alone makes something happen."""
        away = [each for each in self.state.sessions.values() if not each.connection]
        return min((at for s in away for at in (s.will_at, s.expires_at) if at), default=INFINITY)

    def queues(self) -> int:
        return len(self.state.sessions) + len(self.state.pools)

    # What lasts.

    def picture(self) -> None:
        """Everything so far is in the file."""
        self._picture = pickle.dumps(self.state)
        self._pictured = self._count

    def restore(self, now: float) -> None:
        """Another broker starts on the file at `now`: who was connected has lost the connection."""
        self.state = pickle.loads(self._picture)
        self.now, self.wills, self.full = now, 0, []
        self.connections.clear()
        self.changed.clear()
        self.ended.clear()
        for topic, versions in self.history.items():
            self.history[topic] = [each for each in versions if each[0] <= self._pictured]
        sessions = self.state.sessions
        for session in [each for each in sessions.values() if not each.stored]:
            del sessions[session.client]
        for name in list(self.state.pools):
            self._dissolve(name)
        for session in sessions.values():
            session.owed = [owed for owed in session.owed if owed.durable]
            session.open = {number: o for number, o in session.open.items() if o.durable}
        for queue in (*self.state.pools.values(), *(s.owed for s in sessions.values())):
            queue[:] = [owed for owed in queue if owed.durable]
            for owed in queue:
                owed.maybe_sent = True
        for session in sorted(sessions.values(), key=lambda each: each.client):
            if session.connection:
                self.lose(session, True)
            else:
                self._give_back(session, session.subs)
            for ticket in session.tickets:
                ticket.certain = False
        self.advance(now)


def is_shared(topic_filter: str) -> bool:
    return topic_filter.startswith("$share/")


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter that isn't a shared one matches a topic that has no "$". [MQTT-4.7]"""
    if is_shared(topic_filter):
        return False
    filters, levels = topic_filter.split("/"), topic.split("/")
    for place, level in enumerate(filters):
        if level == "#":
            return True
        if place >= len(levels) or level not in ("+", levels[place]):
            return False
    return len(filters) == len(levels)
