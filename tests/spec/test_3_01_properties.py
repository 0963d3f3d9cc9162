"""Keep alive (3.1.2.10) and the properties of CONNECT (3.1.2.11)."""

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Connack,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Unsuback,
    Unsubscribe,
)
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import (
    alive,
    dropped,
    each_version,
    manual,
    messages,
    one,
    payloads,
    props,
    publish,
    refused,
    settings,
    size_of,
)

# --- keep alive ---


@each_version
def test_silence_of_one_and_a_half_keep_alives_closes(version: int) -> None:
    # [MQTT-3.1.2-22] [MQTT-3.2.2-22]
    h = Harness()
    c = h.client("c", version=version, keep_alive=10)
    h.advance(14.9)
    assert not c.closed
    h.advance(1.1)
    refused(c, (spec.KEEP_ALIVE_TIMEOUT,))


@each_version
def test_client_that_pings_in_time_stays(version: int) -> None:
    # [MQTT-3.1.2-22]
    h = Harness()
    c = h.client("c", version=version, keep_alive=10)
    for _ in range(20):
        h.advance(14)
        assert alive(c)


@each_version
def test_any_packet_counts_as_a_sign_of_life(version: int) -> None:
    # [MQTT-3.1.2-22]: a control packet, not only PINGREQ
    h = Harness()
    c = manual(h.client("c", version=version, keep_alive=10))
    for packet in (
        raw.publish(version, b"t"),
        raw.subscribe(version, b"t"),
        raw.unsubscribe(version, b"t"),
        raw.publish(version, b"t"),
    ):
        h.advance(14)
        c.send_raw(packet)
    assert not c.closed


@each_version
def test_part_of_a_packet_is_no_sign_of_life(version: int) -> None:
    # [MQTT-3.1.2-22]: a client that drips bytes sends no control packet
    h = Harness()
    c = h.client("c", version=version, keep_alive=10)
    for byte in raw.frame(0x30, bytes(100))[:20]:
        c.send_raw(bytes([byte]))
        h.advance(2)
    assert c.closed


@each_version
def test_keep_alive_0_is_off(version: int) -> None:
    # 3.1.2.10
    h = Harness()
    c = h.client("c", version=version, keep_alive=0)
    h.advance(30 * 86_400)
    assert alive(c)


@each_version
def test_what_the_server_sends_is_no_sign_of_life(version: int) -> None:
    # [MQTT-3.1.2-22]
    h = Harness()
    c = h.client("c", version=version, keep_alive=10)
    c.subscribe("t")
    pub = h.client("pub")
    for _ in range(16):
        h.advance(1)
        pub.publish("t", b"x")
    assert c.closed


@each_version
def test_longest_keep_alive_is_enforced(version: int) -> None:
    # [MQTT-3.1.2-22]: 65,535 seconds
    h = Harness()
    c = h.client("c", version=version, keep_alive=65_535)
    h.advance(98_302)
    assert not c.closed
    h.advance(2)
    assert c.closed


def test_session_outlives_a_keep_alive_timeout() -> None:
    # [MQTT-3.1.2-22] [MQTT-3.1.2-23]: closed as if the network had failed
    h = Harness()
    properties = props(session_expiry_interval=60)
    h.client("c", clean=False, keep_alive=10, properties=properties)
    h.advance(16)
    assert h.client("c", clean=False, properties=properties).connack.session_present


@pytest.mark.parametrize("asked", [0, 61, 3600, 65_535])
def test_server_keep_alive_replaces_a_longer_one(asked: int) -> None:
    # [MQTT-3.1.2-22] [MQTT-3.2.2-22]: 3.2.2.3.14; 0, no keep alive, is the longest
    h = Harness(settings(max_keep_alive=60))
    c = h.client("c", keep_alive=asked)
    assert c.connack.properties.server_keep_alive == 60
    h.advance(89)
    assert not c.closed
    h.advance(2)
    refused(c, (spec.KEEP_ALIVE_TIMEOUT,))


@pytest.mark.parametrize("asked", [1, 59, 60])
def test_server_keep_alive_is_absent_when_the_clients_is_good(asked: int) -> None:
    # [MQTT-3.2.2-22]
    h = Harness(settings(max_keep_alive=60))
    c = h.client("c", keep_alive=asked)
    assert c.connack.properties.server_keep_alive is None
    h.advance(asked * 1.5 + 1)
    assert c.closed


# --- maximum packet size of the client ---


def small(h: Harness, limit: int, version: int = 5, **values: object) -> FakeClient:
    return h.client("small", version=version, properties=props(maximum_packet_size=limit, **values))


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_nothing_larger_than_the_clients_limit_is_sent(qos: int) -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-25]
    h = Harness()
    c = small(h, 60)
    c.subscribe("t", qos=qos)
    pub = h.client("pub")
    for packet_id, size in enumerate((10, 200, 20), 1):
        publish(pub, "t", b"x" * size, qos=qos, packet_id=packet_id)
    assert [len(p) for p in payloads(c)] == [10, 20]
    assert dropped(h) == 1


