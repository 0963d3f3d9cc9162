"""The closed set of durable operations, gathered into batches.

Owns: what the core asks the store to make durable, in order; the number of the batch being
gathered; the highest batch that is durable; elision: a delivery settled before its batch was
taken is never written; whether it pays to wait a moment for that; the numbers by which the store
knows owners of deliveries (sessions and shared groups) and the serials of the deliveries.

Must not know: SQL, files, threads, when a commit happens. The shell takes a batch whenever the
last commit is done, and reports it by `Broker.committed(seq, now)`.

While most deliveries are acknowledged so soon that writing them is a waste, the journal is
`patient`: `take` may hand out what was gathered before the last `take`, and keep the rest back
until the next. What is settled meanwhile never gets to the disk.

Invariants: operations of one batch become durable together or not at all; batches become durable
in order; with `enabled` False (nothing outlives the process) nothing is recorded and no barrier
is ever raised. A delivery counts in `message.undurable` from `add` until its batch is durable or
it settled; the number of an owner and the serial of a delivery are used once, and serials grow in
the order of `add`, but for what goes back to the front of a queue, whose serials fall.
"""

from array import array
from typing import Final

from mqttd.core.inflight import Delivery
from mqttd.core.message import Message

# Kinds of operation. `owner` is the client id; those of deliveries go by the number of the owner.
SESSION_SAVE: Final = 1  # owner; the store reads the session's row from Broker.sessions
SESSION_DROP: Final = 2  # owner, with everything that hangs on it
SUBSCRIPTION_SAVE: Final = 3  # owner, name=filter
SUBSCRIPTION_DROP: Final = 4  # owner, name=filter
DELIVERY_ADD: Final = 5  # number, delivery (elidable)
DELIVERY_UPDATE: Final = 6  # number, delivery: packet id assigned, or PUBREC received
DELIVERY_SETTLE: Final = 7  # number, delivery
INBOUND_ADD: Final = 8  # owner, number=packet id of an inbound QoS 2 exchange
INBOUND_DROP: Final = 9  # owner, number
RETAINED_SAVE: Final = 10  # name=topic, message
RETAINED_DROP: Final = 11  # name=topic
WILL_SAVE: Final = 12  # owner; the store reads the session's will from Broker.sessions
WILL_DROP: Final = 13  # owner
GROUP_SAVE: Final = 14  # owner=share name, name=filter, number
GROUP_DROP: Final = 15  # owner=share name, name=filter
DELIVERY_FORGET: Final = 16  # number=serial: settled by somebody who doesn't have it at hand
TABLE_SET: Final = 17  # owner=table of a plugin, name=key, value
TABLE_DROP: Final = 18  # owner=table, name=key


_WEIGHED: Final = 64  # deliveries between two looks at whether patience pays


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
        value: bytes = b"",
    ) -> None:
        self.kind = kind
        self.owner = owner
        self.name = name
        self.number = number
        self.delivery = delivery
        self.message = message
        self.value = value
        self.serial: int = 0  # of the delivery's row; the delivery may get another one later
        self.packet_id: int = 0  # of an update, as it was then: it may be written a batch later
        self.state: int = 0
        self.elided: bool = False


class Batch:
    """What one transaction holds."""

    def __init__(self, seq: int, ops: list[Op], garbage: "list[array[int]]", last: int) -> None:
        self.seq = seq
        self.ops = ops
        self.garbage = garbage  # serials of deliveries that may go whenever there is time
        self.last = last  # no serial of an earlier or of this batch is above it


