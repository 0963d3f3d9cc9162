"""The record of decisions: what is written down, what is merged, what it costs to keep."""

import gc
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec, watch
from mqttd.core.auth import Grant
from mqttd.core.connection import Connection
from mqttd.core.message import Message
from mqttd.core.session import Session
from mqttd.core.watch import MAX_PENDING, Watcher
from tests.core.hook_kit import Publishing, Receiving, Subscribing, allowed, changed, denied
from tests.core.rig import make_message
from tests.core.vectors import untimed
from tests.harness import Harness
from tests.spec.kit import persistent

EVERYTHING = (1 << (watch.CHANGED + 1)) - 1


def watched(limit: int = 1000, wants: int = 0, durable: bool = False) -> tuple[Harness, Watcher]:
    h = Harness(durable=durable)
    watcher = Watcher(limit)
    watcher.wants = wants
    h.broker.context.watcher = watcher
    return h, watcher


def kinds(watcher: Watcher) -> list[tuple[int, str, str, int]]:
    """Kind, client, topic, count of what is about messages."""
    found = [
        (trace.kind, trace.client_id, trace.topic, trace.count)
        for trace in watcher.traces
        if trace.kind in (watch.CHANGED, *range(watch.CONNECTED))
    ]
    watcher.traces.clear()
    return found


def test_a_message_leaves_one_trace_with_the_names_of_all_who_match() -> None:
    h, watcher = watched()
    for name in ("a", "b"):
        h.client(name).subscribe("t")
    member = h.client("m")
    member.subscribe("$share/g/+", qos=1)
    h.client("s").publish("t", b"x", 1)
    (trace,) = [trace for trace in watcher.traces if trace.kind == watch.PUBLISHED]
    assert (trace.client_id, trace.topic, trace.qos, trace.count) == ("s", "t", 1, 1)
    assert sorted(trace.names) == ["$share/g/+", "a", "b"]
    assert trace.payload == b""


@pytest.mark.parametrize("qos", [0, 1])
def test_a_run_of_messages_is_one_trace(qos: int) -> None:
    h, watcher = watched()
    h.client("r").subscribe("#", qos=1)
    sender = h.client("s")
    for _ in range(5):
        h.now += 1.0
        sender.publish("t", b"x", qos)
    (trace,) = [trace for trace in watcher.traces if trace.kind == watch.PUBLISHED]
    assert trace.count == 5
    assert trace.until - trace.at == 4.0
    assert trace.last_serial - trace.serial == 4


def test_what_differs_is_another_trace() -> None:
    h, watcher = watched()
    one, two = h.client("one"), h.client("two")
    one.publish("t", b"x")
    one.publish("u", b"x")
    one.publish("u", b"x", 1)
    one.publish("u", b"x", 1, retain=True)
    two.publish("u", b"x", 1, retain=True)
    assert [count for *_, count in kinds(watcher)] == [1] * 5


def test_new_subscriptions_end_a_run() -> None:
    """The names in a trace are those of all its messages."""
    h, watcher = watched()
    sender = h.client("s")
    sender.publish("t", b"x")
    h.client("r").subscribe("t")
    sender.publish("t", b"x")
    names = [trace.names for trace in watcher.traces if trace.kind == watch.PUBLISHED]
    assert names == [(), ("r",)]


def test_what_became_of_it_is_told_for_each_receiver_that_differs() -> None:
    h, watcher = watched()
    away = persistent(h, "away")
    away.subscribe("t", qos=1)
    away.drop()
    Receiving(h).denied.add(("bad", "t"))
    h.client("bad").subscribe("t")
    h.client("good").subscribe("t")
    watcher.traces.clear()
    h.client("s").publish("t", b"x", 1)
    found = kinds(watcher)
    assert found[0] == (watch.PUBLISHED, "s", "t", 1)
    assert sorted(found[1:]) == [
        (watch.DROPPED, "bad", "t", 1),
        (watch.QUEUED, "away", "t", 1),
    ]
    persistent(h, "away")
    assert kinds(watcher) == [(watch.SENT, "away", "t", 1)]


