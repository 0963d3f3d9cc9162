"""Ways in which brokers were broken, tried on ours: identity, exchanges, state.

The second part of test_hostile; each test bears the name of the report it comes from.
"""

import random

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsubscribe,
    Will,
)
from mqttd.core.properties import Properties, decode_forwardable
from tests.harness import FakeClient, Harness
from tests.hostile_kit import Witness, attacker, growth
from tests.spec import raw
from tests.spec.kit import (
    MALFORMED,
    alive,
    by_hand,
    dropped,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    raw_props,
    refused,
    send_publish,
    settings,
)


def owner(h: Harness, version: int = 5) -> FakeClient:
    """Alice's persistent session, subscribed to "t"."""
    c = h.client(
        "victim",
        version=version,
        clean=False,
        username="alice",
        properties=props(session_expiry_interval=1000),
        auto_ack=False,
    )
    c.subscribe("t", qos=1)
    return c


def intruder(h: Harness, clean: bool, version: int = 5, username: str | None = "bob") -> FakeClient:
    """Another user with the same client id; what came of it is in the client's packets."""
    c = h.open(version)
    name = "MQIsdp" if version == 3 else "MQTT"
    c.send(
        Connect(
            name,
            version,
            clean,
            0,
            "victim",
            None,
            username,
            None,
            props(session_expiry_interval=1000),
        )
    )
    return c


def connack_code(c: FakeClient) -> int:
    answer = c.expect(Connack)
    return answer.reason


def back(h: Harness, version: int = 5) -> FakeClient:
    return h.client(
        "victim",
        version=version,
        clean=False,
        username="alice",
        properties=props(session_expiry_interval=1000),
        auto_ack=False,
    )


@each_version
@pytest.mark.parametrize("username", ["bob", None, "", "Alice"])
@pytest.mark.parametrize("online", [False, True])
def test_mosquitto_3551_other_user_cannot_destroy_a_session(
    version: int, username: str | None, online: bool
) -> None:
    """mosquitto #3551: another user connects with the victim's client id and clean start."""
    h = Harness()
    victim = owner(h, version)
    if not online:
        victim.drop()
    c = intruder(h, clean=True, version=version, username=username)
    assert connack_code(c) == (spec.NOT_AUTHORIZED if version == 5 else 5)
    assert c.closed
    if online:
        assert alive(victim)
        victim.drop()
    publish(h.client("pub"), "t", b"m", qos=1)
    again = back(h, version)
    assert version == 3 or again.connack.session_present
    assert payloads(again) == [b"m"]


@each_version
def test_mosquitto_3553_other_user_cannot_take_the_queue(version: int) -> None:
    """mosquitto #3553: another user resumes the victim's session and gets the queued messages."""
    h = Harness()
    owner(h, version).drop()
    publish(h.client("pub"), "t", b"secret", qos=1)
    c = intruder(h, clean=False, version=version)
    assert connack_code(c) == (spec.NOT_AUTHORIZED if version == 5 else 5)
    assert c.closed
    c.expect_nothing()
    assert payloads(back(h, version)) == [b"secret"]


def test_mochi_504_other_user_gets_no_unfinished_messages() -> None:
    """mochi #504: in-flight messages of a session are resent to another user."""
    h = Harness()
    victim = owner(h)
    publish(h.client("pub"), "t", b"secret", qos=1)
    assert payloads(victim) == [b"secret"]
    victim.drop()
    c = intruder(h, clean=False)
    assert connack_code(c) == spec.NOT_AUTHORIZED
    c.expect_nothing()
    assert [m.dup for m in messages(back(h))] == [True]


def test_nanomq_2333_refused_connect_has_no_effect_on_the_session() -> None:
    """NanoMQ #2333: clean start with wrong credentials deletes the session all the same."""
    h = Harness()
    victim = persistent(h, "victim")
    victim.subscribe("t", qos=1)
    c = h.open(allow_anonymous=False)
    c.send(Connect("MQTT", 5, True, 0, "victim", None, None, None, Properties()))
    assert connack_code(c) >= 0x80
    assert c.closed
    assert alive(victim)
    publish(h.client("pub"), "t", b"m", qos=1)
    assert payloads(victim) == [b"m"]


