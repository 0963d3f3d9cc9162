"""`schema`: messages whose payload has to be JSON of a given shape.

Owns: the rules, a topic filter and a JSON Schema each, and what happens to a message that isn't
valid. *reject* refuses it (0x99), *quarantine* publishes it elsewhere with its topic and the reason
as user properties, *observe* lets it through and says so in the log. The first rule whose filter
holds the topic decides; a topic without a rule isn't looked at. What is to be published later is
judged by the topic that it will have.

What is larger than `INLINE`, or turns out to take long, is checked in a thread, so that one payload
doesn't keep the others waiting; the client's own next message waits for it, no longer than
`max_time`.

Must not know: how a schema works (`_json_schema`).

Invariants: a payload that can't be checked is not valid; the files are read again when they have
changed, and one that is no good then changes nothing; the log gets one line per rule every
`LOG_EVERY_S` at most, with no payload in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable
from functools import partial
from typing import Final, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from mqttd.api import (
    BrokerServices,
    Client,
    Deny,
    Drop,
    Duration,
    FilePath,
    Message,
    Plugin,
    PluginConfig,
    Size,
    reason_codes,
)
from mqttd_plugins._files import Followed, Interval
from mqttd_plugins._filters import Chosen, covers, levels_of
from mqttd_plugins._json_schema import Checker, load
from mqttd_plugins._time_limits import check_waits
from mqttd_plugins._topics import DELAYED, check_filter, check_target, split_delayed

INLINE: Final = 4096
LOG_EVERY_S: Final = 10.0
ORIGINAL_TOPIC: Final = "original-topic"
REASON: Final = "reason"
CLIENT_ID: Final = "client-id"

Answer = Deny | Drop | None


class RuleConfig(PluginConfig):
    filter: str
    """The topics it is for."""
    file: FilePath
    """A JSON Schema."""
    mode: Literal["reject", "quarantine", "observe"] = "reject"
    """What happens to a message that isn't valid."""
    quarantine: str | None = None
    """Where such a message goes with `mode: quarantine`."""
    max_size: Size = 256 * 1024
    """A larger payload isn't valid, and isn't parsed."""
    allow_clearing: bool = True
    """Let an empty retained message through, which removes the retained one."""

    @field_validator("filter")
    @classmethod
    def _is_a_filter(cls, value: str) -> str:
        check_filter(value)
        return value

    @field_validator("quarantine")
    @classmethod
    def _is_a_topic(cls, value: str | None) -> str | None:
        if value is not None:
            check_target(value)
        return value

    @model_validator(mode="after")
    def _has_somewhere_to_go(self) -> RuleConfig:
        if (self.mode == "quarantine") != (self.quarantine is not None):
            raise ValueError("mode: quarantine and quarantine: TOPIC belong together")
        return self


class Config(PluginConfig):
    rules: list[RuleConfig]
    """The first whose filter holds the topic decides."""
    poll: Interval = 2.0
    """How often the files are looked at for changes; 0: never."""
    max_time: Duration = 2.0
    """What takes more of a processor's time to be checked isn't valid."""

    @model_validator(mode="after")
    def _every_rule_gets_a_turn(self, info: ValidationInfo) -> Config:
        if not self.rules:
            raise ValueError("no rules")
        check_waits(info, max_time=self.max_time)
        levels = [levels_of(rule.filter) for rule in self.rules]
        for number, part in enumerate(levels):
            for earlier, whole in enumerate(levels[:number]):
                if covers(whole, part):
                    raise ValueError(f"rules[{number}] never gets a turn behind rules[{earlier}]")
        return self


class _Rule:
    """A rule with its schema, and what it has to say in the log."""

    __slots__ = ("checker", "config", "silent_until", "unsaid")

    def __init__(self, config: RuleConfig) -> None:
        self.config = config
        self.checker: Checker = load(config.file)
        self.silent_until = 0.0
        self.unsaid = 0


