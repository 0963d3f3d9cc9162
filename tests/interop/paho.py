"""paho-mqtt, the reference client in Python, with its own thread and methods that wait."""

import queue
import socket
import uuid
from typing import Any, Literal

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.interop.kit import PATIENCE, V5, V31, V311, Message, Properties
from tests.interop.server import Server

_VERSIONS = {
    V31: MQTTProtocolVersion.MQTTv31,
    V311: MQTTProtocolVersion.MQTTv311,
    V5: MQTTProtocolVersion.MQTTv5,
}
_NAMES = (
    ("payload_format", "PayloadFormatIndicator"),
    ("expiry", "MessageExpiryInterval"),
    ("content_type", "ContentType"),
    ("response_topic", "ResponseTopic"),
    ("correlation", "CorrelationData"),
)


def _empty(packet: int) -> PahoProperties:
    return PahoProperties(packet)  # type: ignore[no-untyped-call]


def packet_properties(packet: int, **values: object) -> PahoProperties:
    """paho's properties for one type of packet, by its own names."""
    properties = _empty(packet)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def to_paho(properties: Properties) -> PahoProperties | None:
    if properties == Properties():
        return None
    result = _empty(PacketTypes.PUBLISH)
    for ours, theirs in _NAMES:
        value = getattr(properties, ours)
        if value is not None:
            setattr(result, theirs, value)
    if properties.user:
        result.UserProperty = list(properties.user)
    return result


def from_paho(properties: PahoProperties | None) -> Properties:
    values: dict[str, Any] = {ours: getattr(properties, theirs, None) for ours, theirs in _NAMES}
    return Properties(**values, user=tuple(getattr(properties, "UserProperty", ())))


def to_message(message: MQTTMessage) -> Message:
    properties = from_paho(message.properties)
    return Message(message.topic, bytes(message.payload), message.qos, message.retain, properties)


class Paho:
    """One client. Every method waits until the broker has answered."""

    def __init__(
        self, server: Server, version: str = V5, listener: str = "tcp", client_id: str | None = None
    ) -> None:
        self._server = server
        self._listener = listener
        self.version = version
        self.client_id = f"paho-{uuid.uuid4().hex[:12]}" if client_id is None else client_id
        self.messages: queue.SimpleQueue[MQTTMessage] = queue.SimpleQueue()
        self._events: dict[str, queue.SimpleQueue[Any]] = {
            name: queue.SimpleQueue()
            for name in ("connect", "disconnect", "subscribe", "unsubscribe", "publish")
        }
        self.client = self._new_client(True)

    def _new_client(self, clean: bool) -> Client:
        transport: Literal["tcp", "websockets", "unix"] = "tcp"
        if self._listener in ("ws", "wss"):
            transport = "websockets"
        elif self._listener == "unix":
            transport = "unix"
        five = self.version == V5
        client = Client(
            CallbackAPIVersion.VERSION2,
            self.client_id,
            clean_session=None if five else clean,
            protocol=_VERSIONS[self.version],
            transport=transport,
            reconnect_on_failure=False,
        )
        if self._listener in ("tls", "wss"):
            client.tls_set(str(self._server.pki.ca.file))
        if transport == "websockets":
            client.ws_set_options("/mqtt")
        events = self._events
        client.on_message = lambda client, data, message: self.messages.put(message)

        def connected(
            client: Client,
            data: object,
            flags: ConnectFlags,
            reason: ReasonCode,
            properties: PahoProperties | None,
        ) -> None:
            events["connect"].put((flags.session_present, reason, properties))

        def disconnected(
            client: Client,
            data: object,
            flags: DisconnectFlags,
            reason: ReasonCode,
            properties: PahoProperties | None,
        ) -> None:
            events["disconnect"].put((flags.is_disconnect_packet_from_server, reason, properties))

        def answered(name: str) -> Any:
            return lambda client, data, mid, reasons, properties: events[name].put(
                (reasons, properties)
            )

        client.on_connect = connected
        client.on_disconnect = disconnected
        client.on_subscribe = answered("subscribe")
        client.on_unsubscribe = answered("unsubscribe")
        client.on_publish = answered("publish")
        return client

    def __enter__(self) -> "Paho":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _event(self, name: str) -> Any:
        return self._events[name].get(timeout=PATIENCE)

    def connect(
        self, clean: bool = True, will: Message | None = None, **values: object
    ) -> tuple[bool, ReasonCode, Any]:
        """Session present, reason, properties; `values` are properties of CONNECT."""
        if self.version != V5 and not clean:
            self.client = self._new_client(clean)
        if will is not None:
            self.client.will_set(will.topic, will.payload, will.qos, will.retain)
        five: dict[str, Any] = {}
        if self.version == V5:
            five = {
                "clean_start": clean,
                "properties": packet_properties(PacketTypes.CONNECT, **values),
            }
        if self._listener == "unix":
            self.client.connect(self._server.unix_path, 1883, **five)
        else:
            self.client.connect("127.0.0.1", self._server.port(self._listener), **five)
        self.client.loop_start()
        present, reason, properties = self._event("connect")
        return present, reason, properties

    def subscribe(
        self,
        topic_filter: str,
        qos: int = 0,
        options: SubscribeOptions | None = None,
        **values: object,
    ) -> list[int]:
        """The reason codes of SUBACK; `values` are properties of SUBSCRIBE."""
        properties = None
        if self.version == V5:
            properties = packet_properties(PacketTypes.SUBSCRIBE, **values)
            options = options or SubscribeOptions(qos)
            qos = 0  # paho takes either a QoS or options
        self.client.subscribe(topic_filter, qos, options, properties)
        reasons, _ = self._event("subscribe")
        return [reason.value for reason in reasons]

    def unsubscribe(self, topic_filter: str) -> list[int]:
        self.client.unsubscribe(topic_filter)
        reasons, _ = self._event("unsubscribe")
        return [reason.value for reason in reasons]

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        properties: PahoProperties | None = None,
    ) -> int:
        """The reason code of PUBACK or of the end of a QoS 2 flow; 0 with QoS 0."""
        self.client.publish(topic, payload, qos, retain, properties)
        reason, _ = self._event("publish")
        return int(reason.value)

    def send(self, message: Message) -> int:
        properties = to_paho(message.properties)
        return self.publish(message.topic, message.payload, message.qos, message.retain, properties)

    def get(self) -> MQTTMessage:
        return self.messages.get(timeout=PATIENCE)

    def get_message(self) -> Message:
        return to_message(self.get())

    def disconnect(self, reason: int = 0, **values: object) -> None:
        """DISCONNECT; the client can connect again."""
        if self.version == V5:
            self.client.disconnect(
                ReasonCode(PacketTypes.DISCONNECT, identifier=reason),
                packet_properties(PacketTypes.DISCONNECT, **values),
            )
        else:
            self.client.disconnect()
        self._event("disconnect")
        self.client.loop_stop()

    def drop(self) -> None:
        """End the connection without DISCONNECT; the client can connect again."""
        raw = self.client.socket()
        assert isinstance(raw, socket.socket)
        raw.shutdown(socket.SHUT_RDWR)
        self._event("disconnect")
        self.client.loop_stop()

    def disconnected(self) -> tuple[bool, ReasonCode, Any]:
        """How the broker ended it: whether it said so, its reason, its properties."""
        from_server, reason, properties = self._event("disconnect")
        return from_server, reason, properties
