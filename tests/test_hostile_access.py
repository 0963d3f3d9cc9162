"""Ways past who may do what, tried on the hooks themselves: every right is a plugin's answer.

Each test bears the name of the report it comes from; docs/hostile.md lists them all. What the first
party plugins make of the same attacks is in plugins/test_hostile_*.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from mqttd.api import (
    ALLOW,
    DENY,
    NOT_MINE,
    Allow,
    Client,
    Credentials,
    Decision,
    Drop,
    Message,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
    matches,
)
from mqttd.core import spec
from mqttd.core.packets import Connack, Puback, Publish, Pubrec, Pubrel, Suback, Subscribe, Will
from mqttd.core.packets import Filter as CoreFilter
from tests.harness import FakeClient
from tests.hooks.kit import Hooked, hooked, prepared
from tests.hooks.scripted import Later
from tests.net.kit import Wire, loopback, running

DENIED = spec.NOT_AUTHORIZED


class Rights(Plugin[PluginConfig]):
    """Who claims a name has it. `write` and `read` are (user, filter) pairs that are denied."""

    def __init__(self, config: PluginConfig, broker: Any) -> None:
        super().__init__(config, broker)
        self.write: set[tuple[str, str]] = set()
        self.read: set[tuple[str, str]] = set()
        self.filters: set[tuple[str, str]] = set()

    def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        return Allow(username=credentials.username)

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return _denied(self.write, client, topic)

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return _denied(self.read, client, topic)

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        wanted = (client.username or "", subscription.inner_filter)
        return DENY if wanted in self.filters else ALLOW


def _denied(pairs: set[tuple[str, str]], client: Client, topic: str) -> Decision:
    return DENY if any(u == client.username and matches(f, topic) for u, f in pairs) else ALLOW


def rights(made: Hooked) -> Rights:
    found = made.manager.plugin("rights")
    assert isinstance(found, Rights)
    return found


async def revoke(made: Hooked, client_id: str | None = None) -> None:
    """The rights have changed, and the plugin says so."""
    made.manager.services["rights"].forget_decisions(client_id)
    await made.turn()


async def user(made: Hooked, name: str, **values: Any) -> FakeClient:
    """The client of a user, with a session that lasts; its id is the user's name."""
    return await made.client(name, username=name, expiry=1000, **values)


def topics(client: FakeClient) -> list[str]:
    return [packet.topic for packet in client.messages()]


# Rights that change under a session.


async def test_rabbitmq_17562_a_resumed_session_has_only_what_is_allowed_now() -> None:
    async with hooked(prepared(Rights)) as made:
        mallory = await user(made, "mallory")
        for name in ("a", "b", "$share/g/b", "#"):
            mallory.subscribe(name, qos=1)
        mallory.drop()
        rights(made).filters |= {("mallory", "b"), ("mallory", "#")}
        await revoke(made)
        again = await user(made, "mallory", clean_start=False)
        assert again.connack.session_present
        alice = await user(made, "alice")
        for topic in ("a", "b", "c"):
            alice.publish(topic, b"x", 1)
        assert topics(again) == ["a"]


async def test_cve_2021_34434_a_revoked_subscription_ends_while_its_client_is_connected() -> None:
    async with hooked(prepared(Rights)) as made:
        mallory = await user(made, "mallory")
        mallory.subscribe("secret", qos=2)
        rights(made).filters.add(("mallory", "secret"))
        await revoke(made)
        (await user(made, "alice")).publish("secret", b"x", 2)
        assert topics(mallory) == []
        assert made.broker.balance() == (0, 0)


async def test_cve_2018_12546_a_retained_message_is_checked_for_its_reader() -> None:
    """By what holds when it is read: neither the writer's rights nor an older verdict count."""
    async with hooked(prepared(Rights)) as made:
        alice = await user(made, "alice")
        alice.publish("secret", b"x", 1, retain=True)
        alice.publish("open", b"x", 1, retain=True)
        mallory = await user(made, "mallory")
        mallory.subscribe("#")
        assert sorted(topics(mallory)) == ["open", "secret"]
        rights(made).read.add(("mallory", "secret"))
        await revoke(made)
        mallory.subscribe("#")
        assert topics(mallory) == ["open"]
        rights(made).write.add(("alice", "#"))  # what it wrote while it might stays
        await revoke(made)
        mallory.subscribe("#")
        assert topics(mallory) == ["open"]


