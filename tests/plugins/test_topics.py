"""Topics in configurations and in messages."""

import pytest
from mqttd_plugins._topics import check_filter, check_target, split_delayed


@pytest.mark.parametrize(
    ("topic", "front"),
    [
        ("$delayed/5/a/b", "$delayed/5/"),
        ("$delayed/0/$SYS/x", "$delayed/0/"),
        ("$delayed/5//a", "$delayed/5/"),
        ("$delayed/5/\n", "$delayed/5/"),
        ("$delayed/5/", ""),
        ("$delayed/5", ""),
        ("$delayed/x/a", ""),
        ("$delayed/12345678901/a", ""),
        ("$delayed/\u0665/a", ""),
        ("a/$delayed/5/b", ""),
        ("$delayedx/5/a", ""),
    ],
)
def test_what_stands_in_front_of_a_topic(topic: str, front: str) -> None:
    assert split_delayed(topic) == (front, topic.removeprefix(front))


@pytest.mark.parametrize("text", ["", "a/#/b", "a+", "$share/g/a"])
def test_filters_that_cant_be_meant(text: str) -> None:
    check_filter("a/+/#")
    with pytest.raises(ValueError, match=r"no topic filter|GROUP/ away"):
        check_filter(text)


@pytest.mark.parametrize("text", ["", "a/+", "$SYS", "$SYS/x"])
def test_targets_that_cant_be_meant(text: str) -> None:
    check_target("$SYSTEM/a")
    with pytest.raises(ValueError, match=r"no topic:|nobody but the broker"):
        check_target(text)
