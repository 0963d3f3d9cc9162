"""`python -m bench.macro`: whole brokers side by side, one run, one machine.

Owns the order of things: every round goes through the cases, and each case through the peers, so
that neighbours in time are what gets compared. A peer is started anew for each measurement, alone,
on a CPU core of its own; the generator is a process on another core (this one sleeps meanwhile).
What a run does is in `bench.scenarios`, what it means in `bench.report`.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from bench import build, peers, report
from bench.cases import FULL, QUICK, Case, extras, select

OURS = "mqttd"
WANTED_FILES = 65536


class Progress(Protocol):
    def note(self, text: str) -> None: ...
    def step(self, text: str) -> None: ...


class PlainProgress:
    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        self.count += 1
        self.note(f"[{self.count}/{self.total}] {text}")


class RichProgress:
    def __init__(self, bar: Any, total: int) -> None:
        self.bar = bar
        self.task = bar.add_task("", total=total)
        self.started = False

    def note(self, text: str) -> None:
        self.bar.console.print(text, style="dim", markup=False, highlight=False)

    def step(self, text: str) -> None:
        # A step is announced when it begins: what is done is the one before.
        self.bar.update(self.task, description=text, advance=1 if self.started else 0)
        self.started = True


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Progress]:
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich import progress
            from rich.console import Console

            # Refreshed seldom: the bar shares a core with the generator.
            with progress.Progress(
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}"),
                console=Console(stderr=True),
                refresh_per_second=1,
                transient=True,
            ) as bar:
                yield RichProgress(bar, total)
            return
    yield PlainProgress(total)


def cores() -> tuple[set[int], set[int]]:
    """(broker's, generator's): the last and the first that we may use."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[-1]}, {usable[0]}