def test_outcomes_carry_the_serial_of_their_message() -> None:
    h, watcher = watched()
    away = persistent(h, "away")
    away.subscribe("#", qos=1)
    away.drop()
    sender = h.client("s")
    for topic in ("a", "b", "a"):
        sender.publish(topic, b"x", 1)
    persistent(h, "away")
    by_serial: dict[int, list[int]] = {}
    for trace in watcher.traces:
        if trace.serial:
            by_serial.setdefault(trace.serial, []).append(trace.kind)
    assert list(by_serial.values()) == [[watch.PUBLISHED, watch.QUEUED, watch.SENT]] * 3


def test_refusals_and_changes_say_why() -> None:
    h, watcher = watched()
    hooks = Publishing(h, lambda message: denied(reason="not yours"))
    sender = h.client("s")
    sender.publish("a", b"x", 1)
    hooks.rule = lambda message: changed(message, "b")
    sender.publish("c", b"x", 1)
    hooks.rule = lambda message: allowed(None)
    sender.publish("d", b"x", 1)
    hooks.rule = lambda message: allowed(message, rule="acl:7")
    sender.publish("e", b"x", 1)
    sender.publish("e", b"x", 0)
    sender.publish("$SYS/x", b"x", 1)
    found = [
        (trace.kind, trace.topic, trace.reason)
        for trace in watcher.traces
        if trace.topic and trace.kind != watch.SUBSCRIBED
    ]
    assert found == [
        (watch.DENIED, "a", "not yours"),
        (watch.PUBLISHED, "b", ""),
        (watch.CHANGED, "b", "changer"),
        (watch.PUBLISHED, "d", ""),
        (watch.CHANGED, "d", "taker"),
        (watch.PUBLISHED, "e", "acl:7"),
        (watch.PUBLISHED, "e", ""),
        (watch.DENIED, "$SYS/x", "a topic that only the broker writes"),
    ]


def test_a_taken_message_has_no_receivers_and_is_not_merged_with_another() -> None:
    h, watcher = watched()
    h.client("r").subscribe("#")
    Publishing(h, lambda message: allowed(None), transforms=True)
    sender = h.client("s")
    for topic in ("a", "b"):
        sender.publish(topic, b"x")
    traces = [trace for trace in watcher.traces if trace.kind == watch.PUBLISHED]
    assert [(trace.topic, trace.names, trace.count) for trace in traces] == [
        ("a", (), 1),
        ("b", (), 1),
    ]


def test_a_repeated_qos_2_publish_is_no_second_message() -> None:
    """[MQTT-4.3.3-10]"""
    h, watcher = watched()
    Publishing(h, allowed)
    sender = h.client("s", auto_ack=False)
    for _ in range(2):
        sender.publish("t", b"x", 2, packet_id=3)
    assert kinds(watcher) == [(watch.PUBLISHED, "s", "t", 1)]


def test_the_life_of_a_client() -> None:
    h, watcher = watched()
    Subscribing(h).deny["secret"] = Grant(spec.NOT_AUTHORIZED, "", "acl:1")
    client = h.client("c", username="u", expiry=10)
    client.subscribe("t", qos=1)
    client.subscribe("secret")
    client.unsubscribe("t")
    again = h.client("c", username="u", expiry=10, clean=False)
    again.drop()
    h.advance(20.0)
    found = [(trace.kind, trace.topic, trace.reason) for trace in watcher.traces]
    assert [kind for kind, _, _ in found] == [
        watch.CREATED,
        watch.CONNECTED,
        watch.SUBSCRIBED,
        watch.SUBSCRIBE_DENIED,
        watch.UNSUBSCRIBED,
        watch.TAKEN_OVER,
        watch.DISCONNECTED,
        watch.CONNECTED,
        watch.DISCONNECTED,
        watch.EXPIRED,
    ]
    assert found[3] == (watch.SUBSCRIBE_DENIED, "secret", "acl:1")
    assert {trace.client_id for trace in watcher.traces} == {"c"}


