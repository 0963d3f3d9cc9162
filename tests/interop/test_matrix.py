"""What one client publishes, each other client receives unchanged, at every QoS."""

from collections.abc import Callable

import pytest

from tests.interop.kit import V5, Message, Peer, Properties
from tests.interop.peers import KINDS
from tests.interop.server import Server

TEXT = "Temperatur 21 °C, 気温 ✓".encode()
PROPERTIES = Properties(
    payload_format=1,
    expiry=3600,
    content_type="text/plain; charset=utf-8",
    response_topic="answers/ü",
    correlation=b"request 17",
    user=(("unit", "°C"), ("place", "cellar"), ("unit", "K"), ("", ""), ("place", "cellar")),
)
BINARY = bytes(range(256))


def as_received(message: Message, publisher: Peer, receiver: Peer) -> Message:
    if publisher.version != V5 or receiver.version != V5:
        return message.without_properties()
    return message


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("by", KINDS)
async def test_published_and_received(
    server: Server, topic: str, peer: Callable[[str], Peer], by: str, to: str
) -> None:
    """[MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18]"""
    publisher, receiver = peer(by), peer(to)
    sent = [
        *(Message(f"{topic}/text/{qos}", TEXT, qos, False, PROPERTIES) for qos in range(3)),
        Message(f"{topic}/binary", BINARY, 1),
    ]
    expected = {message.topic: as_received(message, publisher, receiver) for message in sent}
    async with receiver.receiving(server, f"{topic}/#") as inbox:
        await publisher.publish(server, sent)
        for _ in sent:
            message = await inbox.get()
            wanted = expected.pop(message.topic)
            message = message.expiring(wanted)
            if not (publisher.keeps_user_order and receiver.keeps_user_order):
                message, wanted = message.user_by_name(), wanted.user_by_name()
            assert message == wanted
    assert not expected
