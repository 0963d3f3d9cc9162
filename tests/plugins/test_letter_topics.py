"""Topics of dead letters: what is filled in, and what is no topic."""

import pytest
from mqttd_plugins._letter_topics import check, fill

PLACES = ("queue", "reason", "topic")


def test_each_place_is_filled_in_once() -> None:
    values = {"queue": "q", "reason": "{topic}", "topic": "t/{queue}"}
    assert fill("d/{queue}/{reason}/{topic}", **values) == "d/q/{topic}/t/{queue}"
    assert fill("d/{other}", **values) == "d/{other}"


def test_a_topic_that_would_be_too_long_is_none() -> None:
    assert fill("d/{topic}", topic="a" * 65533) == "d/" + "a" * 65533
    assert fill("d/{topic}", topic="a" * 65534) is None


@pytest.mark.parametrize("template", ["", "d/#", "d/+/{topic}", "d\0"])
def test_a_template_that_makes_no_topic_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"only {queue}, {reason}, {topic} are filled in"):
        check(template, PLACES)


def test_the_brokers_own_topics_are_refused() -> None:
    with pytest.raises(ValueError, match="belongs to the broker"):
        check("$SYS/{topic}", PLACES)
    check("$dlq/{reason}/{topic}", PLACES)
