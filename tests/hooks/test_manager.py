"""The hook manager on a real core: who gets in, what fails, what is decided late."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from mqttd.api import (
    ALLOW,
    DENY,
    NOT_MINE,
    Allow,
    Client,
    ConnectRequest,
    Continue,
    Credentials,
    Decision,
    Deny,
    Message,
    Plugin,
    PluginConfig,
    reason_codes,
)
from mqttd.core.auth import Hooks
from mqttd.core.packets import Auth, Connack, Disconnect, Puback, Will
from mqttd.core.router import ListenerInfo
from mqttd.core.watch import PUBLISHED, Watcher
from tests.core.handshake_kit import connect
from tests.hooks.kit import SHORT_S, Hooked, hooked, prepared
from tests.hooks.scripted import (
    BROKEN,
    Later,
    broken,
    scripted,
)
from tests.spec.kit import props

# No plugin, no cost.


def slots(hooks: Hooks) -> dict[str, object]:
    return {name: getattr(hooks, name) for name in dir(hooks) if not name.startswith("_")}


@pytest.mark.parametrize("plugins", [[], [type("Idle", (Plugin,), {})]])
async def test_without_hooks_every_slot_is_empty(plugins: list[type[Plugin[Any]]]) -> None:
    empty = slots(Hooks())
    async with hooked(*(prepared(plugin) for plugin in plugins)) as made:
        assert slots(made.broker.hooks) == empty
        assert made.broker.context.watcher is None
        client = await made.client()
        assert client.connection.lane == 5
        assert not client.connection.guarded


SLOTS = {
    "authorize_publish": {"publish", "will"},
    "on_publish": {"publish", "will", "transforms"},
    "authorize_subscribe": {"subscribe"},
    "on_subscribe": {"subscribe"},
    "on_unsubscribe": {"unsubscribe"},
    "authorize_receive": {"receive"},
    "on_deliver": {"deliver"},
    "on_connect": set(),
    "authenticate": set(),
}


@pytest.mark.parametrize("hook", SLOTS)
async def test_a_hook_fills_its_slots_and_no_other(hook: str) -> None:
    plugin = type("One", (Plugin,), {hook: lambda *_: None})
    async with hooked(prepared(plugin)) as made:
        found = {name for name, value in slots(made.broker.hooks).items() if value}
        assert found == SLOTS[hook] | {"authenticate"}


# Fail closed, in a broker.


@broken
async def test_nobody_gets_in_by_an_authenticator_that_fails(what: str) -> None:
    plugin = prepared(scripted(authenticate=BROKEN[what]), timeout=SHORT_S)
    async with hooked(plugin) as made:
        assert await made.refused() >= 0x80
        assert made.broker.sessions == {}


@broken
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_nothing_is_published_by_a_decider_that_fails(what: str, qos: int) -> None:
    plugin = prepared(scripted(publish=BROKEN[what]), timeout=SHORT_S)
    async with hooked(plugin) as made:
        client = await made.client()
        client.auto_ack = False
        client.publish("t", b"x", qos, retain=True)
        await made.until(lambda: made.broker.counters.publish_refused)
        assert made.broker.retained.count == 0
        assert made.broker.counters.matched == 0
        assert all(getattr(packet, "reason", 0x87) >= 0x80 for packet in client.recv())


@broken
async def test_nothing_is_subscribed_by_a_decider_that_fails(what: str) -> None:
    plugin = prepared(scripted(subscribe=BROKEN[what]), timeout=SHORT_S)
    async with hooked(plugin) as made:
        client = await made.client()
        client.send_raw(b"\x82\x07\x00\x01\x00\x00\x01t\x01")
        await made.until(lambda: client.received)
        assert client.received[0].reasons[0] >= 0x80  # type: ignore[attr-defined]
        assert made.broker.trie.node_count == 0


@broken
async def test_nothing_is_received_by_a_decider_that_fails(what: str) -> None:
    async with hooked(prepared(scripted(receive=BROKEN[what]), timeout=SHORT_S)) as made:
        client = await made.client()
        client.subscribe("t")
        client.publish("t", b"x")
        assert client.messages() == []
        assert made.h.dropped == {"not_authorized": 1}


async def test_what_may_be_received_is_asked_again_where_the_answer_says_so() -> None:
    """A failure is never remembered; nor is an answer without `cache`."""
    answers: list[Any] = [RuntimeError("broken"), Allow(cache=False), DENY, ALLOW]

    def receive(client: Client, topic: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with hooked(prepared(scripted(receive=receive))) as made:
        client = await made.client()
        client.subscribe("t")
        for payload in (b"1", b"2", b"3", b"4"):
            client.publish("t", payload)
        assert [packet.payload for packet in client.messages()] == [b"2"]
        assert made.h.dropped == {"not_authorized": 3}
        assert answers == [ALLOW]  # the denial holds


class Changing(Plugin[PluginConfig]):
    """Looks at every message, on both ways."""

    delivered: ClassVar[list[int]] = []

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return Allow(rule="rules:7")

    def on_publish(self, client: Client, message: Message) -> Message:
        return message.replace(payload=b"other")

    def on_deliver(self, client: Client, message: Message) -> None:
        self.delivered.append(message.qos)


async def test_a_message_is_shown_at_the_qos_of_its_delivery() -> None:
    Changing.delivered.clear()
    async with hooked(prepared(Changing)) as made:
        client = await made.client()
        client.subscribe("t", qos=1)
        for qos in (0, 1, 2):
            client.publish("t", b"x", qos)
        assert Changing.delivered == [0, 1, 1]
        assert [packet.qos for packet in client.messages()] == [0, 1, 1]


async def test_the_rule_is_on_record_for_every_message_that_it_allowed() -> None:
    async with hooked(prepared(Changing)) as made:
        watcher = made.broker.context.watcher = Watcher(10)
        client = await made.client()
        client.publish("t", b"1")
        client.publish("t", b"2")
        rules = [trace.reason for trace in watcher.traces if trace.kind == PUBLISHED]
        assert rules == ["rules:7", "rules:7"]


@broken
async def test_no_will_goes_out_by_a_decider_that_fails(what: str) -> None:
    """Neither at CONNECT nor when it is due."""
    will = Will("w", b"x", 0, True)
    plugin = prepared(scripted(publish=BROKEN[what]), timeout=SHORT_S)
    async with hooked(plugin) as made:
        assert await made.refused(will=will) == reason_codes.NOT_AUTHORIZED
    answers = [lambda *_: ALLOW]
    plugin = prepared(scripted(publish=lambda *a: answers[-1](*a)), timeout=SHORT_S)
    async with hooked(plugin) as made:
        client = await made.client(will=will)
        answers.append(BROKEN[what])
        client.drop()
        await made.until(lambda: made.h.events("will_denied"))
        assert made.broker.retained.count == 0


async def test_what_a_chain_itself_gets_wrong_is_a_refusal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An answer of the right type with nonsense in it: told as a bug, and nobody gets in."""
    for answer in (Allow(username=7), Deny(code="no"), Allow(expires_in_s="soon")):  # type: ignore[arg-type]
        async with hooked(prepared(scripted(authenticate=lambda *_, a=answer: a))) as made:
            assert await made.refused() == reason_codes.UNSPECIFIED_ERROR
    assert caplog.text.count("bug: a chain of hooks failed") == 3


