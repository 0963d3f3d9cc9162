"""Ways around access control lists that worked elsewhere, tried on acl_file."""

from pathlib import Path
from typing import cast

import pytest
from mqttd_plugins.acl_file import AclFile, Config

from mqttd.api import Allow, Client, Decision, Deny, SubscriptionRequest
from mqttd.testing import StandIn


async def started(tmp_path: Path, text: str) -> AclFile:
    file = tmp_path / "acl"
    file.write_text(text)
    model = Config.model_validate({"file": str(file), "check_interval": 0})
    return cast(AclFile, await StandIn("acl_file").start(AclFile, model))


def subscribed(plugin: AclFile, client: Client, topic_filter: str) -> Decision:
    return plugin.authorize_subscribe(client, SubscriptionRequest(topic_filter))


@pytest.mark.parametrize("name", ["#", "+", "a/#", "a+", "bob/x", "", "$SYS"])
async def test_cve_2017_7650_names_with_wildcards_match_no_pattern(
    tmp_path: Path, name: str
) -> None:
    plugin = await started(tmp_path, "pattern readwrite %u/#\npattern readwrite c/%c/#\n")
    topics = ["bob/x", "a/x", "+/x", "bob/x/y", "/x", "c/bob/x", "c//x", "$SYS/x", f"{name}/x"]
    for client in (Client(name, "roger"), Client("c1", name)):
        for topic in topics:
            if topic.startswith(("roger/", "c/c1/")):
                continue
            assert isinstance(plugin.authorize_publish(client, topic, 0, False), Deny), topic
            assert isinstance(plugin.authorize_receive(client, topic), Deny), topic
        for wanted in ("#", "+/#", "bob/#", "c/#", "$SYS/#"):
            assert isinstance(subscribed(plugin, client, wanted), Deny), wanted


@pytest.mark.parametrize("name", ["#", "+", "x/y"])
async def test_cve_2017_7650_a_deny_pattern_isnt_shed_by_a_name(tmp_path: Path, name: str) -> None:
    plugin = await started(tmp_path, "pattern deny c/%c/secret\npattern read c/#\n")
    assert isinstance(plugin.authorize_receive(Client("c1"), "c/c2/secret"), Allow)
    assert isinstance(plugin.authorize_receive(Client(name), f"c/{name}/secret"), Deny)
    assert isinstance(plugin.authorize_receive(Client(name), "c/x"), Deny)


@pytest.mark.parametrize("name", [".*", "a|b", "[a-z]", "^c$", "(?i)ROGER", "a\\b", "%c", "%u"])
async def test_cve_2026_44838_names_are_compared_character_by_character(
    tmp_path: Path, name: str
) -> None:
    plugin = await started(tmp_path, "user roger\ntopic own\npattern readwrite c/%c/%u\n")
    client = Client(name, name)
    assert isinstance(plugin.authorize_publish(client, f"c/{name}/{name}", 0, False), Allow)
    for topic in ("c/a/b", "c/roger/roger", "own", "c/c/c"):
        assert isinstance(plugin.authorize_publish(client, topic, 0, False), Deny), topic


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# topic #\n", "user roger\n", "group g\nmember roger\n"]
)
async def test_cve_2018_12550_a_list_without_rules_denies_everything(
    tmp_path: Path, text: str
) -> None:
    plugin = await started(tmp_path, text)
    for client in (Client("c"), Client("c", "roger"), Client("c", "")):
        assert isinstance(plugin.authorize_publish(client, "a", 0, False), Deny)
        assert isinstance(plugin.authorize_receive(client, "a"), Deny)
        assert isinstance(subscribed(plugin, client, "#"), Deny)


async def test_cve_2018_12546_retained_messages_are_checked_for_their_reader(
    tmp_path: Path,
) -> None:
    """Each delivery is asked about for the receiver, whenever the message was published."""
    plugin = await started(tmp_path, "topic read a/#\ntopic deny a/b\n")
    assert isinstance(subscribed(plugin, Client("c"), "a/#"), Allow)
    assert isinstance(plugin.authorize_receive(Client("c"), "a/b"), Deny)


async def test_shared_subscription_acl_is_applied_to_the_inner_filter(tmp_path: Path) -> None:
    plugin = await started(tmp_path, "topic read #\ntopic deny t/#\n")
    client = Client("c")
    for wanted in ("t/#", "t/x", "$share/g/t/#", "$share/t/t/x", "$share/g/t"):
        assert isinstance(subscribed(plugin, client, wanted), Deny), wanted
    assert isinstance(subscribed(plugin, client, "$share/t/u/#"), Allow)


async def test_wildcard_acl_a_denied_topic_arrives_through_no_filter(tmp_path: Path) -> None:
    plugin = await started(tmp_path, "topic read #\ntopic deny secret/x\n")
    client = Client("c")
    for wanted in ("#", "+/x", "secret/+", "secret/#"):
        assert isinstance(subscribed(plugin, client, wanted), Allow), wanted
    assert isinstance(plugin.authorize_receive(client, "secret/x"), Deny)
    assert isinstance(subscribed(plugin, client, "secret/x"), Deny)


async def test_v3_v5_credentials_an_empty_user_name_is_not_anonymous(tmp_path: Path) -> None:
    plugin = await started(tmp_path, "topic a\n")
    assert isinstance(plugin.authorize_publish(Client("c"), "a", 0, False), Allow)
    assert isinstance(plugin.authorize_publish(Client("c", ""), "a", 0, False), Deny)


async def test_dollar_topics_are_not_reached_by_wildcards_or_names(tmp_path: Path) -> None:
    plugin = await started(tmp_path, "topic #\nuser $SYS\ntopic #\npattern %u/#\n")
    for client in (Client("c"), Client("$SYS", "$SYS"), Client("c", "$SYS")):
        assert isinstance(plugin.authorize_publish(client, "$SYS/broker/x", 0, False), Deny)
        assert isinstance(plugin.authorize_receive(client, "$SYS/broker/x"), Deny)
        assert isinstance(subscribed(plugin, client, "$SYS/#"), Deny)
