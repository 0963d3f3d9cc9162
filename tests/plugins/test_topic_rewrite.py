"""topic_rewrite: which rule applies, what comes out, and what is refused at the start."""

from typing import Any, cast

import pytest
from mqttd_plugins.topic_rewrite import Config, TopicRewrite
from pydantic import ValidationError

from mqttd.api import Client, Deny, Drop, Message, SubscriptionRequest, reason_codes
from mqttd.testing import StandIn

CLIENT = Client("c1", "ann", listener="tcp")


def rule(to: str, topic_filter: str, *on: str, **more: Any) -> dict[str, Any]:
    ways = list(on or ("publish", "subscribe"))
    return {"on": ways, "filter": topic_filter, "to": to, **more}


async def started(*rules: dict[str, Any]) -> tuple[TopicRewrite, StandIn]:
    broker = StandIn("topic_rewrite")
    config = Config.model_validate({"rules": list(rules)})
    return cast(TopicRewrite, await broker.start(TopicRewrite, config)), broker


def published(plugin: TopicRewrite, topic: str, client: Client = CLIENT) -> str | Deny:
    answer = plugin.on_publish(client, Message(topic, b"p", qos=1))
    if isinstance(answer, Message):
        assert (answer.payload, answer.qos) == (b"p", 1)
        return answer.topic
    return topic if answer is None else answer


def subscribed(plugin: TopicRewrite, topic_filter: str, client: Client = CLIENT) -> str | Deny:
    asked = SubscriptionRequest(topic_filter, qos=1, no_local=True)
    answer = plugin.on_subscribe(client, asked)
    back = plugin.on_unsubscribe(client, topic_filter)
    if isinstance(answer, SubscriptionRequest):
        assert (answer.qos, answer.no_local) == (1, True)
        assert back == answer.topic_filter
        return answer.topic_filter
    assert back is None
    return topic_filter if answer is None else answer


@pytest.mark.parametrize(
    ("topic_filter", "to", "topic", "expected"),
    [
        ("old/+/data", "devices/{topic[1]}/data", "old/7/data", "devices/7/data"),
        ("old/+/data", "devices/{topic[1]}/data", "old/7/else", "old/7/else"),
        ("old/#", "new/{topic[1:]}", "old/a/b", "new/a/b"),
        ("old/#", "new/{topic[1:]}", "old", "new"),
        ("old/#", "new/{topic[1:]}/end", "old", "new/end"),
        ("#", "tenants/{username}/{topic}", "a/b", "tenants/ann/a/b"),
        ("#", "tenants/{username}/{topic}", "$app/b", "$app/b"),
        ("a/+", "{topic[1]}/{topic[0]}", "a/b", "b/a"),
        ("a/+", "x-{topic[1]}-{client_id}", "a/b", "x-b-c1"),
        ("a/+/c", "x/{topic[1]}/y", "a//c", "x//y"),
        ("a", "b", "a", "b"),
        ("a", "$app/b", "a", "$app/b"),
    ],
)
async def test_a_topic_becomes_another(
    topic_filter: str, to: str, topic: str, expected: str
) -> None:
    plugin, broker = await started(rule(to, topic_filter))
    assert published(plugin, topic) == expected
    assert broker.counts.get("rewritten_publish", 0) == (topic != expected)


@pytest.mark.parametrize(
    ("topic_filter", "to", "asked", "expected"),
    [
        ("old/+/data", "devices/{topic[1]}/data", "old/7/data", "devices/7/data"),
        ("old/+/data", "devices/{topic[1]}/data", "old/+/data", "devices/+/data"),
        ("old/+/data", "devices/{topic[1]}/data", "old/#", "old/#"),
        ("old/#", "new/{topic[1:]}", "old/+/b/#", "new/+/b/#"),
        ("old/#", "new/{topic[1:]}", "old/#", "new/#"),
        ("old/#", "new/{topic[1:]}", "#", "#"),
        ("old/#", "new/{topic[1:]}", "+/b", "+/b"),
        ("#", "tenants/{username}/{topic}", "a/#", "tenants/ann/a/#"),
        ("#", "tenants/{username}/{topic}", "#", "tenants/ann/+/#"),
        ("#", "tenants/{username}/{topic}", "$SYS/#", "$SYS/#"),
        ("old/#", "new/{topic[1:]}", "$share/g/old/a", "$share/g/new/a"),
    ],
)
async def test_a_filter_becomes_another(
    topic_filter: str, to: str, asked: str, expected: str
) -> None:
    plugin, _ = await started(rule(to, topic_filter))
    assert subscribed(plugin, asked) == expected


@pytest.mark.parametrize(
    ("topic_filter", "to", "asked"),
    [
        ("a/+", "dev-{topic[1]}", "a/+"),  # a wildcard as a part of a level
        ("a/#", "x/{topic[1:]}/y", "a/#"),  # a # that isn't the last level
        ("a/+", "x/{topic[1]}/{topic[1]}y", "a/+"),
    ],
)
async def test_a_filter_that_would_be_none_is_refused(
    topic_filter: str, to: str, asked: str
) -> None:
    plugin, broker = await started(rule(to, topic_filter))
    answer = subscribed(plugin, asked)
    assert isinstance(answer, Deny)
    assert answer.code == reason_codes.TOPIC_FILTER_INVALID
    assert broker.counts["refused"] == 1


