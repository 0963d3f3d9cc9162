"""Enhanced authentication (4.12): the exchange around CONNECT, and re-authentication.

The method is a play: the server asks "?", the answer "good" admits the user ann,
"more" is asked again, "later" keeps everyone waiting, anything else is refused.
"""

import pytest

from mqttd.core import spec
from mqttd.core.auth import AuthStep, Verdict
from mqttd.core.encode import encode_packet
from mqttd.core.packets import Auth, Connack, Connect, Disconnect, Pingreq, Pingresp, Will
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import alive, messages, one, props, refused, settings

METHOD = "PLAY"


def play(connection: object, method: str, data: bytes | None, first: bool) -> AuthStep | None:
    assert method == METHOD
    if data == b"later":
        return None
    if data == b"good":
        return AuthStep(spec.SUCCESS, b"welcome", "ann")
    if first or data == b"more":
        return AuthStep(spec.CONTINUE_AUTHENTICATION, b"?")
    return AuthStep(spec.NOT_AUTHORIZED, reason="wrong answer")


def stage(**values: object) -> Harness:
    h = Harness(settings(**values), allow_anonymous=False)
    h.broker.hooks.enhanced = play
    h.broker.hooks.enhanced_methods = (METHOD, "OTHER")
    return h


def hello(
    h: Harness,
    data: bytes | None = b"hi",
    method: str = METHOD,
    *,
    username: str | None = None,
    will: Will | None = None,
    limit: int | None = None,
) -> FakeClient:
    """A CONNECT that names the method."""
    c = h.open()
    asked = props(authentication_method=method, authentication_data=data, maximum_packet_size=limit)
    c.send(Connect(client_id="c", will=will, username=username, properties=asked))
    return c


def answer(c: FakeClient, data: bytes, reason: int = 0x18, method: str | None = METHOD) -> None:
    c.send(Auth(reason, props(authentication_method=method, authentication_data=data)))


def admitted(h: Harness, *, username: str | None = None, will: Will | None = None) -> FakeClient:
    c = hello(h, b"good", username=username, will=will)
    assert c.expect(Connack).reason == 0
    return c


# --- around CONNECT ---


@pytest.mark.parametrize("method", ["", "play", "SCRAM-SHA-1"])
def test_unsupported_method_is_refused(method: str) -> None:
    # [MQTT-4.12.0-1] [MQTT-3.1.4-2]
    raw.connect_refused(hello(stage(), method=method), (spec.BAD_AUTHENTICATION_METHOD,))


def test_any_method_is_refused_where_none_is_installed() -> None:
    # [MQTT-4.12.0-1]; even on a listener that asks for no credentials
    raw.connect_refused(hello(Harness()), (spec.BAD_AUTHENTICATION_METHOD,))


def test_challenge_is_an_auth_with_code_continue() -> None:
    # [MQTT-4.12.0-2] [MQTT-4.12.0-5] [MQTT-3.15.2-1]
    c = hello(stage())
    asked = c.expect(Auth)
    assert asked.reason == spec.CONTINUE_AUTHENTICATION
    assert asked.properties is not None
    assert asked.properties.authentication_method == METHOD
    assert asked.properties.authentication_data == b"?"
    c.expect_nothing()
    assert not c.closed


def test_exchange_ends_with_connack_of_the_same_method() -> None:
    # [MQTT-4.12.0-5] [MQTT-3.1.4-5] [MQTT-3.2.0-1]
    c = hello(stage())
    c.expect(Auth)
    answer(c, b"good")
    accepted = c.expect(Connack)
    assert accepted.reason == 0
    assert accepted.properties.authentication_method == METHOD
    assert accepted.properties.authentication_data == b"welcome"
    assert alive(c)


def test_exchange_may_take_many_steps() -> None:
    # [MQTT-4.12.0-2]
    c = hello(stage())
    c.expect(Auth)
    for _ in range(10):
        answer(c, b"more")
        assert c.expect(Auth).reason == spec.CONTINUE_AUTHENTICATION
    answer(c, b"good")
    assert c.expect(Connack).reason == 0


def test_data_of_connect_may_be_enough() -> None:
    # [MQTT-4.12.0-5]
    accepted = hello(stage(), b"good").expect(Connack)
    assert accepted.reason == 0
    assert accepted.properties.authentication_method == METHOD


