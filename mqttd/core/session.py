"""What outlives a connection: subscriptions, windows, queue, will, and who owns them.

Owns: `Session`, the state a client id is the key of, and the order in which its messages leave:
`due` (has a packet identifier, not yet sent on this connection), then `queue` (no identifier
yet; of a deep one only the head is in memory), then the queues of its shared groups, then retained
replays. Each waits for the client's Receive Maximum and for room in the connection's write buffer;
nothing here is ever a suspended coroutine.

Must not know: bytes on the wire, sockets, other sessions. It speaks to its connection through
`Link` and to the rest of the broker through `Context`.

Invariants: `link` is None exactly while no accepted connection has the session; `quota` is what
the client's Receive Maximum leaves on this connection; a delivery is in one of queue, window or
gone; `queue` is None when nothing is in it; first sendings of one QoS leave in the order of
`deliver`; a QoS 2 delivery of a durable session is sent only after the batch with its packet
identifier is durable, since a resend under another identifier would be a second copy.
"""

from collections import deque
from typing import Final

from mqttd.core import counters as count
from mqttd.core import watch
from mqttd.core.auth import Hooks
from mqttd.core.counters import Counters
from mqttd.core.inflight import QUEUED, RELEASED, SENT, SETTLED, Delivery, Window
from mqttd.core.journal import DELIVERY_FORGET, Journal
from mqttd.core.letters import Letters
from mqttd.core.link import Link
from mqttd.core.message import OWED, Holder, Message
from mqttd.core.packets import Will
from mqttd.core.queue import PAGE, Queue
from mqttd.core.retained import Cursor
from mqttd.core.settings import DROP_OLDEST, Settings
from mqttd.core.trie import SharedGroup, Subscriber, Subscription
from mqttd.core.watch import Watcher

# A retained replay visits this many tree nodes a turn and stops once this much waits to be written.
_REPLAY_STEPS: Final = 64
_REPLAY_TURN: Final = 512
_REPLAY_BACKLOG: Final = 262144


class PageRequest:
    """A queue wants the next page of what it left to the store; its owner is one of the two.

    With a `reason` nobody wants the page: its messages have ended, and are read for their dead
    letters.
    """

    def __init__(self, queue: Queue, session: "Session | None", group: SharedGroup | None) -> None:
        self.queue = queue
        self.session = session
        self.group = group
        self.serials: list[int] = []  # once the request is taken
        self.reason: str = ""

    def split(self, size: int) -> "PageRequest":
        """Keep the first `size` serials; returns a request for the others."""
        rest = PageRequest(self.queue, self.session, self.group)
        rest.reason = self.reason
        rest.serials = self.serials[size:]
        self.serials = self.serials[:size]
        return rest


