"""The socket of the operator: who may speak, what a bad request costs, how answers travel."""

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mqttd.net import lines
from mqttd.net.lines import ASKED_BY, LineServer, ListenError, Refused
from tests.net.kit import PATIENCE, until

Portion = list[dict[str, object]]


async def echo(request: Mapping[str, Any]) -> AsyncIterator[Portion]:
    """Answers with what it was asked, or fails as asked."""
    if request.get("fail") == "refused":
        raise Refused("no\nsuch thing")
    if request.get("fail") == "bug":
        raise RuntimeError("secret detail")
    for number in range(int(request.get("portions", 0))):
        yield [{"item": number}]
    told = {key: value for key, value in request.items() if key != ASKED_BY}
    yield [{"end": request[ASKED_BY] if request.get("who") else told}]


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[LineServer]:
    server = LineServer(path, echo)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Asker:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, path: Path) -> "Asker":
        return cls(*await asyncio.open_unix_connection(str(path)))

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def line(self) -> Any:
        """The next line of an answer; None at its end."""
        async with asyncio.timeout(PATIENCE):
            try:
                text = await self.reader.readline()
            except ConnectionError:
                return None
        return json.loads(text) if text else None

    async def ask(self, **request: object) -> list[Any]:
        self.send(json.dumps(request).encode() + b"\n")
        found = [await self.line()]
        while "item" in found[-1]:
            found.append(await self.line())
        return found

    def close(self) -> None:
        self.writer.close()


async def test_several_requests_on_one_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "new" / "m.ctl") as server:
        asker = await Asker.open(server.path)
        assert await asker.ask(a=1) == [{"end": {"a": 1}}]
        assert await asker.ask(portions=2) == [{"item": 0}, {"item": 1}, {"end": {"portions": 2}}]
        asker.close()
    assert not server.path.exists()


async def test_only_the_owner_can_open_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "m.ctl") as server:
        assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600


async def test_the_kernel_is_asked_who_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the permissions of the file have become."""
    async with serving(tmp_path / "m.ctl") as server:
        for uid, served in ((os.geteuid(), True), (0, True), (os.geteuid() + 1, False)):
            monkeypatch.setattr(lines, "peer_uid", lambda sock, uid=uid: uid)
            asker = await Asker.open(server.path)
            with contextlib.suppress(ConnectionError):
                asker.send(b"{}\n")
            assert (await asker.line() is not None) is served
            asker.close()
        monkeypatch.setattr(lines, "peer_uid", lambda sock: -1)
        asker = await Asker.open(server.path)
        assert await asker.line() is None
        asker.close()


def test_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert lines.peer_uid(one) == os.geteuid()
    with socket.socket() as tcp:
        assert lines.peer_uid(tcp) in (-1, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"nonsense\n", "not a line of JSON"),
        (b"[1]\n", "not a JSON object"),
        (b"\xff\n", "not a line of JSON"),
        (b"[" * 60000 + b"\n", "not a line of JSON"),
        (b"x" * (lines.MAX_REQUEST + 10), "at most 65536 bytes"),
    ],
)
async def test_a_bad_request_costs_its_sender_alone(raw: bytes, told: str, tmp_path: Path) -> None:
    async with serving(tmp_path / "m.ctl") as server:
        good, bad = await Asker.open(server.path), await Asker.open(server.path)
        bad.send(raw)
        assert told in (await bad.line())["error"]
        assert await good.ask(a=1) == [{"end": {"a": 1}}]
        for asker in (good, bad):
            asker.close()


async def test_a_refusal_and_a_bug_are_told_and_the_connection_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "m.ctl") as server:
        asker = await Asker.open(server.path)
        assert await asker.ask(fail="refused") == [{"error": "no\nsuch thing"}]
        assert await asker.ask(fail="bug") == [{"error": "internal error, see the log"}]
        assert "secret detail" in caplog.text
        assert await asker.ask(a=1) == [{"end": {"a": 1}}]
        asker.close()


async def test_a_request_that_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path / "m.ctl") as server:
        asker = await Asker.open(server.path)
        asker.send(b'{"a"')
        asker.close()
        await until(lambda: not server._serving)


async def test_there_is_a_limit_on_connections(tmp_path: Path) -> None:
    async with serving(tmp_path / "m.ctl") as server:
        askers = [await Asker.open(server.path) for _ in range(lines.MAX_CONNECTIONS)]
        for asker in askers:
            assert await asker.ask() == [{"end": {}}]
        one_more = await Asker.open(server.path)
        assert await one_more.line() is None
        askers.pop().close()
        await until(lambda: len(server._serving) < lines.MAX_CONNECTIONS)
        again = await Asker.open(server.path)
        assert await again.ask() == [{"end": {}}]
        for asker in (*askers, one_more, again):
            asker.close()


async def test_who_does_not_read_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "TAKEN_S", 0.05)
    async with serving(tmp_path / "m.ctl") as server:
        asker = await Asker.open(server.path)
        asker.send(b'{"portions": 1000000000}\n')
        await until(lambda: server._serving)
        await until(lambda: not server._serving)
        asker.close()


async def test_a_dead_socket_is_replaced_and_a_live_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.ctl"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path) as first:
        second = LineServer(path, echo)
        with pytest.raises(ListenError, match="another process listens there"):
            await second.start()
        await second.stop()
        asker = await Asker.open(first.path)  # still the first one's
        assert await asker.ask(a=1) == [{"end": {"a": 1}}]
        asker.close()


async def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.ctl"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        await LineServer(path, echo).start()
    assert path.read_text() == "precious"


async def test_stop_ends_what_is_under_way(tmp_path: Path) -> None:
    server = LineServer(tmp_path / "m.ctl", echo)
    await server.start()
    asker = await Asker.open(server.path)
    assert await asker.ask() == [{"end": {}}]
    await server.stop()
    assert await asker.line() is None
    assert not server._serving
    asker.close()


async def test_the_answer_is_told_who_asks_whatever_the_request_claims(tmp_path: Path) -> None:
    async with serving(tmp_path / "m.ctl") as server:
        asker = await Asker.open(server.path)
        for claim in (b"", b', "asked_by": 12345'):
            asker.send(b'{"who": true' + claim + b"}\n")
            assert await asker.line() == {"end": os.geteuid()}
        asker.writer.close()
