"""The tables of `spec` say what the specification's tables say, and agree with each other."""

import pytest

from mqttd.core import spec


def test_packet_names_stand_at_their_type() -> None:
    assert len(spec.PACKET_NAMES) == 16
    assert spec.PACKET_NAMES[0] == "reserved"
    for name in spec.PACKET_NAMES[1:]:
        assert spec.PACKET_NAMES[getattr(spec, name)] == name


def test_every_reason_code_has_a_name() -> None:
    used = set().union(*spec.REASONS.values())
    used |= {
        spec.SERVER_SHUTTING_DOWN,
        spec.KEEP_ALIVE_TIMEOUT,
        spec.PACKET_IDENTIFIER_NOT_FOUND,
    }
    assert used == set(spec.REASON_NAMES)


def test_error_codes_are_consecutive() -> None:
    assert [code for code in spec.REASON_NAMES if code >= 0x80] == list(range(0x80, 0xA3))


@pytest.mark.parametrize(
    ("packet_type", "count"),
    [
        (spec.CONNACK, 22),
        (spec.PUBACK, 9),
        (spec.PUBREC, 9),
        (spec.PUBREL, 2),
        (spec.PUBCOMP, 2),
        (spec.SUBACK, 12),
        (spec.UNSUBACK, 7),
        (spec.DISCONNECT, 30),
        (spec.AUTH, 3),
    ],
)
def test_reasons_of_a_packet(packet_type: int, count: int) -> None:
    """The lists of 3.2.2.2, 3.4.2.1, …, 3.15.2.1, counted.

    [MQTT-3.2.2-8] [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1] [MQTT-3.9.3-2]
    [MQTT-3.11.3-2] [MQTT-3.14.2-1] [MQTT-3.15.2-1]
    """
    assert len(spec.REASONS[packet_type]) == count


def test_zero_means_different_things() -> None:
    assert spec.reason_name(0) == "Success"
    assert spec.reason_name(0, spec.PUBACK) == "Success"
    assert spec.reason_name(0, spec.SUBACK) == "Granted QoS 0"
    assert spec.reason_name(0, spec.DISCONNECT) == "Normal disconnection"
    assert spec.reason_name(0x87, spec.DISCONNECT) == "Not authorized"
    assert spec.reason_name(0xEE) == "Reason 0xEE"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (spec.SUCCESS, 0),
        (spec.UNSUPPORTED_PROTOCOL_VERSION, 1),
        (spec.CLIENT_IDENTIFIER_NOT_VALID, 2),
        (spec.SERVER_UNAVAILABLE, 3),
        (spec.SERVER_BUSY, 3),
        (spec.SERVER_SHUTTING_DOWN, 3),
        (spec.UNSPECIFIED_ERROR, 3),
        (spec.IMPLEMENTATION_SPECIFIC_ERROR, 3),
        (spec.USE_ANOTHER_SERVER, 3),
        (spec.SERVER_MOVED, 3),
        (spec.QUOTA_EXCEEDED, 3),
        (spec.CONNECTION_RATE_EXCEEDED, 3),
        (spec.BAD_USER_NAME_OR_PASSWORD, 4),
        (spec.BAD_AUTHENTICATION_METHOD, 4),
        (spec.NOT_AUTHORIZED, 5),
        (spec.BANNED, 5),
        (spec.TOPIC_NAME_INVALID, 5),
    ],
)
def test_return_code_of_mqtt_3(reason: int, code: int) -> None:
    assert spec.connack_code_v3(reason) == code


def test_return_codes_of_mqtt_3_exist() -> None:
    for reason in spec.CONNACK_REASONS:
        assert 0 <= spec.connack_code_v3(reason) <= 5
        assert (spec.connack_code_v3(reason) == 0) == (reason == 0)
