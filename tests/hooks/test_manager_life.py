"""The hook manager on a real core: what is forgotten, wills, start and stop."""

import asyncio
import logging
from typing import Any, ClassVar

import pytest

from mqttd.api import (
    ALLOW,
    DENY,
    NOT_MINE,
    Allow,
    BrokerServices,
    Client,
    Continue,
    Decision,
    Deny,
    Drop,
    Message,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
    reason_codes,
)
from mqttd.core.packets import Auth, Disconnect, Filter, Puback, Suback, Subscribe, Will
from mqttd.hooks.guard import WATCH
from mqttd.hooks.manager import HookManager, PluginError
from tests.core.rig import make_message
from tests.hooks.kit import SHORT_S, hooked, prepared
from tests.hooks.scripted import hanging, scripted
from tests.spec.kit import props

# Forgetting.


async def test_what_is_denied_now_is_taken_from_who_is_connected() -> None:
    denied: set[str] = set()

    def decide(client: Client, name: str) -> Decision:
        return DENY if name in denied else ALLOW

    async with hooked(prepared(scripted(subscribe=decide))) as made:
        one, two = await made.client("one"), await made.client("two")
        away = await made.client("away", expiry=60)
        for client in (one, two, away):
            client.subscribe("a")
            client.subscribe("b")
        away.drop()
        denied.add("a")
        made.manager.forget_decisions("one")
        await made.turn()
        found = {name: sorted(s.subscriptions) for name, s in made.broker.sessions.items()}
        assert found == {"one": ["b"], "two": ["a", "b"], "away": ["a", "b"]}
        made.manager.forget_decisions(None)
        await made.turn()
        found = {name: sorted(s.subscriptions) for name, s in made.broker.sessions.items()}
        assert found == {"one": ["b"], "two": ["b"], "away": ["a", "b"]}
        await made.client("away", expiry=60, clean_start=False)
        assert sorted(made.broker.sessions["away"].subscriptions) == ["b"]
        assert len(made.h.events("unsubscribed")) == 2


@pytest.mark.parametrize("may_receive", [True, False])
async def test_what_is_queued_is_kept_back_by_who_decides_about_receiving(
    may_receive: bool,
) -> None:
    denied: set[str] = set()

    def subscribe(client: Client, topic_filter: str) -> Decision:
        return DENY if topic_filter in denied else ALLOW

    def receive(client: Client, topic: str) -> Decision:
        return ALLOW if may_receive or topic not in denied else DENY

    async with hooked(prepared(scripted(subscribe=subscribe, receive=receive))) as made:
        reader = await made.client("r", clean_start=False, expiry=100)
        reader.subscribe("t", qos=1)
        reader.drop()
        (await made.client("s")).publish("t", b"secret", 1)
        denied.add("t")
        made.manager.forget_decisions(None)
        reader = await made.client("r", clean_start=False, expiry=100)
        assert made.broker.sessions["r"].subscriptions == {}
        assert len(reader.messages()) == may_receive


async def test_a_session_of_somebody_else_is_not_looked_into() -> None:
    asked: list[str] = []

    def decide(client: Client, name: str) -> Decision:
        asked.append(name)
        return DENY

    plugin = scripted(
        authenticate=lambda client, credentials: Allow(username=client.username),
        subscribe=lambda *_: ALLOW,
    )
    async with hooked(prepared(plugin)) as made:
        owner = await made.client(username="alice", expiry=60)
        owner.subscribe("t")
        owner.drop()
        plugin.subscribe_ = staticmethod(decide)
        assert await made.refused(username="mallory", clean_start=False) == 0x87
        assert asked == []
        assert list(made.broker.sessions["c"].subscriptions) == ["t"]


