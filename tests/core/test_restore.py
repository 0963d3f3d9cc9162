"""A broker put together again from plain pieces, without a store."""

from mqttd.core import journal
from mqttd.core.broker import Broker
from mqttd.core.inflight import RELEASED, SENT
from mqttd.core.message import Message
from mqttd.core.packets import Publish, Pubrel, Will
from mqttd.core.restore import Restorer, stored_delivery
from mqttd.core.settings import NEVER
from tests.core.paging_kit import Paged
from tests.core.rig import make_message


def begin(now: float = 1000.0) -> tuple[Paged, Restorer]:
    harness = Paged()
    harness.now = now
    return harness, Restorer(harness.broker, now)


def put(
    harness: Paged,
    restorer: Restorer,
    number: int,
    serial: int,
    packet_id: int,
    state: int = SENT,
    qos: int = 1,
    share: int = 0,
) -> bool:
    """A delivery that was sent before the restart."""
    message = make_message(b"%d" % serial, qos)
    delivery = stored_delivery(message, serial, serial, False, qos, False, b"")
    harness.shelf.put(number, delivery, packet_id)
    return restorer.sent(number, delivery, share, packet_id, state)


def leave(
    harness: Paged, restorer: Restorer, number: int, serial: int, message: Message | None = None
) -> bool:
    """A delivery that waits in the store."""
    message = make_message(b"%d" % serial, 1) if message is None else message
    delivery = stored_delivery(message, serial, serial, False, message.qos, False, b"")
    harness.shelf.put(number, delivery)
    return restorer.queued(number, serial)


def recorded(broker: Broker) -> list[tuple[int, str, int]]:
    batch = broker.take_batch()
    return [] if batch is None else [(op.kind, op.owner, op.number) for op in batch.ops]


def test_a_session_is_found_with_all_that_hangs_on_it() -> None:
    harness, restorer = begin()
    restorer.session("c", 3, None, 100, False, 1050.0, 0.0)
    restorer.subscription("c", "a/+", 2, True, True, 1, 7)
    restorer.inbound("c", 9)
    assert put(harness, restorer, 3, 4, packet_id=8)
    assert put(harness, restorer, 3, 5, packet_id=3, state=RELEASED, qos=2)
    assert leave(harness, restorer, 3, 6)
    restorer.finish(4, 7, -1)
    assert restorer.deliveries == 3
    assert harness.broker.balance() == (1, 2)
    assert harness.broker.counters.matched == 3
    assert recorded(harness.broker) == []
    client = harness.client("c", clean=False, expiry=100, auto_ack=False)
    assert client.connack.session_present
    harness.commit()
    pubrel = client.take_first(Pubrel)
    first, second = client.messages()
    assert pubrel.packet_id == 3
    assert (first.packet_id, first.dup, first.payload) == (8, True, b"4")
    # The next identifier follows the last one in use; this one was never sent.
    assert (second.packet_id, second.dup, second.payload) == (4, False, b"6")
    session = harness.broker.sessions["c"]
    assert session.inbound == {9: 0}
    (subscription,) = session.subscriptions.values()
    assert (subscription.qos, subscription.no_local, subscription.identifier) == (2, True, 7)
    assert harness.broker.trie.match("a/b").targets[0].subscriber is session
    harness.check()


def test_nothing_is_read_of_a_queue_until_somebody_wants_it() -> None:
    harness, restorer = begin()
    restorer.session("c", 1, None, 100, False, 1050.0, 0.0)
    restorer.session("idle", 2, None, 100, False, 1050.0, 0.0)
    restorer.subscription("c", "a", 1, False, False, 0, 0)
    for number in (1, 2):
        for serial in range(5):
            leave(harness, restorer, number, 10 * number + serial)
        restorer.finish(3, 30, -1)
    harness.client("source").publish("a", b"new", 1)
    harness.commit()
    assert harness.shelf.read == 0
    assert harness.broker.balance() == (11, 0)
    client = harness.client("c", clean=False, expiry=100)
    harness.commit()
    expected = [b"10", b"11", b"12", b"13", b"14", b"new"]
    assert [message.payload for message in client.messages()] == expected
    assert harness.shelf.read == 6
    harness.check()


