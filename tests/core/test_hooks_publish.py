"""`Hooks.publish` in the core: verdicts now and later, what waits meanwhile, what is remembered."""

import pytest

from mqttd.core import spec
from mqttd.core.auth import Grant, Ruling
from mqttd.core.connection import Connection
from mqttd.core.handshake import CLOSED
from mqttd.core.message import Message
from mqttd.core.outbound import MAX_REMEMBERED
from mqttd.core.packets import (
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Pubrec,
    Pubrel,
)
from tests.core.hook_kit import Publishing, allowed, changed, denied
from tests.core.rig import make_settings
from tests.harness import FakeClient, Harness
from tests.spec.kit import by_hand, each_qos, each_version, persistent, props, raw_props

LATER = pytest.mark.parametrize("later", [False, True])


def ask(h: Harness, later: bool, answer: object = allowed) -> Publishing:
    """Hooks that say `answer`, at once or when they are told to."""
    return Publishing(h, None if later else answer)  # type: ignore[arg-type]


def settle(hooks: Publishing, answer: object = allowed) -> None:
    while hooks.waiting:
        hooks.answer(answer)  # type: ignore[arg-type]


def acknowledgements(client: FakeClient) -> list[tuple[type, int, int]]:
    found = []
    for packet in client.recv():
        if isinstance(packet, Puback | Pubrec | Pubcomp):
            found.append((type(packet), packet.packet_id, packet.reason))
    return found


# Verdicts.


@each_qos
@LATER
def test_what_is_allowed_goes_its_way(qos: int, later: bool) -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#", qos=2)
    hooks = ask(h, later)
    sender = h.client("s", auto_ack=False)
    sender.publish("a/b", b"1", qos, properties=raw_props(content_type="text"))
    if later:
        assert reader.messages() == []
    settle(hooks)
    (got,) = reader.messages()
    assert (got.topic, got.payload, got.qos) == ("a/b", b"1", qos)
    assert got.properties == raw_props(content_type="text")
    expected = {0: [], 1: [(Puback, 1, 0)], 2: [(Pubrec, 1, 0)]}
    assert acknowledgements(sender) == expected[qos]


@each_version
@each_qos
@LATER
def test_what_is_denied_reaches_nobody(version: int, qos: int, later: bool) -> None:
    """MQTT 5 is told; before there is no word for it, and the acknowledgement is a usual one."""
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#", qos=2)
    hooks = ask(h, later, lambda message: denied())
    sender = h.client("s", version, auto_ack=False)
    sender.publish("a", b"1", qos, retain=True)
    settle(hooks, lambda message: denied())
    assert reader.messages() == []
    assert h.broker.retained.count == 0
    code = 0x87 if version == 5 else 0
    expected = {0: [], 1: [(Puback, 1, code)], 2: [(Pubrec, 1, code)]}
    assert acknowledgements(sender) == expected[qos]
    assert h.broker.counters.publish_refused == 1
    assert h.broker.counters.matched == 0
    assert not sender.closed


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("code", [spec.BANNED, spec.KEEP_ALIVE_TIMEOUT, 0xFF, 0x1FF])
def test_a_code_that_no_acknowledgement_has_is_told_as_another(code: int, qos: int) -> None:
    """[MQTT-3.4.2-1] [MQTT-3.5.2-1] a client may close on a code that isn't in the table."""
    h = Harness()
    ask(h, False, lambda message: denied(code))
    sender = h.client("s", auto_ack=False)
    sender.publish("a", b"1", qos)
    assert acknowledgements(sender) == [(Puback if qos == 1 else Pubrec, 1, spec.NOT_AUTHORIZED)]
    assert h.broker.counters.bugs == 0


