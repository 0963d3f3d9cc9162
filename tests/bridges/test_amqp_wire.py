"""AMQP as bytes, beside another implementation; in pieces, cut off, as nobody should send it."""

from __future__ import annotations

import datetime
import decimal
import struct
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp_wire import Frames, Method, WireError
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.encode import field_table
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIME = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)

# Each method with fields, and as the other implementation says it.
PAIRS: list[tuple[Method, tuple[Any, ...], Any]] = [
    (
        wire.START,
        (0, 9, {"product": "RabbitMQ", "yes": True}, b"PLAIN AMQPLAIN", b"en_US"),
        commands.Connection.Start(
            0, 9, {"product": "RabbitMQ", "yes": True}, "PLAIN AMQPLAIN", "en_US"
        ),
    ),
    (
        wire.START_OK,
        ({"capabilities": {"basic.nack": True}}, "PLAIN", b"\0u\0p", "en_US"),
        commands.Connection.StartOk(
            {"capabilities": {"basic.nack": True}}, "PLAIN", "\0u\0p", "en_US"
        ),
    ),
    (wire.TUNE, (2047, 131072, 60), commands.Connection.Tune(2047, 131072, 60)),
    (wire.TUNE_OK, (2047, 131072, 60), commands.Connection.TuneOk(2047, 131072, 60)),
    (wire.OPEN, ("/", "", False), commands.Connection.Open("/")),
    (wire.OPEN_OK, ("",), commands.Connection.OpenOk()),
    (wire.CLOSE, (320, "bye", 60, 40), commands.Connection.Close(320, "bye", 60, 40)),
    (wire.CLOSE_OK, (), commands.Connection.CloseOk()),
    (wire.BLOCKED, ("low on memory",), commands.Connection.Blocked("low on memory")),
    (wire.UNBLOCKED, (), commands.Connection.Unblocked()),
    (wire.CHANNEL_OPEN, ("0",), commands.Channel.Open()),
    (wire.CHANNEL_OPEN_OK, (b"0",), commands.Channel.OpenOk()),
    (wire.CHANNEL_CLOSE, (404, "no", 50, 10), commands.Channel.Close(404, "no", 50, 10)),
    (wire.CHANNEL_CLOSE_OK, (), commands.Channel.CloseOk()),
    (
        wire.EXCHANGE_DECLARE,
        (0, "e", "topic", True, False, False, False, False, {}),
        commands.Exchange.Declare(0, "e", "topic", True),
    ),
    (wire.EXCHANGE_DECLARE_OK, (), commands.Exchange.DeclareOk()),
    (
        wire.QUEUE_DECLARE,
        (0, "q", False, True, False, False, False, {"x-queue-type": "quorum"}),
        commands.Queue.Declare(0, "q", False, True, arguments={"x-queue-type": "quorum"}),
    ),
    (wire.QUEUE_DECLARE_OK, ("q", 3, 1), commands.Queue.DeclareOk("q", 3, 1)),
    (wire.QUEUE_BIND, (0, "q", "e", "a.#", False, {}), commands.Queue.Bind(0, "q", "e", "a.#")),
    (wire.QUEUE_BIND_OK, (), commands.Queue.BindOk()),
    (wire.QOS, (0, 1000, False), commands.Basic.Qos(0, 1000, False)),
    (wire.QOS_OK, (), commands.Basic.QosOk()),
    (
        wire.CONSUME,
        (0, "q", "tag", False, False, True, False, {}),
        commands.Basic.Consume(0, "q", "tag", exclusive=True),
    ),
    (wire.CONSUME_OK, ("tag",), commands.Basic.ConsumeOk("tag")),
    (wire.CANCEL, ("tag", True), commands.Basic.Cancel("tag", True)),
    (wire.PUBLISH, (0, "e", "a.b", True, False), commands.Basic.Publish(0, "e", "a.b", True)),
    (wire.RETURN, (312, "NO_ROUTE", "e", "k"), commands.Basic.Return(312, "NO_ROUTE", "e", "k")),
    (wire.DELIVER, ("tag", 7, True, "e", "k"), commands.Basic.Deliver("tag", 7, True, "e", "k")),
    (wire.ACK, (2**40, True), commands.Basic.Ack(2**40, True)),
    (wire.NACK, (7, False, True), commands.Basic.Nack(7, False, True)),
    (wire.CONFIRM_SELECT, (False,), commands.Confirm.Select()),
    (wire.CONFIRM_SELECT_OK, (), commands.Confirm.SelectOk()),
]


