"""Log lines: one an event, whatever a client calls itself."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqttd import log

LOGGER = logging.getLogger("mqttd.test")


@pytest.fixture(autouse=True)
def restore_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(style: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.setup(level, style, stream)
    return stream


def test_text() -> None:
    stream = lines(log.TEXT)
    log.event(LOGGER, "connect", client="sensor-7", peer="10.0.0.8:50412", version=5, user=None)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO connect"
        r" client=sensor-7 peer=10\.0\.0\.8:50412 version=5\n",
        stream.getvalue(),
    )


def test_json() -> None:
    stream = lines(log.JSON)
    log.event(LOGGER, "refused", level=logging.WARNING, client="é\n", code=0x87, tls=False)
    line = stream.getvalue()
    assert line.isascii()
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-.*Z", found.pop("time"))
    assert found == {
        "level": "warning",
        "logger": "mqttd.test",
        "event": "refused",
        "client": "é\n",
        "code": 135,
        "tls": False,
    }


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        ("", 'client=""'),
        ("a b", 'client="a b"'),
        ('a"b', 'client="a\\"b"'),
        ("a=b", 'client="a=b"'),
        ("a\\b", "client=a\\\\b"),
        ("a\nINFO connect client=b", 'client="a\\nINFO connect client=b"'),
        ("\x1b[31mred\x1b[0m", "client=\\x1b[31mred\\x1b[0m"),
        ("\u202etxt.exe", "client=\\u202etxt.exe"),
        ("a\u2028b", "client=a\\u2028b"),
        ("grün", "client=grün"),
        ("\x9b31m", "client=\\x9b31m"),
    ],
)
def test_client_ids_cannot_break_a_line(client: str, shown: str) -> None:
    stream = lines(log.TEXT)
    log.event(LOGGER, "connect", client=client)
    assert stream.getvalue().partition(" INFO connect ")[2] == shown + "\n"


def test_long_fields_are_cut() -> None:
    stream = lines(log.TEXT)
    log.event(LOGGER, "connect", client="x" * 65535)
    assert f"client={'x' * 128}...+65407\n" in stream.getvalue()
    assert log.escape("abcdef", 3) == "abc...+3"


@pytest.mark.parametrize("style", [log.TEXT, log.JSON])
@settings(deadline=None)
@given(client=st.text(max_size=300))
def test_any_text_is_one_line(style: str, client: str) -> None:
    stream = lines(style)
    log.event(LOGGER, "connect", client=client, reason=client)
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert text[:-1].isprintable()


@pytest.mark.parametrize("style", [log.TEXT, log.JSON])
def test_a_traceback_is_a_field(style: str) -> None:
    stream = lines(style)
    try:
        raise RuntimeError("broken\nin two")
    except RuntimeError:
        LOGGER.exception("bug in %s", "a\nb")
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert "RuntimeError: broken\\nin two" in text
    assert "test_log.py" in text
    assert "bug in a\\nb" in text


def test_levels() -> None:
    stream = lines(log.TEXT, "warning")
    log.event(LOGGER, "connect", client="a")
    log.event(LOGGER, "refused", level=logging.ERROR, client="b")
    assert [line.split()[1:] for line in stream.getvalue().splitlines()] == [
        ["ERROR", "refused", "client=b"]
    ]


def test_setup_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    first = lines(log.TEXT)
    log.setup()
    log.event(LOGGER, "connect", client="a")
    assert first.getvalue() == ""
    assert capsys.readouterr().err.endswith(" INFO connect client=a\n")


BATCH: list[tuple[str, int, dict[str, object]]] = [
    ("connect", logging.INFO, {"client": "a\nb", "peer": "10.0.0.8:1"}),
    ("noise", logging.DEBUG, {"client": "c"}),
    ("pingpong", logging.WARNING, {"client": "d", "peer": None}),
]


def test_many_events_are_one_write() -> None:
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return super().write(text)

    stream = Stream()
    log.setup("info", log.TEXT, stream)
    log.events(LOGGER, BATCH)
    log.events(LOGGER, [])
    assert len(writes) == 1
    first, second = stream.getvalue().splitlines()
    assert first.endswith(r" INFO connect client=a\nb peer=10.0.0.8:1")
    assert second.endswith(" WARNING pingpong client=d")


def test_handlers_of_somebody_else_get_each_event(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log.events(LOGGER, BATCH)
    assert [record.getMessage() for record in caplog.records] == ["connect", "pingpong"]


@pytest.mark.parametrize("what", ["filter", "handler", "propagate", "disabled"])
def test_what_stands_between_a_logger_and_the_stream_counts(what: str) -> None:
    stream, own = lines(log.TEXT), io.StringIO()
    parent = logging.getLogger("mqttd.between")
    logger = logging.getLogger("mqttd.between.us")
    handler = logging.StreamHandler(own)
    try:
        if what == "filter":
            logger.addFilter(lambda record: record.getMessage() == "connect")
        elif what == "handler":
            parent.addHandler(handler)
        elif what == "propagate":
            parent.propagate = False
        else:
            logger.disabled = True
        log.events(logger, BATCH)
    finally:
        logger.filters.clear()
        parent.removeHandler(handler)
        parent.propagate = True
        logger.disabled = False
    shown = [line.split()[2] for line in stream.getvalue().splitlines()]
    expected = {"filter": ["connect"], "handler": ["connect", "pingpong"]}
    assert shown == expected.get(what, [])
    assert own.getvalue().split() == (["connect", "pingpong"] if what == "handler" else [])


def test_a_stream_that_fails_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log.setup("info", log.TEXT, stream)
    stream.close()
    log.events(LOGGER, BATCH)
    assert "--- Logging error ---" in capsys.readouterr().err