def raise_file_limit() -> None:
    """5,000 connections need as many descriptors, here and in the broker, which inherits this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= WANTED_FILES:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (WANTED_FILES, max(hard, WANTED_FILES)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Generator:
    """Starts one generator process a measurement."""

    def __init__(self, path: Path, cpus: set[int], module: str = "bench.scenarios") -> None:
        self.env = {**os.environ, "PYTHONPATH": str(path), "PYTHONHASHSEED": "0"}
        self.cpus = cpus
        self.program = f"from {module} import main; main()"

    def run(self, spec: dict[str, Any], timeout: float) -> dict[str, Any]:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cpus)
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    self.program,
                    json.dumps(spec),
                ],
                env=self.env,
                cwd="/",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            os.sched_setaffinity(0, before)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"no result after {timeout:.0f} s"}
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode:
            lines = err.strip().splitlines() or ["no message"]
            return {"error": f"the generator failed: {lines[-1]}"}
        result: dict[str, Any] = json.loads(out)
        return result


def spin_ms(cpus: set[int]) -> float:
    """CPU milliseconds that a fixed piece of work takes there: how fast is that core just now?"""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    best = float("inf")
    try:
        for _ in range(3):
            start = time.process_time_ns()
            for number in range(100_000):
                _ = number ^ 85
            best = min(best, (time.process_time_ns() - start) / 1e6)
    finally:
        os.sched_setaffinity(0, before)
    return best


def measure(
    peer: peers.Peer, case: Case, options: argparse.Namespace, generator: Generator, cpus: set[int]
) -> dict[str, Any]:
    """One peer, one case: {"figures": …} or {"error": …}."""
    spec = case.spec()
    spec.update(seconds=options.seconds, timeout=options.timeout, spin=not options.sleep)
    try:
        with peers.running(peer, cpus) as address:
            where = {"host": address.host, "port": address.port, "pid": address.pid}
            probe = generator.run({**spec, **where, "scenario": "probe"}, 15)
            if "error" in probe:
                return {"error": f"MQTT {case.version} unsupported: {probe['error']}"}
            spin = spin_ms(cpus)
            result = generator.run({**spec, **where}, options.timeout + options.seconds + 60)
            spin_after = spin_ms(cpus)
    except peers.PeerError as error:
        return {"error": str(error)}
    if "error" in result:
        return {"error": result["error"]}
    result["spin_ms"] = (spin + spin_after) / 2
    return {"figures": result}


def cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench.macro", description=__doc__.split("\n")[0])
    p.add_argument("--peers", default="mosquitto,mqttd", help=f"any of {','.join(peers.KNOWN)}")
    p.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT:PID",
        help="a broker that runs already (pid 0: no CPU figures); may be repeated",
    )
    p.add_argument("--cases", default="table", help="all, table, extras, names or patterns")
    p.add_argument("--seconds", type=float, default=3.0, help="per measurement (a fifth warms up)")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--full", action="store_true", help="extras with a million, not 100,000")
    p.add_argument("--clients", type=int, default=5000, help="idle connections")
    p.add_argument("--retained", type=int, help="retained topics")
    p.add_argument("--subscriptions", type=int, help="subscriptions")
    p.add_argument("--timeout", type=float, default=120.0, help="to fill a broker before an extra")
    p.add_argument("--sleep", action="store_true", help="the generator sleeps while idle")
    p.add_argument("--pure", action="store_true", help="run the generator uncompiled (slow)")
    p.add_argument("--baseline", default="mosquitto", help="the peer that ratios refer to")
    p.add_argument("--json", type=Path, help="write every run and the summary")
    p.add_argument("--markdown", type=Path, help="write the tables for a README ('-': print)")
    return p


def collect(
    options: argparse.Namespace, found: list[peers.Peer], cases: list[Case], progress: Progress
) -> tuple[list[report.Record], bool]:
    path, compiled = build.ROOT, False
    if not options.pure:
        path, compiled = build.generator(progress.note)
    broker_cpus, generator_cpus = cores()
    if broker_cpus == generator_cpus:
        progress.note("only one CPU core: broker and generator share it, msg/s means little")
    generator = Generator(path, generator_cpus)
    records: list[report.Record] = []
    for number in range(options.rounds):
        for case in cases:
            for peer in found:
                progress.step(f"round {number + 1}, {case.name}, {peer.name}")
                result = measure(peer, case, options, generator, broker_cpus)
                records.append({"case": case.name, "peer": peer.name, "round": number, **result})
    return records, compiled


def as_json(
    records: list[report.Record], rows: list[report.Row], meta: dict[str, Any]
) -> dict[str, Any]:
    summary = [
        {
            "case": row.case.name,
            "peer": row.peer,
            "figures": row.figures,
            "ratio": row.ratio,
            "v5_cost": row.v5_cost,
            "spread": row.spread,
            "bad": row.bad,
            "notes": row.notes(),
        }
        for row in rows
    ]
    return {"meta": meta, "summary": summary, "runs": records}


def show(rows: list[report.Row], versions: dict[str, str]) -> None:
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    for headings, lines in report.tables(rows, OURS):
        print("\n" + report.plain(headings, lines))


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        many = FULL if options.full else QUICK
        others = extras(options.clients, options.retained or many, options.subscriptions or many)
        cases = select(options.cases, others)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    raise_file_limit()
    names = [name for name in options.peers.split(",") if name] + options.peer
    found = []
    for name in names:
        try:
            found.append(peers.find(name, lambda text: print(text, file=sys.stderr)))
        except (peers.PeerError, build.BuildError) as error:
            print(error, file=sys.stderr)
            return 2
    with progress_bar(len(found) * len(cases) * options.rounds) as progress:
        records, compiled = collect(options, found, cases, progress)
    rows = report.summarise(records, cases, options.baseline)
    versions = {peer.name: peer.version for peer in found}
    show(rows, versions)
    meta = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "generator": "compiled" if compiled else "pure",
        "peers": versions,
        "seconds": options.seconds,
        "rounds": options.rounds,
    }
    if options.json:
        options.json.write_text(json.dumps(as_json(records, rows, meta), indent=1) + "\n")
    if options.markdown:
        text = report.markdown(rows, versions, options.baseline, OURS)
        if str(options.markdown) == "-":
            print("\n" + text)
        else:
            options.markdown.write_text(text)
    return 1 if any(row.bad for row in rows if row.peer == OURS) else 0


if __name__ == "__main__":
    sys.exit(main())
