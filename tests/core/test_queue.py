"""A queue by itself: what its head takes, what its tail remembers, what a page does to both."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core.inflight import Delivery
from mqttd.core.queue import PAGE, PAGE_BYTES, Queue
from tests.core.rig import make_message, waiting
from tests.core.vectors import untimed

EVER = 1 << 60  # every serial is durable


def delivery(serial: int, payload: bytes = b"", expires_at: float = 0.0) -> Delivery:
    made = Delivery(make_message(payload, expires_at=expires_at), 1, False, b"", None)
    made.serial = serial
    return made


def names(queue: Queue) -> list[int]:
    return [each.serial for each in queue.head]


def fill(queue: Queue, count: int, present: bool, payload: bytes = b"") -> None:
    """As an owner does: into the head while there is room, else the tail."""
    for serial in range(count):
        if queue.has_room(present):
            queue.append(delivery(serial, payload))
        else:
            queue.leave(serial)


def test_a_new_queue_is_empty() -> None:
    queue = Queue(7, True)
    assert (queue.number, queue.paging, len(queue)) == (7, True, 0)
    assert (queue.tail, queue.coming, queue.wanting, queue.closed) == (0, 0, False, False)
    assert not queue.low()


@pytest.mark.parametrize(("present", "bound"), [(False, 64), (True, PAGE)])
def test_the_head_has_a_bound_and_the_rest_is_a_number(present: bool, bound: int) -> None:
    queue = Queue(1, True)
    fill(queue, 3 * PAGE, present)
    assert len(queue.head) == bound
    assert queue.tail == 3 * PAGE - bound
    assert len(queue) == 3 * PAGE


@pytest.mark.parametrize(("present", "bound"), [(False, 64 << 10), (True, PAGE_BYTES)])
def test_the_head_has_a_bound_in_bytes(present: bool, bound: int) -> None:
    queue = Queue(1, True)
    fill(queue, 10, present, bytes(bound // 4))
    assert (len(queue.head), queue.tail) == (4, 6)


def test_what_is_taken_from_the_head_makes_room() -> None:
    queue = Queue(1, True)
    fill(queue, 4, False, bytes(16 << 10))
    assert not queue.has_room(False)
    assert queue.has_room(True)
    assert queue.pop().serial == 0
    assert queue.has_room(False)


def test_what_is_given_back_takes_room() -> None:
    queue = Queue(1, True)
    queue.append(delivery(2))
    queue.put_first(delivery(-1, bytes(64 << 10), 9.0))
    assert names(queue) == [-1, 2]
    assert queue.expiry == 9.0
    assert not queue.has_room(False)


def test_without_paging_everything_is_in_the_head() -> None:
    queue = Queue(1, False)
    fill(queue, 3 * PAGE, False)
    assert (len(queue.head), queue.tail) == (3 * PAGE, 0)


def test_nothing_passes_a_tail_or_a_page_on_its_way() -> None:
    queue = Queue(1, True)
    queue.leave(5)
    assert not queue.has_room(True)
    serials = queue.begin_page(PAGE, EVER)
    assert (serials, queue.tail, queue.coming, len(queue)) == ([5], 0, 1, 1)
    assert not queue.has_room(True)
    assert queue.end_page([delivery(5)], serials) == 0
    assert (names(queue), queue.coming, len(queue)) == ([5], 0, 1)
    assert queue.has_room(True)


def test_a_page_is_wanted_when_the_head_runs_low_and_none_is_coming() -> None:
    queue = Queue(1, True)
    fill(queue, PAGE + 1, True)
    assert not queue.low()
    for _ in range(PAGE // 2):
        queue.pop()
    assert not queue.low()
    queue.pop()
    assert queue.low()
    queue.wanting = True
    assert not queue.low()
    queue.end_page([], [])
    assert queue.low()


def test_a_head_full_of_bytes_is_not_low() -> None:
    queue = Queue(1, True)
    fill(queue, 5, True, bytes(PAGE_BYTES // 4))
    assert (len(queue.head), queue.tail) == (4, 1)
    for low in (False, False, False, True):
        assert queue.low() is low
        queue.pop()


# Pages.


def test_a_page_takes_the_first_of_the_tail_and_goes_behind_the_head() -> None:
    queue = Queue(1, True)
    queue.append(delivery(1))
    for serial in (2, 3, 5):
        queue.leave(serial)
    assert queue.begin_page(2, EVER) == [2, 3]
    queue.leave(8)
    assert queue.end_page([delivery(2), delivery(3)], [2, 3]) == 0
    assert names(queue) == [1, 2, 3]
    assert queue.begin_page(10, EVER) == [5, 8]


def test_only_what_is_durable_is_asked_for() -> None:
    queue = Queue(1, True)
    for serial in (2, 3, 5):
        queue.leave(serial)
    assert queue.begin_page(10, 1) == []
    assert (queue.tail, queue.coming) == (3, 0)
    assert queue.begin_page(10, 3) == [2, 3]
    assert (queue.tail, queue.coming) == (1, 2)


def test_a_page_cut_short_leaves_the_rest_in_its_place() -> None:
    queue = Queue(1, True)
    for serial in range(6):
        queue.leave(serial)
    serials = queue.begin_page(4, EVER)
    assert queue.end_page([delivery(0), delivery(1)], serials) == 0
    assert (queue.tail, queue.coming, len(queue)) == (4, 0, 6)
    assert queue.begin_page(10, EVER) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("page", "missing", "left"), [([], 3, []), ([1], 1, [2]), ([0, 2], 1, []), ([2], 2, [])]
)
def test_rows_that_are_missing_are_counted(page: list[int], missing: int, left: list[int]) -> None:
    queue = Queue(1, True)
    for serial in range(3):
        queue.leave(serial)
    serials = queue.begin_page(10, EVER)
    assert queue.end_page([delivery(serial) for serial in page], serials) == missing
    assert names(queue) == page
    assert queue.begin_page(10, EVER) == left


def test_a_page_may_span_what_is_kept_together() -> None:
    queue = Queue(1, True)
    for serial in range(10000):
        queue.leave(serial)
    assert queue.begin_page(9000, EVER) == list(range(9000))
    assert queue.tail == 1000
    assert queue.begin_page(9000, EVER) == list(range(9000, 10000))
    assert queue.tail == 0


def test_the_first_of_the_tail_can_be_taken_without_a_page() -> None:
    queue = Queue(1, True)
    for serial in (2, 3):
        queue.leave(serial)
    assert [queue.pop_serial(), queue.pop_serial()] == [2, 3]
    assert queue.tail == 0
    queue.leave(4)
    assert queue.begin_page(10, EVER) == [4]


def test_what_is_in_the_tail_can_be_taken_out_of_its_middle() -> None:
    queue = Queue(1, True)
    for serial in range(20000):
        queue.leave(serial)
    gone = {-5, 7, 4095, 4096, 30000, *range(8192, 12288)}
    found = queue.remove(gone)
    assert found == sorted(gone - {-5, 30000})
    assert queue.tail == 20000 - len(found)
    assert queue.begin_page(1 << 20, EVER) == [each for each in range(20000) if each not in gone]
    assert queue.remove({3}) == []


def test_only_what_may_hold_it_is_searched() -> None:
    queue = Queue(1, True)
    for serial in range(12288):
        queue.leave(serial)
    assert queue.remove({5000, 5001}) == [5000, 5001]
    assert queue.remove({5000}) == []
    assert queue.tail == 12286


def test_an_owner_that_goes_learns_what_was_left() -> None:
    queue = Queue(1, True)
    for serial in range(5000):
        queue.leave(serial)
    chunks = queue.close()
    assert sum(chunks, array("q")) == array("q", range(5000))
    assert queue.closed
    assert (queue.tail, len(queue)) == (0, 0)


# Expiry.


def test_what_expired_is_found_anywhere_in_the_head() -> None:
    """[MQTT-3.3.2-5]"""
    queue = Queue(1, False)
    for serial, expires_at in enumerate((9.0, 5.0, 0.0, 7.0)):
        queue.append(delivery(serial, b"%d" % serial, expires_at))
    assert queue.expiry == 5.0
    assert [gone.serial for gone in queue.expire(7.0)] == [1, 3]
    assert waiting(queue) == [b"0", b"2"]
    assert queue.expiry == 9.0


def test_a_search_is_not_repeated_at_once() -> None:
    queue = Queue(1, False)
    queue.append(delivery(0, expires_at=5.0))
    queue.append(delivery(1, expires_at=5.5))
    queue.expire(5.0)
    assert queue.expiry == 6.0
    queue.expire(6.0)
    assert queue.expiry == 0.0


@pytest.mark.parametrize("coming", [False, True])
def test_nobody_knows_what_expires_in_a_tail(coming: bool) -> None:
    queue = Queue(1, True)
    queue.note_expiry(5.0)
    queue.leave(1)
    if coming:
        queue.begin_page(10, EVER)
    assert queue.expire(5.0) == []
    assert queue.expiry == 6.0


def test_what_a_page_brings_may_expire() -> None:
    queue = Queue(1, True)
    queue.leave(1)
    serials = queue.begin_page(10, EVER)
    queue.end_page([delivery(1, expires_at=8.0)], serials)
    assert queue.expiry == 8.0


# Whatever happens.

moves = st.lists(
    st.tuples(
        st.sampled_from(("add", "pop", "ask", "come", "drop", "gone", "give")), st.integers()
    ),
    max_size=80,
)


@untimed
@given(moves, st.booleans())
def test_order_and_number_are_kept_whatever_happens(
    moves: list[tuple[str, int]], present: bool
) -> None:
    """A list that does the same is the model; PAGE and the head's bound are met by bytes."""
    queue = Queue(1, True)
    model: list[int] = []
    expected = 0  # the first of a page on its way stands here in the model
    page: list[int] = []
    serial = front = 0
    for move, number in moves:
        if move == "add":
            serial += 1
            model.append(serial)
            if queue.has_room(present):
                queue.append(delivery(serial, bytes(PAGE_BYTES // 3)))
            else:
                queue.leave(serial)
        elif move == "pop" and queue.head:
            assert queue.pop().serial == model.pop(0)
        elif move == "give":
            front -= 1
            model.insert(0, front)
            queue.put_first(delivery(front))
        elif move == "ask" and not page:
            page = queue.begin_page(1 + number % 4, serial - number % 3)
            expected = len(queue.head)
            assert model[expected : expected + len(page)] == page
        elif move == "come" and page:
            brought = page[: 1 + number % len(page)]
            assert queue.end_page([delivery(each) for each in brought], page) == 0
            page = []
        elif move == "drop" and queue.tail:
            place = len(queue.head) + len(page)
            assert queue.pop_serial() == model.pop(place)
        elif move == "gone" and model:
            gone = {model[number % len(model)], serial + 1}
            place = len(queue.head) + len(page)
            found = queue.remove(gone)
            assert found == [each for each in model[place:] if each in gone]
            model[place:] = [each for each in model[place:] if each not in gone]
        assert len(queue) == len(model)
        assert names(queue) == model[: len(queue.head)]
        assert queue.tail == len(model) - len(queue.head) - queue.coming
    rest = sum(queue.close(), array("q"))
    assert list(rest) == model[len(names(queue)) + len(page) :]
