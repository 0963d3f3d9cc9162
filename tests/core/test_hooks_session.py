"""Hooks around a session: SUBSCRIBE, UNSUBSCRIBE, CONNECT with late answers, wills, expiry."""

import pytest

from mqttd.core import spec
from mqttd.core.auth import AuthStep, FilterRuling, Grant, Verdict
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.message import Message
from mqttd.core.packets import (
    Auth,
    Connack,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Suback,
    Subscribe,
    Unsuback,
    Will,
)
from mqttd.core.session import Session
from tests.core.handshake_kit import accepted, connect, owner, refused, say
from tests.core.hook_kit import Admitting, Subscribing
from tests.harness import FakeClient, Harness
from tests.spec.kit import each_version, persistent, props

LATER = pytest.mark.parametrize("later", [False, True])


def subscribe(client: FakeClient, *filters: str) -> int:
    packet_id = client.next_id()
    client.send(Subscribe(packet_id, [Filter(name, 1) for name in filters]))
    return packet_id


# SUBSCRIBE.


@each_version
@LATER
def test_each_filter_has_its_own_answer(version: int, later: bool) -> None:
    """[MQTT-3.8.4-6] [MQTT-3.9.3-1] one reason code each, in order."""
    h = Harness()
    hooks = Subscribing(h, later)
    hooks.deny["secret/#"] = Grant(spec.NOT_AUTHORIZED)
    hooks.deny["busy"] = Grant(spec.QUOTA_EXCEEDED)
    reader = h.client("r", version)
    packet_id = subscribe(reader, "a", "secret/#", "busy", "b")
    if later:
        reader.expect_nothing()
        hooks.answer()
    suback = reader.expect(Suback)
    assert suback.packet_id == packet_id
    assert suback.reasons == ([1, 0x87, 0x97, 1] if version == 5 else [1, 0x80, 0x80, 1])
    assert sorted(h.broker.sessions["r"].subscriptions) == ["a", "b"]
    sender = h.client("s", version)
    for topic in ("a", "secret/x", "busy", "b"):
        sender.publish(topic, b"x")
    assert [got.topic for got in reader.messages()] == ["a", "b"]


@each_version
@pytest.mark.parametrize("code", [spec.BANNED, 0xFF, 0x1FF])
def test_a_code_that_no_suback_has_is_told_as_another(code: int, version: int) -> None:
    """[MQTT-3.9.3-2]"""
    h = Harness()
    Subscribing(h).deny["a"] = Grant(code)
    reader = h.client("r", version)
    subscribe(reader, "a")
    assert reader.expect(Suback).reasons == [spec.NOT_AUTHORIZED if version == 5 else 0x80]


def test_a_denied_filter_takes_nothing_away() -> None:
    """A subscription that is there stays as it was when a second SUBSCRIBE for it is refused."""
    h = Harness()
    hooks = Subscribing(h)
    reader = h.client("r")
    reader.subscribe("a", qos=0)
    hooks.deny["a"] = Grant(spec.NOT_AUTHORIZED)
    assert reader.subscribe("a", qos=2).reasons == [0x87]
    h.client("s").publish("a", b"x", 2)
    assert [got.qos for got in reader.messages()] == [0]


def test_a_denied_filter_replays_nothing() -> None:
    h = Harness()
    hooks = Subscribing(h)
    hooks.deny["#"] = Grant(spec.NOT_AUTHORIZED)
    h.client("s").publish("a", b"x", retain=True)
    reader = h.client("r")
    assert reader.subscribe("#").reasons == [0x87]
    reader.expect_nothing()


@LATER
def test_a_filter_may_be_changed_and_is_answered_as_granted(later: bool) -> None:
    h = Harness()
    hooks = Subscribing(h, later)
    hooks.change["mine"] = Filter("tenant/mine", 0)
    hooks.change["bad"] = Filter("a/#/b", 1)
    reader = h.client("r")
    subscribe(reader, "mine", "bad")
    if later:
        hooks.answer()
    assert reader.expect(Suback).reasons == [0, spec.TOPIC_FILTER_INVALID]
    assert list(h.broker.sessions["r"].subscriptions) == ["tenant/mine"]


