"""Addresses and headers: what is refused, and that no secret is shown with the reason."""

from typing import Any

import pytest
from mqttd_plugins._urls import check_headers, check_url

from mqttd.config import ConfigError, parse_config
from mqttd.hooks.loader import prepare


@pytest.mark.parametrize(
    "url",
    [
        "https://auth.example/x",
        "https://[2001:db8::1]:8443/x?y=z",
        "http://localhost/x",
        "http://127.0.0.7:8080",
        "http://[::1]/x",
    ],
)
def test_addresses_that_are_good(url: str) -> None:
    check_url("url", url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("auth.example", "expected https://HOST/PATH"),
        ("ftp://auth.example/", "expected https://HOST/PATH"),
        ("https:///path", "expected https://HOST/PATH"),
        ("https://x.example:hunter2/", "no URL"),
        ("https://[::1/", "no URL"),
        ("https://me:hunter2@x.example/", "no credentials"),
        ("https://@x.example/", "no credentials"),
        ("http://auth.example/x", "found http to auth.example, expected https"),
        ("http://127.0.0.1.example/", "found http to 127.0.0.1.example"),
        ("http://192.168.1.1/", "found http to 192.168.1.1"),
        ("http://localhost.example/", "found http to localhost.example"),
    ],
)
def test_addresses_that_are_not(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        check_url("url", url)
    assert "hunter2" not in str(caught.value)


def test_plain_http_where_somebody_insists() -> None:
    check_url("url", "http://auth.example/x", plain=True)
    with pytest.raises(ValueError, match="no credentials"):
        check_url("url", "http://me:pw@auth.example/x", plain=True)


@pytest.mark.parametrize("headers", [{"X Y": "a"}, {"X": 1}, {"X": "a\nEvil: b"}, {"X\u00e9": "a"}])
def test_headers_that_are_none(headers: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="headers: "):
        check_headers("headers", headers)


HERE = "https://x.example/"
SECRETS: list[tuple[str, dict[str, Any]]] = [
    ("webhook", {"url": "https://me:hunter2@x.example/"}),
    ("webhook", {"url": HERE, "headers": {"Authorization": "hunter2\n"}}),
    ("webhook", {"url": HERE, "headers": {"Authorization": ["hunter2"]}}),
    ("http_auth", {"authenticate": {"url": "https://me:hunter2@x.example/"}}),
    ("http_auth", {"authenticate": {"url": HERE, "headers": {"Authorization": ["hunter2"]}}}),
    ("jwt", {"algorithms": ["RS256"], "jwks_url": "https://me:hunter2@x.example/"}),
    ("jwt", {"algorithms": ["HS256"], "secret": ["hunter2"]}),
]


@pytest.mark.parametrize(("name", "config"), SECRETS)
def test_a_mistake_beside_a_secret_does_not_show_it(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(parse_config({"plugins": [{"use": name, "config": config}]}))
    assert "plugins[0].config" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_headers_and_secrets_are_in_no_repr() -> None:
    configs: list[tuple[str, dict[str, Any]]] = [
        ("webhook", {"url": HERE, "headers": {"X-Api-Key": "hunter2"}}),
        ("http_auth", {"authenticate": {"url": HERE, "headers": {"X-Api-Key": "hunter2"}}}),
        ("jwt", {"algorithms": ["HS256"], "secret": "hunter2" * 8}),
    ]
    tree = {"plugins": [{"use": name, "config": config} for name, config in configs]}
    for prepared in prepare(parse_config(tree)):
        assert "hunter2" not in repr(prepared.config)
        assert "hunter2" not in prepared.config.model_dump_json()