async def test_emqx_10192_what_waits_is_judged_when_it_leaves() -> None:
    """In flight, in a queue, in a replay: each sending is a delivery."""
    async with hooked(prepared(Rights)) as made:
        mallory = await user(made, "mallory")
        mallory.auto_ack = False
        mallory.subscribe("#", qos=2)
        alice = await user(made, "alice")
        alice.publish("secret", b"in flight", 2)
        assert topics(mallory) == ["secret"]
        mallory.drop()
        alice.publish("secret", b"queued", 1)
        alice.publish("open", b"queued", 1)
        rights(made).read.add(("mallory", "secret"))
        again = await user(made, "mallory", clean_start=False)
        assert topics(again) == ["open"]
        assert made.h.dropped == {"not_authorized": 2}


async def test_emqx_10192_a_will_is_judged_when_it_is_due() -> None:
    async with hooked(prepared(Rights)) as made:
        alice = await user(made, "alice")
        alice.subscribe("#")
        mallory = await user(made, "mallory", will=Will("w", b"x", 1, True, 10))
        mallory.drop()
        rights(made).write.add(("mallory", "w"))
        made.h.advance(11.0)
        await made.turn()
        assert topics(alice) == []
        assert made.broker.retained.count == 0


async def test_mosquitto_2_0_12_an_unfinished_qos_2_exchange_publishes_nothing_later() -> None:
    """Judged at PUBLISH, where it is routed: neither PUBREL nor a repetition is a second chance."""
    async with hooked(prepared(Rights)) as made:
        alice = await user(made, "alice")
        alice.subscribe("#")
        mallory = await user(made, "mallory")
        mallory.auto_ack = False
        mallory.publish("t", b"allowed", 2, packet_id=1)
        assert topics(alice) == ["t"]
        mallory.drop()
        rights(made).write.add(("mallory", "t"))
        again = await user(made, "mallory", clean_start=False)
        again.auto_ack = False
        again.publish("t", b"allowed", 2, packet_id=1, dup=True)
        again.send(Pubrel(1))
        again.publish("t", b"denied", 2, packet_id=2)
        assert [packet.reason for packet in again.recv() if isinstance(packet, Pubrec)] == [
            0,
            DENIED,
        ]
        assert topics(alice) == []


# Wills.


@pytest.mark.parametrize("topic", ["secret", "$SYS/broker/version", "$share/g/t"])
async def test_mochi_503_a_will_needs_the_right_to_publish(topic: str) -> None:
    async with hooked(prepared(Rights)) as made:
        rights(made).write.add(("mallory", "secret"))
        will = Will(topic, b"x", 1, True)
        assert await made.refused("m", username="mallory", will=will) == DENIED
        assert made.broker.sessions == {}


async def test_mochi_503_a_refused_will_leaves_the_session_and_its_old_will_alone() -> None:
    async with hooked(prepared(Rights)) as made:
        mallory = await user(made, "mallory", will=Will("w", b"x", 1, False))
        rights(made).write.add(("mallory", "secret"))
        bad = Will("secret", b"x", 1, False)
        assert await made.refused("mallory", username="mallory", will=bad) == DENIED
        assert not mallory.closed
        session = made.broker.sessions["mallory"]
        assert session.will is not None
        assert session.will.topic == "w"


# Filters that reach further than their text.


@pytest.mark.parametrize("name", ["t/#", "$share/g/t/#", "$share/t/t/#", "$share/other/t/#"])
async def test_shared_subscription_acl_sees_the_inner_filter(name: str) -> None:
    async with hooked(prepared(Rights)) as made:
        rights(made).filters.add(("mallory", "t/#"))
        mallory = await user(made, "mallory")
        assert mallory.subscribe(name).reasons == [DENIED]
        (await user(made, "alice")).publish("t/x", b"x")
        assert topics(mallory) == []


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_shared_subscription_acl_a_message_goes_to_who_may_have_it(qos: int) -> None:
    async with hooked(prepared(Rights)) as made:
        rights(made).read.add(("mallory", "secret"))
        mallory, bob = await user(made, "mallory"), await user(made, "bob")
        for client in (mallory, bob):
            client.subscribe("$share/g/#", qos=qos)
        alice = await user(made, "alice")
        for _ in range(4):
            alice.publish("secret", b"x", qos)
        assert topics(mallory) == []
        assert topics(bob) == ["secret"] * 4


