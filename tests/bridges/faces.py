"""A broker with the bridge of a face in it, for tests of real servers; items for tests without."""

from __future__ import annotations

from typing import Any

from mqttd_plugins._bridge.plugin import BridgePlugin
from mqttd_plugins._bridge.remote import Item
from mqttd_plugins._bridge.rules import Rule

import mqttd
from mqttd.api import Message, MessageProperties
from tests.net.kit import until


def with_bridge(use: str, **config: Any) -> mqttd.Broker:
    """A broker with one listener `t` and one bridge `up`, which tries again soon."""
    config = {"retry_first": "50ms", "retry_most": "200ms"} | config
    return mqttd.Broker(
        {
            "listeners": [{"name": "t", "bind": "127.0.0.1:0"}],
            "plugins": [{"use": use, "name": "up", "config": config}],
        }
    )


def bridge_of(broker: mqttd.Broker) -> BridgePlugin[Any]:
    hooks = broker._app.hooks
    assert hooks is not None
    plugin = hooks.plugin("up")
    assert isinstance(plugin, BridgePlugin)
    return plugin


async def until_state(broker: mqttd.Broker, state: str) -> str:
    """Wait for a state of the bridge; its reason."""
    await until(lambda: bridge_of(broker).status()["state"] == state)
    return str(bridge_of(broker).status()["reason"])


def figures(broker: mqttd.Broker, way: str) -> dict[str, Any]:
    found: dict[str, Any] = bridge_of(broker).status()[way]
    if way == "out":
        ended = found["confirmed"] + found["dead_lettered"] + sum(found["dropped"].values())
        assert found["matched"] == ended + found["in_flight"] + found["queued"]
    return found


def item(
    rule: Rule,
    payload: bytes = b"x",
    *,
    topic: str = "a/b",
    target: str = "",
    headers: tuple[tuple[str, str], ...] = (),
    expires_in_s: float | None = None,
    qos: int = 1,
    **properties: Any,
) -> Item:
    """What the core would hand out."""
    made = MessageProperties(**properties)
    message = Message(topic, payload, qos, properties=made, expires_in_s=expires_in_s)
    return Item(
        1, rule, message, id="o-1-1", via="o", target=target or topic, key=topic, headers=headers
    )