def test_data_of_connect_may_be_absent() -> None:
    # 4.12.0
    assert hello(stage(), None).expect(Auth).reason == spec.CONTINUE_AUTHENTICATION


def test_rejected_authentication_is_refused_and_closed() -> None:
    # [MQTT-4.12.0-4] [MQTT-3.1.4-2] [MQTT-3.2.2-7]
    c = hello(stage())
    c.expect(Auth)
    answer(c, b"bad")
    raw.connect_refused(c, (spec.NOT_AUTHORIZED,))


def test_rejected_authentication_touches_no_session() -> None:
    # [MQTT-3.1.4-2] [MQTT-3.1.4-3]: take-over comes after authentication
    h = stage()
    owner = admitted(h)
    intruder = hello(h)
    intruder.expect(Auth)
    assert alive(owner)
    answer(intruder, b"bad")
    assert alive(owner)
    newcomer = admitted(h)
    refused(owner, (spec.SESSION_TAKEN_OVER,))
    assert alive(newcomer)


def test_late_decision_keeps_everyone_waiting() -> None:
    # [MQTT-3.2.0-1] [MQTT-3.1.4-6]
    h = stage()
    c = hello(h)
    c.expect(Auth)
    later = Auth(0x18, props(authentication_method=METHOD, authentication_data=b"later"))
    c.send_raw(encode_packet(later, 5) + raw.PINGREQ)
    assert c.connection.suspended
    c.expect_nothing()
    c.connection.enhanced_step(AuthStep(spec.SUCCESS, b"at last", "ann"), h.now)
    h.flush()
    assert c.expect(Connack).reason == 0
    c.expect(Pingresp)


@pytest.mark.parametrize(
    "packet",
    [
        raw.publish(5, b"t"),
        raw.subscribe(5, b"t"),
        raw.PINGREQ,
        raw.connect(b"c"),
        b"\x00\x00",
        b"\x40\x02\x00\x01",
    ],
)
def test_only_auth_and_disconnect_may_come_before_connack(packet: bytes) -> None:
    # [MQTT-3.1.2-30] [MQTT-3.14.0-1] [MQTT-3.2.0-1]
    h = stage()
    sub = h.open(allow_anonymous=True)
    sub.send_raw(raw.connect(b"sub") + raw.subscribe(5, b"#"))
    sub.recv()
    c = hello(h)
    c.expect(Auth)
    c.send_raw(packet)
    assert c.closed
    assert all(isinstance(p, Connack) and p.reason in (0x81, 0x82) for p in c.recv())
    assert messages(sub) == []


def test_disconnect_before_connack_just_closes() -> None:
    # [MQTT-3.1.2-30] [MQTT-3.14.0-1] [MQTT-3.1.2-8]
    h = stage()
    watch = h.open(allow_anonymous=True)
    watch.send_raw(raw.connect(b"watch") + raw.subscribe(5, b"will"))
    watch.recv()
    c = hello(h, will=Will("will", b"w"))
    c.expect(Auth)
    c.send(Disconnect())
    raw.closed_silently(c)
    h.advance(100)
    assert messages(watch) == []


@pytest.mark.parametrize(
    ("reason", "method"),
    [(0x18, "OTHER"), (0x18, None), (0x19, METHOD), (0x00, METHOD)],
    ids=["other method", "no method", "re-authenticate", "success"],
)
def test_wrong_auth_during_the_exchange_is_refused(reason: int, method: str | None) -> None:
    # [MQTT-4.12.0-3] [MQTT-4.12.0-5] [MQTT-3.15.2-1]
    c = hello(stage())
    c.expect(Auth)
    answer(c, b"good", reason, method)
    raw.connect_refused(c, (0x81, 0x82, 0x8C))


def test_exchange_is_bound_by_the_connect_timeout() -> None:
    # 3.1.4: an unfinished handshake may not hold a connection for ever
    h = stage(connect_timeout=10.0)
    c = hello(h)
    c.expect(Auth)
    h.advance(11)
    assert c.closed
    assert not any(isinstance(p, Disconnect) for p in c.recv())


