"""What is to be made durable: batches, barriers, and what is never written."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import journal as j
from mqttd.core.inflight import SENT, SETTLED, Delivery
from mqttd.core.journal import Batch, Journal
from mqttd.core.message import Message
from tests.core.rig import make_message
from tests.core.vectors import untimed


def delivery(message: Message | None = None) -> Delivery:
    return Delivery(make_message() if message is None else message, 1, False, b"", None)


def take(journal: Journal) -> Batch:
    batch = journal.take()
    assert batch is not None
    return batch


def kinds(batch: Batch) -> list[int]:
    return [op.kind for op in batch.ops]


def test_kinds_differ() -> None:
    values = [value for name, value in vars(j).items() if name.isupper() and name[0] != "_"]
    assert sorted(values) == list(range(1, 19))


def test_operations_keep_their_order_and_say_what_they_concern() -> None:
    journal = Journal(True)
    message = make_message(b"kept")
    one = delivery()
    journal.record(j.SESSION_SAVE, "c")
    journal.record(j.SUBSCRIPTION_SAVE, "c", "a/+")
    journal.add(1, one)
    journal.record(j.INBOUND_ADD, "c", "", 7)
    journal.record(j.RETAINED_SAVE, "", "t", 0, message)
    ops = take(journal).ops
    assert [(op.kind, op.owner, op.name, op.number) for op in ops] == [
        (j.SESSION_SAVE, "c", "", 0),
        (j.SUBSCRIPTION_SAVE, "c", "a/+", 0),
        (j.DELIVERY_ADD, "", "", 1),
        (j.INBOUND_ADD, "c", "", 7),
        (j.RETAINED_SAVE, "", "t", 0),
    ]
    assert ops[2].delivery is one
    assert ops[4].message is message


def test_the_barrier_is_the_batch_that_is_being_gathered() -> None:
    journal = Journal(True)
    assert journal.empty()
    assert journal.record(j.SESSION_SAVE, "a") == 1
    assert journal.add(1, delivery()) == 1
    assert not journal.empty()
    assert take(journal).seq == 1
    assert journal.empty()
    assert journal.record(j.SESSION_SAVE, "b") == 2
    assert journal.committed == 0


def test_nothing_gathered_is_no_batch() -> None:
    journal = Journal(True)
    assert journal.take() is None
    assert journal.seq == 1


def test_batches_become_durable_in_order() -> None:
    journal = Journal(True)
    for _ in range(3):
        journal.record(j.SESSION_SAVE, "a")
        take(journal)
    journal.commit(2)
    assert journal.committed == 2
    journal.commit(1)  # said late: nothing is taken back
    assert journal.committed == 2
    journal.commit(3)
    assert journal.committed == 3


def test_without_a_store_nothing_is_recorded_and_nothing_waits() -> None:
    journal = Journal(False)
    one = delivery()
    assert journal.record(j.SESSION_SAVE, "a") == 0
    assert journal.add(1, one) == 0
    assert journal.update(1, one) == 0
    assert not journal.settle(1, one)
    assert journal.take() is None
    assert not one.journalled
    assert one.message.undurable == 0


def test_a_delivery_settled_before_it_was_taken_is_never_written() -> None:
    journal = Journal(True)
    journal.record(j.SESSION_SAVE, "c")
    one, other = delivery(), delivery()
    journal.add(1, one)
    journal.add(1, other)
    assert journal.settle(1, one)
    assert not one.journalled
    batch = take(journal)
    assert kinds(batch) == [j.SESSION_SAVE, j.DELIVERY_ADD]
    assert batch.ops[1].delivery is other
    assert journal.elided == 1


def test_a_batch_that_elision_emptied_still_has_its_turn() -> None:
    """Whoever waits for its number is released by it, in the order of batches."""
    journal = Journal(True)
    one = delivery()
    barrier = journal.add(1, one)
    journal.settle(1, one)
    batch = take(journal)
    assert batch.ops == []
    assert batch.seq == barrier
    journal.commit(batch.seq)
    assert journal.committed == barrier


def test_a_delivery_settled_after_it_was_taken_is_written_as_settled() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add(1, one)
    first = take(journal)
    assert not journal.settle(1, one)
    second = take(journal)
    assert kinds(first) == [j.DELIVERY_ADD]
    assert [(op.kind, op.number, op.delivery) for op in second.ops] == [(j.DELIVERY_SETTLE, 1, one)]
    assert journal.elided == 0


def test_settling_twice_is_settling_once() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add(1, one)
    assert journal.settle(1, one)
    assert not journal.settle(1, one)
    assert journal.elided == 1
    assert one.message.undurable == 0


def test_a_change_before_the_row_was_taken_is_part_of_the_row() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add(1, one)
    assert journal.update(1, one) == 1
    assert kinds(take(journal)) == [j.DELIVERY_ADD]


def test_a_change_after_the_row_was_taken_is_an_operation_of_its_own() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add(1, one)
    take(journal)
    assert journal.update(1, one) == 2
    ops = take(journal).ops
    assert [(op.kind, op.number, op.serial, op.delivery) for op in ops] == [
        (j.DELIVERY_UPDATE, 1, one.serial, one)
    ]


def test_a_delivery_that_is_not_kept_has_no_barrier() -> None:
    journal = Journal(True)
    assert journal.update(1, delivery()) == 0
    assert not journal.settle(1, delivery())
    assert journal.empty()


def test_a_delivery_gets_its_serial_at_once() -> None:
    """It says where in a queue the delivery stands, whether it is ever written or not."""
    journal = Journal(True)
    deliveries = [delivery() for _ in range(3)]
    for each in deliveries:
        journal.add(1, each)
    journal.settle(1, deliveries[1])
    batch = take(journal)
    assert [op.serial for op in batch.ops] == [1, 3]
    later = delivery()
    journal.add(2, later)
    assert [each.serial for each in (*deliveries, later)] == [1, 2, 3, 4]


def test_what_goes_back_to_the_front_stands_before_all_others() -> None:
    journal = Journal(True)
    one, two, three = delivery(), delivery(), delivery()
    journal.add(1, one)
    assert journal.add(1, two, True) == 1
    journal.add(1, three, True)
    assert three.serial < two.serial < 0 < one.serial
    assert [op.serial for op in take(journal).ops] == [1, -1, -2]


def test_a_row_keeps_its_serial_when_its_delivery_moves_on_to_another() -> None:
    """From a group's queue to a member, in one batch: the old row goes, the new one stays."""
    journal = Journal(True)
    one = delivery()
    journal.add(1, one)
    take(journal)
    journal.update(1, one)
    journal.settle(1, one)
    journal.add(2, one)
    assert [(op.kind, op.number, op.serial) for op in take(journal).ops] == [
        (j.DELIVERY_UPDATE, 1, 1),
        (j.DELIVERY_SETTLE, 1, 1),
        (j.DELIVERY_ADD, 2, 2),
    ]
    assert one.serial == 2


