"""Value models: each does what its name says, and the same again for the same seed."""

import json
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from device_sim.judge.payload import HEADER_SIZE, padding
from device_sim.language.chance import Chance
from device_sim.language.naming import Names, Template
from device_sim.language.scenario import Clock, PublishEntry
from device_sim.language.values import DeviceClock, Recipe, Sizes, Source, column, filling

RUN = 0x0A0B0C0D
NEW_YEAR = 1767225600.0


def source(
    fields: dict[str, Any], index: int = 0, seed: int = 1, clock: Any = None, **keys: Any
) -> Source:
    entry = PublishEntry.model_validate({"topic": "t", "every": 1, "fields": fields, **keys})
    names = Names("0a0b0c0d", "g", index, Template("{group}-{index}"), {"room": ["hall", "bath"]})
    believed = None if clock is None else Clock.model_validate(clock)
    return Source(
        Recipe(entry), seed, RUN, names, "publish[0]", DeviceClock(believed, seed, "g", index)
    )


def drawn(count: int, of: Source, step_s: float = 1.0) -> list[Any]:
    """The field v of so many messages."""
    values = []
    for number in range(count):
        body = of.next(number * step_s, NEW_YEAR + number * step_s)
        assert body is not None
        values.append(json.loads(body)["v"])
    return values


def values(count: int, model: Any, **keys: Any) -> list[Any]:
    return drawn(count, source({"v": model}, **keys))


def test_a_walk_takes_small_steps_between_its_limits() -> None:
    walk = {"walk": {"start": 5, "step": 1, "min": 4, "max": 7, "digits": 3}}
    numbers = values(500, walk)
    assert numbers[0] == 5
    assert min(numbers) >= 4
    assert max(numbers) <= 7
    steps = [abs(b - a) for a, b in pairwise(numbers)]
    assert max(steps) <= 1.001
    assert statistics.fmean(steps) > 0.3
    assert min(numbers) < 4.5
    assert max(numbers) > 6.5


def test_devices_begin_their_walks_apart() -> None:
    walk = {"walk": {"start": 20, "spread": 5, "step": 0}}
    starts = [values(1, walk, index=index)[0] for index in range(50)]
    assert len(set(starts)) > 40
    assert 15 <= min(starts) < 17
    assert 23 < max(starts) <= 25


def test_a_sine_has_its_period() -> None:
    sine = {"sine": {"mean": 10, "amplitude": 2, "period": 4, "phase": 0.25}}
    assert values(5, sine) == [12, 10, 8, 10, 12]
    noisy = values(200, {"sine": {"mean": 10, "amplitude": 0, "period": 4, "noise": 1}})
    assert 0.8 < statistics.stdev(noisy) < 1.2


def test_a_counter_counts() -> None:
    assert values(3, {"counter": {"start": 5, "step": -2}}) == [5, 3, 1]
    assert values(5, {"counter": {"step": 3, "wrap": 7}}) == [0, 3, 6, 2, 5]


def test_choices_keep_their_types_and_weights() -> None:
    choice = {"choice": {"of": ["on", 1, 2.5, True, None], "weights": [5, 1, 1, 1, 0]}}
    found = values(400, choice)
    assert None not in found
    assert {"on", 1, 2.5} <= set(found)
    assert 220 < found.count("on") < 280


def test_uniform_and_normal() -> None:
    whole = values(200, {"uniform": {"min": 1, "max": 6, "digits": 0}})
    assert set(whole) == {1, 2, 3, 4, 5, 6}
    assert all(isinstance(each, int) for each in whole)
    normal = values(500, {"normal": {"mean": 10, "sd": 3, "min": 5, "digits": 1}})
    assert min(normal) == 5
    assert abs(statistics.fmean(normal) - 10) < 0.6


def test_plain_values_are_themselves() -> None:
    for plain in ("C", 3, 2.5, True, None, ""):
        assert values(2, plain) == [plain, plain]


def test_an_expression_sees_time_sequence_index_itself_and_what_stands_above() -> None:
    fields = {
        "a": {"counter": {"start": 1}},
        "o": {"object": {"b": 10, "word": "x"}},
        "v": {"expression": "a + b + t * 100 + seq * 1000 + index * 10000 + 0 * word"},
    }
    assert drawn(2, source(fields, index=2)) == [20011, 21112]
    assert values(4, {"expression": "last * 2 + 1"}) == [1, 3, 7, 15]


def test_texts_name_the_device() -> None:
    text = {"text": "{id} in the {room}, {seq:03d}"}
    assert values(2, text, index=1) == ["g-1 in the bath, 000", "g-1 in the bath, 001"]


def test_objects_are_fields_in_fields() -> None:
    model = {"object": {"lat": {"counter": {}}, "deep": {"object": {"on": True}}}}
    assert values(2, model) == [{"lat": n, "deep": {"on": True}} for n in (0, 1)]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("s", 1767225600), ("ms", 1767225600000), ("iso", "2026-01-01T00:00:00.000Z")],
)
def test_timestamps(form: str, expected: Any) -> None:
    assert values(1, {"timestamp": form}) == [expected]


