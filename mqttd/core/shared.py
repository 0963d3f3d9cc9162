"""Shared subscriptions: one member of a group gets each message (MQTT 5, 4.8.2).

Owns: who gets the next message of a group, and the group's queue while nobody can take it.

Must not know: connections, topics, how a session sends.

Invariants: a message waits in the group's queue, never in a member's, so that whichever member
has room first gets it; the queue holds only QoS > 0 and keeps the order of arrival; messages that
a member left unfinished go back to its front. A group's queue is bounded, and paged, like a
session's.
"""

from mqttd.core import counters as count
from mqttd.core import journal as kinds
from mqttd.core import watch
from mqttd.core.inflight import Delivery
from mqttd.core.message import Message
from mqttd.core.queue import Queue
from mqttd.core.session import Context, Session
from mqttd.core.settings import DROP_OLDEST
from mqttd.core.trie import SharedGroup, Subscription


def queue_of(group: SharedGroup) -> Queue | None:
    """What waits for any of the members; None for nothing."""
    queue = group.queue
    assert queue is None or isinstance(queue, Queue)
    return queue


def distribute(group: SharedGroup, message: Message, now: float, context: Context) -> None:
    """Give one message to the next member that can take it, or keep it."""
    counters = context.counters
    counters.matched += 1
    if message.qos == 0 and message.barrier <= context.journal.committed:
        member = _next_member(group, message, False)
        if member is None:
            context.drop(count.DROP_NO_MEMBER, _name(group), message)
            return
        session = member.subscriber
        assert isinstance(session, Session)
        retain = message.retain and member.retain_as_published
        session.deliver(message, 0, retain, member.identifier_block, now)
        return
    delivery = Delivery(message, message.qos, False, b"", group)
    if message.barrier <= context.journal.committed and group.queue is None:
        member = _next_member(group, message, True)
        if member is not None:
            _assign(group, member, delivery, now)
            return
        if _nobody_may(group, message):
            context.drop(count.DROP_NOT_AUTHORIZED, _name(group), message)
            return
    _keep(group, delivery, now, context)
    if message.barrier > context.journal.committed:
        context.waiting_groups[group] = None


def pull(group: SharedGroup, now: float, context: Context) -> None:
    """Hand out the queue as far as members can take it."""
    queue = queue_of(group)
    if queue is None:
        return
    if queue.low() and _anybody(group):
        context.want_page(queue, None, group)
    head = queue.head
    while head:
        delivery = head[0]
        if delivery.message.barrier > context.journal.committed:
            context.waiting_groups[group] = None
            return
        if delivery.message.expires_at and now >= delivery.message.expires_at:
            queue.pop()
            _drop(group, delivery, count.DROP_EXPIRED, context)
            continue
        member = _next_member(group, delivery.message, True)
        if member is None:
            if _nobody_may(group, delivery.message):
                queue.pop()
                _drop(group, delivery, count.DROP_NOT_AUTHORIZED, context)
                continue
            return
        queue.pop()
        _assign(group, member, delivery, now)
    if queue.tail or queue.coming:
        if queue.low() and _anybody(group):
            context.want_page(queue, None, group)
    elif group.queue is queue:
        group.queue = None
        context.queued_groups.pop(group, None)


def give_back(orphans: list[Delivery], context: Context) -> None:
    """What a member that left had begun (QoS 1) goes to the front of its group's queue."""
    for delivery in reversed(orphans):
        group = delivery.group
        assert group is not None
        if not group.members:
            context.drop(count.DROP_SESSION_ENDED, _name(group), delivery.message)
            continue
        durable = is_durable(group)
        queue = _opened_queue(group, durable, context)
        delivery.packet_id = 0
        delivery.lent = False
        if durable:
            context.journal.add(queue.number, delivery, True)
        queue.put_first(delivery)
        context.queued_groups[group] = None
        context.groups[group] = None


def dissolve(group: SharedGroup, context: Context) -> None:
    """The last member has left for good: what waits ends here."""
    queue = queue_of(group)
    group.queue = None
    context.queued_groups.pop(group, None)
    if queue is not None:
        context.abandon(queue)
        for delivery in queue.head:
            _drop(group, delivery, count.DROP_SESSION_ENDED, context)
    if group.number:
        context.journal.record(kinds.GROUP_DROP, group.name, group.topic_filter)
        group.number = 0


def _anybody(group: SharedGroup) -> bool:
    """Somebody is there to take what a page brings."""
    for member in group.members:
        session = member.subscriber
        assert isinstance(session, Session)
        if session.link is not None:
            return True
    return False


