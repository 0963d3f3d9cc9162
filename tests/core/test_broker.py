"""The broker: who has which session, and what time brings."""

from collections import deque
from typing import Any

import pytest

from mqttd.core import counters as count
from mqttd.core import journal as j
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.encode import encode_packet
from mqttd.core.message import will_message
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Suback,
    Subscribe,
    Will,
)
from mqttd.core.queue import Queue
from mqttd.core.registry import INFINITY, Deadline
from mqttd.core.session import Session
from mqttd.core.settings import NEVER
from tests.core.rig import make_settings
from tests.core.vectors import props
from tests.harness import FakeClient, Harness


def payloads(client: FakeClient) -> list[bytes]:
    return [packet.payload for packet in client.messages()]


def refusal(client: FakeClient) -> int:
    answer = client.expect(Connack)
    assert client.closed
    return answer.reason


def kinds(h: Harness) -> list[int]:
    """The operations of everything journalled since the last look, committed."""
    batch = h.broker.take_batch()
    if batch is None:
        return []
    h.broker.committed(batch.seq, h.now)
    return [op.kind for op in batch.ops]


# Connections and sessions.


def test_a_broker_begins_empty_and_at_rest() -> None:
    broker = Broker()
    assert (broker.sessions, broker.connections, broker.events, broker.dirty) == ({}, {}, [], [])
    assert not broker.ready
    assert not broker.draining
    assert broker.next_deadline() == INFINITY
    assert broker.balance() == (0, 0)
    assert broker.take_batch() is None
    broker.run(0.0)
    broker.handle_timeout(1e9)
    assert broker.settings.receive_maximum == 1024


def test_connections_are_counted_while_they_last() -> None:
    h = Harness()
    first, second = h.open(), h.open()
    assert (h.broker.counters.connections, h.broker.counters.connections_total) == (2, 2)
    assert first.connection.serial != second.connection.serial
    first.drop()
    h.broker.forget(first.connection)  # said twice
    assert (h.broker.counters.connections, h.broker.counters.connections_total) == (1, 2)


def test_a_session_ends_with_its_connection_or_outlives_it() -> None:
    """[MQTT-3.1.2-6] [MQTT-4.1.0-1] [MQTT-4.1.0-2]"""
    h = Harness()
    h.client("short").drop()
    h.client("long", expiry=10).drop()
    h.client("ever", version=4, clean=False).drop()
    assert set(h.broker.sessions) == {"long", "ever"}
    assert h.client("long", clean=False, expiry=10).connack.session_present
    assert not h.client("short", clean=False).connack.session_present


@pytest.mark.parametrize("version", [3, 4, 5])
def test_clean_start_ends_the_session_that_was_there(version: int) -> None:
    """[MQTT-3.1.2-4] [MQTT-3.2.2-2]"""
    h = Harness()
    old = h.client("c", version=version, clean=False, expiry=60 if version == 5 else None)
    old.subscribe("t", qos=1)
    old.drop()
    h.client("p").publish("t", b"x", qos=1)
    fresh = h.client("c", version=version, clean=True)
    assert not fresh.connack.session_present
    assert h.dropped == {count.DROP_SESSION_ENDED: 1}
    h.client("q").publish("t", b"y", qos=1)
    fresh.expect_nothing()


def test_the_owner_of_a_session_keeps_it_from_others() -> None:
    h = Harness()
    h.client("c", username="alice", expiry=60).drop()
    stranger = h.open()
    stranger.send(Connect(client_id="c", username="mallory", clean_start=True))
    assert refusal(stranger) == spec.NOT_AUTHORIZED
    assert h.client("c", username="alice", clean=False).connack.session_present


def test_a_newer_connection_takes_over() -> None:
    """[MQTT-3.1.4-3]"""
    h = Harness()
    old = h.client("c", expiry=60)
    old.subscribe("t", qos=1)
    new = h.client("c", clean=False, expiry=60)
    assert old.expect(Disconnect).reason == spec.SESSION_TAKEN_OVER
    assert old.closed
    assert new.connack.session_present
    h.client("p").publish("t", b"x", qos=1)
    assert payloads(new) == [b"x"]
    assert h.broker.counters.takeovers == 1
    assert h.broker.counters.clients_connected == 2


def test_an_assigned_client_id_is_nobody_elses() -> None:
    """[MQTT-3.1.3-6]"""
    h = Harness()
    for name in ("auto-1", "auto-2", "auto-4"):
        h.client(name)
    assigned = [
        h.client("").connack.properties.assigned_client_identifier,
        h.client("").connack.properties.assigned_client_identifier,
    ]
    assert assigned == ["auto-3", "auto-5"]