@each_version
def test_sol_17_second_connection_ends_the_first_before_its_connack(version: int) -> None:
    """sol #17: a second connection with the same id does not end the first."""
    h = Harness()
    first = h.client("same", version=version)
    second = h.open(version)
    ended_before_answer: list[bool] = []
    take = second.take

    def watch() -> None:
        ended_before_answer.append(first.closed)
        take()

    second.take = watch  # type: ignore[method-assign]
    name = "MQIsdp" if version == 3 else "MQTT"
    second.send(Connect(name, version, True, 0, "same", None, None, None, Properties()))
    assert second.expect(Connack).reason == 0
    assert ended_before_answer[0]
    refused(first, (spec.SESSION_TAKEN_OVER,))


@each_version
def test_mosquitto_1650_takeover_storm_loses_nothing(version: int) -> None:
    """mosquitto #1650: a persistent session is taken over while messages arrive."""
    h = Harness()
    rng = random.Random(7)
    c = by_hand(h, "same", version)
    c.subscribe("t", qos=1)
    pub = h.client("pub", version=version)
    got: list[bytes] = []
    for n in range(300):
        publish(pub, "t", n.to_bytes(2, "big"), qos=1)
        for m in messages(c):
            if rng.random() < 0.7:
                got.append(m.payload)
                c.send(Puback(m.packet_id))
        if rng.random() < 0.4:
            c = by_hand(h, "same", version)
    c = persistent(h, "same", version)
    got += payloads(c)
    assert sorted(set(got)) == [n.to_bytes(2, "big") for n in range(300)]
    assert dropped(h) == 0


def test_vernemq_571_takeovers_never_wedge() -> None:
    """VerneMQ #571, #1369: a queue stuck waiting for the old connection to go."""
    h = Harness()
    persistent(h, "same").subscribe("t", qos=1)
    pub = h.client("pub")
    for n in range(500):
        c = persistent(h, "same")
        publish(pub, "t", b"m", qos=1)
        assert payloads(c) == [b"m"], n
    assert len(h.broker.connections) == 2


def test_emqx_registry_is_what_is_connected() -> None:
    """EMQX registry leak: duplicate or stale entries for one client id after churn."""
    h = Harness()
    rng = random.Random(3)
    nodes = h.broker.trie.node_count
    for _ in range(500):
        c = h.client(f"c{rng.randrange(10)}")
        c.subscribe(f"t/{rng.randrange(5)}")
        if rng.random() < 0.5:
            c.drop()
    for n in range(10):
        h.client(f"c{n}").disconnect()
    assert not h.broker.sessions
    assert not h.broker.connections
    assert not h.clients
    assert h.broker.counters.clients_connected == 0
    assert h.broker.trie.node_count == nodes


@pytest.mark.parametrize("topic_filter", ["t", "t/#", "$share/g/t"])
def test_moquette_919_refused_subscription_delivers_nothing(topic_filter: str) -> None:
    """moquette PR 919: SUBACK says refused, the subscription is added all the same."""
    h = Harness(settings(max_subscriptions=1))
    c = h.client("c")
    c.subscribe("other")
    assert c.subscribe(topic_filter, qos=1).reasons == [spec.QUOTA_EXCEEDED]
    publish(h.client("pub"), "t", qos=1)
    assert messages(c) == []


@each_version
@pytest.mark.parametrize("bad", ["$share", "$share/", "$share/g", "$share//t", "$share/a+/t"])
def test_cve_2026_95843_malformed_shared_filter(version: int, bad: str) -> None:
    """CVE-2026-95843: malformed shared filters crash the command loop."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h, version)
    c.send(Subscribe(1, [Filter(bad, 0, False, False, 0)]))
    for p in c.recv():
        if isinstance(p, Suback):
            assert p.reasons == [spec.TOPIC_FILTER_INVALID if version == 5 else 0x80]
        elif isinstance(p, Disconnect):
            assert p.reason in (*MALFORMED, spec.TOPIC_FILTER_INVALID)
    assert witness.unharmed()


@each_version
@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_aedes_597_clients_do_not_write_reserved_topics(
    version: int, retain: bool, qos: int
) -> None:
    """aedes #597: a PUBLISH to $SYS makes the broker kick another client."""
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("$SYS/#", qos=2)
    pub = h.client("pub", version=version)
    send_publish(pub, "$SYS/x/new/clients", b"sub", qos, retain=retain)
    assert messages(sub) == []
    assert h.broker.retained.count == 0
    assert alive(sub)


@each_version
def test_aedes_597_wills_do_not_write_reserved_topics(version: int) -> None:
    """aedes #597: the same by a will."""
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("$SYS/#", qos=2)
    c = h.open(version)
    tail = raw.will(version, b"$SYS/x")
    c.send_raw(raw.connect(b"c", version=version, flags=raw.CLEAN | raw.WILL, tail=tail))
    c.drop()
    assert messages(sub) == []


