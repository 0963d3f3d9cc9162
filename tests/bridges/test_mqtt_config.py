"""The configuration of `bridge_mqtt`: what is refused, with the place of the rule."""

from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins._mqtt_config import Config

from mqttd.config import ConfigError, load_config
from mqttd.hooks.loader import prepare
from tests.bridges.kit import back, out
from tests.bridges.mqtt_kit import BRIDGE


def config(**more: Any) -> Config:
    return Config.model_validate({"addresses": ["far"], **more})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "rules: none"),
        ({"addresses": []}, "at least 1"),
        ({"topics": ["#"], "addresses": ["far:0"]}, "'far:0' is no address"),
        ({"topics": ["# sideways"]}, "'sideways' is no direction"),
        ({"topics": ["a/#/b out 1"]}, r"topics\[0\]: .*from: 'a/#/b' is no topic filter"),
        ({"topics": ["#"], "password_file": "x"}, "a password needs a username"),
        ({"topics": ["#"], "tls": {"key": "x"}}, "a key needs a cert"),
        ({"topics": ["#"], "bridge_bit": True}, "MQTT 5 has No Local instead"),
        ({"topics": ["#"], "session_expiry": 0}, "session_expiry is above 0"),
        ({"rules": [back("a"), back("a", "b")]}, r"rules\[1\]: the same filter as rules\[0\]"),
        ({"topics": ["a in", "a in"]}, r"topics\[1\]: the same filter as topics\[0\]"),
        (
            {"version": "3.1.1", "rules": [back("a/#"), back("a/b", "b")]},
            r"rules\[1\]: its filter overlaps with rules\[0\]",
        ),
        ({"version": "3.1.1", "topics": ["a/# both 1"]}, r"topics\[0\] and topics\[0\]: a loop"),
        (
            {"version": "3.1.1", "rules": [out("a/#"), back("a/b", "a/c")]},
            r"rules\[0\] and rules\[1\]: a loop: .* or use version 5, or bridge_bit",
        ),
        ({"rules": [out("a", "x/+")]}, "holds a wildcard"),
    ],
)
def test_what_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**more)


@pytest.mark.parametrize(
    "more",
    [
        {"topics": ["# both 1"]},
        {"topics": ["# both 1"], "version": "3.1.1", "bridge_bit": True},
        {"topics": ['# out 1 "" up/', '# in 1 down/ ""'], "version": "3.1.1", "bridge_bit": True},
        {"rules": [out("a/#", "up/{topic}"), back("b/#", "c/{topic}")], "version": "3.1.1"},
    ],
)
def test_what_is_no_loop(more: dict[str, Any]) -> None:
    assert config(**more).all_rules()


def test_a_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mqttd.yaml"
    file.write_text(
        "plugins:\n"
        f"  - use: {BRIDGE}\n"
        "    config:\n"
        "      addresses: [far]\n"
        "      rules:\n"
        "        - {direction: out, from: a/#}\n"
        "        - {direction: out, from: a/+, to: 'x/{topic[2]}'}\n"
    )
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(file))
    (problem,) = caught.value.problems
    assert problem.line == 7
    assert "promises 2 levels" in str(problem)
