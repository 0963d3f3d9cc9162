"""CONNECT to CONNACK: who decides, what is announced, and what a refusal leaves behind."""

import pytest

from mqttd.core import spec
from mqttd.core.auth import AuthStep, Verdict
from mqttd.core.encode import encode_packet
from mqttd.core.errors import ProtocolError
from mqttd.core.handshake import (
    CLOSED,
    NEW,
    OPEN,
    WAITING,
    Handshake,
    check_connect,
    check_flags,
    describe,
    grant_keep_alive,
    is_reserved,
    peek_version,
    wanted_expiry,
)
from mqttd.core.packets import (
    Connack,
    Connect,
    Pingreq,
    Pingresp,
    Publish,
    Record,
    Will,
)
from mqttd.core.properties import Properties
from mqttd.core.router import ListenerInfo, Router
from mqttd.core.settings import NEVER
from tests.core.handshake_kit import accepted, connect, owner, refused, say
from tests.core.rig import make_settings
from tests.core.vectors import props
from tests.harness import Harness

V3 = (spec.MQTT31, spec.MQTT311)
ALL = (*V3, spec.MQTT5)


# What the classes leave open.


def test_a_handshake_is_half_a_connection() -> None:
    router = Router(make_settings(), False)
    made = Handshake(router, ListenerInfo("l", "tcp", True), "10.0.0.1:1", None, 7, 3.5)
    assert (made.state, made.serial, made.peer) == (NEW, 7, "10.0.0.1:1")
    assert (made.opened_at, made.last_received) == (3.5, 3.5)
    with pytest.raises(AssertionError, match="run"):
        made.run(0.0)
    with pytest.raises(AssertionError, match="fail"):
        made.fail(ProtocolError(spec.PROTOCOL_ERROR), 0.0)


def test_a_connack_without_a_session_opens_nothing() -> None:
    """[MQTT-3.2.0-1] A session lost while its CONNACK was under way sends nothing."""
    client = Harness().open()
    client.connection.opened()
    assert not client.connection.writable


def test_a_stranger_that_does_not_begin_with_connect_is_not_read() -> None:
    """[MQTT-3.1.0-1]"""
    h = Harness()
    client = h.open()
    client.send(Publish("t", b"x"))
    client.expect_nothing()
    assert client.closed
    assert client.connection.state == CLOSED
    assert h.events("refused") == ["first packet is not CONNECT"]
    assert h.broker.counters.connects_refused == 1


# Checks that need no session.


@pytest.mark.parametrize(
    ("first", "expected", "good"), [(0x10, 0, True), (0x12, 0, False), (0x82, 2, True)]
)
def test_reserved_flags(first: int, expected: int, good: bool) -> None:
    """[MQTT-2.1.3-1]"""
    if good:
        check_flags(first, expected)
        return
    with pytest.raises(ProtocolError) as caught:
        check_flags(first, expected)
    assert caught.value.code == spec.MALFORMED_PACKET


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (b"\x00\x04MQTT\x05", 5),
        (b"\x00\x04MQTT\x06", 5),  # a later version than ours understands our latest best
        (b"\x00\x04MQTT\x04", 4),
        (b"\x00\x06MQIsdp\x03", 4),
        (b"\x00\x04MQTT", 4),
        (b"", 4),
    ],
)
def test_the_version_of_a_connect_is_seen_before_it_is_understood(
    data: bytes, version: int
) -> None:
    """[MQTT-3.1.2-2]"""
    assert peek_version(b"#" + data, 1, 1 + len(data)) == version


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (connect(5, ""), 0),
        (connect(5, "", clean_start=False), 0),
        (connect(4, ""), 0),
        (connect(4, "", clean_start=False), spec.CLIENT_IDENTIFIER_NOT_VALID),
        (connect(3, ""), spec.CLIENT_IDENTIFIER_NOT_VALID),
        (connect(3, "", clean_start=False), spec.CLIENT_IDENTIFIER_NOT_VALID),
        (connect(5, will=Will("a/b")), 0),
        (connect(5, will=Will("a/+")), spec.TOPIC_NAME_INVALID),
        (connect(5, will=Will("1/2/3/4")), spec.TOPIC_NAME_INVALID),
        (connect(5, will=Will("$SYS/broker")), spec.NOT_AUTHORIZED),
        (connect(5, will=Will("$share/g/t")), spec.NOT_AUTHORIZED),
    ],
    ids=str,
)
def test_what_a_connect_has_to_satisfy(packet: Connect, code: int) -> None:
    """[MQTT-3.1.3-8] [MQTT-3.1.4-1]"""
    if not code:
        check_connect(packet, 3)
        return
    with pytest.raises(ProtocolError) as caught:
        check_connect(packet, 3)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("topic", "reserved"),
    [
        ("$SYS", True),
        ("$SYS/x", True),
        ("$share/g/t", True),
        ("$SYSTEM", False),
        ("$aws/things", False),
        ("a/$SYS", False),
    ],
)
def test_topics_of_the_broker_itself(topic: str, reserved: bool) -> None:
    assert is_reserved(topic) is reserved


