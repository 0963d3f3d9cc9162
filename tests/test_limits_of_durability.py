"""What durability doesn't promise, as docs/explanation/delivery.md says, and no more than that."""

from pathlib import Path

import pytest

from mqttd.core.packets import Connect, Filter, Puback, Pubrec, Suback, Subscribe
from mqttd.core.properties import Properties
from mqttd.core.settings import Settings
from tests.harness import Harness
from tests.store.disk import Disk, away, fill, payloads, subscribe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mqttd.db"


def test_a_message_sent_before_it_is_stored_may_come_again_as_a_new_one(path: Path) -> None:
    """QoS 1 goes out before its commit: of that nothing is left, so the repetition is a first."""
    with Disk(path) as disk:
        reader = disk.client("reader", expiry=3600, auto_ack=False)
        subscribe(disk, reader, "a")
        fill(disk, "a", [0])
        (first,) = reader.messages()
        reader.send(Puback(first.packet_id))
        disk.commit()
        source = disk.client("source")
        source.publish("a", b"1", qos=1)
        (sent,) = reader.messages()  # at once
        source.expect_nothing()  # it isn't in the file yet
        with disk.crash() as other:
            again = other.client("reader", clean=False, expiry=3600, auto_ack=False)
            assert again.connack.session_present
            again.expect_nothing()
            source = other.client("source")
            source.publish("a", b"1", qos=1, dup=True)
            (repeated,) = again.messages()
            assert (repeated.payload, repeated.dup) == (sent.payload, False)
            assert repeated.packet_id != sent.packet_id
            other.commit()
            assert source.take_first(Puback).reason == 0


def test_a_qos_2_message_is_not_sent_before_it_is_stored(path: Path) -> None:
    with Disk(path) as disk:
        reader = disk.client("reader", expiry=3600, auto_ack=False)
        subscribe(disk, reader, "a", 2)
        source = disk.client("source")
        source.publish("a", b"1", qos=2)
        source.expect_nothing()
        reader.expect_nothing()
        disk.commit()
        assert source.take_first(Pubrec).reason == 0
        assert payloads(reader) == [b"1"]


def test_a_queued_qos_0_message_may_come_twice_after_a_crash(path: Path) -> None:
    """It is sent once and forgotten; what a crash undoes is the forgetting."""
    settings = Settings()
    settings.queue_qos0 = True
    with Disk(path, settings=settings) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(3), qos=0)
        lasting = Properties()
        lasting.session_expiry_interval = 3600
        came = disk.open()
        came.send(Connect(clean_start=False, client_id="away", properties=lasting))
        batch = disk.broker.take_batch()
        assert batch is not None
        disk.write(batch)
        disk.broker.committed(batch.seq, disk.now)  # which lets CONNACK go, and what waited
        disk.flush()
        assert payloads(came) == [b"0", b"1", b"2"]
        assert disk.rows("SELECT count(*) FROM deliveries") == [(3,)]
        with disk.crash() as other:
            again = other.client("away", clean=False, expiry=3600)
            assert payloads(again) == [b"0", b"1", b"2"]
            with other.crash() as third:
                last = third.client("away", clean=False, expiry=3600)
                assert payloads(last) == []


def test_qos_0_is_not_written_for_anybody_unless_it_is_queued_for(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        reader = disk.client("reader", expiry=3600)
        reader.send(Subscribe(1, [Filter("a", 0)], 0))
        disk.commit()
        assert reader.take_first(Suback).reasons == [0]
        before = disk.rows("SELECT count(*) FROM messages")
        fill(disk, "a", range(3), qos=0)
        assert payloads(reader) == [b"0", b"1", b"2"]
        assert disk.rows("SELECT count(*) FROM messages") == before == [(0,)]


def test_without_a_store_nothing_is_waited_for() -> None:
    h = Harness()
    reader = h.client("reader", expiry=3600)
    reader.subscribe("a", 2)
    source = h.client("source")
    source.publish("a", b"1", qos=2)
    assert source.take_first(Pubrec).reason == 0
    assert payloads(reader) == [b"1"]
