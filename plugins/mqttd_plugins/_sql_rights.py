"""What the rows of a rights query mean.

Owns: `Rights`, the rows of one user: each an action, a topic filter, and whether it allows or
denies.

    action     publish | subscribe | receive | all; "subscribe" includes receiving
    filter     with %u for the user name and %c for the client id, as whole levels or parts of one
    allow      1 or absent allows, 0 denies; a row that denies wins over all that allow

Must not know: SQL, caches, connections.

Invariants: what no row allows is denied. A filter that is subscribed to has to be allowed as a
whole by one row; what a row denies inside of it is kept back message by message (`receive`). A name
or an id with `+`, `#` or `/` in it, or with "$" in front, is not put in place of %u or %c
(CVE-2017-7650): a row that would need it allows nothing and, where it denies, denies everything. A
row that can't be understood makes the whole answer an error, and so does a flag that isn't 0 or 1:
the text "0" or "false" must not be a yes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mqttd.api import Allow, Decision, Deny, ProtocolError, validate_topic_filter
from mqttd_plugins._filters import Levels, covers, levels_of

PUBLISH: Final = "publish"
SUBSCRIBE: Final = "subscribe"
RECEIVE: Final = "receive"
ALL: Final = "all"
_ACTIONS: Final = (PUBLISH, SUBSCRIBE, RECEIVE, ALL)
_UNSAFE: Final = frozenset("+#/")

Row = tuple[str, str, bool]


class BadRow(ValueError):
    """A row that means nothing; the text says why."""


class Rights:
    """The rows of one user."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def decide(self, action: str, topic: str, username: str, client_id: str) -> Decision:
        """Whether the user may. `topic` is a filter where the action is to subscribe."""
        wanted = levels_of(topic)
        found: str | None = None
        for row_action, row_filter, allows in self._rows:
            if not _concerns(row_action, action):
                continue
            levels = _filled(row_filter, username, client_id)
            if levels is None:
                if not allows:
                    return Deny("a right that denies can't be compared", rule=row_filter)
            elif covers(levels, wanted):
                if not allows:
                    return Deny("denied by a row", rule=f"{row_action} {row_filter}")
                found = f"{row_action} {row_filter}"
        return Deny("no row allows it") if found is None else Allow(rule=found)


def rights_of(rows: Sequence[Sequence[Any]]) -> Rights:
    """The rights that a query has answered. BadRow for rows that mean nothing."""
    return Rights([_row(row) for row in rows])


def _row(row: Sequence[Any]) -> Row:
    action, topic_filter = row[0], row[1]
    if action not in _ACTIONS:
        raise BadRow(f"action {action!r}: expected {', '.join(_ACTIONS)}")
    if not isinstance(topic_filter, str) or not _is_inner_filter(topic_filter):
        raise BadRow(f"{topic_filter!r}: expected a topic filter, without $share")
    return action, topic_filter, len(row) < 3 or flag("allow", row[2])


def flag(column: str, value: object) -> bool:
    """A column that says yes (1) or no (0, NULL). BadRow for anything else."""
    if value is None:
        return False
    if not isinstance(value, int) or value not in (0, 1):
        raise BadRow(f"{column}: found {type(value).__name__}, expected the number 0 or 1")
    return value == 1


def _is_inner_filter(text: str) -> bool:
    try:
        validate_topic_filter(text)
    except ProtocolError:
        return False
    return not text.startswith("$share/")  # rights are about the filter behind the group


def _concerns(row_action: str, action: str) -> bool:
    return row_action in (action, ALL) or (row_action == SUBSCRIBE and action == RECEIVE)


def _filled(topic_filter: str, username: str, client_id: str) -> Levels | None:
    """The levels of a filter for one client; None where a name must not stand in it."""
    levels = []
    for level in levels_of(topic_filter):
        for mark, text in (("%u", username), ("%c", client_id)):
            if mark in level and (not text or text[0] == "$" or _UNSAFE & set(text)):
                return None
        # In one step, so that a name with %c in it isn't filled in again.
        parts = [part.replace("%c", client_id) for part in level.split("%u")]
        levels.append(username.join(parts))
    return tuple(levels)
