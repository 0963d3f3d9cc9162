"""What a plugin waits for has to be over before its hooks count as failed."""

from typing import Any

import pytest
from mqttd_plugins import rate_limit

from mqttd.config import ConfigError, parse_yaml
from mqttd.hooks.loader import prepare

URL = "https://x.example/"
WAITS: list[tuple[str, str, dict[str, Any]]] = [
    ("rate_limit", "max_delay", {"client": {"messages": 1.0}}),
    ("http_auth", "timeout", {"authenticate": {"url": URL}}),
    ("jwt", "jwks_timeout", {"algorithms": ["RS256"], "jwks_url": URL}),
    ("password_file", "patience", {"file": "passwd"}),
    ("sql_users", "patience", {"database": "users.db"}),
    ("sql_users", "busy_timeout", {"database": "users.db"}),
]


def prepared(name: str, timeout: str, config: dict[str, Any]) -> None:
    prepare(parse_yaml(f"plugins: [{{use: {name}, timeout: {timeout}, config: {config!r}}}]", "c"))


@pytest.mark.parametrize(("name", "key", "needed"), WAITS)
def test_a_wait_ends_before_the_hook_does(name: str, key: str, needed: dict[str, Any]) -> None:
    prepared(name, "5s", needed)
    prepared(name, "31s", {**needed, key: 30})
    expected = f"{key}: found 30s, expected less than the plugin's timeout of 30s"
    with pytest.raises(ConfigError, match=expected) as caught:
        prepared(name, "30s", {**needed, key: 30})
    (problem,) = caught.value.problems
    assert problem.path == "plugins[0].config"


def test_the_default_counts_as_well() -> None:
    with pytest.raises(ConfigError, match=r"max_delay: found 2s, expected less .* of 1s"):
        prepared("rate_limit", "1s", {"client": {"messages": 1.0}})


def test_keys_that_are_only_files_wait_for_nobody() -> None:
    config = {"algorithms": ["HS256"], "secret": "x" * 32, "jwks_timeout": 30}
    prepared("jwt", "1s", config)


def test_outside_of_a_broker_there_is_no_limit() -> None:
    limits = {"client": {"messages": 1.0}, "max_delay": 100}
    assert rate_limit.Config.model_validate(limits).max_delay == 100
