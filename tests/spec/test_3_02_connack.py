"""CONNACK (3.2): its flags, its codes, and what the server announces in it."""

import pytest

from mqttd.core import spec
from mqttd.core.encode import encode_packet
from mqttd.core.packets import Connack, Connect, Publish, Suback, Subscribe
from mqttd.core.packets import Filter as F
from mqttd.core.settings import NEVER
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import (
    alive,
    each_qos,
    each_version,
    messages,
    persistent,
    props,
    publish,
    refused,
    settings,
    size_of,
)


@each_version
def test_connack_precedes_everything_else(version: int) -> None:
    # [MQTT-3.2.0-1] [MQTT-4.4.0-1]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.auto_ack = False
    pub = h.client("pub")
    publish(pub, "t", b"in flight", qos=1)
    c.drop()
    publish(pub, "t", b"queued", qos=1)
    back = h.open(version=version)
    name = "MQIsdp" if version == spec.MQTT31 else "MQTT"
    properties = props(session_expiry_interval=60) if version == spec.MQTT5 else props()
    back.send(Connect(name, version, False, 0, "c", properties=properties))
    got = back.recv()
    assert [type(p) for p in got] == [Connack, Publish, Publish]


@each_version
def test_there_is_one_connack_only(version: int) -> None:
    # [MQTT-3.2.0-2]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe("t")
    c.send_raw(raw.PINGREQ + raw.connect(b"c", version))
    assert not any(isinstance(p, Connack) for p in c.recv())


@pytest.mark.parametrize("present", [False, True])
@each_version
def test_only_the_session_present_flag_is_ever_set(version: int, present: bool) -> None:
    # [MQTT-3.2.2-1] [MQTT-3.2.2-3]
    h = Harness()
    if present:
        persistent(h, "c", version).drop()
    connect = Connect("MQIsdp" if version == spec.MQTT31 else "MQTT", version, False, 0, "c")
    c = h.open(version=version)
    c.send(connect)
    wire = bytes(c.raw)
    assert wire[0] == 0x20
    assert wire[2] == (1 if present and version != spec.MQTT31 else 0)
    assert wire[3] == 0
    assert len(wire) == 2 + wire[1]
    assert (wire[1] == 2) is (version < spec.MQTT5)


@each_version
def test_clean_start_means_no_session_present(version: int) -> None:
    # [MQTT-3.2.2-2]
    h = Harness()
    persistent(h, "c", version).drop()
    assert not h.client("c", version, clean=True).connack.session_present


@pytest.mark.parametrize("version", [spec.MQTT311, spec.MQTT5])
def test_session_present_says_whether_there_is_state(version: int) -> None:
    # [MQTT-3.2.2-3]
    h = Harness()
    assert not persistent(h, "c", version).connack.session_present
    assert persistent(h, "c", version).connack.session_present  # by take-over
    h.client("other", version=version)
    back = persistent(h, "c", version)
    back.drop()
    assert persistent(h, "c", version).connack.session_present


def test_session_that_ended_with_its_connection_is_not_present() -> None:
    # [MQTT-3.2.2-3] [MQTT-4.1.0-2]
    h = Harness()
    h.client("c", clean=False).drop()
    assert not h.client("c", clean=False).connack.session_present


def test_refusal_has_no_session_present_and_closes() -> None:
    # [MQTT-3.2.2-6] [MQTT-3.2.2-7] [MQTT-4.13.2-1] [MQTT-3.14.0-1]
    h = Harness()
    persistent(h, "c").drop()
    c = h.open(allow_anonymous=False)
    c.send(Connect(client_id="c", clean_start=False))
    raw.connect_refused(c, (0x86, 0x87))


REFUSALS = {
    "malformed": raw.connect(b"c", flags=raw.CLEAN | 1),
    "truncated": raw.connect(b"c")[:-3].replace(b"\x10\x0e", b"\x10\x0b"),
    "protocol error": raw.connect(b"c", properties=b"\x21\x00\x00"),
    "bad string": raw.connect(b"\xff"),
    "method unknown": raw.connect(b"c", properties=b"\x15\x00\x01m"),
    "will topic": raw.connect(b"c", flags=raw.CLEAN | raw.WILL, tail=raw.will(5, b"#")),
    "anonymous": raw.connect(b"c"),
}


@pytest.mark.parametrize("packet", list(REFUSALS.values()), ids=list(REFUSALS))
def test_only_listed_reason_codes_are_sent(packet: bytes) -> None:
    # [MQTT-3.2.2-8] [MQTT-3.2.2-7]
    listed = (
        0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90,
        0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F,
    )  # fmt: skip
    c = Harness().open(allow_anonymous=False)
    c.send_raw(packet)
    raw.connect_refused(c, listed)


# --- what is announced ---


def test_receive_maximum_is_announced() -> None:
    # 3.2.2.3.3
    h = Harness(settings(receive_maximum=7))
    assert h.client("c").connack.properties.receive_maximum == 7