def test_a_denied_qos_2_publish_keeps_no_identifier() -> None:
    """[MQTT-4.3.3-9] the exchange ends with PUBREC; MQTT 3 goes on to PUBREL and PUBCOMP."""
    h = Harness()
    ask(h, False, lambda message: denied())
    new = h.client("new", auto_ack=False)
    new.publish("a", b"1", 2, packet_id=7)
    assert acknowledgements(new) == [(Pubrec, 7, 0x87)]
    new.send(Pubrel(7))
    assert acknowledgements(new) == [(Pubcomp, 7, spec.PACKET_IDENTIFIER_NOT_FOUND)]
    old = h.client("old", 4, auto_ack=False)
    old.publish("a", b"1", 2, packet_id=7)
    old.send(Pubrel(7))
    assert acknowledgements(old) == [(Pubrec, 7, 0), (Pubcomp, 7, 0)]
    for name in ("new", "old"):
        assert h.broker.sessions[name].inbound == {}


@LATER
def test_a_denial_may_end_the_connection(later: bool) -> None:
    """[MQTT-4.13.1-1] the client is told why, and its will goes out."""
    h = Harness()

    def verdict(message: Message) -> Ruling:
        return denied(spec.QUOTA_EXCEEDED, disconnect=True, reason="too fast")

    hooks = ask(h, later, verdict)
    sender = h.client("s", auto_ack=False)
    sender.publish("a", b"1", 1)
    settle(hooks, verdict)
    puback = sender.expect(Puback)
    assert puback.reason == spec.QUOTA_EXCEEDED
    bye = sender.expect(Disconnect)
    assert bye.reason == spec.QUOTA_EXCEEDED
    assert bye.properties is not None
    assert "too fast" in (bye.properties.reason_string or "")
    assert sender.closed
    assert h.broker.counters.bugs == 0


@each_qos
def test_a_hook_that_raises_is_a_refusal(qos: int) -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")

    def fail(message: Message) -> Ruling:
        raise RuntimeError("broken")

    hooks = ask(h, False, fail)
    sender = h.client("s", auto_ack=False)
    sender.publish("a", b"1", qos)
    assert reader.messages() == []
    assert h.broker.counters.hook_failures == 1
    code = spec.UNSPECIFIED_ERROR
    assert acknowledgements(sender) == {0: [], 1: [(Puback, 1, code)], 2: [(Pubrec, 1, code)]}[qos]
    hooks.rule = allowed
    sender.publish("a", b"2", qos)  # a failure is not remembered
    assert [got.payload for got in reader.messages()] == [b"2"]


def test_a_hook_that_closes_the_connection_leaves_nothing_behind() -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")
    sender = h.client("s")

    def close(message: Message) -> Ruling:
        h.broker.kick("s", spec.ADMINISTRATIVE_ACTION, "kicked", h.now)
        return allowed(message)

    ask(h, False, close)
    sender.publish("a", b"1", 1)
    assert reader.messages() == []
    assert sender.expect(Disconnect).reason == spec.ADMINISTRATIVE_ACTION
    sender.expect_nothing()
    assert "s" not in h.broker.sessions
    assert h.broker.counters.bugs == 0


def test_reserved_topics_are_refused_before_anybody_is_asked() -> None:
    h = Harness()
    hooks = ask(h, False)
    sender = h.client("s")
    sender.publish("$SYS/broker/x", b"1", 1)
    assert sender.expect(Puback).reason == spec.NOT_AUTHORIZED
    assert hooks.topics() == []


# What waits.


