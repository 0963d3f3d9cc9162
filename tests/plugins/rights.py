"""Plugins for tests: who may publish and subscribe to what, by lists; one that fails."""

from mqttd_plugins._filters import covers, levels_of
from pydantic import Field

from mqttd.api import (
    Allow,
    Client,
    Credentials,
    Decision,
    Deny,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
    matches,
)


class Config(PluginConfig):
    publish: list[str]
    subscribe: list[str] = Field(default=["#"])
    receive: list[str] = Field(default=["#"])


class Rights(Plugin[Config]):
    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        allowed = any(matches(one, topic) for one in self.config.publish)
        return Allow() if allowed else Deny("no right to publish")

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        wanted = levels_of(subscription.inner_filter)
        allowed = any(covers(levels_of(one), wanted) for one in self.config.subscribe)
        return Allow() if allowed else Deny("no right to subscribe")

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        allowed = any(matches(one, topic) for one in self.config.receive)
        return Allow() if allowed else Deny("no right to receive")


class Broken(Plugin[PluginConfig]):
    def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        raise OSError("no users")