def test_numbers_and_serials_go_on_behind_those_that_were_restored() -> None:
    journal = Journal(True)
    journal.next_serial = 41
    journal.front_serial = -8
    journal.next_number = 5
    one, two = delivery(), delivery()
    journal.add(1, one)
    journal.add(1, two, True)
    assert (one.serial, two.serial) == (41, -8)
    assert [journal.new_number(), journal.new_number()] == [5, 6]


def test_every_serial_up_to_the_one_that_is_durable_was_given_by_then() -> None:
    """The serials of a batch are durable with it; none is, before."""
    journal = Journal(True)
    one, two, three = delivery(), delivery(), delivery()
    journal.add(1, one)
    journal.add(1, two)
    journal.settle(1, two)
    first = take(journal)
    journal.add(1, three)
    second = take(journal)
    assert (first.last, second.last, journal.durable) == (2, 3, 0)
    journal.commit(first.seq)
    assert journal.durable == 2
    journal.record(j.DELIVERY_FORGET, "", "", one.serial)
    third = take(journal)
    journal.commit(third.seq)
    assert journal.durable == 3
    assert [(op.kind, op.number) for op in third.ops] == [(j.DELIVERY_FORGET, 1)]


def test_garbage_goes_with_the_next_batch() -> None:
    """It is no reason for one: whoever comes upon it after a crash finds that it is nobody's."""
    journal = Journal(True)
    journal.abandon([array("q", [1, 2]), array("q", [7])])
    assert journal.empty()
    assert journal.take() is None
    journal.record(j.SESSION_DROP, "c")
    assert [serial for part in take(journal).garbage for serial in part] == [1, 2, 7]
    journal.record(j.SESSION_DROP, "c")
    assert take(journal).garbage == []


# Patience.


def patient_journal() -> Journal:
    """One that has seen deliveries settle at once."""
    journal = Journal(True)
    for _ in range(10000):
        one = delivery()
        journal.add(1, one)
        journal.settle(1, one)
        journal.take(True)
        if journal.patient:
            while journal.take(True) is not None:
                pass
            journal.commit(journal.seq - 1)
            return journal
    raise AssertionError("it never becomes patient")


