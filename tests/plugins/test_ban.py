"""ban: who is kept out and for how long, what brings a ban, what the operator can do, restarts."""

import json
import time
from typing import Any, cast

import pytest
from mqttd_plugins.ban import Attempts, BanPlugin, Config
from pydantic import ValidationError

from mqttd.api import (
    CONNECTED,
    REFUSED,
    Client,
    ConnectRequest,
    Deny,
    Event,
    ProtocolError,
    SessionInfo,
    reason_codes,
)
from mqttd.testing import StandIn
from tests.core import handshake_kit
from tests.core.handshake_kit import say
from tests.core.hook_kit import Admitting
from tests.harness import Harness

FAR = "192.0.2.7"


async def started(broker: StandIn | None = None, **config: Any) -> tuple[BanPlugin, StandIn]:
    broker = StandIn("ban") if broker is None else broker
    plugin = await broker.start(BanPlugin, Config.model_validate(config))
    return cast(BanPlugin, plugin), broker


def peer(address: str) -> str:
    return f"[{address}]:5" if ":" in address else f"{address}:5"


def connect(
    plugin: BanPlugin,
    client_id: str = "c",
    address: str = FAR,
    username: str | None = None,
    identity: str | None = None,
) -> Deny | None:
    where = address if address.startswith("unix:") else peer(address)
    client = Client(client_id, username, where, identity=identity)
    return plugin.on_connect(client, ConnectRequest(client_id, True, 60, username, 0))


def refused(
    plugin: BanPlugin,
    times: int,
    client_id: str = "c",
    address: str = FAR,
    username: str | None = None,
) -> None:
    event = Event(REFUSED, 0.0, client_id, username, peer(address), reason="bad password")
    plugin.observe([event] * times)


def connected(
    plugin: BanPlugin,
    times: int,
    client_id: str = "c",
    address: str = FAR,
    username: str | None = None,
) -> None:
    plugin.observe([Event(CONNECTED, 0.0, client_id, username, peer(address))] * times)


def session(client_id: str, address: str, username: str | None = None) -> SessionInfo:
    return SessionInfo(client_id, username, True, peer(address), (), 0, 0, 0)


# Brute force.


async def test_an_address_that_is_refused_too_often_is_kept_out_for_a_while() -> None:
    plugin, broker = await started()
    refused(plugin, 9)
    assert connect(plugin) is None
    refused(plugin, 1)
    deny = connect(plugin, "somebody else")
    assert deny is not None
    assert deny.code == reason_codes.BANNED
    assert deny.rule == "address:192.0.2.7"
    assert connect(plugin, address="192.0.2.8") is None
    assert broker.kicked == []  # who is connected from there has shown its password
    await broker.advance(299.0)
    assert connect(plugin) is not None
    await broker.advance(1.0)
    assert connect(plugin) is None
    assert broker.counts == {"brute_force": 1, "refused": 2}


async def test_refusals_that_are_far_apart_bring_no_ban() -> None:
    plugin, broker = await started(brute_force={"failures": 3, "window": "10s"})
    for _ in range(20):
        refused(plugin, 1)
        await broker.advance(6.0)
    assert connect(plugin) is None


async def test_a_ban_after_a_ban_is_longer_up_to_a_bound() -> None:
    plugin, broker = await started(
        brute_force={"failures": 1, "ban": "10s"}, growth=3.0, max_ban="60s"
    )
    for seconds in (10, 30, 60, 60):
        refused(plugin, 1)
        await broker.advance(seconds - 0.5)
        assert connect(plugin) is not None
        await broker.advance(0.5)
        assert connect(plugin) is None


async def test_however_fast_bans_grow_they_end() -> None:
    plugin, broker = await started(
        brute_force={"failures": 1, "ban": "10s"}, growth=1e200, max_ban="1h"
    )
    for _ in range(4):
        refused(plugin, 1)
        await broker.advance(3600.0)
        assert connect(plugin) is None
    assert broker.counts["brute_force"] == 4


async def test_what_was_long_ago_makes_no_ban_longer() -> None:
    plugin, broker = await started(
        brute_force={"failures": 1, "ban": "10s"}, remember="1h", growth=2.0
    )
    refused(plugin, 1)
    await broker.advance(3700.0)
    refused(plugin, 1)
    await broker.advance(10.0)
    assert connect(plugin) is None
    assert len(broker.table().items()) == 1


async def test_refusals_by_a_ban_do_not_make_it_longer() -> None:
    plugin, broker = await started()
    refused(plugin, 10)
    refused(plugin, 500)
    await broker.advance(300.0)
    assert connect(plugin) is None
    assert broker.counts["brute_force"] == 1


@pytest.mark.parametrize(
    "code",
    [reason_codes.UNSPECIFIED_ERROR, reason_codes.SERVER_BUSY, reason_codes.SERVER_UNAVAILABLE],
)
async def test_a_broker_that_cannot_decide_is_nobodys_fault(code: int) -> None:
    plugin, _ = await started(brute_force={"failures": 1})
    reason = str(ProtocolError(code, "MQTT-3.1.4-2", "too many logins at a time"))
    plugin.observe([Event(REFUSED, 0.0, "c", None, peer(FAR), reason=reason)])
    assert connect(plugin) is None


async def test_who_leaves_before_its_password_was_looked_at_has_guessed() -> None:
    """In a core, so that it is the core's own reason: a hash was paid for either way."""
    h = Harness()
    Admitting(h, None)
    say(h, handshake_kit.connect()).drop()
    (reason,) = h.events("refused")
    plugin, _ = await started(brute_force={"failures": 1})
    plugin.observe([Event(REFUSED, 0.0, "c", None, peer(FAR), reason=reason)])
    assert isinstance(connect(plugin), Deny)


async def test_with_a_full_disk_a_ban_holds_as_long_as_the_broker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugin, broker = await started(brute_force={"failures": 1})
    broker.full = True
    refused(plugin, 1)
    assert isinstance(connect(plugin), Deny)
    assert broker.table().items() == []
    assert "the disk is full: a ban is in memory only" in caplog.text
    await plugin.control("add", {"kind": "client", "value": "by-hand"})
    assert isinstance(connect(plugin, "by-hand", "192.0.2.8"), Deny)


async def test_failures_may_be_counted_by_user_and_by_client() -> None:
    plugin, _ = await started(brute_force={"failures": 3, "by": ["user", "client"]})
    for number in range(3):
        refused(plugin, 1, f"c{number}", f"192.0.2.{number}", "root")
        refused(plugin, 1, "pump", f"192.0.2.{number}")
    assert connect(plugin, username="root") is not None
    assert connect(plugin, identity="root") is not None
    assert connect(plugin, "pump") is not None
    assert connect(plugin, "c1", "192.0.2.1", "ann") is None


async def test_ipv6_addresses_of_one_network_are_taken_for_one() -> None:
    plugin, _ = await started(brute_force={"failures": 4})
    for number in range(4):
        refused(plugin, 1, address=f"2001:db8:0:1::{number:x}")
    assert connect(plugin, address="2001:db8:0:1:ffff::1") is not None
    assert connect(plugin, address="2001:db8:0:2::1") is None


async def test_an_ipv4_address_in_ipv6_is_that_address() -> None:
    plugin, _ = await started(brute_force={"failures": 1})
    refused(plugin, 1, address=f"::ffff:{FAR}")
    assert connect(plugin, address=FAR) is not None
    refused(plugin, 9, address="::ffff:127.0.0.1")
    assert connect(plugin, address="127.0.0.1") is None


async def test_loopback_and_unix_sockets_are_exempt() -> None:
    plugin, broker = await started(brute_force={"failures": 1}, flapping={"connects": 1})
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        refused(plugin, 5, address=address)
        connected(plugin, 5, address=address)
        assert connect(plugin, address=address) is None
    plugin.observe([Event(REFUSED, 0.0, "c", None, "unix:/run/m.sock")])
    assert connect(plugin, address="unix:/run/m.sock") is None
    assert broker.kicked == []


async def test_what_is_exempt_can_be_chosen() -> None:
    plugin, _ = await started(brute_force={"failures": 1}, exempt=["192.0.2.0/25"])
    for address in ("192.0.2.7", "192.0.2.200", "127.0.0.1"):
        refused(plugin, 1, address=address)
    assert connect(plugin, address="192.0.2.7") is None
    assert connect(plugin, address="192.0.2.200") is not None
    assert connect(plugin, address="127.0.0.1") is not None


async def test_a_rule_can_be_switched_off() -> None:
    plugin, _ = await started(brute_force=None, flapping=None)
    refused(plugin, 100)
    connected(plugin, 100)
    assert connect(plugin) is None


# Flapping.


async def test_a_client_that_comes_and_goes_is_kicked_and_kept_out() -> None:
    plugin, broker = await started(flapping={"connects": 5, "window": "10s", "ban": "1m"})
    connected(plugin, 4)
    assert broker.kicked == []
    connected(plugin, 1)
    assert broker.kicked == [("c", "banned", reason_codes.ADMINISTRATIVE_ACTION)]
    assert connect(plugin, "c", "198.51.100.1") is not None
    assert connect(plugin, "d") is None
    await broker.advance(60.0)
    assert connect(plugin, "c") is None
    ((kind, fields),) = broker.audited
    assert kind == "ban"
    assert (fields["value"], fields["by"]) == ("c", "flapping")


async def test_a_client_that_reconnects_now_and_then_may() -> None:
    plugin, broker = await started(flapping={"connects": 5, "window": "10s"})
    for _ in range(50):
        connected(plugin, 1)
        await broker.advance(2.6)
    assert connect(plugin) is None


# By hand.


async def test_the_operator_bans_and_who_is_connected_goes() -> None:
    plugin, broker = await started()
    for info in (
        session("a", "192.0.2.1", "ann"),
        session("b", "192.0.2.2", "bob"),
        session("c", "198.51.100.1", "ann"),
    ):
        broker.known[info.client_id] = info
    answer = await plugin.control(
        "add", {"kind": "user", "value": "ann", "seconds": 60, "reason": "left"}
    )
    assert isinstance(answer, dict)
    assert answer["kicked"] == ["a", "c"]
    assert [name for name, *_ in broker.kicked] == ["a", "c"]
    assert connect(plugin, "x", username="ann") is not None
    assert connect(plugin, "x", username="bob") is None
    answer = await plugin.control("list", {})
    assert isinstance(answer, dict)
    (ban,) = answer["bans"]
    assert (ban["kind"], ban["value"], ban["by"], ban["reason"]) == (
        *("user", "ann", "operator", "left"),
    )
    assert ban["seconds_left"] == 60.0
    assert json.dumps(answer)
    await plugin.control("remove", {"kind": "user", "value": "ann"})
    assert connect(plugin, "x", username="ann") is None
    assert broker.table().items() == []
    assert [kind for kind, _ in broker.audited] == ["ban", "unban"]


async def test_a_network_may_be_banned_and_for_good() -> None:
    plugin, broker = await started()
    broker.known["a"] = session("a", "198.51.100.77")
    await plugin.control("add", {"kind": "address", "value": "2001:db8::/32"})
    assert broker.kicked == []
    await plugin.control("add", {"kind": "address", "value": "198.51.100.0/24"})
    assert [name for name, *_ in broker.kicked] == ["a"]
    await broker.advance(10**6)
    assert connect(plugin, address="198.51.100.1") is not None
    assert connect(plugin, address="198.51.101.1") is None
    assert connect(plugin, address="2001:db8:5::1") is not None
    answer = await plugin.control("list", {})
    assert isinstance(answer, dict)
    assert [(ban["until"], ban["seconds_left"]) for ban in answer["bans"]] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("2001:db8::1", "2001:db8:0::1"),
        ("2001:db8::1/128", "2001:db8::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7"),
    ],
)
async def test_an_address_is_the_same_however_it_is_written(written: str, address: str) -> None:
    plugin, _ = await started()
    await plugin.control("add", {"kind": "address", "value": written})
    assert connect(plugin, address=address) is not None
    assert connect(plugin, address="2001:db8::2") is None
    await plugin.control("remove", {"kind": "address", "value": written})
    assert connect(plugin, address=address) is None


async def test_a_wide_ban_does_not_reach_what_is_exempt() -> None:
    plugin, _ = await started()
    await plugin.control("add", {"kind": "address", "value": "0.0.0.0/0"})
    assert connect(plugin, address="127.0.0.1") is None
    assert connect(plugin, address="192.0.2.1") is not None
    with pytest.raises(ValueError, match="exempt"):
        await plugin.control("add", {"kind": "address", "value": "127.0.0.1"})


async def test_a_user_that_was_only_found_out_later_is_kicked() -> None:
    plugin, broker = await started()
    await plugin.control("add", {"kind": "user", "value": "ann"})
    for address in (FAR, "127.0.0.1"):
        assert connect(plugin, "c", address) is None  # a token hides who it is
        connected(plugin, 1, "c", address, "ann")
    assert broker.kicked == [("c", "banned", reason_codes.ADMINISTRATIVE_ACTION)] * 2


@pytest.mark.parametrize(
    ("action", "arguments", "told"),
    [
        ("add", {}, "kind: expected client, user, address"),
        ("add", {"kind": "client"}, "value: expected"),
        ("add", {"kind": "client", "value": ""}, "value: expected"),
        ("add", {"kind": "client", "value": 7}, "value: expected"),
        ("add", {"kind": "client", "value": "\ud800"}, "surrogates"),
        ("add", {"kind": "address", "value": "example.com"}, "an address or a network"),
        ("add", {"kind": "address", "value": "192.0.2.1/24"}, "an address or a network"),
        ("add", {"kind": "client", "value": "c", "seconds": "60"}, "seconds: expected"),
        ("add", {"kind": "client", "value": "c", "seconds": True}, "seconds: expected"),
        ("add", {"kind": "client", "value": "c", "seconds": 0}, "more than 0"),
        ("add", {"kind": "client", "value": "c", "seconds": float("inf")}, "more than 0"),
        ("add", {"kind": "client", "value": "c", "reason": 7}, "reason: expected"),
        ("remove", {"kind": "client", "value": "c"}, "is not banned"),
        ("forgive", {}, "no action 'forgive'"),
    ],
)
async def test_what_the_operator_mistyped_changes_nothing(
    action: str, arguments: dict[str, object], told: str
) -> None:
    plugin, broker = await started()
    with pytest.raises(ValueError, match=told):
        await plugin.control(action, arguments)
    assert broker.table().items() == []
    assert broker.audited == []


# What lasts, and what is bounded.


async def test_bans_outlive_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, broker = await started(brute_force={"failures": 1, "ban": "300s"})
    epoch = time.time()
    await plugin.control("add", {"kind": "client", "value": "pump", "reason": "broken"})
    refused(plugin, 1)
    monkeypatch.setattr(time, "time", lambda: epoch + 100.0)
    again = StandIn("ban")
    again.tables = broker.tables
    plugin, _ = await started(again)
    assert connect(plugin, "pump", "198.51.100.1") is not None
    assert connect(plugin) is not None
    await again.advance(195.0)
    assert connect(plugin) is not None
    await again.advance(10.0)
    assert connect(plugin) is None
    assert connect(plugin, "pump") is not None


@pytest.mark.parametrize("step_s", [-(10.0**8), 10.0**8])
async def test_a_wall_clock_that_is_set_makes_no_ban_longer(
    step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, broker = await started(brute_force={"failures": 1, "ban": "300s"})
    refused(plugin, 1)
    epoch = time.time() + step_s
    monkeypatch.setattr(time, "time", lambda: epoch)
    await broker.advance(299.0)
    assert connect(plugin) is not None
    again = StandIn("ban")
    again.tables = broker.tables
    plugin, _ = await started(again)
    await again.advance(300.0)
    assert connect(plugin) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"until": 1, "seconds": "x", "reason": "", "by": "operator", "times": 1}',
    ],
)
async def test_a_row_that_cannot_be_read_does_not_hide_the_others(value: bytes) -> None:
    plugin, broker = await started()
    await plugin.control("add", {"kind": "client", "value": "pump"})
    again = StandIn("ban")
    again.tables = broker.tables
    broker.table().set("client:bad", value)
    plugin, _ = await started(again)
    assert connect(plugin, "pump") is not None
    assert connect(plugin, "bad") is None


async def test_a_flood_of_addresses_costs_no_more_than_the_bounds() -> None:
    plugin, broker = await started(
        brute_force={"failures": 2, "by": ["address", "client", "user"]},
        max_tracked=50,
        max_bans=20,
    )
    await plugin.control("add", {"kind": "client", "value": "pump"})
    for number in range(1000):
        address = f"10.0.{number >> 8}.{number & 255}"
        refused(plugin, 1, f"c{number}", address, "u" * 60_000 + str(number))
    assert max(len(attempts) for attempts in plugin._failures.values()) == 50
    for number in range(1000):
        refused(plugin, 2, f"d{number}", f"10.1.{number >> 8}.{number & 255}")
    assert len(broker.table().items()) == 20
    assert connect(plugin, "pump") is not None  # what the operator entered stays
    assert connect(plugin, address="10.1.3.231") is not None  # and the latest


async def test_a_book_that_became_smaller_keeps_what_counts_and_says_what_doesnt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugin, broker = await started(brute_force={"failures": 1, "ban": "300s"})
    await plugin.control("add", {"kind": "client", "value": "a"})
    await plugin.control("add", {"kind": "client", "value": "b"})
    refused(plugin, 1)
    refused(plugin, 1, address="198.51.100.1")
    again = StandIn("ban")
    again.tables = broker.tables
    plugin, _ = await started(again, max_bans=3)
    assert connect(plugin, "a") is not None
    assert connect(plugin, "b") is not None
    assert len(again.table().items()) == 3
    assert "no_room" not in again.counts
    less = StandIn("ban")
    less.tables = again.tables
    plugin, _ = await started(less, max_bans=1)
    assert less.counts["no_room"] == 1
    assert "client:b is not in force" in caplog.text
    assert connect(plugin, "a") is not None
    assert len(less.table().items()) == 2  # it is in force again when there is room


async def test_a_book_full_of_the_operators_bans_takes_no_more() -> None:
    plugin, broker = await started(brute_force={"failures": 1}, max_bans=2)
    for name in ("a", "b"):
        await plugin.control("add", {"kind": "client", "value": name})
    refused(plugin, 1)
    assert connect(plugin) is None
    assert broker.counts["no_room"] == 1
    with pytest.raises(ValueError, match="2 bans already"):
        await plugin.control("add", {"kind": "client", "value": "c"})
    # What is over makes room.
    await plugin.control("remove", {"kind": "client", "value": "b"})
    await plugin.control("add", {"kind": "client", "value": "b", "seconds": 5})
    await broker.advance(5.0)
    refused(plugin, 1)
    assert connect(plugin) is not None


async def test_a_long_name_is_banned_without_being_kept() -> None:
    plugin, broker = await started()
    long = "n" * 60_000
    await plugin.control("add", {"kind": "client", "value": long})
    assert connect(plugin, long) is not None
    assert connect(plugin, long[1:]) is None
    ((key, value),) = broker.table().items()
    assert len(key) + len(value) < 300
    await plugin.control("remove", {"kind": "client", "value": long})
    assert connect(plugin, long) is None


async def test_a_reload_keeps_the_bans_and_takes_the_new_rules() -> None:
    plugin, _ = await started()
    refused(plugin, 10)
    await plugin.reload(Config.model_validate({"brute_force": {"failures": 2}}))
    assert connect(plugin) is not None
    refused(plugin, 2, address="198.51.100.1")
    assert connect(plugin, address="198.51.100.1") is not None


def test_attempts_out_of_the_window_are_forgotten() -> None:
    attempts = Attempts(3, 10.0, 100)
    for number in range(5):
        attempts.hit(str(number), float(number))
    attempts.sweep(12.5)
    assert len(attempts) == 2
    assert [attempts.hit("4", 13.0), attempts.hit("4", 14.0)] == [False, True]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"exempt": ["localhost"]}, "expected addresses or networks"),
        ({"exempt": ["192.0.2.1/8"]}, "host bits set"),
        ({"brute_force": {"failures": 0}}, "greater than or equal to 1"),
        ({"brute_force": {"window": 0}}, "longer than nothing"),
        ({"flapping": {"ban": 0}}, "longer than nothing"),
        ({"growth": 0.5}, "greater than or equal to 1"),
        ({"ipv6_prefix": 0}, "greater than or equal to 16"),
        ({"brute_force": {"by": ["name"]}}, "'address', 'client' or 'user'"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate(config)
