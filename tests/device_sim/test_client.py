"""The client's state machine: what a broker may send and what not, whole and in pieces."""

import pytest

from device_sim.engine.client import CLOSED, CONNECTED, Client
from device_sim.judge.ledger import Ledger
from device_sim.judge.payload import Header, encode
from device_sim.judge.tracks import Sender
from mqttd.core import spec
from mqttd.core.encode import encode_packet
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
)
from mqttd.core.properties import Properties

RUN = 5


class Device:
    """A connected client that publishes and watches, and the broker's side of its wire."""

    def __init__(self, version: int = spec.MQTT311, qos: int = 1) -> None:
        self.ledger = Ledger(RUN, paced=False)
        self.sender: Sender = self.ledger.add_sender(qos, 1)
        self.client = Client("c", version, self.ledger.ready)
        self.client.senders.append(self.sender)
        self.client.watcher = self.ledger.add_watcher()
        self.track = self.client.watcher.expect(b"t", self.sender, 0, qos)
        self.client.connect(Connect(version=version, client_id="c"))
        self.receive(Connack())
        self.client.data_to_send()

    def receive(self, *packets: Record) -> None:
        for packet in packets:
            self.client.receive_data(encode_packet(packet, self.client.version), 10)

    def message(self, sequence: int, packet_id: int = 0, dup: bool = False) -> Publish:
        payload = encode(Header(RUN, 0, 0, 1, sequence, 0, 0), 40)
        return Publish("t", payload, self.track.qos, dup=dup, packet_id=packet_id)


def test_connect_and_the_answer() -> None:
    client = Client("me", spec.MQTT311, [])
    packet = Connect(version=spec.MQTT311, client_id="me", keep_alive=30)
    client.connect(packet)
    assert client.data_to_send() == encode_packet(packet, spec.MQTT311)
    assert client.data_to_send() == b""
    client.receive_data(encode_packet(Connack(), spec.MQTT311), 0)
    assert client.state == CONNECTED
    assert isinstance(client.events[0], Connack)
    assert client.keep_alive == 30


def test_limits_of_the_broker_are_kept() -> None:
    client = Client("me", spec.MQTT5, [])
    client.connect(Connect(client_id="me"))
    properties = Properties()
    properties.receive_maximum = 7
    properties.maximum_qos = 1
    properties.maximum_packet_size = 1000
    properties.server_keep_alive = 11
    client.receive_data(encode_packet(Connack(False, 0, properties), spec.MQTT5), 0)
    assert (client.receive_maximum, client.maximum_qos) == (7, 1)
    assert (client.maximum_packet_size, client.keep_alive) == (1000, 11)


@pytest.mark.parametrize(
    ("version", "reason", "words"),
    [
        (spec.MQTT311, spec.NOT_AUTHORIZED, "not authorized"),
        (spec.MQTT5, spec.NOT_AUTHORIZED, "0x87"),
    ],
)
def test_a_refused_connection_is_told_in_words(version: int, reason: int, words: str) -> None:
    client = Client("me", version, [])
    client.connect(Connect(version=version, client_id="me"))
    client.receive_data(encode_packet(Connack(False, reason), version), 0)
    assert client.state == CLOSED
    assert words in client.error


