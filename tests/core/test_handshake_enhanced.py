"""Enhanced authentication (MQTT 5, 4.12): steps before CONNACK, and again in mid-connection."""

import pytest

from mqttd.core import spec
from mqttd.core.auth import AuthStep
from mqttd.core.handshake import WAITING
from mqttd.core.packets import Auth, Disconnect, Pingreq, Pingresp, Publish, Record
from mqttd.core.properties import Properties
from tests.core.handshake_kit import accepted, connect, owner, refused, say
from tests.core.vectors import props
from tests.harness import FakeClient, Harness

METHOD = "TWO-STEPS"


def two_steps(connection: object, method: str, data: bytes | None, first: bool) -> AuthStep | None:
    assert method == METHOD
    if data == b"later":
        return None
    if data == b"crash":
        raise RuntimeError("no such table")
    if data == b"bob":
        return AuthStep(spec.SUCCESS, b"welcome", "bob")
    if first:
        return AuthStep(spec.CONTINUE_AUTHENTICATION, b"who?")
    if data == b"alice":
        return AuthStep(spec.SUCCESS, b"welcome", "alice")
    if data == b"anyone":
        return AuthStep(spec.SUCCESS, b"welcome")
    return AuthStep(spec.NOT_AUTHORIZED, reason="wrong answer")


def stage() -> Harness:
    h = Harness(allow_anonymous=False)
    h.broker.hooks.enhanced = two_steps
    h.broker.hooks.enhanced_methods = (METHOD,)
    return h


def named(data: bytes = b"", method: str | None = METHOD) -> Properties:
    return props(authentication_method=method, authentication_data=data)


def challenged(h: Harness) -> FakeClient:
    client = say(h, connect(properties=named()))
    asked = client.expect(Auth)
    assert asked.reason == spec.CONTINUE_AUTHENTICATION  # [MQTT-4.12.0-2]
    assert asked.properties is not None
    assert asked.properties.authentication_data == b"who?"
    assert client.connection.state == WAITING
    return client


def reply(client: FakeClient, data: bytes, reason: int = 0x18, method: str | None = METHOD) -> None:
    client.send(Auth(reason, named(data, method)))


def admitted(h: Harness) -> FakeClient:
    client = challenged(h)
    reply(client, b"alice")
    answer = accepted(client)
    assert answer.properties.authentication_method == METHOD  # [MQTT-4.12.0-5]
    assert answer.properties.authentication_data == b"welcome"
    return client


def ended(client: FakeClient) -> Disconnect:
    answer = client.expect(Disconnect)
    assert client.closed
    return answer


def test_two_steps_lead_to_a_session() -> None:
    """[MQTT-4.12.0-2] [MQTT-4.12.0-3] [MQTT-4.12.0-5]"""
    h = stage()
    admitted(h)
    assert owner(h) == "alice"


@pytest.mark.parametrize(
    ("username", "identity", "becomes"),
    [("claimed", "cert", "cert"), ("claimed", None, "claimed"), (None, None, None)],
)
def test_a_step_that_names_nobody_leaves_the_name_as_it_is(
    username: str | None, identity: str | None, becomes: str | None
) -> None:
    h = stage()
    client = say(h, connect(properties=named(), username=username), identity=identity)
    client.expect(Auth)
    reply(client, b"anyone")
    accepted(client)
    assert owner(h) == becomes


def test_an_unknown_method_is_refused() -> None:
    """[MQTT-4.12.0-1]"""
    h = stage()
    asked = props(authentication_method="GUESS")
    assert refused(say(h, connect(properties=asked))).reason == spec.BAD_AUTHENTICATION_METHOD
    asked = props(authentication_method=METHOD)
    other = say(Harness(), connect(properties=asked))
    assert refused(other).reason == spec.BAD_AUTHENTICATION_METHOD


