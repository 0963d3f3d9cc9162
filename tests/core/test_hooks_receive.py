"""`Hooks.receive` and `Hooks.deliver` in the core, on each way that a message takes to a client."""

import pytest

from mqttd.core import spec
from mqttd.core.auth import Grant
from mqttd.core.connection import Connection
from mqttd.core.message import Message
from mqttd.core.outbound import MAX_REMEMBERED
from mqttd.core.packets import Puback, Publish, Pubrel
from tests.core.hook_kit import Receiving, changed
from tests.core.rig import make_settings
from tests.harness import FakeClient, Harness
from tests.spec.kit import by_hand, each_qos, each_version, persistent, props

DENIED = "not_authorized"
TAKEN = "dropped_by_plugin"


def balanced(h: Harness) -> bool:
    queued, inflight = h.broker.balance()
    counters = h.broker.counters
    ended = counters.delivered + sum(counters.dropped.values())
    return counters.matched == ended + queued + inflight


def payloads(client: FakeClient) -> list[bytes]:
    return [got.payload for got in client.messages()]


@each_version
@each_qos
def test_a_live_message_is_checked_for_each_receiver(version: int, qos: int) -> None:
    h = Harness()
    hooks = Receiving(h)
    hooks.denied.add(("bad", "a"))
    good, bad = h.client("good", version), h.client("bad", version)
    for client in (good, bad):
        client.subscribe("#", qos=qos)
    sender = h.client("s", version)
    for topic in ("a", "b", "a"):
        sender.publish(topic, topic.encode(), qos)
    assert payloads(good) == [b"a", b"b", b"a"]
    assert payloads(bad) == [b"b"]
    assert h.dropped == {DENIED: 2}
    assert balanced(h)


def test_bytes_that_are_forwarded_as_they_came_are_checked() -> None:
    """QoS 0, the same version, nothing to change: the shortest way there is."""
    h = Harness()
    hooks = Receiving(h)
    hooks.denied.add(("bad", "a"))
    good, bad = h.client("good"), h.client("bad")
    for client in (good, bad):
        client.subscribe("a")
    sender = h.client("s")
    sender.publish("a", b"1")
    assert good.connection.lane == 5
    assert payloads(good) == [b"1"]
    assert payloads(bad) == []
    assert h.broker.counters.delivered == 1
    assert h.broker.counters.publish_sent == 1
    assert balanced(h)


@pytest.mark.parametrize("qos", [1, 2])
def test_what_waited_in_the_queue_is_checked_when_it_leaves(qos: int) -> None:
    h = Harness()
    hooks = Receiving(h)
    persistent(h, "r").subscribe("#", qos=2)
    h.clients[next(iter(h.clients))].drop()
    sender = h.client("s")
    for topic in ("a", "b"):
        sender.publish(topic, topic.encode(), qos)
    assert h.broker.balance() == (2, 0)
    hooks.denied.add(("r", "a"))
    reader = persistent(h, "r")
    assert payloads(reader) == [b"b"]
    assert h.dropped == {DENIED: 1}
    assert h.broker.balance() == (0, 0)
    assert balanced(h)


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_in_flight_is_checked_when_it_is_sent_again(qos: int) -> None:
    """A resend is a delivery too; a QoS 2 exchange that has passed its PUBREC only ends."""
    h = Harness()
    hooks = Receiving(h)
    reader = by_hand(h, "r")
    reader.subscribe("#", qos=2)
    sender = h.client("s")
    for topic in ("a", "b"):
        sender.publish(topic, topic.encode(), qos)
    assert payloads(reader) == [b"a", b"b"]
    reader.drop()
    hooks.denied.add(("r", "a"))
    again = by_hand(h, "r", receive_maximum=1)
    assert [(got.payload, got.dup) for got in again.messages()] == [(b"b", True)]
    assert h.dropped == {DENIED: 1}
    assert h.broker.balance() == (0, 1)
    assert balanced(h)


def test_a_denied_delivery_uses_no_quota_and_no_identifier() -> None:
    """[MQTT-3.3.4-9] what isn't sent isn't counted against Receive Maximum."""
    h = Harness()
    hooks = Receiving(h)
    hooks.denied.add(("r", "a"))
    reader = h.client("r", receive_maximum=1, auto_ack=False)
    reader.subscribe("#", qos=1)
    sender = h.client("s")
    for _ in range(10):
        sender.publish("a", b"no", 1)
    sender.publish("b", b"yes", 1)
    (got,) = reader.messages()
    assert got.payload == b"yes"
    assert len(h.broker.sessions["r"].window.deliveries) == 1
    assert balanced(h)


