"""Mosquitto's lines as rules."""

from typing import Any

import pytest
from mqttd_plugins._mqtt_lines import rules_of


def rule(direction: str, source: str, to: str, qos: int = 1) -> dict[str, Any]:
    return {"direction": direction, "from": source, "to": to, "qos": qos}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/#", [rule("out", "a/#", "{topic}", 0)]),
        ("a/# in 2", [rule("in", "a/#", "{topic}")]),
        ("a/# OUT 1", [rule("out", "a/#", "{topic}")]),
        (
            "# both 1 here/ far/off/",
            [
                rule("out", "here/#", "far/off/{topic[1:]}"),
                rule("in", "far/off/#", "here/{topic[2:]}"),
            ],
        ),
        ('+/x out 1 "" far/', [rule("out", "+/x", "far/{topic}")]),
        ('+/x out 1 here/ ""', [rule("out", "here/+/x", "{topic[1:]}")]),
        ("/x/# out 1 here far", [rule("out", "here/x/#", "far/{topic[1:]}")]),
        ('"" out 1 here/a far/b', [rule("out", "here/a", "far/b")]),
        ('"with blank/#" in 0', [rule("in", "with blank/#", "{topic}", 0)]),
    ],
)
def test_a_line_is_so_many_rules(line: str, expected: list[dict[str, Any]]) -> None:
    assert rules_of(line) == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "expected PATTERN"),
        ("a/# out 1 only", "expected PATTERN"),
        ("a/# sideways", "'sideways' is no direction"),
        ("a/# out 3", "'3' is no QoS"),
        ('"" out 1 here ""', "both prefixes are needed"),
        ("x/# out 1 here far", "has to end with a '/'"),
        ("x out 1 a/ {b}", "can't hold braces"),
    ],
)
def test_what_is_wrong_with_a_line(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rules_of(line)