def test_session_belongs_to_the_user_who_was_authenticated() -> None:
    # [MQTT-4.12.0-4] [MQTT-3.1.4-2]: not to the User Name of the CONNECT
    h = stage()
    ann = admitted(h, username="somebody else")
    c = h.open(allow_anonymous=True)
    c.send(Connect(client_id="c", username="somebody else"))
    raw.connect_refused(c, (spec.NOT_AUTHORIZED,))
    assert alive(ann)


def test_no_auth_without_a_method_in_connect() -> None:
    # [MQTT-4.12.0-6]
    h = stage()
    c = h.open(allow_anonymous=True)
    c.send(Connect(client_id="c"))
    accepted = c.expect(Connack)
    assert accepted.properties.authentication_method is None
    c.expect_nothing()


def test_auth_leaves_out_nothing_it_needs() -> None:
    # [MQTT-3.15.2-2] [MQTT-3.15.2-3] [MQTT-3.1.2-24]
    c = hello(stage(), limit=64)
    asked = c.expect(Auth)
    assert len(encode_packet(asked, 5)) <= 64


# --- again, on an open connection ---


def test_reauthentication_succeeds() -> None:
    # [MQTT-4.12.1-1] [MQTT-4.12.0-5] [MQTT-4.12.0-2]
    c = admitted(stage())
    answer(c, b"hi", 0x19)
    asked = c.expect(Auth)
    assert asked.reason == spec.CONTINUE_AUTHENTICATION
    answer(c, b"good")
    done = c.expect(Auth)
    assert done.reason == spec.SUCCESS
    assert done.properties is not None
    assert done.properties.authentication_method == METHOD
    assert done.properties.authentication_data == b"welcome"
    assert alive(c)


def test_reauthentication_may_be_repeated() -> None:
    # [MQTT-4.12.1-1]
    c = admitted(stage())
    for _ in range(3):
        answer(c, b"good", 0x19)
        assert c.expect(Auth).reason == spec.SUCCESS


def test_traffic_goes_on_during_reauthentication() -> None:
    # 4.12.1: other packets flow, under the earlier authentication
    h = stage()
    c = admitted(h)
    c.subscribe("t")
    answer(c, b"hi", 0x19)
    c.expect(Auth)
    c.send(Pingreq())
    c.expect(Pingresp)
    c.publish("t", b"x")
    assert one(c).payload == b"x"
    answer(c, b"good")
    assert c.expect(Auth).reason == spec.SUCCESS


def test_failed_reauthentication_disconnects() -> None:
    # [MQTT-4.12.1-2] [MQTT-4.13.2-1] [MQTT-3.1.2-8]
    h = stage()
    watch = h.open(allow_anonymous=True)
    watch.send_raw(raw.connect(b"watch") + raw.subscribe(5, b"will"))
    watch.recv()
    c = admitted(h, will=Will("will", b"w"))
    answer(c, b"hi", 0x19)
    c.expect(Auth)
    answer(c, b"bad")
    refused(c, (spec.NOT_AUTHORIZED,))
    assert one(watch).payload == b"w"


@pytest.mark.parametrize(
    ("reason", "method"),
    [(0x19, "OTHER"), (0x19, None), (0x18, METHOD), (0x00, METHOD)],
    ids=["other method", "no method", "continue", "success"],
)
def test_wrong_start_of_a_reauthentication_is_an_error(reason: int, method: str | None) -> None:
    # [MQTT-4.12.1-1] [MQTT-4.12.0-5] [MQTT-4.13.1-1]
    c = admitted(stage())
    answer(c, b"good", reason, method)
    refused(c, (0x81, 0x82, 0x8C))


def test_reauthentication_twice_at_once_is_an_error() -> None:
    # [MQTT-4.12.0-3]: a running exchange is continued with 0x18
    c = admitted(stage())
    answer(c, b"hi", 0x19)
    c.expect(Auth)
    answer(c, b"hi", 0x19)
    refused(c, (spec.PROTOCOL_ERROR,))


def test_reauthentication_as_somebody_else_is_refused() -> None:
    # [MQTT-4.12.1-2]: the session belongs to its user
    h = stage()

    def anyone(connection: object, method: str, data: bytes | None, first: bool) -> AuthStep:
        return AuthStep(spec.SUCCESS, None, (data or b"").decode())

    h.broker.hooks.enhanced = anyone
    c = admitted(h)
    answer(c, b"bob", 0x19)
    refused(c, (spec.NOT_AUTHORIZED,))


