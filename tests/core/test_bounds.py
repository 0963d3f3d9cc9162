"""What a client may make the broker keep is bounded, and what it replaces is gone."""

import pytest

from mqttd.core.message import Message
from mqttd.core.packets import (
    Connack,
    Connect,
    Filter,
    Puback,
    Publish,
    Pubrel,
    Subscribe,
    Will,
)
from mqttd.core.properties import Properties
from mqttd.core.settings import Settings
from tests.harness import FakeClient, Harness


def retained(h: Harness, count: int) -> None:
    publisher = h.client("retainer")
    for number in range(count):
        publisher.publish(f"r/{number}", b"x", qos=1, retain=True)


def test_reconnects_leave_one_deadline_for_a_session() -> None:
    h = Harness()
    for _ in range(500):
        h.client("c", clean=False, expiry=1000).drop()
        h.advance(1)
    assert len(h.broker._deadlines) < 100
    h.advance(1001)
    assert not h.broker.sessions


def test_sessions_that_were_cleaned_leave_no_deadline_behind() -> None:
    h = Harness()
    for _ in range(500):
        h.client("c", clean=True, expiry=1000).drop()
    assert len(h.broker._deadlines) < 100
    assert len(h.broker.sessions) == 1


def test_a_will_before_the_end_of_the_session_still_comes_first() -> None:
    h = Harness()
    watcher = h.client("watcher")
    watcher.subscribe("w")
    h.client("c", clean=False, expiry=50, will=Will("w", b"gone", delay_interval=10)).drop()
    h.advance(10)
    assert [message.payload for message in watcher.messages()] == [b"gone"]
    assert "c" in h.broker.sessions
    h.advance(41)
    assert "c" not in h.broker.sessions


def test_subscribing_again_replaces_a_replay_that_is_under_way() -> None:
    h = Harness()
    retained(h, 20)
    c = h.client("c", receive_maximum=1, auto_ack=False)
    for _ in range(50):
        c.subscribe("r/#", 1)
    replays = h.broker.sessions["c"].replays
    assert replays is not None
    assert len(replays) == 1


def test_unsubscribe_ends_every_replay_of_the_filter() -> None:
    # [MQTT-3.10.4-2]
    h = Harness()
    retained(h, 6)
    c = h.client("c", receive_maximum=1, auto_ack=False)
    c.subscribe("r/#", 1)
    c.subscribe("r/#", 1)
    c.unsubscribe("r/#")
    (begun,) = c.messages()
    c.send(Puback(begun.packet_id))
    assert c.messages() == []


def test_a_replay_goes_on_under_the_subscription_that_replaced_its_own() -> None:
    h = Harness()
    retained(h, 3)
    c = h.client("c", receive_maximum=1, auto_ack=False)
    c.subscribe("r/#", 1, identifier=1)
    c.subscribe("r/#", 1, identifier=2, retain_handling=2)
    seen: list[list[int]] = []
    for _ in range(3):
        (message,) = c.messages()
        seen.append(message.subscription_ids)
        c.send(Puback(message.packet_id))
    assert seen == [[1], [2], [2]]


def test_two_clients_of_one_id_are_named_though_each_cleans_the_session() -> None:
    h = Harness()
    for number in range(8):
        h.client("twin", peer=f"10.0.0.{number % 2}:1")
    (line,) = h.events("pingpong")
    assert "10.0.0.0:1" in line
    assert "10.0.0.1:1" in line


def test_qos_0_of_a_held_message_is_not_queued_for_an_absent_client() -> None:
    h = Harness(durable=True)
    absent = h.client("absent", clean=False, expiry=100)
    absent.send(Subscribe(1, [Filter("t", 0)]))
    h.commit()
    absent.drop()
    h.client("p", clean=False, expiry=100).publish("t", b"x", qos=2)
    h.commit()
    assert h.dropped == {"offline_qos0": 1}
    assert h.broker.balance()[0] == 0


def test_queued_qos_0_is_not_overtaken() -> None:
    settings = Settings()
    settings.queue_qos0 = True
    h = Harness(settings)
    c = h.client("c", clean=False, expiry=100)
    c.subscribe("t", 1)
    c.drop()
    p = h.client("p")
    p.publish("t", b"one", qos=1)
    p.publish("t", b"two", qos=0)
    c = h.client("c", clean=False, expiry=100, receive_maximum=1, auto_ack=False)
    p.publish("t", b"three", qos=0)
    messages = c.messages()
    c.send(Puback(messages[0].packet_id))
    assert [m.payload for m in messages + c.messages()] == [b"one", b"two", b"three"]


