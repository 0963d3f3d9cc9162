"""What a client, and who was asked before, sees of plugins that fail, change or take their time."""

import asyncio
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from mqttd.api import (
    Allow,
    Client,
    ConnectRequest,
    Continue,
    Deny,
    Message,
    Plugin,
    PluginConfig,
    reason_codes,
)
from mqttd.core.packets import Auth, Connack, Disconnect, Will
from mqttd.core.wills import TABLE
from tests.hooks.kit import hooked, prepared
from tests.spec.kit import props


async def test_who_was_asked_before_sees_nothing_of_what_it_becomes() -> None:
    """Re-authentication is another client for hooks: what waits keeps the one that it has."""
    seen: list[tuple[Client, str]] = []

    class Tenants(Plugin[PluginConfig]):
        auth_methods = ("M",)
        names: ClassVar[list[str]] = ["blue", "red", "never"]

        def authenticate_enhanced(
            self, client: Client, method: str, data: bytes | None, first: bool
        ) -> Continue | Allow | Deny:
            if first:
                client.attributes["tenant"] = self.names.pop(0)
                return Continue(b"")
            return Allow(username="u") if client.attributes["tenant"] != "never" else Deny("no")

        def on_publish(self, client: Client, message: Message) -> None:
            seen.append((client, client.attributes["tenant"]))

    method = props(authentication_method="M")
    async with hooked(prepared(Tenants)) as made:
        client = made.say(properties=method)
        client.expect(Auth)
        client.send(Auth(0x18, method))
        client.expect(Connack)
        client.publish("t", b"1")
        client.send(Auth(0x19, method))
        client.expect(Auth)
        (before, _) = seen[0]
        assert before.attributes == {"tenant": "blue"}  # although it is being changed
        client.send(Auth(0x18, method))
        client.expect(Auth)
        client.publish("t", b"2")
        assert [tenant for _, tenant in seen] == ["blue", "red"]
        assert before.attributes == {"tenant": "blue"}
        after = seen[1][0]
        assert made.broker.sessions["c"].guest is after
        client.send(Auth(0x19, method))
        client.expect(Auth)
        client.send(Auth(0x18, method))
        client.expect(Disconnect)
        assert after.attributes == {"tenant": "red"}


@pytest.mark.parametrize("hook", ["authenticate", "on_connect"])
async def test_a_stranger_is_not_told_what_failed(hook: str) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("/etc/passwords is broken")

    async with hooked(prepared(type("Fails", (Plugin,), {hook: fail}), "passwords")) as made:
        client = made.say()
        text = client.expect(Connack).properties.reason_string or ""
        assert "it can't be decided at the moment" in text
        assert "passwords" not in text
        assert f"(plugin passwords failed in {hook})" in made.h.events("refused")[0]


async def test_a_connect_that_no_client_could_send_is_the_failure_of_its_plugin() -> None:
    class Wrong(Plugin[PluginConfig]):
        def on_connect(self, client: Client, request: ConnectRequest) -> ConnectRequest:
            return replace(request, keep_alive_s=-1)

    async with hooked(prepared(Wrong, breaker={"failures": 2})) as made:
        for _ in range(2):
            client = made.say()
            answer = client.expect(Connack)
            assert answer.reason == reason_codes.UNSPECIFIED_ERROR
            assert "CONNECT" not in (answer.properties.reason_string or "")
        assert made.manager.guards[0].resting


async def test_a_will_is_kept_until_a_hook_that_waits_has_decided() -> None:
    go = asyncio.Event()

    class Slow(Plugin[PluginConfig]):
        async def on_publish(self, client: Client, message: Message) -> None:
            await go.wait()

    async with hooked(prepared(Slow), durable=True) as made:
        client = made.say("c", clean_start=False, expiry=100, will=Will("w", b"x", 1, True))
        await made.commit()
        client.drop()
        await made.commit()
        assert len(made.broker.tables.items(TABLE)) == 1
        assert made.broker.retained.count == 0
        go.set()
        await made.until(lambda: made.broker.retained.count)
        assert made.broker.tables.items(TABLE) == []
