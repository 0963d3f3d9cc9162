"""What a message carries, as a scenario says it: fields and their value models, encoding, size.

Owns the keys, their defaults and limits. The code that draws values from them is in
`device_sim.language.values`, and knows nothing of YAML.

A value model is a mapping with one key, `{walk: {start: 20, step: 0.5}}`; plain text, a number,
true, false or null is itself, always.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from device_sim.judge.payload import HEADER_SIZE
from device_sim.language.shapes import (
    LARGEST_PAYLOAD,
    FileName,
    Node,
    Number,
    OneOf,
    Qos,
    Share,
    Size,
    Span,
    Time,
    Whole,
    parse_size,
    refuse,
    size_schema,
)

Scalar = str | Whole | Annotated[float, Field(allow_inf_nan=False)] | bool | None
Digits = Annotated[int, Field(ge=0, le=15)]
PayloadSize = Annotated[
    int,
    Field(ge=HEADER_SIZE, le=LARGEST_PAYLOAD),
    BeforeValidator(parse_size),
    size_schema(HEADER_SIZE),
]
_SCALARS: Final = ["string", "number", "boolean", "null"]


class Limits(Node):
    """A lower and an upper limit, whatever they are of."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low: float | None = getattr(self, "min", None)
        high: float | None = getattr(self, "max", None)
        if low is not None and high is not None and low > high:
            raise refuse("min that isn't above max")
        return self


class Weighted(Node):
    """One of several, by weight."""

    weights: list[Annotated[Number, Field(ge=0)]] = Field(default=[])
    """One for each of them; absent: all alike."""

    @model_validator(mode="after")
    def _weighed(self) -> Self:
        of: list[Any] = getattr(self, "of", [])
        if self.weights and (len(self.weights) != len(of) or sum(self.weights) <= 0):
            raise refuse("as many weights as values, not all of them 0")
        return self


class Walk(Limits):
    """A random walk: each value is the one before plus up to `step`, reflected at the limits."""

    start: Number = 0.0
    spread: Annotated[Number, Field(ge=0)] = 0.0
    """Up to so much above or below `start` each device begins, by chance."""
    step: Annotated[Number, Field(ge=0)] = 1.0
    min: Number | None = None
    max: Number | None = None
    digits: Digits = 2
    """Decimal places."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low = self.start if self.min is None else self.min
        high = self.start if self.max is None else self.max
        if not low <= self.start <= high:
            raise refuse("start between min and max")
        return self


class Sine(Node):
    """A sine of the time since the run began, with normal noise."""

    mean: Number = 0.0
    amplitude: Number = 1.0
    period: Annotated[Span, Field(gt=0)]
    phase: Share = 0.0
    """Where in the period it begins, as a share of it."""
    spread: Share = 0.0
    """Up to so much of a period each device is further on, by chance."""
    noise: Annotated[Number, Field(ge=0)] = 0.0
    """Standard deviation."""
    digits: Digits = 2


class Counter(Node):
    """A number that grows with each message."""

    start: Whole = 0
    step: Whole = 1
    wrap: Annotated[int, Field(ge=1, le=2**63)] | None = None
    """Values stay below this, and begin at 0 again."""


class Choice(Weighted):
    """One of several values, by weight."""

    of: Annotated[list[Scalar], Field(min_length=1)]


class Uniform(Limits):
    """Any number from min to max."""

    min: Number = 0.0
    max: Number = 1.0
    digits: Digits = 2
    """Decimal places; 0 gives whole numbers."""


class Normal(Limits):
    """Normally distributed numbers, cut at the limits."""

    mean: Number = 0.0
    sd: Annotated[Number, Field(ge=0)] = 1.0
    min: Number | None = None
    max: Number | None = None
    digits: Digits = 2


class Replay(Node):
    """A column of a CSV file with a heading, row by row."""

    file: FileName
    """Relative to the scenario's directory."""
    column: str
    loop: bool = True
    """Begin again after the last row; otherwise the last value stays."""
    spread: bool = False
    """Each device begins at another row, by chance."""


class Value(OneOf):
    """One value model, or a plain value."""

    constant: Scalar = None
    walk: Walk | None = None
    sine: Sine | None = None
    counter: Counter | None = None
    choice: Choice | None = None
    uniform: Uniform | None = None
    normal: Normal | None = None
    expression: str | None = None
    """Arithmetic over t, seq, index, last and the fields above: `20 + 5 * sin(t / 60)`."""
    replay: Replay | None = None
    text: str | None = None
    """A template: `{id}` `{group}` `{index}` `{seq}` `{run}` and the tags of the group."""
    timestamp: Literal["s", "ms", "iso"] | None = None
    """The device's own time of day, with its clock skew."""
    object: dict[str, Value] | None = None
    """Fields inside a field."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        if data is None or isinstance(data, str | int | float | bool):
            return {"constant": data}
        return data

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if self.kind != "constant" and self.body is None:
            raise refuse("a value model, and what it needs")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        inner = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": _SCALARS}, inner]}


class UniformSize(Limits):
    """Any size from min to max."""

    min: PayloadSize
    max: PayloadSize


class NormalSize(Limits):
    """Normally distributed sizes, cut at the limits."""

    mean: PayloadSize
    sd: Size
    min: PayloadSize = HEADER_SIZE
    max: PayloadSize = LARGEST_PAYLOAD


class LognormalSize(Limits):
    """Many small ones and few that are large, cut at the limits."""

    median: PayloadSize
    sigma: Annotated[Number, Field(gt=0, le=10)]
    """Standard deviation of the logarithm; 0.5 is moderate, 2 is wild."""
    min: PayloadSize = HEADER_SIZE
    max: PayloadSize = LARGEST_PAYLOAD


class ChoiceSize(Weighted):
    """One of several sizes, by weight."""

    of: Annotated[list[PayloadSize], Field(min_length=1)]


class SizeModel(OneOf):
    """How long payloads are."""

    uniform: UniformSize | None = None
    normal: NormalSize | None = None
    lognormal: LognormalSize | None = None
    choice: ChoiceSize | None = None


PayloadSizes = Annotated[
    PayloadSize | SizeModel | None,
    BeforeValidator(parse_size),
]


class Content(Node):
    """What every message has, whoever sends it."""

    qos: Qos | Annotated[list[Qos], Field(min_length=1)] = 0
    """Several are dealt out to the devices in turn."""
    retain: bool = False
    fields: dict[str, Value] = Field(default={})
    """Names and value models; none: nothing but the header and padding."""
    encoding: Literal["json", "cbor", "raw", "packed"] = "json"
    """raw: the values as text, with commas; packed: Protocol Buffers' wire format."""
    size: PayloadSizes = None
    """Of the whole payload, the 32 bytes of the header included; absent: what the fields need."""
    expiry: Annotated[Time, Field(ge=1)] | None = None
    """Message Expiry Interval, in whole seconds; needs MQTT 5."""
    user_properties: dict[str, str] = Field(default={})
    """On every message; needs MQTT 5."""

    def qos_of(self, index: int) -> int:
        """The QoS of a device's messages."""
        return self.qos if isinstance(self.qos, int) else self.qos[index % len(self.qos)]

    @property
    def fixed_size(self) -> int | None:
        """The payload's size when nothing in it varies but the header; None otherwise."""
        if self.fields or isinstance(self.size, SizeModel):
            return None
        return HEADER_SIZE if self.size is None else self.size
