"""Chains: what several plugins decide together, and what the failure of one counts as."""

import asyncio
from typing import Any

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
    Drop,
    Message,
    MessageProperties,
    NoRoom,
    NotMine,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
    reason_codes,
)
from mqttd.hooks.deciders import Chains
from mqttd.testing import StandIn
from tests.hooks.kit import SHORT_S, guard_of

CLIENT = Client("c", "u")
CREDENTIALS = Credentials("u", b"p")
REQUEST = ConnectRequest("c", True, 60, "u", 0)
SUBSCRIPTION = SubscriptionRequest("t", 1)
MESSAGE = Message("t", b"x", 1)


class Says(Plugin[PluginConfig]):
    """Every decider says the same; `asked` is how often one was."""

    what: Any = NOT_MINE
    asked = 0

    def _say(self) -> Any:
        self.asked += 1
        if isinstance(self.what, BaseException):
            raise self.what
        return self.what

    def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        return self._say()  # type: ignore[no-any-return]

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return self._say()  # type: ignore[no-any-return]

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        return self._say()  # type: ignore[no-any-return]

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return self._say()  # type: ignore[no-any-return]


class Waits(Says):
    """The same, but not at once."""

    async def authenticate(  # type: ignore[override]
        self, client: Client, credentials: Credentials
    ) -> Decision:
        await asyncio.sleep(0)
        return self._say()  # type: ignore[no-any-return]


def chain(*what: Any, kind: type[Says] = Says, **entry: Any) -> tuple[Chains, list[Says]]:
    plugins = []
    for one in what:
        plugin = kind(PluginConfig(), StandIn())
        plugin.what = one
        plugins.append(plugin)
    guards = [guard_of(plugin, **entry) for plugin in plugins]
    return Chains(guards, 200), plugins


async def _first(chains: Chains) -> Decision:
    return await chains.authenticate(CLIENT, CREDENTIALS)


DECIDERS = ("authenticate", "publish", "subscribe", "receive")


async def decide(chains: Chains, hook: str) -> Decision:
    if hook == "authenticate":
        return await chains.authenticate(CLIENT, CREDENTIALS)
    if hook == "publish":
        return await chains.authorize_publish(CLIENT, "t", 0, False)
    if hook == "subscribe":
        return await chains.authorize_subscribe(CLIENT, SUBSCRIPTION)
    return chains.authorize_receive(CLIENT, "t")


deciders = pytest.mark.parametrize("hook", DECIDERS)


@deciders
async def test_the_first_opinion_counts(hook: str) -> None:
    for first, second in ((Allow("1"), DENY), (Deny("1"), ALLOW)):
        chains, plugins = chain(NOT_MINE, first, second)
        assert await decide(chains, hook) == first
        assert [plugin.asked for plugin in plugins] == [1, 1, 0]


@deciders
async def test_no_opinion_at_all_is_no(hook: str) -> None:
    chains, _ = chain(NOT_MINE, NOT_MINE)
    answer = await decide(chains, hook)
    if hook == "authenticate":
        assert answer == NOT_MINE  # the manager says what that means: a certificate may speak
    else:
        assert isinstance(answer, Deny)
        assert answer.code == reason_codes.NOT_AUTHORIZED


@deciders
async def test_where_nobody_decides_there_is_nothing_to_deny(hook: str) -> None:
    answer = await decide(Chains((), 200), hook)
    assert answer == (NOT_MINE if hook == "authenticate" else ALLOW)


@deciders
@pytest.mark.parametrize("wrong", [RuntimeError("x"), None, True, "yes", 0, Continue(b"")])
@pytest.mark.parametrize("policy", ["deny", "allow", "skip"])
async def test_what_a_failure_counts_as(hook: str, wrong: object, policy: str) -> None:
    chains, plugins = chain(wrong, Allow("second"), on_failure=policy)
    answer = await decide(chains, hook)
    if policy == "deny":
        assert isinstance(answer, Deny)
        assert answer.code == reason_codes.UNSPECIFIED_ERROR
        assert not answer.cache  # or a moment's failure would last
    elif policy == "allow":
        assert isinstance(answer, Allow)
        assert answer.username is None
        assert not answer.cache
    else:
        assert answer == Allow("second")
    assert plugins[1].asked == (policy == "skip")


