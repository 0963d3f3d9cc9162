"""Ways around a right by a rewritten topic, tried on topic_rewrite.

That the broker authorises what comes out is shown where the hooks are called; here: that what comes
out is never more than the operator wrote down.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins.topic_rewrite import Config, TopicRewrite

from mqttd.api import (
    Client,
    Deny,
    Drop,
    Message,
    ProtocolError,
    SubscriptionRequest,
    matches,
    validate_topic_name,
)
from mqttd.testing import StandIn

NAMES = st.text(alphabet="ab/+#$\0é.*[{}()", max_size=12)


def plugin_of(*rules: dict[str, Any]) -> TopicRewrite:
    return TopicRewrite(Config.model_validate({"rules": list(rules)}), StandIn())


def rule(to: str, topic_filter: str, *on: str) -> dict[str, Any]:
    return {"on": list(on), "filter": topic_filter, "to": to}


@pytest.mark.parametrize("name", ["+", "#", "a/b", "a+", "#a", "../x", "", "x\0"])
def test_cve_2017_7650_a_name_with_a_wildcard_or_a_level_never_gets_into_a_topic(name: str) -> None:
    """CVE-2017-7650: a user name or client identifier that is a wildcard widens a filter."""
    plugin = plugin_of(
        rule("own/{client_id}", "mine", "publish", "subscribe", "deliver"),
        rule("own/{username}", "me", "publish", "subscribe", "deliver"),
    )
    client = Client(name, name)
    for topic in ("mine", "me"):
        assert isinstance(plugin.on_publish(client, Message(topic)), Deny)
        assert isinstance(plugin.on_subscribe(client, SubscriptionRequest(topic)), Deny)
        assert isinstance(plugin.on_deliver(client, Message(topic)), Drop)
        assert plugin.on_unsubscribe(client, topic) is None


def test_no_user_name_is_no_name() -> None:
    plugin = plugin_of(rule("own/{username}", "me", "publish"))
    assert isinstance(plugin.on_publish(Client("c", None), Message("me")), Deny)


@pytest.mark.parametrize("name", [".*", "a|b", "[a-z]", "(?i)x", "a-b", "{username}", "{topic}"])
def test_cve_2026_44838_a_name_is_text_and_no_pattern(name: str) -> None:
    """CVE-2026-44838: characters of a regular expression in a client identifier are read as such.

    A placeholder in a name isn't filled in either.
    """
    plugin = plugin_of(rule("own/{client_id}/{topic}", "t/#", "publish", "subscribe"))
    client = Client(name, "admin")
    answer = plugin.on_publish(client, Message("t/x"))
    assert isinstance(answer, Message)
    assert answer.topic == f"own/{name}/t/x"
    asked = plugin.on_subscribe(client, SubscriptionRequest("t/#"))
    assert isinstance(asked, SubscriptionRequest)
    assert asked.topic_filter == f"own/{name}/t/#"


@pytest.mark.parametrize("name", ["$SYS", "$share", "$delayed"])
def test_mosquitto_3670_no_name_and_no_level_makes_a_topic_of_the_broker(name: str) -> None:
    """mosquitto #3670: what a plugin rewrites isn't checked like what a client sends."""
    plugin = plugin_of(
        rule("{client_id}/x", "mine", "publish", "subscribe"),
        rule("{topic[1]}/x", "up/+", "publish", "subscribe"),
    )
    client = Client(name, "ann")
    for topic in ("mine", f"up/{name}"):
        assert isinstance(plugin.on_publish(client, Message(topic)), Deny)
        assert isinstance(plugin.on_subscribe(client, SubscriptionRequest(topic)), Deny)


def test_mosquitto_3672_a_subscription_that_reaches_further_than_its_rule_is_left_alone() -> None:
    """mosquitto #3672: subscriptions are rewritten after they were checked.

    A filter that only overlaps a rule's stays what it is, so nobody gets the rewritten topics by
    asking for more than the rule is for.
    """
    plugin = plugin_of(rule("secret/{topic[1]}", "open/+", "subscribe"))
    for asked in ("#", "+/+", "+/x", "open/#", "open/+/#", "$share/g/open/#"):
        assert plugin.on_subscribe(Client("c"), SubscriptionRequest(asked)) is None


@given(client_id=NAMES, username=st.none() | NAMES, topic=st.text(alphabet="ab/$", max_size=12))
def test_mosquitto_3671_whatever_comes_what_goes_on_lies_where_the_template_says(
    client_id: str, username: str | None, topic: str
) -> None:
    """mosquitto #3671: the same for what goes out, for any names and topics."""
    try:
        validate_topic_name(topic)
    except ProtocolError:
        return
    plugin = plugin_of(rule("t/{username}/{client_id}/{topic}", "#", "publish", "deliver"))
    client, message = Client(client_id, username), Message(topic)
    for answer in (plugin.on_publish(client, message), plugin.on_deliver(client, message)):
        if isinstance(answer, Message):
            validate_topic_name(answer.topic)
            assert answer.topic == f"t/{username}/{client_id}/{topic}"
            assert answer.topic.count("/") == topic.count("/") + 3
            assert matches("t/+/+/#", answer.topic)
        else:
            assert topic.startswith("$") if answer is None else isinstance(answer, Deny | Drop)
