"""Access rules as EMQX writes them in JSON: in an answer of an HTTP service, in a claim of a token.

    [{"permission": "allow", "action": "publish", "topic": "up/${clientid}/#", "qos": [0, 1]},
     {"permission": "deny", "action": "all", "topics": ["eq #", "$SYS/#"]}]
    {"pub": ["up/${clientid}"], "sub": ["down/#"], "all": ["chat/+"]}

The first rule that speaks of it decides; the second form only allows.

Owns: `parse_rules` (from JSON values, whole or not at all), `Rules.bind` (for one client), which
gives `BoundRules`, three questions; `Grants`, the rules that came with a client's credentials.
Answers are `Found`, or None where no rule speaks of it. And `opinion`, what follows for a client
that may have come without any.

Must not know: where rules come from, where the policies for clients without rules do.

Invariants:
- What isn't understood is an error, never skipped: a rule whose condition was left out would speak
  of more than it was written for. There are no regular expressions. Errors quote nothing.
- A name is put in only if it stays inside the level it was put into: with a wildcard or a slash in
  it, or with "$" in front, a client whose rules need it gets nothing (`BoundRules.spoilt`).
- A subscription is allowed by a rule that holds all of its topics. Each delivery is asked about, so
  that what an earlier rule denies is cut out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mqttd.api import Client, ProtocolError, validate_topic_filter
from mqttd_plugins._filters import Levels, covers, fits, levels_of

CLIENT_ID: Final = "${clientid}"
USERNAME: Final = "${username}"
PUBLISH: Final = "publish"
SUBSCRIBE: Final = "subscribe"

_KEYS: Final = frozenset({"permission", "action", "topic", "topics", "qos", "retain", "ipaddr"})
_ACTIONS: Final[dict[object, frozenset[str]]] = {
    "publish": frozenset({PUBLISH}),
    "pub": frozenset({PUBLISH}),
    "subscribe": frozenset({SUBSCRIBE}),
    "sub": frozenset({SUBSCRIBE}),
    "all": frozenset({PUBLISH, SUBSCRIBE}),
    "pubsub": frozenset({PUBLISH, SUBSCRIBE}),
}
_EVERY_QOS: Final = frozenset({0, 1, 2})
_EXACTLY: Final = "eq "
_MOST: Final = 2000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RulesError(ValueError):
    """These are no rules."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a rule says."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class _Rule:
    allows: bool
    actions: frozenset[str]
    topic: str  # as it was written, without "eq "
    exact: bool
    qos: frozenset[int] = _EVERY_QOS
    retain: bool | None = None
    network: Network | None = None

    def __str__(self) -> str:
        what = "all" if len(self.actions) == 2 else "".join(self.actions)
        topic = f"{_EXACTLY}{self.topic}" if self.exact else self.topic
        return f"{'allow' if self.allows else 'deny'} {what} {topic}"


@dataclass(frozen=True, slots=True)
class _Bound:
    """A rule with the names of a client in it."""

    rule: _Rule
    text: str
    levels: Levels

    @property
    def plain(self) -> bool:
        return "+" not in self.levels and "#" not in self.levels