# Who gets in.


async def test_the_client_that_hooks_are_shown() -> None:
    seen: list[Client] = []

    def look(client: Client, credentials: Credentials) -> Decision:
        seen.append(client)
        assert (client.username, credentials.username) == ("claimed", "claimed")
        assert credentials.password == b"secret"
        assert "secret" not in repr(credentials)
        return Allow(username="real")

    async with hooked(prepared(scripted(authenticate=look))) as made:
        fake = await made.client("", 4, username="claimed", password=b"secret")
        (client,) = seen
        assert client.client_id == "auto-1"
        assert client.username == "real"
        assert (client.version, client.listener, client.transport) == (4, "test", "tcp")
        assert client.peer == fake.connection.peer
        assert client.address == "10.0.0.1"
        assert client.identity is None
        assert client.certificate is None
        assert made.broker.sessions["auto-1"].owner == "real"
        assert made.broker.sessions["auto-1"].guest is client


class Everybody(Plugin[PluginConfig]):
    """Has hooks, but no say in who may connect."""

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return ALLOW


class Method(Plugin[PluginConfig]):
    """Serves one method, and nobody without it."""

    auth_methods = ("M",)

    def authenticate_enhanced(
        self, client: Client, method: str, data: bytes | None, first: bool
    ) -> Continue | Allow | Deny:
        if first:
            return Continue(b"challenge")
        if data == b"right":
            return Allow(username="real", data=b"done")
        return Deny("wrong", code=0 if data == b"zero" else 0x18 if data == b"go on" else 0x87)


