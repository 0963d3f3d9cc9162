"""Where messages go that can't be processed: a topic, with the reason in user properties.

The message itself is left as it was. Added to it:

    mqttd-dlq-reason  why, in words       mqttd-dlq-bridge  the bridge's name
    mqttd-dlq-topic   where it came from  mqttd-dlq-rule    the rule: rules[2]
    mqttd-dlq-tries   how often it was tried

Must not know: what is poison. Invariant: `bury` returns when the message is durable there, so
whoever called may acknowledge it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mqttd.api import Message
from mqttd_plugins._bridge.identity import ID, with_user_properties

_LONGEST: Final = 500
PREFIX: Final = "mqttd-dlq-"


class DeadLetters:
    """The dead-letter topic of one bridge."""

    def __init__(
        self, bridge: str, topic: str | None, publish: Callable[[Message], Awaitable[int]]
    ) -> None:
        self.topic = topic or f"$dlq/{bridge}"
        self._bridge = bridge
        self._publish = publish

    async def bury(self, message: Message, *, id: str, place: str, tries: int, reason: str) -> None:
        """Publish it there."""
        more = [
            (PREFIX + "reason", plain(reason)),
            (PREFIX + "bridge", self._bridge),
            (PREFIX + "topic", message.topic),
            (PREFIX + "rule", place),
            (PREFIX + "tries", str(tries)),
        ]
        if id:
            more.append((ID, id))
        properties = with_user_properties(message.properties, more)
        await self._publish(
            message.replace(
                topic=self.topic, qos=1, retain=False, properties=properties, expires_in_s=None
            )
        )


def plain(text: str) -> str:
    """A text that any MQTT client can read: of bounded length, without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST])
