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

import contextlib
import functools
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Final, TextIO

TEXT: Final = "text"
JSON: Final = "json"

Fields = Mapping[str, object]

_FIELDS: Final = "mqttd_fields"
_PLAIN: Final = re.compile(r"[ !#-<>-\[\]-~]+")  # printable ASCII but for quote, = and backslash
_LONGEST_FIELD: Final = 128
_LONGEST_MESSAGE: Final = 1024
_LONGEST_TRACEBACK: Final = 8192


def event(
    logger: logging.Logger, kind: str, /, *, level: int = logging.INFO, **fields: object
) -> None:
    """One line: what happened, and to whom. The values may come from the network."""
    if logger.isEnabledFor(level):
        logger.handle(_record(logger, kind, level, fields))


def events(logger: logging.Logger, batch: Iterable[tuple[str, int, Fields]], /) -> None:
    """Many lines: kind, level and fields of each. With `setup` in force they are one write."""
    wanted = [entry for entry in batch if logger.isEnabledFor(entry[1])]
    handlers = logger.root.handlers
    if len(handlers) == 1 and isinstance(handlers[0], _Stream) and _bare(logger):
        handlers[0].emit_all(logger.name, wanted)
        return
    for kind, level, fields in wanted:
        logger.handle(_record(logger, kind, level, fields))


def _record(logger: logging.Logger, kind: str, level: int, fields: Fields) -> logging.LogRecord:
    # Without looking for the line of code that says so, as Logger.log does.
    record = logging.LogRecord(logger.name, level, "", 0, kind, (), None)
    setattr(record, _FIELDS, fields)
    return record


def _bare(logger: logging.Logger) -> bool:
    """Nobody has put anything between this logger and the root."""
    at: logging.Logger | None = logger
    while at is not None and at is not logger.root:
        if at.handlers or at.filters or at.disabled or not at.propagate:
            return False
        at = at.parent
    return not logger.root.filters


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


def _shown(value: str) -> str:
    """A value as it stands after `key=`: escaped, and quoted where a reader could lose its end."""
    if _PLAIN.fullmatch(value):
        return f'"{value}"' if " " in value else value
    value = escape(value, len(value))
    if value and not any(char in ' "=' for char in value):
        return value
    return '"' + value.replace('"', '\\"') + '"'


def _instant(at: float) -> str:
    whole = int(at)
    return f"{_second(whole)}.{int((at - whole) * 1000):03d}Z"


@functools.lru_cache(1)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


class _Formatter(logging.Formatter):
    """What both formats share: a record is an instant, a level, a logger, a message and fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, _FIELDS, {}))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields["error"] = f"{type(error).__name__}: {error}"
            fields["traceback"] = _Traceback(
                _cut("".join(traceback.format_exception(error)).rstrip(), _LONGEST_TRACEBACK)
            )
        message = record.getMessage()
        return self.line(record.created, record.levelname, record.name, message, fields)

    def line(self, at: float, level: str, logger: str, message: str, fields: Fields) -> str:
        """One line, without its end."""
        raise NotImplementedError


class _Traceback(str):
    """Text that is longer than other fields may be."""

    __slots__ = ()


def _value(value: object) -> str | int | float:
    """A field, cut but not yet escaped."""
    if isinstance(value, (int, float, _Traceback)):
        return value
    return _cut(str(value), _LONGEST_FIELD)


class TextFormatter(_Formatter):
    """`2027-01-31T12:00:00.000Z INFO connect client=sensor-7 peer=10.0.0.8:50412`"""

    def line(self, at: float, level: str, logger: str, message: str, fields: Fields) -> str:
        parts = [_instant(at), level, escape(message, _LONGEST_MESSAGE)]
        for name, value in fields.items():
            if value is not None:
                value = _value(value)
                parts.append(f"{name}={_shown(value) if isinstance(value, str) else value}")
        return " ".join(parts)


class JsonFormatter(_Formatter):
    """The same as one JSON object a line; JSON's own escapes keep it on one, in ASCII."""

    def line(self, at: float, level: str, logger: str, message: str, fields: Fields) -> str:
        line: dict[str, object] = {
            "time": _instant(at),
            "level": level.lower(),
            "logger": logger,
            "event": _cut(message, _LONGEST_MESSAGE),
        }
        line.update((name, _value(value)) for name, value in fields.items() if value is not None)
        return json.dumps(line)


class _Stream(logging.StreamHandler[TextIO]):
    """The handler of `setup`."""

    def __init__(self, stream: TextIO, formatter: _Formatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._line = formatter.line

    def emit_all(self, logger: str, batch: list[tuple[str, int, Fields]]) -> None:
        """What `handle` does with one record, for many events that need none."""
        at = time.time()
        try:
            lines = [
                self._line(at, logging.getLevelName(level), logger, kind, fields) + "\n"
                for kind, level, fields in batch
            ]
            with self.lock or contextlib.nullcontext():
                if lines:
                    self.stream.write("".join(lines))
                    self.flush()
        except Exception:
            kind, level, _ = batch[0]
            self.handleError(logging.LogRecord(logger, level, "", 0, kind, (), None))


def setup(level: str = "info", style: str = TEXT, stream: TextIO | None = None) -> None:
    """Send everything that logs to one stream, standard error unless told; may be called again."""
    formatter = JsonFormatter() if style == JSON else TextFormatter()
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(_Stream(stream if stream is not None else sys.stderr, formatter))
    root.setLevel(level.upper())
