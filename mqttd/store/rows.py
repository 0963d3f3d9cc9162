"""A batch of the journal as plain rows: what one transaction writes, out of the core's reach.

Owns: the translation of durable operations into rows, on the loop's thread, at the instant the
batch is taken; the row ids of messages and how many deliveries share each; wall clock instants for
the core's own. A batch is reduced to its outcome: a session saved twice is one row, a subscription
saved and dropped is one deletion. That is sound since the whole batch is one transaction.

Must not know: SQL, files, threads.

Invariants: a `Changes` holds numbers, text and bytes only, so that another thread may read it while
the core goes on; a message's row is deleted in the transaction that deletes its last delivery; a
row id of a delivery is used once.
"""

from __future__ import annotations

from collections.abc import Callable

from mqttd.core import journal as kinds
from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch, Op
from mqttd.core.message import Message
from mqttd.core.settings import NEVER

Row = tuple[str | bytes | int | float | None, ...]


class Changes:
    """What one transaction does. Deletions of a table come before its insertions."""

    def __init__(self) -> None:
        self.ended: dict[str, None] = {}  # clients of whom nothing stays but what is below
        self.sessions: dict[str, Row] = {}
        self.wills: dict[str, Row | None] = {}  # None: deleted; so in all that follow
        self.subscriptions: dict[str, dict[str, Row | None]] = {}  # by client and filter
        self.inbound: dict[str, dict[int, bool]] = {}  # by client and packet id: still there?
        self.retained: dict[str, Row | None] = {}
        self.messages: dict[int, Row] = {}
        self.done_messages: dict[int, None] = {}
        self.deliveries: dict[int, Row] = {}
        self.moved: dict[int, Row] = {}  # serial, packet id, state
        self.settled: list[int] = []