def test_packets_behind_a_subscribe_wait() -> None:
    """[MQTT-4.6.0-5]"""
    h = Harness()
    hooks = Subscribing(h, later=True)
    reader = h.client("r")
    subscribe(reader, "a")
    reader.send(Pingreq())
    reader.publish("a", b"x")
    reader.expect_nothing()
    h.client("other").publish("a", b"too early")
    hooks.answer()
    kinds = [type(packet) for packet in reader.recv()]
    assert kinds[:2] == [Suback, Pingresp]
    assert len(kinds) == 3


@pytest.mark.parametrize("how", ["lost", "kicked", "taken over"])
def test_an_answer_that_comes_too_late_subscribes_nobody(how: str) -> None:
    h = Harness()
    hooks = Subscribing(h, later=True)
    reader = persistent(h, "r")
    subscribe(reader, "a")
    if how == "lost":
        reader.drop()
    elif how == "kicked":
        h.broker.kick("r", spec.ADMINISTRATIVE_ACTION, "", h.now)
    else:
        persistent(h, "r")
    h.flush()
    hooks.answer()
    assert h.broker.sessions["r"].subscriptions == {}
    assert h.broker.trie.node_count == 0
    assert h.broker.counters.bugs == 0


def test_a_hook_that_raises_refuses_all_of_it() -> None:
    h = Harness()

    def fail(connection: object, filters: list[Filter]) -> list[FilterRuling] | None:
        raise RuntimeError("broken")

    h.broker.hooks.subscribe = fail
    reader = h.client("r")
    subscribe(reader, "a", "b")
    assert reader.expect(Suback).reasons == [spec.UNSPECIFIED_ERROR] * 2
    assert h.broker.counters.hook_failures == 1
    assert h.broker.sessions["r"].subscriptions == {}
    assert not reader.connection.suspended


def test_a_hook_that_closes_the_connection_subscribes_nobody() -> None:
    h = Harness()

    def close(connection: object, filters: list[Filter]) -> list[FilterRuling] | None:
        h.broker.kick("r", spec.ADMINISTRATIVE_ACTION, "", h.now)
        return [FilterRuling(entry, Grant()) for entry in filters]

    h.broker.hooks.subscribe = close
    reader = h.client("r")
    subscribe(reader, "a")
    assert reader.expect(Disconnect).reason == spec.ADMINISTRATIVE_ACTION
    reader.expect_nothing()
    assert h.broker.trie.node_count == 0
    assert h.broker.counters.bugs == 0


def test_an_unsubscribe_is_for_the_filter_that_is_meant() -> None:
    h = Harness()
    h.broker.hooks.unsubscribe = lambda connection, topic_filter: "tenant/" + topic_filter
    hooks = Subscribing(h)
    hooks.change["a"] = Filter("tenant/a", 1)
    reader = h.client("r")
    reader.subscribe("a")
    assert reader.unsubscribe("a").reasons == [0]
    assert h.broker.sessions["r"].subscriptions == {}


def test_an_unsubscribe_hook_that_raises_changes_nothing() -> None:
    h = Harness()

    def fail(connection: object, topic_filter: str) -> str:
        raise RuntimeError("broken")

    h.broker.hooks.unsubscribe = fail
    reader = h.client("r")
    reader.subscribe("a")
    answer = reader.unsubscribe("a")
    assert isinstance(answer, Unsuback)
    assert answer.reasons == [0]
    assert h.broker.counters.hook_failures == 1


# CONNECT.


def test_the_name_that_a_hook_gives_owns_the_session() -> None:
    h = Harness()
    hooks = Admitting(h, None)
    client = say(h, connect(username="claimed"))
    client.expect_nothing()
    hooks.answer(Verdict(True, username="real"))
    accepted(client)
    assert owner(h) == "real"


@pytest.mark.parametrize("code", [0, 1, 0x18, 0x7F, 0x8B, 300])
def test_no_code_of_a_hook_makes_a_refusal_a_success(code: int) -> None:
    """[MQTT-3.2.2-8] whatever a hook says, the client is told of an error."""
    h = Harness()
    Admitting(h, Verdict(False, code))
    answer = refused(say(h, connect()))
    assert answer.reason >= 0x80
    assert "c" not in h.broker.sessions


