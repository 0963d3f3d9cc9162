"""Ways in which brokers were broken, tried on ours: what they parse, and before they know whom.

Each test bears the name of the report it comes from; docs/hostile.md lists them all. Sessions
and exchanges are in test_hostile_state, memory is in test_hostile_memory.
"""

import random
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.packets import Connack, Disconnect, Suback
from tests.harness import FakeClient, Harness
from tests.hostile_kit import Witness, attacker, growth
from tests.spec import raw
from tests.spec.kit import (
    MALFORMED,
    alive,
    each_version,
    manual,
    messages,
    payloads,
    publish,
    refused,
    send_publish,
    settings,
)

# Every property with a value of its type, to be put where it does not belong.
PROPERTIES = {
    0x01: b"\x01",
    0x02: b"\x00\x00\x00\x01",
    0x03: b"\x00\x01a",
    0x08: b"\x00\x01a",
    0x09: b"\x00\x01a",
    0x0B: b"\x01",
    0x11: b"\x00\x00\x00\x01",
    0x12: b"\x00\x01a",
    0x13: b"\x00\x01",
    0x15: b"\x00\x01a",
    0x16: b"\x00\x01a",
    0x17: b"\x01",
    0x18: b"\x00\x00\x00\x01",
    0x19: b"\x01",
    0x1A: b"\x00\x01a",
    0x1C: b"\x00\x01a",
    0x1F: b"\x00\x01a",
    0x21: b"\x00\x01",
    0x22: b"\x00\x01",
    0x23: b"\x00\x01",
    0x24: b"\x01",
    0x25: b"\x01",
    0x26: b"\x00\x01a\x00\x01b",
    0x27: b"\x00\x00\x00\x10",
    0x28: b"\x01",
    0x29: b"\x01",
    0x2A: b"\x01",
}
IN_PUBLISH = {0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26}
IN_WILL = {0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26}


def prop(number: int) -> bytes:
    return bytes([number]) + PROPERTIES[number]


def connect_closed(c: FakeClient) -> None:
    """The connection was closed before it was accepted."""
    assert c.closed
    assert all(isinstance(p, Connack) and p.reason >= 0x80 for p in c.recv())


@each_version
def test_cve_2021_34432_publish_with_an_empty_topic(version: int) -> None:
    """CVE-2021-34432: PUBLISH with topic length 0."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h, version)
    c.send_raw(raw.publish(version, b""))
    refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))
    assert witness.unharmed()


@each_version
@pytest.mark.parametrize("topic", [b"\xc3\x28", b"\xff", b"a/\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_cve_2017_7653_topic_that_is_not_utf8_stays_with_its_publisher(
    version: int, topic: bytes
) -> None:
    """CVE-2017-7653: a topic that is not UTF-8 is forwarded and strict subscribers drop off."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h, version)
    c.send_raw(raw.publish(version, topic))
    refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))
    assert witness.unharmed()


@pytest.mark.parametrize("number", sorted(set(PROPERTIES) - IN_PUBLISH))
@pytest.mark.parametrize("first", [0x30, 0x31])
def test_cve_2026_67418_misplaced_property_is_refused_at_the_publisher(
    number: int, first: int
) -> None:
    """CVE-2026-67418: a property that PUBLISH may not carry disconnects the subscribers."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h)
    c.send_raw(raw.frame(first, raw.text(b"t") + raw.block(5, prop(number)) + b"x"))
    refused(c, MALFORMED)
    assert witness.unharmed()
    late = h.client("late")
    late.subscribe("#")
    assert messages(late) == []


@pytest.mark.parametrize("number", sorted(set(PROPERTIES) - IN_WILL))
def test_cve_2026_67418_misplaced_property_in_a_will_is_refused(number: int) -> None:
    """CVE-2026-67418: the same for wills."""
    h = Harness()
    witness = Witness(h)
    c = h.open()
    c.send_raw(raw.connect(flags=raw.CLEAN | raw.WILL, tail=raw.will(5, props=prop(number))))
    raw.connect_refused(c, MALFORMED)
    assert witness.unharmed()


@pytest.mark.parametrize("number", sorted(set(PROPERTIES) - IN_WILL))
def test_cve_2023_3592_refused_will_property_leaks_nothing(number: int) -> None:
    """CVE-2023-3592: a will with a property that is not valid for wills leaks memory."""
    h = Harness()
    data = raw.connect(flags=raw.CLEAN | raw.WILL, tail=raw.will(5, props=prop(number)))

    def attack() -> None:
        h.open().send_raw(data)

    assert growth(h, attack) < 20
    assert not h.broker.connections


def test_cve_2026_21888_property_length_of_five_bytes() -> None:
    """CVE-2026-21888: CONNECT whose property length is a five-byte variable integer."""
    h = Harness()
    c = h.open()
    body = raw.text(b"MQTT") + b"\x05\x02\x00\x3c\x80\x80\x80\x80\x01" + raw.text(b"c")
    c.send_raw(raw.frame(0x10, body))
    raw.connect_refused(c, MALFORMED)


@each_version
def test_cve_2025_66168_remaining_length_of_five_bytes_ends_the_stream(version: int) -> None:
    """CVE-2025-66168, CVE-2026-40046: an overlong Remaining Length desynchronises the stream."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h, version)
    c.send_raw(b"\x30\xff\xff\xff\xff")
    refused(c, MALFORMED)
    smuggler = attacker(h, version)
    smuggler.send_raw(b"\x30\xff\xff\xff\xff\x01" + raw.publish(version, b"smuggled"))
    refused(smuggler, MALFORMED)
    assert witness.unharmed()


