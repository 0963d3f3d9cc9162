"""`topic_rewrite`: topics and filters that clients use become others, by rules.

Owns: the rules and which of them applies: the first of its direction whose filter holds the topic.
It is applied once, and what it made is not looked up again, so that rules can't chase each other
in a circle. Directions: `publish` (a message, or a will, comes in), `subscribe` (the filter of a
SUBSCRIBE or an UNSUBSCRIBE), `deliver` (a message goes out to a client).

A subscription is rewritten if the rule's filter holds all that the subscription does: `a/#` holds
`a/+/b`, while a subscription to `#` is left alone by a rule for `a/#`. What stands for a level may
then be a wildcard; a result that is no valid filter is refused. `$share/GROUP/` stays in front.

A message that is to be published later gets the topic that it would get now.

The broker authorises the topic or filter that comes out, as it did the one that came in; nothing
here allows anything.

Must not know: who may do what.

Invariants: no regular expression is made from anything; a client's names never hold more than one
level (`_template`); a rule that is wrong, does nothing, or never gets a turn, stops the start.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import ValidationInfo, field_validator, model_validator

from mqttd.api import (
    BrokerServices,
    Client,
    Deny,
    Drop,
    Message,
    Plugin,
    PluginConfig,
    ProtocolError,
    SubscriptionRequest,
    reason_codes,
    split_shared,
    validate_topic_filter,
    validate_topic_name,
)
from mqttd_plugins._filters import Levels, covers, fits, levels_of
from mqttd_plugins._template import Template, Unfit
from mqttd_plugins._topics import check_filter, split_delayed

Direction = Literal["publish", "subscribe", "deliver"]


class RuleConfig(PluginConfig):
    on: list[Direction]
    """Which ways the rule applies to."""
    filter: str
    """The topics it is for. A rule for `subscribe` applies to filters that this one holds."""
    to: str
    """What becomes of them."""
    listener: str | None = None
    """Only for clients of this listener; absent: of all."""

    @field_validator("on")
    @classmethod
    def _goes_some_way(cls, value: list[Direction]) -> list[Direction]:
        if not value or len(set(value)) < len(value):
            raise ValueError("expected one or more of publish, subscribe, deliver, each once")
        return value

    @field_validator("filter")
    @classmethod
    def _is_a_filter(cls, value: str) -> str:
        check_filter(value)
        return value

    @field_validator("to")
    @classmethod
    def _makes_topics(cls, value: str, info: ValidationInfo) -> str:
        topic_filter, directions = info.data.get("filter"), info.data.get("on")
        if topic_filter is None or directions is None:
            return value  # what is wrong there is told already
        sample = Template(value, topic_filter.split("/")).sample()
        try:
            if directions == ["subscribe"]:
                validate_topic_filter(sample)
            else:
                validate_topic_name(sample)
        except ProtocolError as error:
            raise ValueError(f"makes no valid topic: {error.detail}") from None
        if value.startswith("$share"):
            raise ValueError("$share is for subscribers to choose")
        if "publish" in directions and (value == "$SYS" or value.startswith("$SYS/")):
            raise ValueError("nobody but the broker publishes below $SYS")
        if _same(value, topic_filter):
            raise ValueError("changes nothing")
        return value


class Config(PluginConfig):
    rules: list[RuleConfig]
    """The first that applies is used, once."""

    @model_validator(mode="after")
    def _every_rule_gets_a_turn(self) -> Config:
        if not self.rules:
            raise ValueError("no rules")
        for number, rule in enumerate(self.rules):
            for earlier, other in enumerate(self.rules[:number]):
                reaches = other.listener in (None, rule.listener)
                if reaches and set(rule.on) & set(other.on) and _holds(other.filter, rule.filter):
                    raise ValueError(
                        f"rules[{number}] ({rule.filter}) never gets a turn: rules[{earlier}]"
                        f" ({other.filter}) applies to all that it is for"
                    )
        return self


class _Rule:
    __slots__ = ("levels", "listener", "template")

    def __init__(self, config: RuleConfig) -> None:
        self.levels: Levels = levels_of(config.filter)
        self.listener = config.listener
        self.template = Template(config.to, config.filter.split("/"))


class TopicRewrite(Plugin[Config]):
    """Rules from topic to topic."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._rules = _by_direction(config)

    async def reload(self, config: Config) -> None:
        """Subscriptions keep the filter that they were given; new rules hold for what comes."""
        self._rules = _by_direction(config)
        self.config = config
        self.broker.forget_decisions()

    def on_publish(self, client: Client, message: Message) -> Message | Deny | None:
        try:
            topic = self._topic("publish", client, message.topic)
            if topic is None:
                topic = self._later_topic(client, message.topic)
        except (Unfit, ProtocolError) as error:
            return self._deny(error, reason_codes.TOPIC_NAME_INVALID)
        return None if topic is None else message.replace(topic=topic)

    def on_deliver(self, client: Client, message: Message) -> Message | Drop | None:
        try:
            topic = self._topic("deliver", client, message.topic)
        except (Unfit, ProtocolError) as error:
            self.broker.count("refused")
            return Drop(f"topic can't be rewritten: {_why(error)}")
        return None if topic is None else message.replace(topic=topic)

    def on_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> SubscriptionRequest | Deny | None:
        try:
            topic_filter = self._filter(client, subscription.topic_filter)
        except (Unfit, ProtocolError) as error:
            return self._deny(error, reason_codes.TOPIC_FILTER_INVALID)
        if topic_filter is None:
            return None
        return dataclasses.replace(subscription, topic_filter=topic_filter)

    def on_unsubscribe(self, client: Client, topic_filter: str) -> str | None:
        try:
            return self._filter(client, topic_filter)
        except (Unfit, ProtocolError):
            return None  # never subscribed to

    def _topic(self, direction: Direction, client: Client, topic: str) -> str | None:
        parts = topic.split("/")
        dollar = topic.startswith("$")
        for rule in self._rules[direction]:
            if rule.listener in (None, client.listener) and fits(rule.levels, parts, dollar):
                made = rule.template.fill(parts, client.client_id, client.username)
                validate_topic_name(made)
                self.broker.count(f"rewritten_{direction}")
                return made
        return None

    def _later_topic(self, client: Client, topic: str) -> str | None:
        """As `_topic`, for the topic that a message is to have when its delay is over."""
        front, inner = split_delayed(topic)
        made = self._topic("publish", client, inner) if front else None
        if made is None:
            return None
        validate_topic_name(front + made)
        return front + made

    def _filter(self, client: Client, topic_filter: str) -> str | None:
        _, inner = split_shared(topic_filter)
        levels = levels_of(inner)
        for rule in self._rules["subscribe"]:
            if rule.listener in (None, client.listener) and covers(rule.levels, levels):
                made = rule.template.fill(levels, client.client_id, client.username)
                whole = topic_filter[: len(topic_filter) - len(inner)] + made
                validate_topic_filter(made)
                validate_topic_filter(whole)
                self.broker.count("rewritten_subscribe")
                return whole
        return None

    def _deny(self, error: Unfit | ProtocolError, code: int) -> Deny:
        self.broker.count("refused")
        return Deny(f"topic can't be rewritten: {_why(error)}", code, cache=False)


def _by_direction(config: Config) -> dict[Direction, list[_Rule]]:
    directions: tuple[Direction, ...] = ("publish", "subscribe", "deliver")
    return {
        direction: [_Rule(rule) for rule in config.rules if direction in rule.on]
        for direction in directions
    }


def _holds(whole: str, part: str) -> bool:
    return covers(levels_of(whole), levels_of(part))


def _same(template: str, topic_filter: str) -> bool:
    """Whether the template gives back what the filter let in."""
    levels = topic_filter.split("/")
    wanted = template.split("/")
    if wanted in (["{topic}"], ["{topic[0:]}"]):
        return True
    return len(wanted) == len(levels) and all(
        part in _spellings(level, place)
        for place, (part, level) in enumerate(zip(wanted, levels, strict=True))
    )


def _spellings(level: str, place: int) -> tuple[str, ...]:
    """The templates of one level that leave it as it is."""
    if level == "#":
        return (f"{{topic[{place}:]}}",)
    same = f"{{topic[{place}]}}"
    return (same,) if level == "+" else (same, level)


def _why(error: Unfit | ProtocolError) -> str:
    return error.detail if isinstance(error, ProtocolError) else str(error)
