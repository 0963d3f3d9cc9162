"""Packet identifiers towards one client: never 0, never one in use, in the order of sending."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core.inflight import QUEUED, RELEASED, SENT, SETTLED, Delivery, Window
from tests.core.rig import make_message
from tests.core.vectors import untimed


def delivery(payload: bytes = b"x", qos: int = 1) -> Delivery:
    return Delivery(make_message(payload, qos), qos, False, b"", None)


def test_a_delivery_begins_unsent_and_unknown_to_the_store() -> None:
    made = delivery(b"p", 2)
    assert made.message.payload == b"p"
    assert (made.qos, made.retain, made.identifiers, made.group) == (2, False, b"", None)
    assert (made.packet_id, made.state, made.sent) == (0, QUEUED, False)
    assert (made.barrier, made.journalled, made.serial, made.row) == (0, False, 0, 0)


def test_states_only_move_forward() -> None:
    assert QUEUED < SENT < RELEASED < SETTLED


def test_identifiers_count_from_1() -> None:
    """[MQTT-2.2.1-4]"""
    window = Window()
    deliveries = [delivery() for _ in range(3)]
    assert [window.add(each) for each in deliveries] == [1, 2, 3]
    assert [each.packet_id for each in deliveries] == [1, 2, 3]
    assert window.get(2) is deliveries[1]


def test_an_identifier_is_not_used_again_at_once() -> None:
    """A late acknowledgement of the old exchange can so not end the new one."""
    window = Window()
    for _ in range(5):
        packet_id = window.add(delivery())
        window.pop(packet_id)
    assert packet_id == 5


def test_identifiers_wrap_around_0() -> None:
    """[MQTT-2.2.1-4] non-zero."""
    window = Window()
    for _ in range(65535):
        last = window.add(delivery())
        window.pop(last)
    assert last == 65535
    assert window.add(delivery()) == 1


def test_identifiers_in_use_are_skipped() -> None:
    """[MQTT-2.2.1-4] not currently in use."""
    window = Window()
    for _ in range(3):
        window.add(delivery())
    for _ in range(65532):
        window.pop(window.add(delivery()))
    window.pop(2)
    assert window.add(delivery()) == 2  # 1 and 3 are taken
    assert window.add(delivery()) == 4


def test_a_window_is_full_with_every_identifier_in_use() -> None:
    window = Window()
    one = delivery()
    for _ in range(65534):
        window.add(one)
    assert not window.full()
    window.add(one)
    assert window.full()
    assert set(window.deliveries) == set(range(1, 65536))
    window.pop(40000)
    assert not window.full()
    assert window.add(one) == 40000  # the search finds the one gap


def test_restored_identifiers_stay_what_they_were() -> None:
    """[MQTT-4.4.0-1] The numbering goes on behind the one that was sent last."""
    window = Window()
    for packet_id in (9, 3, 5):
        restored = delivery()
        restored.packet_id = packet_id
        window.restore(restored)
    assert list(window.deliveries) == [9, 3, 5]
    assert [window.add(delivery()) for _ in range(4)] == [6, 7, 8, 10]


@pytest.mark.parametrize("packet_id", [0, 2, 65535])
def test_an_unknown_identifier_is_an_answer_too(packet_id: int) -> None:
    window = Window()
    window.add(delivery())
    assert window.get(packet_id) is None
    assert window.pop(packet_id) is None
    assert len(window.deliveries) == 1


def test_an_identifier_that_is_in_use_can_be_given_up() -> None:
    window = Window()
    window.add(delivery())
    window.add(delivery())
    window.remove(1)
    assert list(window.deliveries) == [2]
    with pytest.raises(KeyError):
        window.remove(1)


def test_identifiers_are_skipped_also_after_a_whole_round() -> None:
    """[MQTT-2.2.1-4] What was free when the round began may be in use at its end."""
    window = Window()
    first = delivery()
    window.add(first)
    for _ in range(65534):
        window.pop(window.add(delivery()))
    assert window.add(delivery()) == 2
    assert window.get(1) is first


@untimed
@given(st.lists(st.integers(min_value=0, max_value=9), max_size=60))
def test_the_order_of_sending_is_kept_whatever_is_acknowledged(moves: list[int]) -> None:
    """[MQTT-4.4.0-1] relies on it: 0 adds, any other number acknowledges the nth oldest."""
    window = Window()
    model: list[Delivery] = []
    for move in moves:
        if move == 0 or move > len(model):
            added = delivery()
            window.add(added)
            model.append(added)
        else:
            gone = model.pop(move - 1)
            assert window.pop(gone.packet_id) is gone
        assert list(window.deliveries.values()) == model
        assert all(packet_id == each.packet_id for packet_id, each in window.deliveries.items())
