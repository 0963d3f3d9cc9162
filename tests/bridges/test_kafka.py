"""`bridge_kafka` with a real Kafka: both ways, refusals, poison, and what is killed meanwhile."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from mqttd_plugins.bridge_kafka import BridgeKafka

import mqttd
from tests.bridges.far_kafka import PLUGIN, FarKafka, make_topics
from tests.bridges.mqtt_kit import Peer, properties_of, user_of
from tests.bridges.servers import Kafka
from tests.bridges.trial import trial
from tests.net.kit import until
from tests.tls import Authority

pytestmark = [pytest.mark.bridges, pytest.mark.xdist_group("kafka")]

_NUMBERS = itertools.count(1)
PATIENCE = 60.0


def topic() -> str:
    """A name that no other test uses."""
    return f"t{next(_NUMBERS)}"


@contextlib.asynccontextmanager
async def bridged(
    kafka: Kafka, *rules: dict[str, Any], port: int = 0, **more: Any
) -> AsyncIterator[tuple[BridgeKafka, Peer]]:
    """A broker with a bridge, and a client that gets `in/#` and the dead letters."""
    config = {
        "addresses": [f"{kafka.host}:{port or kafka.port}"],
        "group": topic(),
        "retry_first": "50ms",
        "retry_most": "200ms",
        "rules": list(rules),
        **more,
    }
    tree = {
        "listeners": [{"name": "t", "bind": "127.0.0.1:0", "allow_anonymous": True}],
        "plugins": [{"use": PLUGIN, "name": "up", "config": config}],
        "storage": {"path": ":memory:"},
    }
    async with (
        mqttd.Broker(tree) as broker,
        Peer.at(broker.port("t"), "in/#", "$dlq/#", name="here") as here,
    ):
        assert broker._app.hooks is not None
        bridge = broker._app.hooks.plugin("up")
        assert isinstance(bridge, BridgeKafka)
        yield bridge, here


def state(bridge: BridgeKafka) -> str:
    assert bridge.link is not None
    return bridge.link.state


async def patiently(condition: Any) -> None:
    """`until`, for what a server has to do first."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


