"""Dead letters, as plugins make them."""

from datetime import datetime
from typing import Any

import pytest

from mqttd.api import Message, MessageProperties, Plugin, PluginConfig, Undelivered
from mqttd.core.packets import Filter, Publish, Suback, Subscribe
from mqttd.core.properties import decode_forwardable
from mqttd.core.settings import Settings
from mqttd.hooks.manager import PluginError
from tests.hooks.kit import hooked, prepared

FORGED = (("mqttd-topic", "elsewhere"), ("k", "v"), ("mqttd-dead-letter", "boredom"))
"""What a client says of its own message."""


class Empty(PluginConfig):
    """Nothing."""


class Letters(Plugin[Empty]):
    undelivered = frozenset({"queue_full"})

    def __init__(self, config: Empty, broker: Any) -> None:
        super().__init__(config, broker)
        self.asked: list[Undelivered] = []

    def on_undelivered(self, undelivered: Undelivered) -> Message | None:
        self.asked.append(undelivered)
        return self.made(undelivered.message)

    def made(self, message: Message) -> Message | None:
        return message.replace(topic="dead", qos=1)


class NoLetters(Letters):
    def made(self, message: Message) -> Message | None:
        return None


class Nonsense(Letters):
    def made(self, message: Message) -> Message | None:
        return message.replace(topic="dead/#")


class OtherReasons(Letters):
    undelivered = frozenset({"expired"})


class NoReason(Letters):
    undelivered = frozenset({"queue_full", "boredom"})


async def letters_of(*plugins: type[Plugin[Any]]) -> tuple[list[Any], list[Publish]]:
    """The plugins, and the dead letters that a full queue leads to."""
    settings = Settings()
    settings.max_queued_messages = 1
    async with hooked(*[prepared(each) for each in plugins], settings=settings) as it:
        collector = await it.client("collector")
        collector.send(Subscribe(1, [Filter("dead", 1)]))
        absent = await it.client("a", expiry=1000)
        absent.send(Subscribe(1, [Filter("t", 1)]))
        await it.turn()
        absent.take_first(Suback)
        absent.drop()
        publisher = await it.client("p")
        properties = MessageProperties(content_type="text/plain", user_properties=FORGED)
        for payload in (b"1", b"2"):
            publisher.publish("t", payload, 1, properties=properties.encoded())
        await it.turn()
        found = [it.manager.plugin(guard.name) for guard in it.manager.guards]
        return found, collector.messages()


async def test_a_letter_says_what_became_of_the_message() -> None:
    (plugin,), (packet,) = await letters_of(Letters)
    (asked,) = plugin.asked
    assert (asked.reason, asked.client_id, asked.share) == ("queue_full", "a", "")
    assert (asked.message.topic, asked.message.payload) == ("t", b"2")
    assert (packet.topic, packet.payload, packet.qos) == ("dead", b"2", 1)
    properties = decode_forwardable(packet.properties)
    assert properties.content_type == "text/plain"
    first, *added = properties.user_properties
    assert first == ("k", "v")
    at = datetime.fromisoformat(dict(added).pop("mqttd-time"))
    assert at.tzinfo is not None
    assert [pair for pair in added if pair[0] != "mqttd-time"] == [
        ("mqttd-dead-letter", "queue_full"),
        ("mqttd-topic", "t"),
        ("mqttd-client", "a"),
        ("mqttd-publisher", "p"),
    ]


async def test_the_first_plugin_with_a_letter_counts() -> None:
    plugins, found = await letters_of(NoLetters, Letters, OtherReasons)
    assert len(found) == 1
    assert [len(plugin.asked) for plugin in plugins] == [1, 1, 0]


async def test_what_is_no_message_is_no_letter() -> None:
    (_, plugin), found = await letters_of(Nonsense, Letters)
    assert [packet.topic for packet in found] == ["dead"]
    assert len(plugin.asked) == 1


async def test_a_plugin_may_want_only_reasons_that_there_are() -> None:
    with pytest.raises(PluginError, match="plugin noreason wants letters of boredom"):
        await letters_of(NoReason)
