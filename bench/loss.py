"""`python -m bench.loss`: acknowledged messages that brokers lose, or double, when they are killed.

Owns: the command line, the runs and their verdict. In a run one broker is killed with SIGKILL and
started again, so many times, at instants drawn from the seed, while publishers write at QoS 1 and 2
to persistent subscribers, half of which stay connected and half come and go. In the end all stay
until everything has come, or nothing comes any more. The clients are in `bench.promises`.

What a killed process leaves is in the hands of the operating system: this shows what a broker
remembers, not what a power cut would spare.
"""

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from bench import build, keeping, macro, peers, report
from bench.promises import Client, Publisher, Stage, Subscriber, doubled, lost

EXAMPLES = """examples:
  python -m bench.loss
  python -m bench.loss --kills 100 --rounds 3 --json loss.json
  python -m bench.loss --peers mqttd-full,mqttd-none,mosquitto --seed 7
"""
PEERS = "mqttd-full,mqttd-os,mosquitto-each,amqtt"
KEEPS = ("mqttd-full", "mqttd-os")  # these promise to survive a kill
PATIENCE = 30.0
PUBLISHERS = 3
SUBSCRIBERS = 2  # of each kind
Counts = dict[str, int]

COLUMNS = {
    "kills": "kills",
    "acknowledged_1": "acked QoS 1",
    "lost_1_online": "lost: online",
    "lost_1_offline": "offline",
    "acknowledged_2": "acked QoS 2",
    "lost_2_online": "lost: online",
    "lost_2_offline": "offline",
    "doubled_2": "doubled QoS 2",
    "doubled_1": "(QoS 1)",
    "sessions_lost": "sessions lost",
}
FAULTS = tuple(name for name in COLUMNS if name.startswith(("lost", "doubled_2", "sessions")))


