"""Ways in which brokers were broken, tried on ours: memory, floods, readers that don't read.

The third part of test_hostile; each test bears the name of the report it comes from.
"""

import tracemalloc

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Filter,
    Pingreq,
    Publish,
    Pubrel,
    Suback,
    Subscribe,
    Will,
)
from tests.harness import Harness
from tests.hostile_kit import attacker, growth
from tests.spec import raw
from tests.spec.kit import (
    alive,
    dropped,
    each_version,
    messages,
    one,
    persistent,
    props,
    publish,
    refused,
    send_publish,
    settings,
)


def test_smqtt_28_sessions_of_unique_client_ids_end() -> None:
    """smqtt #28, amqtt #14 and #123, hbmqtt #237: persistent sessions without end."""
    h = Harness(settings(session_expiry_max=100))
    nodes = h.broker.trie.node_count
    for n in range(300):
        c = persistent(h, f"unique-{n}", session_expiry_interval=2**32 - 1)
        assert c.connack.properties is not None
        assert c.connack.properties.session_expiry_interval == 100
        c.subscribe(f"t/{n}", qos=1)
        c.drop()
    assert len(h.broker.sessions) == 300
    h.advance(101)
    assert not h.broker.sessions
    assert h.broker.trie.node_count == nodes


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_cve_2026_95845_queue_of_a_session_is_bounded(overflow: str) -> None:
    """CVE-2026-95845: a per-session queue without a bound."""
    h = Harness(settings(max_queued_messages=50, queue_overflow=overflow))
    sub = persistent(h, "sub")
    sub.subscribe("t", qos=1)
    sub.drop()
    pub = h.client("pub")
    for _ in range(500):
        publish(pub, "t", qos=1)
    assert h.broker.balance() == (50, 0)
    assert h.broker.counters.dropped == {"queue_full": 450}


def test_moquette_141_buffer_of_a_reader_that_stopped_is_bounded() -> None:
    """moquette #141, #423, Harper #1566, zMQTT #33: the outgoing buffer grows for ever."""
    h = Harness(settings(write_buffer=10_000, max_inflight=10, max_queued_messages=20))
    slow = h.client("slow")
    slow.subscribe("#", qos=1)
    slow.pause()
    pub = h.client("pub")
    for n in range(1000):
        publish(pub, "t", b"x" * 100, qos=n % 2)
    waiting = len(slow.raw)
    slow.resume()
    assert len(slow.raw) - waiting < 10_000 + 30 * 200


@pytest.mark.parametrize("question", ["PINGREQ", "PUBLISH", "SUBSCRIBE", "PUBREL"])
def test_answers_to_a_client_that_does_not_read_are_bounded(question: str) -> None:
    """moquette #141 from the other side: a client asks for ever and reads no answer. The transport
    stops reading from it once `backlog` exceeds the write buffer, so the backlog has to tell."""
    h = Harness(settings(write_buffer=10_000))
    slow = attacker(h)
    slow.pause()
    packets = {
        "PINGREQ": Pingreq(),
        "PUBLISH": Publish("t", b"", 1, False, False, 1, b""),
        "SUBSCRIBE": Subscribe(1, [Filter("t", 0, False, False, 0)]),
        "PUBREL": Pubrel(1),
    }
    for _ in range(20_000):
        if slow.connection.backlog() > 10_000:
            break
        slow.send(packets[question])
    before = len(slow.raw)
    slow.resume()
    assert 10_000 < len(slow.raw) - before < 10_100


def test_rmqtt_495_session_churn_leaves_nothing_behind() -> None:
    """rmqtt #495: queues of ended sessions are removed, what they held is not."""
    h = Harness()
    pub = h.client("pub")
    turn = iter(range(10**9))

    def attack() -> None:
        n = next(turn) % 20
        c = persistent(h, f"churn-{n}", session_expiry_interval=5)
        c.subscribe("t", qos=1)
        c.drop()
        publish(pub, "t", b"x" * 100, qos=1)
        pub.raw.clear()
        h.advance(1)

    assert growth(h, attack, 300) < 60
    h.advance(10)
    assert len(h.broker.sessions) == 1
    assert h.broker.balance() == (0, 0)


def test_mosquitto_2887_retained_replay_is_paced_and_complete() -> None:
    """mosquitto #2887: many retained messages to a slow subscriber are dropped by the queue cap."""
    h = Harness(settings(max_queued_messages=10, max_inflight=5, write_buffer=2000))
    pub = h.client("pub")
    for n in range(3000):
        publish(pub, f"t/{n}", b"x", qos=1, retain=True)
    sub = h.client("sub")
    sub.subscribe("t/#", qos=1)
    assert len({m.topic for m in messages(sub)}) == 3000
    assert dropped(h) == 0


