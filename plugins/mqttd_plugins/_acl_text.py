"""The text of an access control list: Mosquitto's syntax, and groups.

    # a comment has its line to itself
    topic read news/#                  before any `user`: for clients without a user name
    user roger                         the rules below are roger's, up to the next section
    topic readwrite roger/#
    topic deny roger/private/#
    group operators                    the rules below are those of its members
    member roger                       one a line, since names may hold spaces
    topic read $SYS/#
    pattern write devices/%c/up/#      for everybody, wherever it stands

`read` is to receive, `write` to publish, `readwrite` (the default) both, `deny` neither. Mosquitto
refuses a file with `group` and `member` in it: nobody can take such a file for one of its own and
get other rights out of it.

Owns: `parse`, which gives every rule its line, and every problem too. Must not know: who asks,
what a rule decides (`_acl_rights`), where the text comes from.

Invariants: a file is taken whole or not at all. Where Mosquitto takes a line that can't mean what
it says (a placeholder inside a level, which it compares as it stands), it is refused: for a `deny`
to be without effect is the worst that a typing mistake could do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mqttd.api import ProtocolError, validate_topic_filter
from mqttd_plugins._filters import Levels, levels_of

READ: Final = "read"
WRITE: Final = "write"
READWRITE: Final = "readwrite"
DENY: Final = "deny"
ACCESSES: Final = (READ, WRITE, READWRITE, DENY)
CLIENT_ID: Final = "%c"
USERNAME: Final = "%u"
PLACEHOLDERS: Final = (CLIENT_ID, USERNAME)


class AclError(ValueError):
    """The list is no good; `problems` are lines "file:line: what is wrong"."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Rule:
    """One `topic` or `pattern` line."""

    line: int
    text: str
    access: str
    levels: Levels

    def grants(self, access: str) -> bool:
        return self.access in (access, READWRITE)

    def uses(self, placeholder: str) -> bool:
        return placeholder in self.levels


@dataclass(slots=True)
class AclText:
    """What a file says. Users and groups have their rules in the order of the file."""

    file: str
    anonymous: list[Rule] = field(default_factory=list)
    users: dict[str, list[Rule]] = field(default_factory=dict)
    groups: dict[str, list[Rule]] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)  # group -> users
    patterns: list[Rule] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def groups_of(self, username: str) -> list[str]:
        return [name for name, users in self.members.items() if username in users]

    def __len__(self) -> int:
        lists = [self.anonymous, self.patterns, *self.users.values(), *self.groups.values()]
        return sum(len(rules) for rules in lists)


def parse(raw: bytes, file: str) -> AclText:
    """The rules of a file; AclError with all that is wrong in it."""
    reader = _Reader(file)
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            reader.line(number, line.decode("utf-8").rstrip())
        except UnicodeDecodeError:
            reader.problem(number, "bytes that aren't UTF-8")
        except _BadLine as error:
            reader.problem(number, str(error))
    if reader.problems:
        raise AclError(reader.problems)
    reader.look_over()
    return reader.acl


class _BadLine(ValueError):
    pass


class _Reader:
    def __init__(self, file: str) -> None:
        self.acl = AclText(file)
        self.problems: list[str] = []
        self._rules = self.acl.anonymous
        self._group: str | None = None
        self._first: dict[str, int] = {}  # group -> line

    def problem(self, number: int, what: str) -> None:
        self.problems.append(f"{self.acl.file}:{number}: {what}")

    def line(self, number: int, text: str) -> None:
        words = text.lstrip(" ")
        if not words or words.startswith("#"):
            return
        first, _, rest = words.partition(" ")
        rest = rest.strip(" ")
        if first == "user":
            self._group = None
            self._rules = self.acl.users.setdefault(_name(first, rest), [])
        elif first == "group":
            self._group = _name(first, rest)
            self._first.setdefault(rest, number)
            self._rules = self.acl.groups.setdefault(rest, [])
            self.acl.members.setdefault(rest, set())
        elif first == "member":
            if self._group is None:
                raise _BadLine("`member` outside of a group, expected `group NAME` before it")
            self.acl.members[self._group].add(_name(first, rest))
        elif first == "topic":
            self._rules.append(self._rule(number, words, rest))
        elif first == "pattern":
            self.acl.patterns.append(self._rule(number, words, rest))
        else:
            known = "topic, pattern, user, group or member"
            raise _BadLine(f"found {_shown(first)}, expected {known}")

    def _rule(self, number: int, words: str, rest: str) -> Rule:
        first, _, topic_filter = rest.partition(" ")
        topic_filter = topic_filter.strip(" ")
        if not topic_filter:
            access, topic_filter = READWRITE, first
            if first in ACCESSES:  # as Mosquitto has it, which hardly anybody means
                self._warn(number, f"{first} is the topic here: no filter stands behind it")
        elif first in ACCESSES:
            access = first
        else:
            expected = "read, write, readwrite or deny before a topic that holds spaces"
            raise _BadLine(f"found {_shown(first)}, expected {expected}")
        if not topic_filter:
            raise _BadLine("a rule without a topic, expected `topic [ACCESS] FILTER`")
        if topic_filter.startswith("$share/"):
            raise _BadLine("rules name the filter behind $share/GROUP/, which is what is checked")
        try:
            validate_topic_filter(topic_filter)
        except ProtocolError as error:
            raise _BadLine(f"{_shown(topic_filter)} is no topic filter: {error.detail}") from None
        rule = Rule(number, words, access, levels_of(topic_filter))
        self._look_at(rule, words.startswith("pattern"))
        return rule

    def _look_at(self, rule: Rule, pattern: bool) -> None:
        """Placeholders where they have no effect."""
        if not pattern:
            if any(placeholder in rule.text for placeholder in PLACEHOLDERS):
                self._warn(rule.line, "%c and %u mean something in `pattern` lines alone")
            return
        for level in rule.levels:
            for placeholder in PLACEHOLDERS:
                if placeholder in level and level != placeholder:
                    raise _BadLine(f"{placeholder} has to fill a whole level, as in a/%c/b")
        if not any(rule.uses(placeholder) for placeholder in PLACEHOLDERS):
            self._warn(rule.line, "a pattern without %c and %u is the same rule for everybody")

    def look_over(self) -> None:
        for group, number in self._first.items():
            if not self.acl.members[group]:
                self._warn(number, f"group {_shown(group)} has no members")

    def _warn(self, number: int, what: str) -> None:
        self.acl.warnings.append(f"{self.acl.file}:{number}: {what}")


def _name(kind: str, rest: str) -> str:
    if not rest:
        raise _BadLine(f"`{kind}` without a name")
    if not rest.isprintable():
        raise _BadLine(f"a control character in the name {_shown(rest)}")
    return rest


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