@pytest.mark.parametrize(
    ("version", "wanted", "longest", "granted", "told"),
    [
        (5, 60, 0, 60, None),
        (5, 60, 60, 60, None),
        (5, 61, 60, 60, 60),
        (5, 0, 60, 60, 60),
        (5, 0, 0, 0, None),
        (4, 0, 60, 0, None),  # an older client could not be told
        (4, 600, 60, 600, None),
    ],
)
def test_keep_alive_in_force(
    version: int, wanted: int, longest: int, granted: int, told: int | None
) -> None:
    """[MQTT-3.1.2-21] [MQTT-3.2.2-21]"""
    answer = Properties()
    packet = connect(version, keep_alive=wanted)
    assert grant_keep_alive(packet, make_settings(max_keep_alive=longest), answer) == granted
    assert answer.server_keep_alive == told


@pytest.mark.parametrize(
    ("version", "clean", "asked", "granted"),
    [
        (5, True, None, 0),
        (5, True, 60, 60),
        (5, False, 1000, 100),
        (5, False, NEVER, 100),
        (4, True, None, 0),
        (4, False, None, 100),
        (3, False, None, 100),
    ],
)
def test_session_expiry_in_force(
    version: int, clean: bool, asked: int | None, granted: int
) -> None:
    """[MQTT-3.1.2-11]"""
    packet = connect(version, clean_start=clean, properties=props(session_expiry_interval=asked))
    assert wanted_expiry(packet, make_settings(session_expiry_max=100)) == granted


def test_the_log_names_version_and_fate_of_the_session() -> None:
    assert describe(connect(5), False) == "MQTT 5.0, new session"
    assert describe(connect(4), True) == "MQTT 3.1.1, session resumed"
    assert describe(connect(3), False) == "MQTT 3.1, new session"


# CONNACK.


def test_connack_announces_what_this_server_takes() -> None:
    """[MQTT-3.2.2-9] [MQTT-3.2.2-10]"""
    h = Harness(
        make_settings(
            receive_maximum=7,
            max_packet_size=1000,
            topic_alias_maximum=3,
            session_expiry_max=60,
            max_keep_alive=30,
        )
    )
    asked = props(session_expiry_interval=61, request_response_information=1)
    told = accepted(say(h, connect(5, "", keep_alive=31, properties=asked))).properties
    assert (told.receive_maximum, told.maximum_packet_size) == (7, 1000)
    assert (told.topic_alias_maximum, told.session_expiry_interval) == (3, 60)
    assert told.server_keep_alive == 30
    assert told.assigned_client_identifier is not None  # [MQTT-3.1.3-6] [MQTT-3.2.2-16]
    assert told.response_information == "response/" + told.assigned_client_identifier


@pytest.mark.parametrize("client_id", ["a+b", "a/#", "x" * 1016])
def test_no_response_topic_is_handed_out_that_could_not_be_used(client_id: str) -> None:
    """MQTT 5, 3.2.2.3.15: it is the basis of a topic."""
    asked = props(request_response_information=1)
    told = accepted(say(Harness(), connect(client_id=client_id, properties=asked))).properties
    assert told.response_information is None


def test_connack_leaves_out_what_needs_no_saying() -> None:
    """[MQTT-3.1.2-28]"""
    h = Harness(make_settings(topic_alias_maximum=0, response_information=""))
    asked = props(request_response_information=1)
    told = accepted(say(h, connect(keep_alive=10, properties=asked))).properties
    assert told.topic_alias_maximum is None
    assert told.session_expiry_interval is None
    assert told.server_keep_alive is None
    assert told.assigned_client_identifier is None
    assert told.response_information is None


@pytest.mark.parametrize("version", V3)
def test_older_clients_are_told_nothing_and_bound_by_nothing(version: int) -> None:
    h = Harness(make_settings(receive_maximum=1))
    assert accepted(say(h, connect(version))) == Connack()


def test_a_connack_that_is_too_large_ends_the_connection() -> None:
    """[MQTT-3.1.2-24]"""
    h = Harness()
    client = say(h, connect(properties=props(maximum_packet_size=10)))
    client.expect_nothing()
    assert client.closed
    assert h.broker.counters.answers_too_large == 1
    assert h.broker.counters.clients_connected == 0
    assert not h.broker.sessions


