"""Shared subscriptions: one member of a group gets each message (MQTT 5, 4.8.2).

Owns: who gets the next message of a group, and the group's queue while nobody can take it.

Must not know: connections, topics, how a session sends.

Invariants: a message waits in the group's queue, never in a member's, so that whichever member
has room first gets it; the queue holds only QoS > 0 and keeps the order of arrival; messages that
a member left unfinished go back to its front. A group's queue is bounded, and paged, like a
session's. Where a group has a policy (`SharePolicy`), that bounds the queue instead, and says who
is served; a group without one pays a comparison with None for it.
"""

from typing import Final

from mqttd.core import counters as count
from mqttd.core import journal as kinds
from mqttd.core import watch
from mqttd.core.inflight import Delivery
from mqttd.core.message import OWED, Message
from mqttd.core.queue import Queue
from mqttd.core.session import Context, Session
from mqttd.core.settings import DROP_OLDEST, SharePolicy
from mqttd.core.trie import SharedGroup, Subscription
from mqttd.core.wire import u16

_REDELIVERIES: Final = b"\x26\x00\x12mqttd-redeliveries"  # a User Property, but for its value


def queue_of(group: SharedGroup) -> Queue | None:
    """What waits for any of the members; None for nothing."""
    queue = group.queue
    assert queue is None or isinstance(queue, Queue)
    return queue


def distribute(group: SharedGroup, message: Message, now: float, context: Context) -> None:
    """Give one message to the next member that can take it, or keep it."""
    policy = group.policy
    if policy is None or not policy.ttl:
        _distribute(group, message, now, context)
        return
    limited = _limited(message, now + policy.ttl)
    _distribute(group, limited, now, context)
    if limited is not message and limited.undurable:
        # The acknowledgement of the one waits for the batch that has the other.
        message.undurable += 1


def _limited(message: Message, expires_at: float) -> Message:
    """The message, to expire at `expires_at` at the latest."""
    if message.expires_at and message.expires_at <= expires_at:
        return message
    limited = Message(
        message.topic,
        message.key,
        message.payload,
        message.qos,
        message.retain,
        message.properties,
        expires_at,
        message.origin,
    )
    limited.barrier = message.barrier
    limited.serial = message.serial
    return limited


def _keeps_qos0(group: SharedGroup, context: Context) -> bool:
    policy = group.policy
    return policy is not None and policy.keep_qos0 and not context.journal.refusing


def _distribute(group: SharedGroup, message: Message, now: float, context: Context) -> None:
    counters = context.counters
    counters.matched += 1
    if (
        message.qos == 0
        and message.barrier <= context.journal.committed
        and not _keeps_qos0(group, context)
    ):
        member = _next_member(group, message, False)
        if member is None:
            context.drop(count.DROP_NO_MEMBER, "", message, group.title)
            return
        session = member.subscriber
        assert isinstance(session, Session)
        link = session.link
        assert link is not None
        retain = message.retain and member.retain_as_published
        context.handed(group, session, message)
        link.through = group
        session.deliver(message, 0, retain, member.identifier_block, now)
        link.through = None
        return
    delivery = Delivery(message, message.qos, False, b"", group)
    if message.barrier <= context.journal.committed and group.queue is None:
        member = _next_member(group, message, True)
        if member is not None:
            if _outlives(group, member, message):
                _number(group, context)
                context.journal.add(group.number, delivery)
            _assign(group, member, delivery, now)
            return
        if _nobody_may(group, message):
            context.drop(count.DROP_NOT_AUTHORIZED, "", message, group.title)
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
        if group.latest and _is_stale(group, delivery):
            queue.pop()
            _drop(group, delivery, count.DROP_REPLACED, context)
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
        group.latest.clear()
        context.queued_groups.pop(group, None)


