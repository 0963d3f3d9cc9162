"""`dead_letters`: messages that end undelivered are published to a topic that says why.

Owns: for which reasons, and for whose messages, and to which topic.

Must not know: where in the broker a message ends, what the broker writes into a dead letter.

Invariants: a dead letter is at least QoS 1, so that it waits for whoever is away; it is never
retained, and has an expiry interval of its own; what a topic template makes of a topic is one topic
or nothing.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from mqttd.api import (
    BrokerServices,
    Duration,
    Message,
    Plugin,
    PluginConfig,
    ProtocolError,
    Undelivered,
    matches,
    validate_topic_filter,
)
from mqttd_plugins import _letter_topics

Reason = Literal[
    "expired",
    "not_authorized",
    "packet_too_large",
    "queue_full",
    "redelivery_limit",
    "refused_by_receiver",
    "session_ended",
]
USUAL: Final[list[Reason]] = [
    *("expired", "packet_too_large", "queue_full"),
    *("redelivery_limit", "refused_by_receiver", "session_ended"),
]


class Config(PluginConfig):
    topic: str = "$dlq/{reason}/{topic}"
    """Where dead letters go; `{reason}` and the `{topic}` of the message are filled in."""
    reasons: list[Reason] = Field(default=USUAL)
    """For what a message has to end to become one."""
    filter: str = "#"
    """Only messages whose topics match. `#` leaves out those that begin with `$`."""
    expiry: Duration = 7 * 86400.0
    """How long a dead letter waits for whoever is away; 0: for good."""

    @model_validator(mode="after")
    def _topics(self) -> Self:
        try:
            _letter_topics.check(self.topic, ("reason", "topic"))
        except ValueError as error:
            raise ValueError(f"topic: {error}") from None
        try:
            validate_topic_filter(self.filter)
        except ProtocolError as error:
            raise ValueError(f"filter: expected a topic filter: {error.detail}") from None
        if not self.reasons:
            raise ValueError("reasons: expected one or more")
        return self


class DeadLetters(Plugin[Config]):
    """Dead letters, by reason."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self.undelivered = frozenset(config.reasons)

    async def reload(self, config: Config) -> None:
        if not set(config.reasons) <= self.undelivered:
            raise ValueError("reasons that are new need a start of the broker")
        self.config = config

    def on_undelivered(self, undelivered: Undelivered) -> Message | None:
        config = self.config
        message = undelivered.message
        if undelivered.reason not in config.reasons or not matches(config.filter, message.topic):
            return None
        topic = _letter_topics.fill(config.topic, reason=undelivered.reason, topic=message.topic)
        if topic is None:
            self.broker.count("unpublishable")
            return None
        self.broker.count(undelivered.reason)
        return message.replace(
            topic=topic,
            qos=max(message.qos, 1),
            retain=False,
            expires_in_s=config.expiry or None,
        )