def test_patience_comes_and_goes_with_what_it_saves() -> None:
    journal = patient_journal()
    for _ in range(10000):
        journal.add(1, delivery())
        journal.take(True)
        if not journal.patient:
            break
    assert not journal.patient


@pytest.mark.parametrize("qos", [1, 2])
def test_what_settles_right_after_it_was_written_counts_as_well(qos: int) -> None:
    """But only QoS 1: of QoS 2 everything has to be written."""
    journal = Journal(True)
    waiting: list[Delivery] = []
    for _ in range(10000):
        for one in waiting:
            journal.settle(1, one)
        waiting = [delivery() for _ in range(10)]
        for one in waiting:
            one.qos = qos
            journal.add(1, one)
        take(journal)
    assert journal.patient is (qos == 1)


def test_what_settles_long_after_it_was_written_does_not_count() -> None:
    journal = Journal(True)
    waiting: list[Delivery] = []
    for _ in range(10000):
        waiting.append(delivery())
        journal.add(1, waiting[-1])
        if len(waiting) > 10:
            journal.settle(1, waiting.pop(0))
        take(journal)
    assert not journal.patient


def test_a_patient_journal_keeps_the_latest_back_once() -> None:
    journal = patient_journal()
    one, two = delivery(), delivery()
    first = journal.add(1, one)
    assert journal.take(True) is None
    assert not journal.empty()
    assert journal.last() == first
    second = journal.add(1, two)
    assert second == first + 1
    batch = journal.take(True)
    assert batch is not None
    assert ([op.delivery for op in batch.ops], batch.seq, batch.last) == ([one], first, one.serial)
    assert journal.update(1, two) == second  # not written yet: part of the row
    batch = journal.take(True)
    assert batch is not None
    assert ([op.kind for op in batch.ops], batch.seq) == ([j.DELIVERY_ADD], second)
    assert journal.empty()
    assert journal.take(True) is None
    journal.commit(second)
    assert one.message.undurable == two.message.undurable == 0
    assert journal.durable == two.serial


def test_what_settles_while_it_is_kept_back_is_never_written() -> None:
    journal = patient_journal()
    one = delivery()
    barrier = journal.add(1, one)
    assert journal.take(True) is None
    assert journal.settle(1, one)
    batch = journal.take(True)
    assert batch is not None
    assert (batch.ops, batch.seq) == ([], barrier)


def test_who_cannot_wait_gets_everything() -> None:
    journal = patient_journal()
    one, two = delivery(), delivery()
    journal.add(1, one)
    assert journal.take(True) is None
    barrier = journal.add(1, two)
    batch = take(journal)
    assert ([op.delivery for op in batch.ops], batch.seq) == ([one, two], barrier)
    three = delivery()
    barrier = journal.add(1, three)
    assert journal.take(True) is None
    batch = take(journal)  # nothing came behind what was kept back
    assert [op.delivery for op in batch.ops] == [three]
    assert batch.seq >= barrier
    assert journal.seq == batch.seq + 1
    assert journal.take() is None


@pytest.mark.parametrize(
    "kind", [j.SESSION_SAVE, j.SESSION_DROP, j.SUBSCRIPTION_DROP, j.WILL_SAVE, j.GROUP_DROP]
)
def test_what_concerns_sessions_never_waits(kind: int) -> None:
    """It happens once in a connection, and somebody waits for its answer."""
    journal = patient_journal()
    one = delivery()
    journal.add(1, one)
    assert journal.take(True) is None
    barrier = journal.record(kind, "c")
    batch = journal.take(True)
    assert batch is not None
    assert (kinds(batch), batch.seq) == ([j.DELIVERY_ADD, kind], barrier)
    journal.record(j.INBOUND_ADD, "c", "", 1)
    assert journal.take(True) is None


def test_a_change_of_what_is_kept_back_waits_for_the_batch_that_holds_it() -> None:
    """And for no later one, which may never come."""
    journal = patient_journal()
    kept = delivery()
    barrier = journal.add(1, kept)
    assert journal.take(True) is None
    kept.packet_id = 7
    assert journal.update(1, kept) == barrier
    batch = journal.take(True)
    assert batch is not None
    assert batch.seq == barrier
    assert journal.empty()


def test_what_moves_while_it_is_kept_back_takes_its_promise_along() -> None:
    """The first batch, which elision emptied, is no earlier than that of the second owner."""
    journal = patient_journal()
    moving = delivery()
    journal.add(1, moving)
    assert journal.take(True) is None
    journal.settle(1, moving)
    barrier = journal.add(2, moving)
    batch = journal.take(True)
    assert batch is not None
    assert (batch.seq, kinds(batch)) == (barrier, [j.DELIVERY_ADD])