def test_retained_messages_are_checked_in_a_replay() -> None:
    h = Harness()
    hooks = Receiving(h)
    sender = h.client("s")
    for number in range(6):
        sender.publish(f"t/{number}", b"%d" % number, number % 3, retain=True)
    hooks.denied |= {("r", "t/0"), ("r", "t/1"), ("r", "t/2")}
    reader = h.client("r")
    reader.subscribe("t/#", qos=2)
    assert sorted(payloads(reader)) == [b"3", b"4", b"5"]
    assert h.dropped == {DENIED: 3}
    assert balanced(h)


def test_a_replay_is_checked_as_of_when_it_is_sent() -> None:
    h = Harness(make_settings())
    hooks = Receiving(h)
    sender = h.client("s")
    for number in range(3):
        sender.publish(f"t/{number}", b"%d" % number, 1, retain=True)
    reader = h.client("r", receive_maximum=1, auto_ack=False)
    reader.subscribe("t/#", qos=1)
    (first,) = reader.messages()
    hooks.denied |= {("r", f"t/{number}") for number in range(3)}
    h.broker.forget_decisions()
    reader.send(Puback(first.packet_id))
    h.flush()
    assert reader.messages() == []
    assert balanced(h)


# Shared subscriptions.


@each_qos
def test_a_member_that_may_have_it_gets_it(qos: int) -> None:
    """[MQTT-4.8.2-4] whoever's turn it is, a member that may not have it is passed over."""
    h = Harness()
    hooks = Receiving(h)
    good, bad = h.client("good"), h.client("bad")
    for client in (bad, good):
        client.subscribe("$share/g/t", qos=qos)
    hooks.denied.add(("bad", "t"))
    sender = h.client("s")
    for _ in range(4):
        sender.publish("t", b"x", qos)
    assert len(good.messages()) == 4
    assert bad.messages() == []
    assert balanced(h)


@pytest.mark.parametrize(("qos", "reason"), [(0, "no_shared_member"), (1, DENIED), (2, DENIED)])
def test_what_no_member_may_have_is_dropped_and_holds_nothing_up(qos: int, reason: str) -> None:
    h = Harness()
    hooks = Receiving(h)
    readers = [h.client("one"), h.client("two")]
    for client in readers:
        client.subscribe("$share/g/#", qos=2)
        hooks.denied.add((client.client_id, "bad"))
    sender = h.client("s")
    for topic in ("bad", "good", "bad", "good"):
        sender.publish(topic, topic.encode(), qos)
    assert [got for client in readers for got in payloads(client)] == [b"good", b"good"]
    assert h.dropped == {reason: 2}
    assert h.broker.balance() == (0, 0)
    assert balanced(h)


def test_a_queue_of_a_group_is_checked_when_it_is_handed_out() -> None:
    h = Harness()
    hooks = Receiving(h)
    member = persistent(h, "m")
    member.subscribe("$share/g/#", qos=1)
    member.drop()
    sender = h.client("s")
    for topic in ("bad", "good"):
        sender.publish(topic, topic.encode(), 1)
    assert h.broker.balance() == (2, 0)
    hooks.denied.add(("m", "bad"))
    back = persistent(h, "m")
    assert payloads(back) == [b"good"]
    assert h.dropped == {DENIED: 1}
    assert h.broker.balance() == (0, 0)
    assert balanced(h)


def test_a_message_waits_for_nobody_who_is_away() -> None:
    """Members are connected and none may have it: somebody away who might would block the rest."""
    h = Harness()
    hooks = Receiving(h)
    away = persistent(h, "away")
    away.subscribe("$share/g/#", qos=1)
    away.drop()
    here = h.client("here")
    here.subscribe("$share/g/#", qos=1)
    hooks.denied.add(("here", "secret"))
    h.client("s").publish("secret", b"x", 1)
    assert h.dropped == {DENIED: 1}
    assert h.broker.balance() == (0, 0)


def test_a_full_member_that_may_have_it_is_waited_for() -> None:
    h = Harness()
    hooks = Receiving(h)
    full = h.client("full", receive_maximum=1, auto_ack=False)
    full.subscribe("$share/g/#", qos=1)
    bad = h.client("bad")
    bad.subscribe("$share/g/#", qos=1)
    hooks.denied.add(("bad", "t"))
    sender = h.client("s")
    for payload in (b"1", b"2"):
        sender.publish("t", payload, 1)
    (first,) = full.messages()
    assert h.broker.balance() == (1, 1)
    full.send(Puback(first.packet_id))
    assert payloads(full) == [b"2"]
    assert balanced(h)