class Schema(Plugin[Config]):
    """Payloads that are held against JSON Schemas."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._rules: Chosen[_Rule] = Chosen([])
        self._files: Followed[Chosen[_Rule]] = Followed(broker, "schemas", self._changed)

    async def start(self) -> None:
        await self._take(self.config)

    async def stop(self) -> None:
        self._files.stop()

    async def check(self) -> None:
        await self.broker.run_blocking(_loaded, self.config)

    async def reload(self, config: Config) -> None:
        await self._take(config)

    async def _take(self, config: Config) -> None:
        """Read the files; only when all of them are good is anything changed."""
        paths = [rule.file for rule in config.rules]
        self._rules = await self._files.follow(paths, config.poll, partial(_loaded, config))
        self.config = config

    def _changed(self, rules: Chosen[_Rule]) -> None:
        self._rules = rules
        self.broker.count("reloaded")
        self.broker.log.info("schemas were read again")

    def on_publish(self, client: Client, message: Message) -> Answer | Awaitable[Answer]:
        rule = self._rule_for(message.topic)
        if rule is None:
            return None
        payload = message.payload
        if not payload and message.retain and rule.config.allow_clearing:
            return None
        if len(payload) > rule.config.max_size:
            return self._not_valid(rule, client, message, "larger than max_size")
        reason = None if len(payload) > INLINE else rule.checker.reason_at_once(payload)
        if reason is None:
            return self._checked_elsewhere(rule, client, message)
        if reason:
            return self._not_valid(rule, client, message, reason)
        self.broker.count("valid")
        return None

    def _rule_for(self, topic: str) -> _Rule | None:
        rule = self._rules.first(topic)
        if rule is None and topic.startswith(DELAYED):
            return self._rules.first(split_delayed(topic)[1])
        return rule

    async def _checked_elsewhere(self, rule: _Rule, client: Client, message: Message) -> Answer:
        check, most_s = rule.checker.reason_against, self.config.max_time
        reason = await self.broker.run_blocking(check, message.payload, most_s)
        if not reason:
            self.broker.count("valid")
            return None
        answer = self._not_valid(rule, client, message, reason)
        return await answer if isinstance(answer, Awaitable) else answer

    def _not_valid(
        self, rule: _Rule, client: Client, message: Message, reason: str
    ) -> Answer | Awaitable[Answer]:
        if rule.config.mode == "reject":
            self.broker.count("rejected")
            return Deny(
                f"payload is not valid: {reason}",
                reason_codes.PAYLOAD_FORMAT_INVALID,
                rule=str(rule.config.file),
                cache=False,
            )
        if rule.config.quarantine is not None:
            return self._quarantine(rule.config.quarantine, client, message, reason)
        self.broker.count("observed")
        self._say(rule, client, message, reason)
        return None

    async def _quarantine(self, topic: str, client: Client, message: Message, reason: str) -> Drop:
        """Publish it elsewhere; it is durable there before the client hears of it."""
        ours = (ORIGINAL_TOPIC, message.topic), (REASON, reason), (CLIENT_ID, client.client_id)
        names = {name for name, _ in ours}
        properties = message.properties
        theirs = tuple(pair for pair in properties.user_properties if pair[0] not in names)
        properties = dataclasses.replace(properties, user_properties=(*theirs, *ours))
        await self.broker.publish(message.replace(topic=topic, retain=False, properties=properties))
        self.broker.count("quarantined")
        return Drop(f"in quarantine: {reason}")

    def _say(self, rule: _Rule, client: Client, message: Message, reason: str) -> None:
        now = self.broker.now()
        if now < rule.silent_until:
            rule.unsaid += 1
            return
        others = f", and {rule.unsaid} before it" if rule.unsaid else ""
        self.broker.log.warning(
            "a message of %r to %r is not valid%s: %s",
            client.client_id,
            message.topic,
            others,
            reason,
        )
        rule.silent_until, rule.unsaid = now + LOG_EVERY_S, 0


def _loaded(config: Config) -> Chosen[_Rule]:
    return Chosen((levels_of(rule.filter), _Rule(rule)) for rule in config.rules)
