"""What the model test found in the core, each as small as it gets. All of it is mended."""

from pathlib import Path

import pytest

from mqttd.core.packets import Connect, Filter, Publish, Subscribe
from mqttd.core.properties import Properties
from tests.harness import FakeClient, Harness
from tests.store.disk import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "first" / "model.db")


def subscribe_to(topic_filter: str, qos: int) -> Subscribe:
    return Subscribe(1, [Filter(topic_filter, qos)])


def test_session_expiry_goes_on_over_two_starts(disk: Disk) -> None:
    """Who was cut off by a crash expires 5 s after the next start."""
    with disk:
        disk.client("a", expiry=5)
        disk.commit()
        with disk.crash(1.0) as second:
            second.commit()
            second.advance(4.0)
            second.commit()
            with second.crash(4.0) as third:  # 8 s after the first that found the connection gone
                assert "a" not in third.broker.sessions


def test_message_that_expired_before_it_was_ever_sent(disk: Disk) -> None:
    """[MQTT-3.3.2-5] the subscriber left before the commit, and came late."""
    with disk:
        subscriber = disk.client("s", expiry=600)
        subscriber.send(subscribe_to("t", 2))
        disk.commit()
        publisher = disk.client("p")
        publisher.publish("t", b"x", 2, message_expiry=5)
        subscriber.drop()
        disk.commit()
        disk.advance(60.0)
        subscriber = disk.client("s", clean=False, expiry=600)
        assert [p for p in subscriber.recv() if isinstance(p, Publish)] == []


def test_message_that_expired_while_connack_was_held(disk: Disk) -> None:
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6] as of now, not of the CONNECT."""
    with disk:
        subscriber = disk.client("s", expiry=600)
        subscriber.send(subscribe_to("t", 1))
        disk.commit()
        subscriber.drop()
        disk.client("p").publish("t", b"x", 1, message_expiry=5)
        disk.commit()
        subscriber = connecting(disk, "s")
        disk.advance(6.0)
        disk.commit()
        assert [p for p in subscriber.recv() if isinstance(p, Publish)] == []


def test_session_that_the_client_ended_does_not_come_back(disk: Disk) -> None:
    """Session Present 0 told the client to forget: a crash must not undo it."""
    with disk:
        client = disk.client("a", expiry=600)
        client.send(subscribe_to("t", 2))
        disk.commit()
        ended = Properties()
        ended.session_expiry_interval = 0
        client.disconnect(0, ended)
        client = connecting(disk, "a")
        told = bool(client.received)  # CONNACK, with Session Present 0
        with disk.crash() as other:
            client = other.client("a", clean=False, expiry=600)
            assert not (told and client.connack.session_present)


def connecting(harness: Harness, name: str) -> FakeClient:
    """A client whose CONNECT was sent, answered or not."""
    client = harness.open()
    properties = Properties()
    properties.session_expiry_interval = 600
    client.send(Connect("MQTT", 5, False, 0, name, None, None, None, properties))
    return client
