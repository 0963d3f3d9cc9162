"""The STOMP codec, byte by byte and whole; a connection to a server of few lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._stomp import Frame, Frames, StompConnection, StompError, encoded

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
NAMES = TEXTS.filter(lambda name: name and name != "content-length")
LARGEST = 10_000


def fed(data: bytes, step: int = 0) -> list[Frame]:
    frames = Frames(LARGEST)
    if not step:
        return frames.feed(data)
    pieces = (data[at : at + step] for at in range(0, len(data), step))
    return [frame for piece in pieces for frame in frames.feed(piece)]


@given(
    st.lists(
        st.tuples(st.dictionaries(NAMES, TEXTS, max_size=4), st.binary(max_size=40)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 7),
)
def test_frames_come_back_as_they_went(sent: list[tuple[dict[str, str], bytes]], step: int) -> None:
    data = b"\n".join(encoded("SEND", list(headers.items()), body) for headers, body in sent)
    got = fed(data, step)
    assert [frame.body for frame in got] == [body for _, body in sent]
    for frame, (headers, body) in zip(got, sent, strict=True):
        assert frame.command == "SEND"
        length = {"content-length": str(len(body))} if body else {}
        assert frame.headers == headers | length


@pytest.mark.parametrize(
    ("data", "command", "headers", "body"),
    [
        (b"RECEIPT\nreceipt-id:1\n\n\0", "RECEIPT", {"receipt-id": "1"}, b""),
        (b"\n\r\nERROR\r\nmessage:no\r\n\r\nwhy\0", "ERROR", {"message": "no"}, b"why"),
        (b"MESSAGE\na:1\na:2\n\n\0", "MESSAGE", {"a": "1"}, b""),  # the first one counts
        (b"MESSAGE\na:x\\cy\\n\\\\n\\r\n\n\0", "MESSAGE", {"a": "x:y\n\\n\r"}, b""),
        (b"CONNECTED\nserver:a\\b:c\n\n\0", "CONNECTED", {"server": "a\\b:c"}, b""),
        (b"MESSAGE\na:\n\n\0", "MESSAGE", {"a": ""}, b""),
    ],
)
@pytest.mark.parametrize("step", [0, 1, 3])
def test_what_servers_send(
    data: bytes, command: str, headers: dict[str, str], body: bytes, step: int
) -> None:
    (frame,) = fed(data, step)
    assert (frame.command, frame.headers, frame.body) == (command, headers, body)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"MESSAGE\nno colon\n\n\0", "without a colon"),
        (b"MESSAGE\na:\\t\n\n\0", "unknown escape"),
        (b"MESSAGE\na:\xff\n\n\0", "no UTF-8"),
        (b"MESSAGE\ncontent-length:x\n\n\0", "a body of 'x' bytes"),
        (b"MESSAGE\ncontent-length:10001\n\n", "a body of '10001' bytes"),
        (b"MESSAGE\ncontent-length:1\n\nab", "without its end"),
        (b"MESSAGE\n\n" + b"x" * (LARGEST + 1), "a body without an end"),
        (b"M" * (1 << 20) + b"M", "headers have no end"),
    ],
)
def test_what_is_no_stomp_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(StompError, match=text):
        fed(data)


@pytest.mark.parametrize("header", [("", "x"), ("a", "\0"), ("\0", "a")])
def test_what_no_frame_can_hold_is_refused(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="STOMP holds neither"):
        encoded("SEND", [header])


class Server:
    """Says what a test lets it say."""

    def __init__(self) -> None:
        self.got: list[Frame] = []
        self.news = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self.connected = b"CONNECTED\nversion:1.2\nserver:test/1\nheart-beat:0,0\n\n\0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        frames = Frames(LARGEST)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for frame in frames.feed(data):
                    self.got.append(frame)
                    if frame.command == "CONNECT":
                        writer.write(self.connected)
                self.news.set()
        writer.close()

    def say(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)

    async def heard(self, number: int) -> list[Frame]:
        async with asyncio.timeout(30):
            while len(self.got) < number:
                self.news.clear()
                await self.news.wait()
        return self.got[:number]


@contextlib.asynccontextmanager
async def connected(
    server: Server, arrived: list[Frame] | None = None, heartbeat_s: float = 0.0
) -> AsyncIterator[StompConnection]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    got = [] if arrived is None else arrived
    connection = await StompConnection.open("127.0.0.1", port, got.append, largest=LARGEST)
    try:
        await connection.connect([("login", "a:b\\c")], heartbeat_s)
        yield connection
    finally:
        connection.close()
        listening.close()


async def test_a_login_and_receipts_in_any_order() -> None:
    server, arrived = Server(), list[Frame]()
    async with connected(server, arrived) as connection:
        assert connection.server == "test/1"
        first = connection.ask("SEND", [("destination", "/queue/a")], b"1")
        second = connection.ask("SEND", [("destination", "/queue/a")], b"2")
        hello, one, two = await server.heard(3)
        assert hello.headers["login"] == "a:b\\c"  # CONNECT has no escapes
        assert (one.body, two.body) == (b"1", b"2")
        server.say(b"RECEIPT\nreceipt-id:2\n\n\0MESSAGE\nx:y\n\nbody\0RECEIPT\nreceipt-id:9\n\n\0")
        await second
        assert [frame.body for frame in arrived] == [b"body"]
        assert not first.done()


async def test_an_error_names_one_frame_and_ends_the_others() -> None:
    server = Server()
    async with connected(server) as connection:
        first = connection.ask("SEND", [], b"1")
        second = connection.ask("SEND", [], b"2")
        await server.heard(3)
        server.say(b"ERROR\nreceipt-id:2\nmessage:not for you\n\n\0")
        with pytest.raises(StompError, match="not for you") as refused:
            await second
        with pytest.raises(StompError, match="not for you") as others:
            await first
        assert (refused.value.refused, others.value.refused) == (True, False)
        assert (await connection.lost).refused
        with pytest.raises(StompError):
            await connection.ask("SEND", [])  # afterwards nothing is promised


@pytest.mark.parametrize("said", [b"MESSAGE\nno colon\n\n\0", b""])
async def test_rubbish_and_an_end_are_told_to_whoever_waits(said: bytes) -> None:
    server = Server()
    async with connected(server) as connection:
        waiting = connection.ask("COMMIT", [])
        await server.heard(2)
        server.say(said)
        if not said:
            assert server.writer is not None
            server.writer.close()
        with pytest.raises(StompError, match="without a colon" if said else "closed"):
            await waiting


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"ERROR\nmessage:who are you\n\n\0", "who are you"),
        (b"CONNECTED\nversion:1.1\n\n\0", "speaks STOMP 1.1"),
        (b"CONNECTED\n\n\0", "speaks STOMP 1.0"),
    ],
)
async def test_a_server_that_will_not_have_us_is_told_apart(answer: bytes, text: str) -> None:
    server = Server()
    server.connected = answer
    with pytest.raises(StompError, match=text) as told:
        async with connected(server):
            raise AssertionError("never connected")
    assert told.value.refused


async def test_heartbeats_are_sent_and_missed() -> None:
    server = Server()
    server.connected = b"CONNECTED\nversion:1.2\nheart-beat:20,20\n\n\0"
    async with connected(server, heartbeat_s=0.02) as connection:
        # The server, which says it beats, never does.
        assert "no sign of life" in str(await asyncio.wait_for(asyncio.shield(connection.lost), 30))


async def test_disconnect_waits_for_its_receipt() -> None:
    server = Server()
    async with connected(server) as connection:
        ending = asyncio.ensure_future(connection.disconnect())
        _, goodbye = await server.heard(2)
        assert goodbye.command == "DISCONNECT"
        assert not ending.done()
        server.say(f"RECEIPT\nreceipt-id:{goodbye.headers['receipt']}\n\n\0".encode())
        await ending
        assert connection.lost.done()
