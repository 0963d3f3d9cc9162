"""Properties: the table against the specification's, and the scanners against the table."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttd.core import properties as pr
from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.properties import (
    Properties,
    decode_forwardable,
    decode_properties,
    encode_forwardable,
    encode_properties,
    encode_publish_properties,
    encode_will_properties,
    scan_publish_properties,
    scan_will_properties,
)
from mqttd.core.wire import varint
from tests.core.vectors import props, unhex, untimed

WILL = 0
PACKETS = tuple(range(16))

# Table 2-4 of the specification, written down a second time: identifier, name, an encoded value,
# the value, and the packets by their initials.
CONNECT, CONNACK, PUBLISH, SUBSCRIBE = 1, 2, 3, 8
ACKS = (4, 5, 6, 7, 9, 11)
DISCONNECT, AUTH = 14, 15
TABLE: list[tuple[int, str, str, object, tuple[int, ...]]] = [
    (1, "payload_format_indicator", "01", 1, (PUBLISH, WILL)),
    (2, "message_expiry_interval", "00000e10", 3600, (PUBLISH, WILL)),
    (3, "content_type", "000174", "t", (PUBLISH, WILL)),
    (8, "response_topic", "0003722f74", "r/t", (PUBLISH, WILL)),
    (9, "correlation_data", "0002ff00", b"\xff\x00", (PUBLISH, WILL)),
    (11, "subscription_ids", "ffff7f", [2_097_151], (PUBLISH, SUBSCRIBE)),
    (17, "session_expiry_interval", "ffffffff", 0xFFFFFFFF, (CONNECT, CONNACK, DISCONNECT)),
    (18, "assigned_client_identifier", "000169", "i", (CONNACK,)),
    (19, "server_keep_alive", "0000", 0, (CONNACK,)),
    (21, "authentication_method", "00016d", "m", (CONNECT, CONNACK, AUTH)),
    (22, "authentication_data", "0000", b"", (CONNECT, CONNACK, AUTH)),
    (23, "request_problem_information", "00", 0, (CONNECT,)),
    (24, "will_delay_interval", "00000000", 0, (WILL,)),
    (25, "request_response_information", "01", 1, (CONNECT,)),
    (26, "response_information", "000172", "r", (CONNACK,)),
    (28, "server_reference", "000173", "s", (CONNACK, DISCONNECT)),
    (31, "reason_string", "00026e6f", "no", (CONNACK, *ACKS, DISCONNECT, AUTH)),
    (33, "receive_maximum", "ffff", 65535, (CONNECT, CONNACK)),
    (34, "topic_alias_maximum", "0000", 0, (CONNECT, CONNACK)),
    (35, "topic_alias", "0001", 1, (PUBLISH,)),
    (36, "maximum_qos", "01", 1, (CONNACK,)),
    (37, "retain_available", "00", 0, (CONNACK,)),
    (38, "user_properties", "0001610002c3a9", [("a", "é")], (*range(12), DISCONNECT, AUTH)),
    (39, "maximum_packet_size", "00000001", 1, (CONNECT, CONNACK)),
    (40, "wildcard_subscription_available", "00", 0, (CONNACK,)),
    (41, "subscription_identifier_available", "01", 1, (CONNACK,)),
    (42, "shared_subscription_available", "01", 1, (CONNACK,)),
]
ROWS = pytest.mark.parametrize(("identifier", "name", "value", "meaning", "packets"), TABLE)
FORWARDABLE = (1, 3, 8, 9, 38)


def block(*parts: str) -> bytes:
    """A property block with its length in front."""
    body = unhex(" ".join(parts))
    return varint(len(body)) + body


def refusal(data: bytes, packet_type: int) -> tuple[int, str]:
    with pytest.raises(ProtocolError) as caught:
        decode_properties(data, 0, len(data), packet_type)
    return caught.value.code, caught.value.clause


def refused_scan(data: bytes, from_client: bool = False) -> tuple[int, str]:
    with pytest.raises(ProtocolError) as caught:
        scan_publish_properties(data, 0, len(data), from_client)
    return caught.value.code, caught.value.clause


def refused_will(data: bytes) -> tuple[int, str]:
    with pytest.raises(ProtocolError) as caught:
        scan_will_properties(data, 0, len(data))
    return caught.value.code, caught.value.clause


def test_nothing_is_missing() -> None:
    assert [row[0] for row in TABLE] == list(pr.TABLE)
    assert sorted(row[1] for row in TABLE) == sorted(row.name for row in pr.TABLE.values())


@ROWS
def test_each_property_where_it_belongs(
    identifier: int, name: str, value: str, meaning: object, packets: tuple[int, ...]
) -> None:
    wanted = props(**{name: meaning})
    data = block(f"{identifier:02x}", value)
    if name == "authentication_data":
        wanted.authentication_method = "m"
        data = block("1500016d", f"{identifier:02x}", value)
    for packet_type in PACKETS:
        if packet_type in packets:
            assert decode_properties(data, 0, len(data), packet_type) == (wanted, len(data))
        else:
            assert refusal(data, packet_type) == (spec.MALFORMED_PACKET, "")
    assert encode_properties(wanted) == data


@ROWS
def test_each_property_twice(
    identifier: int, name: str, value: str, meaning: object, packets: tuple[int, ...]
) -> None:
    once = f"{identifier:02x} {value}"
    data = block(once, once)
    for packet_type in packets:
        repeats = name == "user_properties" or (
            name == "subscription_ids" and packet_type == PUBLISH
        )
        if repeats:
            decoded, _end = decode_properties(data, 0, len(data), packet_type)
            assert len(getattr(decoded, name)) == 2
            assert encode_properties(decoded) == data
        else:
            assert refusal(data, packet_type) == (spec.PROTOCOL_ERROR, "")
    if PUBLISH in packets and not repeats_in_publish(name):
        assert refused_scan(data) == (spec.PROTOCOL_ERROR, "")
    if WILL in packets and name != "user_properties":
        assert refused_will(data) == (spec.PROTOCOL_ERROR, "")


def repeats_in_publish(name: str) -> bool:
    return name in ("user_properties", "subscription_ids")


@ROWS
def test_each_property_cut(
    identifier: int, name: str, value: str, meaning: object, packets: tuple[int, ...]
) -> None:
    """A value may cross neither the end of its block nor the end of the packet."""
    raw = unhex(f"{identifier:02x} {value}")
    for cut in range(1, len(raw)):
        inside = bytes([cut]) + raw[:cut] + b"\x00\x00\x00\x00"
        outside = bytes([len(raw)]) + raw[:cut]
        for data in (inside, outside):
            assert refusal(data, packets[0])[0] == spec.MALFORMED_PACKET
            if PUBLISH in packets:
                assert refused_scan(data)[0] == spec.MALFORMED_PACKET
            if WILL in packets:
                assert refused_will(data)[0] == spec.MALFORMED_PACKET


@ROWS
def test_each_property_scanned(
    identifier: int, name: str, value: str, meaning: object, packets: tuple[int, ...]
) -> None:
    raw = unhex(f"{identifier:02x} {value}")
    data = block(raw.hex())
    end = len(data)
    kept = raw if identifier in FORWARDABLE else b""
    if PUBLISH in packets:
        alias = meaning if name == "topic_alias" else 0
        expiry = meaning if name == "message_expiry_interval" else -1
        numbers = meaning if name == "subscription_ids" else None
        assert scan_publish_properties(data, 0, end, False) == (kept, end, alias, expiry, numbers)
    else:
        assert refused_scan(data) == (spec.MALFORMED_PACKET, "")
    if WILL in packets:
        delay = meaning if name == "will_delay_interval" else 0
        expiry = meaning if name == "message_expiry_interval" else -1
        assert scan_will_properties(data, 0, end) == (kept, end, delay, expiry)
    else:
        assert refused_will(data) == (spec.MALFORMED_PACKET, "")


@pytest.mark.parametrize(
    ("data", "packet_type"),
    [
        ("17 02", CONNECT),
        ("19 ff", CONNECT),
        ("21 0000", CONNECT),
        ("21 0000", CONNACK),
        ("27 00000000", CONNECT),
        ("24 02", CONNACK),
        ("25 02", CONNACK),
        ("28 02", CONNACK),
        ("29 02", CONNACK),
        ("2a 02", CONNACK),
        ("01 02", PUBLISH),
        ("01 02", WILL),
        ("0b 00", SUBSCRIBE),
        ("16 0001 78", CONNECT),
        ("16 0001 78", AUTH),
    ],
)
def test_values_out_of_range(data: str, packet_type: int) -> None:
    assert refusal(block(data), packet_type) == (spec.PROTOCOL_ERROR, "")
    if packet_type == PUBLISH:
        assert refused_scan(block(data)) == (spec.PROTOCOL_ERROR, "")
    if packet_type == WILL:
        assert refused_will(block(data)) == (spec.PROTOCOL_ERROR, "")


def test_unknown_identifiers() -> None:
    for identifier in range(256):
        if identifier in pr.TABLE:
            continue
        data = block(f"{identifier:02x} 0000000000")
        assert refusal(data, CONNECT) == (spec.MALFORMED_PACKET, "")
        assert refused_scan(data) == (spec.MALFORMED_PACKET, "")
        assert refused_will(data) == (spec.MALFORMED_PACKET, "")


def test_topic_alias_0() -> None:
    # [MQTT-3.3.2-8]
    data = block("23 0000")
    assert refused_scan(data) == (spec.TOPIC_ALIAS_INVALID, "MQTT-3.3.2-8")
    assert refusal(data, PUBLISH) == (spec.TOPIC_ALIAS_INVALID, "MQTT-3.3.2-8")


def test_subscription_identifier_from_a_client() -> None:
    # [MQTT-3.3.4-6]
    data = block("0b 01")
    assert refused_scan(data, from_client=True) == (spec.PROTOCOL_ERROR, "MQTT-3.3.4-6")
    assert scan_publish_properties(data, 0, 3, False)[4] == [1]


def test_subscription_identifier_0() -> None:
    assert refused_scan(block("0b 00")) == (spec.PROTOCOL_ERROR, "")


@pytest.mark.parametrize(
    ("topic", "clause"),
    [("23", "MQTT-3.3.2-14"), ("612f2b", "MQTT-3.3.2-14"), ("", "MQTT-4.7.3-1")],
)
def test_response_topic(topic: str, clause: str) -> None:
    # [MQTT-3.3.2-14] [MQTT-4.7.3-1]
    data = block(f"08 00{len(topic) // 2:02x}", topic)
    for code in (refused_scan(data), refused_will(data), refusal(data, PUBLISH)):
        assert code == (spec.PROTOCOL_ERROR, clause)


@pytest.mark.parametrize(
    "data", ["03 0001ff", "08 0001ff", "26 0001ff 0000", "26 0000 0001ff", "26 0000 000100"]
)
def test_forwarded_text_is_checked(data: str) -> None:
    # [MQTT-1.5.7-1] [MQTT-3.3.2-13] [MQTT-3.3.2-19]
    raw = block(data)
    for code, clause in (refused_scan(raw), refused_will(raw), refusal(raw, PUBLISH)):
        assert code == spec.MALFORMED_PACKET
        assert clause.startswith("MQTT-1.5.4-")


def test_an_empty_block() -> None:
    # [MQTT-2.2.2-1]
    assert scan_publish_properties(b"\xff\x00\xff", 1, 3, True) == (b"", 2, 0, -1, None)
    assert scan_will_properties(b"\xff\x00\xff", 1, 3) == (b"", 2, 0, -1)
    assert decode_properties(b"\xff\x00\xff", 1, 3, CONNECT) == (Properties(), 2)
    assert encode_properties(None) == b"\x00"
    assert encode_properties(Properties()) == b"\x00"
    assert encode_publish_properties(b"", 0, -1, []) == b"\x00"
    assert encode_will_properties(b"", 0, -1) == b"\x00"


def test_a_missing_block() -> None:
    assert refused_scan(b"") == (spec.MALFORMED_PACKET, "")
    assert refused_will(b"") == (spec.MALFORMED_PACKET, "")
    assert refusal(b"", CONNECT) == (spec.MALFORMED_PACKET, "")
    with pytest.raises(ProtocolError):
        scan_publish_properties(b"\x00", 0, 0, True)


def test_forwardable_properties_keep_order_and_bytes() -> None:
    """What is cut out leaves no trace; the rest stays as it came.

    [MQTT-3.1.3-10] [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17]
    [MQTT-3.3.2-18] [MQTT-3.3.2-20]
    """
    pieces = ["26 0001 62 0000", "0100", "26 0001 61 0001 31", "0300 0174", "26 0001 62 0000"]
    wanted = unhex(" ".join(pieces))
    expiry = "02 00000005"
    for at in range(len(pieces) + 1):
        data = block(*pieces[:at], expiry, *pieces[at:])
        assert scan_publish_properties(data, 0, len(data), True) == (wanted, len(data), 0, 5, None)
        assert scan_will_properties(data, 0, len(data)) == (wanted, len(data), 0, 5)
    opened = decode_forwardable(wanted)
    assert opened.user_properties == [("b", ""), ("a", "1"), ("b", "")]


def test_forwardable_leaves_the_others_out() -> None:
    full = props(
        payload_format_indicator=1,
        message_expiry_interval=9,
        content_type="c",
        response_topic="r",
        correlation_data=b"d",
        topic_alias=3,
        subscription_ids=[4],
        will_delay_interval=5,
        user_properties=[("k", "v")],
        reason_string="x",
    )
    raw = encode_forwardable(full)
    assert raw == unhex("0101 03000163 08000172 09000164 26 00016b 000176")
    assert decode_forwardable(raw) == props(
        payload_format_indicator=1,
        content_type="c",
        response_topic="r",
        correlation_data=b"d",
        user_properties=[("k", "v")],
    )
    assert encode_forwardable(Properties()) == b""
    assert decode_forwardable(b"") == Properties()


def test_values_that_do_not_fit() -> None:
    for values in (
        props(receive_maximum=65_536),
        props(session_expiry_interval=-1),
        props(reason_string="x" * 65_536),
        props(subscription_ids=[268_435_456]),
        props(maximum_qos=256),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - each says it in its own words
            encode_properties(values)


def test_equality() -> None:
    assert Properties() == Properties()
    assert props(maximum_qos=1) == props(maximum_qos=1)
    assert props(maximum_qos=1) != props(maximum_qos=0)
    assert props(maximum_qos=0) != Properties()
    assert Properties() != 0
    with pytest.raises(TypeError):
        hash(Properties())


def test_repr_shows_what_is_set() -> None:
    assert repr(Properties()) == "Properties()"
    assert repr(props(maximum_qos=0)) == "Properties(maximum_qos=0)"
    shown = repr(props(authentication_method="m", authentication_data=b"secret"))
    assert shown == "Properties(authentication_method='m', authentication_data=***)"


# Whole blocks, made of arbitrary good properties in arbitrary order.

text = st.text(st.characters(exclude_characters="\0+#", exclude_categories=["Cs"]), max_size=12)
utf8 = text.map(lambda s: len(s.encode()).to_bytes(2, "big") + s.encode())
blob = st.binary(max_size=12).map(lambda b: len(b).to_bytes(2, "big") + b)
filled = text.filter(bool).map(lambda s: len(s.encode()).to_bytes(2, "big") + s.encode())
number4 = st.integers(0, spec.MAX_U32).map(lambda n: n.to_bytes(4, "big"))
SINGLE: dict[int, st.SearchStrategy[bytes]] = {
    1: st.sampled_from([b"\x00", b"\x01"]),
    2: number4,
    3: utf8,
    8: filled,
    9: blob,
    35: st.integers(1, 65_535).map(lambda n: n.to_bytes(2, "big")),
}
pair = st.tuples(utf8, utf8).map(lambda both: b"\x26" + both[0] + both[1])
number = st.integers(1, spec.MAX_VARINT).map(lambda n: b"\x0b" + varint(n))


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    chosen = draw(st.sets(st.sampled_from(sorted(SINGLE))))
    parts = [bytes([one]) + draw(SINGLE[one]) for one in sorted(chosen)]
    parts += draw(st.lists(st.one_of(pair, number), max_size=6))
    return list(draw(st.permutations(parts)))


@untimed
@given(pieces(), st.binary(max_size=4))
def test_scanner_and_table_agree(parts: list[bytes], payload: bytes) -> None:
    body = b"".join(parts)
    data = varint(len(body)) + body + payload
    stop = len(data) - len(payload)
    raw, after, alias, expiry, numbers = scan_publish_properties(data, 0, len(data), False)
    whole, end = decode_properties(data, 0, len(data), PUBLISH)
    assert after == end == stop
    assert raw == b"".join(part for part in parts if part[0] in FORWARDABLE)
    opened = decode_forwardable(raw)
    assert (alias or None) == whole.topic_alias
    assert (None if expiry < 0 else expiry) == whole.message_expiry_interval
    assert (numbers or []) == whole.subscription_ids
    opened.topic_alias = whole.topic_alias
    opened.message_expiry_interval = whole.message_expiry_interval
    opened.subscription_ids = whole.subscription_ids
    assert opened == whole
    again = encode_publish_properties(raw, alias, expiry, numbers or [])
    assert scan_publish_properties(again, 0, len(again), False) == (
        raw,
        len(again),
        alias,
        expiry,
        numbers,
    )


def outcome(data: bytes, packet_type: int) -> int:
    try:
        decode_properties(data, 0, len(data), packet_type)
    except ProtocolError as error:
        return error.code
    return 0


def scan_outcome(data: bytes) -> int:
    try:
        scan_publish_properties(data, 0, len(data), False)
    except ProtocolError as error:
        return error.code
    return 0


def will_outcome(data: bytes) -> int:
    try:
        scan_will_properties(data, 0, len(data))
    except ProtocolError as error:
        return error.code
    return 0


identifiers = st.sampled_from([row[0] for row in TABLE])
noise = st.lists(st.one_of(identifiers, st.sampled_from([0, 1, 2]), st.integers(0, 255)))


@untimed
@given(noise)
@example([0x01, 0x00, 0x01])
@example([0x0B, 0x01, 0x0B])
@example([0x23, 0x00, 0x01, 0x23, 0x00])
def test_any_bytes(body: list[int]) -> None:
    """Every reading of a block refuses the same, with the same code, and raises nothing else."""
    data = varint(len(body)) + bytes(body)
    assert scan_outcome(data) == outcome(data, PUBLISH)
    assert will_outcome(data) == outcome(data, WILL)
    for packet_type in PACKETS:
        outcome(data, packet_type)


@untimed
@given(st.integers(0, spec.MAX_U32), st.integers(-1, spec.MAX_U32))
def test_will_properties_round_trip(delay: int, expiry: int) -> None:
    raw = unhex("26 0001 61 0001 62 0101")
    data = encode_will_properties(raw, delay, expiry)
    assert scan_will_properties(data, 0, len(data)) == (raw, len(data), delay, expiry)