def test_credentials_password_without_a_user_name() -> None:
    """v3/v5 credentials: a password without a user name is malformed in 3.1.1, allowed in 5."""
    h = Harness()
    flags = raw.CLEAN | raw.PASSWORD
    old = h.open(4)
    old.send_raw(raw.connect(version=4, flags=flags, tail=raw.text(b"p")))
    assert old.closed
    new = h.open(5)
    new.send_raw(raw.connect(flags=flags, tail=raw.text(b"p")))
    assert connack_code(new) == 0


@each_version
def test_cve_2026_8741_qos_2_is_stored_before_it_is_routed(version: int) -> None:
    """CVE-2026-8741: a QoS 2 message is routed before its identifier is stored."""
    h = Harness(durable=True)
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = by_hand(h, "pub", version)
    h.commit()
    send_publish(pub, "t", b"m", qos=2, packet_id=1)
    assert messages(sub) == []
    pub.drop()
    h.commit()
    pub = by_hand(h, "pub", version)
    h.commit()
    send_publish(pub, "t", b"m", qos=2, packet_id=1, dup=True)
    h.commit()
    pub.send(Pubrel(1))
    h.commit()
    assert payloads(sub) == [b"m"]


@each_version
def test_cve_2023_28366_repeated_qos_2_publish_leaks_nothing(version: int) -> None:
    """CVE-2023-28366: QoS 2 PUBLISH repeated with one identifier, PUBREC never answered."""
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = attacker(h, version)

    def attack() -> None:
        send_publish(pub, "t", b"m", qos=2, packet_id=1)
        pub.recv()
        pub.raw.clear()

    assert growth(h, attack, 2000) < 20
    pub.send(Pubrel(1))
    assert pub.expect(Pubcomp).reason == 0
    assert payloads(sub) == [b"m"]


@each_version
def test_vernemq_repeated_qos_2_publish_is_not_forwarded_again(version: int) -> None:
    """VerneMQ changelog, wolfMQTT #506: QoS 2 PUBLISH repeated before PUBREL is forwarded again."""
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = attacker(h, version)
    for dup in (False, True, True):
        send_publish(pub, "t", b"m", qos=2, packet_id=1, dup=dup)
        assert pub.expect(Pubrec).packet_id == 1
    assert payloads(sub) == [b"m"]


@each_version
def test_emqx_received_qos_2_identifier_is_never_timed_out(version: int) -> None:
    """EMQX t_qos2_dup_publish_not_redelivered_after_await_rel_expired."""
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = attacker(h, version)
    send_publish(pub, "t", b"m", qos=2, packet_id=1)
    h.advance(7 * 86400)
    send_publish(pub, "t", b"m", qos=2, packet_id=1, dup=True)
    pub.send(Pubrel(1))
    assert payloads(sub) == [b"m"]


@each_version
def test_vernemq_926_repeated_pubrec(version: int) -> None:
    """VerneMQ #926: PUBREC repeated by the subscriber crashes the session."""
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=2)
    publish(h.client("pub"), "t", qos=2)
    packet_id = sub.expect(Publish).packet_id
    for _ in range(5):
        sub.send(Pubrec(packet_id))
        assert sub.expect(Pubrel).reason == 0
    sub.send(Pubcomp(packet_id))
    sub.send(Pubcomp(packet_id))
    sub.send(Pubrec(packet_id))
    assert alive(sub)


