"""A hook manager on a real core, without sockets.

`Hooked` ties plugins to a `Harness`: clients are in memory, the flush that the shell does once a
tick is `turn`. Its clock is the real one, since the manager's is; nothing waits for it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from mqttd.api import Plugin, PluginConfig
from mqttd.config import PluginEntry
from mqttd.core.packets import Connack, Connect
from mqttd.core.properties import Properties
from mqttd.core.settings import Settings
from mqttd.hooks.guard import Guard
from mqttd.hooks.loader import Prepared
from mqttd.hooks.manager import HookManager
from tests.harness import FakeClient, Harness

SHORT_S = 0.02
"""The time limit of a hook that is meant to exceed it."""


def prepared(
    made_by: type[Plugin[Any]], name: str = "", config: PluginConfig | None = None, **entry: Any
) -> Prepared:
    """As the loader returns it; `entry` is what stands beside `use` in the configuration."""
    name = name or made_by.__name__.lower()
    return Prepared(
        name,
        made_by,
        made_by.config_class() if config is None else config,
        PluginEntry.model_validate({"use": name, **entry}),
    )


def guard_of(
    plugin: Plugin[Any], clock: Callable[[], float] = monotonic, name: str = "plugin", **entry: Any
) -> Guard:
    return Guard(name, plugin, PluginEntry.model_validate({"use": "x", **entry}), clock)


class Hooked:
    """Plugins around a core."""

    def __init__(self, plugins: list[Prepared], durable: bool, settings: Settings | None) -> None:
        self.h = Harness(settings, durable)
        self.h.now = monotonic()
        self.broker = self.h.broker
        self.scheduled = 0
        self.manager = HookManager(self.broker, plugins, self.schedule)

    def schedule(self) -> None:
        self.scheduled += 1

    async def turn(self, times: int = 12) -> None:
        """Let everything happen that waits for nothing but its turn."""
        for _ in range(times):
            await asyncio.sleep(0)
            self.h.now = max(self.h.now, monotonic())
            self.h.flush()
            self.manager.tick()
        self.h.flush()

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop run until something is true."""
        async with asyncio.timeout(30.0):
            while not condition():
                await asyncio.sleep(0.001)
                await self.turn(2)

    async def commit(self) -> None:
        self.h.commit()
        await self.turn()

    def say(self, client_id: str = "c", version: int = 5, **values: Any) -> FakeClient:
        """Send a CONNECT and leave the answer to come."""
        clean = values.pop("clean_start", True)
        properties = Properties()
        if "expiry" in values:
            properties.session_expiry_interval = values.pop("expiry")
        packet = Connect("MQTT", version, clean, client_id=client_id, properties=properties)
        for name, value in values.items():
            assert hasattr(packet, name), name
            setattr(packet, name, value)
        client = self.h.open(version)
        client.client_id = client_id
        client.send(packet)
        return client

    async def client(self, client_id: str = "c", version: int = 5, **values: Any) -> FakeClient:
        """A client that was accepted."""
        client = self.say(client_id, version, **values)
        await self.until(lambda: client.received)
        client.connack = client.expect(Connack)
        assert client.connack.reason == 0, client.connack
        return client

    async def refused(self, client_id: str = "c", **values: Any) -> int:
        """The reason code with which a client was not accepted."""
        client = self.say(client_id, **values)
        await self.until(lambda: client.closed)
        return client.expect(Connack).reason


@asynccontextmanager
async def hooked(
    *plugins: Prepared, durable: bool = False, settings: Settings | None = None
) -> AsyncIterator[Hooked]:
    made = Hooked(list(plugins), durable, settings)
    try:
        await made.manager.start()
        yield made
    finally:
        await made.manager.stop()