def test_a_connection_that_lost_its_session_cannot_end_it() -> None:
    h = Harness()
    h.client("c", expiry=60)
    session = h.broker.sessions["c"]
    h.broker.left(session, h.open().connection, True, h.now)
    assert session.link is not None


def test_two_devices_with_one_name_are_told_once_with_both_addresses() -> None:
    h = Harness()
    for _ in range(6):
        h.client("c", clean=False, expiry=60, peer="10.0.0.1:1111")
        h.client("c", clean=False, expiry=60, peer="10.0.0.2:2222")
    (line,) = h.events("pingpong")
    assert "10.0.0.1:1111" in line
    assert "10.0.0.2:2222" in line


def test_taking_over_now_and_then_is_no_duel() -> None:
    h = Harness()
    for _ in range(12):
        h.client("c", expiry=NEVER, clean=False)
        h.advance(25.0)
    assert h.events("pingpong") == []
    assert h.broker.counters.takeovers == 11


def test_a_duel_is_told_again_after_a_pause() -> None:
    h = Harness()
    for _ in range(2):
        for _ in range(8):
            h.client("c", expiry=NEVER, clean=False)
        h.advance(100.0)
    assert len(h.events("pingpong")) == 2


def test_a_broker_that_ends_says_so_and_takes_nobody_in() -> None:
    h = Harness()
    client, stranger = h.client("c"), h.open()
    h.broker.drain(h.now)
    h.flush()
    assert client.expect(Disconnect).reason == spec.SERVER_SHUTTING_DOWN
    assert client.closed
    assert stranger.closed
    late = h.open()
    late.send(Connect(client_id="d"))
    assert refusal(late) == spec.SERVER_UNAVAILABLE


def test_what_is_to_be_written_is_handed_out_in_one_list() -> None:
    """All but what the shell has to look at itself."""
    h = Harness()
    names = ("plain", "blocked", "watched", "closing")
    plain, blocked, watched, closing = (h.client(name).connection for name in names)
    lost = h.client("lost").connection  # the shell knows it no more
    lost.receive_data(b"\xc0\x00", h.now)
    for connection, name in zip((plain, blocked, watched, closing), names, strict=True):
        connection.shell = name
    blocked.pause_writing()
    watched.attention = True
    for connection in (plain, blocked, watched):
        connection.receive_data(b"\xc0\x00", h.now)
    closing.close(spec.ADMINISTRATIVE_ACTION, "", h.now)
    assert h.broker.collect() == [("plain", b"\xd0\x00")]
    assert h.broker.dirty == []
    assert h.broker.slow == [blocked, watched, closing]
    assert h.broker.collect() == []
    plain.receive_data(b"\xc0\x00", h.now)
    assert h.broker.collect() == [("plain", b"\xd0\x00")]


def test_a_fault_in_one_answer_does_not_cost_the_others_theirs() -> None:
    h = Harness(durable=True)
    h.client("c", expiry=60).drop()
    waiting = h.open()
    asked = props(session_expiry_interval=60)
    waiting.send(Connect(clean_start=False, client_id="c", properties=asked))
    other = h.open()
    request = encode_packet(Connect(client_id="other", properties=asked), 5)
    other.send_raw(request + encode_packet(Subscribe(1, [Filter("t", 1)]), 5))
    broken: Any = "no delivery"
    queue = Queue(0, False)
    queue.head.append(broken)
    h.broker.sessions["c"].queue = queue
    h.commit()
    assert [type(packet) for packet in other.recv()] == [Connack, Suback]
    assert h.broker.counters.bugs == 1
    assert h.events("bug") == ["exception after a commit"]
    assert waiting.closed


def test_a_fault_in_one_session_does_not_cost_the_others_theirs() -> None:
    h = Harness(durable=True)
    sound, faulty = h.client("sound", expiry=60), h.client("faulty", expiry=60)
    for client in (faulty, sound):
        client.send(Subscribe(1, [Filter("t", 2)]))
    h.commit()
    h.client("p").publish("t", b"x", qos=2)
    broken: Any = deque(["no delivery"])
    h.broker.sessions["faulty"].due = broken
    h.commit()
    assert faulty.closed
    assert b"x" in [packet.payload for packet in sound.messages()]
    assert h.broker.counters.bugs == 1
    h.broker._contain(None, h.now)  # the connection was gone already
    assert h.broker.counters.bugs == 2


def test_a_connection_with_nothing_left_to_write_is_passed_over() -> None:
    h = Harness()
    connection = h.client("c").connection
    connection.shell = "shell"
    connection.receive_data(b"\xc0\x00", h.now)
    assert connection.data_to_send()
    assert h.broker.collect() == []