# --- the plain decider, with a user name and a password ---


@pytest.mark.parametrize(
    ("version", "code", "sent"),
    [
        (5, spec.BAD_USER_NAME_OR_PASSWORD, 0x86),
        (5, spec.NOT_AUTHORIZED, 0x87),
        (5, spec.BANNED, 0x8A),
        (5, spec.CLIENT_IDENTIFIER_NOT_VALID, 0x85),
        (4, spec.CLIENT_IDENTIFIER_NOT_VALID, 2),
        (4, spec.SERVER_UNAVAILABLE, 3),
        (4, spec.BAD_USER_NAME_OR_PASSWORD, 4),
        (4, spec.NOT_AUTHORIZED, 5),
        (3, spec.BAD_USER_NAME_OR_PASSWORD, 4),
        (3, spec.NOT_AUTHORIZED, 5),
        (4, spec.BANNED, 5),
    ],
)
def test_refusal_of_a_decider_is_told(version: int, code: int, sent: int) -> None:
    # [MQTT-3.1.4-2] [MQTT-3.1.3-8] [MQTT-3.2.2-8]; MQTT 3.1.1, 3.2.2.3
    h = Harness()
    h.broker.hooks.authenticate = lambda connection, connect: Verdict(False, code)
    c = h.open(version=version)
    c.send_raw(raw.connect(b"c", version))
    raw.connect_refused(c, (sent,))


def test_decider_sees_user_name_and_password() -> None:
    # [MQTT-3.1.2-17] [MQTT-3.1.2-19] [MQTT-3.1.3-1]
    seen: list[tuple[str | None, bytes | None]] = []

    def decide(connection: object, connect: Connect) -> Verdict:
        seen.append((connect.username, connect.password))
        return Verdict(True)

    h = Harness()
    h.broker.hooks.authenticate = decide
    h.client("a", username="ann", password=b"\x00\xff")
    h.client("b", username="")
    h.client("c")
    assert seen == [("ann", b"\x00\xff"), ("", None), (None, None)]


@pytest.mark.parametrize("version", [3, 4, 5])
def test_decision_may_come_later(version: int) -> None:
    # [MQTT-3.2.0-1] [MQTT-3.1.4-3]: nothing happens until it is there
    h = Harness()
    owner = h.client("c", version=version)
    h.broker.hooks.authenticate = lambda connection, connect: None
    c = h.open(version=version)
    c.send_raw(raw.connect(b"c", version) + raw.subscribe(version, b"t"))
    assert c.connection.suspended
    c.expect_nothing()
    assert alive(owner)
    c.connection.authenticated(Verdict(True), h.now)
    h.flush()
    assert [type(p).__name__ for p in c.recv()] == ["Connack", "Suback"]
    assert owner.closed


def test_decision_that_comes_too_late_is_ignored() -> None:
    # [MQTT-3.1.4-2]: the client has gone meanwhile
    h = Harness()
    h.broker.hooks.authenticate = lambda connection, connect: None
    c = h.open()
    c.send_raw(raw.connect(b"c", flags=0, properties=b"\x11\x00\x00\x00\x3c"))
    c.drop()
    c.connection.authenticated(Verdict(True), h.now)
    h.flush()
    h.broker.hooks.authenticate = None
    assert not h.client("c", clean=False).connack.session_present


def test_decision_that_never_comes_is_bound_by_the_connect_timeout() -> None:
    # 3.1.4
    h = Harness(settings(connect_timeout=10.0))
    h.broker.hooks.authenticate = lambda connection, connect: None
    c = h.open()
    c.send_raw(raw.connect(b"c"))
    h.advance(11)
    assert c.closed
    assert not any(isinstance(p, Disconnect) for p in c.recv())


@pytest.mark.parametrize("anonymous", [True, False])
def test_decider_that_breaks_refuses(anonymous: bool) -> None:
    # [MQTT-3.1.4-2]: fail closed
    def broken(connection: object, connect: Connect) -> Verdict:
        raise ZeroDivisionError

    h = Harness(allow_anonymous=anonymous)
    h.broker.hooks.authenticate = broken
    c = h.open()
    c.send_raw(raw.connect(b"c"))
    raw.connect_refused(c, (0x80, 0x83, 0x87, 0x88))
