"""CONNECT and its answer, as the tests of the handshake speak of them."""

from mqttd.core.packets import Connack, Connect
from tests.harness import FakeClient, Harness


def connect(version: int = 5, client_id: str = "c", **values: object) -> Connect:
    made = Connect("MQIsdp" if version == 3 else "MQTT", version, client_id=client_id)
    for name, value in values.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    return made


def say(harness: Harness, packet: Connect, identity: str | None = None) -> FakeClient:
    """Send a CONNECT and leave the answer unread."""
    client = harness.open(packet.version, identity=identity)
    client.client_id = packet.client_id
    client.send(packet)
    return client


def accepted(client: FakeClient) -> Connack:
    answer = client.expect(Connack)
    assert answer.reason == 0, answer
    return answer


def refused(client: FakeClient) -> Connack:
    """The only packet of a connection that was not admitted. [MQTT-3.1.4-2] [MQTT-3.2.2-6]"""
    answer = client.expect(Connack)
    client.expect_nothing()
    assert client.closed
    assert answer.reason != 0
    assert not answer.session_present
    return answer


def owner(harness: Harness, client_id: str = "c") -> str | None:
    return harness.broker.sessions[client_id].owner