async def test_authenticating_again_has_everything_decided_anew() -> None:
    asked: list[str] = []

    class Renews(Plugin[PluginConfig]):
        auth_methods = ("M",)

        def authenticate_enhanced(
            self, client: Client, method: str, data: bytes | None, first: bool
        ) -> Continue | Allow | Deny:
            return ALLOW

        def authorize_subscribe(
            self, client: Client, subscription: SubscriptionRequest
        ) -> Decision:
            asked.append(subscription.topic_filter)
            return ALLOW if len(asked) == 1 else DENY

        def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
            asked.append(topic)
            return ALLOW

    async with hooked(prepared(Renews)) as made:
        method = props(authentication_method="M")
        client = await made.client(properties=method)
        client.subscribe("filter")
        for _ in range(2):
            client.publish("topic", b"x")
        assert asked == ["filter", "topic"]
        client.send(Auth(0x19, method))
        await made.turn()
        client.publish("topic", b"x")
        assert asked == ["filter", "topic", "filter", "topic"]
        assert made.broker.sessions["c"].subscriptions == {}


@pytest.mark.parametrize("hook", ["subscribe", "receive", "publish"])
async def test_a_denial_may_end_the_connection(hook: str) -> None:
    """After what it denies was answered."""
    deny = Deny("go away", reason_codes.QUOTA_EXCEEDED, disconnect=True)
    async with hooked(prepared(scripted(**{hook: lambda *_: deny}))) as made:
        other = await made.client("other")
        client = await made.client()
        client.send(Subscribe(1, [Filter("t", 1)]))
        if hook == "publish":
            client.publish("t", b"x", 1)
        elif hook == "receive":
            made.h.broker.submit(make_message(topic="t"), made.h.now)
        await made.turn()
        kinds = [type(packet) for packet in client.received]
        assert kinds == [Suback, *([Puback] if hook == "publish" else []), Disconnect]
        bye = client.received[-1]
        assert isinstance(bye, Disconnect)
        assert bye.reason == reason_codes.QUOTA_EXCEEDED
        assert not other.closed


# Wills.

DELAY_S = 5


async def test_a_will_is_decided_upon_when_it_is_due_and_may_be_changed() -> None:
    class Renames(Plugin[PluginConfig]):
        def on_publish(self, client: Client, message: Message) -> Message | Drop:
            assert client.username == "u"
            if message.topic == "taken":
                return Drop()
            return message.replace(topic=client.username + "/" + message.topic)

    async with hooked(prepared(Renames)) as made:
        reader = await made.client("r", username="u")
        reader.subscribe("#")
        for topic in ("w", "taken"):
            client = await made.client(username="u", will=Will(topic, b"x", 0, False))
            client.drop()
            await made.turn()
        assert [packet.topic for packet in reader.messages()] == ["u/w"]


async def test_a_will_of_an_earlier_process_is_asked_about_by_its_owner() -> None:
    seen: list[tuple[str, str | None]] = []

    def decide(client: Client, topic: str) -> Decision:
        seen.append((client.client_id, client.username))
        return ALLOW

    async with hooked(prepared(scripted(publish=decide))) as made:
        client = await made.client(username="u", expiry=60, will=Will("w", b"x", 0, True, DELAY_S))
        client.drop()
        seen.clear()
        session = made.broker.sessions["c"]
        session.guest = None  # as after a restart
        made.h.advance(DELAY_S + 1.0)
        assert seen == [("c", "u")]
        assert made.broker.retained.count == 1


async def test_no_plugin_makes_a_will_of_a_reserved_topic() -> None:
    class Renames(Plugin[PluginConfig]):
        def on_publish(self, client: Client, message: Message) -> Message:
            return message.replace(topic="$SYS/broker/uptime")

    async with hooked(prepared(Renames)) as made:
        client = await made.client(will=Will("w", b"x", 0, True))
        client.drop()
        await made.turn()
        assert made.broker.retained.count == 0


# Life.


class Tells(Plugin[PluginConfig]):
    told: ClassVar[list[str]] = []

    async def start(self) -> None:
        self.told.append(f"start {self.broker.name}")

    async def stop(self) -> None:
        self.told.append(f"stop {self.broker.name}")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Tells.told.clear()


async def test_plugins_start_in_order_and_stop_the_other_way_round() -> None:
    async with hooked(prepared(Tells, "a"), prepared(Tells, "b")) as made:
        assert made.manager.plugin("b") is not None
        assert made.manager.plugin("nobody") is None
    assert Tells.told == ["start a", "start b", "stop b", "stop a"]


