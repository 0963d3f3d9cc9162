"""Packets compare by value, print what they are, and share nothing by default."""

import pytest

from mqttd.core.packets import (
    Connack,
    Connect,
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Pubrec,
    Record,
    Subscribe,
    Unsuback,
    Will,
)
from tests.core.vectors import GOOD, props


def test_equal_by_value() -> None:
    assert Publish("a", b"x", 1, packet_id=3) == Publish("a", b"x", 1, packet_id=3)
    assert Publish("a", b"x") != Publish("a", b"y")
    assert Puback(1) != Pubrec(1)
    assert Puback(1) != 1
    assert Pingreq() == Pingreq()
    assert Pingreq() != Pingresp()
    assert Subscribe(1, [Filter("a", 1)]) == Subscribe(1, [Filter("a", 1)])
    assert Subscribe(1, [Filter("a", 1)]) != Subscribe(1, [Filter("a", 2)])


def test_the_key_of_a_publish_is_not_compared() -> None:
    assert Publish("a", key=b"a") == Publish("a")


def test_every_field_is_printed() -> None:
    for vector in GOOD:
        packet = vector.packet
        assert packet is not None
        assert packet == packet
        assert packet != Record()
        text = repr(packet)
        for name in packet.FIELDS:
            assert f"{name}=" in text


def test_no_hash() -> None:
    with pytest.raises(TypeError):
        hash(Puback(1))


def test_repr_names_the_fields() -> None:
    assert repr(Puback(1, 0x97)) == "Puback(packet_id=1, reason=151, properties=None)"
    assert repr(Pingreq()) == "Pingreq()"
    assert "topic='w'" in repr(Connect(will=Will("w")))


def test_repr_hides_passwords() -> None:
    text = repr(Connect(username="me", password=b"secret"))
    assert "secret" not in text
    assert "password=***" in text
    assert "password=None" in repr(Connect(username="me"))


def test_defaults_are_not_shared() -> None:
    Connect().properties.user_properties.append(("a", "b"))
    assert Connect().properties.user_properties == []
    Connack().properties.user_properties.append(("a", "b"))
    assert Connack().properties.user_properties == []
    Publish().subscription_ids.append(1)
    assert Publish().subscription_ids == []
    Unsuback(1).reasons.append(1)
    assert Unsuback(1).reasons == []


def test_given_values_are_kept() -> None:
    values = props(receive_maximum=3)
    assert Connect(properties=values).properties is values
    assert Connack(properties=values).properties is values
    assert Publish(subscription_ids=[5]).subscription_ids == [5]
    assert Unsuback(1, [17]).reasons == [17]
