"""The registry of sessions: which client id has which, and when each of them ends.

Owns: admission of a CONNECT to its session; take-over; subscriptions; wills and expiries, with the
heap of their deadlines. What becomes of a will is the hooks' to say (`mqttd.core.wills`).

Must not know: how a message finds its receivers, the store, sockets, the wall clock.

Invariants: `sessions` is keyed by client id, each session's `link` is the one open connection for
it; every session in `sessions` is either connected or has a deadline in the heap (or never
expires); a deadline in the heap that no longer fits its session is ignored.
"""

from heapq import heapify, heappop, heappush
from typing import Final

from mqttd.core import journal, spec, watch
from mqttd.core.connection import Connection
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import is_reserved, wanted_expiry
from mqttd.core.message import Message, will_message
from mqttd.core.outbound import Outbound
from mqttd.core.packets import Connect, Filter
from mqttd.core.router import Router
from mqttd.core.session import Replay, Session
from mqttd.core.settings import NEVER, Settings
from mqttd.core.shared import dissolve, give_back
from mqttd.core.topics import split_shared, validate_topic_filter
from mqttd.core.trie import Subscription
from mqttd.core.wills import Asked, Wills

INFINITY: Final = float("inf")
_SWEEP_EVERY: Final = 1.0  # seconds between slices of the search for expired retained messages
_SWEEP_STEPS: Final = 2000
_DEADLINE_TURN: Final = 2000  # sessions, and undecided wills, looked at in one call
_DUEL_WINDOW: Final = 60.0
_DUEL_ROUNDS: Final = 4


def may_read_replies(session: Session, inner: str) -> bool:
    """Whether a session may subscribe below $reply/: a client to what bears its own name, where it
    is told such a topic as Response Information; who is inside to whatever it has made up."""
    owner = session.owner
    if owner is not None and owner.startswith("\0"):
        return True
    name = session.client_id
    return inner == "$reply/" + name and "+" not in name and "#" not in name


class Deadline:
    """An instant at which a session's will or the session itself is due."""

    def __init__(self, at: float, order: int, session: Session) -> None:
        self.at = at
        self.order = order
        self.session: Session | None = session  # None: it has ended

    def __lt__(self, other: "Deadline") -> bool:
        return self.at < other.at or (self.at == other.at and self.order < other.order)


