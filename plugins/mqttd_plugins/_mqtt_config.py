"""The configuration of `bridge_mqtt`.

Owns: what can be found wrong before anything is connected. On MQTT 5 the remote broker is asked not
to send back what the bridge itself published; before it there is no such thing, so rules that
would send a message back and forth are refused, unless the remote broker is told that this is a
bridge. What a message is for is said by subscription identifiers on MQTT 5; before it the filters
of two rules in may not overlap.

Must not know: connections. A ValueError says what is wrong, and of which rule or file.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from mqttd.api import Duration
from mqttd_plugins._bridge.rules import Rule, loops, overlap, placed
from mqttd_plugins._bridge_access import AccessConfig, TlsConfig
from mqttd_plugins._mqtt_lines import rules_of


class MqttRule(Rule):
    """A rule. Inward, `from` is a filter at the remote broker."""

    SOURCE_IS_FILTER: ClassVar[bool] = True
    TARGET_IS_TOPIC: ClassVar[bool] = True


class MqttTlsConfig(TlsConfig):
    server_name: str | None = None
    """The name that the certificate of the remote broker has to bear, instead of the host's."""


class Config(AccessConfig):
    rules: list[MqttRule] = []
    """What goes which way."""
    topics: list[str] = []
    """The same as Mosquitto's lines: `PATTERN [[[out|in|both] QOS] LOCAL-PREFIX REMOTE-PREFIX]`."""
    version: Literal[5, "3.1.1"] = 5
    """The version to speak."""
    bridge_bit: bool = False
    """3.1.1: say that this is a bridge, as Mosquitto does; Mosquitto sends nothing back then."""
    remote_client_id: str | None = None
    """The client id at the remote broker; without one it is made from the bridge's origin."""
    tls: MqttTlsConfig | None = None
    """Speak TLS."""
    keep_alive: Annotated[int, Field(ge=0, le=65535)] = 60
    """Seconds; 0: never ask for a sign of life."""
    session_expiry: Duration = 7 * 86400.0
    """How long the remote broker keeps the session while there is no connection."""

    @model_validator(mode="after")
    def _fits_mqtt(self) -> Config:
        if self.bridge_bit and self.version == 5:
            raise ValueError("bridge_bit: MQTT 5 has No Local instead, which is used")
        if not 0 < self.session_expiry <= 0xFFFFFFFF:
            raise ValueError("session_expiry is above 0 and at most 4294967295 seconds")
        rules = self.all_rules()
        inward = [rule for rule in rules if rule.direction == "in"]
        for number, rule in enumerate(inward):
            for other in inward[:number]:
                if rule.source == other.source:
                    raise ValueError(f"{rule.place}: the same filter as {other.place}")
                if self.version != 5 and overlap(rule.source, other.source):
                    raise ValueError(
                        f"{rule.place}: its filter overlaps with {other.place}: before MQTT 5 "
                        "nothing says which of the two a message is for"
                    )
        if self.version != 5 and not self.bridge_bit:
            for text in loops(rules):
                raise ValueError(
                    f"{text}; or use version 5, or bridge_bit if the remote broker is Mosquitto"
                )
        return self

    def all_rules(self) -> list[Rule]:
        found: list[Rule] = list(super().all_rules())
        for number, line in enumerate(self.topics):
            for tree in rules_of(line):
                try:
                    rule = MqttRule.model_validate(tree)
                except ValidationError as error:
                    (first, *_) = error.errors()
                    raise ValueError(f"topics[{number}]: {line!r}: {first['msg']}") from None
                placed([rule], "topics", number)
                found.append(rule)
        return found
