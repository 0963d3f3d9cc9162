"""Attacks on passwords that other brokers fell to, tried on a whole broker with sockets."""

import base64
import contextlib
import hashlib
import hmac
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins import _scram_keys

import mqttd
from mqttd.core.packets import Auth, Connack, Connect, Disconnect, Puback, Publish
from mqttd.core.properties import Properties
from mqttd.hooks.manager import PluginError
from tests.net.kit import Wire
from tests.plugins.test_password_file import cheap
from tests.plugins.test_scram import Device


@contextlib.asynccontextmanager
async def broker(*plugins: dict[str, Any], **listener: Any) -> AsyncIterator[int]:
    """The port of a broker on which nobody is anonymous."""
    tcp = {"name": "tcp", "bind": "127.0.0.1:0", "allow_anonymous": False, **listener}
    async with mqttd.Broker({"listeners": [tcp], "plugins": list(plugins)}) as running:
        yield running.port("tcp")


def on_file(directory: Path, *lines: str) -> dict[str, Any]:
    file = directory / "passwd"
    file.write_text("".join(f"{line}\n" for line in lines))
    file.chmod(0o600)
    return {"use": "password_file", "config": {"file": str(file)}}


async def connect(
    wire: Wire,
    user: str | None,
    password: str | None,
    client_id: str = "c",
    clean: bool = True,
    expiry: int = 0,
) -> Connack:
    properties = Properties()
    properties.session_expiry_interval = expiry
    secret = None if password is None else password.encode()
    wire.send(Connect("MQTT", wire.version, clean, 0, client_id, None, user, secret, properties))
    return await wire.receive(Connack)


async def code(port: int, user: str | None, password: str | None, version: int = 5) -> int:
    async with await Wire.open(port) as wire:
        wire.version = version
        return (await connect(wire, user, password)).reason


async def test_users_and_passwords(tmp_path: Path) -> None:
    async with broker(on_file(tmp_path, f"alice:{cheap('secret')}")) as port:
        assert await code(port, "alice", "secret") == 0
        assert await code(port, "alice", "wrong") == 0x86
        assert await code(port, None, None) == 0x87
        assert await code(port, "alice", "secret", version=4) == 0
        assert await code(port, "alice", "wrong", version=4) == 4


async def test_user_enumeration(tmp_path: Path) -> None:
    """Whether a user exists shows in no byte of the answer, and not in the hashes computed."""
    async with broker(on_file(tmp_path, f"alice:{cheap('secret')}")) as port:
        answers = set()
        for user in ("alice", "mallory", ""):
            async with await Wire.open(port) as wire:
                refused = await connect(wire, user, "wrong")
                assert refused.properties is not None
                answers.add((refused.reason, refused.properties.reason_string))
        assert len(answers) == 1


async def test_empty_user_name_is_not_anonymous(tmp_path: Path) -> None:
    plugin = on_file(tmp_path, f"alice:{cheap('secret')}")
    async with broker(plugin, allow_anonymous=True) as port:
        assert await code(port, None, None) == 0
        assert await code(port, "", "") != 0
        assert await code(port, "", None) != 0


async def test_password_without_user_name(tmp_path: Path) -> None:
    """MQTT 5 allows it; it is nobody's password."""
    async with broker(on_file(tmp_path, f"alice:{cheap('secret')}")) as port:
        assert await code(port, None, "secret") != 0


@pytest.mark.parametrize("line", ["alice", "alice:", ":", ":$6$", "alice:secret", "\x00"])
async def test_cve_2018_12551_bad_lines_never_become_users(tmp_path: Path, line: str) -> None:
    plugin = on_file(tmp_path, f"bob:{cheap('secret')}", line)
    with pytest.raises(PluginError, match="passwd:2: "):
        await broker(plugin).__aenter__()