def test_new_rows_come_after_those_that_are_there() -> None:
    harness, restorer = begin()
    restorer.session("c", 1, None, 100, False, 1050.0, 0.0)
    restorer.subscription("c", "a", 1, False, False, 0, 0)
    restorer.finish(7, 42, -5)
    harness.client("source").publish("a", b"new", 1)
    batch = harness.broker.take_batch()
    assert batch is not None
    assert [op.serial for op in batch.ops if op.kind == journal.DELIVERY_ADD] == [42]
    assert harness.broker.journal.front_serial == -5
    harness.client("another")
    assert harness.broker.sessions["another"].number == 8  # after that of the source


def test_deadlines_go_on_and_those_that_passed_have_come() -> None:
    harness, restorer = begin()
    restorer.session("over", 1, None, 100, False, 900.0, 0.0)
    restorer.session("soon", 2, None, 100, False, 1010.0, 0.0)
    restorer.session("connected", 3, None, 100, True, 0.0, 0.0)
    restorer.session("ever", 4, None, NEVER, True, 0.0, 0.0)
    restorer.finish(5, 1, -1)
    sessions = harness.broker.sessions
    assert sorted(sessions) == ["connected", "ever", "soon"]
    assert recorded(harness.broker) == [
        (journal.SESSION_SAVE, "connected", 0),  # its time runs from here, not from the next start
        (journal.SESSION_SAVE, "ever", 0),
        (journal.SESSION_DROP, "over", 0),
    ]
    harness.advance(11.0)
    assert sorted(sessions) == ["connected", "ever"]
    harness.advance(90.0)
    assert sorted(sessions) == ["ever"]


def test_a_session_without_expiry_ends_and_its_will_goes_out() -> None:
    # [MQTT-4.1.0-2] [MQTT-3.1.2-8]
    harness, restorer = begin()
    restorer.session("heir", 1, None, 100, False, 1050.0, 0.0)
    restorer.session("c", 2, None, 0, True, 0.0, 0.0)
    restorer.will("c", Will("w", b"gone", 1, False, 30))
    restorer.subscription("heir", "w", 1, False, False, 0, 0)
    leave(harness, restorer, 2, 1)
    restorer.finish(3, 2, -1)
    assert list(harness.broker.sessions) == ["heir"]
    assert harness.broker.balance() == (1, 0)
    assert harness.dropped == {"session_ended": 1}
    harness.commit()
    assert not harness.broker.context.tails
    assert harness.shelf.of(2) == []


def test_a_will_waits_for_what_is_left_of_its_delay() -> None:
    harness, restorer = begin()
    restorer.session("pending", 1, None, 100, False, 1050.0, 1005.0)
    restorer.will("pending", Will("w", b"1", 0, True, 30))
    restorer.session("connected", 3, None, 100, True, 0.0, 0.0)
    restorer.will("connected", Will("v", b"2", 0, True, 30))
    restorer.will("nobody", Will("u", b"3", 0, True, 30))
    restorer.finish(5, 1, -1)
    retained = harness.broker.retained
    assert retained.count == 0
    harness.advance(6.0)
    assert retained.get("w") is not None
    assert retained.count == 1
    harness.advance(25.0)
    assert retained.get("v") is not None


def test_an_instant_before_the_clock_began_is_no_missing_one() -> None:
    harness, restorer = begin(now=0.0)
    restorer.session("c", 2, None, 0, True, 0.0, 0.0)
    restorer.will("c", Will("w", b"gone", 0, True, 0))
    restorer.finish(5, 1, -1)
    assert harness.broker.retained.count == 1