def test_later_packets_of_the_client_wait_and_keep_their_order() -> None:
    """[MQTT-4.6.0-2] [MQTT-4.6.0-4] while a verdict is under way nothing overtakes the PUBLISH."""
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#", qos=2)
    hooks = ask(h, True)
    sender = h.client("s", auto_ack=False)
    sender.publish("t", b"0", 1, packet_id=1)
    sender.publish("t", b"1", 2, packet_id=2)
    sender.publish("t", b"2", 0)
    sender.send(Pingreq())
    sender.send(Pubrel(2))
    sender.expect_nothing()
    assert sender.connection.suspended
    assert len(hooks.waiting) == 1
    hooks.answer(lambda message: allowed(message, cache=False))
    assert [type(packet) for packet in sender.recv()] == [Puback]
    hooks.answer(lambda message: allowed(message, cache=False))
    assert [type(packet) for packet in sender.recv()] == [Pubrec]
    hooks.answer(lambda message: allowed(message, cache=False))
    assert [type(packet) for packet in sender.recv()] == [Pingresp, Pubcomp]
    assert [got.payload for got in reader.messages()] == [b"0", b"1", b"2"]
    assert not sender.connection.suspended


def test_acknowledgements_of_the_client_wait_behind_its_publish() -> None:
    h = Harness()
    hooks = ask(h, True)
    both = h.client("b", auto_ack=False)
    both.subscribe("in", qos=1)
    h.client("other").publish("in", b"x", 1)
    hooks.answer()
    (got,) = both.messages()
    both.publish("out", b"1", 0)
    both.send(Puback(got.packet_id))
    assert h.broker.balance() == (0, 1)
    hooks.answer()
    assert h.broker.balance() == (0, 0)


def test_others_go_on_meanwhile_and_the_client_itself_receives() -> None:
    h = Harness()
    hooks = ask(h, True)
    one = h.client("one")
    one.subscribe("#")
    two = h.client("two")
    one.publish("a", b"1")
    two.send(Pingreq())
    assert [type(packet) for packet in two.recv()] == [Pingresp]
    two.publish("b", b"2")
    assert len(hooks.waiting) == 2
    waiting = hooks.waiting.pop(0)
    hooks.answer()
    assert [got.payload for got in one.messages()] == [b"2"]
    hooks.waiting.append(waiting)
    hooks.answer()
    assert [got.payload for got in one.messages()] == [b"1"]


def test_bytes_that_come_meanwhile_are_kept_until_their_turn() -> None:
    """A packet that is cut in the middle while a verdict is under way loses nothing."""
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")
    hooks = ask(h, True)
    sender = h.client("s")
    whole = b"\x30\x05\x00\x01a\x001" + b"\x30\x05\x00\x01b\x002"
    for at in range(len(whole)):
        sender.send_raw(whole[at : at + 1])
    hooks.answer()
    hooks.answer()
    assert [(got.topic, got.payload) for got in reader.messages()] == [("a", b"1"), ("b", b"2")]


def test_keep_alive_is_not_held_against_who_is_not_read() -> None:
    """[MQTT-3.1.2-22] is about the client's silence, not about ours."""
    h = Harness()
    hooks = ask(h, True)
    sender = h.client("s", keep_alive=10)
    sender.publish("a", b"1", 1)
    h.advance(100.0)
    assert not sender.closed
    hooks.answer()
    assert sender.expect(Puback).reason == 0x10
    h.advance(14.0)
    assert not sender.closed
    h.advance(2.0)
    assert sender.closed


def test_receive_maximum_holds_with_hooks() -> None:
    """[MQTT-3.3.4-7] however long the hooks take, refused messages count as any other."""
    h = Harness(make_settings(receive_maximum=2))
    ask(h, False)
    sender = h.client("s", auto_ack=False)
    for number in (1, 2):
        sender.publish("a", b"x", 2, packet_id=number)
    assert sender.connection.inbound_open == 2
    sender.recv()
    sender.publish("a", b"x", 2, packet_id=3)
    assert sender.expect(Disconnect).reason == spec.RECEIVE_MAXIMUM_EXCEEDED
    assert sender.closed


def test_refused_messages_free_their_place_at_once() -> None:
    h = Harness(make_settings(receive_maximum=1))
    ask(h, False, lambda message: denied())
    sender = h.client("s", auto_ack=False)
    for number in range(1, 20):
        sender.publish("a", b"x", 1 + number % 2, packet_id=number)
    assert [reason for _, _, reason in acknowledgements(sender)] == [0x87] * 19
    assert sender.connection.inbound_open == 0
    assert not sender.closed