def test_packets_behind_connect_wait_for_the_answer() -> None:
    h = Harness()
    hooks = Admitting(h, None)
    client = say(h, connect())
    client.send(Pingreq())
    client.expect_nothing()
    hooks.answer(Verdict(True))
    assert [type(packet) for packet in client.recv()] == [Connack, Pingresp]


def test_an_answer_for_who_has_gone_admits_nobody() -> None:
    h = Harness()
    hooks = Admitting(h, None)
    client = say(h, connect())
    client.drop()
    hooks.answer(Verdict(True))
    assert h.broker.sessions == {}
    assert h.broker.counters.clients_connected == 0


def test_nobody_waits_for_an_answer_for_ever() -> None:
    h = Harness()
    hooks = Admitting(h, None)
    client = say(h, connect())
    h.advance(h.broker.settings.connect_timeout + 1)
    assert client.closed
    hooks.answer(Verdict(True))
    assert h.broker.sessions == {}


def test_a_session_is_not_touched_while_the_answer_is_awaited() -> None:
    """[MQTT-3.1.4-3] only who is admitted takes a session over."""
    h = Harness()
    hooks = Admitting(h, Verdict(True))
    old = h.client("c", expiry=100)
    hooks.verdict = None
    new = say(h, connect(clean_start=True))
    assert not old.closed
    hooks.answer(Verdict(False, spec.BAD_USER_NAME_OR_PASSWORD))
    refused(new)
    assert not old.closed
    assert "c" in h.broker.sessions


def test_credentials_that_expire_end_the_connection() -> None:
    h = Harness()
    Admitting(h, Verdict(True, valid_s=30.0))
    client = h.client("c")
    h.advance(29.0)
    assert not client.closed
    h.advance(2.0)
    bye = client.expect(Disconnect)
    assert bye.reason == spec.NOT_AUTHORIZED
    assert client.closed


def test_credentials_expire_before_and_after_the_keep_alive() -> None:
    h = Harness()
    Admitting(h, Verdict(True, valid_s=30.0))
    long = h.client("long", keep_alive=100)
    short = h.client("short", keep_alive=10)
    h.advance(16.0)
    assert short.expect(Disconnect).reason == spec.KEEP_ALIVE_TIMEOUT
    h.advance(15.0)
    assert long.expect(Disconnect).reason == spec.NOT_AUTHORIZED


def test_authenticating_again_extends_the_credentials() -> None:
    """[MQTT-4.12.1-1] and [MQTT-4.12.1-2]: the same user, for as long as the new ones are good."""
    h = Harness()
    steps: list[AuthStep] = []
    h.broker.hooks.enhanced_methods = ("M",)
    h.broker.hooks.enhanced = lambda connection, method, data, first: steps.pop(0)
    method = props(authentication_method="M")
    steps.append(AuthStep(spec.SUCCESS, verdict=Verdict(True, username="u", valid_s=10.0)))
    client = h.client("c", properties=method)
    steps.append(AuthStep(spec.SUCCESS, verdict=Verdict(True, username="u", valid_s=50.0)))
    h.advance(5.0)
    client.send(Auth(spec.REAUTHENTICATE, method))
    assert client.expect(Auth).reason == spec.SUCCESS
    h.advance(49.0)
    assert not client.closed
    h.advance(2.0)
    assert client.expect(Disconnect).reason == spec.NOT_AUTHORIZED


# What a session comes back to.


def test_subscriptions_that_are_allowed_no_longer_are_gone_at_resume() -> None:
    h = Harness()
    hooks = Admitting(h, Verdict(True))
    client = persistent(h, "c")
    for name in ("a", "b", "$share/g/b"):
        client.subscribe(name, qos=1)
    client.drop()
    sender = h.client("s")
    sender.publish("b", b"queued", 1)
    hooks.verdict = Verdict(True, revoked=["b", "$share/g/b", "never there"])
    again = persistent(h, "c")
    assert again.connack.session_present
    assert list(h.broker.sessions["c"].subscriptions) == ["a"]
    again.recv()
    sender.publish("b", b"later", 1)
    again.expect_nothing()
    assert h.broker.trie.lookup(b"b").groups == []