async def records(kafka: Kafka, name: str, number: int = 1) -> list[Any]:
    """The first records of a topic."""
    consumer = AIOKafkaConsumer(
        name, bootstrap_servers=f"{kafka.host}:{kafka.port}", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(PATIENCE):
            return [await consumer.getone() for _ in range(number)]
    finally:
        await consumer.stop()


async def produce(kafka: Kafka, name: str, *values: bytes, **more: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=f"{kafka.host}:{kafka.port}", acks="all")
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(name, value, **more)
    finally:
        await producer.stop()


def out(name: str, source: str = "s/#", **more: Any) -> dict[str, Any]:
    return {"direction": "out", "from": source, "to": name, **more}


def back(name: str, to: str = "in/{key}", **more: Any) -> dict[str, Any]:
    return {"direction": "in", "from": name, "to": to, **more}


async def test_every_property_of_mqtt_5_passes_out_and_in_again(kafka: Kafka) -> None:
    name = topic()
    more: dict[str, Any] = {
        "payload_format_indicator": 1,
        "content_type": "text/plain",
        "response_topic": "answers/x",
        "correlation_data": b"\0\xff",
        "user_properties": [("k", "1"), ("k", "2"), ("z", "")],
    }
    async with bridged(kafka, out(name, create={"partitions": 2})) as (bridge, here):
        await here.publish("s/7", b"21", expiry=100, **more)
        (record,) = await records(kafka, name)
        origin = bridge.origin
        await until(lambda: bridge.status()["out"]["confirmed"] == 1)
    assert (record.key, record.value) == (b"s/7", b"21")
    headers = [pair for pair in record.headers if pair[0] != "mqtt-expires-at"]
    assert headers == [
        ("mqtt-topic", b"s/7"),
        ("mqtt-qos", b"1"),
        ("mqtt-payload-format", b"1"),
        ("content-type", b"text/plain"),
        ("mqtt-response-topic", b"answers/x"),
        ("correlation-data", b"\0\xff"),
        ("mqtt-client-id", b"here"),
        ("mqttd-id", f"{origin}-1-1".encode()),
        ("mqttd-via", origin.encode()),
        ("k", b"1"),
        ("k", b"2"),
        ("z", b""),
    ]
    # Another broker, whose origin isn't in the list of hops.
    async with bridged(kafka, back(name)) as (_, here):
        (got,) = await here.get()
        assert (got.topic, got.payload, got.qos) == ("in/s/7", b"21", 1)
        properties = properties_of(got)
        for what, value in more.items():
            if what == "user_properties":
                assert properties.user_properties[:3] == value
            else:
                assert getattr(properties, what) == value
        assert user_of(got)["mqttd-id"] == f"{origin}-1-1"
        assert 0 < got.message_expiry <= 100


async def test_what_comes_in_has_an_id_that_a_second_reading_has_too(kafka: Kafka) -> None:
    name, group = topic(), topic()
    await make_topics(kafka, name)
    await produce(kafka, name, b"1", key=b"a", partition=1)
    async with bridged(kafka, back(name), group=group) as (bridge, here):
        (got,) = await here.get()
        assert user_of(got) == {"mqttd-id": f"{name}-1-0"}
        await until(lambda: bridge.status()["in"]["confirmed"] == 1)
    async with bridged(kafka, back(name), group=f"{group}-other") as (_, here):
        (got,) = await here.get()
        assert user_of(got) == {"mqttd-id": f"{name}-1-0"}
    # The first group has committed its offset, and goes on behind it.
    await produce(kafka, name, b"2", key=b"a", partition=1)
    async with bridged(kafka, back(name), group=group) as (_, here):
        (got,) = await here.get()
        assert got.payload == b"2"


async def test_order_is_kept_for_each_key_over_partitions(kafka: Kafka) -> None:
    name = topic()
    async with bridged(kafka, out(name, create={"partitions": 3})) as (_, here):
        for number in range(100):
            await here.publish(f"s/{number % 5}", b"%d" % number, qos=1)
        got = await records(kafka, name, 100)
    for key in range(5):
        numbers = [int(record.value) for record in got if record.key == b"s/%d" % key]
        assert numbers == list(range(key, 100, 5))
    assert len({record.partition for record in got}) > 1


async def test_a_topic_that_is_not_there_is_refused_until_it_is(kafka: Kafka) -> None:
    name = topic()
    async with bridged(kafka, out(topic(), create={}), out(name, "u/#")) as (bridge, here):
        await patiently(lambda: state(bridge) == "refused")
        assert bridge.status()["reason"] == f"rules[1]: there is no topic {name!r} at Kafka"
        await here.publish("u/1", b"1")
        await make_topics(kafka, name)
        (record,) = await records(kafka, name)
        assert record.value == b"1"


async def test_a_target_that_is_no_topic_of_kafka_is_dead_lettered(kafka: Kafka) -> None:
    name = topic()
    await make_topics(kafka, f"{name}.ok")
    async with bridged(kafka, out(f"{name}.{{topic[1:]}}"), tries=2) as (_, here):
        await here.publish("s/not there", b"1")
        await here.publish("s/absent", b"2")
        await here.publish("s/ok", b"3")
        (record,) = await records(kafka, f"{name}.ok")
        assert record.value == b"3"
        dead = {got.payload: user_of(got)["mqttd-dlq-reason"] for got in await here.get(2)}
        assert dead[b"1"].startswith(f"to: '{name}.not there' is no topic of Kafka")
        assert dead[b"2"] == f"there is no topic '{name}.absent' at Kafka"


async def test_what_is_too_large_is_dead_lettered_and_the_rest_goes_on(kafka: Kafka) -> None:
    name = topic()
    rule = out(name, create={"settings": {"max.message.bytes": "2000"}})
    async with bridged(kafka, rule, max_message_size="5kB") as (bridge, here):
        for size in (1, 3000, 2, 6000, 3):
            await here.publish("s/1", b"x" * size)
        assert [len(record.value) for record in await records(kafka, name, 3)] == [1, 2, 3]
        dead = {len(got.payload): user_of(got)["mqttd-dlq-reason"] for got in await here.get(2)}
        assert dead[3000] == f"too large for topic {name!r}"
        assert dead[6000].startswith("too large: ")
        await patiently(lambda: bridge.status()["out"]["confirmed"] == 3)
        assert bridge.status()["out"]["dead_lettered"] == 2


async def test_a_password(kafka: Kafka, tmp_path: Path) -> None:
    if not kafka.ours:
        pytest.skip("whether it wants a password isn't known of a Kafka that already runs")
    name, secret = topic(), tmp_path / "secret"
    more: dict[str, Any] = {"username": "guest", "password_file": str(secret), "port": kafka.sasl}
    secret.write_text("wrong\n")
    async with bridged(kafka, out(name, create={}), **more) as (bridge, here):
        await patiently(lambda: state(bridge) == "refused")
        assert "Authentication failed" in bridge.status()["reason"]
        assert "wrong" not in bridge.status()["reason"]
        await here.publish("s/1", b"1")
        assert bridge.status()["out"]["confirmed"] == 0
    secret.write_text("guest\n")
    async with bridged(kafka, out(name, create={}), **more) as (_, here):
        await here.publish("s/1", b"2")
        (record,) = await records(kafka, name)
        assert record.value == b"2"


async def goes_both_ways(kafka: Kafka, name: str, **more: Any) -> None:
    async with bridged(kafka, out(name, create={}), back(name, "in/x"), **more) as (_, here):
        await here.publish("s/1", b"there")
        (record,) = await records(kafka, name)
        assert record.value == b"there"
        await produce(kafka, name, b"back")
        (came,) = await here.get()
        assert (came.topic, came.payload) == ("in/x", b"back")


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_password_over_tls(kafka: Kafka, tmp_path: Path, mechanism: str) -> None:
    if not kafka.ours:
        pytest.skip("how to get in isn't known of a Kafka that already runs")
    name, secret = topic(), tmp_path / "secret"
    more: dict[str, Any] = {
        "port": kafka.sasl_tls,
        "username": "guest",
        "password_file": str(secret),
        "sasl": mechanism,
        "tls": {"ca": str(kafka.ca.file)},
    }
    secret.write_text("wrong\n")
    async with bridged(kafka, out(name, create={}), **more) as (bridge, _):
        await patiently(lambda: state(bridge) == "refused")
        assert "wrong" not in bridge.status()["reason"]
    secret.write_text("guest\n")
    await goes_both_ways(kafka, name, **more)


async def test_certificates_of_both_ends(kafka: Kafka, tmp_path: Path) -> None:
    if not kafka.ours:
        pytest.skip("which certificates it wants isn't known of a Kafka that already runs")
    name = topic()
    cert, key = kafka.ca.issue("bridge", "bridge")
    stranger = Authority(tmp_path, "stranger")
    tls = {"ca": str(kafka.ca.file), "cert": str(cert), "key": str(key)}
    wary = {**tls, "ca": str(stranger.file)}
    async with bridged(kafka, out(name, create={}), port=kafka.tls, tls=wary) as (bridge, _):
        await patiently(lambda: bridge.status()["reason"])
        assert state(bridge) == "refused"
        assert "certificate" in bridge.status()["reason"]
    await goes_both_ways(kafka, name, port=kafka.tls, tls=tls)


async def test_a_kafka_that_is_gone_shows_and_what_waits_is_sent_later(kafka: Kafka) -> None:
    if not kafka.ours:
        pytest.skip("a Kafka that already runs isn't killed")
    name = topic()
    quick: dict[str, Any] = {"probe": "200ms", "request_timeout": "2s", "session_timeout": "2s"}
    async with bridged(kafka, out(name, create={}), back(name, "in/x"), **quick) as (bridge, here):
        await patiently(lambda: state(bridge) == "up")
        try:
            await asyncio.to_thread(kafka.kill)
            await patiently(lambda: state(bridge) == "down")
            for number in range(20):
                await here.publish("s/1", b"%d" % number)
            assert bridge.status()["out"]["confirmed"] == 0
        finally:
            await asyncio.to_thread(kafka.start)
        got = await records(kafka, name, 20)
        assert [record.value for record in got] == [b"%d" % number for number in range(20)]
        # They come in again from the topic, and are known by their hops.
        await patiently(lambda: bridge.status()["in"]["dropped"].get("loop") == 20)


async def test_broker_and_kafka_are_killed_and_nothing_is_lost(
    kafka: Kafka, tmp_path: Path
) -> None:
    if not kafka.ours:
        pytest.skip("a Kafka that already runs isn't killed")
    try:
        verdict = await trial(FarKafka(tmp_path, kafka), 400, 2, 1)
    finally:
        await asyncio.to_thread(kafka.restart)
    assert verdict["wrong"] == []
    assert (verdict["out"], verdict["in"]) == (400, 400)
    assert verdict["kills"] == {"broker": 1, "far": 1}
