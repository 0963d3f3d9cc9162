"""The broker: the registry of sessions and the routing between them.

Owns: which client id has which session; take-over; wills and expiries; the retained store; who
gets a message. It is the only class that sees more than one session.

Must not know: sockets, tasks, files, the wall clock. The shell calls `open`, `run`,
`handle_timeout` and `committed`, and flushes the connections in `dirty`.

Invariants: `sessions` is keyed by client id, each session's `link` is the one open connection for
it; every session in `sessions` is either connected or has a deadline in the heap (or never
expires); a deadline in the heap that no longer fits its session is ignored; nothing here loops
over all sessions but `drain` and `balance`.
"""

from array import array
from heapq import heapify, heappop, heappush
from typing import Any, Final

from mqttd.core import counters as count
from mqttd.core import journal, spec
from mqttd.core.connection import Connection
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import is_reserved, wanted_expiry
from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch
from mqttd.core.message import Message, will_message
from mqttd.core.outbound import Outbound
from mqttd.core.packets import Connect, Filter
from mqttd.core.queue import PAGE
from mqttd.core.router import ListenerInfo, Router
from mqttd.core.session import Link, PageRequest, Replay, Session
from mqttd.core.settings import NEVER, Settings
from mqttd.core.shared import (
    dissolve,
    distribute,
    give_back,
    is_durable,
    pull,
    queue_of,
)
from mqttd.core.topics import split_shared, validate_topic_filter
from mqttd.core.trie import Matched, SharedGroup, Subscription, Target, without_no_local

INFINITY: Final = float("inf")
_SWEEP_EVERY: Final = 1.0  # seconds between slices of the search for expired retained messages
_SWEEP_STEPS: Final = 2000
_DEADLINE_TURN: Final = 2000  # sessions looked at in one call
_REPLAY_SESSIONS: Final = 8  # sessions that replay retained messages in one slice
_PAGES_A_TURN: Final = 8  # read together: commits and other clients get their turn between
_DUEL_WINDOW: Final = 60.0
_DUEL_ROUNDS: Final = 4


class Deadline:
    """An instant at which a session's will or the session itself is due."""

    def __init__(self, at: float, order: int, session: Session) -> None:
        self.at = at
        self.order = order
        self.session: Session | None = session  # None: it has ended

    def __lt__(self, other: "Deadline") -> bool:
        return self.at < other.at or (self.at == other.at and self.order < other.order)