@each_version
def test_cve_2026_25627_announced_bytes_that_have_not_come_are_waited_for(version: int) -> None:
    """CVE-2026-25627: Remaining Length 4096 with three bytes following is read beyond its end."""
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    c = attacker(h, version)
    payload = b"x" * (4096 - 3 - (version == 5))
    whole = raw.publish(version, b"t", payload)
    assert whole[1:3] == b"\x80\x20"
    c.send_raw(whole[:6])
    assert not c.closed
    assert messages(sub) == []
    for n in range(6, len(whole)):
        c.send_raw(whole[n : n + 1])
    assert payloads(sub) == [payload]


def test_nanomq_2268_subscribe_cut_off_before_its_options() -> None:
    """NanoMQ #2268: SUBSCRIBE cut off right after the topic, with Remaining Length 1024."""
    h = Harness()
    topic = b"t" * 1019
    c = attacker(h)
    c.send_raw(raw.frame(0x82, b"\x00\x01\x00" + raw.text(topic)))
    refused(c, MALFORMED)
    waiting = attacker(h)
    waiting.send_raw(b"\x82\x80\x08\x00\x01\x00\x00\x01t")
    assert not waiting.closed
    assert waiting.recv() == []


@each_version
def test_nanomq_2270_publish_cut_off_inside_its_identifier(version: int) -> None:
    """NanoMQ #2270: QoS 1 PUBLISH that ends inside the packet identifier."""
    h = Harness()
    c = attacker(h, version)
    c.send_raw(raw.frame(0x32, raw.text(b"t") + b"\x01"))
    refused(c, MALFORMED)


SAMPLES = (
    raw.connect(b"x", flags=raw.CLEAN | raw.WILL, tail=raw.will(5)),
    raw.frame(0x32, raw.text(b"a/b") + b"\x00\x07" + raw.block(5, prop(0x26)) + b"payload"),
    raw.frame(0x3D, raw.text(b"a/b") + b"\x00\x07\x00payload"),
    raw.frame(0x40, b"\x00\x01\x00\x00"),
    raw.frame(0x50, b"\x00\x01\x00\x00"),
    raw.frame(0x62, b"\x00\x01\x00\x00"),
    raw.frame(0x70, b"\x00\x01\x00\x00"),
    raw.frame(0x82, b"\x00\x02" + raw.block(5, b"\x0b\x05") + raw.text(b"a/#") + b"\x2e"),
    raw.frame(0xA2, b"\x00\x03" + raw.block(5, prop(0x26)) + raw.text(b"a/#")),
    raw.frame(0xC0),
    raw.frame(0xE0, b"\x00" + raw.block(5, prop(0x1F))),
    raw.frame(0xF0, b"\x18" + raw.block(5, prop(0x15))),
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(SAMPLES), st.integers(0, 40), st.integers(0, 255), st.integers(0, 3)
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.sampled_from([3, 4, 5]),
)
def test_nanomq_1153_spoiled_packets_end_in_an_answer_or_a_close(
    spoiled: list[tuple[bytes, int, int, int]], bytewise: bool, version: int
) -> None:
    """NanoMQ #1153-1155, #1181, #2110-2120, CVE-2024-42646..42655, CVE-2025-59947: packets found
    by fuzzing; one byte of each is changed, added or left out.
    """
    h = Harness()
    witness = h.client("witness")
    witness.subscribe("w")
    c = manual(h.client("attacker", version=version))
    data = bytearray()
    for sample, place, value, how in spoiled:
        packet = bytearray(sample)
        place %= len(packet)
        if how == 0:
            packet[place] = value
        elif how == 1:
            packet.insert(place, value)
        elif how == 2:
            del packet[place]
        data += packet
    for part in [data[n : n + 1] for n in range(len(data))] if bytewise else [data]:
        if not c.closed:
            c.send_raw(bytes(part))
    assert h.broker.counters.bugs == 0
    publish(h.client("other"), "w", b"served")
    assert payloads(witness) == [b"served"]