def test_what_is_taken_away_is_taken_away_for_good() -> None:
    """The answer waits until the store knows: a crash must not bring a subscription back."""
    h = Harness(durable=True)
    hooks = Admitting(h, Verdict(True))
    client = persistent(h, "c")
    h.commit()
    client.send(Subscribe(1, [Filter("a", 1)]))
    h.commit()
    client.drop()
    h.commit()
    hooks.verdict = Verdict(True, revoked=["a"])
    again = say(h, connect(clean_start=False, properties=props(session_expiry_interval=3600)))
    again.expect_nothing()
    h.commit()
    assert accepted(again).session_present


# Wills.


class Wills:
    """`Hooks.will`: what it was given; `publish` decides whether it goes out."""

    def __init__(self, broker: Broker, now: float, publish: bool) -> None:
        self.broker = broker
        self.now = now
        self.publish = publish
        self.seen: list[tuple[str, str]] = []
        broker.hooks.will = self.will

    def will(self, session: object, message: Message) -> bool:
        assert isinstance(session, Session)
        self.seen.append((session.client_id, message.topic))
        if self.publish:
            self.broker.publish_will(message, session, self.now)
        return True


WILL = Will("will", b"gone", 1, False)


@pytest.mark.parametrize("publish", [True, False])
def test_a_will_is_published_if_the_hook_says_so(publish: bool) -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#", qos=1)
    wills = Wills(h.broker, h.now, publish)
    h.client("c", will=WILL).drop()
    assert wills.seen == [("c", "will")]
    assert len(reader.messages()) == publish
    assert h.broker.counters.wills_published == publish


def test_a_will_that_the_client_discards_is_not_asked_about() -> None:
    """[MQTT-3.14.4-3]"""
    h = Harness()
    wills = Wills(h.broker, h.now, True)
    h.client("c", will=WILL).disconnect()
    assert wills.seen == []


def test_a_will_hook_that_raises_keeps_the_will_back() -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#")

    def fail(session: object, message: Message) -> bool:
        raise RuntimeError("broken")

    h.broker.hooks.will = fail
    h.client("c", will=WILL).drop()
    assert reader.messages() == []
    assert h.broker.counters.hook_failures == 1
    assert h.broker.counters.bugs == 0


def test_a_delayed_will_is_asked_about_when_it_is_due() -> None:
    h = Harness()
    wills = Wills(h.broker, h.now, True)
    h.client("c", will=Will("w", b"", 0, False, 30), expiry=100).drop()
    assert wills.seen == []
    h.advance(31.0)
    assert wills.seen == [("c", "w")]


def test_no_hook_makes_a_will_of_a_reserved_topic() -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("$SYS/#")

    def rewrite(session: object, message: Message) -> bool:
        assert isinstance(session, Session)
        made = Message("$SYS/x", b"$SYS/x", b"", 0, False, b"", 0.0, "c")
        h.broker.publish_will(made, session, h.now)
        return True

    h.broker.hooks.will = rewrite
    h.client("c", will=WILL).drop()
    assert reader.messages() == []
    assert h.broker.counters.wills_published == 0


def test_a_will_that_is_allowed_later_goes_out_though_its_session_has_ended() -> None:
    h = Harness()
    reader = h.client("r")
    reader.subscribe("#", qos=1)
    waiting: list[tuple[Session, Message]] = []

    def later(session: object, message: Message) -> bool:
        assert isinstance(session, Session)
        waiting.append((session, message))
        return False

    h.broker.hooks.will = later
    h.client("c", will=WILL).drop()
    assert "c" not in h.broker.sessions
    session, message = waiting[0]
    h.broker.will_decided(message, message, session, h.now)
    h.flush()
    assert [got.payload for got in reader.messages()] == [b"gone"]
    assert h.broker.balance() == (0, 0)


def test_what_hooks_know_a_client_by_stays_with_its_session() -> None:
    h = Harness()
    guest = object()
    Admitting(h, Verdict(True, guest=guest))
    client = persistent(h, "c")
    connection = client.connection
    assert isinstance(connection, Connection)
    assert connection.guest is guest
    client.drop()
    assert h.broker.sessions["c"].guest is guest