class Broker(Router):
    """All of the broker that is not input or output."""

    def __init__(self, settings: Settings | None = None, durable: bool = False) -> None:
        super().__init__(Settings() if settings is None else settings, durable)
        self.sessions: dict[str, Session] = {}
        self.connections: dict[Outbound, None] = {}
        self.draining: bool = False
        self.slow: list[Outbound] = []  # what `collect` left to the shell
        self._serial: int = 0
        self._deadlines: list[Deadline] = []
        self._order: int = 0
        self._sweep_at: float = 0.0
        self._ended: dict[str, int] = {}  # client id → batch that ends its last session

    # What the shell calls.

    def open(
        self, listener: ListenerInfo, peer: str, identity: str | None, now: float
    ) -> Connection:
        """A transport was accepted; `identity` is the verified one of its certificate."""
        self._serial += 1
        connection = Connection(self, listener, peer, identity, self._serial, now)
        self.connections[connection] = None
        self.counters.connections += 1
        self.counters.connections_total += 1
        return connection

    def collect(self) -> list[tuple[Any, bytes]]:
        """Empty `dirty`: what to write for whom. The others are left in `slow`."""
        out: list[tuple[Any, bytes]] = []
        dirty = self.dirty
        for connection in dirty:
            if connection.blocked or connection.closing or connection.attention:
                self.slow.append(connection)
            elif connection.shell is not None:  # None: lost in this very tick
                data = connection.data_to_send()
                if data:
                    out.append((connection.shell, data))
        dirty.clear()
        return out

    @property
    def ready(self) -> bool:
        """There is deferred work: call `run` on the next tick."""
        return bool(self.context.runnable) or bool(self.context.groups)

    def run(self, now: float) -> None:
        """One slice of the deferred work: retained replays and the queues of shared groups."""
        context = self.context
        groups = context.groups
        if groups:
            context.groups = {}
            for group in groups:
                self._pull(group, now)
        runnable = context.runnable
        for _ in range(min(_REPLAY_SESSIONS, len(runnable))):
            session = runnable.popleft()
            session.runnable = False
            if session.run_replay(now) and not session.runnable:
                session.runnable = True
                runnable.append(session)

    def next_deadline(self) -> float:
        """When `handle_timeout` wants to be called; infinity for never."""
        at = self._deadlines[0].at if self._deadlines else INFINITY
        if self.retained.expiring and self._sweep_at < at:
            return self._sweep_at
        return at

    def handle_timeout(self, now: float) -> None:
        """Publish wills and end sessions that are due; sweep a slice of the retained tree."""
        deadlines = self._deadlines
        budget = _DEADLINE_TURN
        while deadlines and deadlines[0].at <= now and budget > 0:
            budget -= 1
            session = heappop(deadlines).session
            if session is None:
                continue
            session.deadline = None
            if session.will_at and session.will_at <= now:
                self._publish_will(session, now)
            if session.expires_at and session.expires_at <= now:
                self.counters.sessions_expired += 1
                self.note("session_expired", session.client_id, "", "session expiry interval over")
                self._end_session(session, now)
                continue
            # It was put off meanwhile: the one entry of a session moves, it does not multiply.
            if session.will_at:
                self._push(session.will_at, session)
            if session.expires_at:
                self._push(session.expires_at, session)
        if self.retained.expiring and now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY
            for topic in self.retained.sweep(now, _SWEEP_STEPS):
                self.journal.record(journal.RETAINED_DROP, "", topic)

    def take_batch(self, may_wait: bool = False) -> Batch | None:
        """Durable operations for one transaction; all there are unless the rest `may_wait`."""
        return self.journal.take(may_wait)

    def take_requests(self) -> list[PageRequest]:
        """The pages that queues want, as far as they are durable. The rest has to wait."""
        taken: list[PageRequest] = []
        waiting: list[PageRequest] = []
        requests = self.context.requests
        self.context.requests = []
        for request in requests:
            queue = request.queue
            if queue.closed:
                continue
            if len(taken) >= _PAGES_A_TURN:
                waiting.append(request)
                continue
            request.serials = queue.begin_page(PAGE, self.journal.durable)
            if request.serials:
                taken.append(request)
            elif queue.tail:
                waiting.append(request)
            else:  # all of it expired or was dropped meanwhile
                queue.wanting = False
                self.context.tails.pop(queue.number, None)
                self._move_on(request, self.context.now)
        self.context.requests = waiting + self.context.requests
        return taken

    def _pull(self, group: SharedGroup, now: float) -> None:
        try:
            pull(group, now, self.context)
        except Exception:  # a bug: the other groups get their turn
            self._contain(None, now)

    def _move_on(self, request: PageRequest, now: float) -> None:
        """Let the owner of a queue send what is there."""
        session = request.session
        if session is None:
            if request.group is not None:
                self._pull(request.group, now)
            return
        try:
            session.pump(now)
        except Exception:  # as after a commit
            self._contain(session.link, now)

    def paged(self, request: PageRequest, page: list[Delivery], now: float) -> None:
        """A page that was requested: in order, and perhaps cut short."""
        queue = request.queue
        session = request.session
        counters = self.counters
        if queue.closed:
            self.journal.abandon([array("q", request.serials)])
            return
        missing = queue.end_page(page, request.serials)
        if missing:
            # Rows that were there are not: a bug, or somebody else's hand in the file.
            counters.bugs += 1
            counters.drop(count.DROP_LOST, missing)
            self.note("bug", "" if session is None else session.client_id, "", "a queue lost rows")
        if queue.tail == 0:
            self.context.tails.pop(queue.number, None)
        else:  # cut short, and perhaps there was none left meanwhile
            self.context.tails[queue.number] = queue
        self._move_on(request, now)

    def expired(self, found: list[tuple[int, int]]) -> None:
        """The store came across messages that expired: owner and serial of each delivery."""
        of_owner: dict[int, set[int]] = {}
        for number, serial in found:
            of_owner.setdefault(number, set()).add(serial)
        for number, gone in of_owner.items():
            queue = self.context.tails.get(number)
            if queue is None:
                continue  # what isn't in a tail is seen to when its turn comes
            for serial in queue.remove(gone):
                self.counters.drop(count.DROP_EXPIRED)
                self.journal.record(journal.DELIVERY_FORGET, "", "", serial)
            if queue.tail == 0:
                del self.context.tails[number]

    def committed(self, seq: int, now: float) -> None:
        """Batches up to `seq` are durable: release what waited for them."""
        self.journal.commit(seq)
        context = self.context
        context.now = now
        if self._ended:
            self._ended = {name: at for name, at in self._ended.items() if at > seq}
        for connection in list(context.holding):
            assert isinstance(connection, Connection)
            try:
                connection.release()
            except Exception:  # a bug: it ends this connection, the others get their answers
                self._contain(connection, now)
        waiting = context.waiting
        context.waiting = []
        for session in waiting:
            session.waiting = False
            try:
                session.pump(now)
            except Exception:  # as above
                self._contain(session.link, now)
        groups = context.waiting_groups
        context.waiting_groups = {}
        for group in groups:
            self._pull(group, now)

    def refuse(self, code: int, now: float) -> None:
        """The store takes nothing for the time being, or never again.

        What would have to be stored is refused with `code` from here on. MQTT 5 publishers at QoS 1
        who wait for the batch that failed are told; it may be delivered nevertheless, as any
        message whose acknowledgement was lost.
        """
        told = self.journal.refusing
        self.journal.refusing = code
        if told:
            return
        for connection in list(self.context.holding):
            assert isinstance(connection, Connection)
            try:
                connection.refuse_held()
            except Exception:  # as after a commit
                self._contain(connection, now)

    def accept(self) -> None:
        """The store takes what comes again."""
        self.journal.refusing = 0

    def _contain(self, link: Link | None, now: float) -> None:
        """An exception on behalf of one connection ends that connection and no other."""
        if link is None:
            self.counters.bugs += 1
            return
        assert isinstance(link, Connection)
        self.note("bug", link.client_id, link.peer, "exception after a commit")
        link.abort(now)

    def drain(self, now: float) -> None:
        """Shutting down: say so to every client and accept no CONNECT any more."""
        self.draining = True
        for connection in list(self.connections):
            assert isinstance(connection, Connection)
            connection.close(spec.SERVER_SHUTTING_DOWN, "server shutting down", now)

    def storable(self, message: Message, matched: Matched) -> bool:
        """Whether somebody's copy of the message, or the retained one, would have to be stored."""
        if message.retain:
            return True
        for target in matched.targets:
            session = target.subscriber
            assert isinstance(session, Session)
            if session.durable and (target.qos > 0 or self.settings.queue_qos0):
                return True
        return any([is_durable(group) for group in matched.groups])  # noqa: C419  mypyc: no generators

    def publish(self, message: Message, now: float, origin: Session | None = None) -> int:
        """Publish on behalf of the broker, or of a session (a will); returns who matched."""
        if message.retain:
            self.retain(message)
        return self.route(message, self.trie.lookup(message.key), origin, now)

    def balance(self) -> tuple[int, int]:
        """(queued, in flight) over all sessions and shared groups, for the balance of counters."""
        queued = 0
        inflight = 0
        for session in self.sessions.values():
            inflight += len(session.window.deliveries)
            if session.queue is not None:
                queued += len(session.queue)
        for group in self.context.queued_groups:
            queue = queue_of(group)
            if queue is not None:
                queued += len(queue)
        return queued, inflight

    # What a connection calls (see Router).

    def count_client_id(self) -> str:
        client_id = super().count_client_id()
        while client_id in self.sessions:  # [MQTT-3.1.3-6] unique among those in use
            client_id = super().count_client_id()
        return client_id

    def forget(self, connection: Outbound) -> None:
        if connection in self.connections:
            del self.connections[connection]
            self.counters.connections -= 1

    def admit(
        self, connection: Outbound, connect: Connect, owner: str | None, now: float
    ) -> Session | None:
        assert isinstance(connection, Connection)
        if self.draining:
            raise ProtocolError(spec.SERVER_UNAVAILABLE, "", "server shutting down")
        client_id = connect.client_id
        session = self.sessions.get(client_id)  # [MQTT-3.1.3-2]
        duels = 0
        duel_at = 0.0
        if session is not None:
            if session.owner != owner:
                return None
            self._displace(session, connection, now)
            duels = session.duels
            duel_at = session.duel_at
            # Taking over may have ended it: a session without expiry ends with its connection.
            session = self.sessions.get(client_id)
        expiry = wanted_expiry(connect, self.settings)
        if self.journal.refusing and (
            # Both are a promise: that a session lasts, and that the one before is gone.
            expiry > 0 if session is None else connect.clean_start and session.stored
        ):
            raise ProtocolError(self.journal.refusing, "", "the store takes no other session")
        if session is not None and connect.clean_start:
            # [MQTT-3.1.2-4] [MQTT-3.1.4-4]
            self._end_session(session, now)
            session = None
        resumed = session is not None  # [MQTT-3.1.2-5]
        if session is None:  # [MQTT-3.1.2-6]
            session = Session(client_id, owner, self.context)
            # Session Present 0 says that nothing is left: a crash must not bring it back.
            session.barrier = self._ended.get(client_id, 0)
            session.duels = duels  # the quarrel goes on though each round has a new session
            session.duel_at = duel_at
            self.sessions[client_id] = session
        session.resumed = resumed  # [MQTT-3.2.2-2] [MQTT-3.2.2-3]
        had_will = session.will is not None
        session.will_at = 0.0  # [MQTT-3.1.3-9] back in time: the delayed will is not published
        session.will = connect.will  # [MQTT-3.1.2-7]
        session.expiry_interval = expiry
        was_durable = session.durable
        session.durable = session.expiry_interval > 0
        if session.durable or was_durable:
            session.stored = True
            barrier = self.journal.record(journal.SESSION_SAVE, client_id)
            if had_will or session.will is not None:
                self.journal.record(journal.WILL_SAVE, client_id)
            if resumed:
                # Session Present 1 promises that the session is there after a crash as well, and
                # that neither its old deadline nor its old will comes true by one.
                session.barrier = max(session.barrier, session.row_barrier)
                # With a full disk it waits for neither: what is queued for it can still leave.
                full = self.journal.refusing == spec.QUOTA_EXCEEDED
                if (session.expires_at or had_will) and not full:
                    session.barrier = barrier
            if not session.row_barrier:
                session.row_barrier = barrier
        return session

    def _displace(self, session: Session, newcomer: Connection, now: float) -> None:
        """[MQTT-3.1.4-3] the older connection of the session has to go."""
        link = session.link
        if link is None:
            return
        assert isinstance(link, Connection)
        self.counters.takeovers += 1
        if now - session.duel_at > _DUEL_WINDOW:
            session.duel_at = now
            session.duels = 0
        session.duels += 1
        if session.duels == _DUEL_ROUNDS:
            self.note(
                "pingpong",
                session.client_id,
                newcomer.peer,
                "clients at "
                + link.peer
                + " and "
                + newcomer.peer
                + " keep taking over each other:"
                " two devices use the same client id",
            )
        link.displace(now)

    def left(self, session: Session, connection: Outbound, with_will: bool, now: float) -> None:
        if session.link is not connection:
            return
        orphans = session.detach()
        if orphans:
            give_back(orphans, self.context)
        interval = session.expiry_interval
        if session.will is not None:
            if with_will:
                # [MQTT-3.1.2-8] after the delay or with the session, whichever comes first.
                delay = min(session.will.delay_interval, interval)
                if delay == 0:
                    self._publish_will(session, now)
                else:
                    session.will_at = now + delay
                    self._push(session.will_at, session)
            else:
                session.will = None  # [MQTT-3.1.2-10]
                self._record_will(session)
        if interval == 0:
            self._end_session(session, now)  # [MQTT-4.1.0-2]
        elif interval != NEVER:  # [MQTT-3.1.2-23]
            session.expires_at = now + interval
            self._push(session.expires_at, session)
        if session.durable and interval:
            self.journal.record(journal.SESSION_SAVE, session.client_id)

    def resume(self, session: Session, now: float) -> None:
        """A session that was restored takes its place, unless it lasted only while connected."""
        if session.expiry_interval == 0:
            self._end_session(session, now)  # [MQTT-4.1.0-2]
            return
        if session.will_at:
            self._push(session.will_at, session)
        if session.expires_at:
            self._push(session.expires_at, session)

    def set_expiry(self, session: Session, interval: int) -> None:
        interval = min(interval, self.settings.session_expiry_max)
        if interval != session.expiry_interval:
            session.expiry_interval = interval
            if session.durable:
                self.journal.record(journal.SESSION_SAVE, session.client_id)

    def forward(
        self, frame: bytes, payload_at: int, matched: Matched, origin: Session, now: float
    ) -> None:
        connection = origin.link
        lane = 5 if connection is not None and connection.version >= 5 else 4
        message: Message | None = None
        counters = self.counters
        targets = matched.targets
        counters.matched += len(targets)
        delivered = 0
        for target in targets:
            session = target.subscriber
            assert isinstance(session, Session)
            link = session.link
            if (
                link is not None
                and link.writable
                and link.lane == lane
                and not target.identifiers
                and session is not origin
            ):
                link.send_frame(frame)
                delivered += 1
                continue
            if message is None:
                message = self._message_of(frame, payload_at, matched, lane, origin)
            self._deliver(message, target, origin, now)
        counters.delivered += delivered
        counters.publish_sent += delivered
        size = len(frame) - payload_at
        counters.publish_bytes_sent += size if delivered == 1 else size * delivered
        if matched.groups:
            if message is None:
                message = self._message_of(frame, payload_at, matched, lane, origin)
            for group in matched.groups:
                distribute(group, message, now, self.context)

    def _message_of(
        self, frame: bytes, payload_at: int, matched: Matched, lane: int, origin: Session
    ) -> Message:
        """The message in a QoS 0 frame, for receivers that can't take the frame itself."""
        message = Message(
            matched.topic,
            matched.key,
            frame[payload_at:],
            0,
            False,
            self.fields.properties,
            0.0,
            origin.client_id,
        )
        message.forward_as_received(frame, 8 if lane == 5 else 0)
        return message

    def route(self, message: Message, matched: Matched, origin: Session | None, now: float) -> int:
        found = len(matched.targets)
        self.counters.matched += found
        for target in matched.targets:
            if not self._deliver(message, target, origin, now):
                found -= 1
        for group in matched.groups:
            found += 1
            distribute(group, message, now, self.context)
        return found

    def _deliver(
        self, message: Message, target: Target, origin: Session | None, now: float
    ) -> bool:
        session = target.subscriber
        assert isinstance(session, Session)
        if session is origin and (target.no_local or target.mixed_no_local):
            if target.no_local:  # [MQTT-3.8.3-3]
                self.counters.matched -= 1
                return False
            target = without_no_local(target)
        qos = target.qos
        if message.qos < qos:  # [MQTT-3.8.4-8]
            qos = message.qos
        retain = message.retain and target.retain_as_published  # [MQTT-3.3.1-12] [MQTT-3.3.1-13]
        session.deliver(message, qos, retain, target.identifier_block, now)
        return True

    def retain(self, message: Message) -> int:
        if not message.payload:  # [MQTT-3.3.1-6] [MQTT-3.3.1-7]
            if self.retained.remove(message.topic) is None:
                # Gone already, but perhaps not yet for good.
                return self.journal.last()
            return self.journal.record(journal.RETAINED_DROP, "", message.topic)
        self.retained.set(message.topic, message)  # [MQTT-3.3.1-5]
        return self.journal.record(journal.RETAINED_SAVE, "", message.topic, 0, message)

    def subscribe(self, session: Session, entry: Filter, identifier: int) -> int:
        topic_filter = entry.topic_filter
        try:
            group_name, inner = split_shared(topic_filter)
            validate_topic_filter(inner, self.settings.max_topic_levels)
        except ProtocolError as error:
            return error.code
        if session.durable and self.journal.refusing:
            return self.journal.refusing
        known = session.subscriptions.get(topic_filter)
        if known is None and len(session.subscriptions) >= self.settings.max_subscriptions:
            return spec.QUOTA_EXCEEDED
        subscription = Subscription(
            session,
            topic_filter,
            entry.qos,
            entry.no_local,
            entry.retain_as_published,
            entry.retain_handling,
            identifier,
            None,
        )
        self.trie.insert(subscription, group_name, inner)  # [MQTT-3.8.4-3]
        session.subscriptions[topic_filter] = subscription
        if group_name:
            group = subscription.group
            assert group is not None
            if session.grouped is None:
                session.grouped = {}
            session.grouped[group] = None
            if group.queue is not None:
                self.context.groups[group] = None
        elif self.retained.count and (
            # [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT-3.8.4-4]
            entry.retain_handling == 0 or (entry.retain_handling == 1 and known is None)
        ):
            if known is not None:
                session.stop_replays(known)
            cursor = self.retained.cursor(inner)
            session.add_replay(Replay(cursor, subscription, subscription.identifier_block))
        elif known is not None:
            session.move_replays(known, subscription)
        if session.durable:
            session.barrier = self.journal.record(
                journal.SUBSCRIPTION_SAVE, session.client_id, topic_filter
            )
        return entry.qos  # [MQTT-3.8.4-7] [MQTT-3.2.2-10]

    def unsubscribe(self, session: Session, topic_filter: str) -> int:
        subscription = session.subscriptions.pop(topic_filter, None)
        if subscription is None:
            return spec.NO_SUBSCRIPTION_EXISTED
        self._remove(session, subscription)
        # [MQTT-3.10.4-3] the session's window and queue are left alone.
        session.stop_replays(subscription)
        if session.durable:
            session.barrier = self.journal.record(
                journal.SUBSCRIPTION_DROP, session.client_id, topic_filter
            )
        return spec.SUCCESS

    # Sessions.

    def _remove(self, session: Session, subscription: Subscription) -> None:
        group_name, inner = split_shared(subscription.topic_filter)
        group = subscription.group
        self.trie.remove(session, group_name, inner)
        if group is not None:
            if session.grouped is not None:
                session.grouped.pop(group, None)
                if not session.grouped:
                    session.grouped = None
            if not group.members:
                dissolve(group, self.context)

    def _end_session(self, session: Session, now: float) -> None:
        """Drop a session and all that hangs on it."""
        if session.will_at:
            self._publish_will(session, now)
        del self.sessions[session.client_id]
        deadline = session.deadline
        if isinstance(deadline, Deadline):
            deadline.session = None
            session.deadline = None
        for subscription in list(session.subscriptions.values()):
            self._remove(session, subscription)
        session.subscriptions.clear()
        session.end()
        if session.stored:
            barrier = self.journal.record(journal.SESSION_DROP, session.client_id)
            if barrier:
                self._ended[session.client_id] = barrier

    def _publish_will(self, session: Session, now: float) -> None:
        will = session.will
        session.will = None  # [MQTT-3.1.2-10]
        session.will_at = 0.0
        if will is None:
            return
        self._record_will(session)
        if is_reserved(will.topic):
            return
        self.counters.wills_published += 1
        self.publish(will_message(will, session.client_id, now), now, session)

    def _record_will(self, session: Session) -> None:
        if session.stored:
            self.journal.record(journal.WILL_DROP, session.client_id)

    def _push(self, at: float, session: Session) -> None:
        """Have `handle_timeout` look at the session at `at`, or before."""
        deadlines = self._deadlines
        deadline = session.deadline
        if isinstance(deadline, Deadline):
            if deadline.at <= at:
                return
            deadline.session = None
        if len(deadlines) > 2 * len(self.sessions) + 64:
            # Mostly entries of sessions that have ended: they must not wait for their time.
            self._deadlines = deadlines = [d for d in deadlines if d.session is not None]
            heapify(deadlines)
        self._order += 1
        deadline = Deadline(at, self._order, session)
        session.deadline = deadline
        heappush(deadlines, deadline)
