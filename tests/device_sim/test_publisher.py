"""When a device may publish, at a rate and in a closed loop, and what it then writes."""

import pytest

from device_sim.engine.client import CONNECTED, Client
from device_sim.engine.publisher import BATCH_BYTES, Publisher, template
from device_sim.engine.schedule import Schedule
from device_sim.judge.ledger import Ledger
from device_sim.judge.payload import HEADER_SIZE, Header, Template, decode, padding
from mqttd.core import spec
from mqttd.core.decode import decode_packet
from mqttd.core.framer import Framer
from mqttd.core.packets import Publish
from mqttd.core.properties import Properties, decode_forwardable, encode_forwardable


def publisher(
    qos: int, window: int = 5, fan: int = 1, streams: int = 1, size: int = 64
) -> Publisher:
    ledger = Ledger(1, paced=False)
    sender = ledger.add_sender(qos, streams)
    client = Client("c", spec.MQTT311, ledger.ready)
    client.senders.append(sender)
    client.state = CONNECTED
    templates = [
        template(
            *(Header(1, 0, stream, qos, 0, 0, 0), f"t/{stream}", size, spec.MQTT311, b""),
            padding(1, size),
        )
        for stream in range(streams)
    ]
    made = Publisher(client, sender, templates, window, fan)
    made.limit = 1_000_000
    return made


def written(made: Publisher, version: int = spec.MQTT311) -> list[Publish]:
    framer = Framer(1 << 28)
    framer.feed(bytes(made.client.data_to_send()))
    found = []
    while framer.next():
        packet = decode_packet(framer.first, framer.data, framer.pos, framer.end, version, True)
        assert isinstance(packet, Publish)
        found.append(packet)
    assert framer.pending == 0
    return found