@pytest.mark.parametrize(
    ("plugin", "anonymous", "username", "identity", "owner"),
    [
        (Everybody, True, None, None, "anonymous"),
        (Everybody, True, "u", None, "u"),
        (Everybody, False, "u", None, None),
        (Everybody, False, None, "cert", "cert"),
        (Everybody, False, "u", "cert", "cert"),
        (scripted(authenticate=lambda *_: NOT_MINE), True, None, None, "anonymous"),
        (scripted(authenticate=lambda *_: NOT_MINE), True, "u", None, None),
        (scripted(authenticate=lambda *_: NOT_MINE), False, None, None, None),
        (scripted(authenticate=lambda *_: NOT_MINE), False, "u", "cert", "cert"),
        (scripted(authenticate=lambda *_: DENY), True, None, "cert", None),
        (Method, True, None, None, "anonymous"),
        # A name that only the method could prove isn't had for the asking.
        (Method, True, "real", None, None),
        (Method, False, None, None, None),
    ],
)
async def test_where_nobody_has_an_opinion(
    plugin: type[Plugin[Any]],
    anonymous: bool,
    username: str | None,
    identity: str | None,
    owner: str | None,
) -> None:
    async with hooked(prepared(plugin)) as made:
        made.h.listener = ListenerInfo("test", "tcp", anonymous)
        packet = made.h.open(identity=identity)
        packet.send(connect(username=username))
        await made.until(lambda: packet.received)
        answer = packet.expect(Connack)
        assert (answer.reason == 0) == (owner is not None)
        if owner is not None:
            found = made.broker.sessions["c"].owner
            assert found == (None if owner == "anonymous" else owner)


@pytest.mark.parametrize("name", ["\0plugin", "a\0", "\0"])
async def test_no_authenticator_gives_the_name_of_a_plugin_away(name: str) -> None:
    """Sessions of clients inside belong to such names."""
    async with hooked(prepared(scripted(authenticate=lambda *_: Allow(username=name)))) as made:
        assert await made.refused() == reason_codes.BAD_USER_NAME_OR_PASSWORD


async def test_a_refusal_says_why_but_not_by_which_rule() -> None:
    deny = Deny("too old", reason_codes.BAD_USER_NAME_OR_PASSWORD, rule="passwd:17")
    async with hooked(prepared(scripted(authenticate=lambda *_: deny))) as made:
        client = made.say()
        answer = client.expect(Connack)
        assert answer.reason == reason_codes.BAD_USER_NAME_OR_PASSWORD
        text = answer.properties.reason_string or ""
        assert "too old" in text
        assert "passwd:17" not in text


@pytest.mark.parametrize("seconds", [0, -5.0, 0.001, float("nan")])
async def test_credentials_that_are_no_good_any_more_end_at_once(seconds: float) -> None:
    allow = Allow(expires_in_s=seconds)
    async with hooked(prepared(scripted(authenticate=lambda *_: allow))) as made:
        client = await made.client()
        made.h.advance(0.01)
        assert client.expect(Disconnect).reason == reason_codes.NOT_AUTHORIZED


# on_connect.


