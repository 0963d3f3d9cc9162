"""A broker that kills itself at a named point of its work.

    MQTTD_CRASH_POINT=NAME[:N] python -m tests.crash.points run -c FILE

is `python -m mqttd run -c FILE`, but for SIGKILL the Nth time that the point is reached. Without
the variable nothing is killed. Either way everything that waits for much to come together
(checkpoints, housekeeping) happens early and often, so that a short run gets there.

Owns: the points, and how each is reached by patching the interpreted shell from outside; the
compiled core isn't touched, and the shell has no hooks for it.

Invariant: a patch that finds nothing to patch ends the process with a traceback before it serves.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from mqttd import cli
from mqttd.net import flow
from mqttd.store import committer, schema, sqlite, tables

VARIABLE: Final = "MQTTD_CRASH_POINT"

POINTS: Final = {
    "commit-before": "after BEGIN and the writes of a batch",
    "commit-after": "a batch is durable, and the core hasn't heard of it",
    "released": "the core let acknowledgements go, and nothing of them is written",
    "between": "the acknowledgements of a flush are written, its deliveries are not",
    "torn": "half of the bytes for one client are written",
    "checkpoint-before": "in the copier's thread, before it copies the log",
    "checkpoint-after": "in the copier's thread, after it",
    "rest-before": "in the writer, before it copies the rest of the log",
    "rest-after": "in the writer, after it",
    "page-before": "before a page of a queue is read",
    "page-after": "a page is read, and the core hasn't got it",
    "page-served": "the core has the page, and nothing of it is written",
    "tidy-garbage": "in the transaction that drops what an ended session left",
    "tidy-sweep": "expired messages were found, and the core hasn't heard of them",
    "tidy-vacuum": "free pages were given back to the disk",
    "create-statement": "between two statements that make the tables",
    "create-made": "the new database is synced, and hasn't its name yet",
    "create-named": "the new database has its name, and the directory isn't synced",
    "load-copy": "at a start, before what the last broker left in the log is copied",
    "load-before": "at a start, before anything is read",
    "load-after": "at a start, after everything was read",
}
STARTING: Final = frozenset(name for name in POINTS if name.startswith(("create-", "load-")))
"""Those that come before a broker is ready; the first three only where there is no database."""

_ACKS: Final = {4, 5}  # PUBACK, PUBREC
_PUBLISH: Final = 3


class Killer:
    """Counts how often the one point was reached."""

    def __init__(self, wanted: str) -> None:
        self.name, _, times = wanted.partition(":")
        self._left = int(times or 1)
        if self.name and (self.name not in POINTS or self._left < 1):
            raise SystemExit(f"{VARIABLE}={wanted}: no such point; there are: {', '.join(POINTS)}")

    def due(self, name: str) -> bool:
        """The point is reached, and for the Nth time."""
        if name != self.name:
            return False
        self._left -= 1
        return self._left == 0

    def reach(self, name: str) -> None:
        if self.due(name):
            self.kill()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # no further, however late the signal comes


class Statements:
    """The statements of a migration."""

    def __init__(self, statements: Iterable[str], killer: Killer) -> None:
        self._statements = tuple(statements)
        self._killer = killer

    def __iter__(self) -> Iterator[str]:
        for number, statement in enumerate(self._statements):
            if number:
                self._killer.reach("create-statement")
            yield statement


class Cut:
    """A broker as `Flow.flush` sees it, which may not live to write all that is to be written."""

    def __init__(self, broker: Any, killer: Killer) -> None:
        self._broker = broker
        self._killer = killer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def collect(self) -> Iterator[tuple[Any, bytes]]:
        writes: list[tuple[Any, bytes]] = self._broker.collect()
        answers = [each for each in writes if _ACKS & kinds_in(each[1])]
        others = [each for each in writes if not _ACKS & kinds_in(each[1])]
        for shell, data in writes:
            if len(data) > 1 and self._killer.due("torn"):
                shell.transport.write(data[: len(data) // 2])
                self._killer.kill()
        yield from answers
        if answers and any(_PUBLISH in kinds_in(data) for _, data in others):
            self._killer.reach("between")
        yield from others


def kinds_in(data: bytes) -> set[int]:
    """The packet types in whole packets."""
    found: set[int] = set()
    at = 0
    while at < len(data):
        found.add(data[at] >> 4)
        size = shift = 0
        while True:
            at += 1
            size |= (data[at] & 0x7F) << shift
            shift += 7
            if not data[at] & 0x80:
                break
        at += 1 + size
    return found


def wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def around(
    owner: Any,
    name: str,
    before: Callable[[], object] | None = None,
    after: Callable[[Any], object] | None = None,
) -> None:
    """Have something called before a function, and after it with what it returned."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any) -> Any:
            if before is not None:
                before()
            result = original(*args)
            if after is not None:
                after(result)
            return result

        return patched

    wrap(owner, name, make)


