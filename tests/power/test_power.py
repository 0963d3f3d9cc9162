"""The short form of `python -m tests.power`, and the recorder and its faults themselves."""

import asyncio
import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mqttd.core.packets import Disconnect, Filter, Puback, Publish, Pubrec, Suback, Subscribe
from mqttd.core.packets import Record as Packet
from mqttd.core.spec import UNSPECIFIED_ERROR
from tests.crash.wire import PATIENCE, Gone, Wire
from tests.power import shim
from tests.power.rebuild import Disk, decode
from tests.power.record import Placed, Recorded, Recording
from tests.power.resume import Aftermath
from tests.power.run import Campaign
from tests.power.shim import Shim

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())


def silent(_: str) -> None:
    """No progress."""


def disk_at(log: bytes, at: int | None = None) -> Disk:
    """Where the log leads, or its first `at` bytes."""
    disk = Disk()
    for record in decode(log[:at])[0]:
        disk.apply(record)
    return disk


async def started_after_cut(directory: Path, disk: Disk) -> Placed:
    """A broker on what a cut leaves that takes everything it can take."""
    directory.mkdir()
    broker = Placed(directory, "full")
    for name, content in disk.after_cut("dropped", "dropped").items():
        (broker.disk / name).write_bytes(content)
    await broker.start()
    return broker


async def test_nothing_acknowledged_is_lost() -> None:
    campaign = Campaign("full", silent, traffic=0.4, full_log=False)
    await campaign.record(4, 1)
    assert campaign.broken == []
    assert campaign.sums["promised_qos1"]
    assert campaign.sums["promised_qos2"]


async def test_what_isnt_synced_is_lost(tmp_path: Path) -> None:
    """The proof can fail: without syncs there is loss, and it is seen. The file can be opened."""
    recording = Recording(tmp_path, "os", 2, traffic=0.3)
    await recording.run()
    at = max(promise for promise in recording.promises() if promise <= recording.lives[0])
    (tmp_path / "cut").mkdir()
    files = disk_at(recording.log(), at).after_cut("dropped", "dropped")
    found = await Aftermath(tmp_path / "cut", "os", files, recording.traces, at, 1).run()
    assert found["session"]
    assert not found["refused"]
    assert not found["damaged"]


# The recorder.

WORK = """
import os, sqlite3, sys
os.chdir(sys.argv[1])
with open("a", "wb") as file:
    file.write(b"abc")
    file.flush()
    os.fsync(file.fileno())
    file.write(b"def" * 1000)
with open("a", "ab") as file:
    file.write(b"end")
copy = os.dup(os.open("a", os.O_RDWR))
os.pwrite(copy, b"xyz", 1)
os.writev(copy, [b"1", b"", b"23"])
os.pwritev(copy, [b"4", b"56"], 10)
os.ftruncate(copy, 2000)
os.posix_fallocate(copy, 1000, 1500)
os.truncate("a", 2400)
os.open("gone", os.O_CREAT)
os.remove("gone")
os.rename("a", "b")
os.replace("b", "c")
with open("c", "wb") as file:
    file.write(b"new")
with open("../outside", "wb") as file:
    file.write(b"elsewhere")
db = sqlite3.connect("db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE t (x)")
db.executemany("INSERT INTO t VALUES (?)", [(os.urandom(3000),) for _ in range(300)])
db.execute("PRAGMA wal_checkpoint")
db.execute("DELETE FROM t WHERE rowid % 3")
other = sqlite3.connect("rolled", isolation_level=None)
other.execute("CREATE TABLE t (x)")
other.execute("VACUUM")
os._exit(0)  # with everything open
"""


def work(shim: Shim, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **shim.environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    root = tmp_path / "disk"
    root.mkdir()
    return root


def test_everything_is_recorded(tmp_path: Path, watched: Path) -> None:
    shim = Shim(tmp_path, watched)
    work(shim, WORK, str(watched))
    log = shim.log.read_bytes()
    assert decode(log)[1][-1] == len(log)
    disk = disk_at(log)
    real = {file.name: file.read_bytes() for file in watched.iterdir()}
    del real["db-shm"]
    assert real.keys() == {"c", "db", "db-wal", "rolled"}
    assert disk.after_cut("kept") == real
    assert disk.after_cut("dropped", "kept")["c"] == b"abc"


# The faults.

TRY = """
import os, sys
os.chdir(sys.argv[1])
def attempt(name, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        print(name, error.errno)
fd = os.open("there", os.O_RDWR)
attempt("write", os.write, fd, b"x")
attempt("extend", os.ftruncate, fd, 1000)
attempt("shorten", os.ftruncate, fd, 1)
attempt("allocate", os.posix_fallocate, fd, 0, 100)
attempt("create", os.open, "new", os.O_CREAT | os.O_WRONLY)
attempt("sync", os.fsync, fd)
attempt("sync again", os.fdatasync, fd)
attempt("elsewhere", os.open, "../other", os.O_CREAT)
"""


@pytest.mark.parametrize(
    ("fault", "failures"),
    [
        ("", {}),
        ("enospc", dict.fromkeys(("write", "extend", "allocate", "create"), errno.ENOSPC)),
        ("eio_write", {"write": errno.EIO}),
        ("eio_fsync", {"sync": errno.EIO}),
    ],
)
def test_faults(fault: str, failures: dict[str, int], tmp_path: Path, watched: Path) -> None:
    shim = Shim(tmp_path, watched)
    (watched / "there").write_bytes(b"kept")
    if fault:
        shim.faults.set(fault)
    lines = work(shim, TRY, str(watched)).splitlines()
    assert dict(line.rsplit(" ", 1) for line in lines) == {k: str(v) for k, v in failures.items()}
    assert shim.faults.get("eio_fsync") == 0  # it was for one
    shim.faults.clear()
    assert work(shim, TRY, str(watched)) == ""


async def test_a_fault_comes_and_goes_while_a_process_runs(tmp_path: Path, watched: Path) -> None:
    shim = Shim(tmp_path, watched)
    script = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
for line in sys.stdin:
    try:
        print(os.write(fd, line.encode()), flush=True)
    except OSError as error:
        print(os.strerror(error.errno), flush=True)
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(watched / "a")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **shim.environment},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers: list[bytes] = []
    for fault in ("", "enospc", ""):
        shim.faults.clear()
        if fault:
            shim.faults.set(fault)
        process.stdin.write(b"12345\n")
        answers.append(await process.stdout.readline())
    process.stdin.close()
    await process.wait()
    assert answers == [b"6\n", os.strerror(errno.ENOSPC).encode() + b"\n", b"6\n"]


