"""Retained messages: at most one a topic, found by topic or by filter.

Topics are stored level by level, so that a filter walks only the branches that it can match.
Topics that begin with "$" live under a root of their own, out of reach of a leading wildcard.
                                                                             # [MQTT-4.7.2-1]
Nothing here is done in one go over many topics: a `Cursor` remembers where it stands and yields a
bounded slice for each call, while messages come and go between the calls. It holds the children
of each node on its path as they were when it went by. What is replaced meanwhile is seen with its
new value, what is removed is skipped, what is new may be missed: it came after the subscription
and has reached the subscriber by the usual way.

Expiry is judged by whoever delivers. `sweep` merely gives the room back, a slice at a time, and
costs nothing while no stored message can expire.

Must not know: subscriptions, sessions, the clock.

Invariants: no node without a message and without children but the two roots; a node that leaves
the tree has neither; no stored message has an empty payload.                # [MQTT-3.3.1-7]
"""

from mqttd.core.message import Message


class RetainedNode:
    """A level of some topics, with the message of the topic that ends here."""

    def __init__(self) -> None:
        self.children: dict[str, RetainedNode] | None = None
        self.message: Message | None = None


class Frame:
    """Nodes that a cursor has yet to visit, and the level of the filter that they face.

    The nodes stand in reverse: each is popped, and so let go, when its turn comes.
    """

    def __init__(self, nodes: list[RetainedNode], depth: int) -> None:
        self.nodes = nodes
        self.depth = depth


class Cursor:
    """A walk over the retained messages that match one filter, resumable at any node."""

    def __init__(self, roots: list[RetainedNode], inner_filter: str) -> None:
        self._levels = inner_filter.split("/")
        self._frames = [Frame(roots, 0)]
        self.done = False

    def take(self, steps: int) -> list[Message]:
        """Visit at most `steps` more nodes; return the messages met on the way."""
        messages: list[Message] = []
        levels = self._levels
        frames = self._frames
        end = len(levels)
        while steps > 0 and frames:
            steps -= 1
            frame = frames[-1]
            depth = frame.depth
            node = frame.nodes.pop()
            if not frame.nodes:
                frames.pop()
            children = node.children
            level = "" if depth == end else levels[depth]
            if depth == end or level == "#":
                # The "#" faces the node above it first: "a/#" matches "a".
                message = node.message
                if message is not None:
                    messages.append(message)
                if depth < end and children is not None:
                    frames.append(Frame(_reversed(children), depth))
            elif children is not None:
                if level == "+":
                    frames.append(Frame(_reversed(children), depth + 1))
                else:
                    child = children.get(level)
                    if child is not None:
                        frames.append(Frame([child], depth + 1))
        self.done = not frames
        return messages


def _reversed(children: dict[str, RetainedNode]) -> list[RetainedNode]:
    nodes = list(children.values())
    nodes.reverse()
    return nodes


class Retained:
    """The retained messages of a broker; `expiring` of its `count` have an end."""

    def __init__(self) -> None:
        self.count = 0
        self.expiring = 0
        self.node_count = 0
        self._root = RetainedNode()
        self._system = RetainedNode()
        self._sweeper: Cursor | None = None

    def get(self, topic: str) -> Message | None:
        node = self._root_of(topic)
        for level in topic.split("/"):
            children = node.children
            if children is None:
                return None
            child = children.get(level)
            if child is None:
                return None
            node = child
        return node.message

    def set(self, topic: str, message: Message) -> Message | None:
        """Store the message of its topic; return the one it replaces."""  # [MQTT-3.3.1-5]
        if not message.payload:  # [MQTT-3.3.1-6] [MQTT-3.3.1-7]
            return self.remove(topic)
        node = self._root_of(topic)
        for level in topic.split("/"):
            children = node.children
            if children is None:
                children = {}
                node.children = children
            child = children.get(level)
            if child is None:
                child = RetainedNode()
                children[level] = child
                self.node_count += 1
            node = child
        previous = node.message
        node.message = message
        self._note(previous, message)
        return previous

    def remove(self, topic: str) -> Message | None:
        """Take a message out and prune what it leaves empty; None when there is none."""
        node = self._root_of(topic)
        levels = topic.split("/")
        path = [node]
        for level in levels:
            children = node.children
            if children is None:
                return None
            child = children.get(level)
            if child is None:
                return None
            node = child
            path.append(node)
        gone = node.message
        if gone is None:
            return None
        node.message = None
        self._note(gone, None)
        depth = len(levels)
        while depth > 0 and path[depth].message is None and path[depth].children is None:
            depth -= 1
            parent = path[depth]
            if parent.children is not None and len(parent.children) > 1:
                del parent.children[levels[depth]]
            else:
                parent.children = None
            self.node_count -= 1
        return gone

    def cursor(self, inner_filter: str) -> Cursor:
        """A walk over what matches a valid filter (for a shared one there is none to be sent)."""
        return Cursor([self._root_of(inner_filter)], inner_filter)

    def sweep(self, now: float, steps: int) -> list[str]:
        """Visit at most `steps` nodes of the endless round; remove and name what has expired."""
        if self.expiring == 0:
            self._sweeper = None
            return []
        sweeper = self._sweeper
        if sweeper is None or sweeper.done:
            sweeper = Cursor([self._system, self._root], "#")
            self._sweeper = sweeper
        topics: list[str] = []
        for message in sweeper.take(steps):
            if 0.0 < message.expires_at <= now:
                self.remove(message.topic)
                topics.append(message.topic)
        return topics

    def _root_of(self, text: str) -> RetainedNode:
        return self._system if text.startswith("$") else self._root

    def _note(self, before: Message | None, after: Message | None) -> None:
        if before is not None:
            self.count -= 1
            if before.expires_at > 0.0:
                self.expiring -= 1
        if after is not None:
            self.count += 1
            if after.expires_at > 0.0:
                self.expiring += 1
