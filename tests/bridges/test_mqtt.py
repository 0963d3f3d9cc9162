"""`bridge_mqtt` between real brokers: both ways, both versions, what each property becomes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import mqttd
from tests.bridges.mqtt_kit import (
    Mosquitto,
    Peer,
    bridge_of,
    bridge_to,
    properties_of,
    state_of,
    tree,
    user_of,
)
from tests.net.kit import until

VERSIONS = pytest.mark.parametrize("version", [5, "3.1.1"])


def up(broker: mqttd.Broker, name: str = "up") -> Any:
    return until(lambda: state_of(broker, name) == "up")


@VERSIONS
async def test_out_and_in_to_another_mqttd(version: Any) -> None:
    async with mqttd.Broker(tree()) as remote:
        bridge = bridge_to(
            remote.port("t"),
            version=version,
            rules=[
                {"direction": "out", "from": "s/+/t", "to": "plant/{topic[1]}"},
                {"direction": "in", "from": "cmd/#", "to": "do/{topic[1:]}"},
            ],
        )
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port("t"), "plant/#", name="there") as there,
            Peer.at(broker.port("t"), "do/#", name="here") as here,
        ):
            await up(broker)
            await here.publish("s/7/t", b"21")
            await there.publish("cmd/go/now", b"1")
            (out,) = await there.get()
            (back,) = await here.get()
            assert (out.topic, out.payload, out.qos) == ("plant/7", b"21", 1)
            assert (back.topic, back.payload, back.qos) == ("do/go/now", b"1", 1)
            await until(lambda: bridge_of(broker).status()["out"]["confirmed"] == 1)
            assert bridge_of(broker).status()["in"]["confirmed"] == 1


@VERSIONS
async def test_out_and_in_to_mosquitto(version: Any, tmp_path: Path) -> None:
    async with Mosquitto(tmp_path) as remote:
        bridge = bridge_to(remote.port, version=version, topics=["a/# out 1", 'b/# in 1 here/ ""'])
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port, "a/#", name="there") as there,
            Peer.at(broker.port("t"), "here/#", name="here") as here,
        ):
            await up(broker)
            await here.publish("a/x", b"21")
            await there.publish("b/y", b"1")
            (out,) = await there.get()
            (back,) = await here.get()
            assert (out.topic, out.payload, out.qos) == ("a/x", b"21", 1)
            assert (back.topic, back.payload, back.qos) == ("here/b/y", b"1", 1)


async def test_every_property_of_mqtt_5_passes_both_ways(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path) as remote:
        bridge = bridge_to(remote.port, topics=["a/# out 1", "b/# in 1"])
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port, "a/#", name="there") as there,
            Peer.at(broker.port("t"), "b/#", name="here") as here,
        ):
            await up(broker)
            more: dict[str, Any] = {
                "payload_format_indicator": 1,
                "content_type": "text/plain",
                "response_topic": "answers/x",
                "correlation_data": b"\0\xff",
                "user_properties": [("k", "1"), ("k", "2"), ("z", "")],
                "expiry": 100,
            }
            await here.publish("a/x", b"1", **more)
            await there.publish("b/x", b"1", **more)
            for peer in (there, here):
                (got,) = await peer.get()
                properties = properties_of(got)
                for name, value in more.items():
                    if name == "expiry":
                        assert 90 < got.message_expiry <= 100
                    elif name == "user_properties":
                        assert properties.user_properties[:3] == value
                    else:
                        assert getattr(properties, name) == value
            assert "mqttd-via" not in user_of(got)  # what comes from elsewhere has no hop of ours
            assert user_of(got)["mqttd-id"].startswith(f"{bridge_of(broker).origin}-i1-")


async def test_out_messages_have_an_id_and_a_hop() -> None:
    async with mqttd.Broker(tree()) as remote:
        bridge = bridge_to(remote.port("t"), topics=["# out 1"])
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port("t"), "#", name="there") as there,
            Peer.at(broker.port("t"), name="here") as here,
        ):
            await here.publish("a", b"1")
            await here.publish("a", b"1", user_properties=[("mqttd-id", "mine")])
            first, second = await there.get(2)
            origin = bridge_of(broker).origin
            assert user_of(first)["mqttd-id"].startswith(f"{origin}-1-")
            assert user_of(first)["mqttd-via"] == origin
            assert user_of(second)["mqttd-id"] == "mine"


async def test_both_ways_on_the_same_topics_sends_nothing_back(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path) as remote:
        bridge = bridge_to(remote.port, topics=["# both 1"])
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port, "#", name="there") as there,
            Peer.at(broker.port("t"), "#", name="here") as here,
        ):
            await up(broker)
            await here.publish("a", b"1")
            await there.publish("b", b"2")
            await here.publish("a", b"3")
            await there.publish("b", b"4")
            assert [got.payload for got in await there.get(2)] == [b"1", b"3"]
            assert [got.payload for got in await here.get(2)] == [b"2", b"4"]
            await until(lambda: bridge_of(broker).status()["out"]["confirmed"] == 2)
            assert there.got == here.got == []


async def test_a_ring_of_three_brokers_ends_where_it_began() -> None:
    async with mqttd.Broker(tree()) as a:
        first = bridge_to(a.port("t"), name="to-a", topics=["# out 1"])
        async with mqttd.Broker(tree(first)) as c:
            second = bridge_to(c.port("t"), name="to-c", topics=["# out 1"])
            third = bridge_to(a.port("t"), name="from-a", topics=["# in 1"])
            async with (
                mqttd.Broker(tree(second, third)) as b,
                Peer.at(b.port("t"), "#", name="watcher") as watcher,
                Peer.at(b.port("t"), name="here") as here,
            ):
                await up(b, "from-a")
                await up(b, "to-c")
                await asyncio.sleep(0)
                await here.publish("x", b"1")
                await until(lambda: bridge_of(b, "from-a").status()["in"]["dropped"])
                assert bridge_of(b, "from-a").status()["in"]["dropped"] == {"loop": 1}
                assert [got.payload for got in watcher.got] == [b"1"]


async def test_the_retain_flag_is_as_it_was_published(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path) as remote:
        bridge = bridge_to(remote.port, topics=["a/# out 1", "b/# in 1"])
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port, name="there") as there,
            Peer.at(broker.port("t"), name="here") as here,
        ):
            await up(broker)
            await here.publish("a/x", b"1", retain=True)
            await there.publish("b/x", b"2", retain=True)
            await until(lambda: bridge_of(broker).status()["out"]["confirmed"] == 1)
            await until(lambda: bridge_of(broker).status()["in"]["confirmed"] == 1)
            async with (
                Peer.at(remote.port, "a/#", name="late") as late,
                Peer.at(broker.port("t"), "b/#", name="late") as later,
            ):
                (kept,) = await late.get()
                assert (kept.payload, kept.retain) == (b"1", True)
                (kept,) = await later.get()
                assert (kept.payload, kept.retain) == (b"2", True)


async def test_what_is_published_there_while_the_broker_is_away_comes_later(
    tmp_path: Path,
) -> None:
    async with Mosquitto(tmp_path) as remote:
        bridge = bridge_to(remote.port, topics=["b/# in 1"])
        kept: dict[str, Any] = {"storage": {"path": str(tmp_path / "db")}}
        async with Peer.at(remote.port, name="there") as there:
            async with mqttd.Broker(tree(dict(bridge), **kept)) as broker:
                await up(broker)
            await there.publish("b/1", b"meanwhile")
            async with (
                mqttd.Broker(tree(dict(bridge), **kept)) as broker,
                Peer.at(broker.port("t"), "b/#", name="here") as here,
            ):
                assert [got.payload for got in await here.get()] == [b"meanwhile"]


async def test_overlapping_rules_in_get_one_copy_each() -> None:
    async with mqttd.Broker(tree()) as remote:
        bridge = bridge_to(
            remote.port("t"),
            rules=[
                {"direction": "in", "from": "a/#", "to": "one/{topic}"},
                {"direction": "in", "from": "a/+", "to": "two/{topic}"},
            ],
        )
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port("t"), name="there") as there,
            Peer.at(broker.port("t"), "#", name="here") as here,
        ):
            await up(broker)
            await there.publish("a/b", b"1")
            await there.publish("a/b/c", b"2")
            got = await here.get(3)
            assert [each.topic for each in got] == ["one/a/b", "two/a/b", "one/a/b/c"]


async def test_an_envelope_out_and_in_again() -> None:
    async with mqttd.Broker(tree()) as remote:
        bridge = bridge_to(
            remote.port("t"),
            version="3.1.1",
            rules=[
                {"direction": "out", "from": "a/#", "to": "raw/a", "payload": "envelope"},
                {
                    "direction": "in",
                    "from": "raw/b",
                    "to": "back/{header[mqtt-topic]}",
                    "payload": "envelope",
                },
            ],
        )
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port("t"), "raw/a", name="there") as there,
            Peer.at(broker.port("t"), "back/#", name="here") as here,
        ):
            await up(broker)
            await here.publish("a/x", b"\xff", content_type="x/y", user_properties=[("k", "v")])
            (got,) = await there.get()
            tree_ = json.loads(got.payload)
            assert tree_["topic"] == "a/x"
            assert tree_["payload_base64"] == "/w=="
            tree_["id"], tree_["via"] = "else-1", "else"
            await there.publish("raw/b", json.dumps(tree_).encode())
            (back,) = await here.get()
            assert (back.topic, back.payload) == ("back/a/x", b"\xff")
            assert properties_of(back).content_type == "x/y"
            assert user_of(back) == {"k": "v", "mqttd-id": "else-1", "mqttd-via": "else"}


async def test_a_message_that_is_too_large_for_the_remote_broker_is_dead_lettered() -> None:
    small = tree(limits={"max_packet_size": "1KiB"})
    async with mqttd.Broker(small) as remote:
        bridge = bridge_to(remote.port("t"), topics=["a/# out 1"])
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(broker.port("t"), "$dlq/#", name="here") as here,
            Peer.at(remote.port("t"), "a/#", name="there") as there,
        ):
            await up(broker)
            await here.publish("a/large", b"x" * 2000)
            await here.publish("a/small", b"y")
            (dead,) = await here.get()
            assert (dead.topic, len(dead.payload)) == ("$dlq/up", 2000)
            assert user_of(dead)["mqttd-dlq-reason"].startswith("too large: ")
            assert [got.payload for got in await there.get()] == [b"y"]


async def test_a_remote_broker_that_refuses_says_so_in_the_state_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    async with Mosquitto(tmp_path, f"password_file {passwords}") as remote:
        secret = tmp_path / "secret"
        secret.write_text("wrong\n")
        remote.config.write_text(
            remote.config.read_text().replace("allow_anonymous true", "allow_anonymous false")
        )
        await remote.stop()
        await remote.start()
        bridge = bridge_to(
            remote.port, username="bridge", password_file=str(secret), topics=["a/# out 1"]
        )
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(broker.port("t"), "$SYS/broker/connection/#", name="here") as here,
        ):
            await until(lambda: state_of(broker) == "refused")
            status = bridge_of(broker).status()
            assert "refuses the connection" in status["reason"]
            assert "wrong" not in status["reason"]
            (state,) = await here.get()
            assert (state.topic, state.payload) == ("$SYS/broker/connection/up/state", b"0")
            await here.publish("a/x", b"1")
            assert bridge_of(broker).status()["out"]["in_flight"] == 1


async def test_pause_and_resume() -> None:
    async with mqttd.Broker(tree()) as remote:
        bridge = bridge_to(remote.port("t"), topics=["a/# out 1"])
        async with (
            mqttd.Broker(tree(bridge)) as broker,
            Peer.at(remote.port("t"), "a/#", name="there") as there,
            Peer.at(broker.port("t"), name="here") as here,
        ):
            await up(broker)
            plugin = bridge_of(broker)
            await plugin.control("pause", {})
            await until(lambda: state_of(broker) == "paused")
            await here.publish("a/x", b"1")
            assert there.got == []
            await plugin.control("resume", {})
            assert [got.payload for got in await there.get()] == [b"1"]
            with pytest.raises(ValueError, match="has no action 'dance'"):
                await plugin.control("dance", {})


async def test_a_subscription_that_no_rule_asks_for_any_more_is_taken_back(
    tmp_path: Path,
) -> None:
    async with mqttd.Broker(tree()) as remote:
        kept: dict[str, Any] = {"storage": {"path": str(tmp_path / "db")}}
        for line in ("a/# in 1", "b/# in 1"):
            bridge = bridge_to(remote.port("t"), remote_client_id="b", topics=[line])
            async with mqttd.Broker(tree(bridge, **kept)) as broker:
                await up(broker)
        session = remote._app.broker.sessions["b"]
        assert list(session.subscriptions) == ["b/#"]