@pytest.mark.parametrize(
    ("data", "code"), [(b"eve", spec.NOT_AUTHORIZED), (b"crash", spec.UNSPECIFIED_ERROR)]
)
def test_a_wrong_answer_is_refused(data: bytes, code: int) -> None:
    """[MQTT-4.12.0-4]"""
    h = stage()
    client = challenged(h)
    reply(client, data)
    assert refused(client).reason == code
    assert not h.broker.sessions


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (Auth(spec.CONTINUE_AUTHENTICATION, named(method="OTHER")), spec.PROTOCOL_ERROR),
        (Auth(spec.SUCCESS), spec.PROTOCOL_ERROR),
        (Auth(spec.REAUTHENTICATE, named()), spec.PROTOCOL_ERROR),
        (Pingreq(), spec.PROTOCOL_ERROR),
        (Publish("t"), spec.PROTOCOL_ERROR),
    ],
    ids=["another method", "no method", "another reason", "PINGREQ", "PUBLISH"],
)
def test_only_the_next_step_may_come_before_connack(packet: Record, code: int) -> None:
    """[MQTT-3.1.2-30] [MQTT-4.12.0-3] [MQTT-4.12.0-5]"""
    client = challenged(stage())
    client.send(packet)
    assert refused(client).reason == code


def test_a_client_may_give_up_instead() -> None:
    h = stage()
    client = challenged(h)
    client.send(Disconnect())
    client.expect_nothing()
    assert client.closed
    assert h.broker.counters.clients_connected == 0


def test_steps_may_come_late() -> None:
    h = stage()
    client = challenged(h)
    reply(client, b"later")
    assert client.connection.suspended
    client.connection.enhanced_step(AuthStep(spec.CONTINUE_AUTHENTICATION, b"more"), h.now)
    h.flush()
    client.expect(Auth)
    assert not client.connection.suspended
    reply(client, b"later")
    client.connection.enhanced_step(AuthStep(spec.SUCCESS, username="alice"), h.now)
    h.flush()
    accepted(client)
    other = challenged(h)
    reply(other, b"later")
    other.connection.enhanced_step(AuthStep(spec.NOT_AUTHORIZED), h.now)
    h.flush()
    assert refused(other).reason == spec.NOT_AUTHORIZED


@pytest.mark.parametrize("data", [b"alice", b"anyone"])
def test_a_client_may_prove_itself_again(data: bytes) -> None:
    """[MQTT-4.12.1-1]"""
    client = admitted(stage())
    reply(client, b"", spec.REAUTHENTICATE)
    assert client.expect(Auth).reason == spec.CONTINUE_AUTHENTICATION
    client.send(Pingreq())  # it goes on working meanwhile
    client.expect(Pingresp)
    reply(client, data)
    answer = client.expect(Auth)
    assert answer.reason == spec.SUCCESS
    assert answer.properties is not None
    assert answer.properties.authentication_method == METHOD
    reply(client, b"", spec.REAUTHENTICATE)  # and again
    assert client.expect(Auth).reason == spec.CONTINUE_AUTHENTICATION


@pytest.mark.parametrize(
    ("first", "second"),
    [(b"", b"eve"), (b"", b"crash"), (b"bob", b"")],
    ids=["wrong answer", "failing decider", "another user"],
)
def test_a_client_that_fails_to_prove_itself_again_goes(first: bytes, second: bytes) -> None:
    """[MQTT-4.12.1-2]"""
    client = admitted(stage())
    reply(client, first, spec.REAUTHENTICATE)
    if second:
        client.expect(Auth)
        reply(client, second)
    assert ended(client).reason >= 0x80


def test_a_code_that_no_disconnect_may_carry_is_replaced() -> None:
    """[MQTT-3.14.2-1]"""
    client = admitted(stage())
    reply(client, b"later", spec.REAUTHENTICATE)
    client.connection.enhanced_step(AuthStep(spec.BAD_USER_NAME_OR_PASSWORD), client.harness.now)
    client.harness.flush()
    assert ended(client).reason == spec.NOT_AUTHORIZED


@pytest.mark.parametrize(
    "packet",
    [
        Auth(spec.REAUTHENTICATE, named(method="OTHER")),
        Auth(spec.SUCCESS),
        Auth(spec.CONTINUE_AUTHENTICATION, named()),
    ],
    ids=["another method", "no method", "no beginning"],
)
def test_proving_oneself_again_has_its_form(packet: Auth) -> None:
    """[MQTT-4.12.0-5] [MQTT-4.12.1-1]"""
    client = admitted(stage())
    client.send(packet)
    assert ended(client).reason == spec.PROTOCOL_ERROR


def test_a_client_that_named_no_method_may_not_begin_with_one() -> None:
    """[MQTT-4.12.0-7]"""
    client = Harness().client("c")
    reply(client, b"", spec.REAUTHENTICATE)
    assert ended(client).reason == spec.PROTOCOL_ERROR
