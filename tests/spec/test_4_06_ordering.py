"""Message ordering (4.6): per publisher, topic and QoS, whatever the reader does meanwhile."""

import pytest

from mqttd.core.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    by_hand,
    each_qos,
    each_version,
    manual,
    messages,
    payloads,
    props,
    publish,
    send_publish,
)

COUNT = 30


def number(n: int) -> bytes:
    return n.to_bytes(2, "big")


NUMBERS = [number(n) for n in range(COUNT)]


def read_all(c: FakeClient) -> list[bytes]:
    """Everything that comes while the test acknowledges by hand, one packet at a time."""
    got: list[bytes] = []
    while packets := c.recv():
        for p in packets:
            if isinstance(p, Publish):
                got.append(p.payload)
                if p.qos == 1:
                    c.send(Puback(p.packet_id))
                elif p.qos == 2:
                    c.send(Pubrec(p.packet_id))
            elif isinstance(p, Pubrel):
                c.send(Pubcomp(p.packet_id))
    return got


@each_version
@each_qos
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_messages_arrive_in_the_order_sent(version: int, qos: int, granted: int) -> None:
    # [MQTT-4.6.0-5] [MQTT-4.6.0-6]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=granted)
    pub = h.client("pub", version=version)
    for n in range(COUNT):
        publish(pub, "t", number(n), qos=qos)
    assert payloads(sub) == NUMBERS


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_order_holds_when_publishes_are_pipelined(version: int, qos: int) -> None:
    # [MQTT-4.6.0-5]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = manual(h.client("pub", version=version))
    for n in range(COUNT):
        send_publish(pub, "t", number(n), qos=qos, packet_id=n + 1)
    for n in reversed(range(COUNT)):
        if qos == 2:
            pub.send(Pubrel(n + 1))
    assert payloads(sub) == NUMBERS


@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("qos", [1, 2])
def test_order_holds_through_a_small_window(qos: int, window: int) -> None:
    # [MQTT-4.6.0-5] [MQTT-4.9.0-2]
    h = Harness()
    sub = manual(h.client("sub", properties=props(receive_maximum=window)))
    sub.subscribe("t", qos=qos)
    pub = h.client("pub")
    for n in range(COUNT):
        publish(pub, "t", number(n), qos=qos)
    assert read_all(sub) == NUMBERS


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_order_holds_when_acknowledged_backwards(version: int, qos: int) -> None:
    # [MQTT-4.6.0-5]
    h = Harness()
    sub = by_hand(h, "sub", version)
    sub.subscribe("t", qos=qos)
    pub = h.client("pub", version=version)
    for n in range(4):
        publish(pub, "t", number(n), qos=qos)
    first = messages(sub)
    for m in reversed(first[2:]):
        sub.send(Puback(m.packet_id) if qos == 1 else Pubrec(m.packet_id))
    sub.drop()
    again = by_hand(h, "sub", version)
    assert [m.payload for m in messages(again)] == NUMBERS[:2]


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_order_holds_across_absence_and_return(version: int, qos: int) -> None:
    # [MQTT-4.6.0-5] [MQTT-4.4.0-1]
    h = Harness()
    sub = by_hand(h, "sub", version)
    sub.subscribe("t", qos=qos)
    pub = h.client("pub", version=version)
    for n in range(10):
        publish(pub, "t", number(n), qos=qos)
    assert len(messages(sub)) == 10
    sub.drop()
    for n in range(10, 20):
        publish(pub, "t", number(n), qos=qos)
    sub = by_hand(h, "sub", version)
    for n in range(20, COUNT):
        publish(pub, "t", number(n), qos=qos)
    assert read_all(sub) == NUMBERS


@each_version
@each_qos
def test_order_holds_for_a_reader_that_pauses(version: int, qos: int) -> None:
    # [MQTT-4.6.0-5]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = h.client("pub", version=version)
    for n in range(COUNT):
        if n % 10 == 3:
            sub.pause()
        if n % 10 == 8:
            sub.resume()
        publish(pub, "t", number(n), qos=qos)
    assert payloads(sub) == NUMBERS


def test_qos_0_and_qos_1_keep_their_own_order_side_by_side() -> None:
    # [MQTT-4.6.0-5]
    h = Harness()
    sub = manual(h.client("sub", properties=props(receive_maximum=2)))
    sub.subscribe("t", qos=1)
    pub = h.client("pub")
    for n in range(COUNT):
        publish(pub, "t", number(n), qos=n % 2)
    got = read_all(sub)
    assert sorted(got) == NUMBERS
    assert [p for p in got if p[1] % 2 == 0] == NUMBERS[0::2]
    assert [p for p in got if p[1] % 2 == 1] == NUMBERS[1::2]


@each_qos
def test_order_holds_per_publisher_when_two_interleave(qos: int) -> None:
    # [MQTT-4.6.0-5]
    h = Harness()
    sub = manual(h.client("sub", properties=props(receive_maximum=3)))
    sub.subscribe("t", qos=qos)
    pubs = [h.client("p0"), h.client("p1")]
    for n in range(COUNT):
        publish(pubs[n * 7 % 2], "t", number(n), qos=qos)
    got = read_all(sub)
    assert [p for p in got if p[1] * 7 % 2 == 0] == [p for p in NUMBERS if p[1] * 7 % 2 == 0]
    assert [p for p in got if p[1] * 7 % 2 == 1] == [p for p in NUMBERS if p[1] * 7 % 2 == 1]


def test_order_holds_across_overlapping_subscriptions() -> None:
    # [MQTT-4.6.0-5] [MQTT-3.3.4-2]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("a/#", qos=0)
    sub.subscribe("a/+", qos=2)
    pub = h.client("pub")
    for n in range(COUNT):
        publish(pub, "a/b", number(n), qos=1)
    assert payloads(sub) == NUMBERS


def test_order_holds_when_aliases_come_into_play() -> None:
    # [MQTT-4.6.0-5]
    h = Harness()
    sub = h.client("sub", properties=props(topic_alias_maximum=1))
    sub.subscribe("#", qos=1)
    pub = h.client("pub")
    for n in range(COUNT):
        publish(pub, "one" if n % 3 else "two", number(n), qos=1)
    assert payloads(sub) == NUMBERS


@each_version
def test_acknowledgements_go_in_the_order_of_the_publishes(version: int) -> None:
    # [MQTT-4.6.0-2] [MQTT-4.6.0-3]
    h = Harness()
    pub = manual(h.client("pub", version=version))
    order = [5, 3, 9, 1, 7]
    for packet_id in order:
        send_publish(pub, "t", qos=1, packet_id=packet_id)
        send_publish(pub, "t", qos=2, packet_id=packet_id + 100)
    got = pub.recv()
    assert [p.packet_id for p in got if isinstance(p, Puback)] == order
    assert [p.packet_id - 100 for p in got if isinstance(p, Pubrec)] == order


@each_version
def test_pubrels_go_in_the_order_of_the_pubrecs(version: int) -> None:
    # [MQTT-4.6.0-4]
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=2)
    pub = h.client("pub", version=version)
    for n in range(4):
        publish(pub, "t", number(n), qos=2)
    ids = [m.packet_id for m in messages(sub)]
    order = [ids[2], ids[0], ids[3], ids[1]]
    for packet_id in order:
        sub.send(Pubrec(packet_id))
    assert [p.packet_id for p in sub.recv() if isinstance(p, Pubrel)] == order