# What is remembered.


def test_verdicts_are_remembered_for_a_connection_and_a_topic() -> None:
    h = Harness()
    hooks = Receiving(h)
    reader = h.client("r")
    reader.subscribe("#")
    sender = h.client("s")
    for topic in ("a", "b", "a", "a"):
        sender.publish(topic, b"x")
    assert hooks.asked == [("r", "a"), ("r", "b")]
    hooks.denied.add(("r", "a"))
    sender.publish("a", b"x")
    assert len(reader.messages()) == 5
    h.broker.forget_decisions("r")
    sender.publish("a", b"x")
    assert reader.messages() == []
    reader.drop()
    hooks.asked.clear()
    h.client("r").subscribe("#")
    sender.publish("a", b"x")
    assert hooks.asked == [("r", "a")]


def test_the_memory_is_bounded() -> None:
    h = Harness()
    hooks = Receiving(h)
    reader = h.client("r")
    connection = reader.connection
    for number in range(MAX_REMEMBERED + 1):
        topic = f"t/{number}"
        assert connection.may_receive(topic, topic.encode())
    hooks.asked.clear()
    assert connection.may_receive("t/0", b"t/0")
    assert connection.may_receive("t/0", b"t/0")
    assert hooks.asked == [("r", "t/0")]


def test_a_hook_that_raises_denies_and_is_asked_again() -> None:
    h = Harness()
    failing = [True]

    def receive(connection: object, topic: str) -> Grant:
        if failing[0]:
            raise RuntimeError("broken")
        return Grant()

    h.broker.hooks.receive = receive
    reader = h.client("r")
    reader.subscribe("#")
    sender = h.client("s")
    sender.publish("a", b"1")
    assert reader.messages() == []
    assert h.broker.counters.hook_failures == 1
    assert h.dropped == {DENIED: 1}
    failing[0] = False
    sender.publish("a", b"2")
    assert payloads(reader) == [b"2"]
    assert balanced(h)


def test_what_is_not_to_be_remembered_is_asked_again() -> None:
    h = Harness()
    hooks = Receiving(h)
    hooks.cache = False
    reader = h.client("r")
    reader.subscribe("a")
    sender = h.client("s")
    sender.publish("a", b"1")
    hooks.denied.add(("r", "a"))
    sender.publish("a", b"2")
    hooks.denied.clear()
    sender.publish("a", b"3")
    assert payloads(reader) == [b"1", b"3"]
    assert hooks.asked == [("r", "a")] * 3
    assert h.dropped == {DENIED: 1}


def test_a_client_inside_is_not_asked_about() -> None:
    h = Harness()
    hooks = Receiving(h)
    inside = h.broker.connect_inside("in", "\0plugin", 0, 10, h.now)
    assert inside.session is not None
    assert inside.may_receive("t", b"t")
    assert hooks.asked == []


# Changing what one receiver gets.


def deliver_with(h: Harness, change: object) -> list[tuple[str, str, int]]:
    """Fill `Hooks.deliver`; what it is asked about."""
    asked: list[tuple[str, str, int]] = []

    def deliver(connection: object, message: Message, qos: int) -> Message | None:
        assert isinstance(connection, Connection)
        asked.append((connection.client_id, message.topic, qos))
        return change(message)  # type: ignore[operator, no-any-return]

    h.broker.hooks.deliver = deliver
    return asked


def to_b(message: Message) -> Message | None:
    return changed(message, "b", b"other").message


@each_version
@each_qos
def test_what_is_sent_may_be_changed(version: int, qos: int) -> None:
    h = Harness()
    deliver_with(h, to_b)
    reader = h.client("r", version)
    reader.subscribe("a", qos=qos)
    h.client("s", version).publish("a", b"1", 2)
    (got,) = reader.messages()
    assert (got.topic, got.payload, got.qos) == ("b", b"other", qos)
    assert balanced(h)


def test_a_change_is_for_one_receiver() -> None:
    h = Harness()

    def mask(message: Message) -> Message | None:
        return to_b(message) if len(asked) == 1 else message

    asked = deliver_with(h, mask)
    one, two = h.client("one"), h.client("two")
    for client in (one, two):
        client.subscribe("a")
    h.client("s").publish("a", b"1")
    assert sorted(payloads(one) + payloads(two)) == [b"1", b"other"]
    assert len(asked) == 2


