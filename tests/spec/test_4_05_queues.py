"""Message receipt and queues (4.5): what is kept for a subscriber who is away, full or slow.

No silent loss: every message × matching subscription ends in exactly one counted state,
delivered, queued, in flight, or dropped with a reason. `ledger` is that sum.
"""

import random

import pytest

from mqttd.core.packets import Connect, Filter, Puback, Publish, Subscribe, Unsubscribe, Will
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    dropped,
    each_version,
    manual,
    messages,
    payloads,
    persistent,
    props,
    publish,
    send_publish,
    settings,
)


def absent(h: Harness, version: int = 5, qos: int = 1, client_id: str = "sub") -> None:
    """A persistent session subscribed to "t" whose client has gone."""
    sub = persistent(h, client_id, version)
    sub.subscribe("t", qos=qos)
    sub.drop()


def fill(h: Harness, count: int, qos: int = 1, size: int = 1) -> None:
    pub = h.client("pub")
    for n in range(count):
        publish(pub, "t", bytes([n]) * size, qos=qos)


def balanced(h: Harness) -> bool:
    """Every matched message is accounted for exactly once."""
    counters = h.broker.counters
    queued, inflight = h.broker.balance()
    return counters.matched == counters.delivered + queued + inflight + dropped(h)


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_messages_wait_for_an_absent_client_in_order(version: int, qos: int) -> None:
    # [MQTT-4.5.0-1] [MQTT-4.6.0-5]
    h = Harness()
    absent(h, version, qos=2)
    fill(h, 5, qos=qos)
    got = messages(persistent(h, "sub", version))
    assert [m.payload for m in got] == [bytes([n]) for n in range(5)]
    assert all(m.qos == qos and not m.dup for m in got)


@each_version
def test_message_is_added_to_every_matching_session(version: int) -> None:
    # [MQTT-4.5.0-1]
    h = Harness()
    for n in range(3):
        absent(h, version, client_id=f"sub{n}")
    here = h.client("here", version=version)
    here.subscribe("t", qos=1)
    fill(h, 1)
    assert payloads(here) == [b"\x00"]
    for n in range(3):
        assert payloads(persistent(h, f"sub{n}", version)) == [b"\x00"]


@each_version
def test_queue_is_delivered_once(version: int) -> None:
    # [MQTT-4.5.0-1]
    h = Harness()
    absent(h, version)
    fill(h, 2)
    sub = persistent(h, "sub", version)
    assert len(messages(sub)) == 2
    sub.drop()
    persistent(h, "sub", version).expect_nothing()


@each_version
def test_qos_0_for_an_absent_client_is_dropped_and_counted(version: int) -> None:
    h = Harness()
    absent(h, version)
    fill(h, 3, qos=0)
    assert messages(persistent(h, "sub", version)) == []
    assert h.broker.counters.dropped == {"offline_qos0": 3}


@each_version
def test_message_of_a_qos_0_subscription_counts_as_qos_0(version: int) -> None:
    # [MQTT-3.8.4-8]
    h = Harness()
    absent(h, version, qos=0)
    fill(h, 2, qos=2)
    assert messages(persistent(h, "sub", version)) == []
    assert h.broker.counters.dropped == {"offline_qos0": 2}


@each_version
def test_qos_0_is_kept_for_an_absent_client_when_settings_ask_for_it(version: int) -> None:
    h = Harness(settings(queue_qos0=True))
    absent(h, version)
    pub = h.client("pub")
    for n in range(3):
        publish(pub, "t", bytes([n]), qos=n % 2)
    got = messages(persistent(h, "sub", version))
    assert [(m.payload, m.qos) for m in got] == [(b"\x00", 0), (b"\x01", 1), (b"\x02", 0)]
    assert dropped(h) == 0


@each_version
def test_full_queue_drops_the_newest_by_default(version: int) -> None:
    h = Harness(settings(max_queued_messages=3))
    absent(h, version)
    fill(h, 5)
    assert payloads(persistent(h, "sub", version)) == [b"\x00", b"\x01", b"\x02"]
    assert h.broker.counters.dropped == {"queue_full": 2}