# The broker on a disk that fails.


async def acknowledged(wire: Wire, topic: str, payload: bytes, packet_id: int) -> None:
    wire.send(Publish(topic, payload, 1, False, False, packet_id))
    answer = await wire.receive()
    assert isinstance(answer, Puback)
    assert answer.packet_id == packet_id


async def rest(wire: Wire) -> list[Packet]:
    """Everything until the broker hangs up."""
    packets: list[Packet] = []
    with contextlib.suppress(Gone):
        async with asyncio.timeout(PATIENCE):
            while True:
                packets.append(await wire.receive())
    wire.close()
    return packets


@pytest.mark.parametrize("left", ["as it is", "after a cut"])
async def test_a_sync_that_fails_ends_the_broker(left: str, tmp_path: Path) -> None:
    """No acknowledgement after it; the reason is told; what was acknowledged before is there."""
    broker = Recorded(tmp_path, "full")
    try:
        await broker.start()
        keeper, _ = await Wire.connect(broker.port, "keeper")
        keeper.send(Subscribe(1, [Filter("t", 1)]))
        assert isinstance(await keeper.receive(), Suback)
        keeper.close()
        wire, _ = await Wire.connect(broker.port, "c", clean=True, expiry=0)
        for number in range(1, 21):
            await acknowledged(wire, "t", b"%d" % number, number)
        broker.shim.faults.set("eio_fsync")
        wire.send(Publish("t", b"21", 1, False, False, 21))
        for packet in await rest(wire):
            # It may say that it failed, but not that it is done.
            assert isinstance(packet, Disconnect | Puback), packet
            assert packet.reason >= UNSPECIFIED_ERROR
        assert await broker.ended() == 1
        assert broker.shim.faults.get("eio_fsync") == 0
        told = [json.loads(line) for line in broker.complaints()]
        assert any("input/output error" in line["event"] for line in told)
    finally:
        await broker.discard()
    after: Placed = broker
    try:
        if left == "after a cut":
            disk = disk_at(broker.shim.log.read_bytes())
            after = await started_after_cut(tmp_path / "cut", disk)
        else:
            await after.start()
        wire, present = await Wire.connect(after.port, "keeper")
        assert present
        numbers: list[int] = []
        async with asyncio.timeout(PATIENCE):
            while numbers[-1:] != [20]:
                packet = await wire.receive()
                assert isinstance(packet, Publish)
                numbers.append(int(packet.payload))
                wire.send(Puback(packet.packet_id))
        assert numbers == list(range(1, 21))
        wire.close()
        assert await after.stop() == 0
    finally:
        await after.discard()


async def test_what_a_killed_broker_had_not_synced(tmp_path: Path) -> None:
    """Written, but killed before the sync: the next broker finds it, and may acknowledge it only
    when it is sure that it stays, since the power may go as well."""
    broker = Recorded(tmp_path, "full")
    publish = Publish("t", b"1", 2, False, False, 9)
    try:
        await broker.start()
        keeper, _ = await Wire.connect(broker.port, "keeper")
        keeper.send(Subscribe(1, [Filter("t", 2)]))
        assert isinstance(await keeper.receive(), Suback)
        wire, _ = await Wire.connect(broker.port, "c")
        wire.send(Subscribe(1, [Filter("none", 0)]))
        assert isinstance(await wire.receive(), Suback)  # so that its session is durable
        before = broker.logged()
        broker.shim.faults.set("fsync_delay", 60_000)
        wire.send(publish)
        async with asyncio.timeout(PATIENCE):
            while broker.logged() < before + 4096:
                await asyncio.sleep(0.01)
        await broker.kill()
        keeper.close()
        wire.close()
        broker.mend()
        broker.shim.faults.clear()
        await broker.start()
        wire, present = await Wire.connect(broker.port, "c")
        assert present
        publish.dup = True
        wire.send(publish)
        assert isinstance(await wire.receive(), Pubrec)
        at = broker.logged()
        wire.close()
        await broker.kill()
    finally:
        await broker.discard()
    disk = disk_at(broker.shim.log.read_bytes(), at)
    after = await started_after_cut(tmp_path / "cut", disk)
    try:
        keeper, present = await Wire.connect(after.port, "keeper")
        assert present
        async with asyncio.timeout(PATIENCE):
            packet = await keeper.receive()
        assert isinstance(packet, Publish)
        assert packet.payload == b"1"
        keeper.close()
        assert await after.stop() == 0
    finally:
        await after.discard()