@each_qos
def test_what_a_hook_drops_is_counted_and_frees_its_place(qos: int) -> None:
    h = Harness()
    deliver_with(h, lambda message: None if message.topic == "a" else message)
    reader = h.client("r", receive_maximum=1)
    reader.subscribe("#", qos=2)
    sender = h.client("s")
    for topic in ("a", "a", "b"):
        sender.publish(topic, topic.encode(), qos)
    assert payloads(reader) == [b"b"]
    assert h.dropped == {TAKEN: 2}
    assert h.broker.balance() == (0, 0)
    assert balanced(h)


def test_a_hook_that_raises_drops() -> None:
    h = Harness()

    def fail(message: Message) -> Message | None:
        raise RuntimeError("broken")

    deliver_with(h, fail)
    reader = h.client("r")
    reader.subscribe("#", qos=1)
    h.client("s").publish("a", b"1", 1)
    assert reader.messages() == []
    assert h.dropped == {TAKEN: 1}
    assert h.broker.counters.hook_failures == 1


def test_a_resend_is_changed_again() -> None:
    h = Harness()
    asked = deliver_with(h, to_b)
    reader = by_hand(h, "r")
    reader.subscribe("a", qos=2)
    h.client("s").publish("a", b"1", 2)
    reader.drop()
    again = by_hand(h, "r")
    assert [(got.topic, got.dup) for got in again.messages()] == [("b", True)]
    assert asked == [("r", "a", 2)] * 2


def test_a_topic_that_was_changed_is_checked_too() -> None:
    """mosquitto #3672: what a plugin makes of a topic may not get around the receiver's rights."""
    h = Harness()
    hooks = Receiving(h)
    hooks.denied.add(("r", "b"))
    deliver_with(h, to_b)
    reader = h.client("r")
    reader.subscribe("a", qos=1)
    h.client("s").publish("a", b"1", 1)
    assert reader.messages() == []
    assert h.dropped == {DENIED: 1}
    assert balanced(h)
    hooks.denied.clear()
    h.broker.forget_decisions()
    h.client("s2").publish("a", b"2", 1)
    assert payloads(reader) == [b"other"]


def test_what_is_denied_is_not_shown_to_hooks_that_change() -> None:
    h = Harness()
    hooks = Receiving(h)
    hooks.denied.add(("r", "a"))
    asked = deliver_with(h, to_b)
    h.client("r").subscribe("a")
    h.client("s").publish("a", b"1")
    assert asked == []


def test_a_changed_message_keeps_within_the_packet_size_of_the_client() -> None:
    """[MQTT-3.1.2-24]"""
    h = Harness()
    deliver_with(h, lambda message: changed(message, payload=bytes(200)).message)
    reader = h.client("r", properties=props(maximum_packet_size=100))
    reader.subscribe("a", qos=1)
    h.client("s").publish("a", b"1", 1)
    assert reader.messages() == []
    assert h.dropped == {"packet_too_large": 1}
    assert balanced(h)


def test_topic_aliases_towards_the_client_are_those_of_the_changed_topic() -> None:
    """[MQTT-3.3.2-8]"""
    h = Harness()
    deliver_with(h, lambda message: changed(message, "long/topic/" + message.topic).message)
    reader = h.client("r", properties=props(topic_alias_maximum=5))
    reader.subscribe("#")
    sender = h.client("s")
    for topic in ("a", "a", "a", "b"):
        sender.publish(topic, b"x")
    topics = [got.topic for got in reader.messages()]
    assert topics == ["long/topic/a", "long/topic/a", "", "long/topic/b"]


def test_an_exchange_that_is_beyond_its_publish_goes_on() -> None:
    """[MQTT-4.3.3-4] PUBREL needs no permission: the client has the message."""
    h = Harness()
    hooks = Receiving(h)
    reader = by_hand(h, "r")
    reader.subscribe("a", qos=2)
    h.client("s").publish("a", b"1", 2)
    (got,) = reader.messages()
    h.broker.sessions["r"].on_pubrec(got.packet_id, spec.SUCCESS, h.now)
    reader.drop()
    hooks.denied.add(("r", "a"))
    again = by_hand(h, "r")
    assert [type(packet) for packet in again.recv()] == [Pubrel]
    assert h.dropped == {}
    assert isinstance(got, Publish)
