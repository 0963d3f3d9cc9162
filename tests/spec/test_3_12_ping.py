"""PINGREQ and PINGRESP (3.12, 3.13)."""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Pingreq, Pingresp
from tests.harness import Harness
from tests.spec import raw
from tests.spec.kit import MALFORMED, each_version, manual, publish, refused


@each_version
def test_pingreq_is_answered_with_pingresp(version: int) -> None:
    # [MQTT-3.12.4-1]
    c = Harness().client("c", version=version)
    c.send(Pingreq())
    c.expect(Pingresp)
    c.expect_nothing()


@each_version
def test_each_pingreq_has_its_answer(version: int) -> None:
    # [MQTT-3.12.4-1]
    c = Harness().client("c", version=version)
    c.send_raw(raw.PINGREQ * 5)
    assert [type(p) for p in c.recv()] == [Pingresp] * 5


@each_version
def test_pingresp_on_the_wire(version: int) -> None:
    # 3.13.1
    c = Harness().client("c", version=version)
    assert raw.talk(c, raw.PINGREQ) == raw.PINGRESP


@each_version
def test_pingreq_is_answered_while_the_window_is_full(version: int) -> None:
    # [MQTT-3.12.4-1] [MQTT-4.9.0-3]
    h = Harness()
    c = manual(h.client("c", version=version))
    c.subscribe("t", qos=1)
    pub = h.client("pub")
    for i in range(1, 1100):
        publish(pub, "t", qos=1, packet_id=i)
    c.recv()
    c.send(Pingreq())
    c.expect(Pingresp)


@pytest.mark.parametrize("body", [b"\x00", b"\x00\x00", b"ping"])
@each_version
def test_pingreq_has_no_body(version: int, body: bytes) -> None:
    # [MQTT-4.13.1-1]; 3.12.1: remaining length 0
    c = Harness().client("c", version=version)
    c.send_raw(raw.frame(0xC0, body))
    refused(c, MALFORMED)


@each_version
def test_pingresp_from_a_client_is_a_protocol_error(version: int) -> None:
    # [MQTT-4.13.1-1]; 3.13: sent by the server
    c = Harness().client("c", version=version)
    c.send_raw(raw.PINGRESP)
    refused(c, (spec.PROTOCOL_ERROR,))
