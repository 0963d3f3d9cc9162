"""Wills (3.1.2.5 to 3.1.2.7, 3.1.3.2 to 3.1.3.4): when they are published, when not, and how."""

from collections.abc import Callable

import pytest

from mqttd.core import spec
from mqttd.core.packets import Connack, Connect, Publish, Will
from mqttd.core.properties import decode_forwardable
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import (
    MALFORMED,
    each_qos,
    each_version,
    messages,
    one,
    props,
    raw_props,
    settings,
)


def watcher(h: Harness, topic: str = "will") -> FakeClient:
    """Subscribed so that everything about a will is visible."""
    c = h.client("watcher")
    c.subscribe(topic, qos=2, retain_as_published=True)
    return c


def mortal(
    h: Harness,
    version: int = 5,
    *,
    delay: int = 0,
    session: int = 0,
    clean: bool = True,
    keep_alive: int = 0,
    **values: object,
) -> FakeClient:
    """A client with a will."""
    will = Will("will", b"w", delay_interval=delay)
    for name, value in values.items():
        assert hasattr(will, name)
        setattr(will, name, value)
    properties = props(session_expiry_interval=session) if session else props()
    return h.client(
        "mortal",
        version=version,
        clean=clean,
        keep_alive=keep_alive,
        will=will,
        properties=properties,
    )


def silence(h: Harness, c: FakeClient) -> None:
    h.advance(16)


def network_loss(h: Harness, c: FakeClient) -> None:
    c.drop()


def protocol_error(h: Harness, c: FakeClient) -> None:
    c.send_raw(raw.PINGRESP)


def malformed(h: Harness, c: FakeClient) -> None:
    c.send_raw(b"\x00\x00")


def second_connect(h: Harness, c: FakeClient) -> None:
    c.send_raw(raw.connect(b"mortal", c.version))


def taken_over(h: Harness, c: FakeClient) -> None:
    h.client("mortal", version=c.version)


ENDS: list[Callable[[Harness, FakeClient], None]] = [
    network_loss,
    silence,
    protocol_error,
    malformed,
    second_connect,
    taken_over,
]


@pytest.mark.parametrize("end", ENDS)
@each_version
def test_will_is_published_when_the_connection_ends_without_a_farewell(
    version: int, end: Callable[[Harness, FakeClient], None]
) -> None:
    # [MQTT-3.1.2-7] [MQTT-3.1.2-8] [MQTT-3.1.2-22]
    h = Harness()
    watch = watcher(h)
    end(h, mortal(h, version, keep_alive=10))
    got = one(watch)
    assert (got.topic, got.payload) == ("will", b"w")


@each_version
def test_will_is_discarded_by_a_normal_disconnect(version: int) -> None:
    # [MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT-3.14.4-3]
    h = Harness()
    watch = watcher(h)
    mortal(h, version, session=60 if version == 5 else 0, delay=5).disconnect()
    h.advance(1000)
    assert messages(watch) == []


@pytest.mark.parametrize("reason", [0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x95, 0x98])
def test_will_is_published_after_any_other_disconnect(reason: int) -> None:
    # [MQTT-3.1.2-8] [MQTT-3.14.2-1]; 0x04 asks for it
    h = Harness()
    watch = watcher(h)
    mortal(h).disconnect(reason)
    assert one(watch).payload == b"w"


@each_version
def test_will_is_published_once_only(version: int) -> None:
    # [MQTT-3.1.2-10]
    h = Harness()
    watch = watcher(h)
    c = mortal(h, version, clean=False, session=60 if version == 5 else 0)
    c.drop()
    one(watch)
    h.client(
        "mortal",
        version=version,
        clean=False,
        properties=props(session_expiry_interval=60) if version == 5 else props(),
    ).drop()
    h.advance(1000)
    assert messages(watch) == []


@each_version
def test_will_of_a_refused_connect_is_never_published(version: int) -> None:
    # [MQTT-3.1.2-7]
    h = Harness()
    watch = watcher(h)
    c = h.open(version=version, allow_anonymous=False)
    c.send_raw(raw.connect(b"mortal", version, raw.CLEAN | raw.WILL, tail=raw.will(version)))
    assert c.closed
    h.advance(1000)
    assert messages(watch) == []


@each_version
def test_each_connection_has_its_own_will(version: int) -> None:
    # [MQTT-3.1.2-7]
    h = Harness()
    watch = watcher(h)
    mortal(h, version)
    second = mortal(h, version, payload=b"second")
    assert one(watch).payload == b"w"
    second.drop()
    assert one(watch).payload == b"second"


# --- the delay ---


def test_will_waits_for_its_delay() -> None:
    # [MQTT-3.1.2-8]
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=10, session=60).drop()
    h.advance(9)
    assert messages(watch) == []
    h.advance(2)
    one(watch)


@pytest.mark.parametrize("delay", [61, 3600, 0xFFFFFFFF])
def test_will_delay_longer_than_the_session_ends_with_the_session(delay: int) -> None:
    # [MQTT-3.1.2-8]
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=delay, session=60).drop()
    h.advance(59)
    assert messages(watch) == []
    h.advance(2)
    one(watch)
    h.advance(2 * 3600)
    assert messages(watch) == []