class Context:
    """What every session of one broker shares."""

    def __init__(self, settings: Settings, counters: Counters, journal: Journal) -> None:
        self.settings = settings
        self.counters = counters
        self.journal = journal
        self.hooks = Hooks()
        self.watcher: Watcher | None = None
        self.letters: Letters | None = None
        self.now: float = 0.0  # of what happened last: who is released by it has no other clock
        self.runnable: deque[Session] = deque()  # sessions with a replay that can go on
        self.holding: dict[Holder, None] = {}  # connections that hold acknowledgements back
        self.waiting: list[Session] = []  # sessions with a delivery behind a barrier
        self.groups: dict[SharedGroup, None] = {}  # with a queue that may move on
        self.queued_groups: dict[SharedGroup, None] = {}  # whose queue holds something
        self.waiting_groups: dict[SharedGroup, None] = {}  # with a message behind a barrier
        self.requests: list[PageRequest] = []  # for the store to serve
        self.tails: dict[int, Queue] = {}  # queues with a tail, by the number of the owner
        self.ending: int = 0  # messages that have ended, and are still to be read

    def at(self, now: float) -> None:
        """What is written down from here on happened at `now`."""
        self.now = now
        if self.watcher is not None:
            self.watcher.now = now

    def drop(self, reason: str, client_id: str, message: Message, group: str = "") -> None:
        """Count a message that ends here for one receiver, and why.

        Where it ends for all of a shared `group`, that is named, and a client that had it.
        """
        self.counters.drop(reason)
        if self.letters is not None:
            self.letters.add(reason, client_id, group, message)
        if self.watcher is not None:
            self.watcher.outcome(watch.DROPPED, client_id or group, message, reason)

    def delivered(self, client_id: str, message: Message) -> None:
        """Count a message that one receiver has got."""
        self.counters.delivered += 1
        watcher = self.watcher
        if watcher is not None and watcher.wants >> watch.DELIVERED & 1:
            watcher.outcome(watch.DELIVERED, client_id, message, "")

    def trace(self, kind: int, client_id: str, message: Message) -> None:
        """Write down what became of a message for one receiver."""
        if self.watcher is not None:
            self.watcher.outcome(kind, client_id, message, "")

    def handed(self, group: SharedGroup, session: "Session", message: Message) -> None:
        """Write down which member of a shared group has got a message."""
        if self.watcher is not None:
            self.watcher.handed(group.title, session.client_id, message)

    def want_page(self, queue: Queue, session: "Session | None", group: SharedGroup | None) -> None:
        """Ask the store for what comes next in a queue's tail."""
        queue.wanting = True
        self.requests.append(PageRequest(queue, session, group))

    def leave(self, queue: Queue, delivery: Delivery) -> None:
        """A queue whose head is full leaves a delivery to the store."""
        if not delivery.journalled:
            self.journal.add(queue.number, delivery)
        queue.leave(delivery.serial)
        queue.note_expiry(delivery.message.expires_at)
        self.tails[queue.number] = queue

    def drop_unread(self, reason: str, number: int = 1) -> None:
        """Count messages that end here and that only the store has at hand."""
        self.counters.drop(reason, number)
        if self.letters is not None:
            self.letters.miss(reason, number)

    def end_unread(self, queue: Queue, reason: str, serials: list[int]) -> None:
        """Messages end that a queue has left to the store: read first, where that is wanted."""
        if self.letters is None or reason not in self.letters.reasons:
            self.counters.drop(reason, len(serials))
            for serial in serials:
                self.journal.record(DELIVERY_FORGET, "", "", serial)
            return
        self.ending += len(serials)
        for at in range(0, len(serials), PAGE):
            request = PageRequest(queue, None, None)
            request.reason = reason
            request.serials = serials[at : at + PAGE]
            self.requests.append(request)

    def drop_oldest(self, queue: Queue, client_id: str, group: str = "") -> Delivery | None:
        """Make room in a full queue: the delivery to settle, if it is at hand."""
        if queue.head:
            oldest = queue.pop()
            self.drop(count.DROP_QUEUE_FULL, client_id, oldest.message, group)
            return oldest
        self.drop_unread(count.DROP_QUEUE_FULL)
        self.journal.record(DELIVERY_FORGET, "", "", queue.pop_serial())
        return None

    def abandon(self, queue: Queue) -> None:
        """The owner of a queue has gone; what the head holds is left to the caller."""
        self.tails.pop(queue.number, None)
        if queue.coming:
            self.drop_unread(count.DROP_SESSION_ENDED, queue.coming)
        waiting = queue.tail
        chunks = queue.close()
        letters = self.letters
        if letters is not None and count.DROP_SESSION_ENDED in letters.reasons:
            for chunk in chunks:
                self.end_unread(queue, count.DROP_SESSION_ENDED, list(chunk))
        else:
            if waiting:
                self.counters.drop(count.DROP_SESSION_ENDED, waiting)
            self.journal.abandon(chunks)


class Replay:
    """A retained replay under way: one per SUBSCRIBE filter that asked for it."""

    def __init__(self, cursor: Cursor, subscription: Subscription, identifiers: bytes) -> None:
        self.cursor = cursor
        self.subscription = subscription
        self.identifiers = identifiers