class Rules:
    """Rules as they were written."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self._rules = tuple(rules)

    def bind(self, client_id: str, username: str | None, address: str) -> BoundRules:
        """The rules for one client, at `address` (no IP address: those with one are others')."""
        values = {CLIENT_ID: client_id, USERNAME: username or ""}
        bound: list[_Bound] = []
        for rule in self._rules:
            if rule.network is not None and not _is_in(address, rule.network):
                continue
            for placeholder, value in values.items():
                if placeholder in rule.topic and not _stays_inside(value):
                    return BoundRules([], f"{placeholder} can't stand for the client's name")
            text = _filled(rule.topic, values)
            bound.append(_Bound(rule, text, levels_of(text)))
        return BoundRules(bound)


class BoundRules:
    """Three questions. Where `spoilt` isn't empty there are no rules, and nothing is allowed.

    `conditional`: the same topic may be answered otherwise with another QoS or RETAIN.
    """

    __slots__ = ("_rules", "conditional", "spoilt")

    def __init__(self, rules: list[_Bound], spoilt: str = "") -> None:
        self._rules = rules
        self.spoilt = spoilt
        self.conditional = any(
            bound.rule.qos != _EVERY_QOS or bound.rule.retain is not None for bound in rules
        )

    def publish(self, topic: str, qos: int, retain: bool) -> Found | None:
        if self.spoilt:
            return Found(False, self.spoilt)
        parts = topic.split("/")
        for bound in self._rules:
            rule = bound.rule
            if (
                PUBLISH in rule.actions
                and qos in rule.qos
                and rule.retain in (None, retain)
                and self._is_at(bound, topic, parts)
            ):
                return Found(rule.allows, str(rule))
        return None

    def subscribe(self, topic_filter: str, qos: int) -> Found | None:
        """About an inner filter."""
        if self.spoilt:
            return Found(False, self.spoilt)
        wanted = levels_of(topic_filter)
        for bound in self._rules:
            rule = bound.rule
            if SUBSCRIBE not in rule.actions or qos not in rule.qos:
                continue
            if bound.text == topic_filter if rule.exact else covers(bound.levels, wanted):
                return Found(rule.allows, str(rule))
        return None

    def receive(self, topic: str) -> Found | None:
        """About a message for a subscription. Which QoS that has was asked when it was made."""
        if self.spoilt:
            return Found(False, self.spoilt)
        parts = topic.split("/")
        dollar = topic.startswith("$")
        for bound in self._rules:
            rule = bound.rule
            if SUBSCRIBE not in rule.actions:
                continue
            if not rule.allows and (rule.qos != _EVERY_QOS or (rule.exact and not bound.plain)):
                continue  # it forbids a way to ask, not the topics
            if fits(bound.levels, parts, dollar):
                return Found(rule.allows, str(rule))
        return None

    @staticmethod
    def _is_at(bound: _Bound, topic: str, parts: Sequence[str]) -> bool:
        if bound.rule.exact:
            return bound.text == topic
        return fits(bound.levels, parts, topic.startswith("$"))


class Grants:
    """The rules of one client, with its names put in when it first asks."""

    __slots__ = ("_bound", "_names", "_rules")

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._names: tuple[str, str | None] | None = None
        self._bound = BoundRules([])

    def of(self, client: Client) -> BoundRules:
        # Names change after CONNECT: the broker assigns an id, an authenticator a user name.
        names = (client.client_id, client.username)
        if names != self._names:
            self._bound = self._rules.bind(*names, client.address)
            self._names = names
        return self._bound


Policy = Literal["allow", "deny", "ignore"]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What is to be answered. `spoke`: a rule says so, and no policy; `cache`: for the topic."""

    policy: Policy
    rule: str
    cache: bool = True
    spoke: bool = False


def opinion(
    grants: Grants | None,
    client: Client,
    action: str,
    ask: Callable[[BoundRules], Found | None],
    no_match: Policy,
    without_acl: Policy,
) -> Opinion:
    """By the rules of a client or, where none speaks or there are none, by the policy for that."""
    if grants is None:
        return Opinion(without_acl, "without_acl")
    rules = grants.of(client)
    found = ask(rules)
    # The broker remembers a decision by its topic.
    cache = action == "receive" or not rules.conditional
    if found is None:
        return Opinion(no_match, "none of its rules", cache)
    return Opinion("allow" if found.allowed else "deny", found.rule, cache, True)


def parse_rules(value: object) -> Rules:
    """Rules out of a JSON value, in either form. RulesError says which rule is wrong, and how."""
    if isinstance(value, dict):
        return Rules(_from_lists(value))
    if not isinstance(value, list):
        raise RulesError("expected a list of rules, or lists under pub, sub and all")
    rules: list[_Rule] = []
    for number, item in enumerate(value, 1):
        try:
            rules += _from_object(item)
        except RulesError as error:
            raise RulesError(f"rule {number}: {error}") from None
        _few_enough(rules)
    return Rules(rules)


def _from_lists(value: dict[object, object]) -> list[_Rule]:
    rules: list[_Rule] = []
    for key, topics in value.items():
        if key not in ("pub", "sub", "all"):
            raise RulesError("expected no other lists than pub, sub and all")
        if not isinstance(topics, list):
            raise RulesError(f"{key}: expected a list of topics")
        rules += [_rule(True, _ACTIONS[key], topic) for topic in topics]
        _few_enough(rules)
    return rules


def _few_enough(rules: list[_Rule]) -> None:
    if len(rules) > _MOST:
        raise RulesError(f"more than {_MOST} of them")


def _from_object(item: object) -> list[_Rule]:
    if not isinstance(item, dict):
        raise RulesError("expected an object")
    if not _KEYS.issuperset(item):
        raise RulesError(f"expected no other keys than {', '.join(sorted(_KEYS))}")
    permission = item.get("permission")
    if permission not in ("allow", "deny"):
        raise RulesError("permission: expected allow or deny")
    action = item.get("action", "all")
    if not isinstance(action, str) or action not in _ACTIONS:
        raise RulesError("action: expected publish, subscribe or all")
    topics = item.get("topics", [])
    if not isinstance(topics, list):
        raise RulesError("topics: expected a list")
    if "topic" in item:
        topics = [item["topic"], *topics]
    if not topics:
        raise RulesError("expected topic or topics")
    actions = _ACTIONS[action]
    conditions = (_qos(item.get("qos")), _retain(item.get("retain")), _network(item.get("ipaddr")))
    return [_rule(permission == "allow", actions, topic, *conditions) for topic in topics]


def _rule(
    allows: bool,
    actions: frozenset[str],
    topic: object,
    qos: frozenset[int] = _EVERY_QOS,
    retain: bool | None = None,
    network: Network | None = None,
) -> _Rule:
    if not isinstance(topic, str):
        raise RulesError("topic: expected text")
    exact = topic.startswith(_EXACTLY)
    text = topic[len(_EXACTLY) :] if exact else topic
    stuffed = text.replace(CLIENT_ID, "x").replace(USERNAME, "x")
    if "${" in stuffed or "%c" in stuffed or "%u" in stuffed:
        raise RulesError("topic: expected no other placeholders than ${clientid} and ${username}")
    try:
        validate_topic_filter(stuffed)
    except ProtocolError as error:
        raise RulesError(f"topic: {error.detail}") from None
    if text.startswith("$share/"):
        raise RulesError("topic: expected the filter behind $share/GROUP/, which is what is asked")
    return _Rule(allows, actions, text, exact, qos, retain, network)


def _qos(value: object) -> frozenset[int]:
    if value is None:
        return _EVERY_QOS
    values = value if isinstance(value, list) else [value]
    if not values or not all(type(qos) is int and qos in _EVERY_QOS for qos in values):
        raise RulesError("qos: expected 0, 1, 2 or a list of them")
    return frozenset(values)


def _retain(value: object) -> bool | None:
    if value is None or value == "all":
        return None
    if isinstance(value, bool):
        return value
    raise RulesError("retain: expected true, false or all")


def _network(value: object) -> Network | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return ipaddress.ip_network(value)
    except ValueError:
        pass
    raise RulesError("ipaddr: expected an address or a network, as 192.168.5.0/24")


def _is_in(address: str, network: Network) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped  # as a socket for both kinds shows an IPv4 address
    return found in network


def _stays_inside(value: str) -> bool:
    return bool(value) and not value.startswith("$") and not set(value) & set("+#/\0")


def _filled(text: str, values: dict[str, str]) -> str:
    """In one pass: what was put in is never looked at for placeholders."""
    out, found, rest = text.partition("${")
    while found:
        name, _, rest = rest.partition("}")
        out += values[f"${{{name}}}"]
        before, found, rest = rest.partition("${")
        out += before
    return out