class Fails(Tells):
    how: ClassVar[BaseException] = RuntimeError("no database")

    async def start(self) -> None:
        raise self.how


class FailsToBeMade(Tells):
    def __init__(self, config: PluginConfig, broker: BrokerServices) -> None:
        raise RuntimeError("no database")


class WatchesNonsense(Tells):
    watches = frozenset({"connected", "everything"})

    def observe(self, events: Any) -> None:
        raise AssertionError


class CancelsItself(Fails):
    how = asyncio.CancelledError("pool closed")


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (Fails, "plugin bad: no database"),
        (FailsToBeMade, "plugin bad: no database"),
        (WatchesNonsense, "there is no kind of event everything"),
        (CancelsItself, "plugin bad: pool closed"),
    ],
)
async def test_a_start_that_fails_leaves_nothing_behind(
    plugin: type[Plugin[Any]], text: str
) -> None:
    tasks = asyncio.all_tasks()
    users = WATCH._users
    with pytest.raises(PluginError, match=text):
        async with hooked(prepared(Tells, "good"), prepared(plugin, "bad")):
            raise AssertionError("started")
    assert WATCH._users == users
    assert asyncio.all_tasks() == tasks
    assert Tells.told.count("start good") == Tells.told.count("stop good")


@pytest.mark.parametrize("error", [RuntimeError("no file"), asyncio.CancelledError("no file")])
async def test_a_plugin_that_fails_to_reload_keeps_nobody_from_it(error: BaseException) -> None:
    class Stubborn(Tells):
        async def reload(self, config: PluginConfig) -> None:
            raise error

    class Willing(Tells):
        async def reload(self, config: PluginConfig) -> None:
            self.told.append(f"reload {self.broker.name}")

    plugins = [prepared(Stubborn, "stubborn"), prepared(Willing, "willing")]
    async with hooked(*plugins) as made:
        assert await made.manager.reload(plugins) == {"stubborn": "no file"}
    assert "reload willing" in Tells.told


@pytest.mark.parametrize("error", [RuntimeError("x"), asyncio.CancelledError("x")])
async def test_a_plugin_that_fails_to_stop_keeps_nobody_from_it(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(Tells):
        async def stop(self) -> None:
            raise error

    async with hooked(prepared(Tells, "first"), prepared(Stuck, "stuck")):
        pass
    assert Tells.told == ["start first", "start stuck", "stop first"]
    assert "plugin stuck failed to stop" in caplog.text


async def test_stopping_waits_for_answers_that_are_under_way() -> None:
    """The will of a client that was sent away is decided upon before the end."""

    async def decide(client: Client, topic: str) -> Decision:
        await asyncio.sleep(0.01)
        return ALLOW

    async with hooked(prepared(scripted(publish=decide))) as made:
        client = await made.client(will=Will("w", b"x", 0, True))
        client.drop()
        await made.manager.stop()
        assert made.broker.retained.count == 1


async def test_stopping_ends_hooks_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttd.hooks.manager.GRACE_S", SHORT_S)
    tasks = asyncio.all_tasks()
    async with hooked(prepared(scripted(authenticate=hanging))) as made:
        client = made.say()
        await made.turn()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    client.expect_nothing()
    assert made.broker.sessions == {}


async def test_a_manager_can_be_made_anew_on_the_same_core() -> None:
    async with hooked(prepared(scripted(authenticate=lambda *_: DENY))) as made:
        assert await made.refused() == 0x87
        second = HookManager(made.broker, [prepared(Tells, "a")], made.schedule)
        await second.start()
        await second.stop()
    assert Tells.told == ["start a", "stop a"]


async def test_who_may_publish_can_be_asked() -> None:
    def decide(client: Client, topic: str) -> Decision:
        return ALLOW if topic == "yes" else NOT_MINE

    async with hooked(prepared(scripted(publish=decide), "p")) as made:
        services = made.manager.services["p"]
        assert await services.may_publish(Client("c"), "yes") == ALLOW
        assert isinstance(await services.may_publish(Client("c"), "no", 1, True), Deny)


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mqttd.plugins")
