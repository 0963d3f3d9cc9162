"""Flow control (4.9) and packet size: Receive Maximum and Maximum Packet Size, in both directions.

Also the reader that doesn't read: what is held for it is bounded, and nobody else waits.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Connect,
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsubscribe,
)
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    alive,
    by_hand,
    dropped,
    each_qos,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    refused,
    send_publish,
    settings,
    size_of,
)


def reader(h: Harness, window: int, qos: int = 1) -> FakeClient:
    """A subscriber of "t" with this Receive Maximum that acknowledges nothing by itself."""
    c = manual(h.client("reader", properties=props(receive_maximum=window)))
    c.subscribe("t", qos=qos)
    return c


def fill(h: Harness, count: int, qos: int = 1) -> None:
    pub = h.client("pub")
    for n in range(count):
        publish(pub, "t", bytes([n]), qos=qos)


def test_broker_announces_its_receive_maximum() -> None:
    # [MQTT-4.9.0-1]
    h = Harness(settings(receive_maximum=7))
    assert h.client("c").connack.properties.receive_maximum == 7


def test_client_may_fill_the_receive_maximum() -> None:
    # [MQTT-3.3.4-7]
    h = Harness(settings(receive_maximum=3))
    c = manual(h.client("c"))
    for n in (1, 2, 3):
        send_publish(c, "t", qos=2, packet_id=n)
    assert len(c.recv()) == 3
    assert alive(c)


def test_client_that_overruns_the_receive_maximum_is_disconnected() -> None:
    # [MQTT-3.3.4-7] [MQTT-4.13.1-1]
    h = Harness(settings(receive_maximum=3))
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    c = manual(h.client("c"))
    for n in (1, 2, 3, 4):
        send_publish(c, "t", bytes([n]), qos=2, packet_id=n)
    refused(c, (spec.RECEIVE_MAXIMUM_EXCEEDED,))
    assert payloads(sub) == [b"\x01", b"\x02", b"\x03"]


def test_qos_1_counts_until_its_puback_is_sent() -> None:
    # [MQTT-3.3.4-7]
    h = Harness(settings(receive_maximum=2), durable=True)
    sub = by_hand(h, "sub")
    sub.send(Subscribe(1, [Filter("t", 1, False, False, 0)]))
    h.commit()
    c = manual(h.client("c"))
    send_publish(c, "t", qos=1, packet_id=1)
    send_publish(c, "t", qos=2, packet_id=2)
    h.commit()
    assert [type(p) for p in c.recv()] == [Puback, Pubrec]
    send_publish(c, "t", qos=1, packet_id=3)
    assert not c.closed
    send_publish(c, "t", qos=1, packet_id=4)
    refused(c, (spec.RECEIVE_MAXIMUM_EXCEEDED,))


def test_receive_maximum_counts_the_publishes_of_this_connection_only() -> None:
    # [MQTT-4.9.0-1] [MQTT-3.3.4-7]
    h = Harness(settings(receive_maximum=3))
    c = by_hand(h, "c")
    for n in (1, 2, 3):
        send_publish(c, "t", qos=2, packet_id=n)
    c.drop()
    c = by_hand(h, "c")
    for n in (4, 5, 6):
        send_publish(c, "t", qos=2, packet_id=n)
    assert [p.packet_id for p in c.recv() if isinstance(p, Pubrec)] == [4, 5, 6]
    for n in (1, 2, 3):
        c.send(Pubrel(n))
    assert [p.reason for p in c.recv() if isinstance(p, Pubcomp)] == [0, 0, 0]
    assert alive(c)


def test_qos_0_is_no_part_of_the_receive_maximum() -> None:
    # [MQTT-3.3.4-8]
    h = Harness(settings(receive_maximum=1))
    c = manual(h.client("c"))
    send_publish(c, "t", qos=2, packet_id=1)
    for _ in range(5):
        send_publish(c, "t")
    assert alive(c)


def test_other_packets_pass_when_the_receive_maximum_is_filled() -> None:
    # [MQTT-3.3.4-8] [MQTT-4.9.0-3]
    h = Harness(settings(receive_maximum=1))
    c = manual(h.client("c"))
    send_publish(c, "t", qos=2, packet_id=1)
    c.expect(Pubrec)
    c.send(Subscribe(2, [Filter("u", 0, False, False, 0)]))
    c.expect(Suback)
    c.send(Pingreq())
    c.expect(Pingresp)
    c.send(Pubrel(1))
    c.expect(Pubcomp)


def test_completed_exchange_makes_room_for_another() -> None:
    # [MQTT-3.3.4-7]
    h = Harness(settings(receive_maximum=1))
    c = h.client("c")
    for n in range(1, 6):
        publish(c, "t", qos=2, packet_id=n)
        publish(c, "t", qos=1, packet_id=n)
    assert alive(c)


def test_repeated_qos_2_publish_counts_once() -> None:
    # [MQTT-3.3.4-7] [MQTT-4.3.3-10]
    h = Harness(settings(receive_maximum=1))
    c = manual(h.client("c"))
    for _ in range(3):
        send_publish(c, "t", qos=2, packet_id=1)
    assert [type(p) for p in c.recv()] == [Pubrec] * 3
    assert alive(c)


@pytest.mark.parametrize("version", [3, 4])
def test_older_client_knows_no_receive_maximum(version: int) -> None:
    # [MQTT-4.9.0-1]
    h = Harness(settings(receive_maximum=2))
    c = manual(h.client("c", version=version))
    for n in range(1, 6):
        send_publish(c, "t", qos=2, packet_id=n)
    assert [type(p) for p in c.recv()] == [Pubrec] * 5
    assert alive(c)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_window_of_the_client_is_never_exceeded(qos: int, window: int) -> None:
    # [MQTT-3.3.4-9] [MQTT-4.9.0-1] [MQTT-4.9.0-2]
    h = Harness()
    c = reader(h, window, qos)
    fill(h, window + 3, qos)
    assert len(messages(c)) == window


def test_each_puback_lets_one_more_out() -> None:
    # [MQTT-3.3.4-9] [MQTT-4.9.0-2]
    h = Harness()
    c = reader(h, 2)
    fill(h, 5)
    waiting = messages(c)
    for n in (2, 3, 4):
        c.send(Puback(waiting.pop(0).packet_id))
        fresh = one(c)
        assert fresh.payload == bytes([n])
        waiting.append(fresh)
    c.send(Puback(waiting[0].packet_id))
    c.expect_nothing()


def test_qos_2_gives_its_place_back_at_pubcomp() -> None:
    # [MQTT-4.9.0-2]
    h = Harness()
    c = reader(h, 1, qos=2)
    fill(h, 2, qos=2)
    first = c.expect(Publish)
    c.send(Pubrec(first.packet_id))
    c.expect(Pubrel)
    c.expect_nothing()
    c.send(Pubcomp(first.packet_id))
    assert c.expect(Publish).payload == b"\x01"


def test_error_pubrec_gives_the_place_back() -> None:
    # [MQTT-4.9.0-2] [MQTT-4.4.0-2]
    h = Harness()
    c = reader(h, 1, qos=2)
    fill(h, 2, qos=2)
    c.send(Pubrec(c.expect(Publish).packet_id, spec.UNSPECIFIED_ERROR))
    assert c.expect(Publish).payload == b"\x01"


@pytest.mark.parametrize("ack", [Puback, Pubcomp])
def test_acknowledging_twice_gives_no_second_place(ack: type[Puback] | type[Pubcomp]) -> None:
    # [MQTT-4.9.0-1]
    h = Harness()
    c = reader(h, 1)
    fill(h, 4)
    first = c.expect(Publish)
    c.send(Puback(first.packet_id))
    c.expect(Publish)
    c.send(ack(first.packet_id + 7))
    c.send(ack(first.packet_id + 8))
    c.expect_nothing()


def test_qos_0_passes_a_full_window() -> None:
    # [MQTT-3.3.4-10] [MQTT-4.9.0-3]
    h = Harness()
    c = reader(h, 1)
    fill(h, 2)
    c.expect(Publish)
    c.subscribe("free")
    publish(h.client("other"), "free", b"qos 0")
    assert payloads(c) == [b"qos 0"]


def test_other_packets_pass_a_full_window() -> None:
    # [MQTT-3.3.4-10] [MQTT-4.9.0-3]
    h = Harness()
    c = reader(h, 1, qos=2)
    fill(h, 2, qos=2)
    first = c.expect(Publish)
    send_publish(c, "other", qos=1, packet_id=50)
    c.expect(Puback)
    c.send(Pingreq())
    c.expect(Pingresp)
    c.send(Subscribe(51, [Filter("u", 0, False, False, 0)]))
    c.expect(Suback)
    c.send(Pubrec(first.packet_id))
    c.expect(Pubrel)


@each_version
def test_own_limit_of_the_broker_holds_too(version: int) -> None:
    # [MQTT-4.9.0-1]
    h = Harness(settings(max_inflight=3))
    c = manual(h.client("c", version=version))
    c.subscribe("t", qos=1)
    fill(h, 5)
    first = messages(c)
    assert len(first) == 3
    c.send(Puback(first[0].packet_id))
    assert one(c).payload == b"\x03"


def test_the_smaller_of_both_limits_counts() -> None:
    # [MQTT-3.3.4-9]
    h = Harness(settings(max_inflight=3))
    c = reader(h, 2)
    fill(h, 5)
    assert len(messages(c)) == 2


def test_new_connection_starts_with_a_full_quota() -> None:
    # [MQTT-4.9.0-1]
    h = Harness()
    sub = by_hand(h, "sub", receive_maximum=2)
    sub.subscribe("t", qos=2)
    fill(h, 3, qos=2)
    for m in messages(sub):
        sub.send(Pubrec(m.packet_id))
    sub.drop()
    sub = by_hand(h, "sub", receive_maximum=3)
    got = sub.recv()
    assert len([p for p in got if isinstance(p, Pubrel)]) == 2
    assert [p.payload for p in got if isinstance(p, Publish)] == [b"\x02"]


def room(topic: str, qos: int, size: int) -> int:
    """The payload length that makes a delivered PUBLISH exactly `size` bytes."""
    base = size_of(Publish(topic, b"", qos, False, False, 1 if qos else 0, b""))
    length = size - base - 1 if size - base > 126 else size - base
    while size_of(Publish(topic, b"x" * length, qos, False, False, qos and 1, b"")) != size:
        length += 1
        assert length <= size
    return length


@each_qos
@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("limit", [100, 1000])
def test_largest_packet_the_client_takes(qos: int, over: int, limit: int) -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-25]
    h = Harness()
    sub = h.client("sub", properties=props(maximum_packet_size=limit))
    sub.subscribe("t", qos=qos)
    payload = b"x" * room("t", qos, limit + over)
    assert publish(h.client("pub"), "t", payload, qos=qos) < 0x80
    if over > 0:
        assert messages(sub) == []
        assert h.broker.counters.dropped == {"packet_too_large": 1}
    else:
        assert size_of(one(sub)) == limit + over
        assert dropped(h) == 0


@pytest.mark.parametrize("over", [0, 1])
def test_properties_count_towards_the_packet_size(over: int) -> None:
    # [MQTT-3.1.2-24]
    raw = b"\x26\x00\x01k\x00\x01v"
    delivered = Publish(
        "t", b"x" * 20, 1, False, False, 1, raw, message_expiry=9, subscription_ids=[300]
    )
    h = Harness()
    sub = h.client("sub", properties=props(maximum_packet_size=size_of(delivered) - over))
    sub.subscribe("t", qos=1, identifier=300)
    publish(h.client("pub"), "t", b"x" * 20, qos=1, properties=raw, expiry=9)
    assert len(messages(sub)) == 1 - over
    assert dropped(h) == over


@pytest.mark.parametrize("qos", [1, 2])
def test_message_too_large_counts_as_delivered_and_frees_its_place(qos: int) -> None:
    # [MQTT-3.1.2-25]
    h = Harness()
    limits = props(maximum_packet_size=100, receive_maximum=1)
    sub = manual(h.client("sub", properties=limits))
    sub.subscribe("t", qos=qos)
    pub = h.client("pub")
    for _n in range(3):
        publish(pub, "t", b"x" * 200, qos=qos)
    publish(pub, "t", b"small", qos=qos)
    assert one(sub).payload == b"small"
    assert h.broker.counters.dropped == {"packet_too_large": 3}


def test_message_too_large_for_one_reaches_the_others() -> None:
    # [MQTT-3.1.2-25]
    h = Harness()
    small = h.client("small", properties=props(maximum_packet_size=100))
    large, old = h.client("large"), h.client("old", version=4)
    for c in (small, large, old):
        c.subscribe("t", qos=1)
    publish(h.client("pub"), "t", b"x" * 200, qos=1)
    assert [len(messages(c)) for c in (small, large, old)] == [0, 1, 1]
    assert alive(small)


def test_queued_message_too_large_for_the_returning_client_is_dropped() -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-25]
    h = Harness()
    sub = persistent(h, "sub")
    sub.subscribe("t", qos=1)
    sub.drop()
    pub = h.client("pub")
    publish(pub, "t", b"x" * 200, qos=1)
    publish(pub, "t", b"small", qos=1)
    assert payloads(persistent(h, "sub", maximum_packet_size=100)) == [b"small"]
    assert h.broker.counters.dropped == {"packet_too_large": 1}


def test_retained_message_too_large_is_not_replayed() -> None:
    # [MQTT-3.1.2-24]
    h = Harness()
    pub = h.client("pub")
    publish(pub, "a/1", b"x" * 200, qos=1, retain=True)
    publish(pub, "a/2", b"small", qos=1, retain=True)
    sub = h.client("sub", properties=props(maximum_packet_size=100))
    sub.subscribe("a/+", qos=1)
    assert payloads(sub) == [b"small"]
    assert h.broker.counters.dropped == {"packet_too_large": 1}


def test_suback_that_cannot_fit_never_goes_out_too_large() -> None:
    # [MQTT-3.1.2-24]
    h = Harness()
    c = h.client("c", properties=props(maximum_packet_size=50))
    c.send(Subscribe(1, [Filter(f"t/{n}", 0, False, False, 0) for n in range(200)]))
    assert all(size_of(p) <= 50 for p in c.recv())


def test_unsuback_that_cannot_fit_never_goes_out_too_large() -> None:
    # [MQTT-3.1.2-24]
    h = Harness()
    c = h.client("c", properties=props(maximum_packet_size=50))
    c.send(Unsubscribe(1, [f"t/{n}" for n in range(200)]))
    assert all(size_of(p) <= 50 for p in c.recv())


@pytest.mark.parametrize("limit", range(1, 40))
def test_nothing_larger_than_the_smallest_limits_is_sent(limit: int) -> None:
    # [MQTT-3.1.2-24] [MQTT-3.2.2-19] [MQTT-3.2.2-20]
    h = Harness()
    c = h.open()
    wanted = props(maximum_packet_size=limit)
    c.send(Connect("MQTT", 5, True, 0, "", None, None, None, wanted))
    if not c.closed:
        c.send(Subscribe(1, [Filter("a/#/b", 0, False, False, 0)]))
    assert all(size_of(p) <= limit for p in c.recv())


def test_broker_announces_its_maximum_packet_size() -> None:
    # [MQTT-3.2.2-15]
    h = Harness(settings(max_packet_size=5000))
    assert h.client("c").connack.properties.maximum_packet_size == 5000


@each_version
@each_qos
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_largest_packet_the_broker_takes(version: int, qos: int, over: int) -> None:
    # [MQTT-3.2.2-15]
    h = Harness(settings(max_packet_size=1000))
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    c = h.client("c", version=version)
    padding = 0
    while size_of(Publish("t", b"x" * padding, qos, False, False, qos and 1, b""), version) < (
        1000 + over
    ):
        padding += 1
    send_publish(c, "t", b"x" * padding, qos=qos)
    if over > 0:
        refused(c, (spec.PACKET_TOO_LARGE,))
        assert messages(sub) == []
    else:
        assert len(messages(sub)) == 1
        assert alive(c)


@each_version
def test_qos_0_for_a_full_write_buffer_is_dropped_and_counted(version: int) -> None:
    h = Harness(settings(write_buffer=10_000))
    slow, fast = h.client("slow", version=version), h.client("fast", version=version)
    slow.subscribe("t")
    fast.subscribe("t")
    slow.pause()
    pub = h.client("pub")
    for _ in range(50):
        publish(pub, "t", b"x" * 1000)
    assert len(messages(fast)) == 50
    lost = h.broker.counters.dropped["slow_reader"]
    assert 35 <= lost < 50
    slow.resume()
    assert len(messages(slow)) == 50 - lost


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_qos_1_and_2_wait_for_a_reader_that_lags(version: int, qos: int) -> None:
    # [MQTT-4.5.0-1]
    h = Harness(settings(write_buffer=10_000, max_inflight=5))
    slow = h.client("slow", version=version)
    slow.subscribe("t", qos=qos)
    slow.pause()
    pub = h.client("pub")
    for n in range(50):
        publish(pub, "t", bytes([n]) * 1000, qos=qos)
    slow.resume()
    assert [m.payload[0] for m in messages(slow)] == list(range(50))
    assert dropped(h) == 0


def test_reader_that_lags_for_ever_costs_no_more_than_its_bounds() -> None:
    h = Harness(settings(write_buffer=10_000, max_inflight=5, max_queued_messages=10))
    slow = h.client("slow")
    slow.subscribe("t", qos=1)
    slow.pause()
    pub = h.client("pub")
    for _ in range(50):
        publish(pub, "t", b"x" * 1000, qos=1)
    kept = 50 - h.broker.counters.dropped["queue_full"]
    assert 10 <= kept <= 15
    slow.resume()
    assert len(messages(slow)) == kept


def test_answers_reach_a_reader_that_lagged() -> None:
    # [MQTT-4.9.0-3]
    h = Harness(settings(write_buffer=2000))
    slow = manual(h.client("slow"))
    slow.subscribe("t")
    slow.pause()
    pub = h.client("pub")
    for _ in range(20):
        publish(pub, "t", b"x" * 1000)
    slow.send(Pingreq())
    send_publish(slow, "other", qos=1, packet_id=5)
    slow.resume()
    got = slow.recv()
    assert [type(p) for p in got if not isinstance(p, Publish)] == [Pingresp, Puback]