def test_will_delay_without_a_session_is_no_delay() -> None:
    # [MQTT-3.1.2-8]: the session ends with the connection
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=30).drop()
    one(watch)


def test_will_delay_ends_when_disconnect_ends_the_session() -> None:
    # [MQTT-3.1.2-8] [MQTT-4.1.0-2]
    h = Harness()
    watch = watcher(h)
    c = mortal(h, delay=30, session=60)
    c.disconnect(0x04, props(session_expiry_interval=0))
    one(watch)


def test_disconnect_with_will_respects_the_delay() -> None:
    # [MQTT-3.1.2-8]
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=10, session=60).disconnect(0x04)
    h.advance(9)
    assert messages(watch) == []
    h.advance(2)
    one(watch)


def test_will_delay_counts_from_the_end_of_the_connection() -> None:
    # [MQTT-3.1.2-8]
    h = Harness()
    watch = watcher(h)
    c = mortal(h, delay=10, session=60)
    h.advance(100)
    c.drop()
    h.advance(9)
    assert messages(watch) == []
    h.advance(2)
    one(watch)


def test_reconnect_to_the_session_cancels_a_delayed_will() -> None:
    # [MQTT-3.1.3-9]
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=10, session=60).drop()
    h.advance(5)
    back = h.client("mortal", clean=False, properties=props(session_expiry_interval=60))
    assert back.connack.session_present
    h.advance(100)
    assert messages(watch) == []


def test_clean_start_ends_the_session_and_so_the_delay() -> None:
    # [MQTT-3.1.2-8] [MQTT-3.1.2-4]: the session ended before the delay was over
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=10, session=60).drop()
    h.advance(5)
    h.client("mortal")
    one(watch)
    h.advance(100)
    assert messages(watch) == []


def test_take_over_with_clean_start_0_cancels_a_delayed_will() -> None:
    # [MQTT-3.1.3-9] [MQTT-3.1.4-3]; 3.1.3.2.2, comment
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=10, session=60)
    h.client("mortal", clean=False, properties=props(session_expiry_interval=60))
    h.advance(100)
    assert messages(watch) == []


def test_take_over_with_clean_start_1_sends_a_delayed_will() -> None:
    # [MQTT-3.1.2-8] [MQTT-3.1.4-3]; 3.1.3.2.2, comment
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=10, session=60)
    h.client("mortal", clean=True, properties=props(session_expiry_interval=60))
    one(watch)
    h.advance(100)
    assert messages(watch) == []


def test_take_over_sends_a_will_without_delay() -> None:
    # [MQTT-3.1.2-8] [MQTT-3.1.4-3]; 3.1.3.2.2, comment
    h = Harness()
    watch = watcher(h)
    mortal(h, session=60)
    h.client("mortal", clean=False, properties=props(session_expiry_interval=60))
    one(watch)


def test_resumed_session_has_the_will_of_its_new_connection() -> None:
    # [MQTT-3.1.3-9] [MQTT-3.1.2-7]
    h = Harness()
    watch = watcher(h)
    mortal(h, delay=10, session=60, payload=b"first").drop()
    mortal(h, delay=10, session=60, payload=b"second", clean=False).drop()
    h.advance(11)
    assert one(watch).payload == b"second"


def test_session_expiry_cap_bounds_the_will_delay() -> None:
    # [MQTT-3.1.2-8]: the session ends when the server says it does
    h = Harness(settings(session_expiry_max=60))
    watch = watcher(h)
    mortal(h, delay=3600, session=7200).drop()
    h.advance(61)
    one(watch)


# --- what is published ---


@each_qos
@each_version
def test_will_has_its_qos(version: int, qos: int) -> None:
    # [MQTT-3.1.2-12]
    h = Harness()
    watch = watcher(h)
    mortal(h, version, qos=qos).drop()
    assert one(watch).qos == qos


@each_version
def test_will_without_retain_is_not_retained(version: int) -> None:
    # [MQTT-3.1.2-14]
    h = Harness()
    watch = watcher(h)
    mortal(h, version).drop()
    assert one(watch).retain is False
    late = h.client("late")
    late.subscribe("will")
    assert messages(late) == []


@each_version
def test_will_with_retain_is_retained(version: int) -> None:
    # [MQTT-3.1.2-15]
    h = Harness()
    watch = watcher(h)
    mortal(h, version, retain=True).drop()
    assert one(watch).retain is True
    late = h.client("late")
    late.subscribe("will")
    got = one(late)
    assert (got.payload, got.retain) == (b"w", True)


def test_empty_retained_will_clears_the_retained_message() -> None:
    # [MQTT-3.1.2-15] [MQTT-3.3.1-6]
    h = Harness()
    h.client("pub").publish("will", b"old", retain=True)
    mortal(h, payload=b"", retain=True).drop()
    late = h.client("late")
    late.subscribe("will")
    assert messages(late) == []


@each_version
def test_empty_will_is_published(version: int) -> None:
    # [MQTT-3.1.2-9]: the payload may be of zero length
    h = Harness()
    watch = watcher(h)
    mortal(h, version, payload=b"").drop()
    assert one(watch).payload == b""


