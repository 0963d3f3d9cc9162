"""Values: what a device measures, as a scenario describes it, drawn message by message.

A `Recipe` is what all devices of a group have in common about one kind of message: its fields, its
encoding, its sizes. A `Source` is one device's: the state of each field (a number or two) and a
stream of chance of its own. `Source.next` gives the payload behind the header: the encoded fields,
and padding up to the size that was drawn.

Same seed, group, index and key, same values: a source knows no clock and no other device. The time
since the run began and the time of day come in; the latter shows in `timestamp` fields only.

Must not know: the header (`device_sim.judge.payload`), MQTT, when a message is due.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from device_sim.judge.payload import HEADER_SIZE, padding
from device_sim.language import content
from device_sim.language.chance import Chance, running_sums
from device_sim.language.content import Content, SizeModel, Value
from device_sim.language.encodings import ENCODERS, Scalar
from device_sim.language.expression import Expression
from device_sim.language.naming import Names, Template
from device_sim.language.scenario import Clock, OnChange, PublishEntry

_MOST_ROWS: Final = 1_000_000
_WHEEL: Final = 251 * 16
"""A multiple of the padding's period, so that slices of it can be put end to end."""


class Moment:
    """Everything that the values of one message may depend on.

    There is one for all devices of a recipe: a source fills it in before it draws, and the fields
    add their own numbers to `variables` as they are drawn, each before the ones that may read it.
    """

    def __init__(self) -> None:
        self.names: Names
        self.chance: Chance
        self.t = 0.0
        self.clock = 0.0
        self.seq = 0
        self.variables: dict[str, int | float] = {}


def _rounded(value: float, digits: int) -> int | float:
    return round(value) if digits == 0 else round(value, digits)


def _within(value: float, low: float | None, high: float | None) -> float:
    if low is not None and value < low:
        return low
    return high if high is not None and value > high else value


class _Field:
    """One field of all devices; what differs between them is the state that goes in and out."""

    def begin(self, chance: Chance) -> Any:
        """The state before the first message."""
        del chance
        return None

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        """A value and the state after it."""
        raise NotImplementedError


class _Constant(_Field):
    def __init__(self, value: Scalar) -> None:
        self.value = value

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        return self.value, state


class _Walk(_Field):
    def __init__(self, model: content.Walk) -> None:
        self.model = model

    def begin(self, chance: Chance) -> float:
        model = self.model
        start = model.start
        if model.spread:
            start += chance.uniform(-model.spread, model.spread)
        return _within(start, model.min, model.max)

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        model = self.model
        following = state + moment.chance.uniform(-model.step, model.step)
        if model.max is not None and following > model.max:
            following = 2 * model.max - following
        if model.min is not None and following < model.min:
            following = 2 * model.min - following
        return _rounded(state, model.digits), _within(following, model.min, model.max)


class _Sine(_Field):
    def __init__(self, model: content.Sine) -> None:
        self.model = model

    def begin(self, chance: Chance) -> float:
        return self.model.phase + self.model.spread * chance.random()

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        model = self.model
        angle = math.tau * (moment.t / model.period + state)
        value = model.mean + model.amplitude * math.sin(angle)
        if model.noise:
            value = moment.chance.normal(value, model.noise)
        return _rounded(value, model.digits), state


class _Counter(_Field):
    def __init__(self, model: content.Counter) -> None:
        self.model = model

    def begin(self, chance: Chance) -> int:
        return self.model.start

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        wrap = self.model.wrap
        value = state if wrap is None else state % wrap
        return value, value + self.model.step


class _Choice(_Field):
    def __init__(self, model: content.Choice) -> None:
        self.values = model.of
        self.sums = running_sums(model.weights or [1.0] * len(model.of))

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        return self.values[moment.chance.weighted(self.sums)], state


class _Uniform(_Field):
    def __init__(self, model: content.Uniform) -> None:
        self.model = model

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        model = self.model
        return _rounded(moment.chance.uniform(model.min, model.max), model.digits), state


class _Normal(_Field):
    def __init__(self, model: content.Normal) -> None:
        self.model = model

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        model = self.model
        value = _within(moment.chance.normal(model.mean, model.sd), model.min, model.max)
        return _rounded(value, model.digits), state


