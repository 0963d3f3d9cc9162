"""What is to be made durable: batches, barriers, and what is never written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import journal as j
from mqttd.core.inflight import Delivery
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
    assert sorted(values) == list(range(1, 14))


def test_operations_keep_their_order_and_say_what_they_concern() -> None:
    journal = Journal(True)
    message = make_message(b"kept")
    one = delivery()
    journal.record(j.SESSION_SAVE, "c")
    journal.record(j.SUBSCRIPTION_SAVE, "c", "a/+")
    journal.add("c", one)
    journal.record(j.INBOUND_ADD, "c", "", 7)
    journal.record(j.RETAINED_SAVE, "", "t", 0, message)
    ops = take(journal).ops
    assert [(op.kind, op.owner, op.name, op.number) for op in ops] == [
        (j.SESSION_SAVE, "c", "", 0),
        (j.SUBSCRIPTION_SAVE, "c", "a/+", 0),
        (j.DELIVERY_ADD, "c", "", 0),
        (j.INBOUND_ADD, "c", "", 7),
        (j.RETAINED_SAVE, "", "t", 0),
    ]
    assert ops[2].delivery is one
    assert ops[4].message is message


def test_the_barrier_is_the_batch_that_is_being_gathered() -> None:
    journal = Journal(True)
    assert journal.empty()
    assert journal.record(j.SESSION_SAVE, "a") == 1
    assert journal.add("a", delivery()) == 1
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
    assert journal.add("a", one) == 0
    assert journal.update("a", one) == 0
    assert not journal.settle("a", one)
    assert journal.take() is None
    assert not one.journalled
    assert one.message.undurable == 0


def test_a_delivery_settled_before_it_was_taken_is_never_written() -> None:
    journal = Journal(True)
    journal.record(j.SESSION_SAVE, "c")
    one, other = delivery(), delivery()
    journal.add("c", one)
    journal.add("c", other)
    assert journal.settle("c", one)
    assert not one.journalled
    batch = take(journal)
    assert kinds(batch) == [j.SESSION_SAVE, j.DELIVERY_ADD]
    assert batch.ops[1].delivery is other
    assert journal.elided == 1
    assert one.serial == 0


def test_a_batch_that_elision_emptied_still_has_its_turn() -> None:
    """Whoever waits for its number is released by it, in the order of batches."""
    journal = Journal(True)
    one = delivery()
    barrier = journal.add("c", one)
    journal.settle("c", one)
    batch = take(journal)
    assert batch.ops == []
    assert batch.seq == barrier
    journal.commit(batch.seq)
    assert journal.committed == barrier


def test_a_delivery_settled_after_it_was_taken_is_written_as_settled() -> None:
    journal = Journal(True)
    one = delivery()
    one.packet_id = 9
    journal.add("c", one)
    first = take(journal)
    assert not journal.settle("c", one)
    second = take(journal)
    assert kinds(first) == [j.DELIVERY_ADD]
    assert [(op.kind, op.number, op.delivery) for op in second.ops] == [(j.DELIVERY_SETTLE, 9, one)]
    assert journal.elided == 0


def test_settling_twice_is_settling_once() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add("c", one)
    assert journal.settle("c", one)
    assert not journal.settle("c", one)
    assert journal.elided == 1
    assert one.message.undurable == 0


def test_a_change_before_the_row_was_taken_is_part_of_the_row() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add("c", one)
    assert journal.update("c", one) == 1
    assert kinds(take(journal)) == [j.DELIVERY_ADD]


def test_a_change_after_the_row_was_taken_is_an_operation_of_its_own() -> None:
    journal = Journal(True)
    one = delivery()
    journal.add("c", one)
    take(journal)
    one.packet_id = 3
    assert journal.update("c", one) == 2
    ops = take(journal).ops
    assert [(op.kind, op.owner, op.number, op.delivery) for op in ops] == [
        (j.DELIVERY_UPDATE, "c", 3, one)
    ]


def test_a_delivery_that_is_not_kept_has_no_barrier() -> None:
    journal = Journal(True)
    assert journal.update("c", delivery()) == 0
    assert not journal.settle("c", delivery())
    assert journal.empty()


def test_rows_get_a_serial_when_they_are_taken() -> None:
    journal = Journal(True)
    deliveries = [delivery() for _ in range(3)]
    for each in deliveries:
        journal.add("c", each)
    assert [each.serial for each in deliveries] == [0, 0, 0]
    journal.settle("c", deliveries[1])
    take(journal)
    later = delivery()
    journal.add("c", later)
    take(journal)
    assert [each.serial for each in (*deliveries, later)] == [1, 0, 2, 3]


def test_a_row_keeps_its_serial_when_its_delivery_moves_on_to_another() -> None:
    """From a group's queue to a member, in one batch: the old row goes, the new one stays."""
    journal = Journal(True)
    one = delivery()
    journal.add("$share/g/t", one)
    take(journal)
    journal.update("$share/g/t", one)
    journal.settle("$share/g/t", one)
    journal.add("member", one)
    assert [(op.kind, op.owner, op.serial) for op in take(journal).ops] == [
        (j.DELIVERY_UPDATE, "$share/g/t", 1),
        (j.DELIVERY_SETTLE, "$share/g/t", 1),
        (j.DELIVERY_ADD, "member", 2),
    ]
    assert one.serial == 2


def test_serials_go_on_behind_those_that_were_restored() -> None:
    journal = Journal(True)
    journal.next_serial = 41
    one = delivery()
    journal.add("c", one)
    take(journal)
    assert one.serial == 41


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
    journal.add("a", first)
    take(journal)
    journal.add("b", second)
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
    journal.add("a", first)
    if taken:
        take(journal)
    journal.add("b", second)
    assert not journal.settle("a", first)
    assert journal.settle("b", second) is not taken
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
            journal.add("c", made)
            alive.append(made)
        elif move == "T":
            batch = journal.take()
            if batch is not None:
                batches.append(batch)
        elif move == "C" and batches:
            journal.commit(batches[-1].seq)
        elif alive and move == "u":
            journal.update("c", alive[which % len(alive)])
        elif alive and move == "s":
            journal.settle("c", alive.pop(which % len(alive)))
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