async def connecting(change: Callable[[ConnectRequest], Any], **values: Any) -> tuple[Hooked, int]:
    class Changes(Plugin[PluginConfig]):
        def on_connect(self, client: Client, request: ConnectRequest) -> Any:
            return change(request)

    async with hooked(prepared(Changes)) as made:
        client = made.say(**values)
        await made.until(lambda: client.received)
        return made, client.expect(Connack).reason


async def test_a_connect_may_be_changed() -> None:
    will = Message("other", b"w", 1, True, expires_in_s=5)
    made, code = await connecting(
        lambda request: replace(
            request, client_id="new", username="u", session_expiry_s=77, keep_alive_s=9, will=will
        )
    )
    assert code == 0
    session = made.broker.sessions["new"]
    assert (session.owner, session.expiry_interval) == ("u", 77)
    assert session.will is not None
    assert (session.will.topic, session.will.payload, session.will.qos) == ("other", b"w", 1)
    assert session.will.message_expiry == 5
    client = made.h.clients[next(iter(made.h.clients))]
    assert client.connection.keep_alive == 9


@pytest.mark.parametrize(
    "values",
    [
        {"client_id": None},
        {"client_id": ""},
        {"client_id": "x" * 70000},
        {"client_id": "a\0b"},
        {"client_id": "\ud800"},
        {"username": 7},
        {"username": "\0plugin"},
        {"keep_alive_s": 70000},
        {"keep_alive_s": "long"},
        {"session_expiry_s": -1},
        {"session_expiry_s": 1 << 40},
        {"will": Message("a/#")},
        {"will": Message("$SYS/x")},
        {"will": Message("t", qos=7)},
        {"will": "t"},
    ],
)
async def test_a_connect_that_no_client_could_have_sent_is_refused(values: Any) -> None:
    made, code = await connecting(lambda request: replace(request, **values))
    assert code >= 0x80
    assert made.broker.sessions == {}


async def test_the_will_of_a_connect_is_shown_and_can_be_taken() -> None:
    seen: list[ConnectRequest] = []

    def change(request: ConnectRequest) -> ConnectRequest:
        seen.append(request)
        return replace(request, will=None)

    will = Will("w", b"x", 1, True, 30, 60)
    made, code = await connecting(change, will=will, expiry=10)
    assert code == 0
    assert seen[0].will == Message("w", b"x", 1, True, expires_in_s=60, client_id="c")
    assert seen[0].session_expiry_s == 10
    assert made.broker.sessions["c"].will is None


# Enhanced authentication.


async def test_an_exchange_in_steps_and_again() -> None:
    """[MQTT-4.12.0-5] the method in every packet, and the data of the last step in CONNACK."""
    async with hooked(prepared(Method)) as made:
        method = props(authentication_method="M")
        client = made.say(properties=method)
        auth = client.expect(Auth)
        assert auth.properties is not None
        assert auth.properties.authentication_data == b"challenge"
        client.send(Auth(0x18, props(authentication_method="M", authentication_data=b"right")))
        connack = client.expect(Connack)
        assert connack.properties.authentication_data == b"done"
        assert made.broker.sessions["c"].owner == "real"
        client.send(Auth(0x19, method))
        assert client.expect(Auth).reason == 0x18
        client.send(Auth(0x18, props(authentication_method="M", authentication_data=b"right")))
        assert client.expect(Auth).reason == 0


@pytest.mark.parametrize("data", [b"wrong", b"zero", b"go on"])
@pytest.mark.parametrize("again", [False, True])
async def test_no_code_of_a_refusal_lets_anybody_in(data: bytes, again: bool) -> None:
    async with hooked(prepared(Method)) as made:
        client = made.say(properties=props(authentication_method="M"))
        client.expect(Auth)
        if again:
            right = props(authentication_method="M", authentication_data=b"right")
            client.send(Auth(0x18, right))
            client.expect(Connack)
            client.send(Auth(0x19, props(authentication_method="M")))
            client.expect(Auth)
        client.send(Auth(0x18, props(authentication_method="M", authentication_data=data)))
        last = client.received[0]
        assert isinstance(last, Connack | Disconnect)
        assert last.reason >= 0x80
        assert client.closed