@pytest.mark.parametrize("size", [HEADER_SIZE, 64, 2048, 2049, 20_000])
@pytest.mark.parametrize("version", [spec.MQTT311, spec.MQTT5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_frames_are_what_the_codec_reads(size: int, version: int, qos: int) -> None:
    properties = Properties()
    properties.user_properties.append(("key", "ü"))
    raw = encode_forwardable(properties)
    header = Header(9, 8, 7, qos, 0, 0, 0)
    made = template(header, "tö/pic", size, version, raw, padding(9, size))
    client = Client("c", version, [])
    made.write(client.out, 300, 3, 4, 5)
    assert len(client.out) == made.size
    framer = Framer(1 << 20)
    framer.feed(bytes(client.data_to_send()))
    assert framer.next()
    packet = decode_packet(framer.first, framer.data, framer.pos, framer.end, version, True)
    assert isinstance(packet, Publish)
    assert (packet.topic, packet.qos, packet.retain, packet.dup) == ("tö/pic", qos, False, False)
    assert packet.packet_id == (300 if qos else 0)
    assert len(packet.payload) == size
    got = decode(packet.payload)
    assert got is not None
    assert (got.run, got.publisher, got.stream, got.qos) == (9, 8, 7, qos)
    assert (got.sequence, got.intended_ns, got.lag_us) == (3, 4, 5)
    if version == spec.MQTT5:
        assert decode_forwardable(packet.properties).user_properties == [("key", "ü")]


def test_streams_take_turns_and_count_for_themselves() -> None:
    made = publisher(0, window=7, streams=3)
    assert made.pump(1) == 7
    found = []
    for packet in written(made):
        header = decode(packet.payload)
        assert header is not None
        found.append((packet.topic, header.stream, header.sequence))
    assert found[:4] == [("t/0", 0, 0), ("t/1", 1, 0), ("t/2", 2, 0), ("t/0", 0, 1)]
    assert found[6] == ("t/0", 0, 2)


def test_a_closed_loop_at_qos_0_waits_for_arrivals() -> None:
    made = publisher(0, window=5)
    assert made.pump(1) == 5
    assert made.pump(1) == 0
    made.sender.arrived = 2
    assert made.pump(1) == 2


def test_a_closed_loop_with_many_readers_waits_for_the_slowest_part() -> None:
    made = publisher(0, window=2, fan=3)
    assert made.pump(1) == 2
    made.sender.arrived = 2
    assert made.allowance() == 0
    made.sender.arrived = 3
    assert made.allowance() == 1


def test_a_closed_loop_at_qos_1_waits_for_acknowledgements_too() -> None:
    made = publisher(1, window=3)
    assert made.pump(1) == 3
    made.sender.arrived = 3
    assert made.allowance() == 0
    del made.client.inflight[2]
    assert made.pump(1) == 1
    assert sorted(made.client.inflight) == [1, 3, 4]
    assert [packet.packet_id for packet in written(made)] == [1, 2, 3, 4]


def test_at_a_rate_arrivals_do_not_matter_but_the_window_does() -> None:
    made = publisher(1, window=3)
    made.paced = True
    made.limit = 2
    assert made.pump(1) == 2
    made.limit = 9
    assert made.pump(1) == 1
    assert made.allowance() == 0


def test_a_late_message_keeps_its_intended_time() -> None:
    made = publisher(0)
    made.paced = True
    made.origin_ns = 1_000_000
    made.step_ns = 500_000.0
    made.limit = 3
    made.pump(1_700_000)
    headers = [decode(packet.payload) for packet in written(made)]
    assert [(h.intended_ns, h.lag_us) for h in headers if h] == [
        (1_000_000, 700),
        (1_500_000, 200),
        (2_000_000, 0),
    ]


def test_a_lag_beyond_the_field_stays_at_its_end() -> None:
    made = publisher(0)
    made.paced = True
    made.limit = 1
    made.pump(2**63)
    header = decode(written(made)[0].payload)
    assert header is not None
    assert header.lag_us == 0xFFFFFFFF


def test_without_readers_only_the_socket_holds_it_back() -> None:
    made = publisher(0, fan=0)
    assert made.pump(1) == made.batch
    assert made.more
    made.blocked = True
    assert made.pump(1) == 0
    assert not made.more


def test_large_payloads_are_written_a_few_at_a_time() -> None:
    made = publisher(0, window=1000, size=BATCH_BYTES // 3)
    assert made.pump(1) == 2
    assert made.more
    assert publisher(0, size=BATCH_BYTES * 2).batch == 1


def test_a_closed_connection_publishes_nothing() -> None:
    made = publisher(0)
    made.client.disconnect()
    assert made.pump(1) == 0


def test_what_never_arrives_is_written_off_after_a_silence() -> None:
    made = publisher(0, window=4)
    made.pump(1)
    made.sender.arrived = 1
    assert not made.write_off()
    assert made.write_off()
    assert made.written_off == 3
    assert made.pump(1) == 4
    made.sender.arrived = 8
    assert not made.write_off()
    assert made.outstanding() == 0


def test_a_shared_padding_is_not_copied() -> None:
    filler = padding(1, 5000)
    made: Template = template(Header(1, 0, 0, 0, 0, 0, 0), "t", 5000, spec.MQTT311, b"", filler)
    assert made.shared is filler
    assert len(made.frame) < 100


def test_the_schedule_deals_messages_out_evenly() -> None:
    schedule = Schedule(devices=4, rate=10.0, origin_ns=1000, total=10)
    assert list(schedule.advance(999)) == []
    assert list(schedule.advance(1000)) == [0]
    assert list(schedule.advance(1000 + 24_999_999)) == []
    assert list(schedule.advance(1000 + 25_000_000)) == [1]
    assert [schedule.limit(device) for device in range(4)] == [1, 1, 0, 0]
    assert schedule.device_origin_ns(1) == 1000 + 25_000_000
    # After a long pause every device is named once, with everything that has become due.
    assert list(schedule.advance(10**12)) == [2, 3, 4, 5]
    assert [schedule.limit(device) for device in range(4)] == [3, 3, 2, 2]
    assert list(schedule.advance(10**12)) == []


def test_the_schedule_never_goes_back() -> None:
    schedule = Schedule(devices=1, rate=1000.0, origin_ns=0, total=100)
    schedule.advance(50_000_000)
    assert list(schedule.advance(10_000_000)) == []
    assert schedule.done == 51
