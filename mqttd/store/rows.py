"""A batch of the journal as plain rows: what one transaction writes, out of the core's reach.

Owns: the translation of durable operations into rows, on the loop's thread, at the instant the
batch is taken; the row ids of messages; wall clock instants for the core's own. A batch is reduced
to its outcome: a session saved twice is one row, a subscription saved and dropped is one deletion.
That is sound since the whole batch is one transaction.

Must not know: SQL, files, threads.

Invariants: a `Changes` holds numbers, text and bytes only, so that another thread may read it while
the core goes on; the rows of messages and deliveries, of which there are many, stand flat in one
list each, value behind value; a message whose row only one delivery has is deleted with it, one
that several share is counted in `refs`; `state` of a delivery has its redeliveries above the two
bits of its state.

In those two, blobs are `bytearray`, truth values are integers and no value is None: whatever is not
exactly an int, a float, a str or a bytearray, `sqlite3` hands to its adapters first, which takes
longer than to insert it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from mqttd.core import journal as kinds
from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch, Op
from mqttd.core.settings import NEVER

Value = str | bytes | bytearray | int | float | None
Row = tuple[Value, ...]

RESERVE: Final = 1 << 31
"""Serials: so many at least are known to the store as given before they are. A broker that starts
begins beyond them, so that no serial is given twice, those of a crash included."""
STATE_BITS: Final = 2
MESSAGE_WIDTH: Final = 9
DELIVERY_WIDTH: Final = 10
_EMPTY: Final = bytearray()


class Changes:
    """What one transaction does. Deletions of a table come before its insertions."""

    def __init__(self) -> None:
        self.ended: dict[str, None] = {}  # clients of whom nothing stays but what is below
        self.sessions: dict[str, Row] = {}
        self.wills: dict[str, Row | None] = {}  # None: deleted; so in all that follow
        self.subscriptions: dict[str, dict[str, Row | None]] = {}  # by client and filter
        self.inbound: dict[str, dict[int, bool]] = {}  # by client and packet id: still there?
        self.retained: dict[str, Row | None] = {}
        self.shares: dict[tuple[str, str], Row | None] = {}  # by share name and filter
        self.plugin_rows: dict[tuple[str, str], Row | None] = {}  # by table and key
        self.garbage: list[array[int]] = []  # serials, for when there is time
        self.messages: list[Value] = []
        self.deliveries: list[Value] = []
        self.refs: list[Value] = []  # message row, deliveries: of those that share one
        self.moved: dict[int, tuple[int, int]] = {}  # by serial: packet id, state
        self.settled: list[int] = []  # serials
        self.forgotten: list[int] = []  # serials of settled deliveries: look the messages up
        self.done_messages: dict[int, None] = {}
        self.left_messages: dict[int, int] = {}  # shared ones: so many deliveries fewer
        self.reserved = 0  # serials below this may have been given; 0: as the store knows


class Encoder:
    """Turns batches into changes."""

    def __init__(
        self, broker: Broker, wall: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self.next_row = 1
        self.reserved = 0  # serials below this are known to the store as given
        self._broker = broker
        self._wall_now = wall
        self._clock = clock
        self._shift = 0.0  # what to add to a core instant to get wall clock time
        self._changes = Changes()

    def encode(self, batch: Batch) -> Changes:
        """The outcome of a batch, as of now: to be called as soon as the batch was taken."""
        changes = self._changes = Changes()
        changes.garbage = batch.garbage
        if batch.last + RESERVE > self.reserved:
            self.reserved = changes.reserved = batch.last + 2 * RESERVE
        stored_at = self._wall_now()
        self._shift = stored_at - self._clock()
        added: list[Op] = []
        released: dict[int, int] = {}  # id(delivery) → message row, of those settled
        settled = changes.settled
        done = changes.done_messages
        left = changes.left_messages
        for op in batch.ops:
            delivery = op.delivery
            if delivery is None:
                self._encode_other(op.kind, op)
            elif op.kind == kinds.DELIVERY_ADD:
                added.append(op)
            elif op.kind == kinds.DELIVERY_SETTLE:
                settled.append(op.serial)
                row = released[id(delivery)] = delivery.row
                delivery.row = 0
                if delivery.shared:
                    left[row] = left.get(row, 0) + 1
                else:
                    done[row] = None
            else:
                state = op.state | delivery.redeliveries << STATE_BITS
                changes.moved[op.serial] = (op.packet_id, state)
        if added:
            self._add(added, released, stored_at)
        return changes

    def _add(self, added: list[Op], released: dict[int, int], stored_at: float) -> None:
        changes = self._changes
        messages = changes.messages
        first: dict[int, Delivery] = {}  # id(message) → the first delivery of it in this batch
        counts: dict[int, int] = {}  # message row → deliveries, where there are several
        for op in added:
            delivery = op.delivery
            assert delivery is not None
            message = delivery.message
            row = delivery.row = released.get(id(delivery), 0)
            if row:  # it goes from a group to a member, or back
                if delivery.shared:
                    changes.left_messages[row] -= 1
                else:
                    del changes.done_messages[row]
                continue
            earlier = first.get(id(message))
            if earlier is not None:
                row = delivery.row = earlier.row
                delivery.shared = earlier.shared = True
                counts[row] = counts.get(row, 1) + 1
                continue
            first[id(message)] = delivery
            delivery.shared = False
            row = delivery.row = self.next_row
            self.next_row = row + 1
            expires_at = message.expires_at
            messages += (
                row,
                message.topic,
                bytearray(message.payload),
                message.qos,
                1 if message.retain else 0,
                bytearray(message.properties) if message.properties else _EMPTY,
                expires_at + self._shift if expires_at else 0.0,
                stored_at,
                message.origin,
            )
        for row, count in counts.items():
            changes.refs += (row, count)
        deliveries = changes.deliveries
        for op in added:
            delivery = op.delivery
            assert delivery is not None
            group = delivery.group
            deliveries += (
                op.serial,
                op.number,
                delivery.row,
                1 if delivery.shared else 0,
                0 if group is None else group.number,
                0 if delivery.lent else delivery.packet_id,
                (0 if delivery.lent else delivery.state) | delivery.redeliveries << STATE_BITS,
                delivery.qos,
                1 if delivery.retain else 0,
                bytearray(delivery.identifiers) if delivery.identifiers else _EMPTY,
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
        elif kind == kinds.GROUP_SAVE:
            changes.shares[owner, op.name] = (op.number, owner, op.name)
        elif kind == kinds.GROUP_DROP:
            changes.shares[owner, op.name] = None
        elif kind == kinds.TABLE_SET:
            changes.plugin_rows[owner, op.name] = (owner, op.name, op.value)
        elif kind == kinds.TABLE_DROP:
            changes.plugin_rows[owner, op.name] = None
        elif kind == kinds.DELIVERY_FORGET:
            changes.forgotten.append(op.number)
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
            session.number,
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
