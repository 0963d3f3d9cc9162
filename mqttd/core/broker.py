"""The broker: who gets a message, and what the shell calls.

Owns: routing, the retained store, what has to be done after a commit or a page, the clients inside
the process. With what `Registry` adds it is the only class that sees more than one session.

Must not know: sockets, tasks, files, the wall clock. The shell calls `open`, `run`,
`handle_timeout` and `committed`, and flushes the connections in `dirty`.

Invariants: nothing here loops over all sessions but `drain` and `balance`; an exception on behalf
of one connection ends that connection and no other.
"""

from array import array
from typing import Any, Final

from mqttd.core import counters as count
from mqttd.core import journal, spec
from mqttd.core.connection import Connection
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import is_reserved
from mqttd.core.inflight import Delivery
from mqttd.core.inside import Inside
from mqttd.core.journal import Batch
from mqttd.core.letters import MAX_LETTERS
from mqttd.core.link import Link
from mqttd.core.message import Message
from mqttd.core.outbound import Outbound
from mqttd.core.packets import Connect
from mqttd.core.queue import PAGE
from mqttd.core.registry import Registry
from mqttd.core.router import ListenerInfo
from mqttd.core.session import PageRequest, Session
from mqttd.core.settings import Settings, SharePolicy
from mqttd.core.shared import (
    distribute,
    is_durable,
    let_go,
    pull,
    queue_of,
)
from mqttd.core.trie import Matched, SharedGroup, Target, without_no_local
from mqttd.core.watch import DELIVERED, DROPPED

_REPLAY_SESSIONS: Final = 8  # sessions that replay retained messages in one slice
_PAGES_A_TURN: Final = 8  # read together: commits and other clients get their turn between
_LETTERS_A_TURN: Final = 256  # messages read for their dead letters: a plugin is asked about each


class Submitted:
    """What became of a message: how many it matched, and the batch that makes it durable."""

    def __init__(self, matched: int, barrier: int) -> None:
        self.matched = matched
        self.barrier = barrier


