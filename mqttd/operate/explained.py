"""What `mqttd explain` prints: sentences first, then the messages, each with its receivers.

Owns: the words. What there is to say comes from `explain` and `why`, over the control socket.

Must not know: the broker, the socket.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mqttd.operate.show import line


def show(messages: list[dict[str, Any]], end: dict[str, Any], client_id: str) -> None:
    for text in lines(messages, end, client_id, time.time()):
        line(text)


def lines(
    messages: list[dict[str, Any]], end: dict[str, Any], client_id: str, now: float
) -> Iterator[str]:
    """The lines of an answer; `now` is wall time."""
    for finding in end["findings"]:
        yield finding["says"]
    if end["findings"] and messages:
        yield ""
    for message in messages:
        yield from _message(message, client_id, now)
    record = end["record"]
    if end.get("late"):
        yield "This is not all: there was no more time. Ask for less, by --topic or --since."
    if not record["limit"]:
        yield "The broker keeps no record of decisions: see control.record."
    elif not messages and not end["findings"]:
        yield (
            "No such message in the record, which holds"
            f" {record['held']} decisions and reaches back {_span(record['reaches_back_s'])}."
        )
    elif record["held"] >= record["limit"]:
        yield f"The record is full; it reaches back {_span(record['reaches_back_s'])}."


def _message(message: dict[str, Any], client_id: str, now: float) -> Iterator[str]:
    number = message["count"]
    what = "message" if number == 1 else f"{number} messages"
    retain = ", retained" if message["retain"] else ""
    sender = message["from"] or "the broker"
    yield f"{message['topic']}: {what} from {sender}, QoS {message['qos']}{retain}"
    rule = message["rule"]
    if message["verdict"] == "denied":
        yield f"  denied: {rule or 'no reason given'}"
    elif rule:
        yield f"  allowed{' (asked now)' if message['asked_now'] else ''}: {rule}"
    for name in message["changed_by"]:
        yield f"  changed or taken by {name}"
    for receiver in message["receivers"]:
        yield f"  {receiver['client']}: {_outcome(receiver)}"
    if message["verdict"] == "accepted" and not message["receivers"]:
        if message["others"] and client_id:
            yield f"  not for {client_id}; it matched {message['others']} others"
        elif not message["changed_by"]:
            yield "  it matched nobody"
    elif message["others"]:
        yield f"  and {message['others']} others"
    yield f"  {_when(message, now)}"


def _outcome(receiver: dict[str, Any]) -> str:
    parts = []
    for key, word in (("delivered", "delivered"), ("in_flight", "in flight"), ("queued", "queued")):
        if receiver[key]:
            parts.append(f"{receiver[key]} {word}")
    parts += [f"{number} dropped ({reason})" for reason, number in receiver["dropped"].items()]
    members = receiver["members"]
    if members:
        alone = len(members) == 1
        named = [_member(name, number, alone) for name, number in members.items()]
        parts.append("to " + ", ".join(named))
    elif receiver["shared"]:
        parts.append("to one member each")
    return ", ".join(parts) or "nothing"


def _member(client_id: str, number: int, alone: bool) -> str:
    name = client_id or "other members"
    return name if alone else f"{name} ({number})"


def _when(message: dict[str, Any], now: float) -> str:
    first, last = message["first_at"], message["last_at"]
    text = time.strftime("%H:%M:%S", time.localtime(first))
    if last - first >= 1:
        text += time.strftime(" to %H:%M:%S", time.localtime(last))
    return f"{text}, {_span(max(now - last, 0.0))} ago"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