def test_every_method_is_compared() -> None:
    assert {method for method, _, _ in PAIRS} == set(wire._METHODS.values())


@pytest.mark.parametrize(
    ("method", "fields", "theirs"), PAIRS, ids=[str(method) for method, _, _ in PAIRS]
)
def test_a_method_is_what_others_make_of_it(
    method: Method, fields: tuple[Any, ...], theirs: Any
) -> None:
    data = method.frame(5, *fields)
    assert data == pamqp.frame.marshal(theirs, 5)
    assert theirs.name.lower().replace("ok", "-ok") == method.name
    ((kind, channel, payload),) = Frames().feed(data)
    assert (kind, channel) == (wire.METHOD, 5)
    assert wire.method_from(payload) == (method, list(fields))
    for end in range(4, len(payload)):
        with pytest.raises(WireError, match="breaks off"):
            wire.method_from(payload[:end])


def test_names_may_have_255_bytes_of_any_letters() -> None:
    name = "ü" * 127
    ((_, _, payload),) = Frames().feed(wire.PUBLISH.frame(1, 0, name, "k", True, False))
    assert wire.method_from(payload)[1][1] == name
    with pytest.raises(ValueError, match="256 bytes: a name has 255 at most"):
        wire.PUBLISH.frame(1, 0, "ü" * 128, "k", True, False)


@pytest.mark.parametrize(("code", "text"), [(b"\0\x0a\0\x14", "10.20"), (b"\0\x0a", "breaks off")])
def test_a_method_that_nobody_asked_for_is_named(code: bytes, text: str) -> None:
    with pytest.raises(WireError, match=text):
        wire.method_from(code)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(0, 9), st.binary(max_size=30))),
    st.integers(1, 20),
)
def test_frames_come_out_whole_however_they_came(
    sent: list[tuple[int, int, bytes]], step: int
) -> None:
    data = b"".join(wire.frame_of(*each) for each in sent)
    frames = Frames()
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert [frame for piece in pieces for frame in frames.feed(piece)] == sent


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "is this its port"),
        (b"AMQP\0\0\x09\x01", "is this its port"),
        (b"\x01\0\0\0\x02\0\0", "a frame of 131072 bytes: agreed were 131072 at most"),
        (b"\x03\0\0\0\x02\0\0", "a frame of 131072 bytes: agreed were 131072 at most"),
        (b"\x02\0\0\0\x10\0\1", "a frame of 1048577 bytes: agreed were 131072 at most"),
        (b"\x01\0\0\0\0\0\x01aa", "without its end"),
    ],
)
def test_what_is_no_frame_is_told(data: bytes, text: str) -> None:
    with pytest.raises(WireError, match=text):
        Frames().feed(data)


def test_a_header_may_be_longer_than_was_agreed() -> None:
    frames = Frames()
    frames.longest = 4096
    block = wire.block_of({"headers": {"a": "x" * 5000}})
    ((kind, _, payload),) = frames.feed(wire.content_header(1, 0, block))
    assert kind == wire.HEADER
    assert wire.content_from(payload)[1].headers == {"a": "x" * 5000}


def test_a_heartbeat() -> None:
    assert Heartbeat.marshal() == wire.BEAT
    assert Frames().feed(wire.BEAT) == [(wire.HEARTBEAT, 0, b"")]


