"""The broker: who gets a message, what is kept for later, and what is written down."""

import pytest

from mqttd.core import counters as count
from mqttd.core import journal as j
from mqttd.core import spec
from mqttd.core.packets import (
    Connack,
    Connect,
    Filter,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqttd.core.registry import INFINITY
from mqttd.core.settings import NEVER
from tests.core.rig import make_message, make_settings
from tests.core.vectors import props
from tests.harness import FakeClient, Harness


def payloads(client: FakeClient) -> list[bytes]:
    return [packet.payload for packet in client.messages()]


def kinds(h: Harness) -> list[int]:
    """The operations of everything journalled since the last look, committed."""
    batch = h.broker.take_batch()
    if batch is None:
        return []
    h.broker.committed(batch.seq, h.now)
    return [op.kind for op in batch.ops]


# Who gets a message.


@pytest.mark.parametrize("message_expiry", [-1, 60])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_message_reaches_every_version(version: int, message_expiry: int) -> None:
    """Frames of the sender's version are passed on as they came, others are made."""
    h = Harness()
    readers = [h.client(f"r{number}", version=number) for number in (3, 4, 5)]
    for reader in readers:
        reader.subscribe("t")
    readers[2].subscribe("t", identifier=9)
    publisher = h.client("p", version=version)
    publisher.publish("t", b"x", message_expiry=message_expiry if version == 5 else -1)
    found = [reader.messages() for reader in readers]
    assert [[packet.payload for packet in each] for each in found] == [[b"x"]] * 3
    assert found[2][0].subscription_ids == [9]
    assert h.broker.counters.matched == h.broker.counters.delivered == 3


@pytest.mark.parametrize("qos", [0, 1])
def test_no_local_keeps_a_message_from_its_publisher(qos: int) -> None:
    """[MQTT-3.8.3-3]"""
    h = Harness()
    client, other = h.client("c"), h.client("other")
    client.subscribe("t", qos=1, no_local=True)
    other.subscribe("t", qos=1, no_local=True)
    client.publish("t", b"x", qos=qos)
    assert payloads(client) == []
    assert payloads(other) == [b"x"]
    assert h.broker.counters.matched == h.broker.counters.delivered == 1


@pytest.mark.parametrize("qos", [0, 1])
def test_of_overlapping_subscriptions_those_without_no_local_count(qos: int) -> None:
    """[MQTT-3.8.3-3] [MQTT-3.3.4-2]"""
    h = Harness()
    client = h.client("c")
    client.subscribe("t", qos=1, no_local=True, identifier=1)
    client.subscribe("+", qos=0, identifier=2)
    client.publish("t", b"own", qos=qos)
    h.client("p").publish("t", b"others", qos=qos)
    own, others = client.messages()
    assert (own.qos, own.subscription_ids) == (0, [2])
    assert (others.qos, others.subscription_ids) == (qos, [1, 2])


@pytest.mark.parametrize("qos", [0, 1])
def test_groups_and_single_readers_each_get_their_copy(qos: int) -> None:
    """[MQTT-4.8.2-1]"""
    h = Harness()
    single, member, older = h.client("single"), h.client("member"), h.client("older", version=4)
    single.subscribe("t", qos=qos)
    older.subscribe("t", qos=qos)
    member.subscribe("$share/g/t", qos=qos)
    member.subscribe("$share/h/t", qos=qos)
    h.client("p").publish("t", b"x", qos=qos)
    assert payloads(single) == payloads(older) == [b"x"]
    assert payloads(member) == [b"x", b"x"]
    single.unsubscribe("t")
    older.unsubscribe("t")
    h.client("q").publish("t", b"y", qos=qos)
    assert payloads(member) == [b"y", b"y"]


def test_the_broker_publishes_on_its_own_behalf() -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("$SYS/#")
    message = make_message(b"1", 0, topic="$SYS/uptime", retain=True, origin="")
    assert h.broker.publish(message, h.now) == 1
    assert h.broker.publish(make_message(b"2", 0, topic="nobody"), h.now) == 0
    h.flush()
    assert payloads(reader) == [b"1"]
    assert h.broker.retained.get("$SYS/uptime") is message


# Retained messages.


def test_an_empty_payload_clears_what_was_retained() -> None:
    """[MQTT-3.3.1-6] [MQTT-3.3.1-7]"""
    h = Harness(durable=True)
    broker = h.broker
    assert broker.retain(make_message(b"", retain=True)) == 0
    assert broker.retain(make_message(b"x", retain=True)) == 1
    assert broker.retain(make_message(b"", retain=True)) == 1
    assert broker.retain(make_message(b"", retain=True)) == 1  # not yet gone for good
    assert kinds(h) == [j.RETAINED_SAVE, j.RETAINED_DROP]
    assert broker.retained.count == 0
    assert broker.retain(make_message(b"", retain=True)) == 1
    assert broker.journal.committed == 1


def test_expired_retained_messages_are_swept_and_their_rows_too() -> None:
    """[MQTT-3.3.2-5]"""
    h = Harness(durable=True)
    publisher = h.client("p")
    assert h.broker.next_deadline() == INFINITY
    publisher.publish("a", b"x", retain=True, message_expiry=5)
    publisher.publish("b", b"x", retain=True)
    assert h.broker.next_deadline() < INFINITY
    h.advance(4.0)
    assert h.broker.retained.count == 2
    kinds(h)
    h.advance(3.0)
    assert h.broker.retained.count == 1
    assert kinds(h) == [j.RETAINED_DROP]
    assert h.broker.next_deadline() == INFINITY


def test_the_nearer_of_a_sweep_and_a_session_is_the_next_deadline() -> None:
    h = Harness()
    h.client("p").publish("a", b"x", retain=True, message_expiry=500)
    h.broker.handle_timeout(h.now)
    assert h.broker.next_deadline() == 1001.0
    h.now = 1000.5
    h.client("c", expiry=0, will=Will("w")).drop()
    client = h.client("c", expiry=1)
    h.now = 999.5
    client.drop()
    assert h.broker.next_deadline() == 1000.5


# Subscriptions.


@pytest.mark.parametrize(
    ("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)], ids=["0", "1", "2"]
)
def test_retain_handling(handling: int, first: int, again: int) -> None:
    """[MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]"""
    h = Harness()
    h.client("p").publish("t", b"x", retain=True)
    client = h.client("c")
    client.subscribe("t", retain_handling=handling)
    assert len(client.messages()) == first
    client.subscribe("t", retain_handling=handling)
    assert len(client.messages()) == again


def test_a_session_has_a_bound_on_its_subscriptions() -> None:
    client = Harness(make_settings(max_subscriptions=2)).client("c")
    client.send(Subscribe(1, [Filter("a"), Filter("b"), Filter("c"), Filter("a", 1)]))
    assert client.expect(Suback).reasons == [0, 0, spec.QUOTA_EXCEEDED, 1]
    client.unsubscribe("b")
    assert client.subscribe("c").reasons == [0]


def test_a_filter_with_too_many_levels_is_refused_alone() -> None:
    client = Harness(make_settings(max_topic_levels=2)).client("c")
    client.send(Subscribe(1, [Filter("a/b/c"), Filter("$share/g/a/b"), Filter("$share/g/a/b/c")]))
    invalid = spec.TOPIC_FILTER_INVALID
    assert client.expect(Suback).reasons == [invalid, 0, invalid]


def test_unsubscribing_says_what_was_there() -> None:
    """[MQTT-3.10.4-1] [MQTT-3.11.3-1]"""
    client = Harness().client("c")
    client.subscribe("a")
    client.subscribe("$share/g/a")
    client.subscribe("$share/h/a")
    client.send(Unsubscribe(1, ["a", "$share/g/a", "$share/h/a", "a"]))
    gone = spec.NO_SUBSCRIPTION_EXISTED
    assert client.expect(Unsuback).reasons == [0, 0, 0, gone]
    client.publish("a", b"x")
    client.expect_nothing()


def test_unsubscribing_ends_a_replay() -> None:
    """[MQTT-3.10.4-2]"""
    h = Harness()
    publisher = h.client("p")
    for number in range(5):
        publisher.publish(f"t/{number}", b"%d" % number, qos=1, retain=True)
    client = h.client("c", receive_maximum=2, auto_ack=False)
    client.subscribe("t/+", qos=1)
    assert len(client.messages()) == 2
    client.unsubscribe("t/+")
    client.send(Puback(1))
    client.expect_nothing()
    assert not h.broker.ready


def test_a_group_that_its_session_no_longer_counts_ends_as_well() -> None:
    h = Harness()
    client = h.client("c")
    client.subscribe("$share/g/t", 1)
    h.broker.sessions["c"].grouped = None
    assert client.unsubscribe("$share/g/t").reasons == [0]
    assert h.broker.trie.node_count == 0


def test_a_group_ends_with_its_last_member_and_keeps_its_queue_till_then() -> None:
    h = Harness()
    for name in ("a", "b"):
        client = h.client(name, expiry=60)
        client.subscribe("$share/g/t", qos=1)
        client.subscribe("$share/g/t", qos=1)  # again, in its place
        client.drop()
    h.client("p").publish("t", b"x", qos=1)
    assert h.broker.balance() == (1, 0)
    h.client("a")
    assert h.broker.balance() == (1, 0)
    taker = h.client("b", clean=False, expiry=60, auto_ack=False)
    assert payloads(taker) == [b"x"]
    assert h.broker.balance() == (0, 1)
    taker.drop()
    assert h.broker.balance() == (1, 0)
    h.client("b")
    assert h.broker.balance() == (0, 0)
    assert h.dropped == {count.DROP_SESSION_ENDED: 1}


def test_joining_a_group_that_waits_sets_it_going() -> None:
    h = Harness()
    client = h.client("a", expiry=60)
    client.subscribe("$share/g/t", qos=1)
    client.drop()
    h.client("p").publish("t", b"x", qos=1)
    other = h.client("b")
    other.subscribe("$share/g/t", qos=1)
    assert payloads(other) == [b"x"]


# The journal.


def test_only_what_outlives_its_connection_is_written() -> None:
    h = Harness(durable=True)
    fleeting = h.client("a")
    fleeting.subscribe("t", qos=1)
    fleeting.unsubscribe("t")
    h.client("b", version=4).disconnect()
    assert h.broker.journal.empty()


def test_the_life_of_a_session_is_written() -> None:
    """[MQTT-4.1.0-1]"""
    h = Harness(durable=True)
    client = h.client("c", expiry=60, will=Will("will", b"w"))
    assert j.SESSION_SAVE in kinds(h)
    client.send(Subscribe(1, [Filter("t", 1)]))
    client.expect_nothing()
    assert kinds(h) == [j.SUBSCRIPTION_SAVE]
    h.flush()
    client.expect(Suback)
    client.send(Unsubscribe(2, ["t"]))
    assert kinds(h) == [j.SUBSCRIPTION_DROP]
    h.flush()
    client.expect(Unsuback)
    client.disconnect()
    assert j.WILL_DROP in kinds(h)
    h.open().send(Connect(client_id="c"))
    assert kinds(h)[0] == j.SESSION_DROP


@pytest.mark.parametrize("expiry", [60, NEVER])
def test_session_present_waits_for_the_session_to_be_durable(expiry: int) -> None:
    """[MQTT-3.2.2-2] A promise: the session will be there after a crash, too."""
    h = Harness(make_settings(session_expiry_max=NEVER), durable=True)
    for present in (False, True, True):
        client = h.open()
        asked = props(session_expiry_interval=expiry)
        client.send(Connect(client_id="c", clean_start=False, properties=asked))
        if not present:
            assert not client.expect(Connack).session_present
        h.commit()
        if present:
            assert client.expect(Connack).session_present
        client.drop()


def test_a_commit_frees_connections_sessions_and_groups() -> None:
    h = Harness(durable=True)
    member, reader = h.client("m"), h.client("r")
    member.subscribe("$share/g/t", qos=2)
    reader.subscribe("t", qos=2)
    publisher = h.client("p", expiry=60, auto_ack=False)
    publisher.publish("t", b"x", qos=2, packet_id=1)
    assert [payloads(member), payloads(reader), publisher.recv()] == [[], [], []]
    h.commit()
    assert [payloads(member), payloads(reader), len(publisher.recv())] == [[b"x"], [b"x"], 1]
    assert not h.broker.context.waiting_groups


def test_a_long_replay_does_not_stop_the_others() -> None:
    h = Harness()
    publisher = h.client("p")
    for number in range(1200):
        publisher.publish(f"t/{number}", b"x", retain=True)
    reader, other = h.client("r"), h.client("other")
    other.subscribe("now")
    reader.connection.receive_data(b"\x82\x09\x00\x01\x00\x00\x03t/+\x00", h.now)
    assert h.broker.ready
    h.broker.run(h.now)
    assert h.broker.ready
    publisher.connection.receive_data(b"\x30\x07\x00\x03now\x00x", h.now)
    for client in (reader, other):
        client.take()
    assert payloads(other) == [b"x"]
    assert 0 < len([p for p in reader.received if isinstance(p, Publish)]) < 1200
    h.flush()
    assert len(payloads(reader)) == 1200
