"""Session state (4.1): what is kept, for how long, and for whom."""

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from mqttd.core.settings import NEVER
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import (
    alive,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    send_publish,
    settings,
)

DAY = 86_400


def resume(h: Harness, client_id: str = "c", expiry: int = 60) -> FakeClient:
    return h.client(client_id, clean=False, properties=props(session_expiry_interval=expiry))


# --- how long ---


@pytest.mark.parametrize("expiry", [1, 60, 3600, 20 * DAY])
def test_session_lasts_as_long_as_its_expiry(expiry: int) -> None:
    # [MQTT-3.1.2-23] [MQTT-4.1.0-2]
    h = Harness()
    resume(h, expiry=expiry).drop()
    h.advance(expiry - 0.5)
    back = resume(h, expiry=expiry)
    assert back.connack.session_present
    back.drop()
    h.advance(expiry + 1)
    assert not resume(h).connack.session_present


@pytest.mark.parametrize("expiry", [None, 0])
def test_session_without_expiry_ends_with_its_connection(expiry: int | None) -> None:
    # [MQTT-4.1.0-2]
    h = Harness()
    properties = props() if expiry is None else props(session_expiry_interval=expiry)
    h.client("c", clean=False, properties=properties).drop()
    assert not resume(h).connack.session_present


def test_session_that_never_expires() -> None:
    # [MQTT-3.1.2-23]; 3.1.2.11.2: 0xFFFFFFFF
    h = Harness(settings(session_expiry_max=NEVER))
    c = resume(h, expiry=NEVER)
    assert c.connack.properties.session_expiry_interval in (None, NEVER)
    c.drop()
    for _ in range(5):
        h.advance(50 * 365 * DAY)
    assert resume(h).connack.session_present


def test_longest_expiry_that_ends() -> None:
    # [MQTT-4.1.0-2]: one second less than for ever
    h = Harness(settings(session_expiry_max=NEVER))
    resume(h, expiry=NEVER - 1).drop()
    h.advance(NEVER - 2)
    c = resume(h, expiry=NEVER - 1)
    assert c.connack.session_present
    c.drop()
    h.advance(NEVER)
    assert not resume(h).connack.session_present


def test_session_does_not_expire_while_connected() -> None:
    # [MQTT-4.1.0-1]
    h = Harness()
    c = resume(h, expiry=10)
    c.subscribe("t")
    h.advance(1000)
    publish(h.client("pub"), "t", b"still here")
    assert one(c).payload == b"still here"


def test_expiry_counts_from_the_last_end_of_a_connection() -> None:
    # [MQTT-4.1.0-2]
    h = Harness()
    for _ in range(5):
        c = resume(h, expiry=60)
        h.advance(40)
        c.drop()
        h.advance(40)
    assert resume(h).connack.session_present


def test_new_connection_sets_a_new_expiry() -> None:
    # [MQTT-3.1.2-23] [MQTT-4.1.0-2]
    h = Harness()
    resume(h, expiry=3600).drop()
    resume(h, expiry=10).drop()
    h.advance(11)
    assert not resume(h).connack.session_present
    h = Harness()
    resume(h, expiry=10).drop()
    resume(h, expiry=3600).drop()
    h.advance(11)
    assert resume(h).connack.session_present


def test_resuming_without_expiry_ends_the_session_with_the_connection() -> None:
    # [MQTT-4.1.0-2]
    h = Harness()
    resume(h, expiry=3600).drop()
    c = h.client("c", clean=False)
    assert c.connack.session_present
    c.drop()
    assert not resume(h).connack.session_present


def test_expired_session_leaves_nothing_behind() -> None:
    # [MQTT-4.1.0-2]
    h = Harness()
    c = manual(resume(h, expiry=10))
    c.subscribe("t", qos=1)
    pub = h.client("pub")
    publish(pub, "t", b"in flight", qos=1)
    c.drop()
    publish(pub, "t", b"queued", qos=1)
    h.advance(11)
    assert publish(pub, "t", b"later", qos=1) == spec.NO_MATCHING_SUBSCRIBERS
    back = resume(h)
    assert messages(back) == []
    publish(pub, "t", b"later", qos=1)
    assert messages(back) == []


