"""Log lines: one an event, on standard error, as text for people or as JSON for machines.

Owns: the two formats and the rule that nothing a stranger sends can break a line. Client ids, user
names, topics and peers come from the network: control characters, line ends, ANSI sequences and
characters that reorder or hide text are escaped, and every field is cut. A traceback is a field
like any other, so that a bug is still one line.

`event(logger, kind, client=..., reason=...)` is the way to log: fields keep their order, None is
left out. Lines of other libraries pass through the same formatters.

Must not know: what a payload, a password or a key is; callers never hand one over. Nothing here is
on the path of a message: connections come and go, messages don't log.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Final, TextIO

TEXT: Final = "text"
JSON: Final = "json"

_FIELDS: Final = "mqttd_fields"
_LONGEST_FIELD: Final = 128
_LONGEST_MESSAGE: Final = 1024
_LONGEST_TRACEBACK: Final = 8192


def event(
    logger: logging.Logger, kind: str, /, *, level: int = logging.INFO, **fields: object
) -> None:
    """One line: what happened, and to whom. The values may come from the network."""
    if logger.isEnabledFor(level):
        # Not `logger.log`: it looks for the line that called it, at twice the cost of all the rest.
        record = logging.LogRecord(logger.name, level, "", 0, kind, (), None)
        setattr(record, _FIELDS, fields)
        logger.handle(record)


def escape(text: str, longest: int = _LONGEST_FIELD) -> str:
    """Text from the network that is safe on one line of a terminal or a file, and not endless."""
    text = _cut(text, longest)
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(char) for char in text)


def _cut(text: str, longest: int) -> str:
    over = len(text) - longest
    return f"{text[:longest]}...+{over}" if over > 0 else text


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    return char.encode("unicode_escape").decode("ascii")


def _quoted(value: str) -> str:
    """A value as it stands after `key=`; quoted where a reader could lose its end."""
    if value and not any(char in ' "=' for char in value):
        return value
    return '"' + value.replace('"', '\\"') + '"'


def _instant(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, str | int | float]:
    """The fields of a record, cut but not yet escaped."""
    out: dict[str, str | int | float] = {}
    for name, value in getattr(record, _FIELDS, {}).items():
        if isinstance(value, int | float):
            out[name] = value
        elif value is not None:
            out[name] = _cut(str(value), _LONGEST_FIELD)
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        out["error"] = _cut(f"{type(error).__name__}: {error}", _LONGEST_FIELD)
        lines = "".join(traceback.format_exception(error)).rstrip()
        out["traceback"] = _cut(lines, _LONGEST_TRACEBACK)
    return out


class TextFormatter(logging.Formatter):
    """`2027-01-31T12:00:00.000Z INFO connect client=sensor-7 peer=10.0.0.8:50412`"""

    def format(self, record: logging.LogRecord) -> str:
        message = escape(record.getMessage(), _LONGEST_MESSAGE)
        parts = [_instant(record), record.levelname, message]
        for name, value in _fields(record).items():
            shown = _quoted(escape(value, len(value))) if isinstance(value, str) else value
            parts.append(f"{name}={shown}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """The same as one JSON object a line; JSON's own escapes keep it on one, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _instant(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _cut(record.getMessage(), _LONGEST_MESSAGE),
        }
        line.update(_fields(record))
        return json.dumps(line)


def setup(level: str = "info", style: str = TEXT, stream: TextIO | None = None) -> None:
    """Send everything that logs to one stream, standard error unless told; may be called again."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if style == JSON else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
