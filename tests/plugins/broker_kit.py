"""Brokers with plugins, and clients of few lines, for tests of plugins where they belong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mqttd
from mqttd.api import Plugin, reason_codes
from mqttd.core.packets import Filter, Puback, Suback, Subscribe
from tests.net.kit import Wire

RIGHTS = "tests.plugins.rights:Rights"


@asynccontextmanager
async def broker_with(*plugins: dict[str, Any], **more: Any) -> AsyncIterator[mqttd.Broker]:
    listener = {"name": "t", "bind": "127.0.0.1:0", "allow_anonymous": True}
    tree = {"listeners": [listener], "plugins": list(plugins), **more}
    async with mqttd.Broker(tree) as broker:
        yield broker


@asynccontextmanager
async def client(broker: mqttd.Broker, name: str) -> AsyncIterator[Wire]:
    async with await Wire.open(broker.port("t")) as wire:
        assert (await wire.connect(name)).reason == reason_codes.SUCCESS
        yield wire


def plugin_of(broker: mqttd.Broker, name: str) -> Plugin[Any]:
    hooks = broker._app.hooks
    assert hooks is not None
    plugin = hooks.plugin(name)
    assert plugin is not None
    return plugin


async def acknowledged(wire: Wire, topic: str, payload: bytes, packet_id: int = 1) -> int:
    wire.publish(topic, payload, 1, packet_id)
    answer = await wire.receive(Puback)
    assert answer.packet_id == packet_id
    return answer.reason


async def granted(wire: Wire, topic_filter: str) -> int:
    wire.send(Subscribe(1, [Filter(topic_filter, 1, False, False, 0)]))
    (reason,) = (await wire.receive(Suback)).reasons
    return reason


def counts_of(broker: mqttd.Broker, name: str) -> dict[str, int]:
    hooks = broker._app.hooks
    assert hooks is not None
    return hooks.services[name].counts


def rewriting(*rules: tuple[str, str, str]) -> dict[str, Any]:
    made = [{"on": ways.split(), "filter": given, "to": to} for ways, given, to in rules]
    return {"use": "topic_rewrite", "config": {"rules": made}}
