"""How long a PUBLISH waits for its acknowledgement, as it is counted."""

import pytest

from mqttd.core import counters as count
from mqttd.core import spec
from mqttd.core.counters import Counters
from mqttd.core.packets import Filter, Puback, Publish, Pubrec, Subscribe
from tests.core.hook_kit import Publishing, denied
from tests.harness import Harness


def keeper(h: Harness) -> None:
    """An absent session for which messages are stored."""
    client = h.client("keeper", expiry=1000)
    client.send(Subscribe(1, [Filter("t", 2)]))
    h.commit()
    client.drop()
    h.commit()


def counted(counters: Counters) -> tuple[int, list[int], float]:
    """At once, then those that waited: how many in each bucket that has some, all seconds."""
    return counters.acks_at_once, [n for n in counters.acks.counts if n], counters.acks.seconds


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("topic", ["t", "nobody"])
def test_what_waits_for_nothing_leaves_at_once(qos: int, topic: str) -> None:
    h = Harness()
    h.client("r").subscribe("t", qos=qos)
    client = h.client("c", auto_ack=False)
    client.publish(topic, b"x", qos)
    client.expect(Puback if qos == 1 else Pubrec)
    assert counted(h.broker.counters) == (1, [], 0.0)


@pytest.mark.parametrize("qos", [1, 2])
def test_what_waits_for_a_commit_is_timed_until_then(qos: int) -> None:
    h = Harness(durable=True)
    keeper(h)
    client = h.client("c", auto_ack=False)
    client.publish("t", b"x", qos)
    h.now += 0.015
    client.publish("t", b"y", qos)
    client.expect_nothing()
    h.now += 0.004
    h.commit()
    assert len(client.recv()) == 2
    at_once, found, seconds = counted(h.broker.counters)
    assert (at_once, found) == (0, [1, 1])
    assert seconds == pytest.approx(0.019 + 0.004)
    places = [place for place, n in enumerate(h.broker.counters.acks.counts) if n]
    assert [count.BOUNDS[place] for place in places] == [0.005, 0.02]


def test_what_waits_for_a_hook_is_timed_until_it_answers() -> None:
    h = Harness()
    hooks = Publishing(h)
    client = h.client("c", auto_ack=False)
    client.publish("t", b"x", 1)
    h.now += 0.2
    hooks.answer()
    client.expect(Puback)
    at_once, found, seconds = counted(h.broker.counters)
    assert (at_once, found) == (0, [1])
    assert seconds == pytest.approx(0.2)


def test_a_delivery_that_settles_first_ends_the_wait() -> None:
    """Its subscriber acknowledges before the commit: nothing is left to be durable."""
    h = Harness(durable=True)
    reader = h.client("r", expiry=100, auto_ack=False)
    reader.send(Subscribe(1, [Filter("t", 1)]))
    h.commit()
    client = h.client("c", auto_ack=False)
    client.publish("t", b"x", 1)
    client.expect_nothing()
    h.now += 0.003
    message = reader.take_first(Publish)
    reader.send(Puback(message.packet_id, 0))
    h.flush()
    client.expect(Puback)
    at_once, found, seconds = counted(h.broker.counters)
    assert (at_once, found) == (0, [1])
    assert seconds == pytest.approx(0.003)


def test_what_needs_no_room_is_timed_when_the_disk_is_full() -> None:
    h = Harness(durable=True)
    keeper(h)
    client = h.client("c", expiry=100, auto_ack=False)
    client.send(Subscribe(1, [Filter("x", 1)]))  # whose SUBACK is held, and keeps others waiting
    for topic in ("nobody", "t"):
        client.publish(topic, b"x", 1)
    h.now += 0.015
    h.broker.refuse(spec.QUOTA_EXCEEDED, h.now)
    client.publish("nobody", b"x", 1)
    found = [packet.reason for packet in client.recv() if isinstance(packet, Puback)]
    assert found == [
        spec.NO_MATCHING_SUBSCRIBERS,
        spec.QUOTA_EXCEEDED,
        spec.NO_MATCHING_SUBSCRIBERS,
    ]
    at_once, waited, seconds = counted(h.broker.counters)
    assert (at_once, waited) == (1, [1])
    assert seconds == pytest.approx(0.015)


def test_other_answers_and_refusals_are_not_counted() -> None:
    h = Harness(durable=True)
    client = h.client("c", expiry=100, auto_ack=False)
    client.send(Subscribe(1, [Filter("t", 1)]))
    h.commit()
    client.publish("t", b"x", 0)
    Publishing(h, lambda message: denied(spec.NOT_AUTHORIZED))
    client.publish("t", b"x", 1)
    h.now += 1.0
    h.commit()
    assert client.take_first(Puback).reason == spec.NOT_AUTHORIZED
    assert counted(h.broker.counters) == (0, [], 0.0)
