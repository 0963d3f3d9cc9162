"""The plugin by itself, with a stand-in for the broker, and in a broker that runs."""

import asyncio

import aiomqtt
import pytest
from mqttd_hello import Config, Hello
from pydantic import ValidationError

from mqttd.api import CONNECTED, Client, Deny, Event, Message, Plugin
from mqttd.testing import StandIn, running


async def started(broker: StandIn, config: Config | None = None) -> Plugin[Config]:
    return await broker.start(Hello, config or Config())


def test_who_connects_is_greeted() -> None:
    async def main() -> None:
        broker = StandIn("hello")
        plugin = await started(broker, Config(text="Hi {client_id}"))
        await plugin.observe([Event(CONNECTED, 0.0, "lamp")])
        assert broker.published == [Message("hello/lamp", b"Hi lamp", 1)]
        assert broker.counts == {"greetings": 1}

    asyncio.run(main())


@pytest.mark.parametrize("client_id", ["+", "#", "a/b", "lamp/#"])
def test_a_client_id_does_not_choose_the_topic(client_id: str) -> None:
    async def main() -> None:
        broker = StandIn("hello")
        plugin = await started(broker)
        await plugin.observe([Event(CONNECTED, 0.0, client_id)])
        assert broker.published == []

    asyncio.run(main())


def test_only_the_broker_greets() -> None:
    async def main() -> None:
        plugin = await started(StandIn("hello"))
        client = Client("lamp")
        assert isinstance(plugin.on_publish(client, Message("hello/lamp", b"x")), Deny)
        assert plugin.on_publish(client, Message("hello", b"x")) is None

    asyncio.run(main())


def test_a_prefix_that_is_no_topic() -> None:
    with pytest.raises(ValidationError, match="no topic"):
        Config(prefix="hello/#")


def test_in_a_broker() -> None:
    async def main() -> None:
        async with (
            running(Hello, {"text": "Welcome, {client_id}."}) as broker,
            aiomqtt.Client("127.0.0.1", broker.port, identifier="one") as one,
        ):
            await one.subscribe("hello/#", qos=1)
            await one.publish("hello/two", b"not from the broker", qos=1)
            async with aiomqtt.Client("127.0.0.1", broker.port, identifier="two"):
                message = await anext(aiter(one.messages))
            assert str(message.topic) == "hello/two"
            assert message.payload == b"Welcome, two."

    asyncio.run(main())