@deciders
async def test_when_all_are_skipped_the_answer_is_no(hook: str) -> None:
    chains, _ = chain(RuntimeError("x"), RuntimeError("y"), on_failure="skip")
    answer = await decide(chains, hook)
    assert isinstance(answer, Deny | NotMine)
    assert isinstance(answer, NotMine) == (hook == "authenticate")


async def test_the_order_holds_for_those_that_wait() -> None:
    chains, plugins = chain(NOT_MINE, Deny("1"), ALLOW, kind=Waits)
    assert await decide(chains, "authenticate") == Deny("1")
    assert [plugin.asked for plugin in plugins] == [1, 1, 0]


# Enhanced authentication.


class Method(Plugin[PluginConfig]):
    auth_methods = ("M", "N")
    says: Any = ALLOW

    def authenticate_enhanced(
        self, client: Client, method: str, data: bytes | None, first: bool
    ) -> Continue | Allow | Deny:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says  # type: ignore[no-any-return]


@pytest.mark.parametrize("policy", ["deny", "allow", "skip"])
@pytest.mark.parametrize("wrong", [RuntimeError("x"), None, NOT_MINE, True])
async def test_nobody_gets_in_by_a_method_that_fails(wrong: Any, policy: str) -> None:
    """Whatever the policy: nobody else speaks the method, and nothing was proved."""
    plugin = Method(PluginConfig(), StandIn())
    plugin.says = wrong
    chains = Chains([guard_of(plugin, on_failure=policy)], 200)
    answer = await chains.authenticate_enhanced(CLIENT, "M", b"", True)
    assert isinstance(answer, Deny)


async def test_the_first_plugin_that_serves_a_method_has_it() -> None:
    one, two = Method(PluginConfig(), StandIn()), Method(PluginConfig(), StandIn())
    two.auth_methods = ("N", "O")
    one.says, two.says = Allow("one"), Allow("two")
    chains = Chains([guard_of(one), guard_of(two)], 200)
    assert sorted(chains.enhanced) == ["M", "N", "O"]
    answers = [await chains.authenticate_enhanced(CLIENT, name, b"", True) for name in "MNO"]
    assert answers == [Allow("one"), Allow("one"), Allow("two")]


# Transformers.


class Changes(Plugin[PluginConfig]):
    """Each transformer returns `what`, or what it makes of its argument."""

    what: Any = None
    seen: list[Any]

    def __init__(self, config: PluginConfig, broker: StandIn, what: Any) -> None:
        super().__init__(config, broker)
        self.what = what
        self.seen = []

    def _change(self, thing: Any) -> Any:
        self.seen.append(thing)
        if isinstance(self.what, Exception):
            raise self.what
        return self.what(thing) if callable(self.what) else self.what

    def on_connect(self, client: Client, request: ConnectRequest) -> Any:
        return self._change(request)

    def on_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Any:
        return self._change(subscription)

    def on_unsubscribe(self, client: Client, topic_filter: str) -> Any:
        return self._change(topic_filter)

    def on_publish(self, client: Client, message: Message) -> Any:
        return self._change(message)

    def on_deliver(self, client: Client, message: Message) -> Any:
        return self._change(message)


def changing(*what: Any, deciding: Any = None, **entry: Any) -> tuple[Chains, list[Changes]]:
    plugins = [Changes(PluginConfig(), StandIn(), one) for one in what]
    guards = [guard_of(plugin, name=f"p{n}", **entry) for n, plugin in enumerate(plugins)]
    if deciding is not None:
        guards.append(guard_of(deciding, name="decider"))
    return Chains(guards, 5), plugins


def suffix(text: str) -> Any:
    return lambda message: message.replace(topic=message.topic + text)


async def test_each_sees_what_the_one_before_it_made() -> None:
    chains, plugins = changing(suffix("/1"), None, suffix("/2"))
    decision, made, changes, cache = await chains.publish(CLIENT, MESSAGE, False)
    assert (decision, changes, cache) == (ALLOW, "p0, p2", True)
    assert made == MESSAGE.replace(topic="t/1/2")
    assert [plugin.seen[0].topic for plugin in plugins] == ["t", "t/1", "t/1"]
    assert chains.deliver(CLIENT, MESSAGE) == made


