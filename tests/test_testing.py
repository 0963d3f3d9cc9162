"""The kit for tests of plugins: the stand-in does as the broker does, and `running` runs one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mqttd.api import (
    ALLOW,
    DENY,
    NOT_MINE,
    Client,
    Credentials,
    Decision,
    InternalClient,
    Message,
    Plugin,
    PluginConfig,
    Received,
    reason_codes,
)
from mqttd.config import ConfigError
from mqttd.core.packets import Connack, Puback
from mqttd.hooks.manager import PluginError
from mqttd.testing import StandIn, StandInClient, running, settled
from tests.net.kit import Wire


async def next_of(arrivals: AsyncIterator[Received]) -> Received:
    return await asyncio.wait_for(anext(arrivals), 10)


def stand_in(client: InternalClient) -> StandInClient:
    assert isinstance(client, StandInClient)
    return client


# A client inside a stand-in.


async def test_messages_arrive_and_are_settled() -> None:
    broker = StandIn("bridge")
    client = await broker.client("in", receive_maximum=1)
    await client.subscribe("t/#", 2)
    assert client.subscriptions == ["t/#"]
    assert broker.clients["in"].filters == {"t/#": 1}
    inside = stand_in(client)
    for number in range(2):
        inside.arrive(Message(f"t/{number}", b"x", 1))
    inside.arrive(Message("t/2", b"x", 0))
    assert (client.in_flight, client.queued) == (1, 1)
    arrivals = aiter(client)
    first, second = await next_of(arrivals), await next_of(arrivals)
    assert (first.message.topic, second.message.topic) == ("t/0", "t/2")
    second.ack()
    first.ack()
    first.ack()
    third = await next_of(arrivals)
    third.ack(reason_codes.UNSPECIFIED_ERROR)
    assert (client.in_flight, client.queued) == (0, 0)
    assert [(message.topic, reason) for message, reason in inside.settled] == [
        ("t/0", 0),
        ("t/1", 0x80),
    ]
    await client.unsubscribe("t/#")
    assert client.subscriptions == []
    with pytest.raises(ValueError, match="can't subscribe"):
        await client.subscribe("a/#/b")


async def test_what_was_not_acknowledged_comes_again() -> None:
    broker = StandIn("bridge")
    client = await broker.client("in")
    with pytest.raises(ValueError, match="in use"):
        await broker.client("in")
    stand_in(client).arrive(Message("t", b"1", 1))
    first = await next_of(aiter(client))
    assert not first.duplicate
    client.close()
    client.close()
    stand_in(client).arrive(Message("t", b"2", 1))
    assert [received async for received in client] == []
    again = await broker.client("in")
    arrivals = aiter(again)
    found = [await next_of(arrivals) for _ in range(2)]
    assert [(one.message.payload, one.duplicate) for one in found] == [(b"1", True), (b"2", False)]
    first.ack()  # of the client before
    assert again.in_flight == 2


async def test_a_session_that_does_not_last_is_gone() -> None:
    broker = StandIn("bridge")
    client = await broker.client("in", session_expiry_s=0)
    await client.subscribe("t")
    client.close()
    assert broker.clients == {}
    assert (await broker.client("in", session_expiry_s=0)).subscriptions == []


# Publishing.


async def test_publishing_is_kept_and_retained() -> None:
    broker = StandIn()
    client = await broker.client("in")
    await client.publish(Message("t", b"x", retain=True))
    await broker.publish(Message("u", b"x"))
    assert [message.topic for message in broker.published] == ["t", "u"]
    assert list(broker.retains) == ["t"]
    await broker.publish(Message("t", b"", retain=True))
    assert broker.retains == {}
    with pytest.raises(ValueError, match="not a message"):
        await broker.publish(Message("a/#"))


@pytest.mark.parametrize(("key", "value"), [("k", "text"), ("k", bytearray(b"x")), (b"k", b"x")])
async def test_a_table_takes_what_that_of_a_broker_takes(key: Any, value: Any) -> None:
    table = StandIn().table()
    await table.set("k", b"x")
    with pytest.raises(TypeError, match="a row of"):
        table.set(key, value)
    assert table.items() == [("k", b"x")]


async def test_the_clock_is_moved_by_the_test() -> None:
    broker = StandIn()
    done: list[float] = []

    async def later() -> None:
        done.append(broker.now())

    began = broker.now()
    broker.call_later(2.0, later)
    broker.call_later(1.0, lambda: done.append(broker.now()))
    broker.call_later(1.5, lambda: done.append(0.0)).cancel()
    await broker.advance(1.9)
    assert done == [began + 1.0]
    await broker.advance(0.2)
    assert done == [began + 1.0, began + 2.0]
    assert await settled(3) == 3
    assert await settled(asyncio.sleep(0, 4)) == 4


# A broker that runs.


class DoorConfig(PluginConfig):
    open: bool


class Door(Plugin[DoorConfig]):
    def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        return ALLOW if self.config.open else NOT_MINE


class Broken(Plugin[PluginConfig]):
    async def start(self) -> None:
        raise RuntimeError("no")


class Silent(Plugin[PluginConfig]):
    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return DENY


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_plugin_runs_in_a_broker(is_open: bool) -> None:
    async with running(Door, {"open": is_open}) as broker:
        assert isinstance(broker.plugin, Door)
        assert broker.plugin.broker.name == "tested"
        async with await Wire.open(broker.port) as wire:
            wire.send(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
            assert ((await wire.receive(Connack)).reason == 0) == is_open


async def test_it_stands_behind_the_plugins_of_the_broker() -> None:
    others = {"plugins": [{"use": f"{__name__}:Silent"}]}
    async with (
        running(Door, {"open": True}, broker=others, entry={"name": "door"}) as broker,
        await Wire.open(broker.port) as wire,
    ):
        assert broker.plugin.broker.name == "door"
        assert (await wire.connect("c")).reason == 0
        wire.publish("t", b"x", 1, 1)
        assert (await wire.receive(Puback)).reason == reason_codes.NOT_AUTHORIZED


async def test_what_is_wrong_is_told() -> None:
    class Nested(Plugin[PluginConfig]):
        pass

    with pytest.raises(ConfigError, match="open"):
        async with running(Door):
            raise AssertionError
    with pytest.raises(PluginError, match="plugin tested: no"):
        async with running(Broken):
            raise AssertionError
    with pytest.raises(ValueError, match="top of its module"):
        async with running(Nested):
            raise AssertionError