def test_late_answers_are_written_down_with_their_own_time() -> None:
    h, watcher = watched()
    hooks = Publishing(h)
    h.client("s").publish("t", b"x")
    h.now += 3.0
    hooks.answer()
    assert watcher.traces[-1].at == h.now
    h.now += 3.0
    h.broker.kick("s", spec.ADMINISTRATIVE_ACTION, "", h.now)
    assert watcher.traces[-1].at == h.now


# Observers.


def test_only_what_somebody_wants_is_kept_for_observers() -> None:
    h, watcher = watched(0, 1 << watch.PUBLISHED | 1 << watch.DELIVERED)
    h.client("r").subscribe("#", qos=1)
    sender = h.client("s")
    sender.publish("t", b"1")
    sender.publish("t", b"2", 1)
    found = [(trace.kind, trace.client_id, trace.payload) for trace in watcher.take()]
    assert found == [
        (watch.PUBLISHED, "s", b"1"),
        (watch.DELIVERED, "r", b""),
        (watch.PUBLISHED, "s", b"2"),
        (watch.DELIVERED, "r", b""),
    ]
    assert watcher.take() == []
    assert len(watcher.traces) == 0


def test_observers_are_told_of_every_message_of_a_run() -> None:
    h, watcher = watched(wants=1 << watch.PUBLISHED)
    sender = h.client("s")
    for number in range(3):
        sender.publish("t", b"%d" % number)
    assert [trace.payload for trace in watcher.take()] == [b"0", b"1", b"2"]


def test_pending_is_bounded_and_what_is_lost_is_counted() -> None:
    watcher = Watcher(0)
    watcher.wants = 1 << watch.CONNECTED
    for _ in range(MAX_PENDING + 3):
        watcher.note(watch.CONNECTED, "c", "", "", 0, 0, "")
    assert len(watcher.take()) == MAX_PENDING
    assert watcher.lost == 3
    watcher.note(watch.CONNECTED, "c", "", "", 0, 0, "")
    assert len(watcher.pending) == 1


# Bounds.


def test_the_ring_keeps_the_last_so_many() -> None:
    h, watcher = watched(3)
    sender = h.client("s")
    for number in range(10):
        sender.publish(f"t/{number}", b"x")
    assert [trace.topic for trace in watcher.traces] == ["t/7", "t/8", "t/9"]


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


def test_a_trace_keeps_no_session_connection_message_or_payload_alive() -> None:
    h, watcher = watched(wants=EVERYTHING)
    before = [alive(kind) for kind in (Session, Connection, Message)]
    clients = [h.client(f"c{number}") for number in range(5)]
    for client in clients:
        client.subscribe("t", qos=1)
    for client in clients:
        client.publish("t", b"secret", 1)
    for client in clients:
        client.drop()
    watcher.take()
    assert len(watcher.traces) > 5
    del clients, client
    assert [alive(kind) for kind in (Session, Connection, Message)] == before
    assert b"secret" not in [trace.payload for trace in watcher.traces]


@untimed
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("tuv"), st.integers(0, 2)), max_size=20
    )
)
def test_merged_or_not_every_message_is_counted(
    moves: list[tuple[str, str, int]],
) -> None:
    h, watcher = watched()
    h.client("r").subscribe("t", qos=2)
    clients = {name: h.client(name) for name in "ab"}
    for name, topic, qos in moves:
        clients[name].publish(topic, b"x", qos)
    published = [trace for trace in watcher.traces if trace.kind == watch.PUBLISHED]
    assert sum(trace.count for trace in published) == len(moves) == watcher.serial
    flat = [
        (trace.client_id, trace.topic, trace.qos) for trace in published for _ in range(trace.count)
    ]
    assert flat == moves
    for one, two in itertools.pairwise(published):
        assert one.last_serial < two.serial


def test_a_message_of_the_broker_has_no_client() -> None:
    h, watcher = watched()
    h.broker.submit(make_message(topic="t", origin=""), h.now)
    h.broker.submit(make_message(topic="$SYS/x", origin=""), h.now)
    (trace,) = watcher.traces
    assert (trace.kind, trace.client_id, trace.topic) == (watch.PUBLISHED, "", "t")