class Journal:
    """Gathers operations; `seq` is the batch they go into, `committed` the last durable one."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.refusing: int = 0  # reason code to refuse with what the store would have to take
        self.paging: bool = False  # the store gives back, page by page, what a queue left to it
        self.seq: int = 1
        self.committed: int = 0
        self.elided: int = 0
        self.durable: int = 0  # every serial up to this one is durable, or settled
        self.patient: bool = False
        # Of sessions and what hangs on them the store reads the state as it is when it gets the
        # batch: no operation on them may be kept back behind that.
        self._hurry: bool = False
        self._ops: list[Op] = []
        self._kept: list[Op] = []  # gathered before the last take, in batch seq - 1
        self._kept_last: int = 0  # the last serial given then
        self._kept_garbage: list[array[int]] = []
        self._garbage: list[array[int]] = []
        self._watched: int = 0  # QoS 1 deliveries added since patience was last weighed
        self._prompt: int = 0  # those settled before they were written, or right after
        self._recent: int = 0  # the first serial of the batch before the last
        self._recent_next: int = 0
        self._taken: list[Batch] = []
        # Set beyond those in use when rows were restored.
        self.next_serial: int = 1
        self.front_serial: int = -1
        self.next_number: int = 1

    def record(
        self,
        kind: int,
        owner: str,
        name: str = "",
        number: int = 0,
        message: Message | None = None,
        value: bytes = b"",
    ) -> int:
        """Append an operation; returns the barrier its promise has to wait for (0: none)."""
        if not self.enabled:
            return 0
        self._ops.append(Op(kind, owner, name, number, None, message, value))
        if kind <= SUBSCRIPTION_DROP or WILL_SAVE <= kind <= GROUP_DROP:
            self._hurry = True
        return self.seq

    def new_number(self) -> int:
        """The number of a new owner of deliveries."""
        number = self.next_number
        self.next_number = number + 1
        return number

    def add(self, number: int, delivery: Delivery, front: bool = False) -> int:
        """A delivery that has to survive; returns its barrier (0: none)."""
        if not self.enabled:
            return 0
        if front:
            serial = self.front_serial
            self.front_serial = serial - 1
        else:
            serial = self.next_serial
            self.next_serial = serial + 1
        if delivery.serial:
            # It moves from one owner to another: what was promised when it came to the first must
            # not be reported before it is with the second.
            self._hurry = True
        op = Op(DELIVERY_ADD, "", "", number, delivery)
        op.serial = delivery.serial = serial
        self._ops.append(op)
        if delivery.qos == 1:
            self._watched += 1
        delivery.pending = op
        delivery.journalled = True
        delivery.message.undurable += 1
        return self.seq

    def update(self, number: int, delivery: Delivery) -> int:
        """The delivery's packet id or state changed; returns the barrier (0: none)."""
        if not delivery.journalled:
            return 0
        if delivery.pending is not None:
            return self.last()  # its row is still to be written, and will have it
        op = Op(DELIVERY_UPDATE, "", "", number, delivery)
        op.serial = delivery.serial
        op.packet_id = delivery.packet_id
        op.state = delivery.state
        self._ops.append(op)
        return self.seq

    def settle(self, number: int, delivery: Delivery) -> bool:
        """The delivery is done with. True if that was the last thing its message waited for."""
        if not delivery.journalled:
            return False
        delivery.journalled = False
        pending = delivery.pending
        if pending is None:
            op = Op(DELIVERY_SETTLE, "", "", number, delivery)
            op.serial = delivery.serial
            self._ops.append(op)
            if delivery.qos == 1 and delivery.serial >= self._recent:
                self._prompt += 1
            return False
        if delivery.qos == 1:
            self._prompt += 1
        # Settled before it was written: then it is never written.
        delivery.pending = None
        assert isinstance(pending, Op)
        pending.elided = True
        pending.delivery = None  # an elided operation keeps no payload alive
        self.elided += 1
        message = delivery.message
        message.undurable -= 1
        return message.undurable == 0

    def abandon(self, serials: "list[array[int]]") -> None:
        """Deliveries that nobody will ask for: their owner ends in the open batch."""
        self._garbage.extend(serials)

    def empty(self) -> bool:
        return not self._ops and not self._kept

    def last(self) -> int:
        """The barrier behind everything recorded so far."""
        return self.seq if self._ops else self.seq - 1

    def take(self, may_wait: bool = False) -> Batch | None:
        """Close a batch for one transaction; None when there is nothing to write.

        `may_wait`: somebody asks again soon, so a patient journal may keep the latest back.
        When elision emptied the batch there is nothing to commit either: it counts as durable as
        soon as every earlier batch is, and the caller learns that by an empty `ops`.
        """
        self._weigh()
        kept = self._kept
        hurry = self._hurry
        self._hurry = False
        if self.patient and may_wait and not hurry:
            taken = kept
            seq = self.seq - 1
            last = self._kept_last
            garbage = self._kept_garbage
            self._kept_garbage = self._garbage
            self._kept = self._ops
            self._kept_last = self.next_serial - 1
            if self._ops:
                self.seq += 1
        else:
            taken = kept + self._ops if kept else self._ops
            seq = self.seq
            last = self.next_serial - 1
            garbage = self._kept_garbage + self._garbage
            self._kept_garbage = []
            self._kept = []
            if taken:
                self.seq += 1
        self._ops = []
        self._garbage = []
        if not taken:
            self._garbage = garbage
            return None
        ops: list[Op] = []
        for op in taken:
            if op.elided:
                continue
            ops.append(op)
            if op.kind == DELIVERY_ADD:
                delivery = op.delivery
                assert delivery is not None
                delivery.pending = None
        batch = Batch(seq, ops, garbage, last)
        if not ops:  # then nothing is written at all: it can wait
            batch.garbage = []
            self._garbage = garbage
        else:
            self._recent = self._recent_next
            self._recent_next = last
        self._taken.append(batch)
        return batch

    def _weigh(self) -> None:
        """Decide whether patience pays: where it does, half of the deliveries or more are settled
        at once."""
        if self._watched >= _WEIGHED:
            self.patient = 2 * self._prompt >= self._watched
            self._watched = 0
            self._prompt = 0

    def commit(self, seq: int) -> None:
        """Every batch up to `seq` is durable."""
        while self._taken and self._taken[0].seq <= seq:
            batch = self._taken.pop(0)
            self.durable = batch.last
            for op in batch.ops:
                if op.kind == DELIVERY_ADD:
                    delivery = op.delivery
                    assert delivery is not None
                    delivery.message.undurable -= 1
        if seq > self.committed:
            self.committed = seq
