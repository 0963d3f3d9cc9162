"""Tables of plugins: what is in them, what is recorded of a change, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import journal as j
from mqttd.core.journal import Batch, Journal
from mqttd.core.tables import MAX_NAME, MAX_VALUE, Tables


def made(enabled: bool = True) -> tuple[Tables, Journal]:
    journal = Journal(enabled)
    return Tables(journal), journal


def take(journal: Journal, may_wait: bool = False) -> Batch:
    batch = journal.take(may_wait)
    assert batch is not None
    return batch


def said(batch: Batch) -> list[tuple[int, str, str, bytes]]:
    """What the operations of a batch are about."""
    return [(op.kind, op.owner, op.name, op.value) for op in batch.ops]


def test_a_row_is_what_it_was_last_set_to() -> None:
    tables, _ = made()
    tables.set("bans", "client", b"1")
    tables.set("bans", "client", b"2")
    tables.set("bans", "other", b"")
    tables.set("delayed", "client", b"3")
    assert tables.get("bans", "client") == b"2"
    assert tables.get("bans", "other") == b""
    assert tables.get("bans", "nobody") is None
    assert tables.get("nothing", "client") is None
    assert sorted(tables.items("bans")) == [("client", b"2"), ("other", b"")]
    assert tables.items("delayed") == [("client", b"3")]
    assert tables.items("nothing") == []


def test_what_is_listed_may_be_dropped_meanwhile() -> None:
    tables, _ = made()
    for number in range(5):
        tables.set("t", f"k{number}", b"v")
    for key, _ in tables.items("t"):
        tables.drop("t", key)
    assert tables.items("t") == []


def test_a_change_is_an_operation_and_returns_its_batch() -> None:
    tables, journal = made()
    assert tables.set("t", "k", b"v") == 1
    assert tables.set("t", "k", b"w") == 1
    assert said(take(journal)) == [(j.TABLE_SET, "t", "k", b"v"), (j.TABLE_SET, "t", "k", b"w")]
    assert tables.drop("t", "k") == 2
    assert said(take(journal)) == [(j.TABLE_DROP, "t", "k", b"")]


def test_no_change_is_no_operation_and_waits_for_the_one_that_made_it_so() -> None:
    tables, journal = made()
    assert tables.drop("t", "k") == 0  # nothing was ever recorded
    tables.set("t", "k", b"v")
    assert tables.set("t", "k", b"v") == 1  # in the batch that is being gathered
    assert len(take(journal).ops) == 1
    assert tables.set("t", "k", b"v") == 1  # in the one that is under way
    tables.drop("t", "k")
    assert len(take(journal).ops) == 1
    assert tables.drop("t", "k") == 2
    assert tables.clear("t") == 2
    assert journal.take() is None


def test_clearing_drops_the_rows_of_one_table() -> None:
    tables, journal = made()
    tables.set("t", "a", b"1")
    tables.set("t", "b", b"2")
    tables.set("u", "a", b"3")
    take(journal)
    assert tables.clear("t") == 2
    assert tables.rows == {"u": {"a": b"3"}}
    assert said(take(journal)) == [(j.TABLE_DROP, "t", "a", b""), (j.TABLE_DROP, "t", "b", b"")]


def test_a_table_without_rows_is_none() -> None:
    tables, _ = made()
    tables.set("t", "k", b"v")
    tables.drop("t", "k")
    assert tables.rows == {}


def test_without_a_store_rows_last_as_long_as_the_process() -> None:
    tables, journal = made(enabled=False)
    assert tables.set("t", "k", b"v") == 0
    assert tables.set("t", "k", b"v") == 0
    assert tables.get("t", "k") == b"v"
    assert tables.drop("t", "nothing") == 0
    assert tables.clear("t") == 0
    assert tables.get("t", "k") is None
    assert journal.take() is None


def test_what_comes_from_the_store_is_not_written_again() -> None:
    tables, journal = made()
    tables.restore("t", "k", b"v")
    tables.restore("t", "l", b"w")
    assert sorted(tables.items("t")) == [("k", b"v"), ("l", b"w")]
    assert journal.take() is None
    assert tables.set("t", "k", b"v") == 0
    assert tables.drop("t", "l") == 1


def test_a_row_may_be_kept_back_and_is_written_as_it_was_recorded() -> None:
    """The operation holds the value, so that patience does no harm."""
    tables, journal = made()
    journal.patient = True
    tables.set("t", "k", b"first")
    assert journal.take(True) is None
    assert tables.set("t", "k", b"second") == 2
    batch = take(journal, may_wait=True)
    assert batch.seq == 1
    assert said(batch) == [(j.TABLE_SET, "t", "k", b"first")]
    batch = take(journal)
    assert batch.seq >= 2
    assert said(batch) == [(j.TABLE_SET, "t", "k", b"second")]


# What a store would choke on.


@pytest.mark.parametrize(
    ("table", "key", "value", "error", "text"),
    [
        (b"t", "k", b"v", TypeError, "str"),
        ("t", 5, b"v", TypeError, "str"),
        ("t", "k", "v", TypeError, "bytes"),
        ("t", "k", None, TypeError, "bytes"),
        ("t\udc80", "k", b"v", ValueError, "the name of a table has to be valid Unicode"),
        ("t", "k\ud800", b"v", ValueError, "a key has to be valid Unicode: surrogates"),
        ("t", "é" * 32768, b"v", ValueError, "a key may have 65535 bytes as UTF-8, this one has"),
        ("t" * 65536, "k", b"v", ValueError, "the name of a table may have 65535 bytes"),
    ],
)
def test_what_could_not_be_stored_is_refused(
    table: str, key: str, value: bytes, error: type[Exception], text: str
) -> None:
    tables, journal = made()
    with pytest.raises(error, match=text):
        tables.set(table, key, value)
    assert tables.rows == {}
    assert journal.take() is None


def test_the_longest_that_is_taken() -> None:
    tables, _ = made()
    name = "n" * MAX_NAME
    assert tables.set(name, name, b"v") == 1
    huge = bytes(MAX_VALUE + 1)  # never touched, so no memory is taken for it
    with pytest.raises(ValueError, match="a value may have 536870912 bytes, this one has") as found:
        tables.set("t", "k", huge)
    assert len(str(found.value)) < 100
    assert tables.get("t", "k") is None


# Whatever a plugin does.

NAMES = st.sampled_from(["", "a", "b"])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), NAMES, NAMES, st.sampled_from([b"", b"1", b"2"])),
        st.tuples(st.just("drop"), NAMES, NAMES, st.just(b"")),
        st.tuples(st.just("clear"), NAMES, NAMES, st.just(b"")),
        st.tuples(st.just("take"), NAMES, NAMES, st.just(b"")),
    ),
    max_size=60,
)


@given(changes=CHANGES, patient=st.booleans())
def test_what_is_recorded_leads_to_what_is_there(
    changes: list[tuple[str, str, str, bytes]], patient: bool
) -> None:
    """And what is durable is what was there when the last change was made that it covers."""
    tables, journal = made()
    journal.patient = patient
    wanted: dict[tuple[str, str], bytes] = {}
    written: dict[tuple[str, str], bytes] = {}
    promises: list[tuple[int, dict[tuple[str, str], bytes]]] = [(0, {})]

    def write(batch: Batch | None) -> None:
        if batch is None:
            return
        for op in batch.ops:
            if op.kind == j.TABLE_SET:
                written[op.owner, op.name] = op.value
            else:
                assert op.kind == j.TABLE_DROP
                del written[op.owner, op.name]
        covered = [then for barrier, then in promises if barrier <= batch.seq]
        assert written == covered[-1]

    for move, table, key, value in changes:
        if move == "take":
            write(journal.take(True))
            continue
        if move == "set":
            wanted[table, key] = value
            barrier = tables.set(table, key, value)
        elif move == "drop":
            wanted.pop((table, key), None)
            barrier = tables.drop(table, key)
        else:
            wanted = {each: kept for each, kept in wanted.items() if each[0] != table}
            barrier = tables.clear(table)
        promises.append((barrier, dict(wanted)))
        assert {(t, k): v for t in tables.rows for k, v in tables.items(t)} == wanted
        assert all(tables.rows.values())
    write(journal.take())
    assert written == wanted
