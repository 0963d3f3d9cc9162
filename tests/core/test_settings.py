"""Settings: the defaults hold together, and belong to one broker each."""

from mqttd.core import spec
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST, NEVER, Settings


def test_defaults_are_values_that_the_protocol_allows() -> None:
    """[MQTT-3.2.2-9] and the ranges of the CONNACK properties."""
    made = Settings()
    assert 1 <= made.receive_maximum <= spec.MAX_U16
    assert 1 <= made.max_inflight <= spec.MAX_U16
    assert 0 <= made.topic_alias_maximum <= spec.MAX_U16
    assert 0 <= made.max_keep_alive <= spec.MAX_U16
    assert 0 <= made.session_expiry_max <= NEVER
    assert 0 < made.max_connect_size <= made.max_packet_size <= spec.MAX_VARINT
    assert made.connect_timeout > 0
    assert made.queue_overflow in (DROP_NEWEST, DROP_OLDEST)


def test_nothing_is_without_a_bound_by_default() -> None:
    made = Settings()
    assert made.max_queued_messages > 0
    assert made.max_subscriptions > 0
    assert made.max_topic_levels > 0
    assert made.write_buffer > 0
    assert made.session_expiry_max != NEVER
    assert not made.queue_qos0


def test_never_is_the_largest_interval() -> None:
    assert NEVER == spec.MAX_U32


def test_each_broker_has_settings_of_its_own() -> None:
    changed, other = Settings(), Settings()
    changed.receive_maximum = 1
    changed.queue_overflow = DROP_OLDEST
    assert other.receive_maximum == 1024
    assert other.queue_overflow == DROP_NEWEST