# QoS 2.


@LATER
def test_a_repeated_qos_2_publish_meets_no_hook_again(later: bool) -> None:
    """[MQTT-4.3.3-10] it is acknowledged again and delivered to nobody, even if denied by now."""
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")
    hooks = ask(h, later)
    sender = by_hand(h, "s")
    sender.publish("a", b"1", 2, packet_id=5)
    settle(hooks)
    sender.recv()
    h.broker.forget_decisions()
    hooks.rule = lambda message: denied()
    hooks.asked.clear()
    sender.publish("a", b"1", 2, packet_id=5, dup=True)
    assert acknowledgements(sender) == [(Pubrec, 5, 0)]
    sender.drop()
    again = by_hand(h, "s")
    again.publish("a", b"1", 2, packet_id=5, dup=True)
    again.send(Pubrel(5))
    assert acknowledgements(again) == [(Pubrec, 5, 0), (Pubcomp, 5, 0)]
    assert hooks.topics() == []
    assert len(reader.messages()) == 1


# Aliases.


def test_an_alias_that_comes_with_a_refused_topic_is_set_all_the_same() -> None:
    """[MQTT-3.3.2-12] the client goes on with the alias, whatever became of the message."""
    h = Harness()
    hooks = ask(h, False, lambda message: denied(cache=False))
    sender = h.client("s", auto_ack=False)
    sender.publish("long/topic", b"1", 1, topic_alias=1)
    sender.publish("", b"2", 1, topic_alias=1)
    assert [reason for _, _, reason in acknowledgements(sender)] == [0x87, 0x87]
    assert hooks.topics() == ["long/topic", "long/topic"]


# Taken and changed messages.


@each_qos
@LATER
def test_a_message_that_a_hook_takes_is_acknowledged_and_reaches_nobody(
    qos: int, later: bool
) -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#", qos=2)
    hooks = ask(h, later, lambda message: allowed(None))
    sender = h.client("s", auto_ack=False)
    sender.publish("a", b"1", qos, retain=True)
    settle(hooks, lambda message: allowed(None))
    assert reader.messages() == []
    assert h.broker.retained.count == 0
    # Not "no matching subscribers": a hook has it.
    expected = {0: [], 1: [(Puback, 1, 0)], 2: [(Pubrec, 1, 0)]}
    assert acknowledgements(sender) == expected[qos]


@pytest.mark.parametrize("qos", [1, 2])
def test_a_taken_message_is_acknowledged_once_what_the_hook_wrote_is_durable(qos: int) -> None:
    h = Harness(durable=True)

    def take(message: Message) -> Ruling:
        h.broker.tables.set("plugin", message.topic, message.payload)
        return allowed(None)

    Publishing(h, take, transforms=True)
    sender = h.client("s", auto_ack=False)
    sender.publish("a", b"1", qos)
    sender.expect_nothing()
    assert sender.connection.inbound_open == 1
    h.commit()
    assert acknowledgements(sender) == [(Puback if qos == 1 else Pubrec, 1, 0)]
    sender.publish("a", b"1", qos, packet_id=2)  # writes nothing: there already, and durable
    assert acknowledgements(sender) == [(Puback if qos == 1 else Pubrec, 2, 0)]


@pytest.mark.parametrize("qos", [1, 2])
def test_with_a_full_disk_nothing_is_taken(qos: int) -> None:
    h = Harness(durable=True)
    ask(h, False, lambda message: allowed(None))
    sender = h.client("s", auto_ack=False)
    h.broker.refuse(spec.QUOTA_EXCEEDED, h.now)
    sender.publish("a", b"1", qos)
    assert acknowledgements(sender) == [(Puback if qos == 1 else Pubrec, 1, spec.QUOTA_EXCEEDED)]