@pytest.mark.parametrize("seed", range(20))
def test_cve_2024_8376_random_sequences_of_several_clients(seed: int) -> None:
    """CVE-2024-8376: sequences of CONNECT, DISCONNECT, SUBSCRIBE, UNSUBSCRIBE, PUBLISH leak or
    use freed memory."""
    h = Harness()
    rng = random.Random(seed)
    names = ("a", "b", "c")
    clients: dict[str, FakeClient] = {}
    for _ in range(400):
        name = rng.choice(names)
        c = clients.get(name)
        if c is None or c.closed:
            c = clients[name] = h.client(
                name,
                version=rng.choice((3, 4, 5)),
                clean=rng.random() < 0.5,
                properties=props(session_expiry_interval=rng.choice((0, 5, 500))),
                auto_ack=rng.random() < 0.5,
            )
        topic = rng.choice(("x", "x/y", "+", "#", "$share/g/x"))
        packet_id = rng.randrange(1, 5)
        action = rng.randrange(10)
        if action == 0:
            c.send(Disconnect())
        elif action == 1:
            c.send(Subscribe(packet_id, [Filter(topic, rng.randrange(3), False, False, 0)]))
        elif action == 2:
            c.send(Unsubscribe(packet_id, [topic]))
        elif action < 6:
            send_publish(c, rng.choice(("x", "x/y")), b"m", rng.randrange(3), packet_id)
        elif action == 6:
            c.send(rng.choice((Puback, Pubrec, Pubrel, Pubcomp))(packet_id))
        elif action == 7:
            del clients[name]
            c.drop()
        elif action == 8:
            h.advance(rng.choice((1, 10)))
        else:
            c.send_raw(raw.connect())
        c.recv()
    assert h.broker.counters.bugs == 0
    for name in names:
        h.client(name).disconnect()
    h.advance(1000)
    assert not h.broker.sessions
    assert not h.broker.connections


def test_cve_2025_59946_subscriptions_that_come_and_go_under_delivery() -> None:
    """CVE-2025-59946: subscribe and unsubscribe racing with delivery."""
    h = Harness()
    rng = random.Random(5)
    steady = h.client("steady")
    steady.subscribe("t/+", qos=1)
    churn = [h.client(f"c{n}") for n in range(50)]
    pub = h.client("pub")
    sent = 0
    for _ in range(500):
        c = rng.choice(churn)
        topic_filter = rng.choice(("t/1", "t/+", "#", "$share/g/t/#"))
        if rng.random() < 0.5:
            c.send(Subscribe(1, [Filter(topic_filter, 1, False, False, 0)]))
        else:
            c.send(Unsubscribe(1, [topic_filter]))
        publish(pub, f"t/{rng.randrange(3)}", b"m", qos=1)
        sent += 1
        c.recv()
    assert len(messages(steady)) == sent
    assert h.broker.counters.bugs == 0


@pytest.mark.parametrize(("delay", "expiry"), [(100, 10), (10, 100), (4294967295, 10)])
def test_cve_2019_11778_will_delay_longer_than_the_session(delay: int, expiry: int) -> None:
    """CVE-2019-11778: a will delay longer than the session expiry uses freed memory."""
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("will")
    will = Will("will", b"w", 0, False, delay, -1, b"")
    c = h.client("c", clean=False, will=will, properties=props(session_expiry_interval=expiry))
    c.drop()
    h.advance(min(delay, expiry) - 1)
    assert messages(sub) == []
    h.advance(2)
    assert payloads(sub) == [b"w"]
    h.advance(200)
    assert messages(sub) == []


def test_cve_2019_11778_takeover_cancels_both_timers() -> None:
    """CVE-2019-11778: neither the will nor the expiry of the old connection strikes later."""
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("will")
    will = Will("will", b"w", 0, False, 20, -1, b"")
    h.client("c", clean=False, will=will, properties=props(session_expiry_interval=10)).drop()
    h.advance(5)
    c = persistent(h, "c")
    h.advance(500)
    assert messages(sub) == []
    assert alive(c)


@pytest.mark.parametrize("first", ["payload format", "content type", "response", "correlation"])
def test_mosquitto_1_6_2_first_property_of_a_will(first: str) -> None:
    """mosquitto 1.6.2: a will whose first property is one of those a PUBLISH carries."""
    values = {
        "payload format": raw_props(payload_format_indicator=1),
        "content type": raw_props(content_type="c"),
        "response": raw_props(response_topic="r"),
        "correlation": raw_props(correlation_data=b"d"),
    }
    ordered = values[first] + b"".join(v for k, v in values.items() if k != first)
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("will")
    h.client("c", will=Will("will", b"w", 0, False, 0, -1, ordered)).drop()
    got = decode_forwardable(one(sub).properties)
    assert (got.payload_format_indicator, got.content_type) == (1, "c")
    assert (got.response_topic, got.correlation_data) == ("r", b"d")


