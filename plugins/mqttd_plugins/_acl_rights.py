"""What an access control list grants to one client: its rules, put together and searched.

The order of questions is Mosquitto's. First the client's own rules: those of its user name and of
the groups that the user is in, or the anonymous ones if it has no name; a `deny` among them wins,
then a rule that grants. Then the patterns in the same way. Then no.

Owns: `Acl` (a list in force), `Rights` (of one user name and client id) and `Ruling` (the answer,
with the line that decided).

Must not know: files, the broker, whether answers are enforced.

Invariants:
- Names are compared, never interpreted. A name with a wildcard in it gets nothing from patterns,
  nor does one that can't be exactly one level where a pattern has a placeholder for it: empty, with
  a slash, or with "$" in front (CVE-2017-7650). Not even patterns that only deny are gone through
  then, since it can't be said what they mean.
- A subscription is granted if something can be received through it. Each single topic is asked
  about again when there is a message of it, so what `deny` cuts out of a filter never arrives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mqttd_plugins._acl_text import CLIENT_ID, DENY, READ, USERNAME, WRITE, AclText, Rule
from mqttd_plugins._filters import Chosen, Levels, covers, intersection, levels_of


@dataclass(frozen=True, slots=True)
class Ruling:
    """An answer. `partial`: a subscription that isn't granted in all of its topics."""

    allowed: bool
    rule: Rule | None = None
    reason: str = ""
    partial: bool = False


class _Tier:
    """Rules that are asked together."""

    __slots__ = ("denies", "reads", "writes")

    def __init__(self, rules: Iterable[tuple[Levels, Rule]]) -> None:
        pairs = list(rules)
        self.denies = Chosen(pair for pair in pairs if pair[1].access == DENY)
        self.reads = Chosen(pair for pair in pairs if pair[1].grants(READ))
        self.writes = Chosen(pair for pair in pairs if pair[1].grants(WRITE))


class Rights:
    """The rights of one user name (None: without one) and client id."""

    __slots__ = ("_barred", "_tiers", "_whose")

    def __init__(self, tiers: list[_Tier], barred: str, whose: str) -> None:
        self._tiers = tiers
        self._barred = barred  # why patterns weren't asked
        self._whose = whose

    def publish(self, topic: str) -> Ruling:
        return self._topic(topic, WRITE)

    def receive(self, topic: str) -> Ruling:
        return self._topic(topic, READ)

    def _topic(self, topic: str, access: str) -> Ruling:
        for tier in self._tiers:
            denied = tier.denies.first(topic)
            if denied is not None:
                return Ruling(False, denied)
            granted = (tier.reads if access == READ else tier.writes).first(topic)
            if granted is not None:
                return Ruling(True, granted)
        return self._nothing(access)

    def subscribe(self, topic_filter: str) -> Ruling:
        """About an inner filter: whether anything can be received through it."""
        if "+" not in topic_filter and "#" not in topic_filter:
            return self.receive(topic_filter)
        wanted = levels_of(topic_filter)
        denies: list[tuple[Levels, Rule]] = []
        found: Rule | None = None
        cut: Rule | None = None
        for tier in self._tiers:
            denies += tier.denies.pairs
            for levels, rule in tier.reads.pairs:
                common = intersection(levels, wanted)
                if common is None or (found is not None and common != wanted):
                    continue
                denied = next((deny for whole, deny in denies if covers(whole, common)), None)
                if denied is not None:
                    cut = cut or denied
                    continue
                if common == wanted:
                    holed = any(intersection(hole, wanted) is not None for hole, _ in denies)
                    return Ruling(True, rule, partial=holed)
                found = rule
        if found is not None:
            return Ruling(True, found, partial=True)
        return Ruling(False, cut) if cut is not None else self._nothing(READ)

    def _nothing(self, access: str) -> Ruling:
        reason = f"no rule lets {self._whose} {access} it"
        return Ruling(False, None, f"{reason}; {self._barred}" if self._barred else reason)


class Acl:
    """A list in force. Whoever asks often for the same client keeps its rights."""

    def __init__(self, text: AclText) -> None:
        self.text = text
        self._own: dict[str | None, _Tier] = {None: _tier(text.anonymous)}

    def where(self, ruling: Ruling) -> str:
        """The file, line and text that decided; or why no line did."""
        rule = ruling.rule
        if rule is None:
            return f"{self.text.file}: {ruling.reason}"
        return f"{self.text.file}:{rule.line} {rule.text}"

    def rights(self, username: str | None, client_id: str) -> Rights:
        tiers = [self._tier_of(username)]
        barred = self._barred(username, client_id)
        if self.text.patterns and not barred:
            values = {CLIENT_ID: client_id, USERNAME: username or ""}
            tiers.append(
                _Tier(
                    (tuple(values.get(level, level) for level in rule.levels), rule)
                    for rule in self.text.patterns
                    if username is not None or not rule.uses(USERNAME)
                )
            )
        whose = "a client without a user name" if username is None else f"user {_shown(username)}"
        return Rights(tiers, barred, whose)

    def _tier_of(self, username: str | None) -> _Tier:
        tier = self._own.get(username)
        if tier is None and username is not None:
            rules = list(self.text.users.get(username, ()))
            for group in self.text.groups_of(username):
                rules += self.text.groups[group]
            if not rules:
                return _NO_RULES  # names are for clients to make up: nothing is kept for them
            rules.sort(key=lambda rule: rule.line)
            tier = self._own[username] = _tier(rules)
        return tier or _NO_RULES

    def _barred(self, username: str | None, client_id: str) -> str:
        """Why patterns can't be asked for these names; "" if they can."""
        if not self.text.patterns:
            return ""
        for what, value, placeholder in (
            ("client id", client_id, CLIENT_ID),
            ("user name", username, USERNAME),
        ):
            if value is None:
                continue
            used = any(rule.uses(placeholder) for rule in self.text.patterns)
            if "+" in value or "#" in value or (used and not _is_one_level(value)):
                return f"its {what} can't stand in patterns"
        return ""


def _is_one_level(value: str) -> bool:
    return bool(value) and "/" not in value and not value.startswith("$")


def _tier(rules: Iterable[Rule]) -> _Tier:
    return _Tier((rule.levels, rule) for rule in rules)


_NO_RULES: Final = _tier(())


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
