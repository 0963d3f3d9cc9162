"""A plugin for the tests of the operator's side: it denies, changes and takes by the topic."""

from collections.abc import Mapping

from mqttd.api import (
    NOT_MINE,
    Allow,
    Client,
    Credentials,
    Decision,
    Deny,
    Drop,
    Message,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
    reason_codes,
)


class Config(PluginConfig):
    forbidden: str = "forbidden"
    """The first level that nobody may publish to."""
    check: str = ""
    """Why the check fails."""
    reload: str = ""
    """Why the reload fails."""


class Doorman(Plugin[PluginConfig]):
    """Lets everything be published, and changes nothing."""

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return Allow(rule="doorman:1")


class Gate(Plugin[Config]):
    """Decides by the first level of a topic."""

    async def check(self) -> None:
        if self.config.check:
            raise ValueError(self.config.check)

    async def reload(self, config: Config) -> None:
        if config.reload:
            raise ValueError(config.reload)
        self.broker.count("reloads")
        self.config = config

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        if action == "echo":
            return dict(arguments)
        if action == "bug":
            raise RuntimeError("secret detail")
        return await super().control(action, arguments)

    def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        if credentials.password == b"s3cr3t":
            return Deny("not that one", reason_codes.BAD_USER_NAME_OR_PASSWORD)
        return Allow() if credentials.username else NOT_MINE

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        if topic.startswith(self.config.forbidden + "/"):
            return Deny("not there", rule="gate:1 forbidden")
        return Allow(rule="gate:2 all else")

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        if subscription.inner_filter.startswith("secret/"):
            return Deny("not that", rule="gate:3 secret")
        return Allow()

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return Deny(rule="gate:4 hidden") if topic.startswith("hidden/") else Allow()

    def on_publish(self, client: Client, message: Message) -> Message | Drop | None:
        if message.topic == "rename/me":
            return message.replace(topic="renamed")
        return Drop("eaten") if message.topic == "eaten" else None

    def on_deliver(self, client: Client, message: Message) -> Drop | None:
        return Drop("filtered") if message.topic == "filtered" else None