BAD_CONNECTS = {
    "protocol name": raw.connect(name=b"MQTX"),
    "protocol level": raw.connect(level=9),
    "reserved flag": raw.connect(flags=0x03),
    "will QoS without a will": raw.connect(flags=0x0A),
    "will QoS 3": raw.connect(flags=0x1E, tail=raw.will(5)),
    "will fields missing": raw.connect(flags=raw.CLEAN | raw.WILL),
    "user name missing": raw.connect(flags=raw.CLEAN | raw.USERNAME),
    "password cut short": raw.connect(flags=raw.CLEAN | raw.PASSWORD, tail=b"\x00\x05a"),
    "bytes behind the end": raw.connect(tail=b"\x00"),
    "receive maximum 0": raw.connect(properties=b"\x21\x00\x00"),
    "property twice": raw.connect(properties=prop(0x21) * 2),
    "unknown property": raw.connect(properties=b"\x7e\x00"),
    "client id not UTF-8": raw.connect(b"\xff"),
    "cut in the name": b"\x10\x03\x00\x04M",
    "empty": b"\x10\x00",
    "header flags": b"\x11" + raw.connect()[1:],
}


@pytest.mark.parametrize("data", BAD_CONNECTS.values(), ids=BAD_CONNECTS.keys())
def test_cve_2021_34431_refused_connects_leak_nothing(data: bytes) -> None:
    """CVE-2021-34431, CVE-2017-7654: crafted CONNECTs leak memory."""
    h = Harness()

    def attack() -> None:
        c = h.open()
        raw.talk(c, data)
        assert c.connection.closing
        h.broker.dirty.clear()
        c.drop()

    assert growth(h, attack) < 20
    assert not h.broker.connections
    assert not h.broker.sessions


@each_version
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x20\x02\x00\x00", id="CONNACK"),
        pytest.param(b"\x20\x03\x00\x00\x00", id="CONNACK 5"),
        pytest.param(b"\x90\x03\x00\x01\x00", id="SUBACK"),
        pytest.param(b"\x90\x04\x00\x01\x00\x00", id="SUBACK 5"),
        pytest.param(b"\xb0\x02\x00\x01", id="UNSUBACK"),
        pytest.param(b"\xb0\x04\x00\x01\x00\x00", id="UNSUBACK 5"),
        pytest.param(b"\xd0\x00", id="PINGRESP"),
    ],
)
def test_cve_2021_28166_packets_that_only_a_server_sends(version: int, data: bytes) -> None:
    """CVE-2021-28166, rumqttd 0.20: a client sends CONNACK and the like to the broker."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h, version)
    c.send_raw(data)
    refused(c, MALFORMED)
    assert witness.unharmed()


def test_rumqttd_auth_without_a_method_in_connect() -> None:
    """rumqttd 0.20: AUTH on a connection that named no authentication method."""
    h = Harness()
    c = attacker(h)
    c.send_raw(b"\xf0\x02\x18\x00")
    refused(c, (spec.PROTOCOL_ERROR, spec.BAD_AUTHENTICATION_METHOD))


@pytest.mark.parametrize("kind", [n for n in range(16) if n != 1])
@pytest.mark.parametrize("flags", [0, 2])
def test_sol_15_first_packet_that_is_no_connect(kind: int, flags: int) -> None:
    """sol #15: the bytes 40 02 00 01 as first packet; and all other types, and type 0."""
    h = Harness()
    witness = Witness(h)
    c = h.open()
    c.send_raw(bytes([kind << 4 | flags]) + b"\x02\x00\x01")
    connect_closed(c)
    assert witness.unharmed()


