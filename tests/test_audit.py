"""The audit trail: its logger, its order, its bounds, and that nobody can forge a line of it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from mqttd import log
from mqttd.core import watch
from mqttd.core.router import Event
from mqttd.core.watch import Trace, Watcher
from mqttd.operate import audit
from mqttd.operate.audit import DENIALS, MAX_CLIENTS, WINDOW_S, Audit, act

HOSTILE = "x\nINFO connect client=admin\x1b[2J\u202e"


@pytest.fixture
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What `mqttd run` would write, as text."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.setup("info", getattr(request, "param", log.TEXT), stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def denied(client_id: str, topic: str = "t", kind: int = watch.DENIED) -> Trace:
    trace = Trace(kind, 0.0, client_id, "", topic, 0, 1, "acl:3")
    trace.username = "ann"
    return trace


def deny(trail: Audit, *traces: Trace) -> None:
    watcher = Watcher(0)
    watcher.pending = list(traces)
    trail.denials(watcher)
    assert len(watcher.pending) == len(traces)  # they are the observers' to take


@pytest.mark.parametrize("written", [log.JSON], indirect=True)
def test_what_belongs_to_the_trail(written: io.StringIO) -> None:
    kinds = ("connect", "pingpong", "refused", "session_expired", "disconnect")
    Audit().events([Event(kind, "c", "p", "r", "u") for kind in kinds])
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["event"] for line in lines] == list(kinds)
    loggers = {line["event"]: line["logger"] for line in lines}
    assert {kind for kind in kinds if loggers[kind] == "mqttd.audit"} == {
        "connect",
        "refused",
        "disconnect",
    }
    assert [line["level"] for line in lines if line["event"] == "pingpong"] == ["warning"]
    assert lines[0]["user"] == "u"


@pytest.mark.parametrize("written", [log.TEXT, log.JSON], indirect=True)
def test_nobody_forges_a_line(written: io.StringIO) -> None:
    trail = Audit()
    trail.events([Event("refused", HOSTILE, HOSTILE, HOSTILE, HOSTILE)])
    deny(trail, denied(HOSTILE, HOSTILE), denied(HOSTILE, HOSTILE, watch.SUBSCRIBE_DENIED))
    act("kick", 1000, client=HOSTILE, reason=HOSTILE)
    act("plugin_action", None, plugin=HOSTILE, action=HOSTILE)
    text = written.getvalue()
    assert len(text.splitlines()) == 5
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("written", [log.JSON], indirect=True)
def test_one_client_gets_few_lines_and_then_a_count(written: io.StringIO) -> None:
    clock = Clock()
    trail = Audit(clock)
    deny(trail, *[denied("bad", str(number)) for number in range(DENIALS + 7)])
    deny(trail, denied("good"))
    clock.now += WINDOW_S
    deny(trail, denied("bad", "again"))
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line.get("topic") for line in lines[:DENIALS]] == [str(n) for n in range(DENIALS)]
    assert (lines[DENIALS]["client"], lines[DENIALS]["user"]) == ("good", "ann")
    assert (lines[-2]["event"], lines[-2]["count"]) == ("more_denied", 7)
    assert lines[-1]["topic"] == "again"


def test_the_memory_for_that_is_bounded(written: io.StringIO) -> None:
    trail = Audit(Clock())
    for number in range(MAX_CLIENTS + 50):
        deny(trail, denied(f"c{number}"))
    assert len(trail._denied) == MAX_CLIENTS


def test_the_core_is_asked_for_denials_alone() -> None:
    watcher = Watcher(0)
    Audit().watch(watcher)
    watcher.note(watch.DENIED, "c", "", "t", 0, 1, "r")
    watcher.note(watch.CONNECTED, "c", "", "", 0, 0, "r")
    watcher.note(watch.SUBSCRIBE_DENIED, "c", "", "t", 0, 0, "r")
    assert [trace.kind for trace in watcher.pending] == [watch.DENIED, watch.SUBSCRIBE_DENIED]
    assert not watcher.wants_payload
    assert audit.audit.name == "mqttd.audit"