class _Expression(_Field):
    def __init__(self, text: str) -> None:
        self.expression = Expression(text)

    def begin(self, chance: Chance) -> int:
        return 0

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        moment.variables["last"] = state
        value = self.expression.value(moment.variables, moment.chance)
        return value, value


class _Replay(_Field):
    def __init__(self, model: content.Replay) -> None:
        self.values = column(model.file, model.column)
        self.loop = model.loop
        self.spread = model.spread

    def begin(self, chance: Chance) -> int:
        return chance.below(len(self.values)) if self.spread else 0

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        following = state + 1
        if following == len(self.values):
            following = 0 if self.loop else state
        return self.values[state], following


class _Text(_Field):
    def __init__(self, text: str) -> None:
        self.template = Template(text)

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        return moment.names.render(self.template, {"seq": moment.seq}), state


class _Timestamp(_Field):
    def __init__(self, form: str) -> None:
        self.form = form

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        if self.form == "s":
            return int(moment.clock), state
        if self.form == "ms":
            return int(moment.clock * 1000), state
        text = datetime.fromtimestamp(moment.clock, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z"), state


class _Object(_Field):
    def __init__(self, fields: Mapping[str, Value]) -> None:
        self.fields = [(name, _field(value)) for name, value in fields.items()]

    def begin(self, chance: Chance) -> list[Any]:
        return [field.begin(chance) for _, field in self.fields]

    def draw(self, state: Any, moment: Moment) -> tuple[Any, Any]:
        drawn: dict[str, Any] = {}
        for at, (name, field) in enumerate(self.fields):
            value, state[at] = field.draw(state[at], moment)
            drawn[name] = value
            moment.variables[name] = value if isinstance(value, int | float) else 0
        return drawn, state


_FIELDS: Final[dict[str, Callable[[Any], _Field]]] = {
    "constant": _Constant,
    "walk": _Walk,
    "sine": _Sine,
    "counter": _Counter,
    "choice": _Choice,
    "uniform": _Uniform,
    "normal": _Normal,
    "expression": _Expression,
    "replay": _Replay,
    "text": _Text,
    "timestamp": _Timestamp,
    "object": _Object,
}


def _field(value: Value) -> _Field:
    return _FIELDS[value.kind](value.body)


@lru_cache(maxsize=64)
def column(file: str, name: str) -> list[str | int | float]:
    """A column of a CSV file, numbers where they are; ValueError says why there is none."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if name not in (rows.fieldnames or []):
                known = ", ".join(rows.fieldnames or []) or "none"
                raise ValueError(f"{file} has no column {name!r}, its columns are: {known}")
            found = []
            for row in rows:
                found.append(_number_or_text(row[name] or ""))
                if len(found) > _MOST_ROWS:
                    raise ValueError(f"{file} has more than {_MOST_ROWS} rows")
    except OSError as error:
        raise ValueError(f"can't read {file}: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no CSV: {error}") from None
    if not found:
        raise ValueError(f"{file} has no rows below its heading")
    return found


def _number_or_text(text: str) -> str | int | float:
    if len(text) > 40 or "_" in text:
        return text
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text


class Sizes:
    """How long payloads are, drawn one by one."""

    def __init__(self, model: int | SizeModel | None) -> None:
        self.model = model
        self.sums: list[float] = []
        if isinstance(model, SizeModel) and model.choice is not None:
            self.sums = running_sums(model.choice.weights or [1.0] * len(model.choice.of))

    def draw(self, chance: Chance) -> int:
        """Bytes of the next payload, the header included; 0 for as long as it comes."""
        model = self.model
        if not isinstance(model, SizeModel):
            return model or 0
        if model.choice is not None:
            return model.choice.of[chance.weighted(self.sums)]
        if model.uniform is not None:
            return model.uniform.min + chance.below(model.uniform.max - model.uniform.min + 1)
        if model.normal is not None:
            size = chance.normal(model.normal.mean, model.normal.sd)
            return round(_within(size, model.normal.min, model.normal.max))
        assert model.lognormal is not None
        power = min(chance.normal(0.0, model.lognormal.sigma), 300.0)
        size = model.lognormal.median * math.exp(power)
        return round(_within(size, model.lognormal.min, model.lognormal.max))


@lru_cache(maxsize=8)
def _wheel(run: int) -> bytes:
    return padding(run, HEADER_SIZE + _WHEEL)


def filling(run: int, size: int) -> bytes:
    """`size` bytes of the run's padding."""
    wheel = _wheel(run)
    return wheel[:size] if size <= _WHEEL else (wheel * (size // _WHEEL + 1))[:size]


class DeviceClock:
    """The time of day as one device believes it."""

    __slots__ = ("_drift", "_offset_s")

    def __init__(self, clock: Clock | None, seed: int, group: str, index: int) -> None:
        self._offset_s = 0.0
        self._drift = 0.0
        if clock is not None:
            self._offset_s = Chance(seed, "clock", group, index).normal(clock.offset, clock.spread)
            self._drift = clock.drift * 1e-6

    def read(self, unix_s: float, t: float) -> float:
        """Seconds since 1970 by this clock, `t` seconds into the run."""
        return unix_s + self._offset_s + self._drift * t


class Recipe:
    """What all devices of a group have in common about one kind of message."""

    def __init__(self, message: Content) -> None:
        self.fields = _Object(message.fields) if message.fields else None
        self.encode = ENCODERS[message.encoding]
        self.sizes = Sizes(message.size)
        self.moment = Moment()
        self.on_change: OnChange | None = None
        if isinstance(message, PublishEntry):
            self.on_change = message.on_change


class Source:
    """One device's messages of one kind."""

    __slots__ = (
        *("_chance", "_clock", "_names", "_recipe", "_run"),
        *("_sent", "_sent_at", "_seq", "_states"),
    )

    def __init__(
        self, recipe: Recipe, seed: int, run: int, names: Names, key: str, clock: DeviceClock
    ) -> None:
        """`key` names the entry among those of the device; padding depends on `run`."""
        self._chance = Chance(seed, "values", names.parts["group"], names.parts["index"], key)
        self._names = names
        self._recipe = recipe
        self._run = run
        self._clock = clock
        self._seq = 0
        self._states: list[Any] = []
        if recipe.fields is not None:
            self._states = recipe.fields.begin(self._chance)
        self._sent: dict[str, Scalar] = {}
        self._sent_at = -math.inf

    def next(self, t: float, unix_s: float = 0.0) -> bytes | None:
        """The payload behind the header, `t` seconds into the run, at a time of day.

        None when the entry sends on change and nothing has changed; a look counts as a value drawn,
        but not as a message.
        """
        recipe = self._recipe
        body = b""
        if recipe.fields is not None:
            moment = recipe.moment
            moment.names = self._names
            moment.chance = self._chance
            moment.t = t
            moment.clock = self._clock.read(unix_s, t)
            moment.seq = self._seq
            moment.variables["t"] = t
            moment.variables["seq"] = self._seq
            moment.variables["index"] = int(self._names.parts["index"])
            fields, self._states = recipe.fields.draw(self._states, moment)
            if recipe.on_change is not None and not self._changed(recipe.on_change, fields, t):
                return None
            body = recipe.encode(fields)
        self._seq += 1
        missing = recipe.sizes.draw(self._chance) - HEADER_SIZE - len(body)
        return body + filling(self._run, missing) if missing > 0 else body

    def _changed(self, on_change: OnChange, fields: Mapping[str, Any], t: float) -> bool:
        due = on_change.heartbeat is not None and t - self._sent_at >= on_change.heartbeat
        if not (due or not self._sent or self._moved(on_change, fields)):
            return False
        self._sent = {name: fields[name] for name in on_change.fields}
        self._sent_at = t
        return True

    def _moved(self, on_change: OnChange, fields: Mapping[str, Any]) -> bool:
        for name, by in on_change.fields.items():
            new, old = fields[name], self._sent[name]
            if new == old:
                continue
            if not isinstance(new, int | float) or not isinstance(old, int | float):
                return True
            if abs(new - old) >= by:
                return True
        return False