@pytest.mark.parametrize("pair", [b"\x26\x00\x00\x00\x00", prop(0x26)])
def test_mosquitto_2_0_12_very_many_user_properties(pair: bytes) -> None:
    """mosquitto 2.0.12: very many user properties cost quadratic time. A quadratic parser would
    take minutes over these."""
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t")
    c = h.open()
    c.send_raw(raw.connect(properties=pair * (60_000 // len(pair))))
    assert isinstance(c.recv()[0], Connack)
    pub = attacker(h)
    many = pair * (1_000_000 // len(pair))
    pub.send_raw(raw.frame(0x30, raw.text(b"t") + raw.block(5, many)))
    assert [len(m.properties) for m in messages(sub)] == [len(many)]


def test_emqx_many_user_properties_in_every_packet() -> None:
    """EMQX t_parse_many_user_properties_is_linear, on the packets that are not forwarded."""
    h = Harness()
    c = attacker(h)
    many = raw.block(5, prop(0x26) * 100_000)
    c.send_raw(raw.frame(0x82, b"\x00\x01" + many + raw.text(b"t") + b"\x00"))
    c.send_raw(raw.frame(0xA2, b"\x00\x02" + many + raw.text(b"t")))
    c.send_raw(raw.frame(0x40, b"\x00\x01\x00" + many))
    c.send_raw(raw.frame(0x62, b"\x00\x01\x00" + many))
    assert alive(c)


@each_version
@pytest.mark.parametrize("level", [b"/", b"a/", b"+/"])
def test_cve_2019_11779_topic_filters_of_very_many_levels(version: int, level: bytes) -> None:
    """CVE-2019-11779: SUBSCRIBE with some 65 400 slashes overflows the stack."""
    h = Harness(settings(max_topic_levels=65535))
    bomb = (level * 65535)[:65400]
    if bomb[-1:] == b"+":
        bomb += b"/"
    topic = bomb.replace(b"+", b"x")
    c = h.client("c", version=version)
    c.send_raw(raw.subscribe(version, bomb))
    c.send_raw(raw.frame(0x31, raw.text(topic) + raw.block(version) + b"m"))
    c.send_raw(raw.unsubscribe(version, bomb))
    c.send_raw(raw.subscribe(version, b"#", 2))
    assert h.broker.counters.bugs == 0
    assert payloads(c) == [b"m", b"m"]
    assert alive(c)


@each_version
def test_cve_2019_11779_default_limit_on_levels(version: int) -> None:
    """CVE-2019-11779: by default such a filter is refused, and the tree does not grow."""
    h = Harness()
    nodes = h.broker.trie.node_count
    c = h.client("c", version=version)
    c.send_raw(raw.subscribe(version, b"/" * 65400))
    assert c.closed or any(isinstance(p, Suback) and p.reasons[0] >= 0x80 for p in c.recv())
    assert h.broker.trie.node_count == nodes


def test_cve_2021_33175_one_packet_costs_no_multiple_of_its_size() -> None:
    """CVE-2021-33175/33176, CVE-2021-22116: one crafted message makes memory grow."""
    h = Harness()
    c = attacker(h)
    packets = [
        raw.publish(5, b"/" * 65535),
        raw.publish(5, b"t", b"x" * 500_000),
        raw.publish(5, b"t", b"x", prop(0x26) * 70_000),
        b"\x30\xff\xff\x3f" + b"x" * 1000,
    ]
    for packet in packets:
        c = attacker(h)
        tracemalloc.start()
        c.send_raw(packet)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 * len(packet) + 100_000


@each_version
@pytest.mark.parametrize("second", range(0x20, 0x7F))
def test_cve_2018_12543_topics_that_begin_with_a_dollar(version: int, second: int) -> None:
    """CVE-2018-12543: PUBLISH to $something other than $SYS trips an assertion."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h, version)
    c.send_raw(raw.publish(version, bytes([0x24, second]) + b"YS/x"))
    assert witness.unharmed()
    assert c.closed == (second in b"+#")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(raw.publish(5, b"t", b"", prop(0x01) * 2), id="property twice"),
        pytest.param(raw.publish(5, b"t", b"", b"\x26\x00\x01a"), id="half a user property"),
        pytest.param(raw.publish(5, b"t", b"", prop(0x0B)), id="subscription identifier"),
        pytest.param(raw.subscribe(5, b"t", options=0xC0), id="reserved option bits"),
        pytest.param(raw.frame(0x40, b"\x00\x01\x00\x05\x1f\x00"), id="PUBACK layout"),
        pytest.param(raw.frame(0xC0, b"\x00"), id="PINGREQ with a body"),
    ],
)
def test_emqx_13045_replays_from_the_threads(data: bytes) -> None:
    """EMQX #13045, NanoMQ #626, #1782, #2336."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h)
    c.send_raw(data)
    refused(c, MALFORMED)
    assert witness.unharmed()


@pytest.mark.parametrize(
    "packet",
    [
        raw.connect(b"client", flags=0xC6, tail=raw.will(5) + raw.text(b"u") + raw.text(b"p")),
        *SAMPLES[1:],
    ],
)
def test_mochi_2_7_9_packets_cut_at_every_byte(packet: bytes) -> None:
    """mochi 2.7.9: a SUBSCRIBE that ends right after a filter ends the whole process; the same
    for every packet cut at every byte, its Remaining Length telling the truth."""
    h = Harness()
    witness = Witness(h)
    body = packet[2:]
    assert packet[1] == len(body)
    for size in range(len(body)):
        first = packet[0] >> 4 == 1
        c = h.open() if first else attacker(h)
        c.send_raw(bytes([packet[0], size]) + body[:size])
        assert not c.messages()
        assert not (first and not c.closed)
        witness.client.recv()
    assert h.broker.counters.bugs == 0
    assert witness.unharmed()


def test_mochi_2_7_9_subscribe_that_ends_after_a_filter() -> None:
    """mochi 2.7.9: the reported packet itself."""
    h = Harness()
    c = attacker(h)
    c.send_raw(raw.frame(0x82, b"\x00\x01\x00" + raw.text(b"a/b")))
    refused(c, (spec.MALFORMED_PACKET,))


@pytest.mark.parametrize("first", [0x00, 0x20, 0x30, 0xC0, 0xF0, 0x11, 0x1F])
def test_cve_2023_0809_first_byte_that_is_no_connect_closes_at_once(first: int) -> None:
    """CVE-2023-0809: a first packet that is no CONNECT announces a large size."""
    h = Harness()
    c = h.open()
    tracemalloc.start()
    c.send_raw(bytes([first]) + b"\xff\xff\xff\x7f")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    connect_closed(c)
    assert peak < 100_000


def test_cve_2017_7651_announced_connects_allocate_nothing() -> None:
    """CVE-2017-7651, CVE-2019-0222: many connections announce huge CONNECTs."""
    h = Harness()
    tracemalloc.start()
    clients = [h.open() for _ in range(50)]
    for c in clients:
        c.send_raw(b"\x10\xff\xff\xff\x7f")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for c in clients:
        connect_closed(c)
    assert peak < 2_000_000


def test_cve_2017_7651_largest_connect_that_is_waited_for() -> None:
    """CVE-2017-7651: the limit before CONNECT is smaller than the one after it."""
    h = Harness(settings(max_connect_size=1000))
    waits, closed = h.open(), h.open()
    waits.send_raw(b"\x10" + raw.varint(1000 - 3))
    closed.send_raw(b"\x10" + raw.varint(1000 - 2))
    assert not waits.closed
    connect_closed(closed)


def test_cve_2023_5632_silent_connections_cost_no_work() -> None:
    """CVE-2023-5632: connect and send nothing makes the broker loop without rest."""
    h = Harness(settings(connect_timeout=10.0))
    clients = [h.open() for _ in range(1000)]
    assert not h.broker.ready
    assert not h.broker.dirty
    h.advance(9.5)
    assert not any(c.closed for c in clients)
    h.advance(1)
    assert all(c.closed for c in clients)
    assert not h.broker.connections


def test_cve_2020_13849_keep_alive_is_bounded() -> None:
    """CVE-2020-13849 (SlowITe): a keep alive of 65535 or 0 holds a connection for ever."""
    h = Harness(settings(max_keep_alive=60))
    for keep_alive in (0, 61, 65535):
        c = h.client("slow", keep_alive=keep_alive)
        assert c.connack.properties is not None
        assert c.connack.properties.server_keep_alive == 60
        h.advance(91)
        refused(c, (spec.KEEP_ALIVE_TIMEOUT,))


@each_version
def test_slow_drip_of_a_connect_meets_its_deadline(version: int) -> None:
    """Slow drip: one byte of CONNECT per second."""
    h = Harness(settings(connect_timeout=10.0))
    c = h.open(version)
    data = raw.connect(b"a-client-id-of-some-length", version=version)
    for n in range(11):
        if not c.closed:
            c.send_raw(data[n : n + 1])
        h.advance(1)
    assert c.closed


def test_cve_2025_56352_refused_empty_client_id_is_closed() -> None:
    """CVE-2025-56352: 3.1.1, empty client id, clean session 0: answered but left open."""
    h = Harness()
    for _ in range(100):
        c = h.open(4)
        c.send_raw(raw.connect(b"", version=4, flags=0))
        assert [p.reason for p in c.recv() if isinstance(p, Connack)] == [2]
        assert c.closed
    assert not h.broker.connections


def test_connect_flood_leaves_those_who_are_here_alone() -> None:
    """Connect flood: thousands of connections at once, most of them never finished."""
    h = Harness(settings(connect_timeout=5.0))
    sub = h.client("sub")
    sub.subscribe("t")
    for n in range(2000):
        h.open().send_raw(raw.connect()[: n % 17])
    pub = h.client("pub")
    publish(pub, "t", b"served")
    h.advance(6)
    publish(pub, "t", b"still served")
    assert payloads(sub) == [b"served", b"still served"]
    assert len(h.broker.connections) == 2


ODD_NAMES = (
    "__proto__",
    "constructor",
    "__class__",
    "__dict__",
    "{0}",
    "{self.__class__}",
    "%s%n",
    "None",
    "0",
    "\\x00",
    "'; DROP TABLE session; --",
    "../../x",
    "a\nb",
    "\x1b[31mred",
    "\u202eevil",
    "\U0001f4a9",
)


@each_version
@pytest.mark.parametrize("name", ODD_NAMES)
def test_ghsa_52qw_whmv_87c5_odd_names_are_ordinary_strings(version: int, name: str) -> None:
    """aedes GHSA-52qw-whmv-87c5: a client id or filter named __proto__ kills the process."""
    h = Harness()
    c = h.client(name, version=version)
    c.subscribe(name, qos=1)
    group = h.client("member", version=version)
    group.subscribe(f"$share/{name.replace('/', '.')}/{name}", qos=1)
    send_publish(h.client("pub", version=version), name, b"m", qos=1, retain=True)
    assert [(m.topic, m.payload) for m in messages(c)] == [(name, b"m")]
    assert payloads(group) == [b"m"]
    assert h.client(name, version=version).connack.reason == 0
    assert c.closed


def test_log_injection_refused_text_is_not_in_the_answer() -> None:
    """Log injection: what a client sent is not repeated in a Reason String or a log event."""
    h = Harness()
    c = attacker(h)
    c.send_raw(raw.publish(5, b"evil\x1b[31m/#"))
    for p in c.recv():
        assert isinstance(p, Disconnect)
        assert p.properties is None or "evil" not in (p.properties.reason_string or "")
    assert not any("evil" in event.reason for event in h.broker.events)


def test_labover_129_reasons_are_bounded() -> None:
    """labover #129: a Reason String built from a topic of 65 500 bytes overflows."""
    h = Harness()
    for data in (
        raw.publish(5, b"x" * 65500 + b"/#"),
        raw.publish(5, b"\xff" * 65500),
        raw.subscribe(5, b"#" * 65500),
    ):
        c = attacker(h)
        c.send_raw(data)
        assert len(c.raw) < 500


def test_labover_129_maximum_packet_size_0_is_refused() -> None:
    """labover #129: Maximum Packet Size 0 in CONNECT wedges the connection."""
    h = Harness()
    c = h.open()
    c.send_raw(raw.connect(properties=b"\x27\x00\x00\x00\x00"))
    raw.connect_refused(c, MALFORMED)


def test_random_bytes_end_only_their_own_connection() -> None:
    """FlashMQ CVE-2024-42644/42645: bytes of which nothing is known but that they crash."""
    h = Harness()
    witness = h.client("witness")
    rng = random.Random(1)
    for n in range(2000):
        c = h.open() if n % 2 else attacker(h)
        c.send_raw(rng.randbytes(rng.randrange(1, 60)))
        if not c.closed:
            c.drop()
    assert h.broker.counters.bugs == 0
    assert alive(witness)


def defined(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))


def test_the_table_of_reports_and_the_tests_agree() -> None:
    here = Path(__file__).parent
    table = (here.parent / "docs" / "hostile.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", table))
    assert named
    for file, name in named:
        assert name in defined(here / file), f"{file}::{name}"
    for file in [path.name for path in here.glob("test_hostile*.py")]:
        missing = {name for name in defined(here / file) if (file, name) not in named}
        assert missing <= {"test_the_table_of_reports_and_the_tests_agree"}
