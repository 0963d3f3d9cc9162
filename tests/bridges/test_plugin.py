"""A bridge in a broker: its figures, its outbox over a restart, a new configuration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mqttd
from mqttd.api import Message
from mqttd.testing import StandIn
from tests.bridges.kit import FakeBridge, FakeConfig, System, out
from tests.bridges.mqtt_kit import Peer
from tests.net.kit import until

FAKE = "tests.bridges.kit:FakeBridge"


@pytest.fixture
def system() -> Iterator[System]:
    before, FakeBridge.SYSTEM = FakeBridge.SYSTEM, System()
    yield FakeBridge.SYSTEM
    FakeBridge.SYSTEM = before


def tree(*rules: dict[str, Any], name: str = "far", **more: Any) -> dict[str, Any]:
    return {
        "listeners": [{"name": "t", "bind": "127.0.0.1:0", "allow_anonymous": True}],
        "plugins": [{"use": FAKE, "name": name, "config": {"rules": list(rules), "window": 4}}],
        **more,
    }


def bridge_of(broker: mqttd.Broker, name: str = "far") -> FakeBridge:
    hooks = broker._app.hooks
    assert hooks is not None
    plugin = hooks.plugin(name)
    assert isinstance(plugin, FakeBridge)
    return plugin


def matched(status: dict[str, Any]) -> int:
    way: dict[str, Any] = status["out"]
    parts = ("queued", "in_flight", "confirmed", "dead_lettered")
    assert way["matched"] == sum(way[part] for part in parts) + sum(way["dropped"].values())
    return int(way["matched"])


async def test_what_the_outbox_drops_is_counted(system: System) -> None:
    system.silent = True
    async with mqttd.Broker(tree(out("#"), limits={"max_queued_messages": 5})) as broker:
        plugin = bridge_of(broker)
        for number in range(12):
            await plugin.broker.publish(Message("a", str(number).encode(), 1))
        await until(lambda: plugin.status()["out"]["dropped"])
        await until(lambda: matched(plugin.status()) == 12)
        way = plugin.status()["out"]
        assert (way["in_flight"], way["queued"], way["dropped"]) == (4, 5, {"queue_full": 3})


async def test_the_outbox_and_its_ids_outlive_the_broker(system: System, tmp_path: Path) -> None:
    system.silent = True
    kept: dict[str, Any] = {"storage": {"path": str(tmp_path / "db")}}
    async with mqttd.Broker(tree(out("#"), **kept)) as broker:
        for number in range(6):
            await bridge_of(broker).broker.publish(Message("a", str(number).encode(), 1))
        await until(lambda: len(system.arrived) == 4)
    first = list(system.arrived)
    system.silent = False
    async with mqttd.Broker(tree(out("#"), **kept)) as broker:
        await until(lambda: bridge_of(broker).status()["out"]["confirmed"] == 6)
        assert matched(bridge_of(broker).status()) == 6
        assert not bridge_of(broker).broker.table("ids").items()
    again = system.arrived[4:]
    assert [item.payload for item in again] == [str(n).encode() for n in range(6)]
    assert [item.id for item in again[:4]] == [item.id for item in first]
    assert len(set(system.ids)) == 6


async def test_a_new_configuration_keeps_what_waits(system: System) -> None:
    async with mqttd.Broker(tree(out("a/#", "one"))) as broker:
        plugin = bridge_of(broker)
        await until(lambda: plugin.status()["state"] == "up")
        await plugin.control("pause", {})
        await plugin.broker.publish(Message("a/x", b"1", 1))
        rules = [{"direction": "out", "from": "a/#", "to": "two"}]
        connections = len(system.connections)
        await plugin.reload(FakeConfig.model_validate({"rules": rules}))
        await until(lambda: plugin.status()["out"]["matched"] == 1)
        assert plugin.status()["state"] == "paused"
        assert len(system.connections) == connections
        await plugin.control("resume", {})
        await until(lambda: system.arrived)
        assert system.arrived[0].target == "two"
        bad = [{"direction": "out", "from": "a/#", "function": "no.such:thing"}]
        with pytest.raises(ValueError, match=r"rules\[0\].function: no.such:thing"):
            await plugin.reload(FakeConfig.model_validate({"rules": bad}))
        await plugin.broker.publish(Message("a/x", b"2", 1))
        await until(lambda: len(system.arrived) == 2)


async def test_a_reload_that_fails_half_way_leaves_a_bridge_that_says_so(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mqttd.Broker(tree(out("a/#"))) as broker:
        plugin = bridge_of(broker)
        await until(lambda: plugin.status()["state"] == "up")

        async def broken(self: FakeBridge) -> None:
            raise OSError("no room")

        config = FakeConfig.model_validate({"rules": [out("b/#")]})
        with monkeypatch.context() as patch:
            patch.setattr(FakeBridge, "prepare", broken)
            with pytest.raises(OSError, match="no room"):
                await plugin.reload(config)
        status = plugin.status()
        assert (status["state"], status["reason"]) == ("down", "stopped")
        assert plugin.figures() == []
        await plugin.reload(config)
        await until(lambda: plugin.status()["state"] == "up")


async def test_dead_letters_reach_who_subscribes_to_them(system: System) -> None:
    async with (
        mqttd.Broker(tree(out("a/#", "q/{property[site]}"))) as broker,
        Peer.at(broker.port("t"), "$dlq/far") as peer,
    ):
        await peer.publish("a/x", b"1", user_properties=[("site", "7")])
        await peer.publish("a/x", b"2")
        (dead,) = await peer.get()
        assert dead.payload == b"2"
        await until(lambda: matched(bridge_of(broker).status()) == 2)
        assert system.arrived[0].target == "q/7"


async def test_the_state_is_a_topic_that_only_the_broker_writes(system: System) -> None:
    async with (
        mqttd.Broker(tree(out("#"))) as broker,
        Peer.at(broker.port("t"), "$SYS/broker/connection/far/state") as peer,
    ):
        await until(lambda: peer.got and peer.got[-1].payload == b"1")
        await bridge_of(broker).control("pause", {})
        await until(lambda: peer.got[-1].payload == b"0")
        assert peer.got[-1].retain


async def test_check_finds_a_function_that_is_not_there() -> None:
    rules = [out("a"), out("b", function="no.such:thing")]
    plugin = FakeBridge(FakeConfig.model_validate({"rules": rules}), StandIn("far"))
    with pytest.raises(ValueError, match=r"rules\[1\].function: no.such:thing"):
        await plugin.check()