@each_version
def test_full_queue_drops_the_oldest_when_settings_ask_for_it(version: int) -> None:
    h = Harness(settings(max_queued_messages=3, queue_overflow="drop_oldest"))
    absent(h, version)
    fill(h, 5)
    assert payloads(persistent(h, "sub", version)) == [b"\x02", b"\x03", b"\x04"]
    assert h.broker.counters.dropped == {"queue_full": 2}


def test_queue_without_a_limit_keeps_everything() -> None:
    h = Harness(settings(max_queued_messages=0))
    absent(h)
    fill(h, 200)
    assert len(messages(persistent(h, "sub"))) == 200
    assert dropped(h) == 0


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_full_queue_of_one_session_leaves_the_others_alone(overflow: str) -> None:
    h = Harness(settings(max_queued_messages=2, queue_overflow=overflow))
    absent(h)
    here = h.client("here")
    here.subscribe("t", qos=1)
    fill(h, 6)
    assert len(messages(here)) == 6
    assert h.broker.counters.dropped == {"queue_full": 4}


@each_version
def test_publisher_is_acknowledged_though_a_queue_was_full(version: int) -> None:
    # [MQTT-4.3.2-4]
    h = Harness(settings(max_queued_messages=1))
    absent(h, version)
    pub = h.client("pub", version=version)
    assert publish(pub, "t", qos=1) == 0
    assert publish(pub, "t", qos=1) < 0x80


def test_queue_takes_messages_again_once_it_has_drained() -> None:
    h = Harness(settings(max_queued_messages=2))
    absent(h)
    fill(h, 3)
    persistent(h, "sub").drop()
    fill(h, 3)
    assert payloads(persistent(h, "sub")) == [b"\x00", b"\x01"]
    assert h.broker.counters.dropped == {"queue_full": 2}


def test_connected_client_with_a_full_window_is_queued_for() -> None:
    # [MQTT-4.9.0-2]
    h = Harness(settings(max_queued_messages=2))
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t", qos=1)
    fill(h, 5)
    got = []
    while fresh := messages(sub):
        for m in fresh:
            got.append(m.payload)
            sub.send(Puback(m.packet_id))
    assert got == [b"\x00", b"\x01", b"\x02"]
    assert h.broker.counters.dropped == {"queue_full": 2}


@each_version
def test_clean_start_discards_the_queue_and_counts_it(version: int) -> None:
    # [MQTT-3.1.2-4]
    h = Harness()
    absent(h, version)
    fill(h, 4)
    h.client("sub", version=version, clean=True).expect_nothing()
    assert h.broker.counters.dropped == {"session_ended": 4}


def test_expired_session_discards_its_queue_and_counts_it() -> None:
    # [MQTT-4.1.0-2]
    h = Harness()
    sub = persistent(h, "sub", session_expiry_interval=10)
    sub.subscribe("t", qos=1)
    sub.drop()
    fill(h, 4)
    h.advance(11)
    assert h.broker.counters.dropped == {"session_ended": 4}
    again = persistent(h, "sub")
    assert not again.connack.session_present
    again.expect_nothing()


@each_version
def test_queue_does_not_outlive_unsubscribed_interest(version: int) -> None:
    # [MQTT-3.10.4-2]
    h = Harness()
    sub = persistent(h, "sub", version)
    sub.subscribe("t", qos=1)
    sub.send(Unsubscribe(2, ["t"]))
    sub.drop()
    fill(h, 2)
    persistent(h, "sub", version).expect_nothing()
    assert balanced(h)


@each_version
def test_session_without_expiry_is_not_queued_for(version: int) -> None:
    # [MQTT-3.1.2-23]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    sub.drop()
    fill(h, 2)
    h.client("sub", version=version, clean=version != 5).expect_nothing()
    assert h.broker.counters.matched == 0


@each_version
def test_unmatched_message_is_counted_nowhere(version: int) -> None:
    h = Harness()
    h.client("sub", version=version).subscribe("other")
    fill(h, 3)
    assert h.broker.counters.matched == 0
    assert balanced(h)


