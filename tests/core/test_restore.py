"""A broker put together again from plain pieces, without a store."""

from mqttd.core import journal
from mqttd.core.broker import Broker
from mqttd.core.inflight import QUEUED, RELEASED, SENT
from mqttd.core.message import Message
from mqttd.core.packets import Publish, Pubrel, Will
from mqttd.core.restore import Restorer
from mqttd.core.settings import NEVER
from tests.core.rig import make_message
from tests.harness import Harness


def begin(now: float = 1000.0) -> tuple[Harness, Restorer]:
    harness = Harness(durable=True)
    harness.now = now
    return harness, Restorer(harness.broker, now)


def put(
    restorer: Restorer,
    client_id: str | None,
    serial: int,
    message: Message | None = None,
    packet_id: int = 0,
    state: int = QUEUED,
    qos: int = 1,
    share: str = "",
) -> None:
    message = make_message(b"%d" % serial, qos) if message is None else message
    restorer.delivery(client_id, share, message, serial, serial, packet_id, state, qos, False, b"")


def recorded(broker: Broker) -> list[tuple[int, str]]:
    batch = broker.take_batch()
    return [] if batch is None else [(op.kind, op.owner) for op in batch.ops]


def test_a_session_is_found_with_all_that_hangs_on_it() -> None:
    harness, restorer = begin()
    restorer.session("c", None, 100, False, 1050.0, 0.0)
    restorer.subscription("c", "a/+", 2, True, True, 1, 7)
    restorer.inbound("c", 9)
    put(restorer, "c", 4, packet_id=8, state=SENT)
    put(restorer, "c", 5, packet_id=3, state=RELEASED, qos=2)
    put(restorer, "c", 6)
    restorer.finish(7)
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


def test_new_rows_come_after_those_that_are_there() -> None:
    harness, restorer = begin()
    restorer.session("c", None, 100, False, 1050.0, 0.0)
    restorer.subscription("c", "a", 1, False, False, 0, 0)
    put(restorer, "c", 41)
    restorer.finish(42)
    harness.client("source").publish("a", b"new", 1)
    batch = harness.broker.take_batch()
    assert batch is not None
    assert [op.serial for op in batch.ops if op.kind == journal.DELIVERY_ADD] == [42]


def test_deadlines_go_on_and_those_that_passed_have_come() -> None:
    harness, restorer = begin()
    restorer.session("over", None, 100, False, 900.0, 0.0)
    restorer.session("soon", None, 100, False, 1010.0, 0.0)
    restorer.session("connected", None, 100, True, 0.0, 0.0)
    restorer.session("ever", None, NEVER, True, 0.0, 0.0)
    restorer.finish(1)
    sessions = harness.broker.sessions
    assert sorted(sessions) == ["connected", "ever", "soon"]
    assert recorded(harness.broker) == [(journal.SESSION_DROP, "over")]
    harness.advance(11.0)
    assert sorted(sessions) == ["connected", "ever"]
    harness.advance(90.0)
    assert sorted(sessions) == ["ever"]


def test_a_session_without_expiry_ends_and_its_will_goes_out() -> None:
    # [MQTT-4.1.0-2] [MQTT-3.1.2-8]
    harness, restorer = begin()
    restorer.session("heir", None, 100, False, 1050.0, 0.0)
    restorer.session("c", None, 0, True, 0.0, 0.0)
    restorer.will("c", Will("w", b"gone", 1, False, 30))
    restorer.subscription("heir", "w", 1, False, False, 0, 0)
    put(restorer, "c", 1)
    restorer.finish(2)
    assert list(harness.broker.sessions) == ["heir"]
    assert harness.broker.balance() == (1, 0)
    assert (journal.SESSION_DROP, "c") in recorded(harness.broker)


def test_a_will_waits_for_what_is_left_of_its_delay() -> None:
    harness, restorer = begin()
    restorer.session("pending", None, 100, False, 1050.0, 1005.0)
    restorer.will("pending", Will("w", b"1", 0, True, 30))
    restorer.session("connected", None, 100, True, 0.0, 0.0)
    restorer.will("connected", Will("v", b"2", 0, True, 30))
    restorer.will("nobody", Will("u", b"3", 0, True, 30))
    restorer.finish(1)
    retained = harness.broker.retained
    assert retained.count == 0
    harness.advance(6.0)
    assert retained.get("w") is not None
    assert retained.count == 1
    harness.advance(25.0)
    assert retained.get("v") is not None


def test_an_instant_before_the_clock_began_is_no_missing_one() -> None:
    harness, restorer = begin(now=0.0)
    restorer.session("c", None, 0, True, 0.0, 0.0)
    restorer.will("c", Will("w", b"gone", 0, True, 0))
    restorer.finish(1)
    assert harness.broker.retained.count == 1


def test_a_group_takes_back_what_its_member_had_begun() -> None:
    # [MQTT-4.8.2-4]
    harness, restorer = begin()
    restorer.session("m", None, 100, True, 0.0, 0.0)
    restorer.subscription("m", "$share/g/a", 2, False, False, 0, 0)
    put(restorer, None, 1, share="g/a")
    put(restorer, "m", 2, packet_id=1, state=SENT, share="g/a")
    put(restorer, "m", 3, packet_id=2, state=SENT, qos=2, share="g/a")
    put(restorer, "m", 4, packet_id=3, state=SENT, share="h/gone")
    restorer.finish(5)
    assert harness.broker.balance() == (2, 2)
    kinds = recorded(harness.broker)
    assert kinds == [(journal.DELIVERY_SETTLE, "m"), (journal.DELIVERY_ADD, "$share/g/a")]
    client = harness.client("m", clean=False, expiry=100, auto_ack=False)
    harness.commit()
    assert sorted(message.payload for message in client.messages()) == [b"1", b"2", b"3", b"4"]


def test_what_nobody_owns_is_counted_and_cleared_away() -> None:
    harness, restorer = begin()
    restorer.subscription("nobody", "a", 1, False, False, 0, 0)
    restorer.inbound("nobody", 1)
    put(restorer, "nobody", 1)
    put(restorer, None, 2, share="g/a")
    restorer.finish(3)
    assert harness.broker.balance() == (0, 0)
    assert harness.dropped == {"session_ended": 2}
    assert harness.broker.trie.match("a").targets == []
    assert recorded(harness.broker) == [(journal.DELIVERY_SETTLE, "")] * 2


def test_messages_that_expired_meanwhile_are_not_delivered() -> None:
    # [MQTT-3.3.2-5]
    harness, restorer = begin()
    restorer.session("c", None, 100, False, 1050.0, 0.0)
    put(restorer, "c", 1, make_message(b"old", expires_at=1e-9))
    put(restorer, "c", 2, make_message(b"new", expires_at=1020.0))
    restorer.retained(make_message(b"old", topic="r", retain=True, expires_at=1e-9))
    restorer.retained(make_message(b"new", topic="s", retain=True))
    restorer.finish(3)
    assert harness.broker.sessions["c"].queue_expiry == 1e-9
    client = harness.client("c", clean=False, expiry=100)
    harness.commit()
    (message,) = client.messages()
    assert isinstance(message, Publish)
    assert (message.payload, message.message_expiry) == (b"new", 20)
    assert harness.dropped == {"expired": 1}
    harness.advance(2.0)
    assert harness.broker.retained.get("r") is None
    assert harness.broker.retained.count == 1