def test_a_change_is_written_as_it_was_recorded() -> None:
    """What became of the delivery meanwhile is in a later batch, which a crash may undo."""
    journal = patient_journal()
    journal.add(1, one := delivery())
    take(journal)
    one.packet_id, one.state = 7, SENT
    journal.update(1, one)
    assert journal.take(True) is None
    one.packet_id, one.state = 0, SETTLED
    journal.settle(1, one)
    batch = journal.take(True)
    assert batch is not None
    assert [(op.kind, op.packet_id, op.state) for op in batch.ops] == [(j.DELIVERY_UPDATE, 7, SENT)]


def test_garbage_never_goes_before_the_operations_it_came_with() -> None:
    """Else the store might look for rows that it doesn't have yet."""
    journal = patient_journal()
    journal.record(j.INBOUND_ADD, "c", "", 1)
    assert journal.take(True) is None
    left = delivery()
    journal.add(1, left)
    journal.abandon([array("q", [left.serial])])
    first = journal.take(True)
    assert first is not None
    assert (kinds(first), first.garbage) == ([j.INBOUND_ADD], [])
    second = journal.take(True)
    assert second is not None
    assert kinds(second) == [j.DELIVERY_ADD]
    assert [list(part) for part in second.garbage] == [[left.serial]]


def test_garbage_of_a_batch_that_was_emptied_goes_with_the_next() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add(1, one)
    journal.settle(1, one)
    journal.abandon([array("q", [7])])
    assert take(journal).garbage == []
    journal.record(j.SESSION_DROP, "c")
    assert [list(part) for part in take(journal).garbage] == [[7]]


def test_everything_recorded_so_far_has_a_barrier_of_its_own() -> None:
    journal = Journal(True)
    assert journal.last() == 0
    journal.record(j.SESSION_SAVE, "c")
    assert journal.last() == 1
    take(journal)
    assert journal.last() == 1
    journal.record(j.SESSION_SAVE, "c")
    assert journal.last() == 2
    assert Journal(False).last() == 0


def test_a_message_is_durable_when_the_last_of_its_deliveries_is() -> None:
    journal = Journal(True)
    message = make_message()
    first, second = delivery(message), delivery(message)
    journal.add(1, first)
    take(journal)
    journal.add(2, second)
    take(journal)
    assert message.undurable == 2
    journal.commit(1)
    assert message.undurable == 1
    journal.commit(2)
    assert message.undurable == 0


@pytest.mark.parametrize("taken", [False, True])
def test_the_last_settlement_of_unwritten_deliveries_says_so(taken: bool) -> None:
    """That is what lets an acknowledgement leave without the disk."""
    journal = Journal(True)
    message = make_message()
    first, second = delivery(message), delivery(message)
    journal.add(1, first)
    if taken:
        take(journal)
    journal.add(2, second)
    assert not journal.settle(1, first)
    assert journal.settle(2, second) is not taken
    assert message.undurable == (1 if taken else 0)


@untimed
@given(st.lists(st.tuples(st.sampled_from("asuTC"), st.integers(0, 4)), max_size=50))
def test_whatever_happens_a_delivery_is_written_once_and_settled_once(
    moves: list[tuple[str, int]],
) -> None:
    """a: add, s: settle, u: update, T: take, C: commit; a model store replays the batches."""
    journal = Journal(True)
    message = make_message()
    alive: list[Delivery] = []
    batches: list[Batch] = []
    for move, which in moves:
        if move == "a":
            made = delivery(message)
            journal.add(1, made)
            alive.append(made)
        elif move == "T":
            batch = journal.take()
            if batch is not None:
                batches.append(batch)
        elif move == "C" and batches:
            journal.commit(batches[-1].seq)
        elif alive and move == "u":
            journal.update(1, alive[which % len(alive)])
        elif alive and move == "s":
            journal.settle(1, alive.pop(which % len(alive)))
    last = journal.take()
    if last is not None:
        batches.append(last)
        journal.commit(last.seq)
    rows: dict[int, Delivery] = {}
    for batch in batches:
        for op in batch.ops:
            assert op.delivery is not None
            if op.kind == j.DELIVERY_ADD:
                assert op.delivery.serial not in rows
                rows[op.delivery.serial] = op.delivery
            elif op.kind == j.DELIVERY_UPDATE:
                assert rows[op.delivery.serial] is op.delivery
            else:
                del rows[op.delivery.serial]
    assert list(rows.values()) == alive
    if batches:
        journal.commit(batches[-1].seq)
    assert message.undurable == 0
