"""CONNECT (3.1): the first packet, its flags and payload, client identifiers, take-over.

Wills and the properties of CONNECT have files of their own (test_3_01_will,
test_3_01_properties); sessions are chapter 4.1.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Connack, Connect, Disconnect, Pingresp, Will
from tests.harness import Harness
from tests.spec import raw
from tests.spec.kit import (
    alive,
    each_version,
    messages,
    one,
    persistent,
    props,
    publish,
    refused,
    settings,
)

CONNECT_REASONS = (0x81, 0x82)

# --- CONNECT comes first, and once ---

NOT_CONNECT = {
    "CONNACK": b"\x20\x03\x00\x00\x00",
    "PUBLISH": b"\x30\x05\x00\x01t\x00x",
    "PUBACK": b"\x40\x02\x00\x01",
    "PUBREC": b"\x50\x02\x00\x01",
    "PUBREL": b"\x62\x02\x00\x01",
    "PUBCOMP": b"\x70\x02\x00\x01",
    "SUBSCRIBE": raw.subscribe(5, b"#"),
    "SUBACK": b"\x90\x04\x00\x01\x00\x00",
    "UNSUBSCRIBE": raw.unsubscribe(5, b"#"),
    "UNSUBACK": b"\xb0\x04\x00\x01\x00\x00",
    "PINGREQ": raw.PINGREQ,
    "PINGRESP": raw.PINGRESP,
    "DISCONNECT": raw.DISCONNECT,
    "AUTH": b"\xf0\x00",
    "type 0": b"\x00\x00",
}


@pytest.mark.parametrize("packet", list(NOT_CONNECT.values()), ids=list(NOT_CONNECT))
@each_version
def test_first_packet_other_than_connect_closes(version: int, packet: bytes) -> None:
    # [MQTT-3.1.0-1] [MQTT-3.14.0-1] [MQTT-4.12.0-6]
    c = Harness().open(version=version)
    assert raw.talk(c, packet) == b""
    assert c.connection.closing


def test_nothing_before_connect_has_an_effect() -> None:
    # [MQTT-3.1.0-1]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("#")
    c = h.open()
    c.send_raw(raw.publish(5, b"t") + raw.connect(b"c"))
    raw.closed_silently(c)
    assert messages(sub) == []


@pytest.mark.parametrize("first", [0x00, 0x30, 0x82, 0xC0, 0xF0])
def test_large_first_packet_other_than_connect_closes_at_its_first_byte(first: int) -> None:
    # [MQTT-3.1.0-1]; nobody may announce a large packet and keep the connection open
    c = Harness().open()
    c.send_raw(bytes([first]) + raw.varint(50_000) + b"x")
    raw.closed_silently(c)


@each_version
def test_second_connect_is_a_protocol_error(version: int) -> None:
    # [MQTT-3.1.0-2] [MQTT-3.2.0-2]
    c = Harness().client("c", version=version)
    c.send_raw(raw.connect(b"c", version))
    refused(c, (spec.PROTOCOL_ERROR,))


@each_version
def test_second_connect_with_another_id_is_a_protocol_error(version: int) -> None:
    # [MQTT-3.1.0-2]
    h = Harness()
    other = h.client("other", version=version)
    c = h.client("c", version=version)
    c.send_raw(raw.connect(b"other", version))
    refused(c, (spec.PROTOCOL_ERROR,))
    assert alive(other)


@each_version
def test_good_connect_is_answered_with_success(version: int) -> None:
    # [MQTT-3.1.4-5] [MQTT-3.2.0-2]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version))
    ack = c.expect(Connack)
    assert ack.reason == 0
    c.expect_nothing()
    assert alive(c)


# --- the connect timeout, and how much may come before acceptance ---


def test_silent_connection_is_closed_after_the_connect_timeout() -> None:
    # 3.1.4: CONNECT has to come within a reasonable time
    h = Harness(settings(connect_timeout=10.0))
    c = h.open()
    h.advance(9)
    assert not c.closed
    h.advance(2)
    raw.closed_silently(c)


def test_slowly_dripping_connect_does_not_extend_the_timeout() -> None:
    # 3.1.4
    h = Harness(settings(connect_timeout=10.0))
    c = h.open()
    for byte in raw.connect(b"a" * 20):
        if c.closed:
            break
        c.send_raw(bytes([byte]))
        h.advance(1)
    raw.closed_silently(c)


def test_connect_timeout_ends_with_acceptance() -> None:
    # 3.1.4
    h = Harness(settings(connect_timeout=10.0))
    c = h.client("c")
    h.advance(60)
    assert alive(c)


def test_connect_larger_than_allowed_is_refused_before_it_has_arrived() -> None:
    # [MQTT-3.1.4-2] 0x95: nothing is kept for a stranger
    c = Harness(settings(max_connect_size=1000)).open()
    answer = raw.talk(c, b"\x10" + raw.varint(100_000) + b"\x00\x04MQTT\x05")
    assert raw.only_connack(answer, 5, spec.PACKET_TOO_LARGE)
    assert c.connection.closing


def test_limit_on_connect_does_not_bind_later_packets() -> None:
    # 3.2.2.3.6: the announced Maximum Packet Size does
    h = Harness(settings(max_connect_size=1000))
    c = h.client("c")
    c.send_raw(raw.publish(5, b"t", bytes(5000)))
    assert alive(c)


# --- protocol name and version ---


@pytest.mark.parametrize("name", [b"", b"mqtt", b"MQT", b"MQTTX", b"HTTP", b"MQIsdp"])
def test_wrong_protocol_name_is_refused(name: bytes) -> None:
    # [MQTT-3.1.2-1]
    c = Harness().open()
    answer = raw.talk(c, raw.connect(b"c", name=name))
    # Who does not speak MQTT has no layout to be answered in: nothing, or what any version reads.
    assert answer in (b"", b"\x20\x02\x00\x01") or answer[2:4] == b"\x00\x84"
    assert c.connection.closing


@pytest.mark.parametrize("level", [6, 7, 100, 127])
def test_newer_version_is_refused(level: int) -> None:
    # [MQTT-3.1.2-2]
    c = Harness().open()
    c.send_raw(raw.connect(b"c", level=level))
    raw.connect_refused(c, (spec.UNSUPPORTED_PROTOCOL_VERSION,))


@pytest.mark.parametrize("level", [0, 1, 2, 0x80])
def test_older_version_is_refused_in_its_own_layout(level: int) -> None:
    # [MQTT-3.1.2-2]; MQTT 3.1.1, 3.1.2-2: return code 1, then close
    c = Harness().open(version=4)
    answer = raw.talk(c, raw.connect(b"c", 4, level=level))
    assert answer in (b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00") or answer[3:4] == b"\x84"
    assert c.connection.closing


# --- flags ---


@pytest.mark.parametrize("version", [spec.MQTT311, spec.MQTT5])
def test_reserved_connect_flag_is_checked(version: int) -> None:
    # [MQTT-3.1.2-3]; MQTT 3.1 does not use the bit and does not check it
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | 0x01))
    raw.connect_malformed(c)


@each_version
def test_will_qos_3_is_malformed(version: int) -> None:
    # [MQTT-3.1.2-12]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.WILL | 0x18, tail=raw.will(version)))
    raw.connect_malformed(c)


@pytest.mark.parametrize("flags", [0x08, 0x10, 0x18])
@each_version
def test_will_qos_without_a_will_is_malformed(version: int, flags: int) -> None:
    # [MQTT-3.1.2-11]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | flags))
    raw.connect_malformed(c)


@each_version
def test_will_retain_without_a_will_is_malformed(version: int) -> None:
    # [MQTT-3.1.2-13]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.WILL_RETAIN))
    raw.connect_malformed(c)


@each_version
def test_will_flag_without_will_fields_is_malformed(version: int) -> None:
    # [MQTT-3.1.2-9]
    for tail in (b"", raw.block(version), raw.block(version) + raw.text(b"will")):
        c = Harness().open(version=version)
        c.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.WILL, tail=tail))
        raw.connect_malformed(c)


@each_version
def test_will_fields_without_will_flag_are_malformed(version: int) -> None:
    # [MQTT-3.1.2-9]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, tail=raw.will(version)))
    raw.connect_malformed(c)


@pytest.mark.parametrize("version", [spec.MQTT311, spec.MQTT5])
@pytest.mark.parametrize("flag", [raw.USERNAME, raw.PASSWORD | raw.USERNAME])
def test_credential_flags_without_the_fields_are_malformed(version: int, flag: int) -> None:
    # [MQTT-3.1.2-17] [MQTT-3.1.2-19]
    tail = raw.text(b"user") if flag & raw.PASSWORD else b""
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | flag, tail=tail))
    raw.connect_malformed(c)


@each_version
def test_credential_fields_without_their_flags_are_malformed(version: int) -> None:
    # [MQTT-3.1.2-16] [MQTT-3.1.2-18]
    for flags, tail in (
        (0, raw.text(b"user")),
        (raw.USERNAME, raw.text(b"user") + raw.text(b"secret")),
    ):
        c = Harness().open(version=version)
        c.send_raw(raw.connect(b"c", version, raw.CLEAN | flags, tail=tail))
        raw.connect_malformed(c)


def test_password_without_user_name_is_allowed_in_mqtt_5() -> None:
    # [MQTT-3.1.2-19] [MQTT-3.1.2-16]
    c = Harness().open()
    c.send_raw(raw.connect(b"c", 5, raw.CLEAN | raw.PASSWORD, tail=raw.text(b"secret")))
    assert c.expect(Connack).reason == 0


@each_version
def test_user_name_and_password_are_read(version: int) -> None:
    # [MQTT-3.1.2-17] [MQTT-3.1.2-19] [MQTT-3.1.3-12]
    c = Harness().open(version=version)
    tail = raw.text("bjørn".encode()) + raw.text(b"\x00\xff\xfe")
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.USERNAME | raw.PASSWORD, tail=tail))
    assert c.expect(Connack).reason == 0


@each_version
def test_payload_fields_come_in_their_order(version: int) -> None:
    # [MQTT-3.1.3-1] [MQTT-3.1.3-3] [MQTT-3.1.3-11]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("last/words")
    c = h.open(version=version)
    c.send_raw(
        raw.connect(
            b"c",
            version,
            raw.CLEAN | raw.WILL | raw.USERNAME | raw.PASSWORD,
            tail=raw.will(version, b"last/words", b"bye") + raw.text(b"user") + raw.text(b"secret"),
        )
    )
    assert c.expect(Connack).reason == 0
    c.drop()
    assert one(sub).payload == b"bye"
    # The client identifier was the first field: the same id under the same user takes over.
    again = h.client("c", version=version, username="user")
    assert not again.closed


@each_version
def test_client_id_field_is_always_there(version: int) -> None:
    # [MQTT-3.1.3-3]
    c = Harness().open(version=version)
    packet = raw.connect(b"", version)
    c.send_raw(raw.frame(0x10, packet[2:-2]))
    raw.connect_malformed(c)


# --- client identifiers ---


@pytest.mark.parametrize(
    "client_id", ["a", "0", "Z9", "0123456789ABCDEFGHIJKLM", "nopqrstuvwxyzabcdefghij"]
)
@each_version
def test_plain_client_ids_are_accepted(version: int, client_id: str) -> None:
    # [MQTT-3.1.3-5]
    assert Harness().client(client_id, version=version).connack.reason == 0


def test_empty_client_id_is_replaced_by_a_unique_one() -> None:
    # [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16]
    h = Harness()
    ids: set[str | None] = set()
    for _ in range(20):
        c = h.client("")
        ids.add(c.connack.properties.assigned_client_identifier)
        assert not c.closed
    assert len(ids) == 20
    assert None not in ids
    assert "" not in ids


def test_assigned_client_id_names_the_session() -> None:
    # [MQTT-3.1.3-7] [MQTT-3.1.3-2]
    h = Harness()
    c = persistent(h, "")
    assigned = c.connack.properties.assigned_client_identifier
    assert assigned
    c.subscribe("t", qos=1)
    c.drop()
    publish(h.client("pub"), "t", b"kept", qos=1)
    again = persistent(h, assigned)
    assert again.connack.session_present
    assert one(again).payload == b"kept"


def test_assigned_client_id_is_not_that_of_another_session() -> None:
    # [MQTT-3.2.2-16]
    h = Harness()
    first = persistent(h, "")
    assigned = first.connack.properties.assigned_client_identifier
    first.drop()
    second = h.client("")
    assert second.connack.properties.assigned_client_identifier != assigned


def test_client_id_of_the_client_is_not_returned() -> None:
    # 3.2.2.3.7
    assert Harness().client("c").connack.properties.assigned_client_identifier is None


@each_version
def test_client_ids_are_compared_exactly(version: int) -> None:
    # [MQTT-3.1.3-2]
    h = Harness()
    lower = h.client("c", version=version)
    h.client("C", version=version)
    h.client("c ", version=version)
    assert alive(lower)


# --- take-over ---


@each_version
def test_second_client_with_the_same_id_takes_over(version: int) -> None:
    # [MQTT-3.1.4-3] [MQTT-3.14.4-2]
    h = Harness()
    old = h.client("c", version=version)
    new = h.client("c", version=version)
    refused(old, (spec.SESSION_TAKEN_OVER,))
    assert alive(new)


def test_take_over_across_versions() -> None:
    # [MQTT-3.1.4-3]
    h = Harness()
    old = h.client("c", version=5)
    new = h.client("c", version=4)
    assert old.expect(Disconnect).reason == spec.SESSION_TAKEN_OVER
    h.client("c", version=5)
    raw.closed_silently(new)


@each_version
def test_closed_predecessor_does_not_disturb_its_successor(version: int) -> None:
    # [MQTT-3.1.4-3]: the late news that the old transport is gone
    h = Harness()
    old = persistent(h, "c", version)
    new = persistent(h, "c", version)
    new.subscribe("t", qos=1)
    old.drop()
    assert alive(new)
    h.client("pub", version=version).publish("t", b"x")
    assert one(new).payload == b"x"


def test_take_over_loses_no_message() -> None:
    # [MQTT-3.1.4-3] [MQTT-3.1.2-5]
    h = Harness()
    c = persistent(h, "c")
    c.subscribe("t", qos=1)
    pub = h.client("pub")
    got: list[bytes] = []
    for i in range(1, 31):
        c.auto_ack = i % 3 > 0
        publish(pub, "t", str(i).encode(), qos=1, packet_id=i)
        if i % 5 == 0:
            got += [p.payload for p in messages(c)]
            c = persistent(h, "c")
    got += [p.payload for p in messages(c)]
    assert set(got) == {str(i).encode() for i in range(1, 31)}


@pytest.mark.parametrize(("version", "code"), [(5, 0x87), (4, 5), (3, 5)])
def test_session_of_another_user_is_refused_and_untouched(version: int, code: int) -> None:
    # [MQTT-3.1.4-2] [MQTT-3.2.2-7]: a session belongs to the user that made it
    h = Harness()
    owner = h.client(
        "c",
        clean=False,
        username="owner",
        properties=props(session_expiry_interval=3600),
        will=Will("will", b"w"),
    )
    owner.subscribe("t", qos=1)
    for clean in (True, False):
        thief = h.open(version=version)
        name = "MQIsdp" if version == spec.MQTT31 else "MQTT"
        thief.send(Connect(name, version, clean, 0, "c", username="thief"))
        raw.connect_refused(thief, (code,))
    watch = h.client("watch")
    watch.subscribe("will")
    assert alive(owner)
    owner.drop()
    assert one(watch).payload == b"w"
    publish(h.client("pub"), "t", b"mine", qos=1)
    back = h.client(
        "c", clean=False, username="owner", properties=props(session_expiry_interval=3600)
    )
    assert back.connack.session_present
    assert one(back).payload == b"mine"


@each_version
def test_anonymous_client_does_not_get_the_session_of_a_user(version: int) -> None:
    # [MQTT-3.1.4-2]
    h = Harness()
    owner = h.client("c", version=version, username="owner")
    thief = h.open(version=version)
    thief.send_raw(raw.connect(b"c", version))
    raw.connect_refused(thief, (5,) if version < 5 else (0x87,))
    assert alive(owner)


@each_version
def test_identity_from_the_transport_owns_the_session(version: int) -> None:
    # [MQTT-3.1.4-2]: a certificate outweighs the User Name that the client claims
    h = Harness()
    owner = h.open(version=version, identity="ann")
    owner.send_raw(raw.connect(b"c", version))
    assert owner.expect(Connack).reason == 0
    thief = h.open(version=version, identity="bob")
    tail = raw.text(b"ann")
    thief.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.USERNAME, tail=tail))
    raw.connect_refused(thief, (5,) if version < 5 else (0x87,))
    assert alive(owner)


@each_version
def test_identity_from_the_transport_is_not_anonymous(version: int) -> None:
    # [MQTT-3.1.4-5]
    c = Harness(allow_anonymous=False).open(version=version, identity="ann")
    c.send_raw(raw.connect(b"c", version))
    assert c.expect(Connack).reason == 0


# --- refused ---


@each_version
def test_anonymous_client_is_refused_where_it_is_not_allowed(version: int) -> None:
    # [MQTT-3.1.4-2] [MQTT-3.2.2-7]
    c = Harness().open(version=version, allow_anonymous=False)
    c.send_raw(raw.connect(b"c", version))
    raw.connect_refused(c, (4, 5) if version < 5 else (0x86, 0x87))


@each_version
def test_refused_connect_leaves_the_session_of_that_id_alone(version: int) -> None:
    # [MQTT-3.1.4-2]: no side effect before authentication
    h = Harness()
    owner = h.client("c", version=version)
    c = h.open(version=version, allow_anonymous=False)
    c.send_raw(raw.connect(b"c", version))
    assert c.closed
    assert alive(owner)


@each_version
def test_data_after_a_refused_connect_is_not_acted_on(version: int) -> None:
    # [MQTT-3.1.4-6] [MQTT-3.2.2-7]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    c = h.open(version=version, allow_anonymous=False)
    c.send_raw(
        raw.connect(b"c", version)
        + raw.publish(version, b"t")
        + raw.subscribe(version, b"#")
        + raw.PINGREQ
    )
    assert [type(p) for p in c.recv()] == [Connack]
    assert c.closed
    c.send_raw(raw.publish(version, b"t") + raw.PINGREQ)
    assert c.recv() == []
    assert messages(sub) == []


@each_version
def test_malformed_connect_leaves_the_session_of_that_id_alone(version: int) -> None:
    # [MQTT-3.1.4-1] [MQTT-4.13.1-1]
    h = Harness()
    owner = h.client("c", version=version)
    c = h.open(version=version)
    c.send_raw(raw.connect(b"c", version, tail=b"\x00"))
    raw.connect_malformed(c)
    assert alive(owner)


# --- clean start ---


@each_version
def test_clean_start_drops_the_old_session(version: int) -> None:
    # [MQTT-3.1.2-4] [MQTT-3.1.4-4] [MQTT-3.2.2-2]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.drop()
    publish(h.client("pub"), "t", qos=1)
    again = h.client("c", version, clean=True)
    assert not again.connack.session_present
    publish(h.client("pub"), "t", qos=1)
    again.expect_nothing()


@each_version
def test_without_clean_start_the_session_goes_on(version: int) -> None:
    # [MQTT-3.1.2-5] [MQTT-3.1.2-23] [MQTT-3.1.4-4]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.drop()
    publish(h.client("pub"), "t", b"absent", qos=1)
    again = persistent(h, "c", version)
    assert one(again).payload == b"absent"
    publish(h.client("pub"), "t", b"present", qos=1)
    assert one(again).payload == b"present"


@each_version
def test_without_clean_start_and_session_a_new_one_is_made(version: int) -> None:
    # [MQTT-3.1.2-6] [MQTT-3.2.2-3]
    h = Harness()
    c = persistent(h, "c", version)
    assert not c.connack.session_present
    c.subscribe("t", qos=1)
    c.drop()
    assert version == spec.MQTT31 or persistent(h, "c", version).connack.session_present


@each_version
def test_connect_glued_to_its_successor_is_complete(version: int) -> None:
    # [MQTT-3.1.4-5]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version) + raw.PINGREQ)
    assert c.expect(Connack).reason == 0
    c.expect(Pingresp)