@LATER
@pytest.mark.parametrize(("asked", "routed"), [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)])
def test_a_message_of_another_qos_is_answered_at_the_one_the_client_chose(
    asked: int, routed: int, later: bool
) -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#", qos=2)

    def change(message: Message) -> Ruling:
        return changed(message, "b", b"other", routed)

    hooks = ask(h, later, change)
    sender = h.client("s", auto_ack=False)
    sender.publish("a", b"1", asked)
    settle(hooks, change)
    (got,) = reader.messages()
    assert (got.topic, got.payload, got.qos) == ("b", b"other", routed)
    assert acknowledgements(sender) == {0: [], 1: [(Puback, 1, 0)], 2: [(Pubrec, 1, 0)]}[asked]


def test_a_changed_topic_is_the_one_that_is_retained_and_matched() -> None:
    h = Harness()
    old = h.client("old")
    old.subscribe("a")
    ask(h, False, lambda message: changed(message, "b"))
    sender = h.client("s", auto_ack=False)
    sender.publish("a", b"1", 1, retain=True)
    assert acknowledgements(sender) == [(Puback, 1, spec.NO_MATCHING_SUBSCRIBERS)]
    assert old.messages() == []
    late = h.client("late")
    late.subscribe("+")
    assert [(got.topic, got.retain) for got in late.messages()] == [("b", True)]


@pytest.mark.parametrize("topic", ["$SYS/x", "$SYS", "$share/g/t"])
def test_no_hook_makes_a_client_write_a_reserved_topic(topic: str) -> None:
    h = Harness()
    ask(h, False, lambda message: changed(message, topic))
    sender = h.client("s")
    sender.publish("a", b"1", 1, retain=True)
    assert sender.expect(Puback).reason == spec.NOT_AUTHORIZED
    assert h.broker.retained.count == 0


def test_a_publisher_with_no_local_does_not_get_what_a_hook_made_of_its_message() -> None:
    """[MQTT-3.8.3-3]"""
    h = Harness()
    ask(h, False, lambda message: changed(message, "b"))
    sender = h.client("s")
    sender.subscribe("#", no_local=True)
    sender.publish("a", b"1")
    assert sender.messages() == []


# The end of a connection while a verdict is under way.


@pytest.mark.parametrize("how", ["lost", "kicked", "taken over", "expired"])
def test_an_answer_that_comes_too_late_does_nothing(how: str) -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")
    hooks = ask(h, True)
    sender = h.client("s", clean=False, properties=props(session_expiry_interval=100))
    sender.publish("a", b"1", 2)
    if how == "lost":
        sender.drop()
    elif how == "kicked":
        h.broker.kick("s", spec.ADMINISTRATIVE_ACTION, "", h.now)
    elif how == "taken over":
        sender = h.client("s", clean=False, properties=props(session_expiry_interval=100))
        assert sender.connack.session_present
    else:
        sender.drop()
        h.advance(200.0)
    h.flush()
    sender.recv()
    hooks.answer()
    assert reader.messages() == []
    sender.expect_nothing()
    assert h.broker.counters.bugs == 0
    if how != "expired":
        assert h.broker.sessions["s"].inbound == {}


def test_who_took_the_session_over_publishes_while_the_old_verdict_is_open() -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")
    hooks = ask(h, True)
    old = persistent(h, "s")
    old.publish("a", b"old")
    new = persistent(h, "s")
    new.publish("a", b"new")
    hooks.answer()
    hooks.answer()
    assert [got.payload for got in reader.messages()] == [b"new"]


def test_a_second_answer_does_nothing() -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")
    hooks = ask(h, True)
    sender = h.client("s")
    sender.publish("a", b"1")
    connection, message = hooks.waiting[0]
    hooks.answer()
    connection.ruled(allowed(message), h.now)
    h.flush()
    assert len(reader.messages()) == 1


# What is remembered.