def test_receive_maximum_of_65535_is_the_default() -> None:
    # 3.2.2.3.3
    h = Harness(settings(receive_maximum=65_535))
    assert h.client("c").connack.properties.receive_maximum in (None, 65_535)


def test_topic_alias_maximum_is_announced() -> None:
    # 3.2.2.3.8; [MQTT-3.3.2-12]
    h = Harness(settings(topic_alias_maximum=9))
    assert h.client("c").connack.properties.topic_alias_maximum == 9
    none = Harness(settings(topic_alias_maximum=0)).client("c").connack.properties
    assert none.topic_alias_maximum in (None, 0)


def test_maximum_packet_size_is_announced_and_held() -> None:
    # 3.2.2.3.6: a larger packet is answered with DISCONNECT 0x95
    h = Harness(settings(max_packet_size=1000))
    c = h.client("c")
    assert c.connack.properties.maximum_packet_size == 1000
    fits = raw.publish(5, b"t", bytes(1000 - 7))
    assert len(fits) == 1000
    c.send_raw(fits)
    assert alive(c)
    c.send_raw(raw.publish(5, b"t", bytes(1000 - 6)))
    refused(c, (spec.PACKET_TOO_LARGE,))


def test_packet_too_large_is_refused_when_its_length_is_known() -> None:
    # 3.2.2.3.6: nothing is buffered for what will be refused
    c = Harness(settings(max_packet_size=1000)).client("c")
    c.send_raw(b"\x30" + raw.varint(268_435_455))
    refused(c, (spec.PACKET_TOO_LARGE,))


def test_session_expiry_is_announced_only_when_it_differs() -> None:
    # 3.2.2.3.2
    h = Harness(settings(session_expiry_max=100))
    for asked, granted in ((10, None), (100, None), (101, 100), (NEVER, 100)):
        c = h.client("c", properties=props(session_expiry_interval=asked))
        assert c.connack.properties.session_expiry_interval in (granted, granted or asked)


def test_capped_session_expiry_is_what_counts() -> None:
    # 3.2.2.3.2; [MQTT-4.1.0-2]
    h = Harness(settings(session_expiry_max=100))
    h.client("c", properties=props(session_expiry_interval=1000)).drop()
    h.advance(101)
    assert not h.client("c", clean=False).connack.session_present


@pytest.mark.parametrize(
    "name",
    [
        "retain_available",
        "wildcard_subscription_available",
        "subscription_identifier_available",
        "shared_subscription_available",
    ],
)
def test_nothing_is_announced_as_missing(name: str) -> None:
    # 3.2.2.3.5, .11, .12, .13: absent means available
    properties = Harness().client("c").connack.properties
    assert getattr(properties, name) in (None, 1)


def test_maximum_qos_is_absent_as_all_are_supported() -> None:
    # [MQTT-3.2.2-9]; 3.2.2.3.4: 2 is not a value that may be sent
    assert Harness().client("c").connack.properties.maximum_qos is None


@each_qos
@each_version
def test_every_qos_may_be_subscribed_to(version: int, qos: int) -> None:
    # [MQTT-3.2.2-10]
    c = Harness().client("c", version=version)
    c.send(Subscribe(1, [F("t", qos)]))
    assert c.expect(Suback).reasons == [qos]


def test_server_keep_alive_is_absent_without_a_limit() -> None:
    # [MQTT-3.2.2-22]
    assert Harness().client("c", keep_alive=60).connack.properties.server_keep_alive is None


def test_no_authentication_method_without_one_in_connect() -> None:
    # [MQTT-4.12.0-6]
    properties = Harness().client("c").connack.properties
    assert properties.authentication_method is None
    assert properties.authentication_data is None


# --- the client's packet limit ---


def limited(limit: int, **options: object) -> FakeClient:
    """A client that is refused and takes no more than `limit` bytes."""
    c = Harness().open(allow_anonymous=False)
    c.send(Connect(client_id="c", properties=props(maximum_packet_size=limit)))
    return c


def test_connack_leaves_out_what_the_client_cannot_take() -> None:
    # [MQTT-3.2.2-19] [MQTT-3.2.2-20] [MQTT-3.1.2-24]
    bare = size_of(Connack(False, spec.NOT_AUTHORIZED))
    for limit in range(bare, 120):
        c = limited(limit)
        assert c.closed
        for packet in c.recv():
            assert len(encode_packet(packet, 5)) <= limit


def test_connack_too_large_for_its_client_is_not_sent() -> None:
    # [MQTT-3.1.2-24] [MQTT-4.13.2-1]
    c = limited(4)
    assert c.recv() == []
    assert c.closed


@each_version
def test_messages_for_the_session_follow_its_connack(version: int) -> None:
    # [MQTT-3.2.0-1]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.drop()
    publish(h.client("pub"), "t", b"kept", qos=1)
    back = persistent(h, "c", version)
    assert [p.payload for p in messages(back)] == [b"kept"]