def _next_member(group: SharedGroup, message: Message, acknowledged: bool) -> Subscription | None:
    """Round robin over the members that are connected, have room, and may have the message."""
    members = group.members
    size = len(members)
    place = group.cursor
    for _ in range(size):
        if place >= size:
            place = 0
        member = members[place]
        place += 1
        session = member.subscriber
        assert isinstance(session, Session)
        link = session.link
        if link is None or not link.writable:
            continue
        if acknowledged and member.qos > 0 and session.room() <= 0:
            continue
        if link.guarded and not link.may_receive(message.topic, message.key):
            continue
        group.cursor = place
        return member
    return None


def _nobody_may(group: SharedGroup, message: Message) -> bool:
    """Members are connected, and none of them may have the message: it would wait for ever."""
    asked = 0
    for member in group.members:
        session = member.subscriber
        assert isinstance(session, Session)
        link = session.link
        if link is None or not link.established:
            continue
        if not link.guarded or link.may_receive(message.topic, message.key):
            return False
        asked += 1
    return asked > 0


def _name(group: SharedGroup) -> str:
    return "$share/" + group.name + "/" + group.topic_filter


def _assign(group: SharedGroup, member: Subscription, delivery: Delivery, now: float) -> None:
    session = member.subscriber
    assert isinstance(session, Session)
    message = delivery.message
    # [MQTT-4.8.2-3] each member at its own granted QoS.
    delivery.qos = message.qos if message.qos < member.qos else member.qos
    delivery.group = group
    delivery.retain = message.retain and member.retain_as_published
    delivery.identifiers = member.identifier_block
    context = session.context
    if session.durable:
        _number(group, context)
    elif delivery.journalled and delivery.qos == 1:
        # A member that doesn't last has no rows: until its PUBACK the message is the group's.
        delivery.lent = True
    if not delivery.lent:
        context.journal.settle(group.number, delivery)
    session.adopt(delivery, now)
    if message.undurable == 0 and message.holder is not None:
        holder = message.holder
        message.holder = None
        holder.release()


def _keep(group: SharedGroup, delivery: Delivery, now: float, context: Context) -> None:
    durable = is_durable(group)
    queue = _opened_queue(group, durable, context)
    settings = context.settings
    limit = settings.max_queued_messages
    if limit and len(queue) >= limit:
        while queue.head and queue.expiry and now >= queue.expiry:
            first = queue.head[0]
            if not first.message.expires_at or now < first.message.expires_at:
                break
            queue.pop()
            _drop(group, first, count.DROP_EXPIRED, context)
        if len(queue) >= limit:
            if settings.queue_overflow != DROP_OLDEST:
                context.drop(count.DROP_QUEUE_FULL, _name(group), delivery.message)
                return
            while len(queue) >= limit and (queue.head or queue.tail):
                oldest = context.drop_oldest(queue)
                if oldest is not None:
                    _settle(group, oldest, context)
    if durable:
        context.journal.add(queue.number, delivery)
    if queue.has_room(_anybody(group)):
        queue.append(delivery)
    else:
        context.leave(queue, delivery)
    context.queued_groups[group] = None
    context.trace(watch.QUEUED, _name(group), delivery.message)


def _opened_queue(group: SharedGroup, durable: bool, context: Context) -> Queue:
    queue = queue_of(group)
    if queue is None:
        queue = Queue(group.number, False)
        group.queue = queue
    if durable and not queue.paging:  # new, or the first member that lasts came after it
        _number(group, context)
        queue.number = group.number
        queue.paging = context.journal.paging
    return queue


def _number(group: SharedGroup, context: Context) -> None:
    """Make the group known to the store."""
    if group.number == 0 and context.journal.enabled:
        number = group.number = context.journal.new_number()
        context.journal.record(kinds.GROUP_SAVE, group.name, group.topic_filter, number)


def is_durable(group: SharedGroup) -> bool:
    """A group's queue is as durable as its most durable member."""
    for member in group.members:
        session = member.subscriber
        assert isinstance(session, Session)
        if session.durable:
            return True
    return False


def _drop(group: SharedGroup, delivery: Delivery, reason: str, context: Context) -> None:
    context.drop(reason, _name(group), delivery.message)
    _settle(group, delivery, context)


def _settle(group: SharedGroup, delivery: Delivery, context: Context) -> None:
    message = delivery.message
    if context.journal.settle(group.number, delivery) and message.holder is not None:
        holder = message.holder
        message.holder = None
        holder.release()
