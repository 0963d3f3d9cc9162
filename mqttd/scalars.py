"""The scalars of configuration files: sizes, durations, file names; and the base of their models.

Owns how a size (`1MiB`) and a duration (`1h30m`) are written, and that nothing is coerced: models
are strict, frozen, and refuse keys they don't know. The broker's own configuration is made of
these, and so is that of every plugin and of the simulator.

Must not know: any key, any file format, the broker.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import typing
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from mqttd.core.settings import NEVER

_SHORTEST_INTERVAL: Final = 0.1
_SIZE_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_TIME_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"(\d+) ?([A-Za-z]*)")
_TIME: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_TIME_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def refuse(expected: str, hint: str = "") -> PydanticCustomError:
    return PydanticCustomError("refused", "{expected}", {"expected": expected, "hint": hint})


def is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_size(value: object) -> int:
    if is_number(value) and typing.cast(int, value) >= 0:
        return typing.cast(int, value)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        unit = _SIZE_UNITS.get(match[2].upper())
        if unit is not None:
            return int(match[1]) * unit
    raise refuse("a size such as 1MiB, 64KiB, 500kB or a plain number of bytes")


def parse_duration(value: object) -> float:
    seconds = math.nan
    if is_number(value) or isinstance(value, float):
        with contextlib.suppress(OverflowError):  # a whole number that no float can hold
            seconds = float(typing.cast(float, value))
    elif isinstance(value, str) and _TIME.fullmatch(value):
        seconds = sum(float(n) * _TIME_UNITS[unit] for n, unit in _TIME_PART.findall(value))
    if math.isfinite(seconds) and seconds >= 0:
        return seconds
    raise refuse("a duration such as 500ms, 10s, 1h30m or 30d, or a plain number of seconds")


def parse_whole_seconds(value: object) -> int:
    seconds = parse_duration(value)
    if seconds != int(seconds):
        raise refuse("whole seconds")
    return int(seconds)


def parse_interval(value: object) -> float:
    seconds = parse_duration(value)
    if 0 < seconds < _SHORTEST_INTERVAL:
        raise refuse("100ms or more, or 0 for never")
    return seconds


def parse_expiry(value: object) -> int:
    return NEVER if value == "never" else parse_whole_seconds(value)


def parse_path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or not can_name_a_file(value):
        raise refuse("the name of a file")
    return base_of(info) / value


def can_name_a_file(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # a lone surrogate, as "\ud800" in YAML
        return False


def base_of(info: ValidationInfo) -> Path:
    context = info.context
    return Path(context["base"]) if isinstance(context, dict) and "base" in context else Path()


def text_or(number: str, pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": [number, "string"], "minimum": 0, "pattern": pattern})


SIZE_SCHEMA: Final = text_or("integer", r"^\d+ ?([kKmMgG][iI]?)?[bB]$|^\d+$")
TIME_SCHEMA: Final = text_or("number", r"^(\d+(\.\d+)?(ms|s|m|h|d))+$")
EXPIRY_SCHEMA: Final = text_or("integer", r"^never$|^(\d+(\.\d+)?(ms|s|m|h|d))+$")

FilePath = Annotated[Path, BeforeValidator(parse_path), WithJsonSchema({"type": "string"})]
"""A file; a relative name is taken from the directory of the configuration file."""
Size = Annotated[int, BeforeValidator(parse_size), SIZE_SCHEMA]
"""Bytes."""
Duration = Annotated[float, BeforeValidator(parse_duration), TIME_SCHEMA]
"""Seconds."""


class Node(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )
