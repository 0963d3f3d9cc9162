"""Where a remote system is and how to get in: addresses, and files that are no good."""

from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins._bridge_access import Access, address_of
from mqttd_plugins._mqtt_config import Config

from tests.tls import Authority


def config(**more: Any) -> Config:
    return Config.model_validate({"addresses": ["far"], "topics": ["#"], **more})


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("far", ("far", 1883)),
        ("far:18830", ("far", 18830)),
        ("192.0.2.1", ("192.0.2.1", 1883)),
        ("[2001:db8::1]", ("2001:db8::1", 1883)),
        ("[2001:db8::1]:99", ("2001:db8::1", 99)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert address_of(address, 1883) == expected


@pytest.mark.parametrize("address", ["", ":1883", "far:", "far:x", "far:65536", "far:-1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        address_of(address, 1883)


def test_files_that_are_no_good_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    missing = str(tmp_path / "missing")
    rest: dict[str, Any] = {"topics": ["#"], "username": "u"}
    with pytest.raises(ValueError, match="empty: expected a password"):
        Access(config(**rest, password_file=str(empty)), 1883)
    with pytest.raises(ValueError, match=r"missing: No such file"):
        Access(config(**rest, password_file=missing), 1883)
    with pytest.raises(ValueError, match=r"missing: no certificates"):
        Access(config(**rest, tls={"ca": missing}), 1883)
    with pytest.raises(ValueError, match=r"empty: no certificate with its key"):
        Access(config(**rest, tls={"cert": str(empty)}), 1883)


def test_what_is_in_the_files_is_read(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    cert, key = ca.issue("bridge", "bridge")
    secret = tmp_path / "password"
    secret.write_text("p\u00e4ss word\r\n", encoding="utf-8")
    tls = {"ca": str(ca.file), "cert": str(cert), "key": str(key)}
    access = Access(config(username="u", password_file=str(secret), tls=tls), 8883)
    assert access.password == "p\u00e4ss word"
    assert access.tls is not None
    assert [each["subject"] for each in access.tls.get_ca_certs()]


def test_the_next_address_is_tried_after_a_failure_and_the_first_after_the_last() -> None:
    access = Access(config(addresses=["a", "b:99"]), 1883)
    seen = []
    for _ in range(3):
        seen.append(access.address)
        access.failed()
    assert seen == [("a", 1883), ("b", 99), ("a", 1883)]