def give_back(orphans: list[Delivery], context: Context, tried: bool = True) -> None:
    """What a member that left had begun (QoS 1) goes to the front of its group's queue.

    `tried`: it was the member that left, not the broker, so what it had got counts as tried.
    """
    for delivery in reversed(orphans):
        group = delivery.group
        assert group is not None
        if group.outstanding is delivery:
            group.outstanding = None
        if not group.members:
            context.drop(count.DROP_SESSION_ENDED, "", delivery.message, group.title)
            continue
        if tried and delivery.sent:
            delivery.redeliveries += 1
        policy = group.policy
        if policy is not None:
            reason = ""
            if policy.redelivery_limit and delivery.redeliveries > policy.redelivery_limit:
                reason = count.DROP_REDELIVERIES
            elif delivery.message.key in group.latest:
                reason = count.DROP_REPLACED
            if reason:
                _drop(group, delivery, reason, context)
                let_go(delivery.message)
                context.groups[group] = None
                continue
        durable = is_durable(group)
        queue = _opened_queue(group, durable, context)
        delivery.packet_id = 0
        delivery.lent = False
        if durable:
            context.journal.add(queue.number, delivery, True)
        queue.put_first(delivery)
        if policy is not None and policy.last_value:
            group.latest[delivery.message.key] = delivery.serial
        context.queued_groups[group] = None
        context.groups[group] = None


def dissolve(group: SharedGroup, context: Context) -> None:
    """The last member has left for good: what waits ends here."""
    queue = queue_of(group)
    group.queue = None
    group.latest.clear()
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
    policy = group.policy
    if policy is not None:
        if policy.one_at_a_time and group.outstanding is not None:
            return None
        if policy.exclusive:
            served = served_member(group)
            if served is not None and _can_take(served, message, acknowledged):
                return served
            return None
    members = group.members
    size = len(members)
    place = group.cursor
    for _ in range(size):
        if place >= size:
            place = 0
        member = members[place]
        place += 1
        if _can_take(member, message, acknowledged):
            group.cursor = place
            return member
    return None


def _can_take(member: Subscription, message: Message, acknowledged: bool) -> bool:
    session = member.subscriber
    assert isinstance(session, Session)
    link = session.link
    if link is None or not link.writable:
        return False
    if acknowledged and member.qos > 0 and session.room() <= 0:
        return False
    return not link.guarded or link.may_receive(message.topic, message.key)


def served_member(group: SharedGroup) -> Subscription | None:
    """Who of an exclusive group is served: whoever was first, until it leaves."""
    if group.served is not None:
        member = group.member(group.served)
        if member is not None and is_there(member):
            return member
    found: Subscription | None = None
    for member in group.members:
        if is_there(member) and (found is None or member.order < found.order):
            found = member
    group.served = None if found is None else found.subscriber
    return found


def is_there(member: Subscription) -> bool:
    """Whether a member is connected."""
    session = member.subscriber
    assert isinstance(session, Session)
    return session.link is not None and session.link.established


def _nobody_may(group: SharedGroup, message: Message) -> bool:
    """Members are connected, and none of them may have the message: it would wait for ever."""
    asked = 0
    members = group.members
    if group.policy is not None and group.policy.exclusive:
        served = served_member(group)
        members = [] if served is None else [served]
    for member in members:
        session = member.subscriber
        assert isinstance(session, Session)
        link = session.link
        if link is None or not link.established:
            continue
        if not link.guarded or link.may_receive(message.topic, message.key):
            return False
        asked += 1
    return asked > 0


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
    policy = group.policy
    if policy is not None:
        _note_assigned(group, policy, delivery)
    if session.durable:
        _number(group, context)
    elif delivery.journalled and delivery.qos == 1:
        # A member that doesn't last has no rows: until its PUBACK the message is the group's.
        delivery.lent = True
    if not delivery.lent:
        context.journal.settle(group.number, delivery)
    context.handed(group, session, message)
    session.adopt(delivery, now)
    let_go(message)


def _note_assigned(group: SharedGroup, policy: SharePolicy, delivery: Delivery) -> None:
    if policy.last_value:
        _forget_latest(group, delivery)
    if policy.one_at_a_time and delivery.qos:
        group.outstanding = delivery
    if delivery.redeliveries:
        value = str(delivery.redeliveries).encode("ascii")
        delivery.identifiers += _REDELIVERIES + u16(len(value)) + value


