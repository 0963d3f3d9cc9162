"""`bridge_mqtt`: messages to and from another MQTT broker, none lost, in order.

Owns: the plugin, and what lasts beyond one connection. Both sides have a session that lasts: the
local one is the outbox, the remote one keeps what is published there while there is no connection.
On MQTT 5 every subscription asks the remote broker not to send back what the bridge published (No
Local) and to leave the retain flag as it is, and has an identifier that says which rule it is for.

Must not know: packets (`_mqtt_client`), what becomes of an item (`_mqtt_remote`).
"""

from __future__ import annotations

from mqttd.api import BrokerServices
from mqttd_plugins._bridge.plugin import BridgePlugin
from mqttd_plugins._bridge.remote import Remote
from mqttd_plugins._bridge_access import Access
from mqttd_plugins._mqtt_config import Config
from mqttd_plugins._mqtt_remote import MqttRemote, Remembered


class BridgeMqtt(BridgePlugin[Config]):
    """A bridge to another MQTT broker."""

    KIND = "mqtt"

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._remembered: Remembered | None = None
        self._access: Access | None = None

    async def check(self) -> None:
        await super().check()
        await self.broker.run_blocking(_prepare, self.config)

    async def start(self) -> None:
        self._access = await self.broker.run_blocking(_prepare, self.config)
        await super().start()

    async def prepare(self) -> None:
        table = self.broker.table
        self._remembered = Remembered(table("filters"), table("arrivals"), self.origin)
        await self._remembered.begin()

    def remote(self) -> Remote:
        config = self.config
        client_id = config.remote_client_id or f"{self.broker.name}-{self.origin}"
        assert self._access is not None
        assert self._remembered is not None
        return MqttRemote(config, client_id, self._access, self._remembered)


def _prepare(config: Config) -> Access:
    return Access(config, 1883 if config.tls is None else 8883)