class Session(Subscriber):
    """The session state of one client id (MQTT 5, 4.1)."""

    def __init__(self, client_id: str, owner: str | None, context: Context) -> None:
        super().__init__(client_id)
        self.owner = owner  # the user that made it; None for anonymous
        self.guest: object = None  # what the hooks know its last connection by
        self.context = context
        self.number: int = context.journal.new_number()  # owner of its deliveries in the store
        self.link: Link | None = None
        self.expiry_interval: int = 0
        self.expires_at: float = 0.0  # set while disconnected; 0.0 = no deadline
        self.will: Will | None = None
        self.will_at: float = 0.0  # set while a delayed will is pending
        self.deadline: object = None  # the broker's one timer entry for it
        self.duels: int = 0  # take-overs since duel_at
        self.duel_at: float = 0.0
        self.stored: bool = False  # the store has, or will have, rows of it
        self.resumed: bool = False  # the last CONNECT found it here: Session Present
        self.barrier: int = 0  # batch that the next answer about the session waits for
        self.row_barrier: int = 0  # batch that first held the session's own row
        self.inbound_barrier: int = 0  # batch of the last change to `inbound`
        self.subscriptions: dict[str, Subscription] = {}
        self.grouped: dict[SharedGroup, None] | None = None  # the shared ones among them
        self.window: Window = Window()
        self.inbound: dict[int, int] = {}  # inbound QoS 2 ids → serial of the connection
        self.quota: int = 0
        self.quota_max: int = 0
        self.due: deque[Delivery] | None = None
        self.queue: Queue | None = None
        self.replays: list[Replay] | None = None
        self.runnable: bool = False  # stands in context.runnable
        self.waiting: bool = False  # stands in context.waiting

    def set_durable(self, durable: bool) -> None:
        """Whether it outlives its connection; its groups count on that."""
        if durable == self.durable:
            return
        self.durable = durable
        if self.grouped is not None:
            for group in self.grouped:
                group.lasting += 1 if durable else -1

    # Delivering.

    def deliver(
        self,
        message: Message,
        qos: int,
        retain: bool,
        identifiers: bytes,
        now: float,
    ) -> None:
        """Send `message` or keep it. `qos` is already min(publish, granted). [MQTT-4.5.0-1]"""
        link = self.link
        journal = self.context.journal
        if qos == 0:
            queueing = self.durable and self.context.settings.queue_qos0 and not journal.refusing
            if link is None or not link.established:
                if not queueing:
                    self.context.drop(count.DROP_OFFLINE_QOS0, self.client_id, message)
                    return
            elif message.barrier <= journal.committed and not (queueing and self.queue is not None):
                if not link.writable:
                    self._deliver_late(link, message, retain, identifiers, now)
                elif link.send_publish(message, 0, retain, 0, False, identifiers, now):
                    # [MQTT-4.3.1-1] neither QoS nor DUP
                    self.context.delivered(self.client_id, message)
                return
        delivery = Delivery(message, qos, retain, identifiers, None)
        if qos and self.durable:
            barrier = journal.add(self.number, delivery)
            if qos == 2:
                delivery.barrier = barrier
        if message.barrier > delivery.barrier:
            delivery.barrier = message.barrier
        # [MQTT-4.6.0-5] [MQTT-4.6.0-6] nothing overtakes what waits.
        if (
            link is None
            or not link.writable
            or self.queue is not None
            or self.room() <= 0
            # A QoS 2 message waits for its batch at QoS 0 as well: what a crash undoes is resent.
            or (qos == 0 and delivery.barrier > journal.committed)
        ):
            self.enqueue(delivery, now)
        else:
            self._transmit(link, delivery, now)

    def _deliver_late(
        self, link: Link, message: Message, retain: bool, identifiers: bytes, now: float
    ) -> None:
        """QoS 0 for a reader that lags: buffered up to a bound, then dropped and counted."""
        if link.backlog() >= self.context.settings.write_buffer:
            self.context.drop(count.DROP_SLOW_READER, self.client_id, message)
        elif link.send_publish(message, 0, retain, 0, False, identifiers, now):
            self.context.delivered(self.client_id, message)

    def room(self) -> int:
        """How many more QoS > 0 messages this connection may carry now. [MQTT-3.3.4-9]"""
        if self.window.full():
            return 0
        if self.due:
            return self.quota - len(self.due)
        return self.quota

    def enqueue(self, delivery: Delivery, now: float) -> None:
        """Keep a delivery for later, within the bound of the queue."""
        context = self.context
        queue = self.queue
        if queue is None:
            paging = self.durable and context.journal.paging
            queue = self.queue = Queue(self.number, paging, self.client_id)
        settings = context.settings
        limit = settings.max_queued_messages
        if limit and len(queue) >= limit:
            if queue.expiry and now >= queue.expiry:
                for gone in queue.expire(now):
                    self.discard(gone, count.DROP_EXPIRED)
            if len(queue) >= limit:
                if settings.queue_overflow != DROP_OLDEST:
                    self.discard(delivery, count.DROP_QUEUE_FULL)
                    return
                while len(queue) >= limit and (queue.head or queue.tail):
                    oldest = context.drop_oldest(queue, self.client_id)
                    if oldest is not None:
                        self._settle(oldest)
        if queue.has_room(self.link is not None):
            if delivery.qos == 0 and self.durable and settings.queue_qos0:
                context.journal.add(self.number, delivery)
            queue.append(delivery)
            if delivery.barrier > context.journal.committed:
                self._await_commit()
            context.trace(watch.QUEUED, self.client_id, delivery.message)
            return
        context.leave(queue, delivery)
        context.trace(watch.QUEUED, self.client_id, delivery.message)
        if self.link is not None and queue.low():
            context.want_page(queue, self, None)

    def discard(self, delivery: Delivery, reason: str) -> None:
        """End a delivery unsent, counted by reason."""
        self._drop(delivery, reason)
        self._settle(delivery)

    def _drop(self, delivery: Delivery, reason: str) -> None:
        group = "" if delivery.group is None else delivery.group.title
        self.context.drop(reason, self.client_id, delivery.message, group)

    def adopt(self, delivery: Delivery, now: float) -> None:
        """Send a delivery of a shared group on this session; the caller has seen that it can."""
        delivery.packet_id = 0
        delivery.state = QUEUED
        delivery.sent = False
        link = self.link
        assert link is not None
        if delivery.qos == 0:
            if self._give(link, delivery, False, now):
                self.context.delivered(self.client_id, delivery.message)
            return
        if self.durable and not delivery.journalled:
            barrier = self.context.journal.add(self.number, delivery)
            if delivery.qos == 2 and barrier > delivery.barrier:
                delivery.barrier = barrier
        self._transmit(link, delivery, now)

    def _transmit(self, link: Link, delivery: Delivery, now: float) -> None:
        """Give the delivery its packet identifier and send it, or line it up in `due`."""
        if delivery.qos == 0:
            if self._give(link, delivery, False, now):
                self.context.delivered(self.client_id, delivery.message)
            if delivery.journalled:
                self._settle(delivery)
            return
        journal = self.context.journal
        self.window.add(delivery)
        delivery.state = SENT
        if delivery.journalled and not delivery.lent:
            barrier = journal.update(self.number, delivery)
            if delivery.qos == 2:
                delivery.barrier = barrier
        if self.due or delivery.barrier > journal.committed:
            if self.due is None:
                self.due = deque()
            self.due.append(delivery)
            self._await_commit()
            return
        self._send(link, delivery, now)

    def _send(self, link: Link, delivery: Delivery, now: float) -> None:
        self.quota -= 1  # [MQTT-4.9.0-2]
        # [MQTT-4.3.2-2] [MQTT-4.3.3-2] not the first time.
        # [MQTT-3.3.1-1] DUP tells a retransmission, [MQTT-3.3.1-3] whatever the publisher's was.
        dup = delivery.sent
        delivery.sent = True
        if dup:
            self.context.counters.redelivered += 1
        if not self._give(link, delivery, dup, now):
            # [MQTT-3.1.2-25] too large for this client, or kept from it by a hook: as if delivered,
            # and the quota is free.
            self.window.pop(delivery.packet_id)
            self.quota += 1
            self._settle(delivery)

    def _give(self, link: Link, delivery: Delivery, dup: bool, now: float) -> bool:
        """Hand a delivery to the connection. Where it ends there, its group is named."""
        link.through = delivery.group
        given = link.send_publish(
            delivery.message,
            delivery.qos,
            delivery.retain,
            delivery.packet_id,
            dup,
            delivery.identifiers,
            now,
        )
        link.through = None
        return given

    def _await_commit(self) -> None:
        if not self.waiting:
            self.waiting = True
            self.context.waiting.append(self)

    def _settle(self, delivery: Delivery) -> None:
        delivery.state = SETTLED
        group = delivery.group
        if group is not None and group.outstanding is delivery:
            group.outstanding = None
            self.context.groups[group] = None
        message = delivery.message
        if self.context.journal.settle(self.number, delivery):
            holder = message.holder
            if holder is not None and message.owed < OWED:
                message.holder = None
                holder.release()

    # Acknowledgements from the client.

    def on_puback(self, packet_id: int, reason: int, now: float) -> None:
        """PUBACK of a QoS 1 delivery. [MQTT-4.3.2-3] An unknown identifier is no error."""
        delivery = self.window.get(packet_id)
        if delivery is None or delivery.qos != 1:
            return
        self._finish(delivery, reason, now)

    def on_pubrec(self, packet_id: int, reason: int, now: float) -> bool:
        """PUBREC of a QoS 2 delivery; False when the identifier is not known."""
        delivery = self.window.get(packet_id)
        if delivery is None or delivery.qos != 2:
            return False
        if reason >= 0x80:
            # [MQTT-4.4.0-2] an error PUBREC ends the exchange.
            self._finish(delivery, reason, now)
            return True
        if delivery.state == SENT:
            # [MQTT-4.3.3-3] [MQTT-4.3.3-6] from here, and no sooner, the PUBLISH isn't sent again.
            delivery.state = RELEASED
            delivery.barrier = self.context.journal.update(self.number, delivery)
        link = self.link
        if link is not None:
            # [MQTT-4.3.3-4] also when the PUBREC is a repetition; [MQTT-3.3.4-10] [MQTT-4.9.0-3]
            # without a look at the quota.
            link.send_pubrel(packet_id, 0, delivery.barrier)
        return True

    def on_pubcomp(self, packet_id: int, now: float) -> None:
        """PUBCOMP of a QoS 2 delivery. [MQTT-4.3.3-5]"""
        delivery = self.window.get(packet_id)
        if delivery is None or delivery.qos != 2 or delivery.state != RELEASED:
            return
        self._finish(delivery, 0, now)

    def _finish(self, delivery: Delivery, reason: int, now: float) -> None:
        self.window.remove(delivery.packet_id)
        if self.quota < self.quota_max:
            self.quota += 1
        if reason >= 0x80:  # [MQTT-4.8.2-6] ended for all of a group
            self._drop(delivery, count.DROP_REFUSED)
        else:
            self.context.delivered(self.client_id, delivery.message)
        self._settle(delivery)
        if (
            self.queue is not None
            or self.due
            or self.replays is not None
            or self.grouped is not None
        ):
            self.pump(now)

    # Moving on whenever there is room: after an acknowledgement, a commit, a resume.

    def pump(self, now: float) -> None:
        """Send whatever may be sent now, in order."""
        link = self.link
        if link is None or not link.writable:
            return
        committed = self.context.journal.committed
        due = self.due
        while due:  # [MQTT-4.3.3-7] what was begun is sent again, expired or not
            delivery = due[0]
            if delivery.state != SETTLED:
                if delivery.barrier > committed:
                    self._await_commit()
                    return
                if delivery.state == RELEASED:
                    link.send_pubrel(delivery.packet_id, 0, delivery.barrier)
                elif not delivery.sent and 0.0 < delivery.message.expires_at <= now:
                    self.window.pop(delivery.packet_id)  # lined up, but never begun
                    self.discard(delivery, count.DROP_EXPIRED)
                elif self.quota <= 0 or not link.writable:
                    return
                else:
                    self._send(link, delivery, now)
            due.popleft()
        self.due = None
        queue = self.queue
        if queue is None or self._pump_queue(queue, link, now):
            self._move_on()

    def _move_on(self) -> None:
        """Nothing of its own waits: it is the turn of its groups and of retained replays."""
        if self.grouped is not None and self.room() > 0:
            queued = self.context.queued_groups
            if len(queued) < len(self.grouped):
                for group in queued:
                    if group in self.grouped:
                        self.context.groups[group] = None
            else:
                for group in self.grouped:
                    if group in queued:
                        self.context.groups[group] = None
        if self.replays is not None and not self.runnable:
            self.runnable = True
            self.context.runnable.append(self)

    def _pump_queue(self, queue: Queue, link: Link, now: float) -> bool:
        """Send from the queue; whether it is empty now."""
        committed = self.context.journal.committed
        head = queue.head
        if queue.low():
            self.context.want_page(queue, self, None)
        while head:
            delivery = head[0]
            # A message downgraded to QoS 0 takes no identifier: only the barrier may stop it.
            if not link.writable or (delivery.qos and self.room() <= 0):
                return False
            if delivery.message.barrier > committed:
                self._await_commit()
                return False
            queue.pop()
            if delivery.message.expires_at and now >= delivery.message.expires_at:
                # [MQTT-3.3.2-5] expired before its delivery began.
                self.discard(delivery, count.DROP_EXPIRED)
                continue
            self.context.trace(watch.SENT, self.client_id, delivery.message)
            self._transmit(link, delivery, now)
        if queue.tail or queue.coming:
            if queue.low():
                self.context.want_page(queue, self, None)
            return False
        if self.queue is queue:
            self.queue = None
        return True

    def attach(self, link: Link, receive_maximum: int) -> None:
        """A connection takes the session; `pump` starts once CONNACK is out."""
        self.link = link
        self.quota = receive_maximum
        self.quota_max = receive_maximum
        self.expires_at = 0.0  # [MQTT-4.1.0-1] it can't end while it is connected
        self.will_at = 0.0
        # [MQTT-4.4.0-1] what is unacknowledged goes out again, in the original order.
        if self.window.deliveries:
            # PUBREL first: Receive Maximum may hold a PUBLISH back, but nothing else.
            # [MQTT-3.3.4-10] [MQTT-4.9.0-3]
            again = list(self.window.deliveries.values())
            self.due = deque([d for d in again if d.state == RELEASED])
            # They are unacknowledged as well, and their PUBCOMPs raise the quota.
            self.quota -= len(self.due)
            self.due.extend([d for d in again if d.state != RELEASED])

    def detach(self) -> list[Delivery]:
        """The connection is gone. Returns what it left unfinished of shared groups (QoS 1)."""
        self.link = None
        self.due = None
        queue = self.queue
        if queue is not None and queue.shrink():
            self.context.tails[queue.number] = queue
        orphans: list[Delivery] = []
        if self.grouped is not None:
            for delivery in list(self.window.deliveries.values()):
                # [MQTT-4.8.2-4] a QoS 2 exchange stays with the member that began it.
                if delivery.qos == 1 and delivery.group in self.grouped:
                    self.window.pop(delivery.packet_id)
                    self.context.journal.settle(self.number, delivery)
                    orphans.append(delivery)
            for group in self.grouped:
                if group.policy is not None and group.queue is not None:
                    self.context.groups[group] = None  # it may be another's turn now
        return orphans

    def end(self) -> list[Delivery]:
        """The session is over: everything still on its way to the client is counted as dropped.

        Returns what it left unfinished (QoS 1) of shared groups that it had left before.
        """
        left: list[Delivery] = []
        orphans: list[Delivery] = []
        for delivery in self.window.deliveries.values():
            group = delivery.group
            if delivery.qos == 1 and group is not None and group.members:
                self.context.journal.settle(self.number, delivery)
                orphans.append(delivery)
            else:  # [MQTT-4.8.2-5] no other member gets what this one began
                left.append(delivery)
        queue = self.queue
        if queue is not None:
            left.extend(queue.head)
            self.context.abandon(queue)
        self.window.deliveries.clear()
        self.queue = None
        self.due = None
        self.replays = None
        for delivery in left:
            self.discard(delivery, count.DROP_SESSION_ENDED)
        return orphans

    # Retained replay.

    def add_replay(self, replay: Replay) -> None:
        if self.replays is None:
            self.replays = []
        self.replays.append(replay)
        if not self.runnable:
            self.runnable = True
            self.context.runnable.append(self)

    def stop_replays(self, subscription: Subscription) -> None:
        """[MQTT-3.10.4-2] nothing more is sent for a subscription that has gone."""
        if self.replays is not None:
            left = [replay for replay in self.replays if replay.subscription is not subscription]
            self.replays = left if left else None

    def move_replays(self, old: Subscription, new: Subscription) -> None:
        """A subscription was replaced by one that asks for no replay: what runs goes on for it."""
        if self.replays is not None:
            for replay in self.replays:
                if replay.subscription is old:
                    replay.subscription = new
                    replay.identifiers = new.identifier_block

    def run_replay(self, now: float) -> bool:
        """One turn of replay. True: call again next tick; False: `pump` will ask again."""
        link = self.link
        replays = self.replays
        if link is None or not replays or not link.writable or self.queue is not None or self.due:
            return False
        replay = replays[0]
        subscription = replay.subscription
        budget = _REPLAY_TURN
        while budget > 0:
            if link.backlog() > _REPLAY_BACKLOG:
                return True
            steps = _REPLAY_STEPS
            if subscription.qos:
                room = self.room()
                if room <= 0:
                    return False
                if room < steps:
                    steps = room
            budget -= steps
            for message in replay.cursor.take(steps):
                self._replay_one(message, subscription, replay.identifiers, now)
            if replay.cursor.done:
                replays.pop(0)
                if not replays:
                    self.replays = None
                    return False
                return True
        return True

    def _replay_one(
        self, message: Message, subscription: Subscription, identifiers: bytes, now: float
    ) -> None:
        if message.expires_at and now >= message.expires_at:
            return
        if subscription.no_local and message.origin == self.client_id:
            return  # [MQTT-3.8.3-3]
        self.context.counters.matched += 1
        qos = message.qos if message.qos < subscription.qos else subscription.qos
        if qos or message.barrier > self.context.journal.committed:
            self.deliver(message, qos, True, identifiers, now)
            return
        # Not `deliver`: a replay paces itself and is never cut short by a full buffer.
        link = self.link
        if link is not None and link.send_publish(message, 0, True, 0, False, identifiers, now):
            self.context.delivered(self.client_id, message)
