"""Ways past an access list that other brokers left open, tried on a broker with acl_file."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import mqttd
from mqttd.core import encode, spec
from mqttd.core.packets import (
    Connack,
    Connect,
    Filter,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Will,
)
from mqttd.core.properties import Properties
from tests.net.kit import Wire, loopback

DENIED = spec.NOT_AUTHORIZED


class House:
    """A broker and its access list. `admin` may do everything, whatever the list says."""

    def __init__(self, broker: mqttd.Broker, file: Path, admin: Wire) -> None:
        self.broker = broker
        self.admin = admin
        self._file = file
        self._version = 0

    async def rule(self, text: str) -> None:
        """Put another list in force, and wait until it is."""
        self._version += 1
        probe = f"in force/{self._version}"
        other = self._file.with_suffix(".new")
        admin = ("read #", "read $SYS/#", "write t/#", f"write {probe}")
        lines = [text, "user admin", *(f"topic {rule}" for rule in admin)]
        other.write_text("\n".join(lines))
        os.replace(other, self._file)
        while await published(self.admin, probe) == DENIED:
            pass

    @asynccontextmanager
    async def client(
        self,
        client_id: str,
        will: Will | None = None,
        clean: bool = True,
        expected: int = spec.SUCCESS,
    ) -> AsyncIterator[Wire]:
        async with await Wire.open(self.broker.port("tcp")) as wire:
            await connected(wire, client_id, None, will, clean, expected)
            yield wire


async def connected(
    wire: Wire,
    client_id: str,
    username: str | None = None,
    will: Will | None = None,
    clean: bool = True,
    expected: int = spec.SUCCESS,
) -> None:
    lasting = Properties()
    lasting.session_expiry_interval = 0 if clean else 1000
    packet = Connect("MQTT", 5, clean, 0, client_id, will, username, None, lasting)
    wire.send(encode.encode_packet(packet, 5))
    assert (await wire.receive(Connack)).reason == expected


async def subscribed(wire: Wire, topic_filter: str) -> int:
    wire.send(Subscribe(1, [Filter(topic_filter, 1, False, False, 0)]))
    return (await wire.receive(Suback)).reasons[0]


async def published(wire: Wire, topic: str, retain: bool = False) -> int:
    wire.send(Publish(topic, b"x", 1, retain, False, 7))
    return (await wire.receive(Puback)).reason


async def arrives(wire: Wire) -> str:
    packet = await wire.receive(Publish)
    if packet.qos:
        wire.send(Puback(packet.packet_id))
    return packet.topic


@asynccontextmanager
async def house(tmp_path: Path, text: str) -> AsyncIterator[House]:
    file = tmp_path / "acl"
    file.write_text("")
    plugin = {"use": "acl_file", "config": {"file": str(file), "check_interval": "100ms"}}
    config = {"listeners": [loopback()], "plugins": [plugin]}
    async with (
        mqttd.Broker(config) as broker,
        await Wire.open(broker.port("tcp")) as admin,
    ):
        await connected(admin, "admin", "admin")
        made = House(broker, file, admin)
        await made.rule(text)
        yield made


async def test_cve_2018_12546_retained_messages_stop_at_a_reader_without_the_right(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, "topic t/#") as home:
        for topic in ("t/open", "t/secret"):
            await published(home.admin, topic, retain=True)
        await home.rule("topic t/#\ntopic deny t/secret")
        async with home.client("reader") as reader:
            assert await subscribed(reader, "t/#") == spec.GRANTED_QOS_1
            assert await arrives(reader) == "t/open"
            await published(home.admin, "t/last")
            assert await arrives(reader) == "t/last"


async def test_cve_2018_12546_a_retained_message_goes_with_the_readers_right_alone(
    tmp_path: Path,
) -> None:
    """Who has published it, and whether they still could, is not asked: see docs."""
    async with house(tmp_path, "topic t/#") as home:
        async with home.client("writer") as writer:
            await published(writer, "t/kept", retain=True)
        await home.rule("topic read t/#")
        async with home.client("reader") as reader:
            assert await published(reader, "t/kept") == DENIED
            assert await subscribed(reader, "t/#") == spec.GRANTED_QOS_1
            assert await arrives(reader) == "t/kept"


async def test_cve_2021_34434_a_durable_subscription_ends_with_the_right(tmp_path: Path) -> None:
    async with house(tmp_path, "topic t/#") as home:
        async with home.client("durable", clean=False) as durable:
            for topic_filter in ("t/a/#", "t/b/#"):
                assert await subscribed(durable, topic_filter) == spec.GRANTED_QOS_1
        await published(home.admin, "t/a/queued before")
        await home.rule("topic t/b/#")
        await published(home.admin, "t/a/queued after")
        await published(home.admin, "t/b/queued")
        async with home.client("durable", clean=False) as durable:
            assert await arrives(durable) == "t/b/queued"
            await published(home.admin, "t/a/live")
            await published(home.admin, "t/b/live")
            assert await arrives(durable) == "t/b/live"
        await home.rule("topic t/#")
        async with home.client("durable", clean=False) as durable:
            await published(home.admin, "t/a/again")  # the subscription is gone, not only silent
            await published(home.admin, "t/b/again")
            assert await arrives(durable) == "t/b/again"


async def test_emqx_10192_a_will_is_published_only_if_that_is_still_allowed(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, "topic t/#") as home:
        assert await subscribed(home.admin, "t/#") == spec.GRANTED_QOS_1
        async with (
            home.client("one", Will("t/gone/one", b"x")),
            home.client("two", Will("t/kept/two", b"x")),
        ):
            await home.rule("topic t/kept/#")
        assert await arrives(home.admin) == "t/kept/two"
        async with home.client("three", Will("t/kept/three", b"x")):
            pass
        assert await arrives(home.admin) == "t/kept/three"


async def test_emqx_10192_what_was_queued_is_judged_when_it_is_delivered(tmp_path: Path) -> None:
    async with house(tmp_path, "topic t/#") as home:
        async with home.client("reader", clean=False) as reader:
            assert await subscribed(reader, "t/#") == spec.GRANTED_QOS_1
        for topic in ("t/secret", "t/open"):
            await published(home.admin, topic)
        await home.rule("topic t/#\ntopic deny t/secret")
        async with home.client("reader", clean=False) as reader:
            assert await arrives(reader) == "t/open"


@pytest.mark.parametrize("topic_filter", ["t/x", "t/#", "+/x", "#", "$share/g/t/x", "$share/g/#"])
async def test_moquette_919_after_a_refused_subscribe_nothing_arrives(
    tmp_path: Path, topic_filter: str
) -> None:
    async with (
        house(tmp_path, "topic read ok\ntopic deny #") as home,
        home.client("reader") as reader,
    ):
        assert await subscribed(reader, topic_filter) == DENIED
        await published(home.admin, "t/x")
        # Had anything arrived, it would come before this answer.
        assert await subscribed(reader, topic_filter) == DENIED


@pytest.mark.parametrize("topic", ["$SYS", "$SYS/broker/x", "$SYS/a/new/clients"])
async def test_aedes_597_mochi_503_nobody_publishes_below_the_brokers_topics(
    tmp_path: Path, topic: str
) -> None:
    """Not even with a list that allows it, by PUBLISH or by a will."""
    rules = "topic write w\ntopic $SYS/#"
    async with house(tmp_path, rules) as home:
        for topic_filter in ("w", topic):
            assert await subscribed(home.admin, topic_filter) == spec.GRANTED_QOS_1
        async with await Wire.open(home.broker.port("tcp")) as wire:
            packet = Connect("MQTT", 5, True, 0, "bad", Will(topic, b"x"), None, None, Properties())
            wire.send(encode.encode_packet(packet, 5))
            assert (await wire.receive(Connack)).reason >= spec.UNSPECIFIED_ERROR
        async with home.client("good") as wire:
            assert await published(wire, topic) >= spec.UNSPECIFIED_ERROR
        async with home.client("better") as wire:
            await published(wire, "w")
        assert await arrives(home.admin) == "w"


async def test_mochi_503_a_will_needs_the_right_when_it_is_left_and_when_it_is_published(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, "topic write t/w") as home:
        assert await subscribed(home.admin, "t/#") == spec.GRANTED_QOS_1
        async with await Wire.open(home.broker.port("tcp")) as wire:
            will = Will("t/x", b"x")
            packet = Connect("MQTT", 5, True, 0, "bad", will, None, None, Properties())
            wire.send(encode.encode_packet(packet, 5))
        async with home.client("good", Will("t/w", b"x")):
            pass
        assert await arrives(home.admin) == "t/w"
