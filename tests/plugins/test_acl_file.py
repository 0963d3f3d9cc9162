"""acl_file: decisions and what they say, the file that changes, the mode that only observes."""

import logging
import os
from pathlib import Path
from typing import cast

import pytest
from mqttd_plugins._acl_text import AclError
from mqttd_plugins.acl_file import AclFile, Config
from pydantic import ValidationError

from mqttd.api import Allow, Client, Deny, SubscriptionRequest, reason_codes
from mqttd.testing import StandIn

RULES = "user roger\ntopic read news/#\ntopic deny news/secret\ntopic write up\n"


def roger(client_id: str = "c") -> Client:
    return Client(client_id, "roger")


async def started(
    tmp_path: Path, text: str = RULES, **config: object
) -> tuple[AclFile, StandIn, Path]:
    file = tmp_path / "acl"
    file.write_text(text)
    broker = StandIn("acl_file")
    model = Config.model_validate({"file": str(file), **config})
    return cast(AclFile, await broker.start(AclFile, model)), broker, file


def subscribe(plugin: AclFile, client: Client, topic_filter: str) -> Allow | Deny:
    decision = plugin.authorize_subscribe(client, SubscriptionRequest(topic_filter))
    assert isinstance(decision, Allow | Deny)
    return decision


def rewrite(file: Path, text: str) -> None:
    """Another file in its place, as editors do: even the same text is seen as new."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)


async def test_each_decision_names_the_line_that_made_it(tmp_path: Path) -> None:
    plugin, broker, file = await started(tmp_path)
    client = roger()
    assert plugin.authorize_publish(client, "up", 0, False) == Allow(f"{file}:4 topic write up")
    assert plugin.authorize_receive(client, "news/x") == Allow(f"{file}:2 topic read news/#")
    denied = plugin.authorize_receive(client, "news/secret")
    assert isinstance(denied, Deny)
    assert denied.rule == f"{file}:3 topic deny news/secret"
    assert denied.code == reason_codes.NOT_AUTHORIZED
    nothing = plugin.authorize_publish(client, "news/x", 0, False)
    assert isinstance(nothing, Deny)
    assert nothing.rule == f"{file}: no rule lets user 'roger' write it"
    assert str(file) not in nothing.reason  # the client may see this one
    assert broker.counts == {"denied_receive": 1, "denied_publish": 1}
    await plugin.stop()


async def test_subscriptions_are_judged_by_the_inner_filter(tmp_path: Path) -> None:
    plugin, *_ = await started(tmp_path)
    client = roger()
    assert isinstance(subscribe(plugin, client, "news/#"), Allow)
    assert isinstance(subscribe(plugin, client, "$share/g/news/#"), Allow)
    assert isinstance(subscribe(plugin, client, "$share/news/up"), Deny)
    denied = subscribe(plugin, client, "$share/g/news/secret")
    assert isinstance(denied, Deny)
    assert denied.code == reason_codes.NOT_AUTHORIZED
    await plugin.stop()


async def test_compat_mosquitto_grants_every_subscription_and_filters_deliveries(
    tmp_path: Path,
) -> None:
    plugin, *_ = await started(tmp_path, compat="mosquitto")
    client = roger()
    assert isinstance(subscribe(plugin, client, "secret/#"), Allow)
    assert isinstance(plugin.authorize_receive(client, "secret/x"), Deny)
    await plugin.stop()


async def test_filters_that_reach_further_may_be_refused(tmp_path: Path) -> None:
    plugin, _, file = await started(tmp_path, "topic read a/#\n", partial_filters="deny")
    client = Client("c")
    assert isinstance(subscribe(plugin, client, "a/+"), Allow)
    denied = subscribe(plugin, client, "#")
    assert isinstance(denied, Deny)
    assert denied.rule == f"{file}: it reaches further than {file}:1 topic read a/#"
    await plugin.stop()


async def test_observe_allows_and_says_what_it_would_deny(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, broker, file = await started(tmp_path, observe=True)
    caplog.set_level(logging.INFO)
    client = roger("c\n2026 fake")
    allowed = plugin.authorize_publish(client, "x", 0, False)
    assert allowed == Allow(f"observe, would deny: {file}: no rule lets user 'roger' write it")
    assert isinstance(subscribe(plugin, client, "x/#"), Allow)
    assert isinstance(plugin.authorize_receive(client, "news/secret"), Allow)
    assert broker.counts == {"would_deny": 3}
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(r"would deny client 'c\n2026 fake', user 'roger': publish 'x', by ")
    assert plugin.authorize_publish(client, "up", 0, False) == Allow(f"{file}:4 topic write up")
    assert broker.counts == {"would_deny": 3}
    await plugin.stop()


async def test_observe_writes_a_bounded_number_of_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, broker, _ = await started(tmp_path, observe=True, check_interval=0)
    caplog.set_level(logging.INFO)
    for number in range(100):
        plugin.authorize_publish(roger(), f"x/{number}", 0, False)
    assert len(caplog.records) == 20
    await broker.advance(61)
    plugin.authorize_publish(roger(), "y", 0, False)
    assert [record.getMessage() for record in caplog.records][20] == "80 more would be denied"
    assert broker.counts == {"would_deny": 101}
    await plugin.stop()


async def test_a_changed_file_is_read_and_decisions_are_forgotten(tmp_path: Path) -> None:
    plugin, broker, file = await started(tmp_path)
    client = roger()
    assert isinstance(plugin.authorize_publish(client, "new", 0, False), Deny)
    await broker.advance(3)
    assert broker.forgotten == []
    rewrite(file, "user roger\ntopic new\n")
    await broker.advance(2)
    assert broker.forgotten == [None]
    assert plugin.authorize_publish(client, "new", 0, False) == Allow(f"{file}:2 topic new")
    assert isinstance(plugin.authorize_receive(client, "news/x"), Deny)
    assert broker.gauges["rules"] == 1
    await plugin.stop()


@pytest.mark.parametrize("bad", ["topic a/#/b\n", None])
async def test_a_file_that_becomes_bad_or_goes_changes_nothing(
    tmp_path: Path, bad: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, broker, file = await started(tmp_path)
    if bad is None:
        file.unlink()
    else:
        rewrite(file, bad)
    await broker.advance(20)
    assert broker.counts == {"reload_failures": 1}
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert broker.forgotten == []
    assert isinstance(plugin.authorize_receive(roger(), "news/x"), Allow)
    rewrite(file, "topic x\n")
    await broker.advance(3)
    assert isinstance(plugin.authorize_receive(roger(), "news/x"), Deny)
    await plugin.stop()


async def test_a_reload_takes_the_new_configuration_or_nothing_of_it(tmp_path: Path) -> None:
    plugin, broker, file = await started(tmp_path)
    other = tmp_path / "other"
    other.write_text("user roger\nfoo\n")
    config = Config.model_validate({"file": str(other), "observe": True})
    with pytest.raises(AclError, match="other:2: found 'foo'"):
        await plugin.reload(config)
    assert isinstance(plugin.authorize_publish(roger(), "x", 0, False), Deny)
    rewrite(file, RULES + "topic x\n")
    await broker.advance(2)  # the old file is still the one that is watched
    assert isinstance(plugin.authorize_publish(roger(), "x", 0, False), Allow)
    other.write_text("user roger\ntopic y\n")
    await plugin.reload(config)
    assert broker.forgotten == [None, None]
    allowed = plugin.authorize_publish(roger(), "x", 0, False)
    assert isinstance(allowed, Allow)
    assert allowed.rule.startswith("observe")
    rewrite(file, "")
    await broker.advance(5)
    assert broker.forgotten == [None, None]
    await plugin.stop()


@pytest.mark.parametrize(("text", "told"), [("topic a/#/b\n", ":1: "), (None, "No such file")])
async def test_a_bad_file_stops_the_start_and_is_found_by_a_check(
    tmp_path: Path, text: str | None, told: str
) -> None:
    file = tmp_path / "acl"
    if text is not None:
        file.write_text(text)
    broker = StandIn("acl_file")
    config = Config.model_validate({"file": str(file)})
    with pytest.raises((AclError, OSError), match=told):
        await AclFile(config, broker).check()
    with pytest.raises((AclError, OSError), match=told):
        await broker.start(AclFile, config)


async def test_who_became_somebody_else_has_other_rights(tmp_path: Path) -> None:
    plugin, *_ = await started(tmp_path)
    client = roger()
    assert isinstance(plugin.authorize_publish(client, "up", 0, False), Allow)
    client.username = "eve"
    assert isinstance(plugin.authorize_publish(client, "up", 0, False), Deny)
    await plugin.stop()


async def test_before_it_has_started_everything_is_denied(tmp_path: Path) -> None:
    plugin = AclFile(Config.model_validate({"file": str(tmp_path / "acl")}), StandIn())
    assert isinstance(plugin.authorize_publish(roger(), "up", 0, False), Deny)


def test_an_interval_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected 100ms or more"):
        Config.model_validate({"file": "acl", "check_interval": 0.05})