def test_frames_are_shared_with_clients_that_need_no_copy_of_their_own() -> None:
    """A client with aliases or a packet limit gets packets made for it."""
    h = Harness()
    lanes = [
        h.client("plain").connection.lane,
        h.client("old", version=4).connection.lane,
        h.client("older", version=3).connection.lane,
        h.client("limit", properties=props(maximum_packet_size=100)).connection.lane,
        h.client("alias", properties=props(topic_alias_maximum=1)).connection.lane,
    ]
    assert lanes == [5, 4, 4, 0, 0]


@pytest.mark.parametrize(
    ("asked", "limit", "quota"), [(None, 9, 9), (5, 9, 5), (20, 9, 9), (None, 65535, 65535)]
)
def test_the_smaller_receive_maximum_counts(asked: int | None, limit: int, quota: int) -> None:
    """[MQTT-3.3.4-9]"""
    h = Harness(make_settings(max_inflight=limit))
    accepted(say(h, connect(properties=props(receive_maximum=asked))))
    assert h.broker.sessions["c"].quota_max == quota


# Who decides.


@pytest.mark.parametrize("version", ALL)
def test_nobody_vouches_for_a_stranger(version: int) -> None:
    """[MQTT-3.1.4-2]"""
    h = Harness(allow_anonymous=False)
    assert refused(say(h, connect(version))).reason == (spec.NOT_AUTHORIZED if version == 5 else 5)
    assert h.broker.counters.connects_refused == 1
    assert len(h.events("refused")) == 1
    assert not h.broker.sessions


def test_a_certificate_vouches_for_its_identity_whatever_name_is_claimed() -> None:
    h = Harness(allow_anonymous=False)
    accepted(say(h, connect(username="mallory"), identity="alice"))
    assert owner(h) == "alice"


def test_an_anonymous_listener_takes_the_claimed_name() -> None:
    h = Harness()
    accepted(say(h, connect(username="bob")))
    assert owner(h) == "bob"
    accepted(say(h, connect(client_id="d")))
    assert owner(h, "d") is None


def by(verdict: Verdict | None) -> Harness:
    """A harness whose decider always says this."""

    def decide(connection: object, packet: Connect) -> Verdict | None:
        return verdict

    h = Harness(allow_anonymous=False)
    h.broker.hooks.authenticate = decide
    return h


@pytest.mark.parametrize(
    ("renamed", "claimed", "identity", "becomes"),
    [
        ("alice", "bob", "carol", "alice"),
        (None, "bob", "carol", "carol"),
        (None, "bob", None, "bob"),
        (None, None, "carol", "carol"),
        (None, None, None, None),
    ],
)
def test_a_verdict_admits_under_a_name(
    renamed: str | None, claimed: str | None, identity: str | None, becomes: str | None
) -> None:
    h = by(Verdict(True, username=renamed))
    accepted(say(h, connect(username=claimed), identity=identity))
    assert owner(h) == becomes


def test_a_verdict_refuses_with_its_own_code_and_reason() -> None:
    """[MQTT-3.1.4-2]"""
    answer = refused(say(by(Verdict(False, spec.BANNED, "go away")), connect()))
    assert answer.reason == spec.BANNED
    assert "go away" in (answer.properties.reason_string or "")


def test_a_decider_that_fails_denies() -> None:
    def broken(connection: object, packet: Connect) -> Verdict | None:
        raise RuntimeError("no database")

    h = Harness()
    h.broker.hooks.authenticate = broken
    answer = refused(say(h, connect()))
    assert answer.reason == spec.UNSPECIFIED_ERROR
    assert "database" not in (answer.properties.reason_string or "")
    assert h.broker.counters.hook_failures == 1


def test_a_decider_may_take_its_time_and_nothing_is_read_meanwhile() -> None:
    """[MQTT-3.1.4-5] [MQTT-3.2.0-1]"""
    h = by(None)
    client = h.open()
    client.send_raw(encode_packet(connect(), 5) + encode_packet(Pingreq(), 5))
    client.expect_nothing()
    connection = client.connection
    assert (connection.state, connection.suspended) == (WAITING, True)
    connection.authenticated(Verdict(True, username="alice"), h.now)
    h.flush()
    assert accepted(client).reason == 0
    client.expect(Pingresp)
    assert (connection.state, connection.suspended) == (OPEN, False)
    assert owner(h) == "alice"
    connection.authenticated(Verdict(False), h.now)  # said twice: too late
    h.flush()
    assert not client.closed


def test_a_client_whose_transport_is_full_is_not_written_to_after_connack() -> None:
    h = by(None)
    client = say(h, connect())
    client.connection.pause_writing()
    client.connection.authenticated(Verdict(True), h.now)
    assert client.connection.established
    assert not client.connection.writable
    client.connection.resume_writing(h.now)
    assert client.connection.writable


