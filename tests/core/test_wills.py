"""Wills that a hook takes its time for: no crash loses them."""

import pytest

from mqttd.core import journal
from mqttd.core.journal import Op
from mqttd.core.message import Message
from mqttd.core.packets import Will
from mqttd.core.restore import Restorer
from mqttd.core.session import Session
from mqttd.core.settings import NEVER
from mqttd.core.wills import TABLE, Asked, Wills
from tests.harness import Harness

GONE = Will("will", b"gone", 1, True, 0, 60, b"\x26\x00\x01k\x00\x01v")


class Slow:
    """`Hooks.will`, which answers when the test says so."""

    def __init__(self, h: Harness) -> None:
        self.h = h
        self.asked: list[tuple[Session, Message]] = []
        h.broker.hooks.will = self.will

    def will(self, session: object, message: Message) -> bool:
        assert isinstance(session, Session)
        self.asked.append((session, message))
        return False

    def answer(self, allow: bool = True) -> None:
        session, message = self.asked.pop(0)
        made = message if allow else None
        self.h.broker.will_decided(message, made, session, self.h.now)


def ops(h: Harness) -> list[Op]:
    batch = h.broker.take_batch()
    assert batch is not None
    h.broker.committed(batch.seq, h.now)
    return batch.ops


def kinds(h: Harness) -> set[int]:
    return {op.kind for op in ops(h)}


def cut_off(h: Harness, will: Will = GONE, expiry: int = 3600) -> None:
    """A client whose session lasts is gone, and all until then is durable."""
    client = h.client("c", will=will, expiry=expiry, username="u", clean=False)
    h.commit()
    client.drop()


def restarted(h: Harness, *, session: bool) -> Harness:
    """A broker that finds the rows of another one."""
    again = Harness(durable=True)
    restorer = Restorer(again.broker, again.now)
    if session:
        restorer.session("c", 1, "u", NEVER, False, 0.0, 0.0)
    for key, value in h.broker.tables.items(TABLE):
        restorer.row(TABLE, key, value)
    again.broker.hooks_to_come = True
    restorer.finish(2, 1, -1)
    return again


@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize("expiry", [3600, 1])
def test_a_will_is_a_row_until_the_batch_that_has_what_came_of_it(allow: bool, expiry: int) -> None:
    h = Harness(durable=True)
    slow = Slow(h)
    # Put off for longer than its session lasts, the will is due with the session's end.
    cut_off(h, Will("will", b"gone", 1, True, 1800), expiry)
    h.commit()
    h.advance(1800.0)
    before = kinds(h)
    assert journal.TABLE_SET in before
    assert (journal.SESSION_DROP if expiry == 1 else journal.WILL_DROP) in before
    slow.answer(allow)
    found = kinds(h)
    assert journal.TABLE_DROP in found
    assert (journal.RETAINED_SAVE in found) == allow
    assert h.broker.tables.items(TABLE) == []


@pytest.mark.parametrize("session", [True, False])
def test_a_will_that_was_not_decided_on_is_asked_about_again(session: bool) -> None:
    h = Harness(durable=True)
    Slow(h)
    cut_off(h)
    again = restarted(h, session=session)
    reader = again.client("r")
    reader.subscribe("#", qos=1)
    slow = Slow(again)
    assert again.broker.next_deadline() > again.now  # the hooks aren't there yet
    again.broker.hooks_to_come = False
    assert again.broker.next_deadline() == 0.0
    again.broker.handle_timeout(again.now)
    ((owner, message),) = slow.asked
    assert (owner.client_id, owner.owner) == ("c", "u")
    assert (again.broker.sessions.get("c") is owner) == session
    assert (message.topic, message.payload, message.qos, message.retain) == (
        "will",
        b"gone",
        1,
        True,
    )
    assert message.properties == GONE.properties
    assert message.expires_at == again.now + 60
    assert len(again.broker.tables.items(TABLE)) == 1
    slow.answer()
    again.flush()
    assert [got.payload for got in reader.messages()] == [b"gone"]
    assert again.broker.tables.items(TABLE) == []


def test_wills_are_asked_about_again_in_their_order_and_a_new_one_gets_another_row() -> None:
    h = Harness(durable=True)
    Slow(h)
    for number in range(11):
        cut_off(h, Will(f"w/{number}", b"x", 1))
    again = restarted(h, session=False)
    slow = Slow(again)
    again.broker.hooks_to_come = False
    again.broker.handle_timeout(again.now)
    assert [message.topic for _, message in slow.asked] == [f"w/{n}" for n in range(11)]
    cut_off(again, Will("w/new", b"x", 1))
    assert len(again.broker.tables.items(TABLE)) == 12


