"""From the recorder's log, the files as a power cut may leave them.

Owns: the layout of a record (with `shim.c`), and the model of a disk: a file is what its last sync
made sure of, and a list of changes since; so is the directory, whose names a sync of its own makes
sure of. `Disk` follows a log record by record; `after_cut` says what may be left at that point, and
changes nothing, so that one pass over a log serves any number of cuts.

Must not know: MQTT, SQLite, the broker.

Invariants: what was synced is there in every mode, byte for byte; a sector of 512 bytes is as it
stood at some instant since the last sync, never a mixture; a sync that failed makes sure of
nothing, neither then nor later, whatever the next one says; names change in their order.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final, Literal, NamedTuple

SECTOR: Final = 512
HEAD: Final = struct.Struct("<IHHQQQ")

Mode = Literal["dropped", "kept", "torn"]
MODES: Final[tuple[Mode, ...]] = ("dropped", "kept", "torn")


class Kind(IntEnum):
    """What happened; see shim.c."""

    OPENED = 1
    CREATED = 2
    WRITTEN = 3
    TRUNCATED = 4
    ALLOCATED = 5
    SYNCED = 6
    SYNC_FAILED = 7
    RENAMED = 8
    REMOVED = 9
    DIR_SYNCED = 10
    UNKNOWN = 11


class Record(NamedTuple):
    """One operation; `name` of a rename is both names with a zero character between."""

    kind: Kind
    file: int = 0
    name: str = ""
    offset: int = 0
    length: int = 0
    data: bytes = b""


def encode(record: Record) -> bytes:
    name = record.name.encode()
    size = HEAD.size + len(name) + len(record.data)
    head = HEAD.pack(
        size, record.kind, len(name), record.file, record.offset, max(record.length, 0)
    )
    return head + name + record.data


def decode(log: bytes) -> tuple[list[Record], list[int]]:
    """The whole records of a log, and where each ends; a torn one at the end is left out."""
    records: list[Record] = []
    ends: list[int] = []
    at = 0
    while at + HEAD.size <= len(log):
        size, kind, name_size, file, offset, length = HEAD.unpack_from(log, at)
        if at + size > len(log):
            break
        body = at + HEAD.size
        at += size
        name = log[body : body + name_size].decode()
        data = log[body + name_size : at]
        records.append(Record(Kind(kind), file, name, offset, length, data))
        ends.append(at)
    return records, ends


class Change(NamedTuple):
    """One change of a file's content: `data` at `offset`, or where that is None a new length."""

    offset: int
    data: bytes | None
    extend_only: bool = False

    def apply(self, content: bytearray) -> None:
        if self.data is not None:
            end = self.offset + len(self.data)
            if len(content) < self.offset:
                content.extend(bytes(self.offset - len(content)))
            content[self.offset : end] = self.data
        elif len(content) < self.offset:
            content.extend(bytes(self.offset - len(content)))
        elif not self.extend_only:
            del content[self.offset :]

    def sectors(self) -> Iterable[Change]:
        """The same in pieces, none of which crosses into another sector."""
        if self.data is None:
            yield self
            return
        at = 0
        while at < len(self.data):
            size = min(SECTOR - (self.offset + at) % SECTOR, len(self.data) - at)
            yield Change(self.offset + at, self.data[at : at + size])
            at += size


class File:
    """`sure` survives; `seen` is what a reader finds now; `changes` lead there, failures apart."""

    def __init__(self, content: bytes = b"") -> None:
        self.sure = bytearray(content)
        self.seen = bytearray(content)
        self.changes: list[Change] = []

    def change(self, change: Change) -> None:
        change.apply(self.seen)
        self.changes.append(change)

    def sync(self) -> None:
        for change in self.changes:
            change.apply(self.sure)
        self.changes.clear()

    def after_cut(self, mode: Mode, chance: random.Random) -> bytes:
        if mode == "dropped":
            return bytes(self.sure)
        if mode == "kept":
            return bytes(self.seen)
        pieces = [piece for change in self.changes for piece in change.sectors()]
        content = bytearray(self.sure)
        if chance.random() < 0.5:
            kept = pieces[: chance.randint(0, len(pieces))]
        else:
            kept = _some_sectors(pieces, chance)
        for piece in kept:
            piece.apply(content)
        return bytes(content)


