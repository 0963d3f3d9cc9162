"""Which way to SQLite: a plain writer thread or aiosqlite, statement by statement or in rows.

    python -m bench.store [--seconds 0.5] [--dir DIR]

Each way writes the same two rows a message (payload, delivery) in one transaction a batch, WAL and
`synchronous=FULL`, and the event loop hears of each commit before it hands over the next batch, as
the committer does. `busy` lets the loop's thread compute meanwhile, as a broker does that reads and
routes: whoever gives the interpreter lock away for each row gets it back late.

The figures are those of docs/decisions/0003. They say nothing about the broker; only ratios inside
one run count.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, Final

BATCHES: Final = (1, 16, 256)
PRAGMAS: Final = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL")
TABLES: Final = (
    "CREATE TABLE messages (id INTEGER PRIMARY KEY, topic TEXT, payload BLOB, qos INTEGER)",
    "CREATE TABLE deliveries (serial INTEGER PRIMARY KEY, owner TEXT, message INTEGER,"
    " packet_id INTEGER, state INTEGER)",
)
MESSAGE: Final = "INSERT INTO messages VALUES "
DELIVERY: Final = "INSERT INTO deliveries VALUES "
GROUP: Final = 256  # rows a statement

Rows = list[tuple[object, ...]]
Commit = Callable[[Rows, Rows], Awaitable[None]]
Write = Callable[[sqlite3.Connection, Rows, Rows], None]


def one_by_one(db: sqlite3.Connection, messages: Rows, deliveries: Rows) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.executemany(MESSAGE + "(?,?,?,?)", messages)
    db.executemany(DELIVERY + "(?,?,?,?,?)", deliveries)
    db.execute("COMMIT")


def in_groups(db: sqlite3.Connection, messages: Rows, deliveries: Rows) -> None:
    db.execute("BEGIN IMMEDIATE")
    for head, width, rows in ((MESSAGE, 4, messages), (DELIVERY, 5, deliveries)):
        marks = "(" + ",".join("?" * width) + ")"
        whole = len(rows) - len(rows) % GROUP
        statement = head + ",".join([marks] * GROUP)
        for at in range(0, whole, GROUP):
            db.execute(statement, [value for row in rows[at : at + GROUP] for value in row])
        if whole < len(rows):
            db.executemany(head + marks, rows[whole:])
    db.execute("COMMIT")


class Writer:
    """A thread that owns the connection; one hop there and one back for each batch."""

    def __init__(self, path: str, write: Write) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._write = write
        self._db = self._thread.submit(open_database, path).result()

    async def commit(self, messages: Rows, deliveries: Rows) -> None:
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self._write, self._db, messages, deliveries
        )

    def close(self) -> None:
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()


def open_database(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for statement in (*PRAGMAS, *TABLES):
        db.execute(statement)
    return db


async def feed(commit: Commit, size: int, seconds: float, busy: bool) -> tuple[float, float]:
    """Messages and commits a second."""
    ended = False
    loop = asyncio.get_running_loop()

    def work() -> None:
        until = perf_counter() + 0.002  # what a tick of a busy broker takes
        while perf_counter() < until:
            pass
        if not ended:
            loop.call_soon(work)

    serial = commits = 0
    if busy:
        loop.call_soon(work)
    payload = b"x" * 64
    began = perf_counter()
    while (spent := perf_counter() - began) < seconds:
        numbers = range(serial + 1, serial + size + 1)
        messages: Rows = [(n, "sensors/hall/7", payload, 1) for n in numbers]
        deliveries: Rows = [(n, f"client-{n % 50}", n, 0, 0) for n in numbers]
        serial += size
        await commit(messages, deliveries)
        commits += 1
    ended = True
    await asyncio.sleep(0)
    return serial / spent, commits / spent


async def by_thread(write: Write, path: str, size: int, seconds: float, busy: bool) -> str:
    writer = Writer(path, write)
    try:
        return show(*await feed(writer.commit, size, seconds, busy))
    finally:
        writer.close()


async def by_aiosqlite(path: str, size: int, seconds: float, busy: bool) -> str:
    aiosqlite: Any = importlib.import_module("aiosqlite")  # pip install aiosqlite
    async with aiosqlite.connect(path, isolation_level=None) as db:
        for statement in (*PRAGMAS, *TABLES):
            await db.execute(statement)

        async def commit(messages: Rows, deliveries: Rows) -> None:
            await db.execute("BEGIN IMMEDIATE")
            await db.executemany(MESSAGE + "(?,?,?,?)", messages)
            await db.executemany(DELIVERY + "(?,?,?,?,?)", deliveries)
            await db.execute("COMMIT")

        return show(*await feed(commit, size, seconds, busy))


def show(messages: float, commits: float) -> str:
    return f"{messages:9,.0f} msg/s {commits:6,.0f} commits/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--dir", default=None, help="where the databases lie (default: here)")
    args = parser.parse_args()
    ways: dict[str, Callable[[str, int, float, bool], Awaitable[str]]] = {
        "thread, rows in groups": lambda *a: by_thread(in_groups, *a),
        "thread, executemany": lambda *a: by_thread(one_by_one, *a),
        "aiosqlite": by_aiosqlite,
    }
    for busy in (False, True):
        for size in BATCHES:
            for name, way in ways.items():
                with tempfile.TemporaryDirectory(dir=args.dir or Path.cwd()) as directory:
                    result = asyncio.run(_run(way, f"{directory}/db", size, args.seconds, busy))
                load = "busy" if busy else "idle"
                print(f"{load} batch {size:3}  {name:22} {result}", flush=True)


async def _run(
    way: Callable[[str, int, float, bool], Awaitable[str]],
    path: str,
    size: int,
    seconds: float,
    busy: bool,
) -> str:
    return await way(path, size, seconds, busy)


if __name__ == "__main__":
    main()
