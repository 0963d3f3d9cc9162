"""The rules of a bridge: what goes which way, and as what.

Owns: the model of a rule and of what all bridges have in their configuration; what can be found
wrong with them before anything is connected; which rules would send a message round and round.

A face derives its rule from `Rule` and adds the keys of its system, and its configuration from
`BridgeConfig` with `rules` typed as a list of its own. Every message about a rule begins with its
place, `rules[2]`, which is also where it stands in the YAML.

Must not know: connections, messages under way.

Invariants: a rule that was accepted has sound templates, and its function was found only by
`Rules`, since importing it runs code; places are those of the file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, PrivateAttr, model_validator

from mqttd.api import (
    Duration,
    Message,
    PluginConfig,
    ProtocolError,
    matches,
    validate_topic_filter,
    validate_topic_name,
)
from mqttd_plugins._bridge.template import INWARD, OUTWARD, Template, Unfit, Values

Function = Callable[[Message], Message | None]


class Rule(PluginConfig):
    """One rule. Its place in the file is given to it by `placed`."""

    SOURCE_IS_FILTER: ClassVar[bool] = False
    """Whether `from` of a rule for the way in is an MQTT filter."""
    TARGET_IS_TOPIC: ClassVar[bool] = False
    """Whether `to` of a rule for the way out makes MQTT topics."""

    direction: Literal["out", "in"]
    """`out`: from this broker to the remote system; `in`: the other way."""
    source: str = Field(alias="from")
    """Outward an MQTT filter; inward a filter, a topic or a queue of the remote system."""
    to: str = "{topic}"
    """Template of the target; inward it makes MQTT topics."""
    qos: Annotated[int, Field(ge=0, le=1)] = 1
    """The QoS at most; 0 has no guarantee, and nothing waits for a confirmation."""
    key: str = "{topic}"
    """Template: messages of one key stay in order. Outward only."""
    headers: dict[str, str] = {}
    """Templates of headers (inward: of user properties) that are added."""
    payload: Literal["raw", "envelope"] = "raw"
    """`raw`: as it is; `envelope`: JSON that holds topic, properties and payload."""
    retain: bool = True
    """Whether the retain flag is passed on."""
    function: str | None = None
    """`dotted.path:callable`, given the message; returns one, or None to drop it."""
    share: str | None = None
    """Outward: subscribe as `$share/SHARE/FILTER`, to divide the messages among bridges."""
    _place: str = PrivateAttr("a rule")

    @model_validator(mode="after")
    def _is_sound(self) -> Rule:
        out = self.direction == "out"
        levels: Sequence[str] | None = None
        if out or self.SOURCE_IS_FILTER:
            try:
                validate_topic_filter(self.source)
            except ProtocolError as error:
                raise ValueError(
                    f"from: {self.source!r} is no topic filter: {error.detail}"
                ) from None
            levels = self.source.split("/")
            if self.source.startswith("$share/"):
                raise ValueError("from: a shared subscription is asked for by `share`")
        elif not self.source:
            raise ValueError("from: empty: expected the name of a topic or a queue")
        promised = None if levels is None else len(levels) - (levels[-1] == "#")
        known = OUTWARD if out else INWARD
        for name, text in (("to", self.to), ("key", self.key), *self.headers.items()):
            if name == "key" and not out:
                continue
            try:
                Template(text, known, promised)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if not self.to:
            raise ValueError("to: empty")
        if not out:
            self._is_for_the_way_in()
        if not out or self.TARGET_IS_TOPIC:
            _check_topic(self.to, known, self.source)
        if self.share is not None and (not self.share or set("/+#\0") & set(self.share)):
            raise ValueError("share: expected the name of a group, without / + and #")
        if self.function is not None and not _is_dotted(self.function):
            raise ValueError("function: expected dotted.path:callable")
        return self

    def _is_for_the_way_in(self) -> None:
        for name in ("key", "share"):
            if name in self.model_fields_set:
                raise ValueError(f"{name}: only rules with `direction: out` have it")

    @property
    def place(self) -> str:
        """Where it stands: `rules[2]`."""
        return self._place

    def cover(self) -> str:
        """A filter that matches every target of the rule."""
        out = self.direction == "out"
        levels = self.source.split("/") if out or self.SOURCE_IS_FILTER else ["#"]
        return Template(self.to, OUTWARD if out else INWARD).cover(levels)


class BridgeConfig(PluginConfig):
    """What every bridge has."""

    rules: list[Any]
    """What goes which way; a face says of which model."""
    window: Annotated[int, Field(ge=1, le=65535)] = 256
    """Messages that may be on their way at once, each way."""
    per_key: Annotated[int, Field(ge=0)] = 0
    """Of those, messages of one key: 1 keeps their order whatever the remote system refuses."""
    tries: Annotated[int, Field(ge=1)] = 5
    """How often a message is tried that the remote system refuses."""
    retry_first: Duration = 0.5
    """The first wait after a failure; each further one is twice as long, somewhat at random."""
    retry_most: Duration = 30.0
    """The longest wait."""
    connect_timeout: Duration = 10.0
    """How long a connection may take to come about."""
    dead_letter: str | None = None
    """Topic for what can't be processed; without one `$dlq/NAME`."""
    client_id: str | None = None
    """Of the session inside the broker that is the outbox; without one `bridge/NAME`."""

    @model_validator(mode="after")
    def _fits_together(self) -> BridgeConfig:
        rules = self.all_rules()
        if not rules:
            raise ValueError("rules: none, so nothing would ever be bridged")
        if self.retry_first <= 0 or self.retry_most < self.retry_first:
            raise ValueError("retry_first is above 0, retry_most not below it")
        if self.connect_timeout <= 0:
            raise ValueError("connect_timeout is above 0")
        if self.dead_letter is not None:
            try:
                validate_topic_name(self.dead_letter)
            except ProtocolError as error:
                raise ValueError(f"dead_letter: no topic: {error.detail}") from None
        if self.dead_letter is not None:
            for rule in rules:
                if rule.direction == "out" and matches(rule.source, self.dead_letter):
                    raise ValueError(f"dead_letter: {rule.place} would take it out again")
        shared = [rule for rule in rules if rule.share is not None]
        for rule in shared:
            for other in rules:
                if other is not rule and other.direction == "out" and _both(rule, other):
                    raise ValueError(
                        f"{rule.place}: with `share` its filter may not overlap with {other.place}"
                    )
        return self

    def all_rules(self) -> list[Rule]:
        """The rules, each knowing its place."""
        placed(self.rules)
        return list(self.rules)


