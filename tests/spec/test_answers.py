"""What the broker's answers leave out: reason strings and user properties.

A server may always say more in an answer than its reason code, as long as the client can take it.
This one doesn't: the six acknowledgements carry no property at all, AUTH carries method and data,
CONNACK and DISCONNECT a reason string. The tests ask for answers of every kind under the best
conditions for more (no size limit, problem information wanted, user properties in the request)
and look at the bytes.
"""

from collections.abc import Callable

import pytest

from mqttd.core import spec
from mqttd.core.auth import AuthStep
from mqttd.core.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Subscribe,
    Unsubscribe,
)
from mqttd.core.properties import Properties
from mqttd.core.wire import u16
from tests.harness import FakeClient, Harness
from tests.spec.kit import manual, props, raw_props, settings

SAID = [("said", "x" * 200)]
GOOD = spec.SUCCESS
NOBODY = spec.NO_MATCHING_SUBSCRIBERS
DENIED = spec.NOT_AUTHORIZED
UNKNOWN = spec.PACKET_IDENTIFIER_NOT_FOUND


def talkative(h: Harness, durable: bool = False) -> FakeClient:
    """A client that takes whatever an answer may say; `durable`: answers wait for the disk."""
    asked = props(request_problem_information=1, session_expiry_interval=3600 if durable else 0)
    return manual(h.client("c", properties=asked))


def answers(h: Harness, c: FakeClient, *requests: Record) -> bytes:
    """The bytes that come back, once everything is durable."""
    before = len(c.raw)
    for request in requests:
        c.send(request)
        h.commit()
    return bytes(c.raw[before:])


def message(topic: str, qos: int, packet_id: int = 7) -> Publish:
    return Publish(
        topic, b"x", qos, packet_id=packet_id, properties=raw_props(user_properties=SAID)
    )


def ack(first: int, reason: int, packet_id: int = 7) -> bytes:
    """An acknowledgement of the PUBLISH family without properties, in its shortest form."""
    tail = bytes([reason]) if reason else b""
    return bytes([first, 2 + len(tail)]) + u16(packet_id) + tail


both_stores = pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])


@both_stores
@pytest.mark.parametrize(("topic", "reason"), [("t", GOOD), ("none", NOBODY), ("$SYS/x", DENIED)])
def test_puback_and_pubrec_carry_a_reason_code_and_no_more(
    durable: bool, topic: str, reason: int
) -> None:
    # [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.1.2-29]
    h = Harness(durable=durable)
    h.client("sub").subscribe("t")
    c = talkative(h, durable)
    assert answers(h, c, message(topic, 1)) == ack(0x40, reason)
    assert answers(h, c, message(topic, 2)) == ack(0x50, reason)
    if reason < 0x80:
        # The repetition of one already known.
        assert answers(h, c, message(topic, 2)) == ack(0x50, GOOD)


@both_stores
def test_pubcomp_carries_a_reason_code_and_no_more(durable: bool) -> None:
    # [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.1.2-29]
    h = Harness(durable=durable)
    c = talkative(h, durable)
    answers(h, c, message("t", 2))
    said = props(user_properties=SAID, reason_string="done")
    assert answers(h, c, Pubrel(7, GOOD, said)) == ack(0x70, GOOD)
    assert answers(h, c, Pubrel(7, GOOD, said)) == ack(0x70, UNKNOWN)


@both_stores
def test_pubrel_carries_a_reason_code_and_no_more(durable: bool) -> None:
    # [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.1.2-29]
    h = Harness(durable=durable)
    c = talkative(h, durable)
    c.send(Subscribe(1, [Filter("t", 2)]))
    h.commit()
    h.client("pub").send(message("t", 2))
    h.commit()
    got = c.take_first(Publish)
    said = props(user_properties=SAID, reason_string="kept")
    for _ in range(2):
        received = Pubrec(got.packet_id, GOOD, said)
        assert answers(h, c, received) == ack(0x62, GOOD, got.packet_id)
    assert answers(h, c, Pubcomp(got.packet_id)) == b""
    assert answers(h, c, Pubrec(got.packet_id, GOOD, said)) == ack(0x62, UNKNOWN, got.packet_id)


@both_stores
def test_pubrel_that_is_sent_again_carries_no_more(durable: bool) -> None:
    # [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-4.3.3-5]
    h = Harness(durable=durable)
    kept = props(session_expiry_interval=3600)
    c = manual(h.client("c", clean=False, properties=kept))
    c.send(Subscribe(1, [Filter("t", 2)]))
    h.commit()
    h.client("pub").send(message("t", 2))
    h.commit()
    got = c.take_first(Publish)
    answers(h, c, Pubrec(got.packet_id))
    c.drop()
    again = h.client("c", clean=False, properties=kept, auto_ack=False)
    assert again.connack.session_present
    assert again.expect(Pubrel) == Pubrel(got.packet_id)
    assert bytes(again.raw).endswith(ack(0x62, GOOD, got.packet_id))
    again.expect_nothing()


