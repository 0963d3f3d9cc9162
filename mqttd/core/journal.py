"""The closed set of durable operations, gathered into batches.

Owns: what the core asks the store to make durable, in order; the number of the batch being
gathered; the highest batch that is durable; elision: a delivery settled before its batch was
taken is never written.

Must not know: SQL, files, threads, when a commit happens. The shell takes a batch whenever the
last commit is done, and reports it by `Broker.committed(seq, now)`.

Invariants: operations of one batch become durable together or not at all; batches become durable
in order; with `enabled` False (nothing outlives the process) nothing is recorded and no barrier
is ever raised. A delivery counts in `message.undurable` from `add` until its batch is durable or
it settled.
"""

from typing import Final

from mqttd.core.inflight import Delivery
from mqttd.core.message import Message

# Kinds of operation. `owner` is the client id, or the key of a shared group's own queue.
SESSION_SAVE: Final = 1  # owner; the store reads the session's row from Broker.sessions
SESSION_DROP: Final = 2  # owner, with everything that hangs on it
SUBSCRIPTION_SAVE: Final = 3  # owner, name=filter
SUBSCRIPTION_DROP: Final = 4  # owner, name=filter
DELIVERY_ADD: Final = 5  # owner, delivery (elidable)
DELIVERY_UPDATE: Final = 6  # owner, delivery: packet id assigned, or PUBREC received
DELIVERY_SETTLE: Final = 7  # owner, delivery
INBOUND_ADD: Final = 8  # owner, number=packet id of an inbound QoS 2 exchange
INBOUND_DROP: Final = 9  # owner, number
RETAINED_SAVE: Final = 10  # name=topic, message
RETAINED_DROP: Final = 11  # name=topic
WILL_SAVE: Final = 12  # owner; the store reads the session's will from Broker.sessions
WILL_DROP: Final = 13  # owner


class Op:
    """One durable operation; which attributes count follows from `kind`."""

    def __init__(
        self,
        kind: int,
        owner: str,
        name: str = "",
        number: int = 0,
        delivery: Delivery | None = None,
        message: Message | None = None,
    ) -> None:
        self.kind = kind
        self.owner = owner
        self.name = name
        self.number = number
        self.delivery = delivery
        self.message = message
        self.serial: int = 0  # of the delivery's row; the delivery may get another one later
        self.elided: bool = False


class Batch:
    """What one transaction holds."""

    def __init__(self, seq: int, ops: list[Op]) -> None:
        self.seq = seq
        self.ops = ops


class Journal:
    """Gathers operations; `seq` is the batch they go into, `committed` the last durable one."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.seq: int = 1
        self.committed: int = 0
        self.elided: int = 0
        self._ops: list[Op] = []
        self._open: dict[int, Op] = {}  # id(delivery) → its DELIVERY_ADD, while not yet taken
        self._taken: list[Batch] = []
        self.next_serial: int = 1  # set beyond those in use when rows were restored

    def record(
        self,
        kind: int,
        owner: str,
        name: str = "",
        number: int = 0,
        message: Message | None = None,
    ) -> int:
        """Append an operation; returns the barrier its promise has to wait for (0: none)."""
        if not self.enabled:
            return 0
        self._ops.append(Op(kind, owner, name, number, None, message))
        return self.seq

    def add(self, owner: str, delivery: Delivery) -> int:
        """A delivery that has to survive; returns its barrier (0: none)."""
        if not self.enabled:
            return 0
        op = Op(DELIVERY_ADD, owner, "", 0, delivery)
        self._ops.append(op)
        self._open[id(delivery)] = op
        delivery.journalled = True
        delivery.message.undurable += 1
        return self.seq

    def update(self, owner: str, delivery: Delivery) -> int:
        """The delivery's packet id or state changed; returns the barrier (0: none)."""
        if not delivery.journalled:
            return 0
        if id(delivery) not in self._open:
            op = Op(DELIVERY_UPDATE, owner, "", delivery.packet_id, delivery)
            op.serial = delivery.serial
            self._ops.append(op)
        return self.seq

    def settle(self, owner: str, delivery: Delivery) -> bool:
        """The delivery is done with. True if that was the last thing its message waited for."""
        if not delivery.journalled:
            return False
        delivery.journalled = False
        op = self._open.pop(id(delivery), None)
        if op is None:
            op = Op(DELIVERY_SETTLE, owner, "", delivery.packet_id, delivery)
            op.serial = delivery.serial
            self._ops.append(op)
            return False
        # Settled before it was written: then it is never written.
        op.elided = True
        op.delivery = None  # an elided operation keeps no payload alive
        self.elided += 1
        message = delivery.message
        message.undurable -= 1
        return message.undurable == 0

    def empty(self) -> bool:
        return not self._ops

    def last(self) -> int:
        """The barrier behind everything recorded so far."""
        return self.seq if self._ops else self.seq - 1

    def take(self) -> Batch | None:
        """Close the open batch for one transaction; None when there is nothing to write.

        When elision emptied the batch there is nothing to commit either: it counts as durable as
        soon as every earlier batch is, and the caller learns that by an empty `ops`.
        """
        if not self._ops:
            return None
        ops = [op for op in self._ops if not op.elided]
        for op in ops:
            if op.kind == DELIVERY_ADD:
                delivery = op.delivery
                assert delivery is not None
                op.serial = delivery.serial = self.next_serial
                self.next_serial += 1
        batch = Batch(self.seq, ops)
        self._taken.append(batch)
        self._ops = []
        self._open = {}
        self.seq += 1
        return batch

    def commit(self, seq: int) -> None:
        """Every batch up to `seq` is durable."""
        while self._taken and self._taken[0].seq <= seq:
            for op in self._taken.pop(0).ops:
                if op.kind == DELIVERY_ADD:
                    delivery = op.delivery
                    assert delivery is not None
                    delivery.message.undurable -= 1
        if seq > self.committed:
            self.committed = seq