def test_expired_messages_make_room_in_the_queue_of_a_group() -> None:
    settings = Settings()
    settings.max_queued_messages = 2
    h = Harness(settings)
    member = h.client("m", clean=False, expiry=1000)
    member.subscribe("$share/g/t", 1)
    member.drop()
    p = h.client("p")
    p.publish("t", b"old", qos=1, message_expiry=5)
    p.publish("t", b"old", qos=1, message_expiry=5)
    h.advance(10)
    p.publish("t", b"new", qos=1)
    member = h.client("m", clean=False, expiry=1000)
    h.flush()
    assert [message.payload for message in member.messages()] == [b"new"]
    assert h.dropped == {"expired": 2}


def held_connect(h: Harness) -> FakeClient:
    """A client that resumes a session whose row is not durable yet."""
    first = h.open()
    properties = Properties()
    properties.session_expiry_interval = 100
    packet = Connect("MQTT", 5, False, 0, "c", None, None, None, properties)
    first.send(packet)
    first.drop()
    again = h.open()
    again.auto_ack = False
    again.send(packet)
    return again


def test_packets_pipelined_behind_a_held_connack_are_all_answered() -> None:
    h = Harness(durable=True)
    watcher = h.client("w", clean=False, expiry=100)
    watcher.send(Subscribe(1, [Filter("t", 1)]))
    h.commit()
    watcher.drop()
    c = held_connect(h)
    for number in (1, 2):
        c.send(Publish("t", b"x", 1, packet_id=number))
    for _ in range(5):
        h.commit()
    answers = c.recv()
    assert isinstance(answers[0], Connack)
    assert [a.packet_id for a in answers[1:] if isinstance(a, Puback)] == [1, 2]
    assert c.connection.inbound_open == 0


def test_held_answers_count_against_the_sender() -> None:
    h = Harness(durable=True)
    c = h.client("c", clean=False, expiry=100)
    before = c.connection.pressure()
    for number in range(1, 101):
        c.send(Pubrel(number))
        h.broker.sessions["c"].inbound_barrier = h.broker.journal.seq
    assert c.connection.pressure() > before
    h.commit()


@pytest.mark.parametrize("client_id", ["+/#", "x" * 2000])
def test_response_information_is_a_usable_topic_or_absent(client_id: str) -> None:
    h = Harness()
    properties = Properties()
    properties.request_response_information = 1
    c = h.client(client_id, properties=properties)
    assert c.connack.properties.response_information is None


def test_a_bug_after_a_commit_costs_its_own_connection_only() -> None:
    h = Harness(durable=True)
    broken = h.client("broken", clean=False, expiry=100)
    sound = h.client("sound", clean=False, expiry=100)
    for client in (broken, sound):
        client.send(Subscribe(1, [Filter("t", 2)]))
    h.commit()
    broken.recv()
    sound.recv()
    h.client("p").publish("t", b"x", qos=2)
    queue = h.broker.sessions["broken"].due
    assert queue is not None
    # A topic that fits no packet: encoding it raises, as a bug would.
    queue[0].message = Message("x", b"x" * 70000, b"", 2, False, b"", 0.0, "p")
    h.commit()
    assert broken.closed
    assert [message.payload for message in sound.messages()] == [b"x"]
    assert h.broker.counters.bugs == 1


@pytest.mark.parametrize("retain", [False, True])
def test_a_qos_2_message_waits_for_its_batch_at_qos_0_as_well(retain: bool) -> None:
    # [MQTT-4.3.3-10] else a crash and the client's resend would be a second copy
    h = Harness(durable=True)
    publisher = h.client("p", clean=False, expiry=100, auto_ack=False)
    h.commit()
    early = h.client("early")
    early.subscribe("t", 0)
    publisher.publish("t", b"x", qos=2, retain=retain)
    late = h.client("late")
    late.subscribe("t", 0)
    assert early.messages() == []
    assert late.messages() == []
    h.commit()
    assert [message.payload for message in early.messages()] == [b"x"]
    assert [message.payload for message in late.messages()] == ([b"x"] if retain else [])


def test_a_connection_without_connect_is_counted_as_refused() -> None:
    h = Harness()
    silent = h.open()
    h.advance(11)
    assert silent.closed
    assert h.broker.counters.connects_refused == 1