def test_retained_flood_expired_messages_are_swept() -> None:
    """Retained flood: retained messages on endless new topics; the expired ones free their room."""
    h = Harness()
    pub = h.client("pub")
    for n in range(1000):
        publish(pub, f"flood/{n}", b"x", retain=True, expiry=10)
    publish(pub, "kept", b"x", retain=True)
    assert h.broker.retained.count == 1001
    h.advance(3600)
    assert h.broker.retained.count == 1


def test_will_delay_flood_is_bounded_by_the_session() -> None:
    """Will-delay flood: large wills with the longest delay there is."""
    h = Harness(settings(session_expiry_max=100))
    sub = h.client("sub")
    sub.subscribe("will")
    will = Will("will", b"w" * 1000, 0, False, 2**32 - 2, -1, b"")
    for n in range(100):
        wanted = props(session_expiry_interval=2**32 - 1)
        h.client(f"c{n}", clean=False, will=will, properties=wanted).drop()
    h.advance(101)
    assert len(messages(sub)) == 100
    assert len(h.broker.sessions) == 1


def test_subscription_bomb_frees_the_tree() -> None:
    """Subscription bomb: one client with very many filters."""
    h = Harness(settings(max_subscriptions=1000))
    nodes = h.broker.trie.node_count
    c = h.client("bomber")
    for n in range(20):
        filters = [Filter(f"a/{n}/{m}/+/#", 0, False, False, 0) for m in range(100)]
        c.send(Subscribe(1, filters))
    codes = [code for p in c.recv() if isinstance(p, Suback) for code in p.reasons]
    assert codes == [0] * 1000 + [spec.QUOTA_EXCEEDED] * 1000
    c.drop()
    assert h.broker.trie.node_count == nodes


def test_overlap_bomb_is_one_copy() -> None:
    """Overlap bomb: a PUBLISH that matches thousands of filters of one client."""
    h = Harness()
    c = h.client("bomber")
    topic = "/".join("abcdefghijk")
    for mask in range(2048):
        levels = ["+" if mask >> n & 1 else level for n, level in enumerate("abcdefghijk")]
        c.subscribe("/".join(levels), identifier=mask + 1)
    publish(h.client("pub"), topic, b"m")
    got = one(c)
    assert got.payload == b"m"
    assert sorted(got.subscription_ids) == list(range(1, 2049))


def test_alias_table_is_small_by_default() -> None:
    """Alias table: 65 535 aliases, each with a topic of 64 KiB."""
    h = Harness()
    c = attacker(h)
    assert c.connack.properties is not None
    maximum = c.connack.properties.topic_alias_maximum
    assert maximum is not None
    assert maximum <= 64
    for alias in range(1, maximum + 1):
        send_publish(c, "x" * 60_000, alias=alias)
    assert alive(c)
    send_publish(c, "x", alias=maximum + 1)
    refused(c, (spec.TOPIC_ALIAS_INVALID,))


@each_version
def test_subscription_to_many_filters_in_one_packet(version: int) -> None:
    """Subscription bomb: 10 000 filters in one SUBSCRIBE are answered one by one."""
    h = Harness(settings(max_subscriptions=100))
    c = h.client("c", version=version)
    c.send(Subscribe(1, [Filter(f"t/{n}", 0, False, False, 0) for n in range(10_000)]))
    (ack,) = c.recv()
    assert isinstance(ack, Suback)
    assert ack.reasons[:100] == [0] * 100
    assert set(ack.reasons[100:]) == {spec.QUOTA_EXCEEDED if version == 5 else 0x80}


def test_mochi_502_default_packet_limit() -> None:
    """mochi #502: no packet limit by default, so that ten connections may announce 256 MB each."""
    h = Harness()
    assert 0 < h.broker.settings.max_packet_size <= 16 * 1024 * 1024
    for _ in range(10):
        c = attacker(h)
        c.send_raw(b"\x30\xff\xff\xff\x7f")
        refused(c, (spec.PACKET_TOO_LARGE,))


def test_mochi_502_buffers_grow_by_what_arrives() -> None:
    """mochi #502: an announced megabyte of which nothing comes costs nothing."""
    h = Harness()
    clients = [h.client(f"c{n}") for n in range(50)]
    tracemalloc.start()
    for c in clients:
        c.send_raw(b"\x30" + raw.varint(1_000_000) + b"\x00\x01t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert not any(c.closed for c in clients)
