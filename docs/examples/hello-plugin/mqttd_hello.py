"""Hello: a plugin for mqttd that greets who connects.

A client gets a message on `hello/CLIENT_ID` when it connects, and nobody but the broker publishes
below `hello/`. An example of a plugin in a package of its own; it imports `mqttd.api` and nothing
else of mqttd.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import field_validator

from mqttd.api import (
    CONNECTED,
    Client,
    Deny,
    Event,
    Message,
    Plugin,
    PluginConfig,
    ProtocolError,
    validate_topic_name,
)


class Config(PluginConfig):
    prefix: str = "hello"
    """Where greetings are published, without the slash behind it."""
    text: str = "Hello, {client_id}!"

    @field_validator("prefix")
    @classmethod
    def _is_a_topic(cls, value: str) -> str:
        try:
            validate_topic_name(value)
        except ProtocolError as error:
            raise ValueError(f"no topic: {error.detail}") from None
        return value


class Hello(Plugin[Config]):
    """Greets."""

    watches = frozenset({CONNECTED})

    async def observe(self, events: Sequence[Event]) -> None:
        """Called with what has happened, some at a time, off the path of messages."""
        for event in events:
            if any(sign in event.client_id for sign in "+#/"):
                continue  # a client id is anybody's text: it may not choose the topic
            text = self.config.text.format(client_id=event.client_id)
            topic = f"{self.config.prefix}/{event.client_id}"
            await self.broker.publish(Message(topic, text.encode(), qos=1))
            self.broker.count("greetings")

    def on_publish(self, client: Client, message: Message) -> Deny | None:
        """Called for each message of a client; None leaves it as it is."""
        if message.topic.startswith(self.config.prefix + "/"):
            return Deny("only the broker greets")
        return None
