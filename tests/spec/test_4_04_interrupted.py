"""Exactly once, at least once, in order (4.3, 4.4, 4.6): while the network keeps breaking.

A publisher and a subscriber that follow the standard to the letter are cut off at random. What
reached the application at the end is compared with what was handed over at the start. The seed
names the run; with a journal, the commits come at random too.
"""

import random

import pytest

from mqttd.core.packets import (
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
)
from mqttd.core.properties import Properties
from tests.harness import FakeClient, Harness
from tests.spec.kit import props

COUNT = 40


def number(n: int) -> bytes:
    return n.to_bytes(2, "big")


class Peer:
    """A client with a persistent session that comes back after each cut."""

    def __init__(self, h: Harness, name: str, version: int, rng: random.Random) -> None:
        self.h = h
        self.name = name
        self.version = version
        self.rng = rng
        self.c: FakeClient = h.open(version)
        self.connected = False

    def wanted(self) -> Properties:
        return props(session_expiry_interval=10_000, receive_maximum=self.rng.choice((1, 3, 50)))

    def connect(self) -> None:
        self.c = self.h.client(
            self.name, self.version, clean=False, properties=self.wanted(), auto_ack=False
        )
        self.connected = True

    def step(self) -> None:
        raise NotImplementedError

    def cut(self) -> None:
        self.c.drop()
        self.connected = False


class Publisher(Peer):
    """Keeps at most three messages open; resends by the book when it comes back."""

    def __init__(self, h: Harness, version: int, qos: int, rng: random.Random) -> None:
        super().__init__(h, "publisher", version, rng)
        self.qos = qos
        self.sent = 0
        self.open: dict[int, Publish | Pubrel] = {}

    @property
    def done(self) -> bool:
        return self.sent == COUNT and not self.open

    def step(self) -> None:
        if not self.connected:
            self.connect()
            for packet in list(self.open.values()):
                if isinstance(packet, Publish):
                    packet.dup = True
                self.c.send(packet)
        elif self.sent < COUNT and len(self.open) < 3:
            packet_id = next(n for n in range(1, 9) if n not in self.open)
            publish = Publish("t", number(self.sent), self.qos, False, False, packet_id, b"")
            self.open[packet_id] = publish
            self.sent += 1
            self.c.send(publish)
        self.read()

    def read(self) -> None:
        for p in self.c.recv():
            if isinstance(p, Puback | Pubcomp):
                self.open.pop(p.packet_id, None)
            elif isinstance(p, Pubrec) and p.packet_id in self.open:
                rel = Pubrel(p.packet_id)
                del self.open[p.packet_id]
                self.open[p.packet_id] = rel
                self.c.send(rel)


class Subscriber(Peer):
    """Acknowledges when it feels like it; remembers what the application got."""

    def __init__(
        self, h: Harness, version: int, rng: random.Random, name: str = "subscriber"
    ) -> None:
        super().__init__(h, name, version, rng)
        self.got: list[bytes] = []
        self.unreleased: set[int] = set()
        self.due: list[Puback | Pubrec | Pubcomp] = []

    def step(self) -> None:
        if not self.connected:
            self.due.clear()
            self.connect()
        for p in self.c.recv():
            if isinstance(p, Publish):
                if p.qos < 2 or p.packet_id not in self.unreleased:
                    self.got.append(p.payload)
                if p.qos == 1:
                    self.due.append(Puback(p.packet_id))
                elif p.qos == 2:
                    self.unreleased.add(p.packet_id)
                    self.due.append(Pubrec(p.packet_id))
            elif isinstance(p, Pubrel):
                self.unreleased.discard(p.packet_id)
                self.due.append(Pubcomp(p.packet_id))
        for _ in range(self.rng.randrange(4)):
            if self.due:
                self.c.send(self.due.pop(0))


def run(version: int, qos: int, seed: int, durable: bool) -> list[bytes]:
    rng = random.Random(seed)
    h = Harness(durable=durable)
    sub = Subscriber(h, version, rng)
    sub.connect()
    pub = Publisher(h, version, qos, rng)
    pub.connect()
    sub.c.send(Subscribe(1, [Filter("t", qos, False, False, 0)]))
    h.commit()
    sub.c.expect(Suback)
    for _ in range(2000):
        rng.choice((pub, sub)).step()
        if rng.random() < 0.5:
            h.commit()
        if rng.random() < 0.08:
            peer: Peer = rng.choice((pub, sub))
            if peer.connected:
                peer.cut()
        if pub.done and len(sub.got) >= COUNT:
            break
    for _ in range(500):
        h.commit()
        pub.step()
        sub.step()
    assert pub.done
    assert h.broker.counters.bugs == 0
    assert h.broker.balance() == (0, 0)
    return sub.got


each_run = pytest.mark.parametrize("seed", range(20))
each_journal = pytest.mark.parametrize("durable", [False, True])


@pytest.mark.parametrize("version", [4, 5])
@each_journal
@each_run
def test_qos_2_arrives_exactly_once_and_in_order(version: int, seed: int, durable: bool) -> None:
    # [MQTT-4.3.3-10] [MQTT-4.4.0-1] [MQTT-4.6.0-5]
    assert run(version, 2, seed, durable) == [number(n) for n in range(COUNT)]


@pytest.mark.parametrize("version", [4, 5])
@each_journal
@each_run
def test_qos_1_arrives_at_least_once_and_in_order(version: int, seed: int, durable: bool) -> None:
    # [MQTT-4.3.2-3] [MQTT-4.4.0-1] [MQTT-4.6.0-5]
    got = run(version, 1, seed, durable)
    first = list(dict.fromkeys(got))
    assert first == [number(n) for n in range(COUNT)]


@pytest.mark.parametrize("qos", [1, 2])
@each_journal
@each_run
def test_a_shared_subscription_loses_nothing_and_doubles_no_qos_2(
    qos: int, seed: int, durable: bool
) -> None:
    # [MQTT-4.8.2-4] [MQTT-4.8.2-5] [MQTT-4.3.3-10]
    rng = random.Random(seed)
    h = Harness(durable=durable)
    members = [Subscriber(h, rng.choice((4, 5)), rng, f"member-{n}") for n in range(3)]
    for m in members:
        m.connect()
        m.c.send(Subscribe(1, [Filter("$share/g/t", qos, False, False, 0)]))
        h.commit()
    pub = Publisher(h, 5, qos, rng)
    for _ in range(1500):
        rng.choice((pub, *members)).step()
        if rng.random() < 0.5:
            h.commit()
        if rng.random() < 0.15:
            peer: Peer = rng.choice((pub, *members))
            if peer.connected:
                peer.cut()
    for _ in range(300):
        h.commit()
        for peer in (pub, *members):
            peer.step()
    got = [payload for m in members for payload in m.got]
    assert sorted(set(got)) == [number(n) for n in range(COUNT)]
    assert qos == 1 or len(got) == COUNT
    assert h.broker.balance() == (0, 0)
    assert h.broker.counters.bugs == 0