def test_message_at_the_clients_limit_is_sent() -> None:
    # [MQTT-3.1.2-24]
    h = Harness()
    whole = size_of(Publish("t", b"x" * 50))
    c = small(h, whole)
    c.subscribe("t")
    pub = h.client("pub")
    publish(pub, "t", b"x" * 50)
    publish(pub, "t", b"x" * 51)
    assert [len(p) for p in payloads(c)] == [50]


def test_message_too_large_for_one_reaches_the_others() -> None:
    # [MQTT-3.1.2-25]
    h = Harness()
    c = small(h, 60)
    c.subscribe("t")
    other = h.client("other")
    other.subscribe("t")
    publish(h.client("pub"), "t", b"x" * 200)
    assert messages(c) == []
    assert len(messages(other)) == 1


def test_message_too_large_costs_no_quota_and_no_identifier() -> None:
    # [MQTT-3.1.2-25] [MQTT-4.9.0-2]
    h = Harness()
    c = manual(small(h, 60, receive_maximum=1))
    c.subscribe("t", qos=1)
    pub = h.client("pub")
    for packet_id in range(1, 6):
        publish(pub, "t", b"x" * 200, qos=1, packet_id=packet_id)
    publish(pub, "t", b"fits", qos=1, packet_id=6)
    got = c.expect(Publish)
    assert got.payload == b"fits"


def test_limit_counts_what_the_server_adds() -> None:
    # [MQTT-3.1.2-24]: subscription identifiers are part of the packet
    h = Harness()
    bare = size_of(Publish("t", b"x" * 20))
    c = small(h, bare + 1)
    c.subscribe("t", identifier=268_435_455)
    publish(h.client("pub"), "t", b"x" * 20)
    assert messages(c) == []
    d = h.client("d", properties=props(maximum_packet_size=bare + 1))
    d.subscribe("t")
    publish(h.client("pub"), "t", b"x" * 20)
    assert len(messages(d)) == 1


def test_queued_message_too_large_for_the_new_connection_is_dropped() -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-25]
    h = Harness()
    c = h.client("c", clean=False, properties=props(session_expiry_interval=60))
    c.subscribe("t", qos=1)
    c.drop()
    pub = h.client("pub")
    publish(pub, "t", b"x" * 200, qos=1, packet_id=1)
    publish(pub, "t", b"fits", qos=1, packet_id=2)
    back = h.client(
        "c",
        clean=False,
        properties=props(session_expiry_interval=60, maximum_packet_size=60),
    )
    assert payloads(back) == [b"fits"]


def test_inflight_message_too_large_for_the_new_connection_is_dropped() -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-25] [MQTT-4.4.0-1]
    h = Harness()
    c = manual(h.client("c", clean=False, properties=props(session_expiry_interval=60)))
    c.subscribe("t", qos=1)
    pub = h.client("pub")
    publish(pub, "t", b"x" * 200, qos=1, packet_id=1)
    assert len(messages(c)) == 1
    c.drop()
    publish(pub, "t", b"fits", qos=1, packet_id=2)
    back = h.client(
        "c",
        clean=False,
        properties=props(session_expiry_interval=60, maximum_packet_size=60, receive_maximum=1),
    )
    assert payloads(back) == [b"fits"]


def test_retained_message_too_large_is_not_sent() -> None:
    # [MQTT-3.1.2-24]
    h = Harness()
    pub = h.client("pub")
    publish(pub, "t/1", b"x" * 200, retain=True)
    publish(pub, "t/2", b"fits", retain=True)
    c = small(h, 60)
    c.subscribe("t/#")
    assert payloads(c) == [b"fits"]


# --- receive maximum and topic alias maximum of the client ---


@pytest.mark.parametrize("maximum", [1, 2, 10])
def test_clients_receive_maximum_bounds_what_is_in_flight(maximum: int) -> None:
    # [MQTT-3.3.4-9] [MQTT-4.9.0-1] [MQTT-4.9.0-2]
    h = Harness()
    c = manual(h.client("c", properties=props(receive_maximum=maximum)))
    c.subscribe("t", qos=2)
    pub = h.client("pub")
    for i in range(1, 21):
        publish(pub, "t", qos=1 + i % 2, packet_id=i)
    got = messages(c)
    assert len(got) == maximum
    c.send(Puback(got[0].packet_id) if got[0].qos == 1 else Pubrec(got[0].packet_id, 0x80))
    assert len(messages(c)) == 1