async def test_a_topic_that_would_be_none_is_refused() -> None:
    plugin, _ = await started(rule("{topic[1]}", "a/+"))
    answer = published(plugin, "a/")
    assert isinstance(answer, Deny)
    assert answer.code == reason_codes.TOPIC_NAME_INVALID
    long = published((await started(rule("x/{topic}/{topic}", "#")))[0], "t" * 40_000)
    assert isinstance(long, Deny)


async def test_the_first_rule_that_applies_is_used_and_only_once() -> None:
    plugin, _ = await started(rule("b/x", "a/x"), rule("a/{topic[1]}", "b/+"), rule("c", "a/+"))
    assert published(plugin, "a/x") == "b/x"
    assert published(plugin, "b/x") == "a/x"
    assert published(plugin, "a/y") == "c"


async def test_a_rule_holds_for_its_directions_alone() -> None:
    plugin, broker = await started(
        rule("in/{topic}", "a", "publish"), rule("out/{topic[1]}", "in/+", "deliver")
    )
    assert published(plugin, "a") == "in/a"
    assert subscribed(plugin, "a") == "a"
    out = plugin.on_deliver(CLIENT, Message("in/a", b"p", qos=2, retain=True))
    assert out == Message("out/a", b"p", qos=2, retain=True)
    assert plugin.on_deliver(CLIENT, Message("a")) is None
    assert broker.counts == {"rewritten_publish": 1, "rewritten_deliver": 1}


async def test_a_rule_holds_for_its_listener_alone() -> None:
    plugin, _ = await started(
        rule("b", "a", listener="other"), rule("c", "a", listener="tcp"), rule("d", "a")
    )
    assert published(plugin, "a") == "c"
    assert published(plugin, "a", Client("c", listener="third")) == "d"


async def test_a_delivery_that_has_no_topic_is_dropped() -> None:
    plugin, broker = await started(rule("x/{username}", "a", "deliver"))
    assert isinstance(plugin.on_deliver(Client("c"), Message("a")), Drop)
    assert broker.counts == {"refused": 1}


async def test_a_reload_brings_the_new_rules() -> None:
    plugin, broker = await started(rule("b", "a"))
    await plugin.reload(Config.model_validate({"rules": [rule("c", "a")]}))
    assert published(plugin, "a") == "c"
    assert broker.forgotten == [None]


@pytest.mark.parametrize(
    ("one", "place", "told"),
    [
        (rule("b/{topic[1]}", "a"), ("rules", 0, "to"), "promises 1 levels"),
        (rule("b/{topic[1]}", "a/#"), ("rules", 0, "to"), "promises 1 levels"),
        (rule("b/{topic[2:]}", "a/#"), ("rules", 0, "to"), "promises 1 levels"),
        (rule("b/{topic[9999]}", "a/#"), ("rules", 0, "to"), "is unknown"),
        (rule("b/{name}", "a"), ("rules", 0, "to"), "is unknown"),
        (rule("b/{topic", "a"), ("rules", 0, "to"), "without its partner"),
        (rule("b/{{topic}}", "a"), ("rules", 0, "to"), "without its partner"),
        (rule("b/x{topic}", "a"), ("rules", 0, "to"), "a whole level"),
        (rule("{topic[1:]}", "a/#"), ("rules", 0, "to"), "is empty for some"),
        (rule("b/#", "a"), ("rules", 0, "to"), "no valid topic"),
        (rule("b/+x", "a", "subscribe"), ("rules", 0, "to"), "no valid topic"),
        (rule("", "a"), ("rules", 0, "to"), "no valid topic"),
        (rule("$SYS/{topic}", "a"), ("rules", 0, "to"), r"below \$SYS"),
        (rule("$share/g/{topic}", "a", "subscribe"), ("rules", 0, "to"), r"\$share"),
        (rule("{topic}", "a/#"), ("rules", 0, "to"), "changes nothing"),
        (rule("a/{topic[1]}/{topic[2:]}", "a/+/#"), ("rules", 0, "to"), "changes nothing"),
        (rule("b", "a/#/c"), ("rules", 0, "filter"), "no topic filter"),
        (rule("b", "$share/g/a"), ("rules", 0, "filter"), "leave"),
        ({"on": [], "filter": "a", "to": "b"}, ("rules", 0, "on"), "one or more"),
        (rule("b", "a", "publish", "publish"), ("rules", 0, "on"), "each once"),
        (rule("b", "a", "receive"), ("rules", 0, "on", 0), "'publish', 'subscribe'"),
    ],
)
def test_a_rule_that_is_wrong_is_told_with_its_place(
    one: dict[str, Any], place: tuple[object, ...], told: str
) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        Config.model_validate({"rules": [one]})
    assert [error["loc"] for error in caught.value.errors()] == [place]


def test_a_rule_that_never_gets_a_turn_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"rules\[1\] \(a/b\) never gets a turn: rules\[0\]"):
        Config.model_validate({"rules": [rule("x", "a/+"), rule("y", "a/b")]})
    with pytest.raises(ValidationError, match="never gets a turn"):
        Config.model_validate({"rules": [rule("x", "#"), rule("y", "a", listener="tcp")]})
    # Another direction, or another listener, is a turn of its own.
    Config.model_validate({"rules": [rule("x", "a", "publish"), rule("y", "a", "subscribe")]})
    Config.model_validate({"rules": [rule("x", "a", listener="tcp"), rule("y", "a")]})


def test_no_rules_are_refused() -> None:
    with pytest.raises(ValidationError, match="no rules"):
        Config.model_validate({"rules": []})