class Encoder:
    """Turns batches into changes; knows which message rows are there."""

    def __init__(self, broker: Broker, offset: Callable[[], float]) -> None:
        self.next_row = 1
        self.shared: dict[int, int] = {}  # message row → deliveries, where there are several
        self._broker = broker
        self._offset = offset  # what to add to a core instant to get wall clock time
        self._shift = 0.0
        self._changes = Changes()
        self._fresh: dict[int, int] = {}  # id(message) → row, within one batch
        self._released: dict[int, None] = {}  # message rows that lost a delivery, within one batch

    def encode(self, batch: Batch) -> Changes:
        """The outcome of a batch, as of now: to be called as soon as the batch was taken."""
        changes = self._changes = Changes()
        self._fresh = {}
        self._released = {}
        self._shift = self._offset()
        for op in batch.ops:
            kind = op.kind
            delivery = op.delivery
            if delivery is not None:
                if kind == kinds.DELIVERY_ADD:
                    self._add(op.serial, op.owner, delivery)
                elif kind == kinds.DELIVERY_SETTLE:
                    self._settle(op.serial, delivery)
                else:
                    changes.moved[op.serial] = (op.serial, delivery.packet_id, delivery.state)
            else:
                self._encode_other(kind, op)
        return changes

    def _add(self, serial: int, owner: str, delivery: Delivery) -> None:
        message = delivery.message
        row = delivery.row
        if row and row in self._released:  # it went from a group to a member, or back
            self._retake(row)
        else:
            row = self._fresh.get(id(message), 0)
            if row:
                self._retake(row)
            else:
                row = self.next_row
                self.next_row += 1
                self._fresh[id(message)] = row
                self._changes.messages[row] = self._message(row, message)
            delivery.row = row
        group = delivery.group
        packet_id = delivery.packet_id
        # A member of a group is given a delivery and its packet identifier in one go.
        waits = group is not None and packet_id == 0
        self._changes.deliveries[serial] = (
            serial,
            None if waits else owner,
            None if group is None else group.name + "/" + group.topic_filter,
            row,
            packet_id,
            delivery.state,
            delivery.qos,
            int(delivery.retain),
            delivery.identifiers,
        )

    def _retake(self, row: int) -> None:
        done = self._changes.done_messages
        if row in done:
            del done[row]
        else:
            self.shared[row] = self.shared.get(row, 1) + 1

    def _settle(self, serial: int, delivery: Delivery) -> None:
        changes = self._changes
        changes.moved.pop(serial, None)
        changes.settled.append(serial)
        row = delivery.row
        self._released[row] = None
        others = self.shared.get(row, 1) - 1
        if others == 0:
            changes.done_messages[row] = None
        elif others == 1:
            del self.shared[row]
        else:
            self.shared[row] = others

    def _message(self, row: int, message: Message) -> Row:
        return (
            row,
            message.topic,
            message.payload,
            message.qos,
            int(message.retain),
            message.properties,
            self._wall(message.expires_at),
        )

    def _encode_other(self, kind: int, op: Op) -> None:
        changes = self._changes
        owner = op.owner
        if kind == kinds.SESSION_SAVE:
            self._save_session(owner)
        elif kind == kinds.SESSION_DROP:
            self._end_session(owner)
        elif kind == kinds.SUBSCRIPTION_SAVE:
            of_client = changes.subscriptions.setdefault(owner, {})
            # Taken out first: a subscription that is made again comes last in the order.
            of_client.pop(op.name, None)
            of_client[op.name] = self._subscription(owner, op.name)
        elif kind == kinds.SUBSCRIPTION_DROP:
            changes.subscriptions.setdefault(owner, {})[op.name] = None
        elif kind == kinds.INBOUND_ADD:
            changes.inbound.setdefault(owner, {})[op.number] = True
        elif kind == kinds.INBOUND_DROP:
            changes.inbound.setdefault(owner, {})[op.number] = False
        elif kind == kinds.RETAINED_SAVE:
            changes.retained[op.name] = self._retained(op)
        elif kind == kinds.RETAINED_DROP:
            changes.retained[op.name] = None
        elif kind == kinds.WILL_SAVE:
            changes.wills[owner] = self._will(owner)
        elif kind == kinds.WILL_DROP:
            changes.wills[owner] = None
        else:
            raise ValueError(f"no such operation: {kind}")

    def _save_session(self, client_id: str) -> None:
        session = self._broker.sessions.get(client_id)
        if session is None:
            return  # its end follows in the same batch
        connected = session.link is not None
        deadline = None if session.expiry_interval == NEVER else self._wall(session.expires_at)
        self._changes.sessions[client_id] = (
            client_id,
            session.owner,
            session.expiry_interval,
            int(connected),
            None if connected else deadline,
            None if connected else self._wall(session.will_at),
        )

    def _end_session(self, client_id: str) -> None:
        changes = self._changes
        changes.ended[client_id] = None
        changes.sessions.pop(client_id, None)
        changes.wills.pop(client_id, None)
        changes.subscriptions.pop(client_id, None)
        changes.inbound.pop(client_id, None)

    def _subscription(self, client_id: str, topic_filter: str) -> Row | None:
        session = self._broker.sessions.get(client_id)
        found = None if session is None else session.subscriptions.get(topic_filter)
        if found is None:
            return None  # dropped later in the same batch
        return (
            client_id,
            topic_filter,
            found.qos,
            int(found.no_local),
            int(found.retain_as_published),
            found.retain_handling,
            found.identifier,
        )

    def _will(self, client_id: str) -> Row | None:
        session = self._broker.sessions.get(client_id)
        will = None if session is None else session.will
        if will is None:
            return None  # published or dropped later in the same batch
        return (
            client_id,
            will.topic,
            will.payload,
            will.qos,
            int(will.retain),
            will.delay_interval,
            will.message_expiry,
            will.properties,
        )

    def _retained(self, op: Op) -> Row:
        message = op.message
        assert message is not None
        return (
            message.topic,
            message.payload,
            message.qos,
            message.properties,
            self._wall(message.expires_at),
            message.origin,
        )

    def _wall(self, at: float) -> float | None:
        """Wall clock time of a core instant; None for 0.0, which says "none"."""
        return at + self._shift if at else None