class Run:
    """One broker, one seed."""

    def __init__(self, broker: keeping.Broker, seed: int, kills: int, quiet: float) -> None:
        self.broker = broker
        self.chance = random.Random(seed)
        self.kills = kills
        self.quiet = quiet  # seconds without news after which the rest counts as lost
        self.stage = Stage(broker.port)
        self.publishers = [
            Publisher(f"p{n}", self.stage, self._chance()) for n in range(PUBLISHERS)
        ]
        self.online = [self._subscriber(f"on{n}", False) for n in range(SUBSCRIBERS)]
        self.offline = [self._subscriber(f"off{n}", True) for n in range(SUBSCRIBERS)]
        self.tasks: list[asyncio.Task[None]] = []

    def _chance(self) -> random.Random:
        return random.Random(self.chance.random())

    def _subscriber(self, name: str, roams: bool) -> Subscriber:
        return Subscriber(name, self.stage, self._chance(), roams)

    @property
    def subscribers(self) -> list[Subscriber]:
        return self.online + self.offline

    async def run(self) -> Counts:
        try:
            await self._start()
            await self._begin(self.subscribers)  # nobody publishes before all are there
            await self._begin(self.publishers)
            for _ in range(self.kills):
                await self._work()
                self.stage.up.clear()
                self.broker.kill()
                await self._start()
            await self._settle()
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        return self._counts()

    async def _start(self) -> None:
        self.broker.launch()
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while not self.broker.is_open():
            if loop.time() > until:
                raise peers.PeerError(f"not up after {PATIENCE:.0f} s: {self.broker.tail()}")
            await asyncio.sleep(0.01)
        self.stage.acknowledged = 0
        self.stage.up.set()

    async def _begin(self, clients: list[Subscriber] | list[Publisher]) -> None:
        some: list[Client] = [*clients]
        self.tasks += [asyncio.create_task(client.run()) for client in some]
        try:
            async with asyncio.timeout(PATIENCE):
                for client in some:
                    await client.ready.wait()
        except TimeoutError:
            raise peers.PeerError("a client wasn't let in") from None

    async def _work(self) -> None:
        """Until some instant after something was acknowledged again."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while not self.stage.acknowledged:
            if loop.time() > until:
                raise peers.PeerError("acknowledges nothing any more")
            await asyncio.sleep(0.005)
        await asyncio.sleep(self.chance.random() * 0.5)
        for task in self.tasks:
            if task.done():
                task.result()

    async def _settle(self) -> None:
        for subscriber in self.subscribers:
            subscriber.stays = True
        for publisher in self.publishers:
            publisher.quiet = True
        loop = asyncio.get_running_loop()
        since, before = loop.time(), (-1, -1)
        while loop.time() - since < self.quiet:
            now = self._handed(), sum(p.finished for p in self.publishers)
            if now != before:
                since, before = loop.time(), now
            if now[1] == PUBLISHERS and not self._missing():
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # for what would come twice

    def _handed(self) -> int:
        return sum(len(numbers) for s in self.subscribers for numbers in s.handed.values())

    def _missing(self) -> int:
        return sum(lost(self.publishers, self.subscribers, qos) for qos in (1, 2))

    def _counts(self) -> Counts:
        counts = {"kills": self.kills, "sessions_lost": self.stage.sessions_lost}
        for qos in (1, 2):
            counts[f"acknowledged_{qos}"] = sum(len(p.acknowledged[qos]) for p in self.publishers)
            counts[f"lost_{qos}_online"] = lost(self.publishers, self.online, qos)
            counts[f"lost_{qos}_offline"] = lost(self.publishers, self.offline, qos)
            counts[f"doubled_{qos}"] = doubled(self.publishers, self.subscribers, qos)
        return counts


def measure(peer: peers.Peer, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The counts of one run, or why there are none."""
    cpus = set.union(*macro.cores())
    try:
        with keeping.broker(peer, cpus, None, options.dir) as broker:
            return {"counts": asyncio.run(Run(broker, seed, options.kills, options.quiet).run())}
    except peers.PeerError as error:
        return {"error": str(error)}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a broker: sums over its runs."""
    rows = []
    for name in dict.fromkeys(run["peer"] for run in runs):
        mine = [run for run in runs if run["peer"] == name]
        counts: Counts = {}
        for run in mine:
            for key, number in run.get("counts", {}).items():
                counts[key] = counts.get(key, 0) + number
        errors = [run["error"] for run in mine if "error" in run]
        rows.append({"peer": name, "counts": counts, "errors": errors})
    return rows


def broken(row: dict[str, Any]) -> bool:
    """Whether a broker that promises to survive a kill didn't."""
    if row["peer"].partition("@")[0] not in KEEPS:
        return False
    return bool(row["errors"]) or any(row["counts"][name] for name in FAULTS)


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        cells = [f"{row['counts'][name]:,}" if row["counts"] else "-" for name in COLUMNS]
        note = f"{len(row['errors'])} runs failed: {row['errors'][0]}" if row["errors"] else ""
        lines.append([row["peer"], *cells, "BAD " + note if broken(row) else note])
    return report.plain(["broker", *COLUMNS.values(), "notes"], lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m bench.loss",
        description="Acknowledged messages that brokers lose or double when they are killed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--peers", default=PEERS, help=f"of {', '.join(keeping.KNOWN)}, NAME@DIR")
    p.add_argument("--kills", type=int, default=20, help="of each broker in a round")
    p.add_argument("--rounds", type=int, default=1, help="each with fresh brokers, the next seed")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--quiet", type=float, default=5.0, help="seconds of silence to give up")
    p.add_argument("--dir", help="where the brokers' files go (default: the usual place)")
    p.add_argument("--package", type=Path, help="measure the mqttd in this directory")
    p.add_argument("--json", type=Path, help="write every run and the sums")
    return p


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.kills < 0 or options.rounds < 1:
        print("--kills is at least 0, --rounds at least 1", file=sys.stderr)
        return 2

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        found = [keeping.find(name, options.package, note) for name in options.peers.split(",")]
    except (peers.PeerError, build.BuildError) as error:
        note(str(error))
        return 2
    runs = []
    with macro.progress_bar(options.rounds * len(found)) as progress:
        for number in range(options.rounds):
            for peer in found:
                seed = options.seed + number
                progress.step(f"seed {seed}, {options.kills} kills, {peer.name}")
                runs.append({"peer": peer.name, "seed": seed, **measure(peer, seed, options)})
    rows = summarise(runs)
    versions = {peer.name: peer.version for peer in found}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(table(rows))
    if options.json:
        meta = {"peers": versions, "seed": options.seed, "rounds": options.rounds}
        result = {"meta": meta, "summary": rows, "runs": runs}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(broken(row) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
