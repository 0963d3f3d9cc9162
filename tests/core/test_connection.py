"""The machine of one connection: deadlines, forms of packets, subscriptions, and how it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.auth import Verdict
from mqttd.core.connection import INFINITY
from mqttd.core.encode import encode_packet
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import CLOSED, OPEN
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from tests.core.rig import make_settings
from tests.core.vectors import props, untimed
from tests.harness import FakeClient, Harness

V3 = (spec.MQTT31, spec.MQTT311)
ALL = (*V3, spec.MQTT5)


def goodbye(client: FakeClient) -> int:
    """The reason code of the DISCONNECT that ended this MQTT 5 connection."""
    last = client.recv()[-1]
    assert isinstance(last, Disconnect), last
    assert client.closed
    return last.reason


def manual(h: Harness, client_id: str = "c", version: int = 5, **options: int) -> FakeClient:
    return h.client(client_id, version=version, auto_ack=False, **options)  # type: ignore[arg-type]


# Deadlines.


def test_a_stranger_has_its_time_and_no_more() -> None:
    h = Harness(make_settings(connect_timeout=7.5))
    client = h.open()
    assert client.connection.next_deadline() == 1007.5
    client.connection.handle_timeout(1007.4)
    assert not client.connection.closing
    h.advance(7.5)
    client.expect_nothing()
    assert client.closed
    assert h.events("refused") == ["no CONNECT in time"]
    assert client.connection.next_deadline() == INFINITY


@pytest.mark.parametrize("version", ALL)
def test_silence_ends_a_connection_after_one_and_a_half_keep_alives(version: int) -> None:
    """[MQTT-3.1.2-22]"""
    h = Harness()
    client = h.client("c", version=version, keep_alive=10)
    assert client.connection.next_deadline() == 1015.0
    h.advance(14.0)
    client.send(Pingreq())
    client.expect(Pingresp)
    h.advance(14.9)
    assert not client.closed
    h.advance(0.1)
    assert client.closed
    if version == 5:
        assert goodbye(client) == spec.KEEP_ALIVE_TIMEOUT
    assert client.connection.next_deadline() == INFINITY
    client.connection.handle_timeout(9999.0)  # nothing more to end


def test_without_a_keep_alive_there_is_no_deadline() -> None:
    """[MQTT-3.1.2-22]"""
    h = Harness()
    client = h.client("c", keep_alive=0)
    assert client.connection.next_deadline() == INFINITY
    client.connection.handle_timeout(h.now + 1e9)
    assert not client.closed


# The transport.


def test_a_lost_connection_is_told_once() -> None:
    h = Harness()
    client = h.client("c", will=Will("will", b"w"))
    watcher = h.client("watcher")
    watcher.subscribe("will")
    client.drop()
    client.connection.connection_lost(h.now)
    assert h.events("disconnect") == ["connection lost"]
    assert [packet.payload for packet in watcher.messages()] == [b"w"]
    assert h.broker.counters.clients_connected == 1
    assert h.broker.counters.connections == 1
    assert client.connection.state == CLOSED


def test_a_stranger_that_leaves_is_no_event() -> None:
    h = Harness()
    h.open().drop()
    assert h.broker.events == []
    assert h.broker.counters.connections == 0


def test_nothing_is_read_after_the_end() -> None:
    h = Harness()
    client = h.client("c")
    client.connection.close(spec.ADMINISTRATIVE_ACTION, "", h.now)
    h.flush()
    told = client.expect(Disconnect)
    assert told.reason == spec.ADMINISTRATIVE_ACTION
    assert told.properties is None
    before = h.broker.counters.bytes_received
    client.send(Publish("t", b"late", retain=True))
    client.connection.close(spec.ADMINISTRATIVE_ACTION, "again", h.now)
    client.connection.fail(ProtocolError(spec.PROTOCOL_ERROR), h.now)
    client.connection.resume_writing(h.now)
    h.flush()
    client.expect_nothing()
    assert h.broker.counters.bytes_received == before
    assert h.broker.retained.count == 0
    assert not client.connection.writable


def test_a_reader_that_lags_is_written_to_when_it_reads() -> None:
    h = Harness()
    client = h.client("c")
    client.subscribe("t", qos=1)
    client.pause()
    assert not client.connection.writable
    h.client("p").publish("t", b"x", qos=1)
    client.expect_nothing()
    client.resume()
    assert [packet.payload for packet in client.messages()] == [b"x"]


def test_the_shell_learns_when_it_should_not_go_on_reading() -> None:
    """While the client does not read its answers, or a decider is awaited."""
    h = Harness()
    client = h.client("c").connection
    assert not client.receive_data(b"\xc0\x00", h.now)
    client.pause_writing()
    assert client.receive_data(b"\xc0\x00", h.now)
    client.resume_writing(h.now)
    assert not client.receive_data(b"\xc0\x00", h.now)
    client.close(spec.ADMINISTRATIVE_ACTION, "", h.now)
    assert not client.receive_data(b"\xc0\x00", h.now)
    stranger = h.open().connection
    assert not stranger.receive_data(b"GET / HTTP/1.1", h.now)

    def later(connection: object, packet: Connect) -> Verdict | None:
        return None

    h.broker.hooks.authenticate = later
    frame = encode_packet(Connect(client_id="d"), 5)
    assert h.open().connection.receive_data(frame, h.now)


def test_a_fault_of_ours_ends_one_connection() -> None:
    h = Harness()
    client, other = h.client("c"), h.client("other")
    client.connection.abort(h.now)
    h.flush()
    assert goodbye(client) == spec.UNSPECIFIED_ERROR
    assert not other.closed
    assert h.broker.counters.bugs == 1


def test_a_client_that_cannot_take_its_answer_is_let_go() -> None:
    """[MQTT-3.1.2-24]"""
    h = Harness()
    client = h.client("c", properties=props(maximum_packet_size=60))
    client.send(Unsubscribe(1, [str(number) for number in range(80)]))
    assert goodbye(client) == spec.PACKET_TOO_LARGE
    assert h.broker.counters.answers_too_large == 1


# What may come, and in which form.


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    "data",
    [b"\xc1\x00", b"\xc0\x01\x00", b"\xd0\x00", b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x00"],
    ids=["PINGREQ with flags", "PINGREQ with a body", "PINGRESP", "CONNACK", "SUBACK"],
)
def test_a_packet_that_no_client_sends_ends_the_connection(version: int, data: bytes) -> None:
    """[MQTT-2.1.3-1] [MQTT-4.13.1-1]"""
    client = Harness().client("c", version=version)
    client.send_raw(data)
    assert client.closed
    if version == 5:
        assert goodbye(client) in (spec.MALFORMED_PACKET, spec.PROTOCOL_ERROR)
    else:
        client.expect_nothing()  # MQTT 3 has no word for it


@pytest.mark.parametrize("version", ALL)
def test_a_second_connect_and_an_early_auth_are_errors(version: int) -> None:
    """[MQTT-3.1.0-2]"""
    h = Harness()
    client = h.client("c", version=version)
    client.send(Connect("MQTT" if version > 3 else "MQIsdp", version, client_id="c"))
    assert client.closed
    client = h.client("d", version=version)
    client.send_raw(b"\xf0\x00")
    assert client.closed


def test_a_bad_packet_before_connack_is_refused_and_after_it_told() -> None:
    """[MQTT-3.14.0-1] [MQTT-4.13.1-1]"""
    h = Harness()
    stranger = h.open()
    stranger.send_raw(b"\x10\x0c\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x00")  # reserved flag
    assert stranger.expect(Connack).reason == spec.MALFORMED_PACKET
    assert stranger.closed
    client = h.client("c")
    client.send_raw(b"\x36\x03\x00\x01t")  # QoS 3
    assert goodbye(client) == spec.MALFORMED_PACKET
    assert h.broker.counters.protocol_errors == 2


@pytest.mark.parametrize("long", [False, True])
def test_acknowledgements_may_be_short_or_spelled_out(long: bool) -> None:
    """[MQTT-3.4.2-1] MQTT 5, 2.2.2 and 3.4.2.1: reason and properties may be left out."""
    tail = b"\x00\x00" if long else b""
    length = bytes([2 + len(tail)])
    h = Harness()
    client = manual(h)
    client.subscribe("t", qos=2)
    publisher = h.client("p")
    publisher.publish("t", b"1", qos=1)
    assert client.expect(Publish).packet_id == 1
    client.send_raw(b"\x40" + length + b"\x00\x01" + tail)
    publisher.publish("t", b"2", qos=2)
    assert client.expect(Publish).packet_id == 2
    client.send_raw(b"\x50" + length + b"\x00\x02" + tail)
    assert client.expect(Pubrel) == Pubrel(2)
    client.send_raw(b"\x70" + length + b"\x00\x02" + tail)
    client.expect_nothing()
    assert h.broker.balance() == (0, 0)
    client.publish("u", b"3", qos=2, packet_id=9)
    client.expect(Pubrec)
    client.send_raw(b"\x62" + length + b"\x00\x09" + tail)
    assert client.expect(Pubcomp) == Pubcomp(9)


@pytest.mark.parametrize("first", [0x40, 0x50, 0x62, 0x70])
def test_an_acknowledgement_of_identifier_0_is_an_error(first: int) -> None:
    """[MQTT-2.2.1-3]"""
    client = Harness().client("c")
    client.send_raw(bytes([first]) + b"\x02\x00\x00")
    assert goodbye(client) in (spec.MALFORMED_PACKET, spec.PROTOCOL_ERROR)


@pytest.mark.parametrize("long", [False, True])
def test_acknowledgements_of_nothing_are_answered_where_the_protocol_says_so(long: bool) -> None:
    """[MQTT-4.3.2-3] MQTT 5, 3.5.4 and 3.6.4."""
    tail = b"\x00\x00" if long else b""
    length = bytes([2 + len(tail)])
    client = manual(Harness())
    client.send_raw(b"\x40" + length + b"\x00\x05" + tail)
    client.send_raw(b"\x70" + length + b"\x00\x05" + tail)
    client.expect_nothing()
    client.send_raw(b"\x50" + length + b"\x00\x05" + tail)
    assert client.expect(Pubrel) == Pubrel(5, spec.PACKET_IDENTIFIER_NOT_FOUND)
    client.send_raw(b"\x62" + length + b"\x00\x05" + tail)
    assert client.expect(Pubcomp).reason == spec.PACKET_IDENTIFIER_NOT_FOUND
    client.send(Pubrec(5, spec.UNSPECIFIED_ERROR))  # an error ends what never was
    client.expect_nothing()
    assert not client.closed


@pytest.mark.parametrize("version", V3)
def test_an_unknown_pubrel_succeeds_where_there_is_no_word_for_it(version: int) -> None:
    client = manual(Harness(), version=version)
    client.send(Pubrel(5))
    assert client.expect(Pubcomp) == Pubcomp(5)


# SUBSCRIBE, UNSUBSCRIBE, DISCONNECT.


@pytest.mark.parametrize("version", ALL)
def test_each_filter_gets_its_answer(version: int) -> None:
    """[MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1] [MQTT-3.11.3-1]"""
    client = Harness(make_settings(max_topic_levels=3)).client("c", version=version)
    filters = [Filter("a", 0), Filter("a/b/c/d", 1), Filter("b", 2)]
    client.send(Subscribe(5, filters))
    failed = spec.TOPIC_FILTER_INVALID if version == 5 else 0x80
    assert client.expect(Suback) == Suback(5, [0, failed, 2])
    client.send(Unsubscribe(6, ["b", "nothing"]))
    expected = [0, spec.NO_SUBSCRIPTION_EXISTED] if version == 5 else []
    assert client.expect(Unsuback) == Unsuback(6, expected)


@pytest.mark.parametrize("version", V3)
def test_a_bridge_gets_no_echo_and_keeps_the_retain_flag(version: int) -> None:
    """What No Local and Retain As Published say in MQTT 5, bridges of MQTT 3 mean by a bit."""
    h = Harness()
    bridge = h.open(version)
    name = "MQTT" if version == 4 else "MQIsdp"
    bridge.send(Connect(name, version, client_id="bridge", bridge=True))
    bridge.expect(Connack)
    bridge.subscribe("t")
    bridge.publish("t", b"own")
    h.client("p").publish("t", b"x", retain=True)
    assert [(packet.payload, packet.retain) for packet in bridge.messages()] == [(b"x", True)]


@pytest.mark.parametrize(
    ("before", "said", "code", "left"),
    [
        (60, None, 0, True),
        (60, 0, 0, False),
        (60, 120, 0, True),
        (0, 0, 0, False),
        (0, 60, spec.PROTOCOL_ERROR, False),
    ],
)
def test_disconnect_may_change_the_session_expiry(
    before: int, said: int | None, code: int, left: bool
) -> None:
    """MQTT 5, 3.14.2.2.2: it cannot rise from 0."""
    h = Harness()
    client = h.client("c", expiry=before)
    client.send(Disconnect(0, props(session_expiry_interval=said)))
    assert client.closed
    if code:
        assert goodbye(client) == code
    else:
        client.expect_nothing()
        assert h.events("disconnect") == ["by the client"]
    assert ("c" in h.broker.sessions) is left


@pytest.mark.parametrize(
    ("reason", "published"),
    [(spec.NORMAL_DISCONNECTION, False), (spec.DISCONNECT_WITH_WILL_MESSAGE, True), (0x80, True)],
)
def test_a_farewell_discards_the_will_or_sends_it(reason: int, published: bool) -> None:
    """[MQTT-3.14.4-3] [MQTT-3.1.2-8]"""
    h = Harness()
    watcher = h.client("watcher")
    watcher.subscribe("will")
    h.client("c", will=Will("will", b"w")).disconnect(reason)
    assert len(watcher.messages()) == published


@pytest.mark.parametrize(
    ("limit", "wants", "told"),
    [(0, 1, True), (0, 0, False), (200, 1, False), (40, 1, False)],
)
def test_a_goodbye_has_its_reason_where_it_is_wanted_and_fits(
    limit: int, wants: int, told: bool
) -> None:
    """[MQTT-3.14.2-3] [MQTT-3.1.2-29]"""
    h = Harness()
    asked = props(request_problem_information=wants, maximum_packet_size=limit or None)
    client = h.client("c", properties=asked)
    client.connection.close(spec.QUOTA_EXCEEDED, "x" * 300, h.now)
    h.flush()
    packet = client.expect(Disconnect)
    assert packet.reason == spec.QUOTA_EXCEEDED
    assert client.closed
    if told:
        assert packet.properties is not None
        assert packet.properties.reason_string == "x" * 256
    else:
        assert packet.properties is None


def test_a_goodbye_has_a_code_that_disconnect_knows() -> None:
    """[MQTT-3.14.2-1]"""
    h = Harness()
    client = h.client("c")
    client.connection.close(spec.BAD_USER_NAME_OR_PASSWORD, "", h.now)
    h.flush()
    assert goodbye(client) == spec.NOT_AUTHORIZED


def test_a_client_that_cannot_take_even_a_goodbye_is_closed_without() -> None:
    """[MQTT-3.1.2-24]"""
    h = Harness()
    client = h.client("c")
    client.connection.max_send = 2
    client.connection.close(spec.QUOTA_EXCEEDED, "", h.now)
    h.flush()
    client.expect_nothing()
    assert client.closed


@pytest.mark.parametrize("version", V3)
def test_older_clients_are_closed_without_a_word(version: int) -> None:
    h = Harness()
    client = h.client("c", version=version)
    client.connection.displace(h.now)
    h.flush()
    client.expect_nothing()
    assert client.closed


@untimed
@given(st.binary(max_size=60), st.sampled_from(ALL), st.booleans())
def test_no_bytes_make_more_than_their_own_connection_fail(
    data: bytes, version: int, known: bool
) -> None:
    """[MQTT-4.13.1-1]"""
    h = Harness()
    other = h.client("other")
    client = h.client("c", version=version) if known else h.open(version)
    client.send_raw(data)
    other.send(Pingreq())
    other.expect(Pingresp)
    assert h.broker.counters.bugs == 0
    assert client.closed or client.connection.state == OPEN or not known