@pytest.mark.parametrize("end", ["drop", "disconnect", "take-over"])
def test_session_that_ends_takes_its_subscriptions_along(end: str) -> None:
    # [MQTT-4.1.0-2] [MQTT-3.1.2-4]
    h = Harness()
    c = h.client("c")
    for topic_filter in ("t", "t/#", "$share/g/t"):
        c.subscribe(topic_filter, qos=1)
    if end == "drop":
        c.drop()
    elif end == "disconnect":
        c.disconnect()
    else:
        h.client("c")
    assert publish(h.client("pub"), "t", qos=1) == spec.NO_MATCHING_SUBSCRIBERS


def test_many_sessions_expire_each_at_its_time() -> None:
    # [MQTT-4.1.0-2]
    h = Harness()
    for i in range(1, 21):
        resume(h, f"c{i}", expiry=i).drop()
    h.advance(10.5)
    alive_ids = [i for i in range(1, 21) if resume(h, f"c{i}").connack.session_present]
    assert alive_ids == list(range(11, 21))


# --- what ---


@each_version
def test_subscriptions_with_their_options_are_kept(version: int) -> None:
    # [MQTT-3.1.2-5] [MQTT-4.1.0-1]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("one", qos=1)
    c.subscribe("zero", qos=0)
    if version == spec.MQTT5:
        c.subscribe("id", qos=0, identifier=7, retain_as_published=True)
        c.subscribe("local", qos=0, no_local=True)
    c.drop()
    back = persistent(h, "c", version)
    pub = h.client("pub")
    publish(pub, "one", qos=1)
    publish(pub, "zero", qos=1)
    assert [p.qos for p in messages(back)] == [1, 0]
    if version == spec.MQTT5:
        publish(pub, "id", retain=True)
        got = one(back)
        assert (got.subscription_ids, got.retain) == ([7], True)
        back.publish("local", b"own")
        assert messages(back) == []


@each_version
def test_messages_in_flight_and_in_the_queue_are_kept_in_order(version: int) -> None:
    # [MQTT-3.1.2-5] [MQTT-4.1.0-1] [MQTT-4.5.0-1] [MQTT-4.6.0-5]
    h = Harness()
    c = manual(persistent(h, "c", version))
    c.subscribe("t", qos=2)
    pub = h.client("pub")
    for i in range(1, 6):
        publish(pub, "t", str(i).encode(), qos=1 + i % 2, packet_id=i)
    first = messages(c)
    c.drop()
    for i in range(6, 11):
        publish(pub, "t", str(i).encode(), qos=1 + i % 2, packet_id=i)
    back = persistent(h, "c", version)
    again = messages(back)
    assert [p.payload for p in again] == [str(i).encode() for i in range(1, 11)]
    assert [p.packet_id for p in again[:5]] == [p.packet_id for p in first]
    assert [p.dup for p in again] == [True] * 5 + [False] * 5


def test_quota_of_the_new_connection_bounds_the_resumed_session() -> None:
    # [MQTT-3.3.4-9] [MQTT-4.9.0-1]
    h = Harness()
    c = manual(persistent(h, "c"))
    c.subscribe("t", qos=1)
    pub = h.client("pub")
    for i in range(1, 11):
        publish(pub, "t", str(i).encode(), qos=1, packet_id=i)
    c.drop()
    back = h.open()
    back.auto_ack = False
    back.send_raw(raw.connect(b"c", flags=0, properties=b"\x11\x00\x00\x00\x3c" + b"\x21\x00\x02"))
    seen: list[bytes] = []
    for _ in range(10):
        got = messages(back)
        assert len(got) <= 2
        seen += [p.payload for p in got]
        for p in got:
            back.send(Puback(p.packet_id))
    assert seen == [str(i).encode() for i in range(1, 11)]