class Broker(Registry):
    """All of the broker that is not input or output."""

    def __init__(self, settings: Settings | None = None, durable: bool = False) -> None:
        super().__init__(Settings() if settings is None else settings, durable)
        self.connections: dict[Outbound, None] = {}
        self.slow: list[Outbound] = []  # what `collect` left to the shell
        self.woken: list[Inside] = []  # clients inside with something in their inbox
        self._serial: int = 0

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
        context = self.context
        if context.letters is not None and context.letters.waiting and not self.journal.refusing:
            return True
        return bool(context.runnable) or bool(context.groups)

    def run(self, now: float) -> None:
        """One slice of the deferred work: dead letters, retained replays, queues of groups."""
        context = self.context
        self.bury(now)
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

    def take_batch(self, may_wait: bool = False) -> Batch | None:
        """Durable operations for one transaction; all there are unless the rest `may_wait`."""
        return self.journal.take(may_wait)

    def take_requests(self) -> list[PageRequest]:
        """The pages that queues want, as far as they are durable. The rest has to wait."""
        taken: list[PageRequest] = []
        waiting: list[PageRequest] = []
        ended: list[PageRequest] = []
        requests = self.context.requests
        self.context.requests = []
        for request in requests:
            queue = request.queue
            if request.reason:
                ended.append(request)
                continue
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
        room = self._letters_room()
        for request in ended:
            if room <= 0 or request.serials[-1] > self.journal.durable:
                waiting.append(request)
                continue
            if len(request.serials) > room:
                waiting.append(request.split(room))
            room -= len(request.serials)
            taken.append(request)
        self.context.requests = waiting + self.context.requests
        return taken

    def _letters_room(self) -> int:
        """How many messages that have ended may be read now.

        Dead letters need room in the store and in their list: until then their messages are safest
        where they are.
        """
        letters = self.context.letters
        if letters is None or self.journal.refusing:
            return 0
        return min(MAX_LETTERS - len(letters.waiting), _LETTERS_A_TURN)

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
        if request.reason:
            self._ended_unread(request, page)
            return
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

    def _ended_unread(self, request: PageRequest, page: list[Delivery]) -> None:
        """Messages that had ended were read: now they end, as those that were at hand do."""
        queue = request.queue
        last = page[-1].serial if page else request.serials[-1]
        left = [serial for serial in request.serials if serial > last]
        ended = len(request.serials) - len(left)
        self.context.ending -= ended
        for delivery in page:
            self.context.drop(request.reason, queue.client_id, delivery.message, queue.group)
            self.journal.settle(queue.number, delivery)
        if ended > len(page):  # as in `paged`
            self.counters.bugs += 1
            self.counters.drop(count.DROP_LOST, ended - len(page))
            self.note("bug", queue.client_id, "", "a queue lost rows")
        if left:
            request.serials = left
            self.context.requests.append(request)

    def expired(self, found: list[tuple[int, int]]) -> None:
        """The store came across messages that expired: owner and serial of each delivery."""
        of_owner: dict[int, set[int]] = {}
        for number, serial in found:
            of_owner.setdefault(number, set()).add(serial)
        for number, gone in of_owner.items():
            queue = self.context.tails.get(number)
            if queue is None:
                continue  # what isn't in a tail is seen to when its turn comes
            ended = queue.remove(gone)
            if ended:
                self.context.end_unread(queue, count.DROP_EXPIRED, ended)
            if queue.tail == 0:
                del self.context.tails[number]

    def committed(self, seq: int, now: float) -> None:
        """Batches up to `seq` are durable: release what waited for them."""
        self.journal.commit(seq)
        context = self.context
        context.at(now)
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
        self.context.at(now)
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
        if not isinstance(link, Connection):
            self.counters.bugs += 1
            return
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
        matched = self.trie.lookup(message.key)
        if self.context.watcher is not None and not is_reserved(message.topic):
            self.context.watcher.published(message, matched, "")
        # [MQTT-3.3.1-8] At QoS 0 a broker need not retain: with a full disk it doesn't.
        if message.retain and (message.qos or not self.journal.refusing):
            self.retain(message)
        return self.route(message, matched, origin, now)

    def submit(self, message: Message, now: float, origin: Session | None = None) -> Submitted:
        """As `publish`, for who wants to know when it is durable. ProtocolError if it can't be."""
        if self.journal.refusing:
            matched = self.trie.lookup(message.key)
            if (message.qos or message.retain) and self.storable(message, matched):
                raise ProtocolError(self.journal.refusing, "", "the store takes nothing")
        self.context.at(now)
        before = self.journal.last()
        found = self.publish(message, now, origin)
        after = self.journal.last()
        durable = self.journal.enabled and (message.undurable > 0 or after > before)
        return Submitted(found, after if durable or message.retain else 0)

    def bury(self, now: float) -> int:
        """Publish what stands for messages that ended undelivered; returns the barrier.

        Before `take_batch`, so that a message and its dead letter change places in one
        transaction. While the store takes nothing they wait, as their messages' ends do.
        """
        letters = self.context.letters
        hook = self.hooks.undelivered
        if letters is None or hook is None or not letters.waiting or self.journal.refusing:
            return 0
        self.context.at(now)
        taken = letters.take()
        barrier = 0
        for letter in taken:
            try:
                message = hook(letter)
                if message is not None:
                    self.publish(message, now)
                    letters.published += 1
                    if message.undurable or message.retain:
                        barrier = self.journal.last()
            except Exception:  # one letter less, and no message the worse for it
                self.counters.hook_failures += 1
        for letter in taken:
            letter.message.owed = barrier
        for letter in taken:
            let_go(letter.message)
        return barrier

    def kick(self, client_id: str, code: int, reason: str, now: float) -> bool:
        """End the connection of a client; False where it has none."""
        session = self.sessions.get(client_id)
        if session is None or not isinstance(session.link, Connection):
            return False
        self.context.at(now)
        session.link.close(code, reason, now)
        return True

    def connect_inside(
        self, client_id: str, owner: str, expiry: int, receive_maximum: int, now: float
    ) -> Inside:
        """A client inside the process. ProtocolError where the id is somebody else's or in use."""
        session = self.sessions.get(client_id)
        if session is not None and (session.owner != owner or session.link is not None):
            raise ProtocolError(spec.CLIENT_IDENTIFIER_NOT_VALID, "", "the client id is in use")
        connect = Connect(client_id=client_id, clean_start=expiry == 0)
        inside = Inside(self.woken, client_id)
        # The longest interval is for clients; what a plugin keeps for good has its owner here.
        session = self._seat(connect, "inside", owner, expiry, now)
        inside.session = session
        session.attach(inside, receive_maximum)
        session.pump(now)
        return inside

    def leave_inside(self, inside: Inside, now: float) -> None:
        """A client inside goes; its session stays as long as it was asked to."""
        session = inside.session
        inside.session = None
        inside.writable = False
        inside.inbox.clear()
        if session is not None and session.link is inside:
            self._vacate(session, False, now)

    def govern(self, name: str, topic_filter: str, policy: SharePolicy | None) -> bool:
        """Give a shared group a policy of its own; False where the group has no members.

        It lasts as long as the group does, and isn't stored.
        """
        group = self.trie.group(name, topic_filter)
        if group is None:
            return False
        group.policy = policy
        if policy is None or not policy.one_at_a_time:
            group.outstanding = None
        if policy is None or not policy.last_value:
            group.latest.clear()
        if group.queue is not None:
            self.context.groups[group] = None
        return True

    def forget_decisions(self, client_id: str = "") -> None:
        """What the hooks decided is no longer true, for one client or for all."""
        if client_id:
            session = self.sessions.get(client_id)
            if session is not None and isinstance(session.link, Connection):
                session.link.forget_decisions()
            return
        for connection in self.connections:
            connection.forget_decisions()

    def balance(self) -> tuple[int, int]:
        """(queued, in flight) over all sessions and shared groups, for the balance of counters."""
        queued = self.context.ending
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

    def forget(self, connection: Outbound) -> None:
        if connection in self.connections:
            del self.connections[connection]
            self.counters.connections -= 1

    def forward(
        self, frame: bytes, payload_at: int, matched: Matched, origin: Session, now: float
    ) -> None:
        connection = origin.link
        lane = 5 if connection is not None and connection.version >= 5 else 4
        message: Message | None = None
        counters = self.counters
        as_it_came = True
        watcher = self.context.watcher
        if watcher is not None:
            payload = frame[payload_at:] if watcher.wants_payload else None
            watcher.forwarded(origin.client_id, matched, payload)
            as_it_came = watcher.wants >> DELIVERED & 1 == 0  # or each is told of by itself
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
                and as_it_came
                and not target.identifiers
                and session is not origin
            ):
                if link.guarded and not link.may_receive(matched.topic, matched.key):
                    if message is None:
                        message = self._message_of(frame, payload_at, matched, lane, origin)
                    self.context.drop(count.DROP_NOT_AUTHORIZED, session.client_id, message)
                    continue
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
        if self.context.watcher is not None:
            message.serial = self.context.watcher.serial
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
                if self.context.watcher is not None:
                    self.context.watcher.outcome(DROPPED, session.client_id, message, "no_local")
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