@each_version
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x60\x02\x00\x01", id="PUBREL flags"),
        pytest.param(b"\x80\x06\x00\x01\x00\x01a\x00", id="SUBSCRIBE flags"),
        pytest.param(b"\x82\x02\x00\x01", id="SUBSCRIBE without a filter"),
        pytest.param(b"\xa2\x02\x00\x01", id="UNSUBSCRIBE without a filter"),
        pytest.param(b"\x32\x05\x00\x01t\x00\x00", id="PUBLISH identifier 0"),
        pytest.param(b"\xc0\x01\x00", id="PINGREQ with length"),
        pytest.param(b"\x40\x06\x00\x01\x00\x00\x00\x00", id="PUBACK with more"),
        pytest.param(b"\x36\x05\x00\x01t\x00\x01", id="QoS 3"),
    ],
)
def test_wolfmqtt_504_gaps(version: int, data: bytes) -> None:
    """wolfMQTT PR 504: twenty gaps between what the standard forbids and what was checked."""
    h = Harness()
    witness = Witness(h)
    c = attacker(h, version)
    c.send_raw(data)
    refused(c, MALFORMED)
    assert witness.unharmed()


@each_version
@pytest.mark.parametrize("first", [0x40, 0x50, 0x62, 0x70])
def test_wolfmqtt_607_acknowledgement_with_identifier_0(version: int, first: int) -> None:
    """wolfMQTT #607: PUBACK, PUBREC, PUBREL, PUBCOMP with packet id 0."""
    h = Harness()
    c = attacker(h, version)
    c.send_raw(bytes([first, 2, 0, 0]))
    refused(c, MALFORMED)


def test_labover_130_topic_alias_of_the_publisher_stays_here() -> None:
    """labover #130: the publisher's topic alias property leaks to subscribers."""
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=1)
    pub = h.client("pub")
    kept = raw_props(content_type="c", user_properties=[("k", "v")])
    publish(pub, "t", qos=1, alias=3, properties=kept)
    publish(pub, "", qos=1, alias=3, properties=kept)
    for m in messages(sub):
        assert (m.topic, m.topic_alias, m.properties) == ("t", 0, kept)
    assert b"\x23\x00\x03" not in bytes(sub.raw)


def test_mosquitto_3505_will_delay_without_a_session() -> None:
    """mosquitto #3505: session expiry 0 with a will delay: the will is due at once."""
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("will")
    h.client("c", will=Will("will", b"w", 0, False, 5, -1, b"")).drop()
    assert payloads(sub) == [b"w"]


@pytest.mark.parametrize("qos", [1, 2])
def test_emqx_order_holds_for_a_throttled_reader(qos: int) -> None:
    """EMQX: QoS 1 and 2 out of order under a delivery rate limit."""
    h = Harness(settings(write_buffer=500, max_inflight=3))
    sub = h.client("sub")
    sub.subscribe("t", qos=qos)
    pub = h.client("pub")
    for n in range(60):
        if n % 4 == 0:
            sub.pause()
        elif n % 4 == 3:
            sub.resume()
        publish(pub, "t", bytes([n]) * 100, qos=qos)
    sub.resume()
    assert [m.payload[0] for m in messages(sub)] == list(range(60))


@each_version
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_mosquitto_3503_packet_limit_of_the_broker_for_each_type(version: int, over: int) -> None:
    """mosquitto #3503, #3515: the maximum packet size applied wrongly to incoming packets."""
    limit = 300
    h = Harness(settings(max_packet_size=limit))
    room = limit + over - 3  # fixed header of three bytes
    block = raw.block(version)
    topic = room - 2 - len(block)
    packets = {
        "PUBLISH": raw.frame(0x30, raw.text(b"t") + block + b"x" * (topic - 1)),
        "SUBSCRIBE": raw.subscribe(version, b"t" * (topic - 3)),
        "UNSUBSCRIBE": raw.unsubscribe(version, b"t" * (topic - 2)),
    }
    for packet in packets.values():
        assert len(packet) == limit + over
        c = attacker(h, version)
        c.send_raw(packet)
        if over > 0:
            refused(c, (spec.PACKET_TOO_LARGE,))
        else:
            assert alive(c)


def test_cve_2026_95847_client_ids_that_look_alike_stay_apart() -> None:
    """CVE-2026-95847: client ids collide, and one session corrupts another."""
    h = Harness()
    names = ["id", "ID", "id ", " id", "\u00e9", "e\u0301", "id\u200b", "x" * 60000, "x" * 59999]
    for n, name in enumerate(names):
        c = persistent(h, name)
        assert not c.connack.session_present
        c.subscribe(f"t/{n}", qos=1)
        c.drop()
    pub = h.client("pub")
    for n in range(len(names)):
        publish(pub, f"t/{n}", bytes([n]), qos=1)
    for n, name in enumerate(names):
        assert payloads(persistent(h, name)) == [bytes([n])]