def placed(rules: Sequence[Rule], name: str = "rules", first: int = 0) -> None:
    """Tell each rule where it stands."""
    for number, rule in enumerate(rules, first):
        rule._place = f"{name}[{number}]"


def _both(rule: Rule, other: Rule) -> bool:
    return overlap(rule.source, other.source)


def loops(rules: Sequence[Rule]) -> list[str]:
    """Rules out and in that would carry a message round, as far as the text of both shows it.

    For systems where `from` of a rule in is a filter. Each text says which two, and what to do.
    """
    found: list[str] = []
    for out in rules:
        for back in rules:
            if out.direction == "out" and back.direction == "in":
                there, here = out.cover(), back.cover()
                if overlap(there, back.source) and overlap(here, out.source):
                    found.append(
                        f"{out.place} and {back.place}: a loop: what goes out as {there!r} comes "
                        f"in by {back.source!r} as {here!r}, and {out.source!r} takes it out "
                        f"again: use other prefixes for each direction"
                    )
    return found


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both filters."""
    return _overlap(one.split("/"), other.split("/"))


def _overlap(one: list[str], other: list[str]) -> bool:
    for place in range(max(len(one), len(other)) + 1):
        a = one[place] if place < len(one) else None
        b = other[place] if place < len(other) else None
        if a == "#" or b == "#":
            another = b if a == "#" else a
            # [MQTT-4.7.2-1] a leading wildcard doesn't reach topics that begin with "$".
            return place > 0 or another is None or not another.startswith("$")
        if a is None or b is None:
            return a is None and b is None
        if "+" in (a, b):
            if place == 0 and (a if b == "+" else b).startswith("$"):
                return False
        elif a != b:
            return False
    return True


class Applied:
    """A rule ready for use: templates compiled, its function imported (ValueError)."""

    def __init__(self, rule: Rule) -> None:
        known = OUTWARD if rule.direction == "out" else INWARD
        self.rule = rule
        self.place = rule.place
        self._to = Template(rule.to, known)
        self._key = Template(rule.key, OUTWARD) if rule.direction == "out" else None
        self._headers = [(name, Template(text, known)) for name, text in rule.headers.items()]
        self._function = None if rule.function is None else function(rule.function, rule.place)

    def changed(self, message: Message) -> Message | None:
        """What the function makes of a message; whatever it raises is the caller's to judge."""
        if self._function is None:
            return message
        made = self._function(message)
        if made is not None and not isinstance(made, Message):
            raise TypeError(f"{self.rule.function} returned {type(made).__name__}, no Message")
        return made

    def target(self, values: Values) -> str:
        """`Unfit` where the message has no target."""
        return self._to.target(values)

    def key(self, values: Values) -> str:
        """The key of its order; what lacks a part of it shares one."""
        if self._key is None:
            return values.key
        try:
            return self._key.fill(values)
        except Unfit:
            return ""

    def headers(self, values: Values) -> Sequence[tuple[str, str]]:
        """The headers that can be filled in."""
        if not self._headers:
            return ()
        out: list[tuple[str, str]] = []
        for name, template in self._headers:
            try:
                out.append((name, template.fill(values)))
            except Unfit:
                continue
        return out


def function(dotted: str, place: str) -> Function:
    """What `dotted.path:callable` names. ValueError with the rule's place."""
    path, _, name = dotted.partition(":")
    try:
        found = importlib.import_module(path)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}.function: {dotted}: {error}") from None
    if not callable(found):
        raise ValueError(f"{place}.function: {dotted} can't be called")
    made: Function = found
    return made


def _is_dotted(text: str) -> bool:
    path, colon, name = text.partition(":")
    parts = [*path.split("."), *name.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


_SAMPLE: Final = "x"


def _check_topic(text: str, known: frozenset[str], source: str) -> None:
    """Find a `to` that can make no topic."""
    sample = Template(text, known).cover([_SAMPLE] * max(1, len(source.split("/"))))
    sample = sample.replace("+", _SAMPLE).replace("#", _SAMPLE)
    try:
        validate_topic_name(sample)
    except ProtocolError as error:
        raise ValueError(f"to: {text!r} makes no topic: {error.detail}") from None
    if "+" in text or "#" in text:
        raise ValueError(f"to: {text!r} holds a wildcard: expected a topic or a template")