@pytest.mark.parametrize("version", [spec.MQTT311, spec.MQTT5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_reach_the_ledger_and_are_acknowledged(version: int, qos: int) -> None:
    device = Device(version, qos)
    for sequence in range(3):
        device.receive(device.message(sequence, sequence + 1 if qos else 0))
    assert device.track.expected == 3
    expected: list[Record] = []
    if qos == 1:
        expected = [Puback(1), Puback(2), Puback(3)]
    elif qos == 2:
        expected = [Pubrec(1), Pubrec(2), Pubrec(3)]
    assert device.client.data_to_send() == b"".join(
        encode_packet(packet, version) for packet in expected
    )


def test_qos_2_is_taken_once_until_it_is_released() -> None:
    device = Device(qos=2)
    device.receive(device.message(0, 9), device.message(0, 9, dup=True))
    assert device.track.expected == 1
    assert device.track.duplicated == 0
    assert device.client.redelivered == 1
    assert not device.client.violations
    device.receive(Pubrel(9))
    assert device.client.data_to_send().endswith(encode_packet(Pubcomp(9), spec.MQTT311))
    device.receive(device.message(0, 9, dup=True))
    assert device.track.duplicated == 1


def test_qos_2_identifiers_used_twice_or_released_for_nothing_are_violations() -> None:
    device = Device(qos=2)
    device.receive(device.message(0, 9), device.message(1, 9), Pubrel(10))
    assert sum(device.client.violations.values()) == 2


def test_the_way_of_a_qos_1_publication() -> None:
    device = Device()
    client = device.client
    first = client.next_id()
    client.inflight[first] = 0
    assert client.in_flight() == 1
    device.receive(Puback(first))
    assert client.in_flight() == 0
    assert device.ledger.ready == [device.sender]


def test_the_way_of_a_qos_2_publication() -> None:
    device = Device(qos=2)
    client = device.client
    client.inflight[4] = 17
    device.receive(Pubrec(4))
    assert client.data_to_send() == encode_packet(Pubrel(4), spec.MQTT311)
    assert (client.inflight, client.releasing) == ({}, {4: 17})
    assert client.unanswered() == [17]
    device.receive(Pubrec(4))
    assert client.data_to_send() == encode_packet(Pubrel(4), spec.MQTT311)
    device.receive(Pubcomp(4))
    assert client.in_flight() == 0
    assert not client.violations


@pytest.mark.parametrize("kind", [Puback, Pubrec])
def test_a_refused_publication(kind: type[Puback] | type[Pubrec]) -> None:
    device = Device(spec.MQTT5)
    device.client.inflight[4] = 17
    device.receive(kind(4, spec.QUOTA_EXCEEDED))
    assert device.client.in_flight() == 0
    assert device.sender.refused[0].contains(17)


def test_acknowledgements_for_nothing_are_violations() -> None:
    device = Device()
    device.receive(Puback(1), Pubrec(2), Pubcomp(3))
    assert sum(device.client.violations.values()) == 3
    assert device.client.state == CONNECTED


def test_identifiers_go_round_and_skip_what_is_in_flight() -> None:
    client = Client("c", spec.MQTT311, [])
    client.inflight[2] = 0
    client.releasing[3] = 0
    assert [client.next_id() for _ in range(3)] == [1, 4, 5]
    for _ in range(65530):
        client.next_id()
    assert client.next_id() == 1


def test_subscriptions_and_pings() -> None:
    device = Device()
    packet_id = device.client.subscribe([Filter("a/#", 1)])
    assert device.client.data_to_send()[0] == 0x82
    device.client.ping()
    assert device.client.data_to_send() == b"\xc0\x00"
    device.receive(Pingresp(), Suback(packet_id, [1]))
    assert [type(event) for event in device.client.events] == [Connack, Suback]


def test_every_cut_of_the_stream_reads_the_same() -> None:
    packets: list[Record] = []
    device = Device(spec.MQTT5, 1)
    for sequence in range(4):
        message = device.message(sequence, sequence + 1)
        message.payload += b"x" * (sequence * 90)
        packets.append(message)
    data = b"".join(encode_packet(packet, spec.MQTT5) for packet in packets)
    for size in (1, 2, 3, 7, 100, len(data)):
        device = Device(spec.MQTT5, 1)
        for at in range(0, len(data), size):
            device.client.receive_data(data[at : at + size], 0)
        assert device.track.expected == 1
        assert device.track.corrupt == 3
        assert len(device.client.data_to_send()) == 4 * 4


def test_properties_of_a_publish_are_stepped_over() -> None:
    device = Device(spec.MQTT5, 0)
    message = device.message(0)
    message.properties = b"\x26\x00\x01k\x00\xc8" + b"v" * 200
    message.subscription_ids.append(3)
    device.receive(message)
    assert device.track.expected == 1


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (spec.MQTT311, "30 00"),
        (spec.MQTT311, "30 02 00 05"),
        (spec.MQTT311, "32 04 00 01 74 00"),
        (spec.MQTT311, "36 05 00 01 74 00 01"),
        (spec.MQTT5, "30 03 00 01 74"),
        (spec.MQTT5, "30 05 00 01 74 09 00"),
        (spec.MQTT5, "30 05 00 01 74 ff ff"),
        (spec.MQTT311, "30 ff ff ff ff 01"),
        (spec.MQTT311, "41 02 00 01"),
        (spec.MQTT311, "40 01 00"),
        (spec.MQTT311, "00 00"),
        (spec.MQTT311, "10 00"),
        (spec.MQTT311, "c0 00"),
        (spec.MQTT311, "20 02 00 00"),
    ],
)
def test_what_a_broker_may_not_send_ends_the_connection(version: int, data: str) -> None:
    device = Device(version)
    device.client.receive_data(bytes.fromhex(data), 0)
    assert device.client.state == CLOSED
    assert device.client.error
    device.client.receive_data(b"\x30\x00", 0)


def test_a_message_without_a_subscription_is_a_violation() -> None:
    device = Device(qos=0)
    device.client.watcher = None
    device.receive(device.message(0))
    assert device.client.violations == {"PUBLISH without a subscription": 1}


def test_the_end() -> None:
    device = Device(spec.MQTT5)
    device.client.disconnect()
    assert device.client.data_to_send() == encode_packet(Disconnect(), spec.MQTT5)
    device = Device(spec.MQTT5)
    device.receive(Disconnect(spec.SESSION_TAKEN_OVER))
    assert device.client.state == CLOSED
    assert "Session taken over" in device.client.error
    device.client.disconnect()
    assert device.client.data_to_send() == b""
