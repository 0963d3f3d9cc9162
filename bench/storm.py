"""A connect storm: a thousand clients come back at once, and others are talking meanwhile.

    python -m bench.storm                                   # argon2id, 1,000 clients, both settings
    python -m bench.storm --clients 200 --hash none --json storm.json

Owns: one broker with `password_file`; flows, which are pairs of clients that send at a fixed pace
and time each message from the instant it was due; and the storm, in a process of its own, whose
clients all connect at the same instant, each with a user name and password of its own. Who is
refused as *server busy*, or is cut off, tries again as devices do: after about a second, then two,
four, up to half a minute.

Two settings of the broker: `default`, where most are sent away and come again, and `patient`, where
all wait in line until it is their turn. The same flows without a storm come first, for comparison.

Figures: milliseconds from due to received (the generator's own delays included, so they are upper
bounds), seconds until the last client was in, refusals, and how many cores the broker took.
Exit 1 when a message was lost, a client didn't get in, or the storm's p99 is above `--limit`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bench import build, peers, report
from mqttd.core.encode import encode_packet
from mqttd.core.packets import Connect, Filter, Publish, Subscribe
from mqttd.core.properties import Properties

LOCAL: Final = "127.0.0.1"
PASSWORD: Final = "a password like any other"
SETTINGS: Final = ("default", "patient")
HASHES: Final = ("argon2id", "sha512-pbkdf2", "none")
_PATIENCE_S: Final = 300
_FIRST_DELAY_S: Final = 1.0
_LONGEST_DELAY_S: Final = 30.0
_ACCEPTED: Final = 0
_STAMP: Final = struct.Struct("!d")


def connect_packet(client_id: str, user: str | None) -> bytes:
    secret = None if user is None else PASSWORD.encode()
    packet = Connect("MQTT", 4, True, 0, client_id, None, user, secret, Properties())
    return encode_packet(packet, 4)


async def log_in(port: int, name: str, user: str | None) -> Any:
    """A pair of streams of a client that was accepted; ConnectionError with the code if not."""
    reader, writer = await asyncio.open_connection(LOCAL, port)
    try:
        writer.write(connect_packet(name, user))
        code = (await reader.readexactly(4))[3]
        if code != _ACCEPTED:
            raise ConnectionRefusedError(code, f"code {code}")
    except BaseException:
        writer.close()
        raise
    return reader, writer


# The flows.


@dataclass
class Flows:
    """Pairs that talk. `seen` has (due, seconds until it was received) of every message."""

    port: int
    pairs: int
    rate: float
    users: bool
    seen: list[tuple[float, float]] = field(default_factory=list)
    sent: int = 0
    _writers: list[Any] = field(default_factory=list)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        for number in range(self.pairs):
            topic = f"flow/{number}"
            user = f"flow{number}" if self.users else None
            reader, writer = await log_in(self.port, f"subscriber{number}", user)
            writer.write(encode_packet(Subscribe(1, [Filter(topic, 0, False, False, 0)]), 4))
            await reader.readexactly(5)
            size = len(self._packet(topic, 0.0))
            self._readers.append(asyncio.create_task(self._listen(reader, size)))
            _, publisher = await log_in(self.port, f"publisher{number}", user)
            self._writers += [publisher, writer]

    async def talk(self, seconds: float, until: asyncio.Event | None = None) -> None:
        """Send at the pace until the seconds are over, and `until` is set."""
        begin = due = time.perf_counter()
        publishers = self._writers[::2]
        step = 1.0 / (self.rate * self.pairs)
        number = 0
        while due - begin < seconds or (until is not None and not until.is_set()):
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            pair = number % self.pairs
            publishers[pair].write(self._packet(f"flow/{pair}", due))
            self.sent += 1
            number += 1
            due += step
        for _ in range(500):
            if len(self.seen) == self.sent:
                return
            await asyncio.sleep(0.01)

    async def _listen(self, reader: asyncio.StreamReader, size: int) -> None:
        while True:
            data = await reader.readexactly(size)
            now = time.perf_counter()
            due: float = _STAMP.unpack_from(data, size - _STAMP.size)[0]
            self.seen.append((due, now - due))

    @staticmethod
    def _packet(topic: str, due: float) -> bytes:
        return encode_packet(Publish(topic, _STAMP.pack(due)), 4)

    async def stop(self) -> None:
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for writer in self._writers:
            writer.close()


def figures_of(latencies: Sequence[float]) -> dict[str, float]:
    """Count, and p50, p99 and the most in milliseconds."""
    if not latencies:
        return {"messages": 0, "p50_ms": math.nan, "p99_ms": math.nan, "max_ms": math.nan}
    found = sorted(latencies)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    ranks = {name: found[max(0, math.ceil(share * len(found)) - 1)] for name, share in at.items()}
    return {
        "messages": len(found),
        **{name: round(value * 1000, 2) for name, value in ranks.items()},
    }


# The storm.


async def storm(port: int, clients: int, users: bool, seconds: float) -> dict[str, Any]:
    """All connect at once and try again until they are in."""
    chance = random.Random(1)
    refusals: Counter[str] = Counter()
    begin = time.perf_counter()
    done_after: list[float] = []
    kept = []

    async def arrive(number: int) -> None:
        delay = _FIRST_DELAY_S
        while time.perf_counter() - begin < seconds:
            try:
                user = f"user{number}" if users else None
                kept.append(await log_in(port, f"client{number}", user))
            except ConnectionRefusedError as error:
                refusals[f"code {error.errno}"] += 1
            except (OSError, asyncio.IncompleteReadError):
                refusals["cut off"] += 1
            else:
                done_after.append(time.perf_counter() - begin)
                return
            await asyncio.sleep(delay * chance.uniform(0.5, 1.5))
            delay = min(2 * delay, _LONGEST_DELAY_S)

    await asyncio.gather(*map(arrive, range(clients)))
    for _, writer in kept:
        writer.close()
    return {
        "clients": clients,
        "in": len(done_after),
        "seconds": round(max(done_after, default=0.0), 2),
        "refusals": dict(refusals),
    }


# Broker and storm as processes.


def peer_of(package: Path, options: argparse.Namespace, setting: str) -> peers.Peer:
    users = options.hash != "none"
    path = [str(package), str(build.ROOT / "plugins")]  # the second for a tree that isn't installed
    env = {"PYTHONPATH": os.pathsep.join(path)}
    plugins: list[dict[str, object]] = []
    files: dict[str, str] = {}
    tree: dict[str, object] = {
        "listeners": [
            {"name": "bench", "bind": LOCAL + ":{port}", "allow_anonymous": not users},
        ],
        "storage": {"path": ":memory:"},
        "logging": {"level": "warning"},
    }
    if users:
        config: dict[str, object] = {"file": "passwd", "poll": 0}
        entry: dict[str, object] = {"use": "password_file", "config": config}
        if options.parallel:
            config["parallel"] = options.parallel
        if setting == "patient":
            config["patience"] = _PATIENCE_S
            entry["timeout"] = _PATIENCE_S + 10
            tree["limits"] = {"connect_timeout": _PATIENCE_S + 20}
        plugins.append(entry)
        # One hash for all: what it costs to check it is the same for each user.
        text = hash_of(options.hash, env)
        names = [f"user{n}" for n in range(options.clients)]
        names += [f"flow{n}" for n in range(options.pairs)]
        files["passwd"] = "".join(f"{name}:{text}\n" for name in names)
    tree["plugins"] = plugins
    files["mqttd.yaml"] = json.dumps(tree)  # JSON is YAML
    peer = peers.mqttd(lambda text: print(text, file=sys.stderr), package)
    return replace(peer, files=files, env=env)


def hash_of(kind: str, env: dict[str, str]) -> str:
    """What `mqttd passwd` writes down for the password."""
    command = [sys.executable, "-m", "mqttd", "passwd", "-H", kind, "-c", "-b"]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "passwd")
        done = subprocess.run(
            [*command, str(file), "user", PASSWORD],
            env={**os.environ, **env},
            cwd=directory,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise peers.PeerError(f"mqttd passwd: {done.stderr.strip()}")
        return file.read_text().strip().partition(":")[2]


async def measure(address: peers.Address, options: argparse.Namespace) -> dict[str, Any]:
    """The flows alone, and again while the storm lasts."""
    users = options.hash != "none"
    flows = Flows(address.port, options.pairs, options.rate, users)
    await flows.start()
    await flows.talk(options.seconds)
    quiet = figures_of([latency for _, latency in flows.seen])
    before = len(flows.seen)
    over = asyncio.Event()
    command = ["-m", "bench.storm", "--storm", str(address.port), "--clients", str(options.clients)]
    command += ["--hash", options.hash]
    began, cpu = time.perf_counter(), cpu_seconds(address.pid)
    # The suite keeps the working directory off the path: `bench` is found behind what is measured.
    path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(build.ROOT)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=asyncio.subprocess.PIPE,
    )
    talking = asyncio.create_task(flows.talk(0.0, over))
    out, _ = await process.communicate()
    busy = (cpu_seconds(address.pid) - cpu) / (time.perf_counter() - began)
    over.set()
    await talking
    await flows.stop()
    if process.returncode:
        raise peers.PeerError(f"the storm ended with {process.returncode}")
    return {
        "quiet": quiet,
        "storm": figures_of([latency for _, latency in flows.seen[before:]]),
        "lost": flows.sent - len(flows.seen),
        "logins": json.loads(out),
        "cores": round(busy, 2),
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# What is told.


def is_bad(run: dict[str, Any], limit_ms: float) -> bool:
    logins = run["logins"]
    late = not run["storm"]["p99_ms"] <= limit_ms
    return bool(run["lost"]) or logins["in"] < logins["clients"] or late


def table(runs: list[dict[str, Any]], limit_ms: float) -> str:
    columns = ["setting", "flows", "messages", "p50 ms", "p99 ms", "max ms", "notes"]
    lines = []
    for run in runs:
        logins = run["logins"]
        refused = ", ".join(f"{n} with {why}" for why, n in sorted(logins["refusals"].items()))
        told = (
            f"{logins['in']} of {logins['clients']} in after {logins['seconds']} s; refused: "
            f"{refused or 'nobody'}; broker: {run['cores']} cores"
        )
        if run["lost"]:
            told += f"; {run['lost']} lost"
        if is_bad(run, limit_ms):
            told = "BAD " + told
        for phase, note in (("quiet", ""), ("storm", told)):
            figures = [run[phase][key] for key in ("messages", "p50_ms", "p99_ms", "max_ms")]
            lines.append([run["setting"], phase, *map(str, figures), note])
    return report.plain(columns, lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m bench.storm",
        description="Latency of running flows while many clients log in at once.",
    )
    p.add_argument("--clients", type=int, default=1000, help="that come at once")
    p.add_argument("--pairs", type=int, default=10, help="flows that run meanwhile")
    p.add_argument("--rate", type=float, default=50.0, help="messages a second of each flow")
    p.add_argument("--seconds", type=float, default=5.0, help="of the flows before the storm")
    p.add_argument("--hash", choices=HASHES, default=HASHES[0], help="none: no passwords")
    p.add_argument("--parallel", type=int, help="hashes at a time (default: the plugin's own)")
    p.add_argument("--settings", default=",".join(SETTINGS), help="default, patient or both")
    p.add_argument("--limit", type=float, default=50.0, help="milliseconds that p99 may have")
    p.add_argument("--package", type=Path, help="measure the mqttd in this directory")
    p.add_argument("--json", type=Path, help="write every figure; - prints them")
    p.add_argument("--storm", type=int, metavar="PORT", help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    users = options.hash != "none"
    if options.storm:
        print(json.dumps(asyncio.run(storm(options.storm, options.clients, users, _PATIENCE_S))))
        return 0
    settings = options.settings.split(",")
    if not set(settings) <= set(SETTINGS) or min(options.clients, options.pairs) < 1:
        print("--settings are default and patient; at least one client and pair", file=sys.stderr)
        return 2

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    runs = []
    try:
        package = options.package.resolve() if options.package else build.mqttd(note)
        for setting in settings:
            peer = peer_of(package, options, setting)
            with peers.running(peer, os.sched_getaffinity(0)) as address:
                runs.append({"setting": setting, **asyncio.run(measure(address, options))})
    except (peers.PeerError, build.BuildError) as error:
        note(str(error))
        return 2
    result = {"version": peer.version, "hash": options.hash, "runs": runs}
    if str(options.json) == "-":
        print(json.dumps(result, indent=1))
    else:
        print(f"mqttd {peer.version}, {options.hash}")
        print(table(runs, options.limit))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(is_bad(run, options.limit) for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