async def test_cve_2018_12551_blank_lines_are_no_user(tmp_path: Path) -> None:
    async with broker(on_file(tmp_path, "", "   ", f"bob:{cheap('secret')}", "")) as port:
        assert await code(port, "", "") != 0
        assert await code(port, "bob", "secret") == 0


async def test_nanomq_2333_a_wrong_password_leaves_the_session_alone(tmp_path: Path) -> None:
    async with broker(on_file(tmp_path, f"alice:{cheap('secret')}")) as port:
        async with await Wire.open(port) as wire:
            await connect(wire, "alice", "secret", expiry=300)
            await wire.subscribe("a", 1)
        async with await Wire.open(port) as wire:
            assert (await connect(wire, "alice", "wrong", clean=True)).reason == 0x86
        async with await Wire.open(port) as wire:
            again = await connect(wire, "alice", "secret", clean=False, expiry=300)
            assert again.session_present


async def test_who_is_taken_out_of_the_file_is_disconnected(tmp_path: Path) -> None:
    plugin = on_file(tmp_path, f"alice:{cheap('secret')}", f"bob:{cheap('sesame')}")
    plugin["config"]["poll"] = 0.1
    async with broker(plugin) as port, await Wire.open(port) as alice, await Wire.open(port) as bob:
        await connect(alice, "alice", "secret", "a")
        await connect(bob, "bob", "sesame", "b")
        on_file(tmp_path, f"bob:{cheap('sesame')}")
        assert (await alice.receive(Disconnect)).reason == 0x87
        assert await code(port, "alice", "secret") != 0
        await bob.subscribe("still/here")


async def test_cve_2026_33216_passwords_are_in_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    users = tmp_path / "users.db"
    with sqlite3.connect(users) as connection:
        connection.execute("CREATE TABLE users (username, password_hash, superuser)")
        connection.execute("INSERT INTO users VALUES ('bob', 'plain-in-the-database', 0)")
    connection.close()
    stored = cheap("right-password")
    sql = {"use": "sql_users", "config": {"database": str(users)}}
    async with broker(on_file(tmp_path, f"alice:{stored}"), sql) as port:
        for user in ("alice", "bob", "mallory"):
            for password in ("right-password", "wrong-password", "plain-in-the-database"):
                await code(port, user, password)
    assert "bob" in caplog.text
    for secret in ("right-password", "wrong-password", "plain-in-the-database", stored[3:]):
        assert secret not in caplog.text


async def test_a_long_password_costs_no_more(tmp_path: Path) -> None:
    """crypt's cost grows with the square of the length."""
    crypt = "$6$rounds=1000$salt$" + "a" * 86
    async with broker(on_file(tmp_path, f"alice:{crypt}")) as port:
        assert await code(port, "alice", "x" * 15000) == 0x86


async def test_several_files_and_databases_are_a_chain(tmp_path: Path) -> None:
    for name, user in (("one", "alice"), ("two", "bob")):
        (tmp_path / name).mkdir()
        on_file(tmp_path / name, f"{user}:{cheap(name)}")
    plugins = [
        {"use": "password_file", "name": name, "config": {"file": str(tmp_path / name / "passwd")}}
        for name in ("one", "two")
    ]
    async with broker(*plugins) as port:
        assert await code(port, "alice", "one") == 0
        assert await code(port, "bob", "two") == 0
        assert await code(port, "alice", "two") == 0x86


# SCRAM.


def on_keys(directory: Path, **passwords: str) -> dict[str, Any]:
    file = directory / "scram"
    lines = [f"{user}:{_scram_keys.make(word, 4096)}\n" for user, word in passwords.items()]
    file.write_text("".join(lines))
    file.chmod(0o600)
    return {"use": "scram", "config": {"file": str(file)}}


def step(data: bytes) -> Properties:
    properties = Properties()
    properties.authentication_method = "SCRAM-SHA-256"
    properties.authentication_data = data
    return properties