# Messages.


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": NAMES.filter(bool),
            "correlation_id": NAMES.filter(bool),
            "expiration": NAMES.filter(bool),
            "message_id": NAMES.filter(bool),
            "delivery_mode": st.sampled_from([1, 2]),
            "headers": st.dictionaries(
                NAMES, NAMES | st.booleans() | st.binary(max_size=9).map(bytearray), max_size=4
            ),
        },
    ),
    st.integers(0, 2**40),
)
def test_a_header_is_read_by_others_and_read_back(properties: dict[str, Any], size: int) -> None:
    data = wire.content_header(3, size, wire.block_of(properties))
    consumed, channel, theirs = pamqp.frame.unmarshal(data)
    assert isinstance(theirs, ContentHeader)
    assert (consumed, channel, theirs.body_size) == (len(data), 3, size)
    ((_, _, payload),) = Frames().feed(data)
    ours_size, ours = wire.content_from(payload)
    assert ours_size == size
    for name, _, _ in wire._PROPERTIES:
        assert getattr(theirs.properties, name) == properties.get(name)
        assert getattr(ours, name) == properties.get(name)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(width=32, allow_nan=False)
    | st.decimals(-(2**20), 2**20, places=2)
    | NAMES
    | st.binary(max_size=9).map(bytearray)
    | st.just(TIME)
)
TREES = st.recursive(
    VALUES, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(NAMES, inside, max_size=3)
)


def read(table: bytes) -> Any:
    """What is read of a header table that came as these bytes."""
    header = struct.pack(">HHQHI", 60, 0, 0, 1 << 13, len(table)) + table
    return wire.content_from(header)[1].headers


@given(st.dictionaries(NAMES, TREES, max_size=4), st.integers(0, 60))
def test_tables_of_others_are_read_and_as_far_as_they_go(table: dict[str, Any], end: int) -> None:
    data = field_table(table)[4:]
    assert read(data) == table
    some = read(data[:end])
    assert some == {name: table[name] for name in sorted(table)[: len(some)]}


@given(st.binary(max_size=60))
def test_no_table_raises(data: bytes) -> None:
    assert isinstance(read(data), dict)
    assert wire.content_from(struct.pack(">HHQH", 60, 0, 7, 0xFFFC) + data)[0] == 7


def test_values_that_no_calendar_and_no_stack_can_hold() -> None:
    deep = b""
    for _ in range(2000):
        deep = b"\x01aF" + struct.pack(">I", len(deep)) + deep
    found = read(b"\x01tT" + b"\xff" * 8 + b"\x01sS\0\0\0\x01\xff" + deep)
    assert (found["t"], found["s"]) == (2**64 - 1, b"\xff")
    depth = 0
    while isinstance(found, dict):
        found, depth = found.get("a"), depth + 1
    assert isinstance(found, bytes)
    assert depth < 50


def test_what_follows_an_unknown_type_is_left_out() -> None:
    assert read(b"\x01at\x01" + b"\x01b?xyz" + b"\x01ct\x01") == {"a": True}


def test_numbers_of_all_sizes() -> None:
    for letter, code, number in (
        *(("b", "b", -1), ("B", "B", 255), ("s", "h", -300), ("u", "H", 65535)),
        *(("I", "i", -70000), ("i", "I", 2**32 - 1), ("l", "q", -1), ("L", "q", 7)),
        *(("f", "f", 0.5), ("d", "d", 0.1)),
    ):
        assert read(b"\x01n" + letter.encode() + struct.pack(f">{code}", number)) == {"n": number}
    assert read(b"\x01nD\x02" + struct.pack(">i", -150)) == {"n": decimal.Decimal("-1.50")}


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 10_000])
def test_a_body_is_cut_into_frames(size: int) -> None:
    body = bytes(range(256)) * 40
    frames = wire.body_frames(2, body[:size], 4096)
    assert all(len(frame) <= 4096 for frame in frames)
    theirs = []
    for frame in frames:
        _, channel, part = pamqp.frame.unmarshal(frame)
        assert channel == 2
        assert isinstance(part, ContentBody)
        theirs.append(part.value)
    assert b"".join(theirs) == body[:size]


@pytest.mark.parametrize("end", [0, 8, 13])
def test_a_header_that_breaks_off_is_told(end: int) -> None:
    with pytest.raises(WireError, match="a header that breaks off"):
        wire.content_from(wire.content_header(1, 5, b"\0\0")[7:-1][:end])