async def test_what_was_refused_or_taken_nobody_else_sees() -> None:
    for first in (Deny("no"), Drop("mine")):
        chains, plugins = changing(first, suffix("/2"))
        decision, made, _, cache = await chains.publish(CLIENT, MESSAGE, False)
        assert made is None
        assert isinstance(decision, Deny) == isinstance(first, Deny)
        assert not cache  # it is about this message, not about the topic
        assert plugins[1].seen == []


async def test_a_message_nobody_changes_is_the_same_object() -> None:
    chains, _ = changing(None, lambda message: message)
    _, made, changes, _ = await chains.publish(CLIENT, MESSAGE, False)
    assert made is MESSAGE
    assert changes == ""
    assert chains.deliver(CLIENT, MESSAGE) is MESSAGE


class Topics(Plugin[PluginConfig]):
    """Allows what begins with "t", and remembers what it was asked about."""

    asked: list[tuple[str, int, bool]]

    def __init__(self, config: PluginConfig, broker: StandIn) -> None:
        super().__init__(config, broker)
        self.asked = []

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        self.asked.append((topic, qos, retain))
        return ALLOW if topic.startswith("t") else DENY

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        return ALLOW if subscription.inner_filter.startswith("t") else DENY


async def test_a_changed_topic_is_authorised_again() -> None:
    decider = Topics(PluginConfig(), StandIn())
    chains, _ = changing(suffix("/1"), deciding=decider)
    assert (await chains.publish(CLIENT, MESSAGE, False))[0] == ALLOW
    assert decider.asked == [("t", 1, False), ("t/1", 1, False)]
    chains, plugins = changing(
        lambda message: message.replace(topic="secret", retain=True, qos=2),
        suffix("/never"),
        deciding=decider,
    )
    decider.asked.clear()
    decision, made, _, cache = await chains.publish(CLIENT, MESSAGE, True)
    assert (decision, made, cache) == (DENY, None, False)
    assert decider.asked == [("secret", 2, True)]  # the first was granted before
    assert plugins[1].seen == []


async def test_a_changed_payload_is_not() -> None:
    decider = Topics(PluginConfig(), StandIn())
    chains, _ = changing(lambda message: message.replace(payload=b"y", qos=0), deciding=decider)
    await chains.publish(CLIENT, MESSAGE, True)
    assert decider.asked == []