async def scram(wire: Wire, device: Device) -> bytes:
    """Connect up to the challenge; the client's last message."""
    first = step(device.first)
    wire.send(Connect("MQTT", 5, True, 0, "c", None, None, None, first))
    challenge = await wire.receive(Auth)
    assert challenge.reason == 0x18
    assert challenge.properties is not None
    return device.final(challenge.properties.authentication_data or b"")


async def test_scram_and_authenticating_again(tmp_path: Path) -> None:
    device = Device("alice", "secret")
    async with broker(on_keys(tmp_path, alice="secret")) as port, await Wire.open(port) as wire:
        wire.send(Auth(0x18, step(await scram(wire, device))))
        connack = await wire.receive(Connack)
        assert connack.reason == 0
        assert connack.properties is not None
        signature = b"v=" + base64.b64encode(device.server_signature)
        assert connack.properties.authentication_data == signature

        wire.send(Auth(0x19, step(device.first)))
        challenge = await wire.receive(Auth)
        assert challenge.properties is not None
        final = device.final(challenge.properties.authentication_data or b"")
        wire.send(Auth(0x18, step(final)))
        assert (await wire.receive(Auth)).reason == 0
        await wire.subscribe("a")

        wire.send(Auth(0x19, step(Device("mallory", "secret").first)))
        challenge = await wire.receive(Auth)
        assert challenge.properties is not None
        other = Device("mallory", "secret")
        final = other.final(challenge.properties.authentication_data or b"")
        wire.send(Auth(0x18, step(final)))
        assert (await wire.receive(Disconnect)).reason == 0x87


@pytest.mark.parametrize("user", ["alice", "mallory"])
async def test_scram_with_a_wrong_password(tmp_path: Path, user: str) -> None:
    async with broker(on_keys(tmp_path, alice="secret")) as port, await Wire.open(port) as wire:
        wire.send(Auth(0x18, step(await scram(wire, Device(user, "sesame")))))
        assert (await wire.receive(Connack)).reason == 0x87


async def test_a_scram_server_that_isnt_one_is_found_out(tmp_path: Path) -> None:
    """Who has stolen nothing can't make the signature that the client waits for."""
    device = Device("alice", "secret")
    keys = _scram_keys.derive("guessed", b"0123456789abcdef", 4096)
    challenge = b"r=devicenonceX,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096"
    device.final(challenge)
    message = f"{device.bare},{challenge.decode()},c=biws,r=devicenonceX".encode()
    forged = hmac.digest(keys.server_key, message, hashlib.sha256)
    assert forged != device.server_signature


# Rights out of a database.


async def test_rights_of_a_database(tmp_path: Path) -> None:
    users = tmp_path / "users.db"
    with sqlite3.connect(users) as connection:
        connection.executescript(
            f"""
            CREATE TABLE users (username, password_hash, superuser);
            CREATE TABLE rights (username, action, filter, allow);
            INSERT INTO users VALUES ('alice', '{cheap("secret")}', 0);
            INSERT INTO rights VALUES ('alice', 'subscribe', 'home/#', 1);
            INSERT INTO rights VALUES ('alice', 'publish', 'home/%c/#', 1);
            INSERT INTO rights VALUES ('alice', 'receive', 'home/c/secret', 0);
            """
        )
    connection.close()
    query = "SELECT action, filter, allow FROM rights WHERE username = :username"
    plugin = {"use": "sql_users", "config": {"database": str(users), "rights": query}}
    async with broker(plugin) as port, await Wire.open(port) as wire:
        assert (await connect(wire, "alice", "secret")).reason == 0
        await wire.subscribe("home/#", 0)
        for number, (topic, reason) in enumerate(
            [("home/d/x", 0x87), ("home/c/secret", 0), ("home/c/x", 0)], 1
        ):
            wire.publish(topic, b"hello", 1, number)
            if topic == "home/c/x":
                assert (await wire.receive(Publish)).topic == topic  # and no secret before it
            assert (await wire.receive(Puback)).reason == reason
