"""The shapes that scenario keys are made of: durations, sizes, shares, and the node they stand in.

Owns how `10s`, `64KiB` or `0.1` are read and how they look in the JSON Schema. Nothing is coerced:
text is not a number, 1.0 is not a count. All durations become seconds, all sizes bytes.

A scenario can be shrunk while it is read. The validation context holds two factors:

    scale   of the number of devices: `Devices` is multiplied by it, and stays 1 or more
    speed   of time: a `Span` (how long a stage lasts, how far apart messages are) is divided by it,
            a `Rate` is multiplied by it

A `Time` is what protocol and patience are made of (keep alive, expiry, time-outs, a network's
delay) and stays what it is. What is written out again afterwards is the shrunk scenario. `base` in
the context is the directory that names of files are taken from.

Must not know: which keys exist. That is `device_sim.language.scenario`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

_SIZE_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_TIME_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"(\d+) ?([A-Za-z]*)", re.ASCII)
_TIME: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+", re.ASCII)
_TIME_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
LONGEST_S: Final = 10 * 365 * 86400.0
LARGEST_PAYLOAD: Final = 256 * 1024 * 1024
MAX_DEVICES: Final = 1_000_000


def refuse(expected: str, hint: str = "") -> PydanticCustomError:
    """What a validator raises: the words of "expected …", and a hint for the brackets behind."""
    return PydanticCustomError("refused", "{expected}", {"expected": expected, "hint": hint})


def _factor(info: ValidationInfo, name: str) -> float:
    context = info.context
    return float(context.get(name, 1.0)) if isinstance(context, dict) else 1.0


def parse_duration(value: object) -> float:
    """Seconds from `500ms`, `1h30m` or a plain number of seconds."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number that no float can hold
            seconds = float(value)
    elif isinstance(value, str) and _TIME.fullmatch(value):
        seconds = sum(float(n) * _TIME_UNITS[unit] for n, unit in _TIME_PART.findall(value))
    if 0 <= seconds <= LONGEST_S:
        return seconds
    raise refuse("a duration such as 500ms, 10s, 1h30m or 30d, or a plain number of seconds")


def _span(value: object, info: ValidationInfo) -> float:
    return parse_duration(value) / _factor(info, "speed")


def _whole(value: object) -> int:
    seconds = parse_duration(value)
    if seconds != int(seconds):
        raise refuse("whole seconds")
    return int(seconds)


def _rate(value: object, info: ValidationInfo) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e9:
        raise refuse("a number per second, more than 0")
    return float(value) * _factor(info, "speed")


def parse_size(value: object) -> object:
    """Bytes from `64KiB` or a plain number; None and mappings pass, for those who take them."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**40:
        return value
    if value is None or isinstance(value, BaseModel | dict):
        return value
    if isinstance(value, str) and len(value) <= 20 and (match := _SIZE.fullmatch(value)):
        unit = _SIZE_UNITS.get(match[2].upper())
        if unit is not None:
            return int(match[1]) * unit
    raise refuse("a size such as 1MiB, 64KiB, 500kB or a plain number of bytes")


def _file(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise refuse("the name of a file")
    context = info.context
    base = context.get("base", "") if isinstance(context, dict) else ""
    return os.path.join(base, value)


def _file_template(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise refuse("the name of a file, or a template of one")
    context = info.context
    base = context.get("base", "") if isinstance(context, dict) else ""
    return os.path.join(base.replace("{", "{{").replace("}", "}}"), value)


def _devices(value: object, info: ValidationInfo) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DEVICES:
        raise refuse(f"a whole number from 1 to {MAX_DEVICES}")
    return max(1, round(value * _factor(info, "scale")))


_TIME_TEXT: Final = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"
_TIME_SCHEMA: Final = WithJsonSchema(
    {"type": ["number", "string"], "minimum": 0, "pattern": _TIME_TEXT}
)


def size_schema(minimum: int) -> WithJsonSchema:
    """What a size looks like in the JSON Schema; it can't look into text."""
    pattern = r"^\d+ ?([kKmMgG][iI]?)?[bB]$|^\d+$"
    return WithJsonSchema({"type": ["integer", "string"], "minimum": minimum, "pattern": pattern})


_RATE_SCHEMA: Final = WithJsonSchema({"type": "number", "exclusiveMinimum": 0})

Time = Annotated[float, BeforeValidator(parse_duration), _TIME_SCHEMA]
Span = Annotated[float, BeforeValidator(_span), _TIME_SCHEMA]
Seconds = Annotated[int, BeforeValidator(_whole), _TIME_SCHEMA]
Rate = Annotated[float, BeforeValidator(_rate), _RATE_SCHEMA]
Size = Annotated[int, BeforeValidator(parse_size), size_schema(0)]
Devices = Annotated[
    int,
    BeforeValidator(_devices),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_DEVICES}),
]
FileName = Annotated[str, BeforeValidator(_file), WithJsonSchema({"type": "string"})]
FileTemplate = Annotated[str, BeforeValidator(_file_template), WithJsonSchema({"type": "string"})]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, le=1)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Qos = Annotated[int, Field(ge=0, le=2)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]


class Node(BaseModel):
    """A mapping of keys: all known, none coerced, frozen once read."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class OneOf(Node):
    """A mapping with exactly one key, which says what it is: `{walk: {start: 20}}`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    @model_validator(mode="before")
    @classmethod
    def _one_key(cls, data: Any) -> Any:
        known = ", ".join(cls.model_fields)
        if isinstance(data, dict) and len(data) != 1:
            raise refuse(f"exactly one of {known}", f"there are {len(data)} keys")
        return data

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if self.kind not in self.model_fields_set or self.body is None:
            raise refuse(f"exactly one of {', '.join(type(self).model_fields)}, and what it needs")
        return self

    @property
    def kind(self) -> str:
        """The key that is there."""
        return next(iter(self.model_fields_set), "")

    @property
    def body(self) -> Any:
        """What stands under it."""
        return getattr(self, self.kind, None)