# Late answers.


async def test_a_late_answer_is_acted_upon_and_the_shell_told() -> None:
    later = Later()
    async with hooked(prepared(scripted(publish=later))) as made:
        client = await made.client()
        client.subscribe("#")
        client.publish("t", b"1", 1)
        client.publish("t", b"2", 1)
        before = made.scheduled
        await later.answer(made, Allow(cache=False))
        assert made.scheduled > before
        assert [packet.payload for packet in client.messages()] == [b"1"]
        await later.answer(made, Deny("no", cache=False))
        assert client.expect(Puback).reason == reason_codes.NOT_AUTHORIZED


async def test_a_verdict_that_was_under_way_while_all_was_forgotten_is_not_remembered() -> None:
    """It still holds for the message that waited for it."""
    later = Later()
    async with hooked(prepared(scripted(publish=later))) as made:
        client = await made.client()
        client.subscribe("#")
        client.publish("t", b"1")
        await made.until(lambda: later.asked)
        made.manager.forget_decisions(None)
        await later.answer(made, ALLOW)
        assert len(client.messages()) == 1
        client.publish("t", b"2")
        await later.answer(made, DENY)
        assert client.messages() == []
        client.publish("t", b"3", 1)  # remembered this time
        assert client.expect(Puback).reason == reason_codes.NOT_AUTHORIZED
        assert later.asked == []


async def test_a_subscription_that_was_under_way_is_looked_at_again() -> None:
    """It was allowed by decisions that nobody stands by any longer."""
    later = Later()
    answers: list[Any] = [later]
    plugin = prepared(scripted(subscribe=lambda *a: answers[-1](*a)))
    async with hooked(plugin) as made:
        client = await made.client()
        client.send_raw(b"\x82\x07\x00\x01\x00\x00\x01t\x01")
        await made.until(lambda: later.asked)
        answers.append(lambda *_: DENY)
        made.manager.forget_decisions(None)
        await made.turn()
        await later.answer(made, ALLOW)
        assert made.broker.sessions["c"].subscriptions == {}


async def test_a_resume_that_was_under_way_is_looked_at_again() -> None:
    later = Later()
    answers: list[Any] = [lambda *_: ALLOW]
    plugin = prepared(scripted(subscribe=lambda *a: answers[-1](*a)))
    async with hooked(plugin) as made:
        client = await made.client(expiry=60)
        client.subscribe("t")
        client.drop()
        answers.append(later)
        again = made.say(expiry=60, clean_start=False)
        await made.until(lambda: later.asked)
        answers.append(lambda *_: DENY)
        made.manager.forget_decisions("c")
        await later.answer(made, ALLOW)
        assert again.expect(Connack).session_present
        assert made.broker.sessions["c"].subscriptions == {}


async def test_waiting_makes_no_message_live_longer() -> None:
    class Waits(Plugin[PluginConfig]):
        async def on_publish(self, client: Client, message: Message) -> Message:
            await asyncio.sleep(0.02)
            return message.replace(payload=b"changed")

    async with hooked(prepared(Waits)) as made:
        client = await made.client()
        began = made.h.now
        client.publish("t", b"x", 1, retain=True, message_expiry=100)
        await made.until(lambda: made.broker.retained.count)
        (message,) = made.broker.retained.cursor("t").take(10)
        assert message.payload == b"changed"
        assert abs(message.expires_at - (began + 100)) < 0.015


async def test_a_bug_after_a_late_answer_ends_its_connection_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hooked(prepared(scripted())) as made:
        victim, other = await made.client("victim"), await made.client("other")

        async def rule(*_: object) -> Any:
            await asyncio.sleep(0)
            return "no ruling"

        monkeypatch.setattr(made.manager, "_rule", rule)
        victim.publish("t", b"x", 1)
        await made.until(lambda: victim.closed)
        assert victim.expect(Disconnect).reason == reason_codes.UNSPECIFIED_ERROR
        assert victim.closed
        assert "bug: exception out of the core after a late answer" in caplog.text
        assert not other.closed


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mqttd.plugins")
