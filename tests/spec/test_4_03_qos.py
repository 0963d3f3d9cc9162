"""Quality of service (4.3): the three exchanges, each seen from both ends, and the commit barrier.

In the first part the broker is the receiver, in the second the sender, in the third both at
once. The last part runs with a journal that commits only when the test says so: an
acknowledgement is a promise, so it leaves after the commit that holds what it promises.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from tests.harness import Harness
from tests.spec.kit import (
    by_hand,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    send_publish,
)


@each_version
def test_qos_0_is_delivered_without_an_answer(version: int) -> None:
    # [MQTT-4.3.1-1] [MQTT-3.3.4-1]
    h = Harness()
    sub, pub = h.client("sub", version=version), h.client("pub", version=version)
    sub.subscribe("t", qos=2)
    send_publish(pub, "t", b"m")
    pub.expect_nothing()
    got = one(sub)
    assert (got.payload, got.qos, got.dup) == (b"m", 0, False)


@each_version
@pytest.mark.parametrize("packet_id", [1, 2, 65535])
def test_qos_1_is_acknowledged_with_its_identifier(version: int, packet_id: int) -> None:
    # [MQTT-4.3.2-4] [MQTT-2.2.1-5]
    h = Harness()
    pub = manual(h.client("pub", version=version))
    send_publish(pub, "t", qos=1, packet_id=packet_id)
    assert pub.expect(Puback).packet_id == packet_id


@each_version
@pytest.mark.parametrize("dup", [False, True])
def test_acknowledged_qos_1_identifier_means_a_new_message(version: int, dup: bool) -> None:
    # [MQTT-4.3.2-5]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    pub = h.client("pub", version=version)
    publish(pub, "t", b"1", qos=1, packet_id=5)
    publish(pub, "t", b"2", qos=1, packet_id=5, dup=dup)
    assert payloads(sub) == [b"1", b"2"]


@each_version
def test_qos_2_is_received_in_four_steps(version: int) -> None:
    # [MQTT-4.3.3-8] [MQTT-4.3.3-11] [MQTT-2.2.1-5]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = manual(h.client("pub", version=version))
    send_publish(pub, "t", b"m", qos=2, packet_id=9)
    assert pub.expect(Pubrec).packet_id == 9
    pub.send(Pubrel(9))
    comp = pub.expect(Pubcomp)
    assert (comp.packet_id, comp.reason) == (9, 0)
    assert payloads(sub) == [b"m"]


@each_version
@pytest.mark.parametrize("dup", [False, True])
def test_repeated_qos_2_publish_is_answered_and_delivered_once(version: int, dup: bool) -> None:
    # [MQTT-4.3.3-10]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = manual(h.client("pub", version=version))
    for _ in range(3):
        send_publish(pub, "t", b"m", qos=2, packet_id=9, dup=dup)
        rec = pub.expect(Pubrec)
        assert (rec.packet_id, rec.reason) == (9, 0)
    pub.send(Pubrel(9))
    pub.expect(Pubcomp)
    assert payloads(sub) == [b"m"]


@each_version
def test_repeated_pubrel_is_answered_again(version: int) -> None:
    # [MQTT-4.3.3-11]
    h = Harness()
    pub = manual(h.client("pub", version=version))
    send_publish(pub, "t", qos=2, packet_id=9)
    pub.expect(Pubrec)
    for _ in range(2):
        pub.send(Pubrel(9))
        assert pub.expect(Pubcomp).packet_id == 9


@each_version
@pytest.mark.parametrize("dup", [False, True])
def test_completed_qos_2_identifier_means_a_new_message(version: int, dup: bool) -> None:
    # [MQTT-4.3.3-12]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = h.client("pub", version=version)
    publish(pub, "t", b"1", qos=2, packet_id=5)
    publish(pub, "t", b"2", qos=2, packet_id=5, dup=dup)
    assert payloads(sub) == [b"1", b"2"]


@each_version
def test_several_qos_2_exchanges_run_at_once(version: int) -> None:
    # [MQTT-4.3.3-8] [MQTT-4.3.3-11]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = manual(h.client("pub", version=version))
    for n in (3, 1, 2):
        send_publish(pub, "t", bytes([n]), qos=2, packet_id=n)
    assert [p.packet_id for p in pub.recv() if isinstance(p, Pubrec)] == [3, 1, 2]
    for n in (2, 3, 1):
        pub.send(Pubrel(n))
    assert [p.packet_id for p in pub.recv() if isinstance(p, Pubcomp)] == [2, 3, 1]
    assert payloads(sub) == [b"\x03", b"\x01", b"\x02"]


@each_version
def test_received_qos_2_identifier_outlives_the_connection(version: int) -> None:
    # [MQTT-4.3.3-10] [MQTT-4.1.0-1]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = by_hand(h, "pub", version)
    send_publish(pub, "t", b"m", qos=2, packet_id=9)
    pub.expect(Pubrec)
    pub.drop()
    pub = by_hand(h, "pub", version)
    send_publish(pub, "t", b"m", qos=2, packet_id=9, dup=True)
    assert pub.expect(Pubrec).packet_id == 9
    pub.send(Pubrel(9))
    assert pub.expect(Pubcomp).reason == 0
    assert payloads(sub) == [b"m"]


@each_version
def test_pubrel_after_a_reconnect_completes_the_exchange(version: int) -> None:
    # [MQTT-4.3.3-11] [MQTT-4.4.0-1]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = by_hand(h, "pub", version)
    send_publish(pub, "t", b"m", qos=2, packet_id=9)
    pub.expect(Pubrec)
    pub.drop()
    pub = by_hand(h, "pub", version)
    pub.send(Pubrel(9))
    comp = pub.expect(Pubcomp)
    assert (comp.packet_id, comp.reason) == (9, 0)
    assert payloads(sub) == [b"m"]


@each_version
def test_clean_start_forgets_received_qos_2_identifiers(version: int) -> None:
    # [MQTT-3.1.2-4] [MQTT-4.3.3-10]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    pub = by_hand(h, "pub", version)
    send_publish(pub, "t", b"1", qos=2, packet_id=9)
    pub.expect(Pubrec)
    pub.drop()
    publish(h.client("pub", version=version), "t", b"2", qos=2, packet_id=9)
    assert payloads(sub) == [b"1", b"2"]


def test_identifier_of_a_refused_qos_2_publish_means_a_new_message() -> None:
    # [MQTT-4.3.3-9] [MQTT-3.5.2-1]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    pub = manual(h.client("pub"))
    send_publish(pub, "$SYS/mine", b"refused", qos=2, packet_id=5)
    rec = pub.expect(Pubrec)
    assert (rec.packet_id, rec.reason) == (5, spec.NOT_AUTHORIZED)
    assert publish(pub, "t", b"m", qos=2, packet_id=5) == 0
    assert payloads(sub) == [b"m"]


def test_expired_qos_2_message_still_completes() -> None:
    # [MQTT-4.3.3-13]
    h = Harness()
    pub = manual(h.client("pub"))
    send_publish(pub, "t", qos=2, packet_id=9, expiry=1)
    pub.expect(Pubrec)
    h.advance(100)
    pub.send(Pubrel(9))
    comp = pub.expect(Pubcomp)
    assert (comp.packet_id, comp.reason) == (9, 0)


@each_version
@pytest.mark.parametrize("qos", [1, 2])
def test_outgoing_identifiers_are_non_zero_and_unused(version: int, qos: int) -> None:
    # [MQTT-2.2.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1]
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=qos)
    pub = h.client("pub", version=version)
    for _ in range(50):
        publish(pub, "t", qos=qos)
    got = messages(sub)
    assert len({m.packet_id for m in got}) == 50
    assert all(m.packet_id and not m.dup for m in got)


def test_outgoing_identifier_in_use_is_skipped_when_the_numbers_wrap() -> None:
    # [MQTT-2.2.1-4]
    version = 5  # numbers know no version, and it takes them all
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=1)
    pub = h.client("pub", version=version)
    publish(pub, "t", qos=1)
    kept = one(sub).packet_id
    sub.auto_ack = True
    seen: set[int] = set()
    for start in range(0, 66_000, 1000):
        for n in range(1000):
            send_publish(pub, "t", qos=1, packet_id=(start + n) % 1000 + 1)
        seen.update(m.packet_id for m in messages(sub))
        pub.recv()
    assert kept not in seen
    assert 0 not in seen
    assert len(seen) <= 65534


@each_version
def test_sent_qos_1_message_stays_unacknowledged_until_its_puback(version: int) -> None:
    # [MQTT-4.3.2-2] [MQTT-4.3.2-3]
    h = Harness()
    sub = by_hand(h, "sub", version)
    sub.subscribe("t", qos=1)
    pub = h.client("pub", version=version)
    publish(pub, "t", b"1", qos=1)
    publish(pub, "t", b"2", qos=1)
    first, second = messages(sub)
    assert not first.dup
    sub.send(Puback(second.packet_id))
    sub.drop()
    sub = by_hand(h, "sub", version)
    assert one(sub).packet_id == first.packet_id
    sub.send(Puback(first.packet_id))
    sub.drop()
    persistent(h, "sub", version).expect_nothing()


@each_version
def test_qos_2_is_sent_in_four_steps(version: int) -> None:
    # [MQTT-4.3.3-2] [MQTT-4.3.3-3] [MQTT-4.3.3-4] [MQTT-4.3.3-5] [MQTT-2.2.1-5]
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=2)
    publish(h.client("pub", version=version), "t", b"m", qos=2)
    got = sub.expect(Publish)
    assert (got.qos, got.dup, got.payload) == (2, False, b"m")
    sub.expect_nothing()
    sub.send(Pubrec(got.packet_id))
    assert sub.expect(Pubrel).packet_id == got.packet_id
    sub.send(Pubcomp(got.packet_id))
    sub.expect_nothing()


def test_error_pubrec_gets_no_pubrel_and_frees_the_identifier() -> None:
    # [MQTT-4.3.3-4] [MQTT-4.4.0-2]
    h = Harness()
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t", qos=2)
    pub = h.client("pub")
    publish(pub, "t", b"1", qos=2)
    publish(pub, "t", b"2", qos=2)
    sub.send(Pubrec(sub.expect(Publish).packet_id, spec.QUOTA_EXCEEDED))
    assert sub.expect(Publish).payload == b"2"


def test_pubrec_no_matching_subscribers_counts_as_success() -> None:
    # [MQTT-4.3.3-4] [MQTT-3.5.2-1]
    h = Harness()
    sub = manual(h.client("sub"))
    sub.subscribe("t", qos=2)
    publish(h.client("pub"), "t", qos=2)
    got = sub.expect(Publish)
    sub.send(Pubrec(got.packet_id, spec.NO_MATCHING_SUBSCRIBERS))
    rel = sub.expect(Pubrel)
    assert (rel.packet_id, rel.reason) == (got.packet_id, 0)


def test_pubcomp_with_an_error_ends_the_exchange() -> None:
    # [MQTT-4.3.3-5]
    h = Harness()
    sub = by_hand(h, "sub")
    sub.subscribe("t", qos=2)
    publish(h.client("pub"), "t", qos=2)
    got = sub.expect(Publish)
    sub.send(Pubrec(got.packet_id))
    sub.expect(Pubrel)
    sub.send(Pubcomp(got.packet_id, spec.PACKET_IDENTIFIER_NOT_FOUND))
    sub.drop()
    persistent(h, "sub").expect_nothing()


@each_version
@pytest.mark.parametrize("outgoing", [1, 2])
@pytest.mark.parametrize("incoming", [1, 2])
def test_both_ends_may_use_the_same_identifier_at_once(
    version: int, outgoing: int, incoming: int
) -> None:
    # [MQTT-2.2.1-4] [MQTT-2.2.1-5]
    h = Harness()
    c = manual(h.client("c", version=version))
    c.subscribe("to c", qos=outgoing)
    other = h.client("other", version=version)
    other.subscribe("from c", qos=2)
    publish(other, "to c", b"out", qos=outgoing)
    packet_id = c.expect(Publish).packet_id

    send_publish(c, "from c", b"in", qos=incoming, packet_id=packet_id)
    ack = c.expect(Puback) if incoming == 1 else c.expect(Pubrec)
    assert ack.packet_id == packet_id
    assert payloads(other) == [b"in"]

    if outgoing == 2:
        c.send(Pubrec(packet_id))
        assert c.expect(Pubrel).reason == 0
    if incoming == 2:
        c.send(Pubrel(packet_id))
        assert c.expect(Pubcomp).reason == 0
    if outgoing == 2:
        c.send(Pubcomp(packet_id))
    else:
        c.send(Puback(packet_id))
    c.expect_nothing()


@each_version
def test_subscribe_may_use_the_identifier_of_an_outgoing_publish(version: int) -> None:
    # [MQTT-2.2.1-6]
    h = Harness()
    c = manual(h.client("c", version=version))
    c.subscribe("t", qos=1)
    publish(h.client("pub", version=version), "t", qos=1)
    packet_id = c.expect(Publish).packet_id
    c.send(Subscribe(packet_id, [Filter("u", 1, False, False, 0)]))
    assert c.expect(Suback).packet_id == packet_id


# The commit barrier.


@pytest.mark.parametrize("qos", [1, 2])
def test_acknowledgement_waits_for_the_commit_of_a_persistent_subscriber(qos: int) -> None:
    # [MQTT-4.3.2-4] [MQTT-4.3.3-8]
    h = Harness(durable=True)
    sub = by_hand(h, "sub")
    sub.send(Subscribe(1, [Filter("t", qos, False, False, 0)]))
    h.commit()
    pub = manual(h.client("pub"))
    send_publish(pub, "t", qos=qos, packet_id=3)
    pub.expect_nothing()
    h.commit()
    ack = pub.expect(Puback) if qos == 1 else pub.expect(Pubrec)
    assert ack.packet_id == 3


def test_acknowledgement_waits_for_an_absent_persistent_subscriber() -> None:
    # [MQTT-4.3.2-4] [MQTT-4.5.0-1]
    h = Harness(durable=True)
    sub = by_hand(h, "sub")
    sub.send(Subscribe(1, [Filter("t", 1, False, False, 0)]))
    h.commit()
    sub.drop()
    h.commit()
    pub = manual(h.client("pub"))
    send_publish(pub, "t", qos=1, packet_id=3)
    pub.expect_nothing()
    h.commit()
    pub.expect(Puback)


def test_acknowledgement_waits_for_the_commit_of_a_retained_message() -> None:
    # [MQTT-4.3.2-4] [MQTT-3.3.1-5]
    h = Harness(durable=True)
    pub = manual(h.client("pub"))
    send_publish(pub, "t", qos=1, packet_id=3, retain=True)
    pub.expect_nothing()
    h.commit()
    pub.expect(Puback)


@pytest.mark.parametrize("qos", [1, 2])
def test_acknowledgement_leaves_at_once_when_nothing_durable_is_at_stake(qos: int) -> None:
    # [MQTT-4.3.2-4] [MQTT-4.3.3-8]
    h = Harness(durable=True)
    sub = h.client("sub")
    sub.subscribe("t", qos=qos)
    assert publish(h.client("pub"), "t", b"m", qos=qos) == 0
    assert payloads(sub) == [b"m"]


def test_qos_0_waits_for_no_commit() -> None:
    # [MQTT-4.3.1-1]
    h = Harness(durable=True)
    sub = by_hand(h, "sub")
    sub.send(Subscribe(1, [Filter("t", 2, False, False, 0)]))
    h.commit()
    sub.recv()
    pub = h.client("pub")
    send_publish(pub, "t", b"m")
    assert payloads(sub) == [b"m"]


def test_qos_2_reaches_subscribers_after_the_commit() -> None:
    # [MQTT-4.3.3-8] [MQTT-4.3.3-10]
    h = Harness(durable=True)
    sub = by_hand(h, "sub")
    sub.send(Subscribe(1, [Filter("t", 2, False, False, 0)]))
    transient = h.client("transient")
    transient.subscribe("t", qos=2)
    h.commit()
    sub.recv()
    pub = by_hand(h, "pub")
    h.commit()
    send_publish(pub, "t", b"m", qos=2, packet_id=3)
    assert messages(sub) == []
    assert messages(transient) == []
    h.commit()
    assert payloads(sub) == [b"m"]
    assert payloads(transient) == [b"m"]


def test_suback_of_a_persistent_session_waits_for_the_commit() -> None:
    # [MQTT-3.8.4-1]
    h = Harness(durable=True)
    c = persistent(h, "c")
    h.commit()
    c.recv()
    c.send(Subscribe(1, [Filter("t", 1, False, False, 0)]))
    c.expect_nothing()
    h.commit()
    assert c.expect(Suback).packet_id == 1


def test_unsuback_of_a_persistent_session_waits_for_the_commit() -> None:
    # [MQTT-3.10.4-4]
    h = Harness(durable=True)
    c = persistent(h, "c")
    c.send(Subscribe(1, [Filter("t", 1, False, False, 0)]))
    h.commit()
    c.recv()
    c.send(Unsubscribe(2, ["t"]))
    c.expect_nothing()
    h.commit()
    assert c.expect(Unsuback).packet_id == 2


def test_pubcomp_of_a_persistent_session_waits_for_the_commit() -> None:
    # [MQTT-4.3.3-11] [MQTT-4.3.3-12]
    h = Harness(durable=True)
    pub = by_hand(h, "pub")
    h.commit()
    send_publish(pub, "t", qos=2, packet_id=3)
    h.commit()
    pub.expect(Pubrec)
    pub.send(Pubrel(3))
    pub.expect_nothing()
    h.commit()
    assert pub.expect(Pubcomp).packet_id == 3


def test_acknowledgements_keep_their_order_across_the_barrier() -> None:
    # [MQTT-4.6.0-2] [MQTT-4.3.2-4]
    h = Harness(durable=True)
    sub = by_hand(h, "sub")
    sub.send(Subscribe(1, [Filter("durable", 1, False, False, 0)]))
    h.commit()
    pub = manual(h.client("pub"))
    for packet_id, topic in ((1, "durable"), (2, "nobody"), (3, "durable"), (4, "nobody")):
        send_publish(pub, topic, qos=1, packet_id=packet_id)
    pub.expect_nothing()
    h.commit()
    assert [p.packet_id for p in pub.recv() if isinstance(p, Puback)] == [1, 2, 3, 4]


def test_repeated_qos_2_publish_before_the_commit_is_delivered_once() -> None:
    # [MQTT-4.3.3-10]
    h = Harness(durable=True)
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    pub = by_hand(h, "pub")
    h.commit()
    for _ in range(2):
        send_publish(pub, "t", b"m", qos=2, packet_id=3)
    h.commit()
    pub.send(Pubrel(3))
    h.commit()
    assert payloads(sub) == [b"m"]
    got = pub.recv()
    assert [type(p) for p in got] == [Pubrec, Pubrec, Pubcomp]


def test_publisher_that_leaves_before_the_commit_still_has_its_message_delivered() -> None:
    # [MQTT-4.5.0-1]
    h = Harness(durable=True)
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    pub = by_hand(h, "pub")
    h.commit()
    send_publish(pub, "t", b"m", qos=2, packet_id=3)
    pub.drop()
    h.commit()
    assert payloads(sub) == [b"m"]