def test_many_wills_are_asked_about_a_slice_at_a_time() -> None:
    h = Harness(durable=True)
    wills = Wills(h.broker.tables)
    for number in range(4500):
        wills.keep(Asked("c", "u", Will(f"w/{number}", b"x", 1), ""))
    again = restarted(h, session=False)
    slow = Slow(again)
    again.broker.hooks_to_come = False
    turns: list[int] = []
    while again.broker.next_deadline() == 0.0:
        again.broker.handle_timeout(again.now)
        turns.append(len(slow.asked) - sum(turns))
    assert max(turns) < 4500
    assert [message.topic for _, message in slow.asked] == [f"w/{n}" for n in range(4500)]


def test_a_will_that_is_due_at_the_start_takes_the_row_of_no_other() -> None:
    """A session that ends with its connection ended with the broker: its will is due at once."""
    h = Harness(durable=True)
    Slow(h)
    cut_off(h, Will("w/before", b"x", 1))
    again = Harness(durable=True)
    again.broker.hooks_to_come = True
    restorer = Restorer(again.broker, again.now)
    restorer.session("d", 1, "u", 0, True, 0.0, 0.0)
    restorer.will("d", Will("w/due", b"x", 1))
    for key, value in h.broker.tables.items(TABLE):
        restorer.row(TABLE, key, value)
    restorer.finish(2, 1, -1)
    slow = Slow(again)
    again.broker.hooks_to_come = False
    again.broker.handle_timeout(again.now)
    assert [message.topic for _, message in slow.asked] == ["w/before", "w/due"]
    assert len(again.broker.tables.items(TABLE)) == 2


def test_nothing_is_published_before_the_hooks_are_there() -> None:
    """A session that was connected when the broker ended has a will that is due at once."""
    h = Harness(durable=True)
    h.broker.hooks_to_come = True
    reader = h.client("r")
    reader.subscribe("#", qos=1)
    restorer = Restorer(h.broker, h.now)
    restorer.session("c", 1, "u", 3600, True, 0.0, 0.0)
    restorer.will("c", GONE)
    restorer.finish(2, 1, -1)
    h.flush()
    assert reader.messages() == []
    assert kinds(h) >= {journal.WILL_DROP, journal.TABLE_SET}
    slow = Slow(h)
    h.broker.hooks_to_come = False
    h.broker.handle_timeout(h.now)
    slow.answer(allow=False)
    h.flush()
    assert reader.messages() == []
    assert h.broker.tables.items(TABLE) == []


def test_without_a_plugin_that_decides_a_will_found_goes_out() -> None:
    h = Harness(durable=True)
    Slow(h)
    cut_off(h)
    again = restarted(h, session=False)
    again.broker.hooks_to_come = False
    again.broker.handle_timeout(again.now)
    assert again.broker.counters.wills_published == 1
    assert again.broker.tables.items(TABLE) == []


@pytest.mark.parametrize("durable", [True, False])
def test_of_a_session_that_is_not_stored_no_will_is_kept(durable: bool) -> None:
    h = Harness(durable=durable)
    slow = Slow(h)
    h.client("c", will=GONE, expiry=0 if durable else 3600).drop()
    assert h.broker.tables.items(TABLE) == []
    slow.answer()
    assert h.broker.counters.wills_published == 1


def test_a_hook_that_decides_at_once_costs_no_row() -> None:
    h = Harness(durable=True)
    h.broker.hooks.will = lambda session, message: True
    cut_off(h)
    assert journal.TABLE_SET not in kinds(h)


@pytest.mark.parametrize(
    "value", [b"", b"\x10", b"\xff" * 20, b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x00"]
)
def test_a_row_that_is_none_is_left_alone(value: bytes) -> None:
    h = Harness(durable=True)
    restorer = Restorer(h.broker, h.now)
    restorer.row(TABLE, "7", value)
    restorer.row(TABLE, "x", value)
    restorer.finish(1, 1, -1)
    assert h.broker.counters.wills_published == 0
    Slow(h)
    cut_off(h)
    assert {"7", "x", "8"} == {key for key, _ in h.broker.tables.items(TABLE)}
