"""The model of a disk: what a cut may leave of which operations."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.power.rebuild import (
    MODES,
    SECTOR,
    Disk,
    Kind,
    Record,
    checkpoints,
    choose,
    decode,
    encode,
    places,
)

MADE = Record(Kind.CREATED, 7, "a")
SYNCED = Record(Kind.SYNCED, 7)
NAMED = Record(Kind.DIR_SYNCED)


def wrote(data: bytes, offset: int = 0, file: int = 7) -> Record:
    return Record(Kind.WRITTEN, file, "", offset, len(data), data)


def disk_after(*records: Record, before: dict[str, bytes] | None = None) -> Disk:
    disk = Disk(before)
    for record in records:
        disk.apply(record)
    return disk


def test_a_log_and_back() -> None:
    records = [MADE, wrote(b"abc", 5), Record(Kind.RENAMED, 0, "a\0é"), SYNCED, NAMED]
    log = b"".join(map(encode, records))
    found, ends = decode(log)
    assert found == records
    assert ends[-1] == len(log)
    # What a kill tore isn't there; everything before it is.
    for size in range(ends[3], len(log)):
        assert decode(log[:size]) == (records[:4], ends[:4])


def test_after_the_last_sync() -> None:
    disk = disk_after(MADE, NAMED, wrote(b"one"), SYNCED, wrote(b"two"), wrote(b"!", 5))
    assert disk.after_cut("dropped") == {"a": b"one"}
    assert disk.after_cut("kept") == {"a": b"two\0\0!"}


def test_a_new_length_waits_for_a_sync_too() -> None:
    shorter = Record(Kind.TRUNCATED, 7, length=2)
    longer = Record(Kind.TRUNCATED, 7, length=4)
    room = Record(Kind.ALLOCATED, 7, length=3)
    disk = disk_after(MADE, NAMED, wrote(b"abcdef"), SYNCED, shorter, longer, room)
    assert disk.after_cut("dropped") == {"a": b"abcdef"}
    assert disk.after_cut("kept") == {"a": b"ab\0\0"}
    disk.apply(SYNCED)
    assert disk.after_cut("dropped") == {"a": b"ab\0\0"}


def test_a_name_waits_for_a_sync_of_its_directory() -> None:
    disk = disk_after(MADE, wrote(b"x"), SYNCED)
    assert disk.after_cut("kept", "dropped") == {}
    assert disk.after_cut("dropped", "kept") == {"a": b"x"}
    disk.apply(NAMED)
    assert disk.after_cut("dropped", "dropped") == {"a": b"x"}
    disk.apply(Record(Kind.RENAMED, 0, "a\0b"))
    disk.apply(Record(Kind.CREATED, 8, "c"))
    disk.apply(Record(Kind.REMOVED, 0, "b"))
    assert disk.after_cut("kept", "dropped") == {"a": b"x"}
    assert disk.after_cut("kept", "kept") == {"c": b""}
    # In their order, whatever the order of chance.
    seen = {tuple(disk.after_cut("kept", "torn", random.Random(n))) for n in range(50)}
    assert seen == {("a",), ("b",), ("b", "c"), ("c",)}


def test_a_rename_over_a_file() -> None:
    disk = disk_after(
        Record(Kind.OPENED, 1, "new"),
        Record(Kind.RENAMED, 0, "new\0old"),
        before={"new": b"n", "old": b"o"},
    )
    assert disk.after_cut("kept", "dropped") == {"new": b"n", "old": b"o"}
    assert disk.after_cut("kept", "kept") == {"old": b"n"}


def test_the_number_of_a_file_that_was_removed_comes_back() -> None:
    disk = disk_after(MADE, wrote(b"1"), Record(Kind.REMOVED, 0, "a"), MADE, wrote(b"2"), SYNCED)
    assert disk.after_cut("dropped", "kept") == {"a": b"2"}


def test_a_sync_that_failed_makes_sure_of_nothing_ever() -> None:
    failed = Record(Kind.SYNC_FAILED, 7)
    disk = disk_after(MADE, NAMED, wrote(b"1234"), failed, wrote(b"x", 1), SYNCED)
    assert disk.after_cut("dropped") == {"a": b"\0x"}
    assert disk.after_cut("kept") == {"a": b"1x34"}


@pytest.mark.parametrize(
    "record",
    [
        Record(Kind.CREATED, 7, "deeper/a"),
        Record(Kind.UNKNOWN, 0, "something"),
    ],
)
def test_what_the_model_has_no_answer_to(record: Record) -> None:
    with pytest.raises(ValueError, match="no answer"):
        Disk().apply(record)
    with pytest.raises(KeyError):
        Disk().apply(wrote(b"into a file that nobody has opened"))


writes = st.lists(
    st.one_of(
        st.builds(wrote, st.binary(min_size=1, max_size=1600), st.integers(0, 3000)),
        st.builds(lambda n: Record(Kind.TRUNCATED, 7, length=n), st.integers(0, 3000)),
        st.just(SYNCED),
    ),
    max_size=12,
)


@given(writes, st.integers())
def test_a_sector_is_as_it_once_was(records: list[Record], seed: int) -> None:
    """Every sector of a torn file stood like that at some instant since the last sync."""
    disk = disk_after(MADE, NAMED)
    history = [b""]
    for record in records:
        disk.apply(record)
        if record.kind == Kind.SYNCED:
            history = []
        history.append(disk.after_cut("kept")["a"])
    torn = disk.after_cut("torn", "torn", random.Random(seed))["a"]
    truncated = any(record.kind == Kind.TRUNCATED for record in records)
    if truncated:
        return  # zeros may then come from a length that took effect later
    for at in range(0, len(torn), SECTOR):
        sector = torn[at : at + SECTOR].ljust(SECTOR, b"\0")
        once = {each[at : at + SECTOR].ljust(SECTOR, b"\0") for each in history}
        assert sector in once


@given(writes, st.integers())
def test_what_was_synced_last_is_there_in_every_mode(records: list[Record], seed: int) -> None:
    disk = disk_after(MADE, NAMED, *records, SYNCED)
    kept = disk.after_cut("kept", "kept")
    for data in MODES:
        for names in MODES:
            assert disk.after_cut(data, names, random.Random(seed)) == kept


@given(writes, st.integers())
def test_to_ask_changes_nothing(records: list[Record], seed: int) -> None:
    disk = disk_after(MADE, *records)
    before = [disk.after_cut(mode, mode, random.Random(seed)) for mode in MODES]
    assert [disk.after_cut(mode, mode, random.Random(seed)) for mode in MODES] == before


def test_torn_finds_every_combination_of_sectors() -> None:
    disk = disk_after(MADE, NAMED, wrote(b"a" * SECTOR * 3), SYNCED, wrote(b"b" * SECTOR * 3))
    found = {disk.after_cut("torn", "kept", random.Random(n))["a"][::SECTOR] for n in range(300)}
    assert found == {bytes([x, y, z]) for x in b"ab" for y in b"ab" for z in b"ab"}


def test_where_to_cut() -> None:
    records = [
        Record(Kind.CREATED, 1, "db.new"),
        wrote(b"x", file=1),
        Record(Kind.SYNCED, 1),
        Record(Kind.RENAMED, 0, "db.new\0db"),
        NAMED,
        Record(Kind.CREATED, 2, "db-wal"),
        wrote(b"y", file=2),
        Record(Kind.SYNCED, 2),
        wrote(b"y", file=1),
        Record(Kind.SYNCED, 1),
        wrote(b"z", file=2),
    ]
    found = places(records, "db")
    assert checkpoints(records, found) == 1
    assert found == {
        "creation": [0, 1, 2, 3, 4],
        "before a sync": [7, 9],
        "after a sync": [8, 10],
        "checkpoint": [9],
        "log begins again": [10, 11, 12, 13],
    }
    ends = decode(b"".join(map(encode, records)))[1]
    cuts = choose(records, ends, [ends[7], ends[7] + 1], "db", 60, random.Random(1))
    assert len(cuts) == 60
    assert cuts == sorted(cuts)
    assert all(cut.at == (ends[cut.after - 1] if cut.after else 0) for cut in cuts)
    # At a promise: not a byte before what the client had seen, not a record later.
    assert {cut.after for cut in cuts if cut.place == "acknowledgement"} == {8, 9}
