"""Parameters that make no sense are refused in words; topics, filters and owners agree."""

import resource
from pathlib import Path
from typing import Any

import pytest

from device_sim.cli import main
from device_sim.engine import limits
from device_sim.engine.plan import Plan, Settings, UsageError
from device_sim.judge import thresholds
from device_sim.judge.histogram import Histogram
from device_sim.judge.verdict import Outcome, Verdict
from mqttd.core import spec
from mqttd.core.topics import matches


def checked(**values: Any) -> Settings:
    settings = Settings(**values)
    settings.check()
    return settings


@pytest.mark.parametrize("watch", ["split", "all"])
@pytest.mark.parametrize("subscribers", [1, 3])
@pytest.mark.parametrize(
    "pattern",
    [
        "device_sim/{run}/{group}/{device}/{stream}",
        "x/{device}/{stream}",
        "g{group}/d{device}-{stream}/end",
        "{group}-{device}/{stream}",
    ],
)
def test_every_subscriber_gets_exactly_what_it_is_owed(
    watch: str, subscribers: int, pattern: str
) -> None:
    settings = checked(devices=7, streams=2, subscribers=subscribers, watch=watch, pattern=pattern)
    plan = Plan(settings, 0xABC)
    all_topics = {plan.topic(device, stream) for device in range(7) for stream in range(2)}
    assert len(all_topics) == 14
    owners = 0
    for subscriber in range(subscribers):
        owed = {plan.topic(*pair) for pair in plan.owed(subscriber)}
        filters = [each.topic_filter for each in plan.filters(subscriber)]
        matched = {topic for topic in all_topics if any(matches(each, topic) for each in filters)}
        assert matched == owed
        owners += len(owed)
    assert owners == 14 * plan.fan


def test_a_subscriber_asks_for_few_filters_where_it_can() -> None:
    plan = Plan(checked(devices=1000, subscribers=10), 1)
    assert [each.topic_filter for each in plan.filters(3)] == ["device_sim/00000001/3/+/+"]


def test_no_subscribers() -> None:
    plan = Plan(checked(devices=2, subscribers=0), 1)
    assert plan.fan == 0
    assert plan.topic(1, 0) == "device_sim/00000001/0/1/0"


def test_defaults_follow_the_rest() -> None:
    assert checked(devices=3).subscribers == 3
    assert checked(devices=300).subscribers == 10
    assert checked().window == 10
    assert checked(rate=1.0).window == 1000


