"""`python -m bench.guarded`: what security and sight cost, next to the bare broker, in one run.

The same build twice: bare (in memory, no plugin, no record of decisions), and with everything on
that an operator of an open network would have: password_file, acl_file with a rule for each kind of
topic, the record for `mqttd explain`, `$SYS` every second and /metrics scraped once a second. Each
round measures both, one after the other; a ratio is one of medians. `--against DIR` adds the build
in DIR (a wheel, unpacked), bare, to see whether a version without plugins got slower.
"""

import argparse
import contextlib
import json
import statistics
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import build, peers
from bench.cases import Case, select
from bench.macro import Generator, cores, measure, progress_bar, raise_file_limit

USER = "bench"
# Argon2id with little memory: 20 logins a measurement are not what is measured.
CASES = "pairs-w1-q0,pairs-w10-q0,pairs-w100-q0,fanin-w10-q0,fanout-w10-q0,pairs-w10-q1"
ACL = """\
user bench
topic deny bench/secret/#
topic read $SYS/#
topic readwrite #
pattern write clients/%c/status
"""


def bare(package: Path, name: str) -> peers.Peer:
    """A build without anything that could be left out."""
    return replace(peers.mqttd(lambda text: None, package), name=name)


def guarded(package: Path, metrics: int) -> peers.Peer:
    """The same build with everything on; `metrics` is the port to be scraped."""
    peer = bare(package, "guarded")
    peer.files = {
        "mqttd.yaml": 'listeners:\n  - {name: bench, bind: "127.0.0.1:{port}"}\n'
        'storage: {path: ":memory:"}\nlogging: {level: warning}\nsys_interval: 1s\n'
        f'metrics: {{bind: "127.0.0.1:{metrics}"}}\n'
        "control: {path: mqttd.ctl, record: 10000}\n"
        "plugins:\n"
        "  - {use: password_file, config: {file: passwd}}\n"
        "  - {use: acl_file, config: {file: acl}}\n",
        "acl": ACL,
        "passwd": password_line(USER, USER),
    }
    return peer


def password_line(user: str, password: str) -> str:
    from argon2 import PasswordHasher

    return f"{user}:{PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(password)}\n"


@contextlib.contextmanager
def scraped(port: int) -> Iterator[None]:
    """Ask for /metrics once a second, as Prometheus would more seldom."""
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(1.0):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1) as answer,
            ):
                answer.read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Specified(Case):
    """A case whose connections say who they are."""

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "user": USER}


def summarise(runs: dict[tuple[str, str], list[float]], cases: list[Case]) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        medians = {
            peer: statistics.median(values)
            for (name, peer), values in runs.items()
            if name == case.name and values
        }
        row: dict[str, Any] = {"case": case.name, "title": case.title, "cpu_us": medians}
        base = medians.get("bare")
        row["of_bare"] = {peer: base / cpu for peer, cpu in medians.items() if base}
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], names: list[str]) -> None:
    print("CPU µs of the broker a message, medians; in brackets: throughput of the bare build\n")
    print(f"| case | {' | '.join(names)} |")
    print(f"| --- |{' ---: |' * len(names)}")
    for row in rows:
        cells = []
        for name in names:
            cpu = row["cpu_us"].get(name)
            share = row["of_bare"].get(name)
            cells.append("-" if cpu is None else f"{cpu:.2f} ({share:.2f})")
        print(f"| {row['title']} | {' | '.join(cells)} |")


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m bench.guarded",
        description=__doc__.split("\n")[0],
        epilog="example: python -m bench.guarded --rounds 5 --seconds 1",
    )
    p.add_argument("--cases", default=CASES, help="as of bench.macro")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    p.add_argument("--timeout", type=float, default=60.0)
    p.add_argument("--sleep", action="store_true", help="the generator sleeps while idle")
    p.add_argument("--package", type=Path, help="a build to measure instead of this tree's")
    p.add_argument("--against", type=Path, help="another build, bare")
    p.add_argument("--json", type=Path, help="write the figures")
    options = p.parse_args(arguments)
    try:
        cases = select(options.cases, [])
        package = options.package or build.mqttd(lambda text: print(text, file=sys.stderr))
    except (ValueError, build.BuildError) as error:
        print(error, file=sys.stderr)
        return 2
    raise_file_limit()
    metrics = peers.free_port()
    found = [bare(package, "bare"), guarded(package, metrics)]
    if options.against:
        found.append(bare(options.against, "against"))
    runs: dict[tuple[str, str], list[float]] = {}
    failed = False
    with progress_bar(len(found) * len(cases) * options.rounds) as progress:
        path, _ = build.generator(progress.note)
        broker_cpus, generator_cpus = cores()
        generator = Generator(path, generator_cpus)
        for number in range(options.rounds):
            for case in cases:
                for peer in found:
                    progress.step(f"round {number + 1}, {case.name}, {peer.name}")
                    secured = peer.name == "guarded"
                    chosen = _Specified(**case.spec()) if secured else case
                    with scraped(metrics) if secured else contextlib.nullcontext():
                        result = measure(peer, chosen, options, generator, broker_cpus)
                    if "error" in result:
                        progress.note(f"{peer.name}, {case.name}: {result['error']}")
                        failed = True
                        continue
                    figures = result["figures"]
                    runs.setdefault((case.name, peer.name), []).append(figures["cpu_us"])
    rows = summarise(runs, cases)
    show(rows, [peer.name for peer in found])
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "rounds": options.rounds}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