@each_version
def test_half_done_qos_2_of_the_client_is_kept(version: int) -> None:
    # [MQTT-4.1.0-1] [MQTT-4.3.3-10]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    c = manual(persistent(h, "c", version))
    send_publish(c, "t", b"once", qos=2, packet_id=9)
    c.expect(Pubrec)
    c.drop()
    back = manual(persistent(h, "c", version))
    send_publish(back, "t", b"once", qos=2, packet_id=9, dup=True)
    back.expect(Pubrec)
    back.send(Pubrel(9))
    assert back.expect(Pubcomp).reason == 0
    assert payloads(sub) == [b"once"]


@each_version
def test_half_done_qos_2_of_the_server_is_kept(version: int) -> None:
    # [MQTT-4.1.0-1] [MQTT-4.4.0-1] [MQTT-4.3.3-6]
    h = Harness()
    c = manual(persistent(h, "c", version))
    c.subscribe("t", qos=2)
    publish(h.client("pub"), "t", qos=2)
    (got,) = messages(c)
    c.send(Pubrec(got.packet_id))
    c.expect(Pubrel)
    c.drop()
    back = h.open(version=version)
    back.auto_ack = False
    properties = b"\x11\x00\x00\x00\x3c" if version == 5 else b""
    back.send_raw(raw.connect(b"c", version, 0, properties=properties))
    answers = back.recv()
    assert answers[1:] == [Pubrel(got.packet_id)]
    back.send(Pubcomp(got.packet_id))
    assert alive(back)


def test_clean_start_forgets_half_done_qos_2() -> None:
    # [MQTT-3.1.2-4] [MQTT-4.3.3-10]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    c = manual(persistent(h, "c"))
    send_publish(c, "t", b"first", qos=2, packet_id=9)
    c.expect(Pubrec)
    c.drop()
    back = manual(h.client("c", clean=True))
    back.send(Pubrel(9))
    assert back.expect(Pubcomp).reason == spec.PACKET_IDENTIFIER_NOT_FOUND


@pytest.mark.parametrize("keep", [True, False])
def test_qos_0_for_an_absent_client_is_kept_by_setting(keep: bool) -> None:
    # 4.1: QoS 0 messages pending transmission are optional
    h = Harness(settings(queue_qos0=keep))
    c = resume(h)
    c.subscribe("t", qos=0)
    c.drop()
    publish(h.client("pub"), "t", b"zero")
    assert payloads(resume(h)) == ([b"zero"] if keep else [])


def test_topic_aliases_are_not_kept() -> None:
    # [MQTT-3.3.2-7]: they belong to the connection
    h = Harness()
    c = resume(h)
    c.send(Publish("t", b"x", topic_alias=1))
    c.send(Publish("", b"x", topic_alias=1))
    assert alive(c)
    c.drop()
    back = resume(h)
    back.send(Publish("", b"x", topic_alias=1))
    assert back.closed


# --- for whom ---


@each_version
def test_sessions_are_told_apart_by_client_id(version: int) -> None:
    # [MQTT-3.1.3-2]
    h = Harness()
    for client_id in ("a", "b"):
        c = persistent(h, client_id, version)
        c.subscribe(f"to/{client_id}", qos=1)
        c.drop()
    pub = h.client("pub")
    for client_id in ("a", "b"):
        publish(pub, f"to/{client_id}", client_id.encode(), qos=1)
    for client_id in ("a", "b"):
        assert payloads(persistent(h, client_id, version)) == [client_id.encode()]


@pytest.mark.parametrize(("before", "after"), [(4, 5), (5, 4), (3, 5), (5, 3), (3, 4)])
def test_session_goes_on_in_another_version(before: int, after: int) -> None:
    # [MQTT-3.1.2-5] [MQTT-3.1.3-2]: the session is named by the client id alone
    h = Harness()
    c = persistent(h, "c", before)
    c.subscribe("t", qos=1)
    c.drop()
    h.client("pub").send_raw(
        raw.frame(0x32, b"\x00\x01t\x00\x01" + raw.block(5, b"\x26\x00\x01k\x00\x01v") + b"x")
    )
    back = persistent(h, "c", after)
    got = one(back)
    assert (got.payload, got.qos) == (b"x", 1)
    assert got.properties == (b"\x26\x00\x01k\x00\x01v" if after == 5 else b"")


