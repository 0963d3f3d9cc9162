"""How often a message of a shared group was handed out in vain, on a file."""

from pathlib import Path

import pytest

from mqttd.core.packets import Filter, Puback, Publish, Suback, Subscribe
from mqttd.core.properties import decode_forwardable
from mqttd.core.settings import SharePolicy
from mqttd.store import admin
from tests.harness import FakeClient
from tests.store.disk import Disk

SHARED = "$share/g/t"


def govern(disk: Disk) -> None:
    keeper = disk.broker.connect_inside("keeper", "\0queues", 0xFFFFFFFF, 1, disk.now)
    assert keeper.session is not None
    disk.broker.subscribe(keeper.session, Filter(SHARED, 1), 0)
    disk.broker.leave_inside(keeper, disk.now)
    policy = SharePolicy()
    policy.redelivery_limit = 3
    assert disk.broker.govern("g", "t", policy)
    disk.commit()


def consumer(disk: Disk, name: str, expiry: int) -> FakeClient:
    client = disk.client(name, clean=False, expiry=expiry, auto_ack=False)
    client.send(Subscribe(1, [Filter(SHARED, 1)]))
    disk.commit()
    client.take_first(Suback)
    return client


def tries(packet: Publish) -> str | None:
    return dict(decode_forwardable(packet.properties).user_properties).get("mqttd-redeliveries")


@pytest.mark.parametrize("expiry", [0, 3600], ids=["transient", "durable"])
def test_the_count_survives_a_crash_that_is_counted_for_nobody(tmp_path: Path, expiry: int) -> None:
    with Disk(tmp_path / "a.db") as disk:
        govern(disk)
        disk.client("p").publish("t", b"1", 1)
        disk.commit()
        consumer(disk, "c1", expiry).drop()
        disk.commit()
        second = consumer(disk, "c2", expiry)
        (packet,) = second.messages()
        assert tries(packet) == "1"
        with disk.crash() as again:  # while it is with the second
            govern(again)
            third = consumer(again, "c3", expiry)
            (packet,) = third.messages()
            assert tries(packet) == "1"
            third.drop()
            again.commit()
            with again.crash() as once_more:
                govern(once_more)
                fourth = consumer(once_more, "c4", expiry)
                (packet,) = fourth.messages()
                assert tries(packet) == "2"
                fourth.send(Puback(packet.packet_id))
                once_more.commit()
                assert once_more.rows("SELECT count(*) FROM deliveries") == [(0,)]


def test_a_plain_group_keeps_what_a_transient_member_has_for_one_that_lasts(tmp_path: Path) -> None:
    with Disk(tmp_path / "a.db") as disk:
        consumer(disk, "lasting", 3600).drop()
        fleeting = consumer(disk, "fleeting", 0)
        publisher = disk.client("p")
        for payload in (b"1", b"2"):
            publisher.publish("t", payload, 1)
        disk.commit()
        assert len([each for each in publisher.recv() if isinstance(each, Puback)]) == 2
        first, second = fleeting.messages()
        fleeting.send(Puback(first.packet_id))
        disk.commit()
        with disk.crash() as again:
            lasting = again.client("lasting", clean=False, expiry=3600)
            again.commit()
            assert [each.payload for each in lasting.messages()] == [second.payload]
            again.commit()
            assert again.rows("SELECT count(*) FROM deliveries") == [(0,)]


def test_a_count_is_no_damage(tmp_path: Path) -> None:
    with Disk(tmp_path / "a.db") as disk:
        govern(disk)
        disk.client("p").publish("t", b"1", 1)
        for name in ("c1", "c2"):
            consumer(disk, name, 3600).drop()
            disk.commit()
        consumer(disk, "c3", 3600)
        ((state, packet_id),) = disk.rows("SELECT state, packet_id FROM deliveries")
        assert (state, packet_id) == (1 + 4 * 2, 1)
    assert admin.check(tmp_path / "a.db")["verdict"] == "good"
