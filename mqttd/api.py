"""The surface for authors of plugins: everything they import comes from here.

A plugin is a class that derives from `Plugin` and overrides the hooks it wants. It is named in the
configuration by an entry point of the group `mqttd.plugins`, by `dotted.path:Class`, or as a loose
file `./mine.py`, and gets what stands under `config` there as its own, validated model.

    from mqttd.api import NOT_MINE, Allow, Client, Decision, Plugin, PluginConfig

    class Config(PluginConfig):
        prefix: str

    class Prefixed(Plugin[Config]):
        def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
            return Allow() if topic.startswith(self.config.prefix) else NOT_MINE

A plugin that is a client of another broker finds the codec here: `Framer` cuts a stream into whole
packets, `decode_packet` and `encode_packet` read and write the classes in `packets`.

Owns: no code, only which names last. What is not listed here may change in any version. The broker
inside a process is `mqttd.Broker`; a broker around a plugin's tests is `mqttd.testing`.

Must not know: how hooks are called, who implements the services.
"""

from __future__ import annotations

from mqttd.config import ConfigError
from mqttd.core import packets
from mqttd.core import spec as reason_codes
from mqttd.core.decode import decode_packet
from mqttd.core.encode import encode_packet
from mqttd.core.errors import ProtocolError
from mqttd.core.framer import Framer
from mqttd.core.properties import Properties as PacketProperties
from mqttd.core.topics import matches, split_shared, validate_topic_filter, validate_topic_name
from mqttd.hooks.loader import configured
from mqttd.hooks.plugin import (
    BrokerServices,
    InternalClient,
    NoRoom,
    Plugin,
    PluginConfig,
    Received,
    Responder,
    SessionInfo,
    Table,
    Timer,
)
from mqttd.hooks.values import (
    ALLOW,
    CONNECTED,
    DELIVERED,
    DENIED,
    DENY,
    DISCONNECTED,
    DROPPED,
    EVENT_KINDS,
    NO_PROPERTIES,
    NOT_MINE,
    PUBLISHED,
    REFUSED,
    SESSION_CREATED,
    SESSION_EXPIRED,
    SESSION_TAKEN_OVER,
    SUBSCRIBED,
    UNDELIVERED,
    UNSUBSCRIBED,
    Allow,
    Client,
    ConnectRequest,
    Continue,
    Credentials,
    Decision,
    Deny,
    Drop,
    Event,
    Figure,
    Message,
    MessageProperties,
    NotMine,
    ShareInfo,
    SharePolicy,
    SubscriptionRequest,
    Undelivered,
)
from mqttd.scalars import Duration, FilePath, Size

__all__ = [
    "ALLOW",
    "CONNECTED",
    "DELIVERED",
    "DENIED",
    "DENY",
    "DISCONNECTED",
    "DROPPED",
    "EVENT_KINDS",
    "NOT_MINE",
    "NO_PROPERTIES",
    "PUBLISHED",
    "REFUSED",
    "SESSION_CREATED",
    "SESSION_EXPIRED",
    "SESSION_TAKEN_OVER",
    "SUBSCRIBED",
    "UNDELIVERED",
    "UNSUBSCRIBED",
    "Allow",
    "BrokerServices",
    "Client",
    "ConfigError",
    "ConnectRequest",
    "Continue",
    "Credentials",
    "Decision",
    "Deny",
    "Drop",
    "Duration",
    "Event",
    "Figure",
    "FilePath",
    "Framer",
    "InternalClient",
    "Message",
    "MessageProperties",
    "NoRoom",
    "NotMine",
    "PacketProperties",
    "Plugin",
    "PluginConfig",
    "ProtocolError",
    "Received",
    "Responder",
    "SessionInfo",
    "ShareInfo",
    "SharePolicy",
    "Size",
    "SubscriptionRequest",
    "Table",
    "Timer",
    "Undelivered",
    "configured",
    "decode_packet",
    "encode_packet",
    "matches",
    "packets",
    "reason_codes",
    "split_shared",
    "validate_topic_filter",
    "validate_topic_name",
]