def test_a_clock_is_wrong_by_offset_spread_and_drift() -> None:
    slow = source({"v": {"timestamp": "s"}}, clock={"offset": -30, "drift": 1_000_000})
    assert drawn(2, slow, step_s=10) == [1767225570, 1767225590]
    seen = {
        values(1, {"timestamp": "ms"}, index=index, clock={"spread": 2})[0] for index in range(20)
    }
    assert len(seen) == 20
    assert all(abs(each - 1767225600000) < 10_000 for each in seen)


# Replay


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text('second,kw,what\n0,1,idle\n1,2.5,"a, b"\n2,nan,1_0\n', encoding="utf-8-sig")
    return path


def test_replay_row_by_row(table: Path) -> None:
    replay = {"file": str(table), "column": "kw"}
    assert values(4, {"replay": replay}) == [1, 2.5, "nan", 1]
    assert values(4, {"replay": {**replay, "loop": False}}) == [1, 2.5, "nan", "nan"]
    assert values(3, {"replay": {**replay, "column": "what"}}) == ["idle", "a, b", "1_0"]


def test_replay_begins_anywhere(table: Path) -> None:
    replay = {"file": str(table), "column": "second", "spread": True}
    assert {values(1, {"replay": replay}, index=n)[0] for n in range(30)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no column 'kw', its columns are: none"),
        (b"a,b\n1,2\n", "its columns are: a, b"),
        (b"kw\n", "no rows"),
        (b"kw\n\xff\n", "is no CSV"),
    ],
)
def test_files_that_cant_be_replayed(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        column(str(path), "kw")
    with pytest.raises(ValueError, match="No such file"):
        column(str(tmp_path / "none.csv"), "kw")


# On change


def test_only_what_has_changed_is_sent() -> None:
    fields = {
        "v": {"expression": "floor(t / 3)"},
        "w": {"expression": "t / 100"},
    }
    looking = source(fields, on_change={"fields": {"v": 0}})
    sent = [t for t in range(10) if looking.next(float(t)) is not None]
    assert sent == [0, 3, 6, 9]


def test_a_change_has_a_size_and_a_heartbeat() -> None:
    fields = {"v": {"expression": "t"}}
    looking = source(fields, on_change={"fields": {"v": 2.5}})
    assert [t for t in range(8) if looking.next(float(t)) is not None] == [0, 3, 6]
    beating = source({"v": 1}, on_change={"fields": {"v": 0}, "heartbeat": 4})
    assert [t for t in range(10) if beating.next(float(t)) is not None] == [0, 4, 8]


def test_words_change_too_and_a_look_is_no_message() -> None:
    fields = {
        "v": {"choice": {"of": ["a", None, 1]}},
        "n": {"text": "{seq}"},
    }
    looking = source(fields, on_change={"fields": {"v": 10}})
    bodies = [json.loads(body) for t in range(60) if (body := looking.next(float(t)))]
    assert len(bodies) < 60
    assert [body["n"] for body in bodies] == [str(n) for n in range(len(bodies))]
    assert all(a["v"] != b["v"] for a, b in pairwise(bodies))


# Sizes


def test_a_payload_is_padded_to_its_size() -> None:
    body = source({"v": 1}, size=100).next(0.0)
    assert body == b'{"v":1}' + padding(RUN, 100 - 7)
    assert source({}, size=50).next(0.0) == padding(RUN, 50)
    assert source({}).next(0.0) == b""
    longer = source({"v": "x" * 100}, size=40).next(0.0)
    assert longer == b'{"v":"' + b"x" * 100 + b'"}'


@given(st.integers(0, 2**32 - 1), st.integers(0, 20000))
def test_filling_is_the_padding_of_the_header(run: int, size: int) -> None:
    assert filling(run, size) == padding(run, HEADER_SIZE + size)


def entry_sizes(model: Any, count: int = 2000) -> list[int]:
    entry = PublishEntry.model_validate({"topic": "t", "every": 1, "size": model})
    sizes, chance = Sizes(entry.size), Chance(4)
    return [sizes.draw(chance) for _ in range(count)]


def test_size_distributions() -> None:
    uniform = entry_sizes({"uniform": {"min": 32, "max": 40}})
    assert set(uniform) == set(range(32, 41))
    normal = entry_sizes({"normal": {"mean": 1000, "sd": 100, "max": 1100}})
    assert max(normal) == 1100
    assert abs(statistics.median(normal) - 1000) < 20
    lognormal = entry_sizes({"lognormal": {"median": 500, "sigma": 1, "max": "64KiB"}})
    assert abs(statistics.median(lognormal) - 500) < 60
    assert statistics.fmean(lognormal) > 700
    assert max(lognormal) <= 65536
    assert min(lognormal) >= HEADER_SIZE
    choice = entry_sizes({"choice": {"of": [64, "1KiB"], "weights": [3, 1]}})
    assert set(choice) == {64, 1024}
    assert abs(choice.count(64) - 1500) < 100
    assert entry_sizes(77, 1) == [77]
    assert entry_sizes({"lognormal": {"median": 500, "sigma": 10}}, 200)[0] >= HEADER_SIZE


# Seeds

models = st.sampled_from(
    [
        {"walk": {"step": 3}},
        {"sine": {"period": 7, "spread": 1, "noise": 1}},
        {"choice": {"of": [1, 2, 3]}},
        {"uniform": {}},
        {"normal": {}},
        {"expression": "last + uniform(0, 1)"},
        {"object": {"a": {"uniform": {}}, "b": {"normal": {}}}},
        {"counter": {}},
    ]
)


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
    st.dictionaries(st.sampled_from("abcd"), models, min_size=1),
    st.sampled_from(["json", "cbor", "raw", "packed"]),
    st.sampled_from([None, 200, {"uniform": {"min": 32, "max": 300}}]),
)
def test_same_seed_same_payloads(
    seed: int, index: int, fields: dict[str, Any], encoding: str, size: Any
) -> None:
    keys = {"encoding": encoding, "size": size}
    one, other = (source(fields, index, seed, **keys) for _ in range(2))
    assert [one.next(float(t)) for t in range(5)] == [other.next(float(t)) for t in range(5)]


