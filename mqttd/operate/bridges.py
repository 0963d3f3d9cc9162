"""`mqttd bridges`: the bridges of a broker as a table, and to pause and resume them.

Owns: what the words of the command mean, and what is printed. A bridge is whatever plugin says that
this is its role; what it is asked is `status`, `pause` and `resume`, and what it answers is shown
as far as it is there, since the plugin may be anybody's.

Must not know: any bridge, how a plugin is found and asked (`answers`), the socket.

Invariants: a bridge that gives no answer costs its own row, and makes the exit code 1; the rows of
a bridge begin with its name, so that a script can tell them; JSON is one object a line, a bridge
each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mqttd.operate import show

if TYPE_CHECKING:
    from mqttd.operate.client import Control

NONE: Final = (
    "this broker has no bridge; one is a plugin in its configuration, such as `use: bridge_mqtt`: "
    "`mqttd plugins` lists what is installed, `mqttd plugins bridge_mqtt` shows the keys of one"
)
_ACTS: Final = {"pause": "paused; its messages wait", "resume": "resumed"}
_TITLES: Final = [
    *("bridge", "kind", "state", "for", "way", "queued", "in flight", "confirmed", "failed"),
    *("dead letters", "dropped", "lag", "reason"),
]
_COUNTS: Final = ("queued", "in_flight", "confirmed", "failed", "dead_lettered")


class Usage(Exception):
    """The words of the command make no sense; the text says why."""


def parsed(words: list[str], everything: bool) -> tuple[str, str]:
    """The action and the bridge, "" for all. Usage."""
    action = words[0] if words and words[0] in _ACTS else "status"
    names = words if action == "status" else words[1:]
    if len(names) > 1:
        raise Usage(f"expected one bridge, found {len(names)}: {', '.join(names)}")
    if action != "status" and bool(names) == everything:
        raise Usage(f"bridges {action} needs the name of a bridge, or --all")
    if action == "status" and everything and names:
        raise Usage("expected a bridge or --all, not both")
    return action, names[0] if names else ""


def ask(control: Control, action: str, name: str) -> list[dict[str, Any]]:
    """What they answer: `name` and `answer`, or `name` and `error`. Unanswered."""
    items, _ = control.ask({"do": "role", "role": "bridge", "name": name, "action": action})
    return items


def show_answers(items: list[dict[str, Any]], action: str, name: str, *, as_json: bool) -> None:
    """Print the answers to an action."""
    if as_json:
        for item in items:
            print(json.dumps(item.get("answer") or {"bridge": item["name"], **item}))
    elif action != "status":
        for item in items:
            show.line(f"{item['name']}: {item.get('error') or _ACTS[action]}")
    else:
        show.table(_TITLES, [row for item in items for row in rows(item)])
        for item in items if name else ():
            for text in _reasons(_mapping(item.get("answer"))):
                show.line(f"  {text}")


def rows(item: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row of the table for each way that the bridge has."""
    name = str(item["name"])
    if "error" in item:
        yield [name, "-", "no answer", *["-"] * (len(_TITLES) - 4), str(item["error"])]
        return
    status = _mapping(item.get("answer"))
    head = [
        name,
        str(status.get("kind") or "-"),
        str(status.get("state") or "-"),
        show.span(_number(status.get("state_for_s"))),
    ]
    for way in status.get("ways") or ("out", "in"):
        figures = _mapping(status.get(way))
        lag = _number(figures.get("lag_s"))
        yield [
            *head,
            str(way),
            *(str(figures.get(key, "-")) for key in _COUNTS),
            str(sum(_number(n) or 0 for n in _mapping(figures.get("dropped")).values())),
            "-" if lag is None else f"{lag:.1f}s",
            str(status.get("reason") or "-"),
        ]


def _reasons(status: Mapping[str, Any]) -> Iterator[str]:
    for way in status.get("ways") or ("out", "in"):
        figures = _mapping(status.get(way))
        for title, key in (("dead letters", "dead_letters"), ("dropped", "dropped")):
            by_reason = _mapping(figures.get(key))
            if by_reason:
                told = ", ".join(f"{reason} {number}" for reason, number in by_reason.items())
                yield f"{way}, {title}: {told}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int | float | None:
    return value if isinstance(value, int | float) else None