@both_stores
def test_suback_carries_reason_codes_and_no_more(durable: bool) -> None:
    # [MQTT-3.9.2-1] [MQTT-3.9.2-2] [MQTT-3.1.2-29] [MQTT-2.2.1-6]
    h = Harness(settings(max_subscriptions=2), durable=durable)
    c = talkative(h, durable)
    filters = [Filter("a", 1), Filter("a/#/b", 0), Filter("b", 2), Filter("c", 0)]
    codes = bytes([1, spec.TOPIC_FILTER_INVALID, 2, spec.QUOTA_EXCEEDED])
    request = Subscribe(300, filters, properties=props(user_properties=SAID))
    assert answers(h, c, request) == b"\x90\x07" + u16(300) + b"\x00" + codes


@both_stores
def test_unsuback_carries_reason_codes_and_no_more(durable: bool) -> None:
    # [MQTT-3.11.2-1] [MQTT-3.11.2-2] [MQTT-3.1.2-29] [MQTT-2.2.1-6]
    h = Harness(durable=durable)
    c = talkative(h, durable)
    answers(h, c, Subscribe(1, [Filter("a", 0)]))
    request = Unsubscribe(300, ["a", "none"], props(user_properties=SAID))
    codes = bytes([GOOD, spec.NO_SUBSCRIPTION_EXISTED])
    assert answers(h, c, request) == b"\xb0\x05" + u16(300) + b"\x00" + codes


METHOD = "PLAY"


def play(connection: object, method: str, data: bytes | None, first: bool) -> AuthStep | None:
    code = spec.SUCCESS if data == b"good" else spec.CONTINUE_AUTHENTICATION
    return AuthStep(code, b"?", "ann", reason="the plugin's own words")


def step(data: bytes) -> Properties:
    return props(authentication_method=METHOD, authentication_data=data, user_properties=SAID)


def test_auth_carries_method_and_data_and_no_more() -> None:
    # [MQTT-3.15.2-2] [MQTT-3.15.2-3]
    h = Harness()
    h.broker.hooks.enhanced = play
    h.broker.hooks.enhanced_methods = (METHOD,)
    c = h.open()
    only = props(authentication_method=METHOD, authentication_data=b"?")
    c.send(Connect(client_id="c", properties=step(b"hi")))
    assert c.expect(Auth) == Auth(spec.CONTINUE_AUTHENTICATION, only)
    c.send(Auth(spec.CONTINUE_AUTHENTICATION, step(b"good")))
    assert c.expect(Connack).reason == spec.SUCCESS
    c.send(Auth(spec.REAUTHENTICATE, step(b"hi")))
    assert c.expect(Auth) == Auth(spec.CONTINUE_AUTHENTICATION, only)
    c.send(Auth(spec.CONTINUE_AUTHENTICATION, step(b"good")))
    assert c.expect(Auth) == Auth(spec.SUCCESS, only)


@pytest.mark.parametrize("allowed", [True, False])
def test_connack_carries_no_user_properties(allowed: bool) -> None:
    # [MQTT-3.2.2-19] [MQTT-3.2.2-20]: a reason string only where it explains a refusal
    c = Harness().open(allow_anonymous=allowed)
    c.send(Connect(client_id="c", properties=props(user_properties=SAID)))
    told = c.expect(Connack)
    assert told.reason == (GOOD if allowed else DENIED)
    assert told.properties.user_properties == []
    assert bool(told.properties.reason_string) is not allowed


def connects_twice(h: Harness, c: FakeClient) -> None:
    c.send(Connect(client_id="c"))


def is_taken_over(h: Harness, c: FakeClient) -> None:
    h.client("c")


def sees_the_end(h: Harness, c: FakeClient) -> None:
    h.broker.drain(h.now)
    h.flush()


@pytest.mark.parametrize("how", [connects_twice, is_taken_over, sees_the_end])
def test_disconnect_carries_a_reason_string_and_no_more(
    how: Callable[[Harness, FakeClient], None],
) -> None:
    # [MQTT-3.14.2-2] [MQTT-3.14.2-4]
    h = Harness()
    c = talkative(h)
    how(h, c)
    told = c.expect(Disconnect)
    assert told.properties is not None
    assert told.properties == props(reason_string=told.properties.reason_string)
    assert told.properties.reason_string
    assert c.closed