def _some_sectors(pieces: Sequence[Change], chance: random.Random) -> list[Change]:
    """Each sector as it stood at an instant of its own; each new length took effect or didn't."""
    of_sector: dict[int, int] = {}
    for piece in pieces:
        if piece.data is not None:
            sector = piece.offset // SECTOR
            of_sector[sector] = of_sector.get(sector, 0) + 1
    share = chance.random()
    left = {
        sector: count if chance.random() < share else chance.randrange(count)
        for sector, count in of_sector.items()
    }
    kept: list[Change] = []
    for piece in pieces:
        if piece.data is None:
            if chance.random() < share:
                kept.append(piece)
        elif left[piece.offset // SECTOR] > 0:
            left[piece.offset // SECTOR] -= 1
            kept.append(piece)
    return kept


Names = dict[str, File]
Move = tuple[tuple[str, File | None], ...]  # what each name stands for afterwards


class Disk:
    """One directory, as the log leads it along."""

    def __init__(self, before: dict[str, bytes] | None = None) -> None:
        self.sure: Names = {name: File(content) for name, content in (before or {}).items()}
        self.seen: Names = dict(self.sure)
        self.moves: list[Move] = []
        self._files: dict[int, File] = {}

    def apply(self, record: Record) -> None:
        kind, number, name = record.kind, record.file, record.name
        if "/" in name or kind == Kind.UNKNOWN:
            raise ValueError(f"the model has no answer to {record.kind.name} {name!r}")
        if kind == Kind.OPENED:
            self._files[number] = self.seen[name]
        elif kind == Kind.CREATED:
            self._files[number] = File()
            self._move(((name, self._files[number]),))
        elif kind == Kind.WRITTEN:
            self._files[number].change(Change(record.offset, record.data))
        elif kind == Kind.TRUNCATED:
            self._files[number].change(Change(record.length, None))
        elif kind == Kind.ALLOCATED:
            self._files[number].change(Change(record.length, None, extend_only=True))
        elif kind == Kind.SYNCED:
            self._files[number].sync()
        elif kind == Kind.SYNC_FAILED:
            # The kernel calls the pages clean, so that no later sync writes them.
            self._files[number].changes.clear()
        elif kind == Kind.RENAMED:
            old, _, new = name.partition("\0")
            self._move(((old, None), (new, self.seen[old])))
        elif kind == Kind.REMOVED:
            self._move(((name, None),))
        else:
            for move in self.moves:
                _rename(self.sure, move)
            self.moves.clear()

    def _move(self, move: Move) -> None:
        _rename(self.seen, move)
        self.moves.append(move)

    def after_cut(
        self, mode: Mode, names: Mode = "kept", chance: random.Random | None = None
    ) -> dict[str, bytes]:
        """The files that may be left, by name."""
        chance = chance or random.Random(0)
        there = dict(self.sure)
        if names == "kept":
            there = self.seen
        elif names == "torn":
            for move in self.moves[: chance.randint(0, len(self.moves))]:
                _rename(there, move)
        return {name: file.after_cut(mode, chance) for name, file in sorted(there.items())}


def _rename(names: Names, move: Move) -> None:
    for name, file in move:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


class Cut(NamedTuple):
    """A cut after the first `after` records, `at` so many bytes of the log."""

    after: int
    at: int
    place: str
    data: Mode
    names: Mode
    seed: int

    def files(self, disk: Disk) -> dict[str, bytes]:
        """`disk` has followed the log as far as this cut."""
        return disk.after_cut(self.data, self.names, random.Random(self.seed))


def places(records: Sequence[Record], database: str) -> dict[str, list[int]]:
    """Numbers of records after which a cut is interesting, by what is so about them."""
    found: dict[str, list[int]] = {
        "creation": [],
        "before a sync": [],
        "after a sync": [],
        "checkpoint": [],
        "log begins again": [],
    }
    journal = database + "-wal"
    filled = False
    names: dict[int, str] = {}
    made = False
    for number, record in enumerate(records):
        if record.kind in (Kind.OPENED, Kind.CREATED):
            names[record.file] = record.name
            filled = filled and record.name != journal
        elif record.kind == Kind.RENAMED:
            old, _, new = record.name.partition("\0")
            names = {file: new if name == old else name for file, name in names.items()}
        if not made:
            found["creation"].append(number)
            made = record.kind == Kind.DIR_SYNCED and database in names.values()
            continue
        if record.kind == Kind.SYNCED:
            found["before a sync"].append(number)
            found["after a sync"].append(number + 1)
        elif record.kind == Kind.WRITTEN and names.get(record.file) == database:
            found["checkpoint"].append(number + 1)
        elif record.kind == Kind.WRITTEN and names.get(record.file) == journal:
            if record.offset == 0 and filled:
                found["log begins again"] += range(number, number + 4)
            filled = True
    return found


def checkpoints(records: Sequence[Record], found: dict[str, list[int]]) -> int:
    """How often the database was written and then synced, given its `places`."""
    after = set(found["checkpoint"])
    writing = False
    count = 0
    for number, record in enumerate(records):
        writing = writing or number + 1 in after
        if writing and record.kind == Kind.SYNCED:
            count += 1
            writing = False
    return count


def choose(
    records: Sequence[Record],
    ends: Sequence[int],
    promises: Sequence[int],
    database: str,
    count: int,
    chance: random.Random,
) -> list[Cut]:
    """`count` cuts in the order of the log; `promises` are lengths it had at acknowledgements."""
    found = places(records, database)
    # The tightest: what was acknowledged at this very point has no later sync to save it.
    found["acknowledgement"] = [bisect_left(ends, at) + 1 for at in promises if at <= ends[-1]]
    found["anywhere"] = list(range(1, len(records) + 1))
    kinds = [kind for kind, numbers in found.items() if numbers]
    cuts: list[Cut] = []
    for number in range(count):
        place = kinds[number % len(kinds)]
        after = min(chance.choice(found[place]), len(records))
        cuts.append(
            Cut(
                after,
                ends[after - 1] if after else 0,
                place,
                chance.choices(MODES, (4, 1, 5))[0],
                chance.choice(MODES),
                chance.getrandbits(32),
            )
        )
    return sorted(cuts)
