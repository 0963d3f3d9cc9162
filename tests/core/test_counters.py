"""Counters: everything begins at nothing, drops are told apart by their reason."""

from mqttd.core import counters as count
from mqttd.core.counters import Counters

REASONS = (
    count.DROP_OFFLINE_QOS0,
    count.DROP_SLOW_READER,
    count.DROP_QUEUE_FULL,
    count.DROP_EXPIRED,
    count.DROP_TOO_LARGE,
    count.DROP_SESSION_ENDED,
    count.DROP_REFUSED,
    count.DROP_NO_MEMBER,
    count.DROP_REDELIVERIES,
    count.DROP_REPLACED,
)


def test_everything_begins_at_nothing() -> None:
    made = Counters()
    assert made.dropped == {}
    assert made.matched == made.delivered == made.redelivered == 0
    assert made.connections == made.connections_total == made.clients_connected == 0
    assert made.bytes_received == made.bytes_sent == 0
    assert made.packets_received == made.packets_sent == 0
    assert made.publish_received == made.publish_sent == made.publish_refused == 0
    assert made.publish_received_qos1 == made.publish_received_qos2 == 0
    assert made.publish_sent_qos1 == made.publish_sent_qos2 == 0
    assert made.publish_bytes_received == made.publish_bytes_sent == 0
    assert made.clients_maximum == made.connects_accepted == 0
    assert made.refused == {}
    assert made.connects_refused == made.answers_too_large == made.protocol_errors == 0
    assert made.takeovers == made.sessions_expired == made.wills_published == 0
    assert made.hook_failures == made.bugs == 0


def test_drops_add_up_by_reason() -> None:
    made = Counters()
    made.drop(count.DROP_EXPIRED)
    made.drop(count.DROP_EXPIRED, 4)
    made.drop(count.DROP_QUEUE_FULL)
    assert made.dropped == {count.DROP_EXPIRED: 5, count.DROP_QUEUE_FULL: 1}


def test_the_most_clients_at_once() -> None:
    made = Counters()
    for _ in range(3):
        made.admit()
    made.clients_connected -= 2
    made.admit()
    assert (made.connects_accepted, made.clients_connected, made.clients_maximum) == (4, 2, 3)


def test_refusals_add_up_by_reason() -> None:
    made = Counters()
    made.refuse(count.REFUSED_TIMEOUT)
    made.refuse(count.REFUSED_HANDSHAKE)
    made.refuse(count.REFUSED_HANDSHAKE)
    assert made.refused == {count.REFUSED_TIMEOUT: 1, count.REFUSED_HANDSHAKE: 2}
    assert made.connects_refused == 3


def test_two_brokers_count_apart() -> None:
    first, second = Counters(), Counters()
    first.drop(count.DROP_EXPIRED)
    assert second.dropped == {}


def test_reasons_are_words_that_differ() -> None:
    """They become label values: lower case, no blanks."""
    assert len(set(REASONS)) == len(REASONS)
    for reason in REASONS:
        assert reason.replace("_", "").isalnum()
        assert reason == reason.lower()
