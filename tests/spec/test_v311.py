"""MQTT 3.1.1 and 3.1 where they differ from MQTT 5.

Numbers in parentheses are statements of the 3.1.1 standard, which has numbering
of its own. What all versions share is tested in the chapter files.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Connack, Connect, Will
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import (
    alive,
    manual,
    messages,
    one,
    payloads,
    persistent,
    publish,
    refused,
    settings,
)

OLD = (spec.MQTT31, spec.MQTT311)
each_old = pytest.mark.parametrize("version", OLD)


def connack(h: Harness, data: bytes, version: int) -> tuple[bytes, bool]:
    c = h.open(version=version)
    answer = raw.talk(c, data)
    return answer, c.connection.closing


# --- names and levels ---


@pytest.mark.parametrize(("name", "level"), [(b"MQIsdp", 3), (b"MQTT", 4)])
def test_name_and_level_of_each_version(name: bytes, level: int) -> None:
    answer, closing = connack(Harness(), raw.connect(b"c", 4, name=name, level=level), 4)
    assert answer == b"\x20\x02\x00\x00"
    assert not closing


@pytest.mark.parametrize(("name", "level"), [(b"MQTT", 3), (b"MQIsdp", 4), (b"MQIsdp", 5)])
def test_name_of_one_version_with_the_level_of_another_is_refused(name: bytes, level: int) -> None:
    # (3.1.2-1) (3.1.2-2)
    answer, closing = connack(Harness(), raw.connect(b"c", 4, name=name, level=level), 4)
    assert answer in (b"", b"\x20\x02\x00\x01")
    assert closing


@pytest.mark.parametrize("level", [0, 1, 2])
def test_unknown_level_gets_return_code_1(level: int) -> None:
    # (3.1.2-2): the code is not optional here
    answer, closing = connack(Harness(), raw.connect(b"c", 4, level=level), 4)
    assert answer == b"\x20\x02\x00\x01"
    assert closing


@pytest.mark.parametrize(("name", "level"), [(b"MQIsdp", 0x83), (b"MQTT", 0x84)])
def test_bridge_bit_is_understood(name: bytes, level: int) -> None:
    # Mosquitto's bridges announce themselves by the top bit of the level.
    answer, closing = connack(Harness(), raw.connect(b"c", 4, name=name, level=level), 4)
    assert answer == b"\x20\x02\x00\x00"
    assert not closing


# --- client identifiers ---


def test_empty_id_with_a_clean_session_is_given_one() -> None:
    # (3.1.3-6) (3.1.3-7)
    h = Harness()
    first = h.client("", version=4)
    h.client("", version=4)
    assert alive(first)


@pytest.mark.parametrize("user", [False, True])
def test_empty_id_without_a_clean_session_gets_return_code_2(user: bool) -> None:
    # (3.1.3-8) (3.1.4-5)
    flags = raw.USERNAME if user else 0
    tail = raw.text(b"ann") if user else b""
    answer, closing = connack(Harness(), raw.connect(b"", 4, flags, tail=tail), 4)
    assert answer == b"\x20\x02\x00\x02"
    assert closing


@pytest.mark.parametrize("flags", [0, raw.CLEAN])
def test_mqtt_31_has_no_empty_id(flags: int) -> None:
    # MQTT 3.1, CONNECT: at least one character
    answer, closing = connack(Harness(), raw.connect(b"", 3, flags), 3)
    assert answer == b"\x20\x02\x00\x02"
    assert closing


# --- what is closed without a word ---

BAD = {
    "reserved flag": raw.connect(b"c", 4, raw.CLEAN | 1),
    "will QoS 3": raw.connect(b"c", 4, raw.CLEAN | raw.WILL | 0x18, tail=raw.will(4)),
    "will QoS without a will": raw.connect(b"c", 4, raw.CLEAN | 0x08),
    "will retain without a will": raw.connect(b"c", 4, raw.CLEAN | raw.WILL_RETAIN),
    "password without a user name": raw.connect(
        b"c", 4, raw.CLEAN | raw.PASSWORD, tail=raw.text(b"secret")
    ),
    "user name missing": raw.connect(b"c", 4, raw.CLEAN | raw.USERNAME),
    "no client id": raw.frame(0x10, raw.connect(b"", 4)[2:-2]),
    "bytes left over": raw.connect(b"c", 4, tail=b"\x00"),
    "bad string": raw.connect(b"\xed\xa0\x80", 4),
    "fixed header flags": b"\x11" + raw.connect(b"c", 4)[1:],
}


@pytest.mark.parametrize("packet", list(BAD.values()), ids=list(BAD))
def test_connect_that_does_not_conform_is_closed_without_connack(packet: bytes) -> None:
    # (3.1.4-1) (3.1.2-3) (3.1.2-22) (3.1.3-3)
    assert connack(Harness(), packet, 4) == (b"", True)


@each_old
def test_packet_too_large_is_closed_without_a_word(version: int) -> None:
    c = Harness(settings(max_packet_size=1000)).client("c", version=version)
    c.send_raw(raw.publish(version, b"t", bytes(2000)))
    refused(c, ())


@pytest.mark.parametrize("flag", [raw.USERNAME, raw.USERNAME | raw.PASSWORD])
def test_mqtt_31_lets_credentials_be_missing(flag: int) -> None:
    # MQTT 3.1, CONNECT: the remaining length takes precedence over the flags
    tail = raw.text(b"ann") if flag & raw.PASSWORD else b""
    answer, closing = connack(Harness(), raw.connect(b"c", 3, raw.CLEAN | flag, tail=tail), 3)
    assert answer == b"\x20\x02\x00\x00"
    assert not closing


# --- CONNACK ---


def test_mqtt_31_knows_no_session_present() -> None:
    # MQTT 3.1, CONNACK: the first byte is reserved
    h = Harness()
    h.client("c", version=3, clean=False).drop()
    answer, _ = connack(h, raw.connect(b"c", 3, 0), 3)
    assert answer == b"\x20\x02\x00\x00"


def test_session_present_of_mqtt_311() -> None:
    # (3.2.2-2) (3.2.2-3)
    h = Harness()
    h.client("c", version=4, clean=False).drop()
    assert connack(h, raw.connect(b"c", 4, 0), 4)[0] == b"\x20\x02\x01\x00"


@each_old
def test_refusal_has_no_session_present(version: int) -> None:
    # (3.2.2-4) (3.2.2-5)
    h = Harness()
    h.client("c", version=version, clean=False).drop()
    c = h.open(version=version, allow_anonymous=False)
    assert raw.talk(c, raw.connect(b"c", version, 0)) in (b"\x20\x02\x00\x05", b"\x20\x02\x00\x04")
    assert c.connection.closing


@pytest.mark.parametrize(("version", "codes"), [(3, (3,)), (4, (3,)), (5, (0x88, 0x89))])
def test_server_that_shuts_down_is_unavailable(version: int, codes: tuple[int, ...]) -> None:
    # 3.1.1, 3.2.2.3: return code 3; [MQTT-3.2.2-8]
    h = Harness()
    h.broker.drain(h.now)
    c = h.open(version=version)
    c.send_raw(raw.connect(b"c", version))
    raw.connect_refused(c, codes)


# --- clean session ---


@each_old
def test_clean_session_ends_with_its_connection(version: int) -> None:
    # (3.1.2-6)
    h = Harness()
    c = h.client("c", version=version, clean=True)
    c.subscribe("t", qos=1)
    c.drop()
    publish(h.client("pub"), "t", qos=1)
    back = h.client("c", version=version, clean=False)
    assert not back.connack.session_present
    assert messages(back) == []
    publish(h.client("pub"), "t", qos=1)
    assert messages(back) == []


@each_old
def test_clean_session_discards_an_earlier_one_for_good(version: int) -> None:
    # (3.1.2-6)
    h = Harness()
    c = h.client("c", version=version, clean=False)
    c.subscribe("t", qos=1)
    c.drop()
    h.client("c", version=version, clean=True).drop()
    back = h.client("c", version=version, clean=False)
    assert not back.connack.session_present
    publish(h.client("pub"), "t", qos=1)
    assert messages(back) == []


@pytest.mark.parametrize("farewell", [True, False])
@each_old
def test_session_that_is_not_clean_is_kept(version: int, farewell: bool) -> None:
    # (3.1.2-4) (3.1.2-5)
    h = Harness()
    c = h.client("c", version=version, clean=False)
    c.subscribe("t", qos=2)
    if farewell:
        c.disconnect()
    else:
        c.drop()
    pub = h.client("pub")
    for i in (1, 2):
        publish(pub, "t", str(i).encode(), qos=i, packet_id=i)
    h.advance(86_400)
    assert payloads(h.client("c", version=version, clean=False)) == [b"1", b"2"]


@each_old
def test_session_of_mqtt_3_ends_at_the_servers_limit(version: int) -> None:
    # 3.1.1, 4.1: the server may decide how long it keeps a session
    h = Harness(settings(session_expiry_max=3600))
    h.client("c", version=version, clean=False).drop()
    h.advance(3601)
    assert not h.client("c", version=4, clean=False).connack.session_present


# --- take-over and wills ---


@each_old
def test_take_over_closes_without_a_word(version: int) -> None:
    # (3.1.4-2)
    h = Harness()
    old = h.client("c", version=version)
    new = h.client("c", version=version)
    raw.closed_silently(old)
    assert alive(new)


@pytest.mark.parametrize("clean", [True, False])
@each_old
def test_take_over_publishes_the_will(version: int, clean: bool) -> None:
    # (3.1.2-8): closed without a DISCONNECT of the client
    h = Harness()
    watch = h.client("watch")
    watch.subscribe("will")
    h.client("c", version=version, clean=False, will=Will("will", b"w"))
    h.client("c", version=version, clean=clean)
    assert one(watch).payload == b"w"


@each_old
def test_disconnect_discards_the_will(version: int) -> None:
    # (3.1.2-10) (3.14.4-3)
    h = Harness()
    watch = h.client("watch")
    watch.subscribe("will")
    h.client("c", version=version, clean=False, will=Will("will", b"w")).disconnect()
    h.advance(86_400)
    assert messages(watch) == []


# --- acknowledgements are short ---


@each_old
def test_acknowledgements_on_the_wire(version: int) -> None:
    # (2.3.1-6): an identifier, and no code
    c = manual(Harness().client("c", version=version))
    assert raw.talk(c, raw.frame(0x32, b"\x00\x01t\x00\x07x")) == b"\x40\x02\x00\x07"
    assert raw.talk(c, raw.frame(0x34, b"\x00\x01t\x00\x08x")) == b"\x50\x02\x00\x08"
    assert raw.talk(c, raw.frame(0x62, b"\x00\x08")) == b"\x70\x02\x00\x08"
    assert raw.talk(c, raw.subscribe(version, b"t", 9, 1)) == b"\x90\x03\x00\x09\x01"
    assert raw.talk(c, raw.unsubscribe(version, b"t", 10)) == b"\xb0\x02\x00\x0a"
    assert raw.talk(c, raw.unsubscribe(version, b"never", 11)) == b"\xb0\x02\x00\x0b"


@each_old
def test_publish_on_the_wire_has_no_properties(version: int) -> None:
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    before = len(sub.raw)
    pair = b"\x26\x00\x01k\x00\x01v"
    h.client("pub").send_raw(raw.publish(5, b"t", b"x", props=pair))
    assert bytes(sub.raw[before:]) == b"\x30\x04\x00\x01tx"


@pytest.mark.parametrize("rest", [b"\x00", b"\x00\x00"])
@each_old
def test_acknowledgement_with_more_than_an_identifier_is_malformed(
    version: int, rest: bytes
) -> None:
    for first in (0x40, 0x50, 0x62, 0x70):
        c = Harness().client("c", version=version)
        c.send_raw(raw.frame(first, b"\x00\x01" + rest))
        refused(c, ())


def test_refused_subscription_gets_0x80() -> None:
    # (3.9.3-2)
    h = Harness(settings(max_subscriptions=1))
    c = h.client("c", version=4)
    c.subscribe("a")
    assert raw.talk(c, raw.subscribe(4, b"b", 9)) == b"\x90\x03\x00\x09\x80"
    publish(h.client("pub"), "b")
    assert messages(c) == []
    assert alive(c)


def mixed(h: Harness) -> list[FakeClient]:
    return [persistent(h, f"v{v}", v) for v in (3, 4, 5)]


@pytest.mark.parametrize("sender", [3, 4, 5])
def test_versions_talk_to_each_other(sender: int) -> None:
    h = Harness()
    receivers = mixed(h)
    for c in receivers:
        c.subscribe("t/#", qos=2)
    pub = h.client("pub", version=sender)
    for qos in (0, 1, 2):
        publish(pub, "t/1", bytes([qos]), qos=qos, packet_id=qos)
    for c in receivers:
        assert [(p.topic, p.payload, p.qos) for p in messages(c)] == [
            ("t/1", bytes([qos]), qos) for qos in (0, 1, 2)
        ]


@each_old
def test_message_expiry_counts_for_mqtt_3_receivers_too(version: int) -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.drop()
    publish(h.client("pub"), "t", qos=1, expiry=10)
    h.advance(11)
    assert messages(persistent(h, "c", version)) == []


@each_old
def test_mqtt_3_client_is_told_nothing_of_mqtt_5(version: int) -> None:
    h = Harness(settings(max_keep_alive=60))
    c = h.open(version=version)
    name = "MQIsdp" if version == spec.MQTT31 else "MQTT"
    c.send(Connect(name, version, True, 3600, "c"))
    assert c.expect(Connack).reason == 0
    assert bytes(c.raw) == b"\x20\x02\x00\x00"
