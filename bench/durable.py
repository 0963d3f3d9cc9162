"""`python -m bench.durable`: what durability costs, and how fast a queue comes back.

Owns: the command line of four benchmarks (`offline`, `online`, `drain`, `restart`), their order
(each round goes through cases, each case through the variants, a fresh broker for each), medians,
ratios inside rounds, tables. What the generator does is in `bench.lasting`, the brokers are in
`bench.keeping`.

Cores: `one` gives the broker, all its threads, one core and the generator the other, which it never
leaves; `both` lets the two share all cores, the generator sleeping while nothing is there.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import build, keeping, macro, peers, report

EXAMPLES = """examples:
  python -m bench.durable offline --json offline.json
  python -m bench.durable offline --peers mqttd-full,mqttd-full@/tmp/old/build/compiled
  python -m bench.durable online --in-flight 10 --rounds 5
  python -m bench.durable drain --messages 1000000
  python -m bench.durable restart --messages 1000000 --sessions 10000
"""
PEERS = {
    "offline": "mqttd-full,mqttd-os,mqttd-none,mqttd-memory,mosquitto,mosquitto-1s",
    "online": "mqttd-memory,mqttd-full,mqttd-os,mqttd-none,mosquitto",
    "drain": "mqttd-full,mosquitto",
    "restart": "mqttd-full,mosquitto",
}
MIB = 1 << 20
CROWDED = 0.2
FAULTS = (*report.FAULTS, "unanswered", "unstored", "left")
Figures = dict[str, float]


@dataclass
class Run:
    """One measurement, or why there is none."""

    peer: str
    cores: str
    in_flight: int
    round: int
    figures: Figures = field(default_factory=dict)
    error: str = ""


@dataclass
class Row:
    """All runs of one variant in one case."""

    runs: list[Run]
    figures: Figures
    ratio: float | None = None  # its messages a second to the first variant's, inside rounds
    cpu_ratio: float | None = None  # the first variant's CPU time a message to its own
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def peer(self) -> str:
        return self.runs[0].peer

    @property
    def ours(self) -> bool:
        return self.peer.startswith("mqttd")

    def notes(self) -> str:
        errors = [run.error for run in self.runs if run.error]
        notes = []
        if errors:
            notes.append(f"{len(errors)} runs failed: {errors[0]}")
        if self.faults:
            notes.append("BAD: " + ", ".join(f"{n} {name}" for name, n in self.faults.items()))
        figures = self.figures
        if figures.get("gen_busy", 0.0) >= report.BUSY and figures["broker_busy"] < report.BUSY:
            notes.append("generator-bound")
        others = max(figures.get("others_busy", 0.0), figures.get("fill_others", 0.0))
        if others > CROWDED:
            notes.append(f"contended: others took {others:.0%} of a core")
        return "; ".join(notes)


def _ratio(runs: list[Run], bases: list[Run], key: str) -> float | None:
    """The median over rounds of a figure of `runs`, divided by that of `bases`."""
    base = {run.round: run.figures[key] for run in bases if run.figures.get(key)}
    ratios = [
        run.figures[key] / base[run.round]
        for run in runs
        if run.round in base and run.figures.get(key)
    ]
    return median(ratios) if ratios else None


def summarise(runs: list[Run], rate: str, cost: str) -> list[Row]:
    """Rows in the order of their first runs; `rate` and `cost` are what is compared."""
    grouped: dict[tuple[str, int, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.cores, run.in_flight, run.peer), []).append(run)
    rows = []
    for of_row in grouped.values():
        good = [run for run in of_row if not run.error]
        names = dict.fromkeys(name for run in good for name in run.figures)
        row = Row(
            of_row,
            {name: median(run.figures.get(name, 0.0) for run in good) for name in names},
        )
        bases = grouped[of_row[0].cores, of_row[0].in_flight, runs[0].peer]
        row.ratio = _ratio(good, bases, rate)
        row.cpu_ratio = _ratio(bases, good, cost)
        for name in FAULTS:
            total = int(sum(run.figures.get(name, 0.0) for run in good))
            if total:
                row.faults[name] = total
        rows.append(row)
    return rows


# Measuring.


class Bench:
    """What all measurements of one command have in common."""

    def __init__(self, options: argparse.Namespace, note: build.Note) -> None:
        self.options = options
        self.peers = [
            keeping.find(name, options.package, note) for name in options.peers.split(",")
        ]
        path, self.compiled = build.ROOT, False
        if not options.pure:
            path, self.compiled = build.generator(note)
        broker_cpus, generator_cpus = macro.cores()
        both = broker_cpus | generator_cpus
        module = "bench.lasting"
        self.cpus = {"one": broker_cpus, "both": both}
        self.generators = {
            "one": macro.Generator(path, generator_cpus, module),
            "both": macro.Generator(path, both, module),
        }
        self.counter = build.counter(note)

    def spec(self, broker: keeping.Broker, scenario: str, cores: str) -> dict[str, Any]:
        options = self.options
        return {
            "scenario": scenario,
            "host": "127.0.0.1",
            "port": broker.port,
            "pid": broker.pid,
            "counter": broker.counts,
            "spin": cores == "one",
            "size": options.size,
            "publishers": options.publishers,
            "seconds": getattr(options, "seconds", 1.0),
            "timeout": options.timeout,
            "messages": getattr(options, "messages", 0),
            "sessions": getattr(options, "sessions", 0),
            "patience": options.patience,
            "version": 4,
        }

    def generate(self, spec: dict[str, Any], cores: str, window: int) -> Figures:
        timeout = 2 * self.options.timeout + spec["seconds"] + 30
        result = self.generators[cores].run({**spec, "window": window}, timeout)
        if "error" in result:
            raise peers.PeerError(str(result["error"]))
        return result

    def throughput(self, peer: peers.Peer, cores: str, window: int) -> Figures:
        """`offline` and `online`: a closed loop for some seconds, then what is in the file."""
        command = self.options.command
        counter = self.counter
        with keeping.broker(peer, self.cpus[cores], counter, self.options.dir) as broker:
            broker.start()
            figures = self.generate(self.spec(broker, command, cores), cores, window)
            broker.stop()
            stored = broker.stored()
        if stored is not None:
            wanted = int(figures["acknowledged"]) if command == "offline" else 0
            figures["stored"] = float(stored)
            if command == "offline":
                # What nobody acknowledged may be there as well.
                figures["unstored"] = float(max(0, wanted - stored))
            else:
                figures["left"] = float(stored)
        return figures

    def queues(self, peer: peers.Peer, cores: str, window: int) -> Figures:
        """`drain` and `restart`: fill, stop, start, and let the sessions take it all."""
        counter = self.counter
        with keeping.broker(peer, self.cpus[cores], counter, self.options.dir) as broker:
            figures: Figures = {"empty_ready_s": broker.start()}
            figures["empty_rss"] = broker.rss()
            figures.update(self.generate(self.spec(broker, "fill", cores), cores, window))
            figures["full_rss"] = broker.rss()
            figures["stop_s"] = broker.stop(self.options.timeout)
            figures["file"] = sum(path.stat().st_size for path in broker.directory.iterdir())
            figures["ready_s"] = broker.start(self.options.timeout)
            figures["ready_cpu_s"] = broker.cpu_ns() / 1e9
            figures["start_rss"] = broker.rss()
            broker.reset_peak()
            figures.update(self.generate(self.spec(broker, "drain", cores), cores, window))
            figures["peak_rss"] = broker.peak()
            figures["start_growth"] = figures["start_rss"] - figures["empty_rss"]
            figures["drain_growth"] = figures["peak_rss"] - figures["start_rss"]
            figures["drain_stop_s"] = broker.stop(self.options.timeout)
            left = broker.stored()
        if left is not None:
            figures["left"] = float(left)
        return figures

    def collect(self, progress: macro.Progress) -> list[Run]:
        options = self.options
        measure = self.throughput if options.command in ("offline", "online") else self.queues
        runs = []
        for number in range(options.rounds):
            for cores in options.cores:
                for window in options.in_flight:
                    for peer in self.peers:
                        progress.step(
                            f"round {number + 1}, {window} in flight, {cores}, {peer.name}"
                        )
                        run = Run(peer.name, cores, window, number)
                        try:
                            run.figures = measure(peer, cores, window)
                        except peers.PeerError as error:
                            run.error = str(error)
                        runs.append(run)
        return runs


# Showing.

Column = tuple[str, Callable[[Row], str]]


def _number(name: str, scale: float = 1.0, digits: int = 1) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row.figures.get(name)
        return "-" if value is None else f"{value / scale:,.{digits}f}"

    return cell


def _percent(name: str) -> Callable[[Row], str]:
    return _number(name, 0.01, 0)


def _mark(value: float, aim: float, at_least: bool, text: str) -> str:
    return f"{'✓' if (value >= aim if at_least else value <= aim) else '✗'} {text}"


def aim(command: str, row: Row) -> str:
    """What issue 3 wants of this row, and whether it is there."""
    figures = row.figures
    if not figures or row.peer.partition("@")[0] != "mqttd-full":
        return ""
    if command == "offline":
        wanted = {10: 30_000, 100: 60_000}.get(row.runs[0].in_flight)
        marks = [_mark(figures["p99_us"], 50_000, False, "≤50ms")]
        if wanted:
            marks.insert(0, _mark(figures["msgs_s"], wanted, True, f"≥{wanted // 1000}k"))
        return " ".join(marks)
    if command == "online":
        return "" if row.ratio is None else _mark(row.ratio, 0.7, True, "≥0.7")
    growth = max(figures["start_growth"], figures["drain_growth"])
    memory = _mark(growth, 100 * MIB, False, "≤100MiB")
    if command == "drain":
        return _mark(figures["drain_s"], 50_000, True, "≥50k ") + memory
    return _mark(figures["ready_s"], 20, False, "≤20s ") + memory


def columns(command: str) -> list[Column]:
    head: list[Column] = [
        ("broker", lambda row: row.peer),
        ("cores", lambda row: row.runs[0].cores),
        ("in flight", lambda row: str(row.runs[0].in_flight)),
    ]
    tail: list[Column] = [
        ("aim", lambda row: aim(command, row)),
        ("notes", lambda row: row.notes()),
    ]
    ratio: Column = ("ratio", lambda row: "-" if row.ratio is None else f"{row.ratio:.2f}")
    cpu_ratio: Column = (
        "CPU ratio",
        lambda row: "-" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}",
    )
    if command in ("offline", "online"):
        return [
            *head,
            ("k acked/s", _number("msgs_s", 1e3)),
            ratio,
            ("p50 ms", _number("p50_us", 1e3)),
            ("p99 ms", _number("p99_us", 1e3)),
            ("max ms", _number("max_us", 1e3)),
            ("CPU µs/msg", _number("cpu_us", 1, 2)),
            cpu_ratio,
            ("loop µs/msg", _number("main_us", 1, 2)),
            ("busy %", _percent("broker_busy")),
            ("syncs/s", _number("syncs_s", 1, 0)),
            ("sync ms", _number("sync_ms", 1, 2)),
            ("msg/commit", _number("per_commit", 1, 0)),
            ("bytes/msg", _number("written", 1, 0)),
            ("in file", _number("stored", 1, 0)),
            ("gen %", _percent("gen_busy")),
            *tail,
        ]
    return [
        *head,
        ("k filled/s", _number("fill_s", 1e3)),
        ("CPU µs/msg", _number("fill_us", 1, 2)),
        ("file MiB", _number("file", MIB, 0)),
        ("stop s", _number("stop_s", 1, 2)),
        ("ready s", _number("ready_s", 1, 2)),
        ("CPU s", _number("ready_cpu_s", 1, 2)),
        ("k drained/s", _number("drain_s", 1e3)),
        ratio,
        ("CPU µs/msg", _number("drain_us", 1, 2)),
        cpu_ratio,
        ("first ms", _number("first_ms", 1, 1)),
        ("RSS MiB: empty", _number("empty_rss", MIB, 0)),
        ("full", _number("full_rss", MIB, 0)),
        ("at start", _number("start_rss", MIB, 0)),
        ("drain peak", _number("peak_rss", MIB, 0)),
        *tail,
    ]


def table(command: str, rows: list[Row]) -> str:
    layout = columns(command)
    lines = [[cell(row) for _, cell in layout] for row in rows]
    return report.plain([heading for heading, _ in layout], lines)


# The command.


def _words(*allowed: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = text.split(",")
        if not set(words) <= set(allowed):
            raise argparse.ArgumentTypeError(f"any of {','.join(allowed)}")
        return words

    return parse


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError("positive numbers, separated by commas")
    return numbers


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m bench.durable",
        description="What durability costs, and how fast a queue comes back.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True)
    for name, text in (
        ("offline", "publishers at QoS 1, their persistent subscribers away"),
        ("online", "the same with subscribers that are there, beside the memory store"),
        ("drain", "fill one session's queue, restart, drain it"),
        ("restart", "the same with many sessions: how long until the broker is ready?"),
    ):
        c = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        queues = name in ("drain", "restart")
        c.add_argument(
            "--peers",
            default=PEERS[name],
            help=f"of {', '.join(keeping.KNOWN)}, NAME@DIR; the first is the base",
        )
        c.add_argument(
            "--cores",
            type=_words("one", "both"),
            default=["one"] if queues else ["one", "both"],
            help="one: a core for the broker, another for the generator; both: shared",
        )
        c.add_argument(
            "--in-flight",
            type=_numbers,
            default=[100] if queues else [1, 10, 100],
            help="unacknowledged messages of each publisher, e.g. 1,10,100",
        )
        c.add_argument("--publishers", type=int, default=50)
        c.add_argument("--size", type=int, default=64, help="bytes of a payload")
        if queues:
            many = name == "restart"
            c.add_argument("--messages", type=int, default=1_000_000, help="in all queues together")
            c.add_argument("--sessions", type=int, default=10_000 if many else 1)
        else:
            c.add_argument("--seconds", type=float, default=5.0, help="a fifth of it warms up")
        c.add_argument("--rounds", type=int, default=1 if queues else 3)
        c.add_argument("--timeout", type=float, default=600.0 if queues else 60.0)
        c.add_argument("--patience", type=float, default=10.0, help="seconds of silence to give up")
        c.add_argument("--dir", help="where the brokers' files go (default: the usual place)")
        c.add_argument("--package", type=Path, help="measure the mqttd in this directory")
        c.add_argument("--pure", action="store_true", help="run the generator uncompiled (slow)")
        c.add_argument("--json", type=Path, help="write every run and the summary")
    return p


def problem(options: argparse.Namespace) -> str:
    """What is wrong with the numbers, if anything."""
    if options.size < 4 or options.publishers < 1 or options.rounds < 1:
        return "--size is at least 4, --publishers and --rounds at least 1"
    if options.command in ("offline", "online"):
        return ""
    sessions, messages, publishers = options.sessions, options.messages, options.publishers
    if messages % publishers or messages < publishers:
        return "--messages must be a multiple of --publishers"
    if sessions > 1 and (sessions % publishers or messages % sessions):
        return "--sessions must be 1 or a multiple of --publishers, and divide --messages"
    return ""


def meta(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": options.command,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "cpu": macro.cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "generator": "compiled" if bench.compiled else "pure",
        "peers": {peer.name: peer.version for peer in bench.peers},
    }


def as_json(rows: list[Row], runs: list[Run], about: dict[str, Any]) -> dict[str, Any]:
    summary = [
        {
            "peer": row.peer,
            "cores": row.runs[0].cores,
            "in_flight": row.runs[0].in_flight,
            "figures": row.figures,
            "ratio": row.ratio,
            "cpu_ratio": row.cpu_ratio,
            "faults": row.faults,
            "aim": aim(about["command"], row),
            "notes": row.notes(),
        }
        for row in rows
    ]
    return {"meta": about, "summary": summary, "runs": [vars(run) for run in runs]}


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    wrong = problem(options)
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    macro.raise_file_limit()
    try:
        bench = Bench(options, lambda text: print(text, file=sys.stderr, flush=True))
    except (peers.PeerError, build.BuildError) as error:
        print(error, file=sys.stderr)
        return 2
    total = options.rounds * len(options.cores) * len(options.in_flight) * len(bench.peers)
    with macro.progress_bar(total) as progress:
        runs = bench.collect(progress)
    queues = options.command in ("drain", "restart")
    rows = summarise(runs, *(("drain_s", "drain_us") if queues else ("msgs_s", "cpu_us")))
    print(", ".join(f"{peer.name} {peer.version}" for peer in bench.peers))
    print(table(options.command, rows))
    if options.json:
        about = meta(options, bench)
        options.json.write_text(json.dumps(as_json(rows, runs, about), indent=1) + "\n")
    return 1 if any(row.ours and (row.faults or not row.figures) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