@pytest.mark.parametrize("version", [4, 5])
def test_a_decider_that_takes_too_long_is_not_the_fault_of_the_client(version: int) -> None:
    """What bans who comes too late must be able to tell: see `ban`."""
    h = by(None)
    client = say(h, connect(version))
    h.advance(h.broker.settings.connect_timeout)
    expected = spec.SERVER_BUSY if version == 5 else spec.connack_code_v3(spec.SERVER_BUSY)
    assert refused(client).reason == expected
    (reason,) = h.events("refused")
    assert reason.startswith(spec.reason_name(spec.SERVER_BUSY))
    client.connection.authenticated(Verdict(True), h.now)
    assert not h.broker.sessions


def test_waiting_for_a_decider_is_no_silence_of_the_client() -> None:
    h = by(None)
    client = say(h, connect(keep_alive=1))
    h.now += 5.0
    client.connection.authenticated(Verdict(True), h.now)
    h.flush()
    assert accepted(client).reason == 0
    assert client.connection.next_deadline() == h.now + 1.5


def test_a_late_refusal_is_a_refusal() -> None:
    """[MQTT-3.1.4-2]"""
    h = by(None)
    client = say(h, connect())
    client.connection.authenticated(Verdict(False, spec.BANNED), h.now)
    h.flush()
    assert refused(client).reason == spec.BANNED


def test_a_late_answer_to_somebody_who_left_is_harmless() -> None:
    h = by(None)
    client = say(h, connect())
    client.drop()
    client.connection.authenticated(Verdict(True), h.now)
    client.connection.enhanced_step(AuthStep(spec.SUCCESS), h.now)
    assert not h.broker.sessions
    assert client.connection.state == CLOSED


def test_another_users_session_is_not_touched() -> None:
    """[MQTT-3.1.4-2] Nothing of it changes before the newcomer was admitted."""
    h = Harness()
    first = h.client("c", username="alice", expiry=60)
    answer = refused(say(h, connect(username="mallory")))
    assert answer.reason == spec.NOT_AUTHORIZED
    assert not first.closed
    assert owner(h) == "alice"


# How a refusal is said.


def test_a_reason_is_left_out_when_it_is_not_wanted_or_does_not_fit() -> None:
    """[MQTT-3.2.2-19] [MQTT-3.1.2-29]"""
    long = by(Verdict(False, spec.BANNED, "x" * 1000))
    told = refused(say(long, connect())).properties.reason_string
    assert told is not None
    assert len(told) == 256
    unwanted = props(request_problem_information=0)
    assert refused(say(long, connect(properties=unwanted))).properties.reason_string is None
    narrow = props(maximum_packet_size=100)
    assert refused(say(long, connect(properties=narrow))).properties.reason_string is None
    nothing = say(long, connect(properties=props(maximum_packet_size=4)))
    nothing.expect_nothing()
    assert nothing.closed


def test_a_refusal_needs_no_reason() -> None:
    h = Harness()
    client = h.open()
    client.connection.version = 5
    client.connection.refuse(spec.SERVER_BUSY, "")
    h.flush()
    answer = refused(client)
    assert (answer.reason, answer.properties.reason_string) == (spec.SERVER_BUSY, None)


def test_a_code_that_no_connack_may_carry_is_replaced() -> None:
    """[MQTT-3.2.2-8] Deciders come from elsewhere."""
    for code in (0x18, 0x04, spec.SESSION_TAKEN_OVER):
        answer = refused(say(by(Verdict(False, code)), connect()))
        assert answer.reason == spec.UNSPECIFIED_ERROR


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (spec.MALFORMED_PACKET, []),
        (spec.PROTOCOL_ERROR, []),
        (spec.PACKET_TOO_LARGE, []),
        (spec.TOPIC_NAME_INVALID, []),
        (spec.NOT_AUTHORIZED, [Connack(False, 5)]),
        (spec.SERVER_UNAVAILABLE, [Connack(False, 3)]),
    ],
)
def test_older_clients_get_a_return_code_or_silence(code: int, answer: list[Record]) -> None:
    """MQTT 3.1.1, 3.1.4: what does not conform is closed without CONNACK."""
    h = Harness()
    client = h.open(4)
    client.connection.refuse(code, "reason")
    h.flush()
    assert client.recv() == answer
    assert client.closed


# Promises about the session.


def test_nothing_is_read_until_a_held_connack_has_left() -> None:
    """[MQTT-3.2.0-1] [MQTT-3.2.2-2]"""
    h = Harness(durable=True)
    h.client("c", expiry=60).drop()
    client = h.open()
    packet = connect(clean_start=False, properties=props(session_expiry_interval=60))
    client.send_raw(encode_packet(packet, 5) + encode_packet(Pingreq(), 5))
    client.expect_nothing()
    assert client.connection.suspended
    h.commit()
    answer = accepted(client)
    assert answer.session_present
    client.expect(Pingresp)