@pytest.mark.parametrize("name", ["#", "+/x", "secret/+", "secret/#", "+/+", "$share/g/#"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_wildcard_acl_a_denied_topic_arrives_through_no_filter(name: str, qos: int) -> None:
    async with hooked(prepared(Rights)) as made:
        rights(made).read.add(("mallory", "secret/x"))
        mallory = await user(made, "mallory")
        mallory.subscribe(name, qos=qos)
        alice = await user(made, "alice")
        alice.publish("secret/x", b"live", qos)
        alice.publish("secret/x", b"retained", qos, retain=True)
        mallory.subscribe(name, qos=qos)
        assert topics(mallory) == []


async def test_dollar_topics_are_written_by_no_hook_and_no_client() -> None:
    class Renames(Plugin[PluginConfig]):
        def on_publish(self, client: Client, message: Message) -> Message:
            return message.replace(topic="$SYS/" + message.topic)

    async with hooked(prepared(Renames)) as made:
        reader = await made.client("r")
        reader.subscribe("$SYS/#")
        mallory = await made.client("m", will=Will("w", b"x", 1, True))
        mallory.publish("x", b"x", 1, retain=True)
        mallory.publish("$SYS/x", b"x", 1, retain=True)
        assert [mallory.expect(Puback).reason for _ in range(2)] == [DENIED] * 2
        mallory.drop()
        await made.turn()
        assert topics(reader) == []
        assert made.broker.retained.count == 0


# Topics that a plugin changes.


class Renaming(Plugin[PluginConfig]):
    """Makes "secret" of "plain": of topics that come, filters, and topics that go."""

    def on_publish(self, client: Client, message: Message) -> Message | None:
        return message.replace(topic="secret") if message.topic == "plain" else None

    def on_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> SubscriptionRequest | None:
        if subscription.topic_filter == "plain":
            return SubscriptionRequest("secret", subscription.qos)
        return None


class Leaving(Plugin[PluginConfig]):
    def on_deliver(self, client: Client, message: Message) -> Message | Drop | None:
        return message.replace(topic="secret") if message.topic == "open" else None


@pytest.mark.parametrize("first", [True, False])
async def test_mosquitto_3670_a_topic_is_judged_as_it_is_in_the_end(first: bool) -> None:
    """In whichever order the plugins stand."""
    order = [prepared(Renaming), prepared(Rights)]
    async with hooked(*(order if first else order[::-1])) as made:
        alice = await user(made, "alice")
        alice.subscribe("#")
        mallory = await user(made, "mallory")
        rights(made).write.add(("mallory", "secret"))
        for _ in range(2):  # also with the grant for "plain" remembered
            mallory.publish("plain", b"x", 1, retain=True)
            assert mallory.expect(Puback).reason == DENIED
        assert topics(alice) == []


@pytest.mark.parametrize("first", [True, False])
async def test_mosquitto_3671_a_filter_is_judged_as_it_is_in_the_end(first: bool) -> None:
    order = [prepared(Renaming), prepared(Rights)]
    async with hooked(*(order if first else order[::-1])) as made:
        mallory = await user(made, "mallory")
        rights(made).filters.add(("mallory", "secret"))
        assert mallory.subscribe("plain").reasons == [DENIED]
        assert made.broker.trie.node_count == 0


async def test_mosquitto_3672_what_goes_out_is_judged_as_it_is_in_the_end() -> None:
    async with hooked(prepared(Leaving), prepared(Rights)) as made:
        mallory, bob = await user(made, "mallory"), await user(made, "bob")
        for client in (mallory, bob):
            client.subscribe("open")
        rights(made).read.add(("mallory", "secret"))
        (await user(made, "alice")).publish("open", b"x")
        assert topics(mallory) == []
        assert topics(bob) == ["secret"]


# Nobody says yes.


class Silent(Plugin[PluginConfig]):
    """Has an opinion on nothing, as an access list without rules."""

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return NOT_MINE

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        return NOT_MINE

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return NOT_MINE


async def test_cve_2018_12550_no_opinion_is_no() -> None:
    async with hooked(prepared(Silent)) as made:
        client = await made.client()
        assert client.subscribe("#").reasons == [DENIED]
        client.publish("t", b"x", 1)
        assert client.expect(Puback).reason == DENIED
        assert await made.refused("other", will=Will("w", b"", 0, False)) == DENIED


async def test_cve_2018_20145_every_listener_asks_the_same_plugins(tmp_path: Path) -> None:
    """Named or not, also where anonymous clients are let in, and on a Unix socket."""
    path = tmp_path / "s"
    config: dict[str, object] = {
        "listeners": [
            loopback(name="one"),
            loopback(name="two", allow_anonymous=True),
            {"name": "three", "bind": f"unix:{path}"},
        ],
        "plugins": [{"use": f"{__name__}:Silent"}],
    }
    async with running(config) as app:
        wires = [await Wire.open(listener.port) for listener in app.listeners[:2]]
        wires.append(Wire(*await asyncio.open_unix_connection(path)))
        for number, wire in enumerate(wires):
            async with wire:
                assert (await wire.connect(f"c{number}")).reason == 0
                wire.send(Subscribe(1, [CoreFilter("t", 0)]))
                assert (await wire.receive(Suback)).reasons == [DENIED]
                wire.publish("t", b"x", 1, 2)
                assert (await wire.receive(Puback)).reason == DENIED


# Sessions that are somebody else's.


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("online", [True, False])
async def test_session_theft_by_client_id(clean: bool, online: bool) -> None:
    """A name of one's own and the id of another: nothing is taken over, seen or ended."""
    async with hooked(prepared(Rights)) as made:
        alice = await user(made, "alice")
        alice.subscribe("mail", qos=1)
        if not online:
            alice.drop()
        for name in ("mallory", None):
            assert await made.refused("alice", username=name, clean_start=clean) == DENIED
        session = made.broker.sessions["alice"]
        assert session.owner == "alice"
        assert list(session.subscriptions) == ["mail"]
        (await user(made, "bob")).publish("mail", b"x", 1)
        if online:
            assert not alice.closed
        else:
            alice = await user(made, "alice", clean_start=False)
        assert topics(alice) == ["mail"]


async def test_session_theft_while_the_answer_is_awaited() -> None:
    """Whose session it is shows when the answer comes, not when the question was asked."""
    later = Later()

    class Waits(Plugin[PluginConfig]):
        def authenticate(self, client: Client, credentials: Credentials) -> Any:
            return later()

    async with hooked(prepared(Waits)) as made:
        thief = made.say("phone", username="mallory")
        owner = made.say("phone", username="alice", expiry=100)
        await made.until(lambda: len(later.asked) == 2)
        first = later.asked.pop(0)
        await later.answer(made, ALLOW)
        assert owner.expect(Connack).reason == 0
        first.set_result(ALLOW)
        await made.turn()
        assert thief.expect(Connack).reason == DENIED
        assert not owner.closed
        assert made.broker.sessions["phone"].owner == "alice"


# Plugins that break.


HOOKS = (
    *("authenticate", "authorize_publish", "authorize_subscribe", "authorize_receive"),
    *("on_connect", "on_subscribe", "on_unsubscribe", "on_publish", "on_deliver", "observe"),
)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("policy", ["deny", "skip"])
async def test_cve_2026_95842_an_exception_in_any_hook_ends_nothing_but_its_own_matter(
    hook: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [False]

    def fail(self: Any, *arguments: Any) -> Any:
        if broken[0]:
            raise RuntimeError("broken")
        return ALLOW if hook.startswith("auth") else None

    caplog.set_level(logging.ERROR, "mqttd.plugins")
    watches = frozenset({"published"})
    plugin = type("Breaks", (Plugin,), {hook: fail, "watches": watches})
    async with hooked(prepared(plugin, on_failure=policy, breaker={"failures": 0})) as made:
        witness, victim = await made.client("witness"), await made.client("victim")
        witness.subscribe("mine")
        victim.subscribe("t", qos=1)
        broken[0] = True
        victim.send(Subscribe(1, [CoreFilter("u", 1)]))
        victim.unsubscribe("u")
        for qos in (0, 1, 2):
            victim.publish("t", b"x", qos)
        made.say("newcomer", will=Will("w", b"x", 0, False)).drop()
        await made.turn()
        assert caplog.text.count("plugin breaks failed in " + hook) == 1
        assert not victim.closed
        assert not witness.closed
        broken[0] = False
        made.manager.forget_decisions(None)
        witness.publish("mine", b"x", 1)
        await made.turn()
        assert [packet.topic for packet in witness.recv() if isinstance(packet, Publish)] == [
            "mine"
        ]
        assert made.broker.counters.bugs == 0


async def test_log_injection_a_plugin_tells_of_clients_on_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a plugin passes to `audit` is the client's text, and is escaped as such."""
    from mqttd.log import TextFormatter

    caplog.set_level(logging.INFO, "mqttd.audit")
    async with hooked(prepared(Silent)) as made:
        evil = "a\nlevel=error\x1b[31m\r" + "x" * 5000
        made.manager.services["silent"].audit("banned", client=evil)
    text = TextFormatter().format(caplog.records[0])
    assert "\n" not in text
    assert "\r" not in text
    assert "\x1b" not in text
    assert len(text) < 2000