def test_in_flight_message_is_resent_in_the_layout_of_the_new_connection() -> None:
    # [MQTT-4.4.0-1]
    h = Harness()
    c = manual(persistent(h, "c", 5))
    c.subscribe("t", qos=1)
    h.client("pub").send_raw(
        raw.frame(0x32, b"\x00\x01t\x00\x01" + raw.block(5, b"\x26\x00\x01k\x00\x01v") + b"x")
    )
    (first,) = messages(c)
    c.drop()
    got = one(persistent(h, "c", 4))
    assert (got.payload, got.packet_id, got.dup) == (b"x", first.packet_id, True)


# --- when the state is on disk ---


def ask(h: Harness, extra: bytes = b"") -> FakeClient:
    """A CONNECT for the session c, whose answer may have to wait."""
    c = h.open()
    c.send_raw(raw.connect(b"c", flags=0, properties=b"\x11\x00\x00\x00\x3c") + extra)
    return c


def unsaved(h: Harness) -> None:
    """The session c with changes that are not durable yet."""
    c = ask(h)
    c.send_raw(raw.subscribe(5, b"t", options=1))
    c.drop()


def test_session_present_waits_until_the_session_is_durable() -> None:
    # [MQTT-3.2.2-3] [MQTT-4.1.0-1]: what was promised survives a crash
    h = Harness(durable=True)
    unsaved(h)
    c = ask(h)
    c.expect_nothing()
    h.commit()
    assert c.expect(Connack).session_present


def test_session_present_waits_even_for_an_empty_session() -> None:
    # [MQTT-3.2.2-3] [MQTT-4.1.0-1]
    h = Harness(durable=True)
    ask(h).drop()
    c = ask(h)
    c.expect_nothing()
    h.commit()
    assert c.expect(Connack).session_present


def test_packets_behind_a_waiting_connack_are_answered_after_it() -> None:
    # [MQTT-3.2.0-1] [MQTT-3.1.4-5]
    h = Harness(durable=True)
    unsaved(h)
    c = ask(h, raw.PINGREQ + raw.subscribe(5, b"u"))
    c.expect_nothing()
    h.commit()
    assert [type(p).__name__ for p in c.recv()] == ["Connack", "Pingresp", "Suback"]


def test_messages_for_a_waiting_connection_come_after_its_connack() -> None:
    # [MQTT-3.2.0-1] [MQTT-4.5.0-1]
    h = Harness(durable=True)
    unsaved(h)
    h.commit()
    h.client("pub").publish("t", b"queued", qos=1)
    c = ask(h)
    h.client("pub2").publish("t", b"live", qos=1)
    h.commit()
    got = c.recv()
    assert isinstance(got[0], Connack)
    assert [p.payload for p in got if isinstance(p, Publish)] == [b"queued", b"live"]


def test_waiting_connection_may_be_lost() -> None:
    # [MQTT-4.1.0-1]
    h = Harness(durable=True)
    unsaved(h)
    ask(h).drop()
    h.commit()
    c = ask(h)
    h.commit()
    assert c.expect(Connack).session_present
    assert alive(c)


def test_waiting_connection_may_be_taken_over() -> None:
    # [MQTT-3.1.4-3] [MQTT-3.14.0-1]: no DISCONNECT where there was no CONNACK
    h = Harness(durable=True)
    unsaved(h)
    first = ask(h)
    second = ask(h)
    h.commit()
    got = first.recv()
    assert first.closed
    if any(isinstance(p, Disconnect) for p in got):
        assert isinstance(got[0], Connack)
    assert second.expect(Connack).session_present
    assert alive(second)


def test_clean_start_during_a_commit_forgets_what_it_should() -> None:
    # [MQTT-3.1.2-4] [MQTT-3.2.2-2]
    h = Harness(durable=True)
    unsaved(h)
    c = h.open()
    c.send(Connect(client_id="c", properties=props(session_expiry_interval=60)))
    h.commit()
    assert not c.expect(Connack).session_present
    h.client("pub").publish("t", b"x", qos=1)
    h.commit()
    assert messages(c) == []
