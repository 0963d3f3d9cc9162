"""Dead letters by reason: the configuration, the letters, and a broker that sends them."""

from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins.dead_letters import USUAL, Config, DeadLetters
from pydantic import ValidationError

import mqttd
from mqttd.api import UNDELIVERED, Message, Undelivered
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Publish,
    Suback,
    Subscribe,
)
from mqttd.core.properties import Properties, decode_forwardable
from mqttd.core.settings import Settings, SharePolicy
from mqttd.testing import StandIn
from tests.harness import FakeClient
from tests.hooks.kit import hooked, prepared
from tests.net.kit import Wire
from tests.plugins.broker_kit import acknowledged, broker_with, client

USE = "mqttd_plugins.dead_letters:DeadLetters"


def plugin(**values: Any) -> tuple[DeadLetters, StandIn]:
    broker = StandIn("dead_letters")
    return DeadLetters(Config.model_validate(values), broker), broker


def undelivered(reason: str = "expired", topic: str = "a/b", **more: Any) -> Undelivered:
    return Undelivered(Message(topic, b"1", **more), reason, "c", "")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"topic": "a/#"}, "topic: expected a topic"),
        ({"topic": ""}, "topic: expected a topic"),
        ({"topic": "$SYS/{topic}"}, "belongs to the broker"),
        ({"filter": "a/#/b"}, "filter: expected a topic filter"),
        ({"reasons": []}, "expected one or more"),
        ({"reasons": ["boredom"]}, "reasons"),
    ],
)
def test_what_is_no_configuration(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Config.model_validate(values)


def test_any_reason_that_the_broker_knows_may_be_asked_for() -> None:
    made, _ = plugin(reasons=sorted(UNDELIVERED))
    assert made.undelivered == UNDELIVERED


def test_a_letter_waits_and_is_not_retained() -> None:
    made, broker = plugin()
    letter = made.on_undelivered(undelivered(retain=True, expires_in_s=0.0))
    assert letter is not None
    assert (letter.topic, letter.payload) == ("$dlq/expired/a/b", b"1")
    assert (letter.qos, letter.retain, letter.expires_in_s) == (1, False, 604800.0)
    assert broker.counts == {"expired": 1}
    made, _ = plugin(expiry=0, topic="dead")
    letter = made.on_undelivered(undelivered(qos=2))
    assert letter is not None
    assert (letter.topic, letter.qos, letter.expires_in_s) == ("dead", 2, None)


def test_only_what_was_asked_for_becomes_a_letter() -> None:
    made, broker = plugin(reasons=["expired"], filter="a/#")
    assert made.on_undelivered(undelivered("queue_full")) is None
    assert made.on_undelivered(undelivered(topic="b")) is None
    assert made.on_undelivered(undelivered(topic="$a/b")) is None
    assert made.on_undelivered(undelivered(topic="a" * 5)) is None
    assert broker.counts == {}


def test_a_topic_that_would_be_too_long_is_counted() -> None:
    made, broker = plugin()
    assert made.on_undelivered(undelivered(topic="a" * 65530)) is None
    assert broker.counts == {"unpublishable": 1}


async def test_other_reasons_need_a_start() -> None:
    made, _ = plugin(reasons=["expired", "queue_full"])
    await made.reload(Config(reasons=["queue_full"]))
    assert made.on_undelivered(undelivered("expired")) is None
    with pytest.raises(ValueError, match="need a start"):
        await made.reload(Config(reasons=["session_ended"]))


async def test_each_reason_is_routed_and_said() -> None:
    settings = Settings()
    settings.max_queued_messages = 1
    async with hooked(prepared(DeadLetters, "dead_letters"), settings=settings) as it:

        async def subscriber(name: str, topic_filter: str, **values: Any) -> FakeClient:
            client = await it.client(name, **values)
            client.auto_ack = False
            client.send(Subscribe(1, [Filter(topic_filter, 1)]))
            await it.turn()
            client.take_first(Suback)
            return client

        collector = await subscriber("collector", "$dlq/#")
        collector.auto_ack = True
        publisher = await it.client("p")
        absent = await subscriber("absent", "queue_full", expiry=10_000)
        late = await subscriber("late", "expired", expiry=10_000)
        small = Properties()
        small.maximum_packet_size = 100
        await subscriber("small", "packet_too_large", properties=small)
        refusing = await subscriber("refusing", "refused_by_receiver")
        leaving = await subscriber("leaving", "session_ended")
        failing = await subscriber("failing", "$share/g/redelivery_limit")
        standby = await subscriber("standby", "$share/g/redelivery_limit")
        stays = await subscriber("stays", "$share/g/redelivery_limit", expiry=10_000)
        policy = SharePolicy()
        policy.redelivery_limit = 1
        assert it.broker.govern("g", "redelivery_limit", policy)
        for client in (absent, late, stays):
            client.drop()

        publisher.publish("queue_full", b"waits", 1)
        publisher.publish("queue_full", b"queue_full", 1)
        publisher.publish("expired", b"expired", 1, message_expiry=1)
        publisher.publish("packet_too_large", b"packet_too_large".ljust(100), 1)
        for topic in ("refused_by_receiver", "session_ended", "redelivery_limit"):
            publisher.publish(topic, topic.encode(), 1)
        await it.turn()
        refusing.send(Puback(refusing.messages()[0].packet_id, 0x80))
        leaving.drop()
        failing.drop()
        await it.turn()
        standby.drop()
        it.h.now += 2
        await it.client("late", clean_start=False, expiry=10_000)
        await it.turn()

        said = {}
        for packet in collector.messages():
            of = dict(decode_forwardable(packet.properties).user_properties)
            reason = of["mqttd-dead-letter"]
            assert packet.topic == f"$dlq/{reason}/{reason}"
            assert bytes(packet.payload).decode().rstrip() == reason == of["mqttd-topic"]
            assert of["mqttd-publisher"] == "p"
            said[reason] = (of.get("mqttd-client"), of.get("mqttd-share"))
        assert said == {
            "queue_full": ("absent", None),
            "expired": ("late", None),
            "packet_too_large": ("small", None),
            "refused_by_receiver": ("refusing", None),
            "session_ended": ("leaving", None),
            "redelivery_limit": (None, "$share/g/redelivery_limit"),
        }
        assert set(said) == set(USUAL)


# In a broker.


async def connect(wire: Wire, name: str) -> None:
    """Connect to a session that lasts."""
    properties = Properties()
    properties.session_expiry_interval = 1000
    wire.send(Connect("MQTT", 5, False, 0, name, None, None, None, properties))
    await wire.receive(Connack)


async def absent(broker: mqttd.Broker, name: str, topic_filter: str) -> None:
    """A client that subscribes and goes; its session stays."""
    async with await Wire.open(broker.port("t")) as wire:
        await connect(wire, name)
        wire.send(Subscribe(1, [Filter(topic_filter, 1)]))
        await wire.receive(Suback)
        wire.send(Disconnect(0, None))
        await wire.closed()


async def test_a_full_queue_leads_to_letters_that_survive_a_restart(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "storage": {"path": str(tmp_path / "d.db")},
        "limits": {"max_queued_messages": 2},
    }
    use = {"use": USE, "name": "dead_letters"}
    async with broker_with(use, **more) as broker:
        await absent(broker, "collector", "$dlq/#")
        await absent(broker, "full", "full/#")
        async with client(broker, "p") as wire:
            for n in range(5):
                assert await acknowledged(wire, "full/x", b"%d" % n, n + 1) == 0
        letters = broker._app.broker.context.letters
        assert letters is not None
        assert (letters.published, letters.again) == (3, 1)  # the third found its own queue full
    async with broker_with(use, **more) as broker, await Wire.open(broker.port("t")) as wire:
        await connect(wire, "collector")
        found = [await wire.receive(Publish) for _ in range(2)]
        assert [(each.topic, bytes(each.payload)) for each in found] == [
            ("$dlq/queue_full/full/x", b"2"),
            ("$dlq/queue_full/full/x", b"3"),
        ]
        said = dict(decode_forwardable(found[0].properties).user_properties)
        assert said["mqttd-dead-letter"] == "queue_full"
        assert said["mqttd-topic"] == "full/x"
        assert said["mqttd-client"] == "full"
        assert said["mqttd-publisher"] == "p"