def test_what_waits_and_what_is_under_way_can_be_counted() -> None:
    h = Harness()
    reader = h.client("r", expiry=60, receive_maximum=1, auto_ack=False)
    reader.subscribe("t", qos=1)
    publisher = h.client("p")
    for _ in range(3):
        publisher.publish("t", b"x", qos=1)
    assert h.broker.balance() == (2, 1)
    reader.drop()
    publisher.publish("t", b"x", qos=1)
    assert h.broker.balance() == (3, 1)


# Deadlines.


def test_deadlines_come_in_the_order_of_time_and_then_of_making() -> None:
    session = Session("c", None, Broker().context)
    early, late = Deadline(1.0, 9, session), Deadline(2.0, 1, session)
    twin = Deadline(1.0, 10, session)
    assert early < late
    assert not late < early
    assert early < twin
    assert not twin < early


def test_a_session_ends_when_its_interval_is_over() -> None:
    """[MQTT-4.1.0-2]"""
    h = Harness()
    h.client("c", expiry=10).drop()
    h.client("d", expiry=20).drop()
    assert h.broker.next_deadline() == 1010.0
    h.advance(9.9)
    assert "c" in h.broker.sessions
    h.advance(0.1)
    assert set(h.broker.sessions) == {"d"}
    assert h.broker.counters.sessions_expired == 1
    assert [event.client_id for event in h.broker.events if event.kind == "session_expired"] == [
        "c"
    ]


def test_a_session_without_end_has_no_deadline() -> None:
    """MQTT 5, 3.1.2.11.2"""
    h = Harness(make_settings(session_expiry_max=NEVER))
    h.client("c", expiry=NEVER).drop()
    assert h.broker.next_deadline() == INFINITY
    h.advance(1e9)
    assert "c" in h.broker.sessions


def test_a_session_has_one_entry_however_often_it_comes_back() -> None:
    h = Harness()
    for _ in range(50):
        h.client("c", clean=False, expiry=100).drop()
        h.advance(1.0)
    assert h.broker.next_deadline() == 1100.0  # of its first absence; it moves when that comes
    h.advance(98.9)
    assert "c" in h.broker.sessions
    h.advance(0.2)
    assert "c" not in h.broker.sessions
    assert h.broker.next_deadline() == INFINITY


def test_a_will_keeps_its_time_when_the_entry_moves() -> None:
    """[MQTT-3.1.2-8]"""
    h = Harness()
    watcher = h.client("watcher")
    watcher.subscribe("will")
    h.client("c", clean=False, expiry=10).drop()
    will = Will("will", b"w", delay_interval=15)
    h.client("c", clean=False, expiry=20, will=will).drop()
    assert h.broker.next_deadline() == 1010.0
    h.advance(14.9)
    assert payloads(watcher) == []
    h.advance(0.1)
    assert payloads(watcher) == [b"w"]
    assert "c" in h.broker.sessions
    h.advance(5.0)
    assert "c" not in h.broker.sessions


def test_an_earlier_deadline_takes_the_place_of_a_later_one() -> None:
    h = Harness()
    h.client("c", clean=False, expiry=100).drop()
    h.client("c", clean=False, expiry=10).drop()
    assert h.broker.next_deadline() == 1010.0
    h.advance(10.0)
    assert h.broker.sessions == {}


def test_entries_of_sessions_that_have_ended_do_not_pile_up() -> None:
    h = Harness()
    h.client("stays", clean=False, expiry=50).drop()
    for number in range(300):
        h.client(f"c{number}", expiry=1000).drop()
        h.client(f"c{number}").drop()
    h.advance(49.9)
    assert "stays" in h.broker.sessions
    h.advance(0.1)
    assert "stays" not in h.broker.sessions
    assert h.broker.counters.sessions_expired == 1


def test_coming_back_makes_old_deadlines_void() -> None:
    """[MQTT-3.1.3-9]"""
    h = Harness()
    watcher = h.client("watcher")
    watcher.subscribe("will")
    will = Will("will", b"w", delay_interval=5)
    h.client("c", expiry=10, will=will).drop()
    h.client("c", clean=False, expiry=10)
    h.client("d", expiry=10).drop()
    h.client("d").drop()  # ended, and its deadline still stands
    h.advance(100.0)
    assert "c" in h.broker.sessions
    assert payloads(watcher) == []
    assert h.broker.counters.sessions_expired == 0


