"""Who receives a message: the tree of subscriptions and the memo in front of it.

Filters are stored level by level. The wildcards have slots of their own beside the children of a
node, so a topic level is looked up in a dict and "+" and "#" are two attribute reads: no pattern
is ever compared with anything. Filters that begin with "$" live under a root of their own; that a
leading wildcard does not reach `$SYS` holds by construction.                # [MQTT-4.7.2-1]

A walk follows the topic down and leaves the "+" branches it passes for later. Each node has one
parent, hence is visited at most once, and only nodes whose filter agrees with the topic so far
are: depth costs no stack and no filter of the world costs more than its own length.

`lookup` is the hot path: the raw bytes of a topic name lead straight to what matched last time.
Every change of the tree raises `generation` and drops the memo, at once, so that it never keeps
a session alive that has gone. The memo has two halves: when the young one is full it becomes the
old one, whose entries are forgotten unless they are asked for again.

A subscriber with several matching subscriptions appears once, as one `Target` [MQTT-3.3.4-2]; a
shared group appears as itself, for who of its members is served is not decided here.

Must not know: sessions (they extend `Subscriber`), QoS windows, retained messages, the clock.

Invariants: no empty node but the two roots; `Node.many` is None or holds two or more; a Matched,
its Targets and a Subscription that was inserted are read only for everyone else.
"""

from typing import Final

from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.settings import SharePolicy
from mqttd.core.topics import MAX_LEVELS, validate_topic_name
from mqttd.core.wire import varint

MEMO_ENTRIES: Final = 32768
MEMO_WEIGHT: Final = 1_000_000
MEMO_KEY_BYTES: Final = 512