class Registry(Router):
    """The sessions of a broker."""

    def __init__(self, settings: Settings, durable: bool) -> None:
        super().__init__(settings, durable)
        self.sessions: dict[str, Session] = {}
        self.draining: bool = False
        self.hooks_to_come: bool = False  # nothing may be decided before they are there
        self._wills = Wills(self.tables)
        self._undecided: list[Asked] = []  # wills that were due before the hooks were there
        self._deadlines: list[Deadline] = []
        self._order: int = 0
        self._sweep_at: float = 0.0
        self._ended: dict[str, int] = {}  # client id → batch that ends its last session

    def next_deadline(self) -> float:
        """When `handle_timeout` wants to be called; infinity for never."""
        if self._undecided and not self.hooks_to_come:
            return 0.0
        at = self._deadlines[0].at if self._deadlines else INFINITY
        if self.retained.expiring and self._sweep_at < at:
            return self._sweep_at
        return at

    def handle_timeout(self, now: float) -> None:
        """Publish wills and end sessions that are due; sweep a slice of the retained tree."""
        self.context.at(now)
        undecided = self._undecided
        if undecided and not self.hooks_to_come:
            self._undecided = undecided[_DEADLINE_TURN:]
            for asked in undecided[:_DEADLINE_TURN]:
                self._decide(asked, now)
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

    def count_client_id(self) -> str:
        client_id = super().count_client_id()
        while client_id in self.sessions:  # [MQTT-3.1.3-6] unique among those in use
            client_id = super().count_client_id()
        return client_id

    def admit(
        self, connection: Outbound, connect: Connect, owner: str | None, now: float
    ) -> Session | None:
        assert isinstance(connection, Connection)
        if self.draining:
            raise ProtocolError(spec.SERVER_UNAVAILABLE, "", "server shutting down")
        session = self.sessions.get(connect.client_id)  # [MQTT-3.1.3-2]
        duels = 0
        duel_at = 0.0
        if session is not None:
            if session.owner != owner:
                return None
            self._displace(session, connection, now)
            duels = session.duels
            duel_at = session.duel_at
        expiry = wanted_expiry(connect, self.settings)
        session = self._seat(connect, connection.peer, owner, expiry, now)
        if not session.resumed:
            session.duels = duels  # the quarrel goes on though each round has a new session
            session.duel_at = duel_at
        return session

    def _seat(
        self, connect: Connect, peer: str, owner: str | None, expiry: int, now: float
    ) -> Session:
        """The session that a CONNECT of its owner gets, an old one or a new one."""
        client_id = connect.client_id
        # Taking over may have ended it: a session without expiry ends with its connection.
        session = self.sessions.get(client_id)
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
            self.sessions[client_id] = session
            self.tell(watch.CREATED, client_id, peer, "", owner)
        session.resumed = resumed  # [MQTT-3.2.2-2] [MQTT-3.2.2-3]
        had_will = session.will is not None
        session.will_at = 0.0  # [MQTT-3.1.3-9] back in time: the delayed will is not published
        session.will = connect.will  # [MQTT-3.1.2-7]
        session.expiry_interval = expiry
        was_durable = session.durable
        session.set_durable(session.expiry_interval > 0)
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
        assert isinstance(link, Connection)  # an inside client's owner is nobody else's
        self.counters.takeovers += 1
        self.tell(watch.TAKEN_OVER, session.client_id, newcomer.peer, "", session.owner)
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
        if session.link is connection:
            self._vacate(session, with_will, now)

    def _vacate(self, session: Session, with_will: bool, now: float) -> None:
        """Nobody has the session any more: its clocks begin to run."""
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

    def recall_wills(self) -> None:
        """Ask again about the wills that hooks had not decided on when the broker ended."""
        self._undecided += self._wills.found()

    def set_expiry(self, session: Session, interval: int) -> None:
        interval = min(interval, self.settings.session_expiry_max)
        if interval != session.expiry_interval:
            session.expiry_interval = interval
            if session.durable:
                self.journal.record(journal.SESSION_SAVE, session.client_id)

    def subscribe(self, session: Session, entry: Filter, identifier: int) -> int:
        topic_filter = entry.topic_filter
        try:
            group_name, inner = split_shared(topic_filter)
            validate_topic_filter(inner, self.settings.max_topic_levels)
        except ProtocolError as error:
            return error.code
        if inner.startswith("$reply/") and not may_read_replies(session, inner):
            return spec.NOT_AUTHORIZED
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
            elif group.policy is not None and group.queue is not None:
                self.context.groups[group] = None  # it may be another's turn now

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
        orphans = session.end()
        if orphans:
            give_back(orphans, self.context)
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
        asked = Asked(session.client_id, session.owner, will, "")
        if self.hooks_to_come:
            self._wills.keep(asked)
            self._undecided.append(asked)
            return
        self._decide_for(session, asked, session.stored, now)

    def _decide(self, asked: Asked, now: float) -> None:
        """Decide on a will that has left its session long ago."""
        session = self.sessions.get(asked.client_id)
        if session is None or session.owner != asked.owner:
            session = Session(asked.client_id, asked.owner, self.context)
        self._decide_for(session, asked, True, now)

    def _decide_for(self, session: Session, asked: Asked, lasting: bool, now: float) -> None:
        """Have the hooks say whether a will is published. `lasting`: it outlives a crash."""
        message = will_message(asked.will, asked.client_id, now)
        hook = self.context.hooks.will
        decided = True
        if hook is None:
            self.publish_will(message, session, now)
        elif not is_reserved(message.topic):
            try:
                decided = hook(session, message)
            except Exception:  # fail closed: it is not published
                self.counters.hook_failures += 1
        if decided:
            if asked.key:
                self._wills.drop(asked.key)
        elif lasting and self.journal.enabled:
            self._wills.keep(asked)
            self._wills.wait(message, asked)

    def will_decided(
        self, asked: Message, made: Message | None, session: Session, now: float
    ) -> None:
        """The late answer of `Hooks.will`: what is published instead of the message, or nothing."""
        self.context.at(now)
        if made is not None:
            self.publish_will(made, session, now)
        self._wills.settle(asked)

    def publish_will(self, message: Message, session: Session, now: float) -> None:
        """A will goes out, at once or when the hooks have allowed it, and perhaps changed it."""
        if is_reserved(message.topic):
            return
        self.counters.wills_published += 1
        self.publish(message, now, session)

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