def test_qos_levels_are_dealt_out_in_turn() -> None:
    settings = checked(qos=(0, 2))
    assert [settings.qos_of(device) for device in range(4)] == [0, 2, 0, 2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"devices": 0}, "devices is 0"),
        ({"size": 31}, "from 32"),
        ({"rate": -1.0}, "negative"),
        ({"seconds": 0.0}, "-t"),
        ({"settle": -1.0}, "settle"),
        ({"watch": "some"}, "watch"),
        ({"devices": 2, "subscribers": 3}, "--watch all"),
        ({"user_properties": [("a", "b")]}, "MQTT 5"),
        ({"password": "x"}, "user name"),
        ({"keyfile": "x"}, "certificate"),
        ({"pattern": "a/{devise}"}, "{devise}"),
        ({"pattern": "a/{"}, "pattern"),
        ({"pattern": "a/{0}"}, "pattern"),
        ({"pattern": "a"}, "{device}"),
        ({"pattern": "{device}", "streams": 2}, "{stream}"),
        ({"pattern": "{device}/#"}, "'#'"),
        ({"pattern": "$SYS/{device}"}, "'$'"),
        ({"pattern": "{device}" + "x" * 66000}, "too long"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["flood", "-q", "3"],
        ["flood", "--nonsense"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0"], "devices"),
        (["--user-property", "x", "-V", "5"], "NAME=VALUE"),
        (["--fail-on", "losses>0"], "losses"),
        (["--fail-on", "lost"], "is not like"),
        (["--cafile", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (["--tls", "--cert", "/nowhere/cert.pem"], "/nowhere/cert.pem"),
    ],
)
def test_usage_errors_exit_with_2_and_say_what(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flood", "--quiet", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_help_is_not_h(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["flood", "--help"])
    assert caught.value.code == 0
    assert "--host" in capsys.readouterr().out


def figures() -> thresholds.Figures:
    verdict = Verdict()
    outcome = Outcome(1, 0, 0, 0, "t")
    outcome.sent = 1000
    outcome.lost = 5
    verdict.add(outcome)
    latency = Histogram()
    sent = Histogram()
    connect = Histogram()
    latency.record(50_000)
    sent.record(200)
    connect.record(3_000)
    round_trip = Histogram()
    round_trip.record(7_000)
    return thresholds.Figures(verdict, latency, sent, connect, 42.0, round_trip, 2)


def no_figures(unanswered: int | None = None) -> thresholds.Figures:
    none = Histogram()
    return thresholds.Figures(Verdict(), none, none, none, 0.0, none, unanswered)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("lost>4", True),
        ("lost>=6", False),
        ("lost.qos1==5", True),
        ("lost.qos0>0", False),
        ("lost>0.4%", True),
        ("lost>0.6%", False),
        ("p99>49ms", True),
        ("p99.9 > 51ms", False),
        ("max<1s", True),
        ("mean!=50000us", False),
        ("sent.p50<=200us", True),
        ("connect.p99<3ms", False),
        ("rate<50", True),
        ("unanswered>1", True),
        ("unanswered>2", False),
        ("round_trip.p99>6ms", True),
        ("round_trip.max>7ms", False),
    ],
)
def test_thresholds(text: str, broken: bool) -> None:
    (term,) = thresholds.parse([text])
    assert bool(term.broken(figures())) == broken


@pytest.mark.parametrize("text", ["p99>1s", "max<1s", "sent.mean>1s", "round_trip.p50>1s"])
def test_a_latency_that_nobody_measured_keeps_no_limit(text: str) -> None:
    (term,) = thresholds.parse([text])
    assert term.broken(no_figures()) == f"{text}: nothing was measured"
    assert term.broken(figures()) == ("" if ">" in text else "max<1s: it is 0.05s")


@pytest.mark.parametrize(
    "text",
    [
        "p99>5",
        "lost>5ms",
        "rate>1%",
        "unanswered>1%",
        "round_trip.p99>1",
        "p100>1ms",
        "lost>x",
        "lost=1",
    ],
)
def test_thresholds_that_say_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=text.split(">")[0]):
        thresholds.parse([text])


def test_several_terms_in_one_option() -> None:
    assert [term.text for term in thresholds.parse(["lost>0, p99>1ms", "rate<1"])] == [
        "lost>0",
        "p99>1ms",
        "rate<1",
    ]


def test_limits_are_told_before_they_bite(tmp_path: Path) -> None:
    assert limits.warnings(100, 1000, 28000) == []
    (files,) = limits.warnings(1000, 1024, 0)
    assert "ulimit -n 1064" in files
    (ports,) = limits.warnings(27000, 100_000, 28000)
    assert "ip_local_port_range" in ports
    # Files are counted for each worker, ports for all of them together.
    assert [limits.share_of(count, 4) for count in (1000, 10, 4, 1)] == [250, 3, 1, 1]
    assert limits.warnings(6750, 8000, 0, of_all=27000) == []
    files, ports = limits.warnings(6750, 1024, 28000, of_all=27000)
    assert files.startswith("6750 connections of a worker need 6814 open files")
    assert ports.startswith("27000 connections to one address")
    listing = tmp_path / "range"
    listing.write_text("32768\t60999\n")
    assert limits.local_ports(listing) == 28232
    assert limits.local_ports(tmp_path / "nothing") == 0


def test_the_soft_limit_is_raised_as_far_as_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: held["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: held.__setitem__("now", wanted))
    assert limits.file_limit(2000) == 2000
    assert limits.file_limit(9000) == 4096
    assert held["now"] == (4096, 4096)


def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, wanted: tuple[int, int]) -> None:
        raise ValueError(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 20))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert limits.file_limit(15) == 10


def test_versions_are_those_of_the_specification() -> None:
    assert Settings().version == spec.MQTT311


@pytest.mark.parametrize("text", ["lost>0", "lost.qos1>0", "lost>1%"])
def test_where_nobody_was_owed_anything_nothing_is_proved(text: str) -> None:
    (term,) = thresholds.parse([text])
    assert term.broken(no_figures()) == f"{text}: nobody was owed anything"


def test_where_nobody_asked_nothing_is_proved() -> None:
    (term,) = thresholds.parse(["unanswered>3"])
    for nobody in (None, 0):
        assert term.broken(no_figures(nobody)) == "unanswered>3: nobody asked anything"
    assert term.broken(no_figures(3)) == ""
    assert term.broken(no_figures(4)) == "unanswered>3: it is 4"
