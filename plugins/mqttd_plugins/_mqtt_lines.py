"""Mosquitto's lines for a bridge's topics, as rules.

    PATTERN [[[out | in | both] QOS] LOCAL-PREFIX REMOTE-PREFIX]

Owns: how such a line is read, quotes included, and what it means: local topics are LOCAL-PREFIX and
PATTERN, remote ones REMOTE-PREFIX and PATTERN; `""` stands for nothing; a PATTERN of nothing maps
one topic, which the prefixes spell out.

What differs: a prefix ends where a level ends, since rules know levels and not letters; QoS 2
becomes 1.

Must not know: connections. ValueError says what of a line is wrong.
"""

from __future__ import annotations

import re
from typing import Any, Final

_WORD: Final = re.compile(r'"([^"]*)"|(\S+)')
_SHAPE: Final = "expected PATTERN [[[out|in|both] QOS] LOCAL-PREFIX REMOTE-PREFIX]"


def rules_of(line: str) -> list[dict[str, Any]]:
    """The rules of a line, one or two, as they would stand in the file."""
    words = [quoted or bare for quoted, bare in _WORD.findall(line)]
    if not 1 <= len(words) <= 5 or len(words) == 4:
        raise ValueError(f"{line!r}: {_SHAPE}")
    pattern = words[0]
    direction = words[1].lower() if len(words) > 1 else "out"
    qos = words[2] if len(words) > 2 else "0"
    local, remote = (words[3], words[4]) if len(words) > 4 else ("", "")
    if direction not in ("out", "in", "both"):
        raise ValueError(f"{line!r}: {words[1]!r} is no direction: {_SHAPE}")
    if qos not in ("0", "1", "2"):
        raise ValueError(f"{line!r}: {qos!r} is no QoS: {_SHAPE}")
    found: list[dict[str, Any]] = []
    if direction != "in":
        found.append(_rule("out", min(int(qos), 1), pattern, local, remote, line))
    if direction != "out":
        found.append(_rule("in", min(int(qos), 1), pattern, remote, local, line))
    return found


def _rule(
    direction: str, qos: int, pattern: str, here: str, there: str, line: str
) -> dict[str, Any]:
    if not pattern:
        if not here or not there:
            raise ValueError(f'{line!r}: with "" as the pattern both prefixes are needed')
        return {"direction": direction, "from": here, "to": _literal(there), "qos": qos}
    return {
        "direction": direction,
        "from": here + pattern,
        "to": _replaced(pattern, here, there, line),
        "qos": qos,
    }


def _replaced(pattern: str, here: str, there: str, line: str) -> str:
    """The template that puts `there` in the place of `here`."""
    if not here:
        return _literal(there) + "{topic}"
    if here.endswith("/"):
        return f"{_literal(there)}{{topic[{here.count('/')}:]}}"
    if pattern.startswith("/"):
        return f"{_literal(there)}/{{topic[{here.count('/') + 1}:]}}"
    raise ValueError(f"{line!r}: the prefix {here!r} has to end with a '/'")


def _literal(text: str) -> str:
    if "{" in text or "}" in text:
        raise ValueError(f"{text!r}: a prefix can't hold braces")
    return text