def test_overlapping_subscriptions_count_once() -> None:
    # [MQTT-3.3.4-2]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=1)
    sub.subscribe("#", qos=0)
    fill(h, 3)
    assert h.broker.counters.matched == 3
    assert h.broker.counters.delivered == 3


def test_message_in_flight_is_not_yet_delivered() -> None:
    # [MQTT-4.3.2-3]
    h = Harness()
    sub = manual(h.client("sub"))
    sub.subscribe("t", qos=1)
    fill(h, 1)
    queued, inflight = h.broker.balance()
    assert (queued, inflight, h.broker.counters.delivered) == (0, 1, 0)
    sub.send(Puback(sub.expect(Publish).packet_id))
    queued, inflight = h.broker.balance()
    assert (queued, inflight, h.broker.counters.delivered) == (0, 0, 1)


class Life:
    """Random clients for the balance test; the seed names the run."""

    FILTERS = ("t/1", "t/+", "#", "t/2", "$share/g/t/#", "$share/g/t/1", "$share/x/#")

    def __init__(self, seed: int, overflow: str, durable: bool) -> None:
        self.rng = random.Random(seed)
        limits = settings(
            max_queued_messages=4, queue_overflow=overflow, max_inflight=5, write_buffer=1000
        )
        self.h = Harness(limits, durable=durable)
        self.clients: dict[str, FakeClient] = {}
        self.pub = self.h.client("publisher")
        self.packet_id = 0

    def step(self) -> None:
        rng = self.rng
        name = rng.choice(("a", "b", "c", "d"))
        c = self.clients.get(name)
        if c is None or c.closed or rng.random() < 0.05:
            self.connect(name)
            return
        action = rng.randrange(14)
        if action < 3:
            topic = rng.choice(self.FILTERS)
            local = rng.random() < 0.3 and not topic.startswith("$share")
            c.send(Subscribe(900, [Filter(topic, rng.randrange(3), local, False, 0)]))
        elif action == 3:
            c.send(Unsubscribe(901, [rng.choice(self.FILTERS)]))
        elif action == 4:
            del self.clients[name]
            c.drop()
        elif action == 5:
            del self.clients[name]
            c.disconnect()
        elif action == 6:
            c.auto_ack = not c.auto_ack
        elif action == 7:
            self.h.advance(rng.choice((1, 5, 30)))
        elif action == 8:
            c.pause()
        elif action == 9:
            c.resume()
        elif action == 10:
            self.publish(c)
        else:
            self.publish(self.pub)
        c.recv()

    def connect(self, name: str) -> None:
        rng = self.rng
        expiry = rng.choice((0, 20, 1000))
        wanted = props(session_expiry_interval=expiry, receive_maximum=rng.choice((1, 3, 100)))
        if rng.random() < 0.3:
            wanted.maximum_packet_size = 150
        will = Will("t/1", b"will", rng.randrange(3), rng.random() < 0.3, 0, -1, b"")
        version = rng.choice((4, 5))
        c = self.clients[name] = self.h.open(version)
        c.auto_ack = rng.random() < 0.6
        clean = rng.random() < 0.2
        c.send(Connect("MQTT", version, clean, 0, name, will, None, None, wanted))

    def publish(self, c: FakeClient) -> None:
        rng = self.rng
        self.packet_id = self.packet_id % 800 + 1
        payload = b"x" * rng.choice((1, 50, 400))
        expiry = rng.choice((-1, -1, 3))
        topic = rng.choice(("t/1", "t/2", "other"))
        retain = rng.random() < 0.2
        qos = rng.randrange(3)
        send_publish(c, topic, payload, qos, self.packet_id, retain=retain, expiry=expiry)
        c.recv()


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("seed", range(12))
def test_every_match_ends_in_exactly_one_counted_state(
    seed: int, overflow: str, durable: bool
) -> None:
    # [MQTT-4.5.0-1]
    life = Life(seed, overflow, durable)
    for n in range(300):
        life.step()
        if durable and n % 3 == 0:
            life.h.commit()
        assert balanced(life.h)
    assert life.h.broker.counters.matched > 0
    assert life.h.broker.counters.bugs == 0