WRONG: dict[str, Any] = {
    "wildcard": lambda m: m.replace(topic="a/#"),
    "empty": lambda m: m.replace(topic=""),
    "nul": lambda m: m.replace(topic="a\0"),
    "surrogate": lambda m: m.replace(topic="\ud800"),
    "levels": lambda m: m.replace(topic="a/b/c/d/e/f"),
    "no text": lambda m: m.replace(topic=b"t"),
    "none": lambda m: m.replace(topic=None),
    "qos": lambda m: m.replace(qos=3),
    "payload": lambda m: m.replace(payload="text"),
    "bytearray": lambda m: m.replace(payload=bytearray(b"x")),
    "expiry": lambda m: m.replace(expires_in_s="soon"),
    "expiry that is no number": lambda m: m.replace(expires_in_s=float("nan")),
    "expiry in an endless future": lambda m: m.replace(expires_in_s=float("inf")),
    "expiry that doesn't fit": lambda m: m.replace(expires_in_s=1 << 32),
    "block": lambda m: Message("t", block=b"\xff"),
    "properties": lambda m: m.replace(properties={"a": "b"}),
    "content type": lambda m: m.replace(properties=MessageProperties(content_type="a\0")),
    "response topic": lambda m: m.replace(properties=MessageProperties(response_topic="x" * 70000)),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_message_that_is_none_goes_nowhere(what: str) -> None:
    chains, _ = changing(WRONG[what])
    decision, made, _, _ = await chains.publish(CLIENT, MESSAGE, False)
    assert made is None
    assert isinstance(decision, Deny)
    assert decision.code == reason_codes.UNSPECIFIED_ERROR
    assert isinstance(chains.deliver(CLIENT, MESSAGE), Drop)
    stats = chains.on_publish[0].stats
    assert (stats["on_publish"].failures, stats["on_deliver"].failures) == (1, 1)


@pytest.mark.parametrize("wrong", [RuntimeError("x"), "text", 1, ALLOW, NOT_MINE])
@pytest.mark.parametrize("policy", ["deny", "allow", "skip"])
async def test_a_transformer_that_fails(wrong: Any, policy: str) -> None:
    """It denies, or is as if it weren't there; `allow` and `skip` are the same for it."""
    chains, plugins = changing(wrong, None, on_failure=policy)
    decision, made, _, cache = await chains.publish(CLIENT, MESSAGE, False)
    request, _ = await chains.connect(CLIENT, REQUEST)
    _, subscribed = await chains.subscribe(CLIENT, SUBSCRIPTION)
    delivered = chains.deliver(CLIENT, MESSAGE)
    if policy == "deny":
        assert isinstance(decision, Deny)
        assert not cache
        assert isinstance(request, Deny)
        assert isinstance(subscribed, Deny)
        assert isinstance(delivered, Drop)
        assert plugins[1].seen == []
    else:
        assert (decision, made) == (ALLOW, MESSAGE)
        assert request == REQUEST
        assert subscribed == ALLOW
        assert delivered is MESSAGE


async def test_a_filter_that_was_changed_is_the_one_that_is_authorised() -> None:
    decider = Topics(PluginConfig(), StandIn())
    chains, _ = changing(SubscriptionRequest("secret", 1), deciding=decider)
    wanted, decision = await chains.subscribe(CLIENT, SUBSCRIPTION)
    assert (wanted.topic_filter, decision) == ("secret", DENY)


@pytest.mark.parametrize(
    "made",
    [
        SubscriptionRequest("a/#/b"),
        SubscriptionRequest(""),
        SubscriptionRequest("$share//a"),
        SubscriptionRequest("t", 3),
        SubscriptionRequest("t", -1),
        SubscriptionRequest("t", retain_handling=3),
        SubscriptionRequest("$share/g/t", no_local=True),
        SubscriptionRequest(None),  # type: ignore[arg-type]
        SubscriptionRequest("t", "1"),  # type: ignore[arg-type]
    ],
)
async def test_a_subscription_that_is_none_is_refused(made: SubscriptionRequest) -> None:
    chains, _ = changing(made)
    wanted, decision = await chains.subscribe(CLIENT, SUBSCRIPTION)
    assert wanted == SUBSCRIPTION
    assert isinstance(decision, Deny)
    assert decision.code == reason_codes.UNSPECIFIED_ERROR
    assert chains.on_subscribe[0].stats["on_subscribe"].failures == 1


def test_a_filter_that_is_meant() -> None:
    chains, _ = changing(lambda text: "1" + text, None, lambda text: text + "2")
    assert chains.unsubscribe(CLIENT, "t") == "1t2"
    chains, _ = changing(RuntimeError("x"), lambda text: text + "2")
    assert chains.unsubscribe(CLIENT, "t") == "t2"


async def test_a_connect_that_is_refused_is_seen_by_nobody_else() -> None:
    chains, plugins = changing(Deny("banned", reason_codes.BANNED), None)
    answer, _ = await chains.connect(CLIENT, REQUEST)
    assert isinstance(answer, Deny)
    assert answer.code == reason_codes.BANNED
    assert plugins[1].seen == []


async def test_a_chain_that_hangs_is_bounded_by_each_time_limit() -> None:
    class Hangs(Says):
        async def authenticate(  # type: ignore[override]
            self, client: Client, credentials: Credentials
        ) -> Decision:
            await asyncio.get_running_loop().create_future()
            return ALLOW

    chains, _ = chain(0, 0, kind=Hangs, timeout=SHORT_S, on_failure="skip")
    assert await asyncio.create_task(_first(chains)) == NOT_MINE


@deciders
async def test_a_client_is_not_told_what_failed(hook: str) -> None:
    chains, _ = chain(RuntimeError("/etc/secret is missing"))
    decision = await decide(chains, hook)
    assert isinstance(decision, Deny)
    assert decision.reason == "it can't be decided at the moment"
    assert decision.rule.startswith("plugin plugin failed in a")


async def test_who_finds_no_room_is_no_reason_to_let_it_pass() -> None:
    chains, _ = changing(NoRoom(28, "full"))
    decision, made, _, _ = await chains.publish(CLIENT, MESSAGE, False)
    assert made is None
    assert isinstance(decision, Deny)
    assert decision.code == reason_codes.QUOTA_EXCEEDED
