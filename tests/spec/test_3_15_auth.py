"""AUTH (3.15) where nothing negotiated it: flags, codes, connections that may not use it.

Exchanges that run are chapter 4.12.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Auth
from tests.harness import Harness
from tests.spec import raw
from tests.spec.kit import MALFORMED, props, refused

METHOD = b"\x15\x00\x01m"


@pytest.mark.parametrize("flags", range(1, 16))
def test_reserved_flags_are_malformed(flags: int) -> None:
    # [MQTT-3.15.1-1]
    c = Harness().client("c")
    c.send_raw(bytes([0xF0 | flags]) + raw.frame(0xF0, b"\x18" + raw.block(5, METHOD))[1:])
    refused(c, (spec.MALFORMED_PACKET,))


@pytest.mark.parametrize("reason", [0x00, 0x18, 0x19])
def test_auth_without_a_method_in_connect_is_a_protocol_error(reason: int) -> None:
    # [MQTT-4.12.0-7] [MQTT-4.12.0-6] [MQTT-4.13.1-1]
    c = Harness().client("c")
    c.send(Auth(reason, props(authentication_method="m")))
    refused(c, (spec.PROTOCOL_ERROR,))


@pytest.mark.parametrize("reason", [0x01, 0x17, 0x1A, 0x80, 0x87, 0xFF])
def test_unlisted_reason_code_is_an_error(reason: int) -> None:
    # [MQTT-3.15.2-1] [MQTT-4.13.1-1]
    c = Harness().client("c")
    c.send_raw(raw.frame(0xF0, bytes([reason]) + raw.block(5, METHOD)))
    refused(c, MALFORMED)


@pytest.mark.parametrize(
    "body",
    [b"", b"\x18", b"\x18\x00", b"\x19\x03\x16\x00\x00"],
    ids=["empty", "code only", "no properties", "data only"],
)
def test_auth_without_its_method_is_an_error(body: bytes) -> None:
    # [MQTT-4.13.1-1]; 3.15.2.2.2: the method is mandatory
    c = Harness().client("c")
    c.send_raw(raw.frame(0xF0, body))
    refused(c, MALFORMED)


def test_auth_before_connect_closes() -> None:
    # [MQTT-3.1.0-1] [MQTT-3.14.0-1]
    c = Harness().open()
    c.send_raw(raw.frame(0xF0, b"\x18" + raw.block(5, METHOD)))
    raw.closed_silently(c)