@each_version
def test_will_payload_is_binary(version: int) -> None:
    # 3.1.3.4
    h = Harness()
    watch = watcher(h)
    payload = bytes(range(256))
    mortal(h, version, payload=payload).drop()
    assert one(watch).payload == payload


def test_will_properties_are_published_with_it() -> None:
    # [MQTT-3.1.2-8] [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-20]
    h = Harness()
    watch = watcher(h)
    sent = {
        "payload_format_indicator": 1,
        "content_type": "text/plain",
        "response_topic": "reply/here",
        "correlation_data": b"\x00\x01",
    }
    mortal(h, properties=raw_props(**sent)).drop()
    got = decode_forwardable(one(watch).properties)
    assert {name: getattr(got, name) for name in sent} == sent


def test_will_user_properties_keep_their_order() -> None:
    # [MQTT-3.1.3-10] [MQTT-3.3.2-17] [MQTT-3.3.2-18]
    h = Harness()
    watch = watcher(h)
    pairs = [("z", "1"), ("a", "2"), ("z", "0"), ("", ""), ("a", "2")]
    mortal(h, properties=raw_props(user_properties=pairs)).drop()
    assert decode_forwardable(one(watch).properties).user_properties == pairs


def test_will_delay_interval_is_not_published() -> None:
    # 3.1.3.2.2: it is a property of the will alone; PUBLISH may not carry it
    h = Harness()
    watch = watcher(h)
    block = b"\x18\x00\x00\x00\x05" + b"\x26\x00\x01k\x00\x01v"
    c = h.open()
    c.send_raw(
        raw.connect(
            b"mortal",
            flags=raw.CLEAN | raw.WILL,
            properties=b"\x11\x00\x00\x00\x3c",
            tail=raw.will(5, props=block),
        )
    )
    c.expect(Connack)
    c.drop()
    h.advance(6)
    assert one(watch).properties == b"\x26\x00\x01k\x00\x01v"


def test_will_expiry_counts_from_its_publication() -> None:
    # 3.1.3.2.4; [MQTT-3.3.2-6]
    h = Harness()
    sub = h.client("sub", clean=False, properties=props(session_expiry_interval=3600))
    sub.subscribe("will", qos=1)
    sub.drop()
    mortal(h, delay=30, session=3600, qos=1, message_expiry=20).drop()
    h.advance(31)
    h.advance(5)
    back = h.client("sub", clean=False, properties=props(session_expiry_interval=3600))
    got = one(back)
    assert 13 <= got.message_expiry <= 16


def test_will_without_expiry_gets_none() -> None:
    # 3.1.3.2.4
    h = Harness()
    watch = watcher(h)
    mortal(h).drop()
    assert one(watch).message_expiry == -1


def test_will_reaches_the_next_connection_of_its_own_session() -> None:
    # [MQTT-3.1.2-8] [MQTT-4.5.0-1]: the session is a subscriber like any other
    h = Harness()
    c = mortal(h, session=60, clean=False, qos=1)
    c.subscribe("will", qos=1)
    c.drop()
    back = h.client("mortal", clean=False, properties=props(session_expiry_interval=60))
    assert one(back).payload == b"w"


# --- wills that no one may have ---

BAD_TOPICS = {"empty": b"", "plus": b"a/+", "hash": b"#", "NUL": b"a\x00"}


@pytest.mark.parametrize("topic", list(BAD_TOPICS.values()), ids=list(BAD_TOPICS))
@each_version
def test_will_topic_has_to_be_a_topic_name(version: int, topic: bytes) -> None:
    # [MQTT-3.1.3-11] [MQTT-4.7.0-1] [MQTT-4.7.3-1]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.WILL, tail=raw.will(version, topic)))
    assert c.closed
    got = c.recv()
    if version == spec.MQTT5:
        (answer,) = got
        assert isinstance(answer, Connack)
        assert answer.reason in (*MALFORMED, spec.TOPIC_NAME_INVALID)
    else:
        assert all(isinstance(p, Connack) and p.reason for p in got)


def test_will_response_topic_holds_no_wildcard() -> None:
    # [MQTT-3.3.2-14]
    c = Harness().open()
    c.send_raw(
        raw.connect(b"c", flags=raw.CLEAN | raw.WILL, tail=raw.will(5, props=b"\x08\x00\x03a/#"))
    )
    raw.connect_refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))


@each_qos
def test_will_goes_into_the_queue_of_an_absent_subscriber(qos: int) -> None:
    # [MQTT-4.5.0-1]
    h = Harness(settings(queue_qos0=False))
    properties = props(session_expiry_interval=3600)
    sub = h.client("sub", clean=False, properties=properties)
    sub.subscribe("will", qos=2)
    sub.drop()
    mortal(h, qos=qos).drop()
    back = h.open()
    back.send(Connect(client_id="sub", clean_start=False, properties=properties))
    assert back.expect(Connack).session_present
    got = [p for p in back.recv() if isinstance(p, Publish)]
    assert len(got) == (qos > 0)