def test_a_group_takes_back_what_its_member_had_begun() -> None:
    # [MQTT-4.8.2-4]
    harness, restorer = begin()
    restorer.session("m", 1, None, 100, True, 0.0, 0.0)
    restorer.session("idle", 2, None, 100, True, 0.0, 0.0)
    restorer.subscription("m", "$share/g/a", 2, False, False, 0, 0)
    restorer.subscription("m", "$share/h/a", 2, False, False, 0, 0)
    restorer.subscription("idle", "$share/h/a", 2, False, False, 0, 0)
    assert restorer.group("g", "a", 5)
    put(harness, restorer, 1, 2, packet_id=1, share=5)
    put(harness, restorer, 1, 3, packet_id=2, qos=2, share=5)
    put(harness, restorer, 1, 4, packet_id=3, share=77)  # of a group that is gone: its own
    put(harness, restorer, 1, 5, packet_id=4, share=1)  # no group
    restorer.finish(6, 6, -1)
    assert harness.broker.balance() == (1, 3)
    batch = harness.broker.take_batch()
    assert batch is not None
    harness.shelf.write(batch)
    harness.broker.committed(batch.seq, harness.now)
    moved = [op for op in batch.ops if op.delivery is not None]
    assert [(op.kind, op.number, op.serial) for op in moved] == [
        (journal.DELIVERY_SETTLE, 1, 2),
        (journal.DELIVERY_ADD, 5, -1),
    ]
    client = harness.client("m", clean=False, expiry=100, auto_ack=False)
    harness.commit()
    assert sorted(message.payload for message in client.messages()) == [b"2", b"3", b"4", b"5"]
    harness.check()


def test_what_a_group_takes_back_stands_before_what_waits_in_the_store() -> None:
    harness, restorer = begin()
    restorer.session("m", 1, None, 100, True, 0.0, 0.0)
    restorer.subscription("m", "$share/g/a", 1, False, False, 0, 0)
    restorer.group("g", "a", 2)
    put(harness, restorer, 1, 4, packet_id=1, share=2)
    leave(harness, restorer, 2, -7)  # given back before the restart
    leave(harness, restorer, 2, 5)
    restorer.finish(3, 6, -8)
    assert harness.broker.balance() == (3, 0)
    client = harness.client("m", clean=False, expiry=100)
    harness.commit()
    assert [message.payload for message in client.messages()] == [b"4", b"-7", b"5"]
    harness.check()
    assert harness.broker.balance() == (0, 0)


def test_a_group_without_members_and_a_session_unknown_are_nobodys() -> None:
    harness, restorer = begin()
    restorer.subscription("nobody", "a", 1, False, False, 0, 0)
    restorer.inbound("nobody", 1)
    assert not put(harness, restorer, 8, 1, packet_id=1)
    assert not leave(harness, restorer, 8, 2)
    assert not restorer.group("g", "a", 9)
    assert not put(harness, restorer, 9, 1, packet_id=1)
    restorer.finish(10, 2, -1)
    assert harness.broker.balance() == (0, 0)
    assert harness.broker.counters.matched == 0
    assert harness.broker.trie.match("a").targets == []
    assert recorded(harness.broker) == []


def test_a_group_has_no_window() -> None:
    harness, restorer = begin()
    restorer.session("m", 1, None, 100, True, 0.0, 0.0)
    restorer.subscription("m", "$share/g/a", 1, False, False, 0, 0)
    restorer.group("g", "a", 2)
    assert not put(harness, restorer, 2, 4, packet_id=1)


def test_messages_that_expired_meanwhile_are_not_delivered() -> None:
    # [MQTT-3.3.2-5]
    harness, restorer = begin()
    restorer.session("c", 1, None, 100, False, 1050.0, 0.0)
    leave(harness, restorer, 1, 1, make_message(b"old", expires_at=1e-9))
    leave(harness, restorer, 1, 2, make_message(b"new", expires_at=1020.0))
    restorer.retained(make_message(b"old", topic="r", retain=True, expires_at=1e-9))
    restorer.retained(make_message(b"new", topic="s", retain=True))
    restorer.finish(2, 3, -1)
    client = harness.client("c", clean=False, expiry=100)
    harness.commit()
    (message,) = client.messages()
    assert isinstance(message, Publish)
    assert (message.payload, message.message_expiry) == (b"new", 20)
    assert harness.dropped == {"expired": 1}
    harness.check()
    harness.advance(2.0)
    assert harness.broker.retained.get("r") is None
    assert harness.broker.retained.count == 1
