"""The document of a result: it survives being stored, and parts of a run add up exactly."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.engine.run_result import remarks
from device_sim.judge.histogram import Histogram
from device_sim.judge.ledger import Ledger
from device_sim.judge.payload import Header, encode
from device_sim.judge.thresholds import parse
from device_sim.judge.verdict import CLASSES
from device_sim.results.merging import merge
from device_sim.results.report import plain
from device_sim.results.result import (
    BROKEN,
    BROKEN_OFF,
    GOOD,
    SCHEMA,
    Distribution,
    Fault,
    Incidents,
    Point,
    Requests,
    Result,
    ResultError,
    Throughput,
    json_schema,
)
from tests.device_sim.results import histogram, point, result

VALUES = st.lists(st.integers(0, 2**41), max_size=50)
PUBLISHED = Path(__file__).parents[2] / "docs" / "reference" / "result.schema.json"


def test_a_stored_result_is_the_same_result() -> None:
    made = result(lost=3, stale=1)
    text = made.to_json()
    assert Result.from_json(text) == made
    assert Result.from_json(text).to_json() == text
    assert json.loads(text) == json.loads(json.dumps(made.document()))


@given(VALUES)
def test_a_stored_histogram_is_the_same_histogram(values: list[int]) -> None:
    recorded = histogram(*values)
    stored = Distribution.model_validate_json(Distribution.of(recorded).model_dump_json())
    again = stored.histogram()
    assert again.counts == recorded.counts
    assert (again.count, again.total) == (recorded.count, recorded.total)
    assert (again.minimum, again.maximum) == (recorded.minimum, recorded.maximum)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ('{"schema": "device_sim.flood/1"}', "schema is 'device_sim.flood/1', expected"),
        ('{"verdict": {"exit": 9}}', "verdict.exit: Input should be less than or equal to 3"),
        ('{"series": [{"at_s": "x"}]}', "series.0"),
    ],
)
def test_what_is_no_result_is_refused_with_the_place(text: str, words: str) -> None:
    with pytest.raises(ResultError) as refusal:
        Result.from_json(text, "old.json")
    assert str(refusal.value).startswith("old.json: ")
    assert words in str(refusal.value)
    assert SCHEMA in str(refusal.value)


def test_keys_of_a_later_version_are_skipped() -> None:
    document = result().document()
    document["invented"] = 1
    document["faults"][0]["severity"] = "high"
    assert Result.from_json(json.dumps(document)) == result()


def test_the_published_schema_is_that_of_the_code() -> None:
    def names(schema: dict[str, Any]) -> set[tuple[str, str]]:
        definitions = {"": schema, **schema["$defs"]}
        return {
            (part, name)
            for part, definition in definitions.items()
            for name in definition["properties"]
        }

    assert names(json.loads(PUBLISHED.read_text())) == names(json_schema())


def test_every_key_of_a_document_is_in_the_schema() -> None:
    schema = json_schema()
    assert set(result().document()) == set(schema["properties"])
    assert schema["properties"]["schema"]["default"] == SCHEMA


@pytest.mark.parametrize(
    ("classes", "broken_off", "limits", "code"),
    [
        ({}, "", "", GOOD),
        ({}, "interrupted", "", BROKEN_OFF),
        ({"lost": 1}, "", "", BROKEN),
        ({"lost": 1}, "interrupted", "", BROKEN),
        ({"duplicated": 1}, "", "", GOOD),
        ({"duplicated": 1}, "", "duplicated>0", BROKEN),
        ({}, "", "p99>50ms", BROKEN),
        ({}, "", "p50>60ms", GOOD),
        ({"missing_will": 1}, "", "", BROKEN),
        ({"unknown": 5}, "", "unknown>1%", BROKEN),
    ],
)
def test_the_exit_code(classes: dict[str, int], broken_off: str, limits: str, code: int) -> None:
    made = result(**classes)
    made.verdict.broken_off = broken_off
    assert made.judge(parse([limits])) == made.verdict.exit == code
    assert made.scenario.thresholds == [limits] * bool(limits)
    assert Result.from_json(made.to_json()).judge(parse([limits])) == code


def test_limits_on_every_class_by_its_name() -> None:
    made = result(stale=2, missing_will=1)
    terms = ["stale>1", "stale.qos2>0", "missing_will>=1", "missing_retained>0", "acked.qos1<201"]
    made.judge(parse([",".join(terms)]))
    assert made.verdict.thresholds == [
        "stale>1: it is 2",
        "missing_will>=1: it is 1",
        "acked.qos1<201: it is 200",
    ]


def test_protocol_errors_and_messages_for_nobody_are_broken_promises() -> None:
    made = result()
    made.violations = {"PUBACK for an identifier that is not in flight": 2}
    made.totals["all"]["unexpected"] = 4
    made.judge([])
    assert made.verdict.broken == [
        "unexpected messages on topics of nobody",
        "protocol: PUBACK for an identifier that is not in flight",
    ]


def test_parts_of_a_run_add_up_to_the_run() -> None:
    """The same random deliveries, in one ledger and dealt out to three."""
    rng = random.Random(11)
    whole = Ledger(1, paced=True)
    parts = [Ledger(1, paced=True) for _ in range(3)]
    for number in range(12):
        qos = number % 3
        part = parts[number % 3 if number < 9 else 0]
        owners = []
        for ledger in (whole, part):
            sender = ledger.add_sender(qos, 1)
            watcher = ledger.add_watcher()
            watcher.expect(b"%d" % number, sender, 0, qos)
            owners.append((sender, watcher))
        for sequence in range(40):
            copies = rng.choice((0, 1, 1, 1, 2))
            for sender, _ in owners:
                sender.sent += 1
            for _ in range(copies):
                delay = rng.randrange(10**9)
                for sender, watcher in owners:
                    data = encode(Header(1, sender.index, 0, qos, sequence, 0, 7), 40)
                    watcher.receive(b"%d" % number, data, 0, 40, qos << 1, delay)
    expected, *pieces = [_booked(ledger) for ledger in (whole, *parts)]
    merged = merge(pieces)
    assert merged.totals == expected.totals
    assert merged.tracks == expected.tracks
    assert merged.histograms == expected.histograms
    assert merged.latency_us == expected.latency_us
    assert merged.troubled_count == expected.troubled_count
    assert [stream.counts() for stream in merged.troubled] == [
        stream.counts() for stream in expected.troubled
    ]
    assert merged.judge([]) == expected.judge([]) == BROKEN
    assert merged.scenario.workers == 3


def _booked(ledger: Ledger) -> Result:
    made = Result()
    made.book(ledger.close(keep=1000))
    made.measure("from_sent", ledger.from_sent)
    made.measure("from_intended", ledger.from_intended)
    made.summarise()
    return made


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_histograms_of_parts_add_up(parts: list[list[int]]) -> None:
    pieces = []
    for values in parts:
        piece = Result()
        piece.measure("from_sent", histogram(*values))
        pieces.append(piece)
    whole = histogram(*(value for values in parts for value in values))
    assert merge(pieces).histograms["from_sent"] == Distribution.of(whole)


def test_seconds_of_parts_are_joined_and_totals_of_the_finished_kept() -> None:
    long, short = Result(), Result()
    long.series = [point(1, 10, 20), point(2, 30), point(3, 40)]
    short.series = [point(1, 1000), point(2, sent=50)]
    joined = merge([long, short]).series
    assert [each.at_s for each in joined] == [1.0, 2.0, 3.0]
    assert [each.sent for each in joined] == [200, 300, 400]
    assert [each.connected for each in joined] == [8, 8, 4]
    assert [each.sent_per_s for each in joined] == [200.0, 150.0, 100.0]
    assert joined[0].latency == Distribution.of(histogram(10, 20, 1000))
    assert joined[0].p50_us == 20


def test_faults_and_times_and_what_parts_have_in_common() -> None:
    one, other = Result(run="r"), Result(run="r")
    one.faults = [
        Fault(at_s=5.02, kind="disconnect", detail="reset", devices=3),
        Fault(at_s=9.0, until_s=10.0, kind="network"),
    ]
    other.faults = [
        Fault(at_s=4.98, kind="disconnect", detail="reset", devices=4),
        Fault(at_s=2.0, kind="pause"),
        Fault(at_s=9.1, until_s=11.0, kind="network"),
    ]
    one.throughput = Throughput(asked_per_s=10, sent=90, publish_s=9.0, generator_cpu=0.5)
    other.throughput = Throughput(asked_per_s=20, sent=210, publish_s=10.0, generator_cpu=0.95)
    one.warnings = ["few files", "few ports"]
    other.warnings = ["few files"]
    one.strays, other.strays = {"never sent": 1}, {"never sent": 2, "wrong qos": 1}
    other.verdict.broken_off = "p3: closed"
    merged = merge([one, other])
    assert [(each.kind, each.at_s, each.until_s, each.devices) for each in merged.faults] == [
        ("pause", 2.0, None, 0),
        ("disconnect", 4.98, None, 7),
        ("network", 9.0, 11.0, 0),
    ]
    assert merged.throughput.asked_per_s == 30
    assert merged.throughput.sent_per_s == 30.0
    assert merged.throughput.generator_bound
    assert merged.warnings == ["few files", "few ports"]
    assert merged.strays == {"never sent": 3, "wrong qos": 1}
    assert merged.judge([]) == BROKEN_OFF
    assert (one.strays, len(one.faults)) == ({"never sent": 1}, 2)


def test_requests_incidents_and_memory_of_parts_add_up() -> None:
    one, other, quiet = Result(), Result(), Result()
    one.requests = Requests(answered=3, unanswered=1)
    other.requests = Requests(answered=4)
    one.incidents = Incidents(skipped_offline=5)
    other.incidents = Incidents(lost_connections=2, first_lost="p1: closed", skipped_offline=6)
    for each in (one, other, quiet):
        each.throughput.generator_memory = 10
    merged = merge([quiet, one, other])
    assert merged.requests is not None
    assert (merged.requests.answered, merged.requests.unanswered) == (7, 1)
    assert merged.throughput.generator_memory == 30
    # Told once for all of them, and not by each.
    assert remarks(merged) == [
        "2 connections were lost without the scenario's doing; the first: p1: closed",
        "1 requests were not answered in time",
        "11 messages came due while their device was offline, and were not sent",
    ]
    assert one.requests.answered == 3
    merged.measure("round_trip", histogram(5000))
    merged.judge(parse(["unanswered>0", "round_trip.p99>1ms"]))
    assert merged.verdict.thresholds == ["unanswered>0: it is 1", "round_trip.p99>1ms: it is 5ms"]
    assert merged.requests.round_trip_us["max"] == 5000
    assert "request to response" in plain(merged.document())
    assert merge([quiet]).requests is None


def test_the_classes_of_a_stream_with_trouble() -> None:
    (stream,) = result(lost=4, duplicated=2).troubled
    assert (stream.topic, stream.qos) == ("fleet/0/gps", 1)
    counts = stream.counts()
    assert set(counts) == set(CLASSES)
    assert (counts["lost"], counts["duplicated"], counts["sent"]) == (4, 2, 100)


def test_an_empty_result_is_good_and_has_no_numbers() -> None:
    made = Result()
    assert made.judge([]) == GOOD
    assert made.latency_us.from_intended is None
    assert made.throughput.pacing_lag_us is None
    assert made.histogram("from_sent").count == Histogram().count == 0
    assert merge([made]).series == []
    assert Point(phase="", at_s=0, connected=0, sent=0, received=0).latency.count == 0