@pytest.mark.parametrize(
    ("interval", "expires_at", "will_at", "left", "at"),
    [
        (0, 0.0, 0.0, False, INFINITY),
        (60, 1060.0, 0.0, True, 1060.0),
        (60, 1060.0, 1007.0, True, 1007.0),
        (NEVER, 0.0, 0.0, True, INFINITY),
    ],
)
def test_a_restored_session_has_its_deadlines_again(
    interval: int, expires_at: float, will_at: float, left: bool, at: float
) -> None:
    """[MQTT-4.1.0-2]"""
    h = Harness()
    session = Session("c", None, h.broker.context)
    session.expiry_interval = interval
    session.expires_at = expires_at
    session.will_at = will_at
    session.will = Will("will")
    h.broker.sessions["c"] = session
    h.broker.resume(session, h.now)
    assert ("c" in h.broker.sessions) is left
    assert h.broker.next_deadline() == at


def test_disconnect_may_shorten_the_interval_up_to_the_limit() -> None:
    h = Harness(make_settings(session_expiry_max=100), durable=True)
    client = h.client("c", expiry=60)
    kinds(h)
    session = h.broker.sessions["c"]
    h.broker.set_expiry(session, 60)
    assert h.broker.journal.empty()
    h.broker.set_expiry(session, 1000)
    assert session.expiry_interval == 100
    assert kinds(h) == [j.SESSION_SAVE]
    client.disconnect(properties=props(session_expiry_interval=5))
    h.advance(5.0)
    assert not h.broker.sessions
    fleeting = h.client("d")
    h.broker.set_expiry(h.broker.sessions["d"], 7)
    assert kinds(h)[-1] == j.SESSION_DROP
    assert not fleeting.closed


# Wills.


@pytest.mark.parametrize(
    ("delay", "expiry", "after"),
    [(0, 60, 0.0), (5, 60, 5.0), (60, 5, 5.0), (5, 0, 0.0), (7, NEVER, 7.0)],
)
def test_a_will_goes_out_after_its_delay_or_with_the_session(
    delay: int, expiry: int, after: float
) -> None:
    """[MQTT-3.1.2-8] [MQTT-3.1.2-10]"""
    h = Harness(make_settings(session_expiry_max=NEVER))
    watcher = h.client("watcher")
    watcher.subscribe("will", qos=1)
    h.client("c", expiry=expiry, will=Will("will", b"w", 1, delay_interval=delay)).drop()
    if after:
        h.advance(after - 0.1)
        assert payloads(watcher) == []
        h.advance(0.1)
    assert payloads(watcher) == [b"w"]
    h.advance(1000.0)
    assert payloads(watcher) == []
    assert h.broker.counters.wills_published == 1


def test_clean_start_sends_the_will_that_was_still_to_come() -> None:
    """[MQTT-3.1.2-8] the session has ended, and with it the delay."""
    h = Harness()
    watcher = h.client("watcher")
    watcher.subscribe("will")
    h.client("c", expiry=60, will=Will("will", b"w", delay_interval=30)).drop()
    h.client("c", clean=True)
    assert payloads(watcher) == [b"w"]


def test_a_will_becomes_a_message_like_any_other() -> None:
    """[MQTT-3.1.2-14] [MQTT-3.1.2-15]"""
    will = Will("ü/t", b"w", 2, True, 9, 30, b"\x01\x01")
    message = will_message(will, "c", 100.0)
    assert (message.topic, message.key, message.payload) == ("ü/t", "ü/t".encode(), b"w")
    assert (message.qos, message.retain, message.properties) == (2, True, b"\x01\x01")
    assert (message.expires_at, message.origin) == (130.0, "c")
    assert will_message(Will("t"), "c", 100.0).expires_at == 0.0


def test_a_retained_will_is_retained() -> None:
    """[MQTT-3.1.2-15]"""
    h = Harness()
    h.client("c", will=Will("will", b"w", retain=True)).drop()
    late = h.client("late")
    late.subscribe("will")
    assert payloads(late) == [b"w"]


@pytest.mark.parametrize("will", [None, Will("$SYS/x", b"w"), Will("$share/g/t", b"w")])
def test_a_will_that_may_not_be_published_is_left_out(will: Will | None) -> None:
    """CONNECT refuses such a will; what was stored by other means is judged again."""
    h = Harness()
    watcher = h.client("watcher")
    watcher.subscribe("#")
    watcher.subscribe("$SYS/#")
    h.client("c", expiry=60, will=Will("will", b"w", delay_interval=5)).drop()
    h.broker.sessions["c"].will = will
    h.advance(10.0)
    watcher.recv()
    assert h.broker.counters.wills_published == 0