def hasten() -> None:
    """Little is enough for a checkpoint, a slice of housekeeping, pages given back."""
    for owner, name, value in (
        (sqlite, "_CHECKPOINT_BYTES", 400 << 10),
        (sqlite, "_LOG_KEPT", 64 << 10),
        (sqlite, "_SWEEP_EVERY", 0.2),
        (sqlite, "_FREE_PAGES", 2),
        (sqlite, "_SLICE_ROWS", 20),
        (committer, "_TIDY_S", 0.1),
    ):
        wrap(owner, name, lambda _, value=value: value)  # type: ignore[misc]


def arm(killer: Killer) -> None:
    """Patch the shell."""

    def at(point: str) -> Callable[..., None]:
        return lambda *_: killer.reach(point)

    def found(point: str) -> Callable[[Any], None]:
        def look(result: object) -> None:
            if result:
                killer.reach(point)

        return look

    store = sqlite.SqliteStore
    around(tables, "apply", after=at("commit-before"))
    around(store, "_write", after=at("commit-after"))
    around(tables, "read_page", at("page-before"), at("page-after"))
    around(tables, "read", at("load-before"), at("load-after"))
    around(sqlite, "_give_back", after=found("tidy-vacuum"))
    around(store, "_sweep", after=found("tidy-sweep"))
    schema_of: Any = schema
    schema_of.STEPS = tuple(Statements(each, killer) for each in schema.STEPS)
    opening = False

    def copy_log(original: Callable[..., None]) -> Callable[..., None]:
        def patched(db: Any) -> None:
            if opening:
                killer.reach("load-copy")
                original(db)
                return
            copier = threading.current_thread().name.startswith("mqttd-checkpoint")
            name = "checkpoint" if copier else "rest"
            killer.reach(f"{name}-before")
            original(db)
            killer.reach(f"{name}-after")

        return patched

    wrap(sqlite, "_copy_log", copy_log)

    def open_(original: Callable[..., None]) -> Callable[..., None]:
        def patched(*args: Any) -> None:
            nonlocal opening
            opening = True
            original(*args)
            opening = False

        return patched

    wrap(store, "_open", open_)

    def sync(original: Callable[[Any], None]) -> Callable[[Any], None]:
        def patched(path: Any) -> None:
            if path.name.endswith(".new"):
                original(path)
                killer.reach("create-made")
            else:
                killer.reach("create-named")
                original(path)

        return patched

    wrap(sqlite, "_sync", sync)

    def drop_garbage(original: Callable[..., None]) -> Callable[..., None]:
        def patched(self: Any, db: Any) -> None:
            forget = tables.forget
            around(tables, "forget", after=at("tidy-garbage"))
            try:
                original(self, db)
            finally:
                wrap(tables, "forget", lambda _: forget)

        return patched

    wrap(store, "_drop_garbage", drop_garbage)

    def report(original: Callable[..., None]) -> Callable[..., None]:
        def patched(self: Any, batch: Any) -> None:
            original(self, batch)
            if self._broker.dirty:
                killer.reach("released")

        return patched

    wrap(committer.Committer, "_report", report)

    def serve(original: Callable[..., Any]) -> Callable[..., Any]:
        async def patched(self: Any, requests: Any) -> None:
            await original(self, requests)
            killer.reach("page-served")

        return patched

    wrap(committer.Committer, "_serve", serve)

    def flush(original: Callable[..., None]) -> Callable[..., None]:
        def patched(self: Any) -> None:
            broker = self.broker
            self.broker = Cut(broker, killer)
            try:
                original(self)
            finally:
                self.broker = broker

        return patched

    wrap(flow.Flow, "flush", flush)


def main() -> int:
    hasten()
    wanted = os.environ.pop(VARIABLE, "")
    if wanted:
        arm(Killer(wanted))
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
