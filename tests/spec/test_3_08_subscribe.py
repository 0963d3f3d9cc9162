"""SUBSCRIBE and SUBACK (3.8, 3.9): options, codes, replacing, No Local, identifiers.

Which topics a filter matches is chapter 4.7; what retained messages do at SUBSCRIBE is
test_retained; shared subscriptions are chapter 4.8.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Disconnect, Filter, Suback, Subscribe, Will
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    MALFORMED,
    alive,
    by_hand,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    refused,
    send_publish,
    settings,
    size_of,
)


def flt(topic_filter: str, qos: int = 0, no_local: bool = False) -> Filter:
    return Filter(topic_filter, qos, no_local, False, 0)


def raw_subscribe(version: int, payload: bytes, first: int = 0x82, packet_id: int = 1) -> bytes:
    body = packet_id.to_bytes(2, "big") + (b"\x00" if version == 5 else b"") + payload
    return bytes([first, len(body)]) + body


def filter_refused(c: FakeClient) -> bool:
    """The filter was refused, by SUBACK or by the end of the connection."""
    got = c.recv()
    if c.closed:
        ends = [p.reason for p in got if isinstance(p, Disconnect)]
        return all(r in (*MALFORMED, spec.TOPIC_FILTER_INVALID) for r in ends)
    return all(r >= 0x80 for p in got if isinstance(p, Suback) for r in p.reasons)


@each_version
def test_each_subscribe_gets_a_suback_with_its_identifier(version: int) -> None:
    # [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-2.2.1-6]
    h = Harness()
    c = h.client("c", version=version)
    for packet_id in (1, 65535, 77):
        c.send(Subscribe(packet_id, [flt("t")]))
        assert c.expect(Suback).packet_id == packet_id


@each_version
def test_suback_has_one_code_per_filter_in_their_order(version: int) -> None:
    # [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1] [MQTT-3.9.3-2] [MQTT-3.8.4-7]
    h = Harness()
    c = h.client("c", version=version)
    c.send(Subscribe(5, [flt("a", 2), flt("b", 0), flt("c", 1), flt("a", 0)]))
    assert c.expect(Suback).reasons == [2, 0, 1, 0]


@each_version
def test_several_filters_act_like_separate_requests(version: int) -> None:
    # [MQTT-3.8.4-5]
    h = Harness()
    c = h.client("c", version=version)
    c.send(Subscribe(5, [flt("a", 1), flt("b/#", 1), flt("a", 0)]))
    c.recv()
    pub = h.client("pub", version=version)
    publish(pub, "a", b"1", qos=1)
    publish(pub, "b/c", b"2", qos=1)
    assert [(m.payload, m.qos) for m in messages(c)] == [(b"1", 0), (b"2", 1)]


@each_version
@pytest.mark.parametrize("first", [0x80, 0x81, 0x83, 0x86])
def test_reserved_header_flags_are_checked(version: int, first: int) -> None:
    # [MQTT-3.8.1-1] [MQTT-2.1.3-1]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_subscribe(version, b"\x00\x01t\x00", first))
    refused(c, (spec.MALFORMED_PACKET,))


@each_version
def test_subscribe_without_a_filter_is_refused(version: int) -> None:
    # [MQTT-3.8.3-2]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_subscribe(version, b""))
    refused(c, MALFORMED)


@each_version
def test_packet_identifier_0_is_refused(version: int) -> None:
    # [MQTT-2.2.1-3]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_subscribe(version, b"\x00\x01t\x00", packet_id=0))
    refused(c, MALFORMED)


@each_version
@pytest.mark.parametrize("options", [0x03, 0x40, 0x80, 0xC1])
def test_reserved_option_bits_and_qos_3_are_refused(version: int, options: int) -> None:
    # [MQTT-3.8.3-5]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_subscribe(version, b"\x00\x01t" + bytes([options])))
    refused(c, MALFORMED)
    publish(h.client("pub", version=version), "t")
    assert messages(c) == []


def test_retain_handling_3_is_a_protocol_error() -> None:
    h = Harness()
    c = h.client("c")
    c.send_raw(raw_subscribe(5, b"\x00\x01t\x30"))
    refused(c, MALFORMED)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("options", [0x04, 0x08, 0x10])
def test_older_versions_have_no_options(version: int, options: int) -> None:
    # [MQTT-3.8.3-5]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_subscribe(version, b"\x00\x01t" + bytes([options])))
    refused(c, MALFORMED)


@each_version
@pytest.mark.parametrize("topic_filter", [b"\xff", b"\xed\xbf\xbf", b"a\x00b"])
def test_filter_that_is_no_utf8_string_is_refused(version: int, topic_filter: bytes) -> None:
    # [MQTT-3.8.3-1] [MQTT-4.7.3-2] [MQTT-1.5.4-2]
    h = Harness()
    c = h.client("c", version=version)
    size = len(topic_filter).to_bytes(2, "big")
    c.send_raw(raw_subscribe(version, size + topic_filter + b"\x00"))
    refused(c, (*MALFORMED, spec.TOPIC_FILTER_INVALID))


@each_version
@pytest.mark.parametrize(
    "topic_filter", ["", "a/#/b", "#/a", "a#", "a/b#", "##", "a+", "+a", "a/+b/c", "++", "a/#/"]
)
def test_misplaced_wildcard_is_refused(version: int, topic_filter: str) -> None:
    # [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1]
    h = Harness()
    c = h.client("c", version=version)
    c.send(Subscribe(1, [flt(topic_filter)]))
    assert filter_refused(c)
    publish(h.client("pub", version=version), "a/b/c")
    assert messages(c) == []


@each_version
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_delivery_qos_is_the_lower_one(version: int, granted: int, qos: int) -> None:
    # [MQTT-3.8.4-8] [MQTT-3.8.4-7]
    h = Harness()
    c = h.client("c", version=version)
    assert c.subscribe("t", qos=granted).reasons == [granted]
    publish(h.client("pub", version=version), "t", qos=qos)
    assert one(c).qos == min(granted, qos)


@each_version
def test_same_filter_replaces_the_subscription(version: int) -> None:
    # [MQTT-3.8.4-3]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe("t/+", qos=2)
    c.subscribe("t/+", qos=0)
    publish(h.client("pub", version=version), "t/1", qos=2)
    assert one(c).qos == 0


def test_replacing_changes_the_identifier() -> None:
    # [MQTT-3.8.4-3]
    h = Harness()
    c = h.client("c")
    pub = h.client("pub")
    for identifier, expected in ((1, [1]), (2, [2]), (0, [])):
        if identifier:
            c.subscribe("t", identifier=identifier)
        else:
            c.subscribe("t")
        publish(pub, "t")
        assert one(c).subscription_ids == expected


def test_replacing_changes_the_options() -> None:
    # [MQTT-3.8.4-3]
    h = Harness()
    c = manual(h.client("c"))
    c.subscribe("t", no_local=True)
    send_publish(c, "t", b"unheard")
    c.subscribe("t")
    send_publish(c, "t", b"heard")
    assert payloads(c) == [b"heard"]


@each_version
def test_replacing_loses_no_message(version: int) -> None:
    # [MQTT-3.8.4-4]
    h = Harness()
    c = manual(h.client("c", version=version))
    c.subscribe("t", qos=1)
    pub = h.client("pub", version=version)
    publish(pub, "t", b"1", qos=1)
    c.pause()
    publish(pub, "t", b"2", qos=1)
    c.send(Subscribe(9, [flt("t", 1)]))
    publish(pub, "t", b"3", qos=1)
    c.resume()
    assert payloads(c) == [b"1", b"2", b"3"]


def test_client_does_not_hear_itself_with_no_local() -> None:
    # [MQTT-3.8.3-3]
    h = Harness()
    c = manual(h.client("c"))
    c.subscribe("t", qos=2, no_local=True)
    for qos in (0, 1, 2):
        send_publish(c, "t", qos=qos, packet_id=qos + 1)
    assert messages(c) == []


def test_client_hears_itself_without_no_local() -> None:
    # [MQTT-3.8.3-3]
    h = Harness()
    c = manual(h.client("c"))
    c.subscribe("t")
    send_publish(c, "t", b"me")
    assert payloads(c) == [b"me"]


def test_no_local_lets_others_through() -> None:
    # [MQTT-3.8.3-3]
    h = Harness()
    c = h.client("c")
    c.subscribe("t", no_local=True)
    publish(h.client("pub"), "t", b"other")
    assert payloads(c) == [b"other"]


def test_no_local_counts_per_overlapping_subscription() -> None:
    # [MQTT-3.8.3-3] [MQTT-3.3.4-3]
    h = Harness()
    c = manual(h.client("c"))
    c.subscribe("a/#", no_local=True, identifier=1)
    c.subscribe("a/b", identifier=2)
    send_publish(c, "a/b", b"both")
    send_publish(c, "a/c", b"local only")
    got = one(c)
    assert (got.payload, got.subscription_ids) == (b"both", [2])


def test_no_local_overlap_does_not_raise_the_qos_of_the_other() -> None:
    # [MQTT-3.8.3-3] [MQTT-3.3.4-2]
    h = Harness()
    c = manual(h.client("c"))
    c.subscribe("a/#", qos=2, no_local=True)
    c.subscribe("a/b", qos=0)
    send_publish(c, "a/b", qos=2)
    assert one(c).qos == 0


def test_no_local_keeps_the_own_will_away() -> None:
    # [MQTT-3.8.3-3]
    h = Harness()
    will = Will("t", b"will", 1, False, 0, -1, b"")
    c = h.client("c", clean=False, will=will, properties=props(session_expiry_interval=100))
    c.subscribe("t", qos=1, no_local=True)
    other = h.client("other")
    other.subscribe("t", qos=1)
    c.drop()
    assert payloads(other) == [b"will"]
    assert messages(persistent(h, "c")) == []


def test_no_local_survives_a_reconnect() -> None:
    # [MQTT-3.8.3-3] [MQTT-3.1.2-5]
    h = Harness()
    c = persistent(h, "c")
    c.subscribe("t", no_local=True)
    c.drop()
    c = by_hand(h, "c")
    send_publish(c, "t")
    assert messages(c) == []


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param(b"\x0b\x00", id="identifier 0"),
        pytest.param(b"\x0b\x01\x0b\x02", id="identifier twice"),
        pytest.param(b"\x0b\x80\x80\x80\x80\x01", id="identifier of five bytes"),
        pytest.param(b"\x23\x00\x01", id="topic alias"),
        pytest.param(b"\x1f\x00\x01a", id="reason string"),
    ],
)
def test_bad_subscribe_properties_are_refused(properties: bytes) -> None:
    h = Harness()
    c = h.client("c")
    body = b"\x00\x01" + bytes([len(properties)]) + properties + b"\x00\x01t\x00"
    c.send_raw(bytes([0x82, len(body)]) + body)
    refused(c, MALFORMED)


def test_user_properties_of_subscribe_are_accepted() -> None:
    h = Harness()
    c = h.client("c")
    c.send(Subscribe(1, [flt("t")], 0, props(user_properties=[("a", "1"), ("a", "1")])))
    assert c.expect(Suback).reasons == [0]


@each_version
@pytest.mark.parametrize("cut", range(1, 5))
def test_subscribe_cut_short_is_malformed(version: int, cut: int) -> None:
    h = Harness()
    c = h.client("c", version=version)
    whole = raw_subscribe(version, b"\x00\x01t\x00")
    c.send_raw(bytes([whole[0], whole[1] - cut]) + whole[2 : len(whole) - cut])
    refused(c, MALFORMED)


@each_version
def test_too_many_subscriptions_are_refused_one_by_one(version: int) -> None:
    # [MQTT-3.8.4-7] [MQTT-3.9.3-2]
    h = Harness(settings(max_subscriptions=2))
    c = h.client("c", version=version)
    c.send(Subscribe(1, [flt("a"), flt("b"), flt("c")]))
    failure = spec.QUOTA_EXCEEDED if version == 5 else 0x80
    assert c.expect(Suback).reasons == [0, 0, failure]
    assert c.subscribe("a", qos=1).reasons == [1]
    pub = h.client("pub", version=version)
    publish(pub, "c", b"refused")
    publish(pub, "b", b"granted")
    assert payloads(c) == [b"granted"]


def test_suback_fits_the_clients_packet_limit() -> None:
    # [MQTT-3.9.2-1] [MQTT-3.9.2-2]
    h = Harness(settings(max_subscriptions=1))
    c = h.client("c", properties=props(maximum_packet_size=48))
    c.send(Subscribe(1, [flt("a/" + "x" * 300), flt("b/" + "y" * 300)]))
    ack = c.expect(Suback)
    assert ack.reasons == [0, spec.QUOTA_EXCEEDED]
    assert size_of(ack) <= 48


@each_version
def test_subscriptions_outlive_the_connection_of_a_persistent_session(version: int) -> None:
    # [MQTT-3.1.2-5] [MQTT-4.1.0-1]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.drop()
    c = persistent(h, "c", version)
    publish(h.client("pub"), "t", b"still here", qos=1)
    assert payloads(c) == [b"still here"]
    assert alive(c)


@each_version
def test_subscriptions_end_with_a_clean_session(version: int) -> None:
    # [MQTT-3.1.2-4]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe("t")
    c.drop()
    c = h.client("c", version=version)
    publish(h.client("pub"), "t")
    assert messages(c) == []