def _keep(group: SharedGroup, delivery: Delivery, now: float, context: Context) -> None:
    durable = is_durable(group)
    queue = _opened_queue(group, durable, context)
    settings = context.settings
    limit = settings.max_queued_messages
    overflow = settings.queue_overflow
    policy = group.policy
    if policy is not None:
        overflow = policy.overflow
        if policy.max_length:
            limit = policy.max_length
        if policy.last_value:
            _replace(group, queue, delivery.message, context)
    if limit and len(queue) >= limit:
        while queue.head and queue.expiry and now >= queue.expiry:
            first = queue.head[0]
            if not first.message.expires_at or now < first.message.expires_at:
                break
            queue.pop()
            _drop(group, first, count.DROP_EXPIRED, context)
        if len(queue) >= limit:
            if overflow != DROP_OLDEST:
                context.drop(count.DROP_QUEUE_FULL, "", delivery.message, group.title)
                return
            while len(queue) >= limit and (queue.head or queue.tail):
                oldest = context.drop_oldest(queue, "", group.title)
                if oldest is not None:
                    _settle(group, oldest, context)
    if durable:
        context.journal.add(queue.number, delivery)
    if policy is not None and policy.last_value:
        group.latest[delivery.message.key] = delivery.serial
    if queue.has_room(_anybody(group)):
        queue.append(delivery)
    else:
        context.leave(queue, delivery)
    context.queued_groups[group] = None
    context.trace(watch.QUEUED, group.title, delivery.message)


def _replace(group: SharedGroup, queue: Queue, message: Message, context: Context) -> None:
    """A newer message of a topic takes the right to wait from the older one.

    One that is on its way in a page is seen to be stale when its turn comes.
    """
    serial = group.latest.get(message.key)
    if serial is None:
        return
    older = queue.take_topic(message.key)
    if older is not None:
        _drop(group, older, count.DROP_REPLACED, context)
    elif queue.tail and queue.remove({serial}):
        context.drop_unread(count.DROP_REPLACED)
        context.journal.record(kinds.DELIVERY_FORGET, "", "", serial)


def _is_stale(group: SharedGroup, delivery: Delivery) -> bool:
    """A newer message of its topic waits behind it."""
    serial = group.latest.get(delivery.message.key, 0)  # below 0 for what was given back
    return serial != 0 and delivery.serial != 0 and serial != delivery.serial


def _forget_latest(group: SharedGroup, delivery: Delivery) -> None:
    key = delivery.message.key
    serial = group.latest.get(key)
    if serial is not None and serial == delivery.serial:
        del group.latest[key]


def _opened_queue(group: SharedGroup, durable: bool, context: Context) -> Queue:
    queue = queue_of(group)
    if queue is None:
        queue = Queue(group.number, False, "", group.title)
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
    return group.lasting > 0


def _outlives(group: SharedGroup, member: Subscription, message: Message) -> bool:
    """Whether a message stays the group's while a member has it: then it outlives that member, and
    the broker. At QoS 1 only: at QoS 2 no other member may get what one has begun."""
    if not is_durable(group) or member.subscriber.durable:
        return False
    qos = message.qos if message.qos < member.qos else member.qos
    return qos == 1


def _drop(group: SharedGroup, delivery: Delivery, reason: str, context: Context) -> None:
    context.drop(reason, "", delivery.message, group.title)
    _settle(group, delivery, context)


def _settle(group: SharedGroup, delivery: Delivery, context: Context) -> None:
    if group.latest:
        _forget_latest(group, delivery)
    if context.journal.settle(group.number, delivery):
        let_go(delivery.message)


def let_go(message: Message) -> None:
    """Whoever holds an acknowledgement for the message may look again."""
    holder = message.holder
    if message.undurable == 0 and message.owed < OWED and holder is not None:
        message.holder = None
        holder.release()
