"""Shared subscriptions: one member of a group gets each message (MQTT 5, 4.8.2).

Owns: who gets the next message of a group, and the group's queue while nobody can take it.

Must not know: connections, topics, how a session sends.

Invariants: a message waits in the group's queue, never in a member's, so that whichever member
has room first gets it; the queue holds only QoS > 0 and keeps the order of arrival; messages that
a member left unfinished go back to its front. A group's queue is bounded like a session's.
"""

from collections import deque

from mqttd.core import counters as count
from mqttd.core.inflight import Delivery
from mqttd.core.message import Message
from mqttd.core.session import Context, Session
from mqttd.core.settings import DROP_OLDEST
from mqttd.core.trie import SharedGroup, Subscription


def group_key(group: SharedGroup) -> str:
    """The owner name of a group's own queue in the journal."""
    return "$share/" + group.name + "/" + group.topic_filter


def distribute(group: SharedGroup, message: Message, now: float, context: Context) -> None:
    """Give one message to the next member that can take it, or keep it."""
    counters = context.counters
    counters.matched += 1
    if message.qos == 0 and message.barrier <= context.journal.committed:
        member = _next_member(group, False)
        if member is None:
            counters.drop(count.DROP_NO_MEMBER)
            return
        session = member.subscriber
        assert isinstance(session, Session)
        retain = message.retain and member.retain_as_published
        session.deliver(message, 0, retain, member.identifier_block, now)
        return
    delivery = Delivery(message, message.qos, False, b"", group)
    if message.barrier <= context.journal.committed and not group.queue:
        member = _next_member(group, True)
        if member is not None:
            _assign(group, member, delivery, now)
            return
    _keep(group, delivery, now, context)
    if message.barrier > context.journal.committed:
        context.waiting_groups[group] = None


def pull(group: SharedGroup, now: float, context: Context) -> None:
    """Hand out the queue as far as members can take it."""
    queue = group.queue
    if not queue:
        context.queued_groups.pop(group, None)
        return
    while queue:
        delivery = queue[0]
        assert isinstance(delivery, Delivery)
        if delivery.message.barrier > context.journal.committed:
            context.waiting_groups[group] = None
            return
        if delivery.message.expires_at and now >= delivery.message.expires_at:
            queue.popleft()
            _drop(group, delivery, count.DROP_EXPIRED, context)
            continue
        member = _next_member(group, True)
        if member is None:
            return
        queue.popleft()
        _assign(group, member, delivery, now)
    context.queued_groups.pop(group, None)


def give_back(orphans: list[Delivery], context: Context) -> None:
    """What a member that left had begun (QoS 1) goes to the front of its group's queue."""
    for delivery in reversed(orphans):
        group = delivery.group
        assert group is not None
        if not group.members:
            context.counters.drop(count.DROP_SESSION_ENDED)
            continue
        if group.queue is None:
            group.queue = deque()
        delivery.packet_id = 0
        _journal(group, delivery, context)
        group.queue.appendleft(delivery)
        context.queued_groups[group] = None
        context.groups[group] = None


def dissolve(group: SharedGroup, context: Context) -> None:
    """The last member has left for good: what waits ends here."""
    queue = group.queue
    group.queue = None
    context.queued_groups.pop(group, None)
    if queue:
        for delivery in queue:
            assert isinstance(delivery, Delivery)
            _drop(group, delivery, count.DROP_SESSION_ENDED, context)


def _next_member(group: SharedGroup, acknowledged: bool) -> Subscription | None:
    """Round robin over the members that are connected and have room."""
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
        group.cursor = place
        return member
    return None


def _assign(group: SharedGroup, member: Subscription, delivery: Delivery, now: float) -> None:
    session = member.subscriber
    assert isinstance(session, Session)
    message = delivery.message
    # [MQTT-4.8.2-3] each member at its own granted QoS.
    delivery.qos = message.qos if message.qos < member.qos else member.qos
    delivery.retain = message.retain and member.retain_as_published
    delivery.identifiers = member.identifier_block
    context = session.context
    context.journal.settle(group_key(group), delivery)
    session.adopt(delivery, now)
    if message.undurable == 0 and message.holder is not None:
        holder = message.holder
        message.holder = None
        holder.release()


def _keep(group: SharedGroup, delivery: Delivery, now: float, context: Context) -> None:
    queue = group.queue
    if queue is None:
        queue = group.queue = deque()
    settings = context.settings
    while queue and len(queue) >= settings.max_queued_messages > 0:
        first = queue[0]
        assert isinstance(first, Delivery)
        if not first.message.expires_at or now < first.message.expires_at:
            break
        queue.popleft()
        _drop(group, first, count.DROP_EXPIRED, context)
    if settings.max_queued_messages and len(queue) >= settings.max_queued_messages:
        if settings.queue_overflow != DROP_OLDEST:
            context.counters.drop(count.DROP_QUEUE_FULL)
            return
        oldest = queue.popleft()
        assert isinstance(oldest, Delivery)
        _drop(group, oldest, count.DROP_QUEUE_FULL, context)
    _journal(group, delivery, context)
    queue.append(delivery)
    context.queued_groups[group] = None


def _journal(group: SharedGroup, delivery: Delivery, context: Context) -> None:
    """The queue is as durable as its most durable member."""
    for member in group.members:
        session = member.subscriber
        assert isinstance(session, Session)
        if session.durable:
            context.journal.add(group_key(group), delivery)
            return


def _drop(group: SharedGroup, delivery: Delivery, reason: str, context: Context) -> None:
    context.counters.drop(reason)
    message = delivery.message
    if context.journal.settle(group_key(group), delivery) and message.holder is not None:
        holder = message.holder
        message.holder = None
        holder.release()
