"""Files that are watched: what counts as a change, when it is told, when it isn't."""

import os
from pathlib import Path

import pytest
from mqttd_plugins._files import FileWatch

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
