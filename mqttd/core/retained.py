"""Retained messages: at most one a topic, found by topic or by filter.

Topics are stored level by level, so that a filter walks only the branches that it can match.
Topics that begin with "$" live under a root of their own, out of reach of a leading wildcard.
                                                                             # [MQTT-4.7.2-1]
Nothing here is done in one go over many topics: a `Cursor` remembers where it stands and yields a
bounded slice for each call, while messages come and go between the calls. It copies the children
of a node when it gets there; where they are many, the node keeps them in rows beside the dict, and
a row is copied at a time. What is replaced meanwhile is seen with its new value, what is removed
is skipped, what is new may be seen or not: it came after the subscription and has reached the
subscriber by the usual way.

Expiry is judged by whoever delivers. `sweep` merely gives the room back, a slice at a time, and
costs nothing while no stored message can expire.

Must not know: subscriptions, sessions, the clock.

Invariants: no node without a message and without children but the two roots; a node that leaves
the tree has neither; a node has rows or not, and then all its children stand in one; no row is
empty; no stored message has an empty payload.                               # [MQTT-3.3.1-7]
"""

from typing import Final

from mqttd.core.message import Message

ROW_SIZE: Final = 512


class Row:
    """Some of the children of a node, in the order they came."""

    def __init__(self) -> None:
        self.nodes: list[RetainedNode] = []


class RetainedNode:
    """A level of some topics, with the message of the topic that ends here."""

    def __init__(self) -> None:
        self.children: dict[str, RetainedNode] | None = None
        self.rows: list[Row] | None = None
        self.row: Row | None = None
        self.message: Message | None = None

    def grow(self, level: str, row_size: int) -> "RetainedNode":
        """Add the child that is not there yet."""
        child = RetainedNode()
        children = self.children
        if children is None:
            self.children = {level: child}
            return child
        children[level] = child
        rows = self.rows
        if rows is not None:
            if len(rows[-1].nodes) >= row_size:
                rows.append(Row())
            child.enter(rows[-1])
        elif len(children) > row_size:
            row = Row()
            for sibling in children.values():
                sibling.enter(row)
            self.rows = [row]
        return child

    def enter(self, row: Row) -> None:
        self.row = row
        row.nodes.append(self)

    def cut(self, level: str) -> None:
        """Take away a child that is there."""
        children = self.children
        assert children is not None
        child = children.pop(level)
        row = child.row
        rows = self.rows
        if row is not None and rows is not None:
            child.row = None
            row.nodes.remove(child)
            if not row.nodes:
                rows.remove(row)
        if not children:
            self.children = None
            self.rows = None


class Frame:
    """Nodes that a cursor has yet to visit, and the level of the filter that they face.

    Nodes and rows stand in reverse: each is popped, and so let go, when its turn comes.
    """

    def __init__(self, nodes: list[RetainedNode], rows: list[Row], depth: int) -> None:
        self.nodes = nodes
        self.rows = rows
        self.depth = depth


class Cursor:
    """A walk over the retained messages that match one filter, resumable at any node."""

    def __init__(self, roots: list[RetainedNode], inner_filter: str) -> None:
        self._levels = inner_filter.split("/")
        # Never with a frame that has neither nodes nor rows left.
        self._frames = [Frame(roots, [], 0)]
        self.done = False

    def take(self, steps: int) -> list[Message]:
        """Visit at most `steps` more nodes; return the messages met on the way."""
        messages: list[Message] = []
        frames = self._frames
        while steps > 0 and frames:
            steps -= 1
            frame = frames[-1]
            node: RetainedNode | None = None
            if frame.nodes:
                node = frame.nodes.pop()
            else:
                frame.nodes = frame.rows.pop().nodes[::-1]
            if not frame.nodes and not frame.rows:
                frames.pop()
            if node is not None:
                self._visit(node, frame.depth, messages)
        self.done = not frames
        return messages

    def _visit(self, node: RetainedNode, depth: int, messages: list[Message]) -> None:
        """Note the message if the filter ends here; line up the children that it leads to."""
        levels = self._levels
        children = node.children
        if depth == len(levels):
            if node.message is not None:
                messages.append(node.message)
            return
        level = levels[depth]
        if level == "#":
            # It faces the node above it first: "a/#" matches "a".
            if node.message is not None:
                messages.append(node.message)
            if children is not None:
                self._frames.append(_frame_of(node, children, depth))
        elif children is not None:
            if level == "+":
                self._frames.append(_frame_of(node, children, depth + 1))
            else:
                child = children.get(level)
                if child is not None:
                    self._frames.append(Frame([child], [], depth + 1))


def _frame_of(node: RetainedNode, children: dict[str, RetainedNode], depth: int) -> Frame:
    rows = node.rows
    if rows is not None:
        return Frame([], rows[::-1], depth)
    nodes = list(children.values())
    nodes.reverse()
    return Frame(nodes, [], depth)


class Retained:
    """The retained messages, `payload_bytes` in all; `expiring` of its `count` have an end."""

    def __init__(self, row_size: int = ROW_SIZE) -> None:
        self.row_size = row_size
        self.count = 0
        self.payload_bytes = 0
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
            child = None if children is None else children.get(level)
            if child is None:
                child = node.grow(level, self.row_size)
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
            path[depth].cut(levels[depth])
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
            self.payload_bytes -= len(before.payload)
            if before.expires_at > 0.0:
                self.expiring -= 1
        if after is not None:
            self.count += 1
            self.payload_bytes += len(after.payload)
            if after.expires_at > 0.0:
                self.expiring += 1
