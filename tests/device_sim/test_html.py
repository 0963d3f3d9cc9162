"""The HTML report: what a browser makes of it, that it is one file, and the arithmetic of plots."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.results.html import page
from device_sim.results.plot import (
    Line,
    Mark,
    Moments,
    Scale,
    linear_ticks,
    log_ticks,
    over_time,
    percentile_curve,
    time_line,
)
from device_sim.results.report import duration
from device_sim.results.result import Fault, Result, Stage
from tests.device_sim.results import point, result

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PLOTS = (
    "Stages and faults",
    "Messages a second",
    "Latency of the deliveries of each second",
    "Connections, and deliveries that are waited for",
    "Latency by percentile",
)


class Tree(HTMLParser):
    """What a page consists of: elements with their attributes, and text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)

    def of(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """The attributes of all elements with this tag and these attributes (`class_`)."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in wanted.items())
        ]


def test_a_browser_draws_every_plot(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium to open the report in: apt-get install chromium")
    file = tmp_path / "report.html"
    file.write_text(page(result(lost=3)), encoding="utf-8")
    opened = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--virtual-time-budget=2000"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    tree = Tree(opened.stdout)
    assert [svg["aria-label"] for svg in tree.of("svg")] == list(PLOTS)
    paths = [path["d"] for path in tree.of("path")]
    assert len(paths) == 2 + 3 + 2 + 2
    for path in paths:
        places = re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)
        assert len(places) >= 10
        assert len({x for x, _ in places}) == len(places)
    assert len(tree.of("rect", class_="fault-bar")) == 2
    assert "".join(tree.text["h1"]) == "device_sim · fleet"


def test_the_page_is_one_file_without_script() -> None:
    text = page(result(lost=3))
    tree = Tree(text)
    for tag in ("script", "link", "img", "iframe", "object", "base"):
        assert tree.of(tag) == []
    for _, attributes in tree.elements:
        assert not {"src", "href", "onload", "style"} & set(attributes)
    assert "url(" not in text
    assert "@import" not in text


def test_what_it_tells() -> None:
    made = result(lost=3, duplicated=2)
    made.warnings = ["1000 connections need more files"]
    text = page(made)
    tree = Tree(text)
    (section,) = [each for each in tree.of("section") if "verdict" in each.get("class", "")]
    assert section["class"] == "verdict bad"
    assert "BAD: QoS 1: lost" in text
    assert "warning: 1000 connections need more files" in text
    assert "seed 7" in text
    assert "fleet/0/gps" in tree.text["td"]
    assert "delay 50 ms" in tree.text["td"]
    # Lost breaks a promise of QoS 1, a duplicate doesn't: only one of them stands out, in the
    # table by QoS and in that of the streams.
    assert len(tree.of("td", class_="wrong")) == 2
    assert len(tree.of("div", class_="tile bad")) == 1


@pytest.mark.parametrize(("exit_code", "kind"), [(0, "good"), (1, "bad"), (3, "off")])
def test_the_colour_of_the_verdict(exit_code: int, kind: str) -> None:
    made = result()
    made.verdict.exit = exit_code
    assert f'class="verdict {kind}"' in page(made)


def test_nothing_that_others_named_becomes_markup() -> None:
    evil = '<script>alert("x")</script>&"'
    made = result(lost=1)
    made.scenario.name = made.scenario.headline = made.scenario.file = evil
    made.troubled[0].topic = evil
    made.faults[0].detail = made.faults[1].kind = made.stages[0].name = evil
    made.warnings = [evil]
    made.verdict.broken_off = evil
    made.settings = {evil: evil}
    made.violations = {evil: 1}
    tree = Tree(page(made))
    assert tree.of("script") == []
    assert evil in "".join(tree.text["h1"])
    assert evil in tree.text["dd"]


def test_a_whole_scenario_among_the_settings_unfolds() -> None:
    made = result()
    made.settings = {"seed": 7, "groups": [{"name": "<b>", "topics": ["t"] * 30}]}
    tree = Tree(page(made))
    assert tree.text["summary"] == ["groups"]
    assert tree.text["pre"][0].startswith("- name: <b>\n  topics:\n  - t\n")
    assert "7" in tree.text["dd"]


def test_runs_of_no_length_and_of_one_second() -> None:
    empty = Result()
    empty.judge([])
    tree = Tree(page(empty))
    assert tree.of("svg") == []
    short = Result(series=[point(1, 500)])
    short.judge([])
    tree = Tree(page(short))
    assert len(tree.of("svg")) == 3
    assert len(tree.of("circle", class_="dot-0")) == 3


def test_seconds_without_a_delivery_have_no_latency() -> None:
    made = Result(series=[point(1, 100), point(2), point(3, 100)])
    made.judge([])
    assert page(made).count('<circle class="dot-2"') == 2


def test_so_many_faults_as_a_page_can_bear() -> None:
    made = result()
    made.faults = [Fault(at_s=n / 20, kind="disconnect", devices=1) for n in range(240)]
    made.stages = [Stage(name="all", at_s=0, until_s=12)]
    text = page(made)
    assert "140 more are in the JSON document" in text
    assert 'class="fault-number"' not in text
    assert text.count('class="fault-bar"') == 240


def test_faults_have_their_moment_in_every_plot_over_time() -> None:
    moments = Moments(10.0, [Mark(5.0, None, "pause", "1. pause"), Mark(2.0, 4.0, "net", "2. net")])
    plot = Tree(over_time("t", [Line("a", [(0, 1), (10, 2)])], moments, str))
    lane = Tree(time_line("t", moments, []))
    for tree in (plot, lane):
        assert [line["x1"] for line in tree.of("line", class_="fault-line")] == ["508.0", "246.4"]
        (band,) = tree.of("rect", class_="fault-band")
        assert (band["x"], band["width"]) == ("246.4", "174.4")


@given(st.floats(0, 1e6), st.floats(1e-3, 1e9))
def test_ticks_are_round_inside_and_not_too_many(low: float, span: float) -> None:
    ticks = linear_ticks(low, low + span)
    assert len(ticks) <= 9
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    assert ticks == sorted(set(ticks))


@given(st.floats(1e-3, 1e6), st.floats(1.5, 1e6))
def test_log_ticks_lie_inside(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)
    assert ticks == sorted(set(ticks))
    if factor >= 10:
        assert ticks


@given(st.booleans(), st.lists(st.floats(0, 1e9), min_size=2))
def test_a_scale_keeps_the_order_and_its_bounds(logarithmic: bool, values: list[float]) -> None:
    scale = Scale(1.0, 1e6, 0.0, 100.0, logarithmic)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


def test_each_nine_has_the_same_room() -> None:
    points = [(percent, 1000.0) for percent in (90.0, 99.0, 99.9, 100.0)]
    tree = Tree(percentile_curve("t", [Line("a", points)], duration))
    xs = [float(dot["cx"]) for dot in tree.of("circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert xs[3] > xs[2]
    assert "99.9 %" in tree.text["text"]
    assert "max" in tree.text["text"]
