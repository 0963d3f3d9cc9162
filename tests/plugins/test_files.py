"""Files that are watched: what counts as a change, when it is told, when it isn't."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins._files import FileWatch, Followed

from mqttd.testing import StandIn


class Told:
    def __init__(self, broker: StandIn, *paths: Path, interval_s: float = 2.0) -> None:
        self.times = 0
        self.error: Exception | None = None
        self.watch = FileWatch(broker, paths, interval_s, self._changed)

    async def _changed(self) -> None:
        self.times += 1
        if self.error is not None:
            raise self.error


async def test_a_change_is_told_once(tmp_path: Path) -> None:
    broker = StandIn()
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    told = Told(broker, one, two)
    await told.watch.start()
    await broker.advance(10)
    assert told.times == 0
    one.write_text("22")  # another size
    await broker.advance(10)
    assert told.times == 1
    os.utime(one, ns=(1, 1))  # another time
    await broker.advance(10)
    assert told.times == 2
    (tmp_path / "new").write_text("22")
    os.utime(tmp_path / "new", ns=(1, 1))
    os.replace(tmp_path / "new", one)  # another file of the same size and time
    await broker.advance(10)
    assert told.times == 3
    two.write_text("")  # it wasn't there
    await broker.advance(10)
    assert told.times == 4
    one.unlink()
    await broker.advance(10)
    assert told.times == 5
    told.watch.stop()


async def test_a_change_before_the_first_look_is_told(tmp_path: Path) -> None:
    """Between `start` and the reading that follows it."""
    broker = StandIn()
    file = tmp_path / "file"
    file.write_text("1")
    told = Told(broker, file)
    await told.watch.start()
    file.write_text("22")
    await broker.advance(2)
    assert told.times == 1
    told.watch.stop()


async def test_it_goes_on_after_an_error(tmp_path: Path) -> None:
    broker = StandIn()
    file = tmp_path / "file"
    told = Told(broker, file)
    await told.watch.start()
    told.error = ValueError("bad")
    file.write_text("1")
    with pytest.raises(ValueError, match="bad"):
        await broker.advance(2)
    told.error = None
    file.write_text("22")
    await broker.advance(2)
    assert told.times == 2
    told.watch.stop()


async def test_who_has_stopped_is_told_nothing(tmp_path: Path) -> None:
    broker = StandIn()
    file = tmp_path / "file"
    told, never = Told(broker, file), Told(broker, file, interval_s=0)
    await told.watch.start()
    await never.watch.start()
    told.watch.stop()
    file.write_text("1")
    await broker.advance(10)
    assert told.times == never.times == 0


class Slow(StandIn):
    """A stand-in whose threads answer when they are told to, once `held` is set."""

    held = False

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.waiting = asyncio.Event()

    async def run_blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        answer = await super().run_blocking(function, *arguments)
        if self.held and not isinstance(answer, list):  # what was read, not how files look
            self.waiting.set()
            await self.go.wait()
        return answer


async def test_what_files_amount_to_is_read_at_first_and_after_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker, file = StandIn(), tmp_path / "file"
    taken: list[int] = []
    followed: Followed[int] = Followed(broker, "numbers", taken.append)

    def read() -> int:
        return int(file.read_text())

    with pytest.raises(FileNotFoundError):
        await followed.follow([file], 2.0, read)
    file.write_text("1")
    await broker.advance(10)
    assert taken == []  # nobody follows what couldn't be read
    assert await followed.follow([file], 2.0, read) == 1
    file.write_text("22")
    await broker.advance(2)
    assert taken == [22]
    file.write_text("none")
    await broker.advance(2)
    file.unlink()
    await broker.advance(2)
    assert broker.counts == {"reload_failures": 2}
    assert caplog.text.count("the old numbers stay in force") == 2
    followed.stop()
    file.write_text("333")
    await broker.advance(10)
    assert taken == [22]


async def test_what_is_being_read_when_other_files_are_followed_is_not_taken(
    tmp_path: Path,
) -> None:
    """Or a reload would end with the content of the file that it has done away with."""
    broker, old, new = Slow(), tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    taken: list[str] = []
    followed: Followed[str] = Followed(broker, "texts", taken.append)
    await followed.follow([old], 2.0, old.read_text)
    old.write_text("changed")
    broker.held = True
    look = asyncio.ensure_future(broker.advance(2))
    await broker.waiting.wait()
    broker.held = False
    assert await followed.follow([new], 2.0, new.read_text) == "new"
    broker.go.set()
    await look
    assert taken == []


async def test_a_file_that_is_still_written_is_left_alone(tmp_path: Path) -> None:
    broker, file = StandIn(), tmp_path / "file"
    file.write_text("1")
    taken: list[str] = []
    followed: Followed[str] = Followed(broker, "texts", taken.append, settle_s=3.0)
    await followed.follow([file], 2.0, file.read_text)
    file.write_text("22")
    await broker.advance(3)
    file.write_text("333")
    await broker.advance(3.5)
    assert taken == []  # seen after 2 and again after 4, so it is read after 7
    await broker.advance(1)
    assert taken == ["333"]
    followed.stop()