def test_a_grant_is_remembered_for_its_topic() -> None:
    h = Harness()
    hooks = ask(h, False)
    sender = h.client("s")
    for topic in ("a", "a", "b", "a"):
        sender.publish(topic, b"1", 1)
    assert hooks.topics() == ["a", "b"]
    h.client("other").publish("a", b"1")
    assert hooks.topics() == ["a"]  # for one client


def test_a_refusal_is_remembered_too() -> None:
    h = Harness()
    hooks = ask(h, False, lambda message: denied())
    sender = h.client("s", auto_ack=False)
    for _ in range(3):
        sender.publish("a", b"1", 1)
    assert hooks.topics() == ["a"]
    assert [reason for _, _, reason in acknowledgements(sender)] == [0x87] * 3


@LATER
def test_what_is_not_to_be_remembered_is_asked_again(later: bool) -> None:
    h = Harness()
    hooks = ask(h, later, lambda message: allowed(message, cache=False))
    sender = h.client("s")
    for _ in range(3):
        sender.publish("a", b"1")
        settle(hooks, lambda message: allowed(message, cache=False))
    assert hooks.topics() == ["a"] * 3


def test_hooks_that_change_are_asked_every_time_and_told_of_the_grant() -> None:
    h = Harness()
    hooks = Publishing(h, allowed, transforms=True)
    sender = h.client("s")
    for _ in range(3):
        sender.publish("a", b"1")
    assert [granted for _, _, granted in hooks.asked] == [False, True, True]


def test_with_a_grant_the_short_way_is_taken() -> None:
    """QoS 0 bytes are handed on as they came once nobody wants to look at them any more."""
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")
    ask(h, False)
    sender = h.client("s")
    for payload in (b"1", b"2"):
        sender.publish("a", payload)
    assert [got.payload for got in reader.messages()] == [b"1", b"2"]


def test_forgetting_has_everything_asked_anew() -> None:
    h = Harness()
    hooks = ask(h, False)
    one, two = h.client("one"), h.client("two")
    for client in (one, two):
        client.publish("a", b"1")
    hooks.asked.clear()
    h.broker.forget_decisions("one")
    for client in (one, two):
        client.publish("a", b"1")
    assert [name for name, _, _ in hooks.asked] == ["one"]
    hooks.rule = lambda message: denied()
    hooks.asked.clear()
    h.broker.forget_decisions()
    for client in (one, two):
        client.publish("a", b"1", 1)
        assert client.expect(Puback).reason == 0x87
    assert [name for name, _, _ in hooks.asked] == ["one", "two"]
    h.broker.forget_decisions("nobody")


def test_the_memory_of_a_connection_is_bounded() -> None:
    h = Harness()
    hooks = ask(h, False)
    sender = h.client("s")
    for number in range(MAX_REMEMBERED):
        sender.publish(f"t/{number}")
    hooks.asked.clear()
    sender.publish("t/0")
    assert hooks.topics() == []
    sender.publish("one more")  # it is emptied, and begins anew
    sender.publish("t/0")
    sender.publish("one more")
    assert hooks.topics() == ["one more", "t/0"]


def test_grants_end_with_their_connection() -> None:
    h = Harness()
    hooks = ask(h, False)
    for _ in range(2):
        client = persistent(h, "s")
        client.publish("a", b"1")
        client.drop()
    assert hooks.topics() == ["a", "a"]


def test_without_hooks_nothing_is_remembered_or_suspended() -> None:
    h = Harness()
    sender = h.client("s")
    sender.publish("a", b"1", 1)
    connection = sender.connection
    assert isinstance(connection, Connection)
    assert not connection.suspended
    assert connection.state != CLOSED
    assert not connection.guarded


def test_a_grant_says_by_which_rule() -> None:
    ruling = Ruling(Grant(0, "", "acl:3"), None)
    assert (ruling.grant.rule, ruling.cache, ruling.disconnect) == ("acl:3", False, False)