numbers = st.floats(-1e15, 1e15)
extremes = st.one_of(
    st.builds(
        lambda start, step, digits: {"walk": {"start": start, "step": step, "digits": digits}},
        numbers,
        numbers.map(abs),
        st.integers(0, 15),
    ),
    st.builds(
        lambda mean, sd, digits: {"normal": {"mean": mean, "sd": sd, "digits": digits}},
        numbers,
        numbers.map(abs),
        st.integers(0, 15),
    ),
    st.builds(
        lambda mean, amplitude, period: {
            "sine": {"mean": mean, "amplitude": amplitude, "period": period, "digits": 0}
        },
        numbers,
        numbers,
        st.floats(1e-9, 3e8),
    ),
    st.builds(
        lambda start, step: {"counter": {"start": start, "step": step}},
        st.integers(-(2**63), 2**63 - 1),
        st.integers(-(2**63), 2**63 - 1),
    ),
    st.sampled_from(["exp(t) ** last", "1e299 * 1e299", "last * 1e299 + 1e299"]).map(
        lambda text: {"expression": text}
    ),
)


@given(extremes, st.sampled_from(["json", "cbor", "raw", "packed"]), st.floats(0, 1e8))
def test_extreme_models_give_values_that_can_be_sent(model: Any, encoding: str, t: float) -> None:
    of = source({"v": model, "w": model}, encoding=encoding)
    for step in range(5):
        body = of.next(t + step)
        assert body
        assert encoding not in ("json", "raw") or b"inf" not in body.lower()


@pytest.mark.parametrize(
    "wrong",
    [{"counter": {"start": 2**63}}, {"walk": {"step": 1e16}}, math.inf, {"sine": {}}],
)
def test_models_that_would_give_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        source({"v": wrong})


@given(st.floats(-1e9, 1e9), st.floats(0, 1e8), st.floats(-1e6, 1e6), st.floats(0, 1e7))
def test_the_most_wrong_clock_has_a_time(
    offset: float, spread: float, drift: float, t: float
) -> None:
    clock = {"offset": offset, "spread": spread, "drift": drift}
    body = source({"v": {"timestamp": "iso"}}, clock=clock).next(t, NEW_YEAR)
    assert body is not None
    assert json.loads(body)["v"].endswith("Z")


def test_another_seed_index_or_key_other_values() -> None:
    model = {"uniform": {"digits": 9}}
    found = {values(1, model, seed=seed, index=index)[0] for seed in (1, 2) for index in (0, 1)}
    assert len(found) == 4


def test_a_device_costs_little_memory() -> None:
    # The state of a field is a number; what devices share is shared.
    fields: dict[str, Any] = {"v": {"walk": {}}, "w": {"counter": {}}}
    entry = PublishEntry.model_validate({"topic": "t", "every": 1, "fields": fields})
    recipe = Recipe(entry)
    clock = DeviceClock(None, 1, "g", 0)
    names = Names("0", "g", 0, Template("x"), {})
    one = Source(recipe, 1, 2, names, "publish[0]", clock)
    other = Source(recipe, 1, 2, names, "publish[1]", clock)
    assert one._recipe is other._recipe
    assert all(isinstance(state, int | float) for state in one._states)
    assert not hasattr(one, "__dict__")


def test_sources_of_one_recipe_dont_disturb_each_other() -> None:
    fields = {"a": {"counter": {}}, "v": {"expression": "a + 100 * index + last / 1000"}}
    entry = PublishEntry.model_validate({"topic": "t", "every": 1, "fields": fields})
    recipe = Recipe(entry)
    clock = DeviceClock(None, 1, "g", 0)
    both = [
        Source(recipe, 1, RUN, Names("0", "g", index, Template("{index}"), {}), "k", clock)
        for index in (0, 1)
    ]
    alone = [source(fields, index=index) for index in (0, 1)]
    for t in range(5):
        for one, other in zip(both, alone, strict=True):
            assert one.next(float(t)) == other.next(float(t))