def test_receive_maximum_does_not_hold_qos_0() -> None:
    # [MQTT-3.3.4-10] [MQTT-4.9.0-3]
    h = Harness()
    c = manual(h.client("c", properties=props(receive_maximum=1)))
    c.subscribe("t", qos=1)
    pub = h.client("pub")
    publish(pub, "t", qos=1)
    c.recv()
    publish(pub, "t", b"now", qos=0)
    assert one(c).payload == b"now"
    assert alive(c)


def aliased(h: Harness, maximum: int | None) -> list[Publish]:
    """What a client with that Topic Alias Maximum gets of ten topics, five messages each."""
    properties = props() if maximum is None else props(topic_alias_maximum=maximum)
    c = h.client("c", properties=properties)
    c.subscribe("#")
    pub = h.client("pub")
    for _ in range(5):
        for topic in range(10):
            publish(pub, f"a/rather/long/topic/{topic}")
    return messages(c)


@pytest.mark.parametrize("maximum", [1, 3, 10, 65_535])
def test_outgoing_aliases_stay_within_the_clients_maximum(maximum: int) -> None:
    # [MQTT-3.1.2-26] [MQTT-3.3.2-11] [MQTT-3.3.2-8]
    got = aliased(Harness(), maximum)
    assert len(got) == 50
    assert all(0 <= p.topic_alias <= maximum for p in got)
    assert any(p.topic_alias for p in got)


@pytest.mark.parametrize("maximum", [None, 0])
def test_no_outgoing_alias_without_the_clients_consent(maximum: int | None) -> None:
    # [MQTT-3.1.2-27]
    got = aliased(Harness(), maximum)
    assert len(got) == 50
    assert not any(p.topic_alias for p in got)


# --- request response information ---


@pytest.mark.parametrize("asked", [None, 0, 1])
def test_response_information_is_sent_only_when_asked_for(asked: int | None) -> None:
    # [MQTT-3.1.2-28]
    h = Harness(settings(response_information="replies"))
    properties = props() if asked is None else props(request_response_information=asked)
    got = h.client("c", properties=properties).connack.properties.response_information
    assert (got is not None) is (asked == 1)
    assert got is None or "replies" in got


def test_response_information_can_be_subscribed_to() -> None:
    # 3.2.2.3.15: the basis of a response topic
    h = Harness()
    c = h.client("c", properties=props(request_response_information=1))
    base = c.connack.properties.response_information
    assert base
    c.subscribe(f"{base}/1")
    publish(h.client("pub"), f"{base}/1", b"answer")
    assert one(c).payload == b"answer"


# --- request problem information ---


def troubles(c: FakeClient) -> list[Record]:
    """Answers that report a problem, or could."""
    c.auto_ack = False
    c.send_raw(raw.subscribe(5, b"a", 1) + raw.subscribe(5, b"b", 2))
    c.send(Unsubscribe(3, ["nothing/here"]))
    c.send(Publish("nobody", b"", 1, packet_id=4))
    c.send(Publish("nobody", b"", 2, packet_id=5))
    c.send(Pubrel(5))
    c.send(Pubrel(6))
    c.send(Pubrec(7))
    return c.recv()


def test_no_problem_information_in_acknowledgements_when_not_wanted() -> None:
    # [MQTT-3.1.2-29]
    h = Harness(settings(max_subscriptions=1))
    c = h.client("c", properties=props(request_problem_information=0))
    answers = troubles(c)
    kinds = {type(p) for p in answers}
    assert {Suback, Unsuback, Puback, Pubrec, Pubcomp, Pubrel} <= kinds
    for p in answers:
        properties = getattr(p, "properties", None)
        assert properties is None or properties.reason_string is None, p
        assert properties is None or not properties.user_properties, p


def test_problem_information_0_leaves_the_user_properties_of_publish() -> None:
    # [MQTT-3.1.2-29] [MQTT-3.3.2-17]
    h = Harness()
    c = h.client("c", properties=props(request_problem_information=0))
    c.subscribe("t")
    pair = b"\x26\x00\x01k\x00\x01v"
    h.client("pub").send_raw(raw.publish(5, b"t", props=pair))
    assert one(c).properties == pair


# --- authentication ---


def test_authentication_data_without_a_method_is_a_protocol_error() -> None:
    # [MQTT-4.13.1-1]; 3.1.2.11.10
    c = Harness().open()
    c.send_raw(raw.connect(b"c", properties=b"\x16\x00\x01d"))
    raw.connect_refused(c, (spec.PROTOCOL_ERROR,))


def test_user_properties_of_connect_are_accepted() -> None:
    # 3.1.2.11.8: no meaning of their own
    c = Harness().open()
    c.send_raw(raw.connect(b"c", properties=b"\x26\x00\x01k\x00\x01v" * 50))
    assert c.expect(Connack).reason == 0
    c.send(Pingreq())
    assert not c.closed