class Subscriber:
    """What a subscription belongs to; compared by identity."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.durable: bool = False  # outlives its connection: its promises are journalled


class Subscription:
    """One filter of one subscriber with its options."""

    def __init__(
        self,
        subscriber: Subscriber,
        topic_filter: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        identifier: int = 0,
        group: "SharedGroup | None" = None,
    ) -> None:
        self.subscriber = subscriber
        self.topic_filter = topic_filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.retain_handling = retain_handling
        self.identifier = identifier
        # The encoded Subscription Identifier property, as it goes into a PUBLISH.
        self.identifier_block = b"\x0b" + varint(identifier) if identifier else b""
        self.group = group
        # Position in the order of subscribing, given by Trie.insert.
        self.order = 0
        # The target of this subscription when no other of the same subscriber matches. Made once
        # and shared by all topics: the memo would otherwise hold one for each topic and reader.
        self.lone: Target | None = None


class Target:
    """A subscriber that is to get one copy, with what its matching subscriptions ask for."""

    def __init__(self, subscriptions: list[Subscription]) -> None:
        first = subscriptions[0]
        qos = first.qos
        retain_as_published = first.retain_as_published
        identifiers: list[int] = []
        blocks: list[bytes] = []
        without_local = 0
        for subscription in subscriptions:
            if subscription.qos > qos:  # [MQTT-3.3.4-2]
                qos = subscription.qos
            if subscription.retain_as_published:
                retain_as_published = True
            if subscription.no_local:
                without_local += 1
            if subscription.identifier:  # [MQTT-3.3.4-3] [MQTT-3.3.4-4]
                identifiers.append(subscription.identifier)
                blocks.append(subscription.identifier_block)
        self.subscriber = first.subscriber
        self.subscriptions = subscriptions
        self.identifiers = identifiers
        self.identifier_block = b"".join(blocks)
        self.qos = qos
        self.retain_as_published = retain_as_published
        self.no_local = without_local == len(subscriptions)
        self.mixed_no_local = 0 < without_local < len(subscriptions)


def without_no_local(target: Target) -> Target:
    """What is left of an overlap for the publisher itself: the subscriptions without No Local."""
    return Target([s for s in target.subscriptions if not s.no_local])


class SharedGroup:
    """The subscriptions of one share name to one filter.

    `members` is in the order of joining until somebody leaves; the last member then takes the
    empty place, which keeps leaving a large group cheap. `cursor`, `queue` and what follows them
    are the property of whoever distributes.
    """

    def __init__(self, name: str, topic_filter: str) -> None:
        self.name = name
        self.topic_filter = topic_filter
        self.members: list[Subscription] = []
        self.cursor = 0
        self.queue: object | None = None
        self.number = 0  # in the journal; 0 while nothing of the group was ever written
        self.lasting = 0  # members that are durable
        self.policy: SharePolicy | None = None  # set where the group isn't like all others
        self.served: Subscriber | None = None  # of an exclusive group
        self.outstanding: object | None = None  # the delivery that the next one waits for
        self.latest: dict[bytes, int] = {}  # topic → serial of what waits, of a last-value group
        self._places: dict[Subscriber, int] = {}

    @property
    def title(self) -> str:
        """The filter by which its members subscribe."""
        return "$share/" + self.name + "/" + self.topic_filter

    def join(self, subscription: Subscription) -> Subscription | None:
        """Add a member; return the one it replaces."""
        place = self._places.get(subscription.subscriber, -1)
        if place < 0:
            self._places[subscription.subscriber] = len(self.members)
            self.members.append(subscription)
            if subscription.subscriber.durable:
                self.lasting += 1
            return None
        previous = self.members[place]
        self.members[place] = subscription
        return previous

    def member(self, subscriber: Subscriber) -> Subscription | None:
        """The subscription by which somebody is a member."""
        place = self._places.get(subscriber, -1)
        return self.members[place] if place >= 0 else None

    def leave(self, subscriber: Subscriber) -> Subscription | None:
        place = self._places.get(subscriber, -1)
        if place < 0:
            return None
        del self._places[subscriber]
        if subscriber.durable:
            self.lasting -= 1
        if self.served is subscriber:
            self.served = None
        gone = self.members[place]
        last = self.members.pop()
        if last is not gone:
            self.members[place] = last
            self._places[last.subscriber] = place
        return gone


class Matched:
    """What a topic leads to, as of one generation of the trie."""

    def __init__(
        self,
        topic: str,
        key: bytes,
        generation: int,
        targets: list[Target],
        groups: list[SharedGroup],
        weight: int,
    ) -> None:
        self.topic = topic
        self.key = key
        self.generation = generation
        self.targets = targets
        self.groups = groups
        self.weight = weight
        self.names: tuple[str, ...] | None = None  # of all of them, once somebody has asked


class Node:
    """A level of some filters. Most nodes are small: what is absent is None, not empty."""

    def __init__(self) -> None:
        self.children: dict[str, Node] | None = None
        self.plus: Node | None = None
        self.hash: Node | None = None
        self.sole: Subscription | None = None
        self.many: dict[Subscriber, Subscription] | None = None
        self.groups: dict[str, SharedGroup] | None = None

    def vacant(self) -> bool:
        return (
            self.sole is None
            and self.many is None
            and self.groups is None
            and self.children is None
            and self.plus is None
            and self.hash is None
        )

    def child(self, level: str) -> "Node | None":
        if level == "+":
            return self.plus
        if level == "#":
            return self.hash
        if self.children is None:
            return None
        return self.children.get(level)

    def grow(self, level: str) -> "Node":
        """Add the child that is not there yet."""
        child = Node()
        if level == "+":
            self.plus = child
        elif level == "#":
            self.hash = child
        elif self.children is None:
            self.children = {level: child}
        else:
            self.children[level] = child
        return child

    def cut(self, level: str) -> None:
        """Take away a child that is there."""
        if level == "+":
            self.plus = None
        elif level == "#":
            self.hash = None
        elif self.children is not None and len(self.children) > 1:
            del self.children[level]
        else:
            self.children = None

    def put(self, subscription: Subscription) -> Subscription | None:
        """Add a subscription; return the one of the same subscriber that it replaces."""
        # [MQTT-3.8.4-3]
        many = self.many
        if many is not None:
            previous = many.get(subscription.subscriber)
            many[subscription.subscriber] = subscription
            return previous
        sole = self.sole
        if sole is None or sole.subscriber is subscription.subscriber:
            self.sole = subscription
            return sole
        self.many = {sole.subscriber: sole, subscription.subscriber: subscription}
        self.sole = None
        return None

    def drop(self, subscriber: Subscriber) -> Subscription | None:
        many = self.many
        if many is not None:
            gone = many.pop(subscriber, None)
            if len(many) == 1:
                self.many = None
                self.sole = many.popitem()[1]
            return gone
        sole = self.sole
        if sole is None or sole.subscriber is not subscriber:
            return None
        self.sole = None
        return sole

    def join(self, name: str, topic_filter: str, subscription: Subscription) -> Subscription | None:
        if self.groups is None:
            self.groups = {}
        group = self.groups.get(name)
        if group is None:
            group = SharedGroup(name, topic_filter)
            self.groups[name] = group
        subscription.group = group
        return group.join(subscription)

    def leave(self, name: str, subscriber: Subscriber) -> Subscription | None:
        if self.groups is None:
            return None
        group = self.groups.get(name)
        if group is None:
            return None
        gone = group.leave(subscriber)
        if not group.members:
            del self.groups[name]
            if not self.groups:
                self.groups = None
        return gone


def _text_of(key: bytes) -> str:
    if b"\0" in key:  # [MQTT-1.5.4-2]
        raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-1.5.4-2", "topic name holds U+0000")
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:  # [MQTT-1.5.4-1]
        raise ProtocolError(
            spec.MALFORMED_PACKET, "MQTT-1.5.4-1", "topic name is not UTF-8"
        ) from None


def _order_of(subscription: Subscription) -> int:
    return subscription.order


def _lone_target(subscription: Subscription) -> Target:
    target = subscription.lone
    if target is None:
        target = Target([subscription])
        subscription.lone = target
    return target


def _merge(found: list[Node]) -> list[Target]:
    """One target for each subscriber of several nodes, in time linear in the subscriptions."""
    targets: list[Target] = []
    places: dict[Subscriber, int] = {}
    overlaps: dict[int, list[Subscription]] = {}
    for node in found:
        many = node.many
        if many is not None:
            for subscription in many.values():
                _merge_one(subscription, targets, places, overlaps)
        sole = node.sole
        if sole is not None:
            _merge_one(sole, targets, places, overlaps)
    for place, subscriptions in overlaps.items():
        subscriptions.sort(key=_order_of)
        targets[place] = Target(subscriptions)
    return targets


def _merge_one(
    subscription: Subscription,
    targets: list[Target],
    places: dict[Subscriber, int],
    overlaps: dict[int, list[Subscription]],
) -> None:
    place = places.get(subscription.subscriber, -1)
    if place < 0:
        places[subscription.subscriber] = len(targets)
        targets.append(_lone_target(subscription))
        return
    overlapping = overlaps.get(place)
    if overlapping is None:
        overlaps[place] = [targets[place].subscriptions[0], subscription]
    else:
        overlapping.append(subscription)


class Trie:
    """All subscriptions of a broker. `visited` counts the nodes that the last walk looked at."""

    def __init__(
        self,
        max_levels: int = MAX_LEVELS,
        memo_entries: int = MEMO_ENTRIES,
        memo_weight: int = MEMO_WEIGHT,
    ) -> None:
        self.max_levels = max_levels
        self.memo_entries = memo_entries
        self.memo_weight = memo_weight
        self.generation = 0
        self.node_count = 0
        self.visited = 0
        self._inserted = 0
        self._root = Node()
        self._system = Node()
        self._young: dict[bytes, Matched] = {}
        self._young_weight = 0
        self._old: dict[bytes, Matched] = {}

    def insert(
        self, subscription: Subscription, group_name: str, inner_filter: str
    ) -> Subscription | None:
        """Add a subscription under a valid filter; return the one it replaces.

        A replaced subscription keeps neither its place in the order nor its options.
        """
        node = self._system if inner_filter.startswith("$") else self._root
        for level in inner_filter.split("/"):
            child = node.child(level)
            if child is None:
                child = node.grow(level)
                self.node_count += 1
            node = child
        self._inserted += 1
        subscription.order = self._inserted
        if group_name:
            previous = node.join(group_name, inner_filter, subscription)
        else:
            previous = node.put(subscription)
        if previous is not None:
            # Breaks the circle of a subscription and its lone target.
            previous.lone = None
        self._changed()
        return previous

    def remove(
        self, subscriber: Subscriber, group_name: str, inner_filter: str
    ) -> Subscription | None:
        """Take a subscription out and prune what it leaves empty; None when there is none.

        The filter has to be the one of the insertion, wildcards and all.
        """  # [MQTT-3.10.4-1]
        node = self._system if inner_filter.startswith("$") else self._root
        levels = inner_filter.split("/")
        path = [node]
        for level in levels:
            child = node.child(level)
            if child is None:
                return None
            node = child
            path.append(node)
        gone = node.leave(group_name, subscriber) if group_name else node.drop(subscriber)
        if gone is None:
            return None
        gone.lone = None
        depth = len(levels)
        while depth > 0 and path[depth].vacant():
            depth -= 1
            path[depth].cut(levels[depth])
            self.node_count -= 1
        self._changed()
        return gone

    def group(self, name: str, topic_filter: str) -> SharedGroup | None:
        """The shared group of a name and a filter, if it has members."""
        node: Node | None = self._system if topic_filter.startswith("$") else self._root
        for level in topic_filter.split("/"):
            if node is None:
                return None
            node = node.child(level)
        if node is None or node.groups is None:
            return None
        return node.groups.get(name)

    def lookup(self, key: bytes) -> Matched:
        """What the topic name in `key`, raw from the wire, leads to.

        Raises ProtocolError for bytes that are no topic name; names that were seen are not
        checked again.
        """
        matched = self._young.get(key)
        if matched is None:
            return self._miss(key)
        return matched

    def match(self, topic: str) -> Matched:
        """As `lookup`, for a valid topic name at hand, and without the memo."""
        return self._walk(topic, topic.encode("utf-8"))

    def _changed(self) -> None:
        self.generation += 1
        if self._young:
            self._young = {}
            self._young_weight = 0
            self._old = {}

    def _miss(self, key: bytes) -> Matched:
        matched = self._old.get(key)
        if matched is None:
            topic = _text_of(key)
            validate_topic_name(topic, self.max_levels)
            matched = self._walk(topic, key)
            if len(key) > MEMO_KEY_BYTES:
                return matched
        self._remember(key, matched)
        return matched

    def _remember(self, key: bytes, matched: Matched) -> None:
        if len(self._young) >= self.memo_entries or self._young_weight >= self.memo_weight:
            self._old = self._young
            self._young = {}
            self._young_weight = 0
        self._young[key] = matched
        self._young_weight += matched.weight

    def _walk(self, topic: str, key: bytes) -> Matched:
        # [MQTT-3.3.2-3] what is found here is who gets the message.
        levels = topic.split("/")
        end = len(levels)
        depth = 0
        visited = 0
        found: list[Node] = []
        # The "+" branches left aside, and how deep they stand.
        branches: list[Node] = []
        depths: list[int] = []
        node: Node | None = self._system if topic.startswith("$") else self._root
        while node is not None:
            visited += 1
            if node.hash is not None:
                # Whether levels are left or not: "a/#" matches "a" as well.
                found.append(node.hash)
            following: Node | None = None
            if depth == end:
                found.append(node)
            else:
                children = node.children
                if children is not None:
                    following = children.get(levels[depth])
                depth += 1
                if following is None:
                    following = node.plus
                elif node.plus is not None:
                    branches.append(node.plus)
                    depths.append(depth)
            if following is None and branches:
                following = branches.pop()
                depth = depths.pop()
            node = following
        self.visited = visited
        return self._collect(topic, key, found)

    def _collect(self, topic: str, key: bytes, found: list[Node]) -> Matched:
        groups: list[SharedGroup] = []
        weight = 1
        holders = 0
        holder: Node | None = None
        for node in found:
            many = node.many
            if many is not None:
                weight += len(many)
                holders += 1
                holder = node
            elif node.sole is not None:
                weight += 1
                holders += 1
                holder = node
            if node.groups is not None:
                groups.extend(node.groups.values())
        if holder is None:
            targets: list[Target] = []
        elif holders == 1:
            # Within one node subscribers differ: nothing to merge.
            targets = _targets_of(holder)
        else:
            targets = _merge(found)
        return Matched(topic, key, self.generation, targets, groups, weight + len(groups))


def _targets_of(node: Node) -> list[Target]:
    many = node.many
    if many is not None:
        return [_lone_target(subscription) for subscription in many.values()]
    sole = node.sole
    assert sole is not None
    return [_lone_target(sole)]
