"""sql_users: users and rights out of a database that others write, and one that breaks."""

import base64
import hashlib
import logging
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._sql_rights import PUBLISH, RECEIVE, SUBSCRIBE, BadRow, rights_of
from mqttd_plugins.sql_users import Config, SqlUsers
from pydantic import ValidationError

from mqttd.api import (
    ALLOW,
    NOT_MINE,
    Allow,
    Client,
    Credentials,
    Decision,
    Deny,
    SessionInfo,
    SubscriptionRequest,
)
from mqttd.testing import StandIn, settled

SCHEMA = """
CREATE TABLE users (username TEXT PRIMARY KEY, password_hash TEXT, superuser INTEGER DEFAULT 0);
CREATE TABLE rights (username TEXT, action TEXT, filter TEXT, allow INTEGER DEFAULT 1);
"""
RIGHTS = "SELECT action, filter, allow FROM rights WHERE username = :username"


def cheap(password: str) -> str:
    digest = hashlib.sha512(password.encode() + b"0123456789ab").digest()
    return f"$6$MDEyMzQ1Njc4OWFi${base64.b64encode(digest).decode()}"


class Kit:
    """The plugin on a database, without a broker."""

    def __init__(self, directory: Path, **keys: Any) -> None:
        self.file = directory / "users.db"
        self.stand_in = StandIn("sql_users")
        self.keys = {"database": str(self.file), "busy_timeout": 0, **keys}
        self.plugin = SqlUsers(self.config(), self.stand_in)

    def config(self, **keys: Any) -> Config:
        return Config.model_validate({**self.keys, **keys})

    def run(self, *statements: str) -> None:
        with sqlite3.connect(self.file) as connection:
            for statement in statements:
                connection.executescript(statement)
        connection.close()

    def add(self, user: str, password: str = "secret", superuser: int = 0) -> None:
        values = f"'{user}', '{cheap(password)}', {superuser}"
        self.run(f"INSERT OR REPLACE INTO users VALUES ({values})")

    def grant(self, user: str, action: str, topic_filter: str, allow: int = 1) -> None:
        self.run(f"INSERT INTO rights VALUES ('{user}', '{action}', '{topic_filter}', {allow})")

    async def login(self, user: str | None, password: str | None = "secret") -> Decision:
        return await self.enter(Client("c", user), password)

    async def enter(self, client: Client, password: str | None = "secret") -> Decision:
        secret = None if password is None else password.encode()
        return await self.plugin.authenticate(client, Credentials(client.username, secret))

    async def decide(self, client: Client, action: str, topic: str) -> Decision:
        answer: Any
        if action == PUBLISH:
            answer = self.plugin.authorize_publish(client, topic, 0, False)
        elif action == SUBSCRIBE:
            answer = self.plugin.authorize_subscribe(client, SubscriptionRequest(topic))
        else:
            answer = self.plugin.authorize_receive(client, topic)
        decision: Decision = await settled(answer)
        return decision

    async def may(self, client: Client, action: str, topic: str) -> bool:
        return isinstance(await self.decide(client, action, topic), Allow)


class Running:
    """`async with`: a plugin that is stopped, so that no thread of SQLite is left."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit

    async def __aenter__(self) -> Kit:
        await self.kit.plugin.start()
        return self.kit

    async def __aexit__(self, *_: object) -> None:
        await self.kit.plugin.stop()


def filled(directory: Path, **keys: Any) -> Kit:
    kit = Kit(directory, **keys)
    kit.run(SCHEMA)
    kit.add("alice")
    kit.add("root", superuser=1)
    return kit


async def test_who_knows_the_password_gets_in(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        assert isinstance(await kit.login("alice"), Allow)
        for password in ("Secret", "", None):
            answer = await kit.login("alice", password)
            assert isinstance(answer, Deny)
            assert answer.code == 0x86
        assert await kit.login("bob") == NOT_MINE
        assert await kit.login(None) == NOT_MINE
        assert await kit.login("") == NOT_MINE


async def test_a_name_is_never_part_of_a_query(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        for name in ("' OR '1'='1", "alice'--", "%", "alice'; DROP TABLE users; --"):
            assert await kit.login(name) == NOT_MINE
        assert isinstance(await kit.login("alice"), Allow)


async def test_an_unknown_user_costs_a_hash_as_well(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        await kit.login("alice", "wrong")
        await kit.login("mallory", "wrong")
        await kit.login("mallory", "secret")
        assert kit.stand_in.counts["hashes"] == 3


async def test_a_right_password_is_remembered_and_a_changed_one_isnt(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        for _ in range(3):
            assert isinstance(await kit.login("alice"), Allow)
        assert kit.stand_in.counts["hashes"] == 1
        kit.add("alice", "sesame")
        assert isinstance(await kit.login("alice"), Deny)  # nothing had to be noticed for that
        assert isinstance(await kit.login("alice", "sesame"), Allow)


async def test_a_hash_that_is_none_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = filled(tmp_path)
    kit.run("UPDATE users SET password_hash = 'hunter2' WHERE username = 'alice'")
    kit.run("INSERT INTO users VALUES ('bob', NULL, 0)")
    async with Running(kit):
        for user, password in (("alice", "hunter2"), ("bob", "None")):
            assert isinstance(await kit.login(user, password), Deny)
        assert kit.stand_in.counts["hashes"] == 2  # the time doesn't tell that there is a user
    assert "user 'alice': not a password hash" in caplog.text
    assert "hunter2" not in caplog.text


async def test_rights(tmp_path: Path) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    kit.grant("alice", "publish", "up/%u/%c")
    kit.grant("alice", "subscribe", "down/#")
    kit.grant("alice", "receive", "down/secret", 0)
    async with Running(kit):
        alice, root = Client("c", "alice"), Client("r", "root")
        await kit.enter(alice)
        await kit.enter(root)
        assert await kit.decide(alice, PUBLISH, "up/alice/c") == Allow(rule="publish up/%u/%c")
        assert not await kit.may(alice, PUBLISH, "up/alice/d")
        assert not await kit.may(alice, PUBLISH, "down/1")
        assert await kit.may(alice, SUBSCRIBE, "down/+/x")
        assert await kit.may(alice, SUBSCRIBE, "$share/group/down/#")
        assert not await kit.may(alice, SUBSCRIBE, "#")
        assert not await kit.may(alice, SUBSCRIBE, "$share/group/#")
        assert await kit.may(alice, RECEIVE, "down/1")
        assert not await kit.may(alice, RECEIVE, "down/secret")
        for action in (PUBLISH, SUBSCRIBE, RECEIVE):
            assert await kit.decide(root, action, "$SYS/anything") == ALLOW


async def test_without_a_query_rights_are_others_business(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        alice, root = Client("c", "alice"), Client("r", "root")
        await kit.enter(alice)
        await kit.enter(root)
        assert await kit.decide(alice, PUBLISH, "a") == NOT_MINE
        assert await kit.decide(root, PUBLISH, "a") == ALLOW


async def test_who_isnt_in_the_database_is_others_business(tmp_path: Path) -> None:
    async with Running(filled(tmp_path, rights=RIGHTS)) as kit:
        for client in (Client("c"), Client("c", "mallory")):
            for action in (PUBLISH, SUBSCRIBE, RECEIVE):
                assert await kit.decide(client, action, "a") == NOT_MINE


async def test_rights_of_somebody_whom_another_plugin_let_in(tmp_path: Path) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    kit.grant("alice", "publish", "a")
    async with Running(kit):
        alice = Client("c", "alice")
        assert await kit.may(alice, PUBLISH, "a")
        assert not await kit.may(alice, PUBLISH, "b")


async def test_a_client_that_was_given_another_name_has_no_rights_of_the_old_one(
    tmp_path: Path,
) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    kit.grant("alice", "all", "#")
    async with Running(kit):
        client = Client("c", "alice")
        await kit.enter(client)
        client.username = "mallory"
        assert await kit.decide(client, PUBLISH, "a") == NOT_MINE


async def test_what_is_changed_reaches_who_is_connected(tmp_path: Path) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    kit.grant("alice", "all", "a")
    async with Running(kit):
        alice = Client("c", "alice")
        await kit.enter(alice)
        await kit.stand_in.advance(10)
        assert kit.stand_in.forgotten == []  # nothing has changed yet
        kit.run("DELETE FROM rights")
        kit.grant("alice", "all", "b")
        await kit.stand_in.advance(2)
        assert kit.stand_in.forgotten == [None]
        assert not await kit.may(alice, RECEIVE, "a")
        assert await kit.may(alice, RECEIVE, "b")
        assert kit.stand_in.kicked == []


async def test_who_is_taken_out_is_disconnected_and_may_nothing(tmp_path: Path) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    kit.grant("alice", "all", "#")
    async with Running(kit):
        clients = [Client(f"of-{user}", user) for user in ("alice", "root")]
        for client in clients:
            await kit.enter(client)
            info = SessionInfo(client.client_id, client.username, True, "", (), 0, 0, 0)
            kit.stand_in.known[client.client_id] = info
        kit.run("DELETE FROM users WHERE username = 'alice'")
        await kit.stand_in.advance(2)
        assert kit.stand_in.kicked == [("of-alice", "credentials changed", 0x87)]
        assert not await kit.may(clients[0], PUBLISH, "a")
        assert await kit.may(clients[1], PUBLISH, "a")


@pytest.mark.parametrize("flag", ["false", "0"])
async def test_a_superuser_who_is_none_gets_nothing(tmp_path: Path, flag: str) -> None:
    kit = Kit(tmp_path, rights=RIGHTS)
    kit.run(SCHEMA.replace("superuser INTEGER", "superuser TEXT"))
    kit.run(f"INSERT INTO users VALUES ('alice', '{cheap('secret')}', '{flag}')")
    async with Running(kit):
        assert await kit.login("alice") == Deny("what the user may do can't be read", 0x88)
        met = Client("c", "alice")  # let in by another plugin
        assert not await kit.may(met, PUBLISH, "a")
        assert kit.stand_in.counts["failures"] == 2


async def test_a_bad_row_of_one_user_is_his_alone(tmp_path: Path) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    kit.add("bob")
    for user in ("alice", "bob"):
        kit.grant(user, "all", "a")
    async with Running(kit):
        clients = [Client(f"of-{user}", user) for user in ("alice", "bob")]
        for client in clients:
            assert isinstance(await kit.enter(client), Allow)
        kit.run("UPDATE rights SET action = 'everything' WHERE username = 'alice'")
        await kit.stand_in.advance(100)
        assert not await kit.may(clients[0], PUBLISH, "a")
        assert await kit.may(clients[1], PUBLISH, "a")


async def test_a_name_is_the_one_that_the_database_has(tmp_path: Path) -> None:
    """Otherwise a user who writes his name in another way has none of what lists deny him."""
    kit = Kit(tmp_path, rights=RIGHTS)
    kit.run(SCHEMA.replace("username TEXT PRIMARY KEY", "username TEXT PRIMARY KEY COLLATE NOCASE"))
    kit.add("alice")
    kit.grant("alice", "all", "home/%u")
    async with Running(kit):
        client = Client("c", "ALICE")
        answer = await kit.enter(client)
        assert isinstance(answer, Allow)
        assert answer.username == "alice"
        client.username = answer.username  # as the broker does
        assert await kit.may(client, PUBLISH, "home/alice")
        stranger = Client("c", "ALICE")  # somebody else let in a user of this name
        assert await kit.decide(stranger, PUBLISH, "home/ALICE") == NOT_MINE


async def test_a_user_without_a_name_is_not_let_in(tmp_path: Path) -> None:
    query = "SELECT password_hash, superuser, NULL FROM users WHERE username = :username"
    kit = filled(tmp_path, users=query)
    async with Running(kit):
        assert isinstance(await kit.login("alice"), Deny)


async def test_a_change_while_a_password_is_checked_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    async with Running(kit):
        verify = kit.plugin._verifier.verify

        async def slow(*arguments: Any) -> bool:
            right = await verify(*arguments)
            kit.run("DELETE FROM users WHERE username = 'root'")
            await kit.stand_in.advance(2)  # the change is seen, and root isn't there yet
            return right

        monkeypatch.setattr(kit.plugin._verifier, "verify", slow)
        root = Client("c", "root")
        await kit.enter(root)
        kit.stand_in.known["c"] = SessionInfo("c", "root", True, "", (), 0, 0, 0)
        await kit.stand_in.advance(2)
        assert kit.stand_in.kicked == [("c", "credentials changed", 0x87)]
        assert not await kit.may(root, PUBLISH, "a")


async def test_another_file_in_its_place_is_a_change(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        (tmp_path / "new").mkdir()
        other = Kit(tmp_path / "new")
        other.run(SCHEMA)
        other.add("bob")
        os.replace(other.file, kit.file)
        await kit.stand_in.advance(2)
        assert isinstance(await kit.login("bob"), Allow)
        assert await kit.login("alice") == NOT_MINE


async def test_a_database_that_has_gone_fails_closed_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = filled(tmp_path, rights=RIGHTS, rights_for=30)
    kit.grant("alice", "all", "#")
    caplog.set_level(logging.INFO)
    async with Running(kit):
        alice = Client("c", "alice")
        await kit.enter(alice)
        kit.file.rename(tmp_path / "away")
        await kit.stand_in.advance(2)
        for user in ("alice", "bob"):
            answer = await kit.login(user)
            assert isinstance(answer, Deny)
            assert answer.code == 0x88
        assert await kit.may(alice, PUBLISH, "a")  # for a while
        await kit.stand_in.advance(30)
        for action in (PUBLISH, SUBSCRIBE, RECEIVE):
            assert await kit.decide(alice, action, "a") == Deny(
                "the user database can't be read", cache=False
            )
        stranger = await kit.decide(Client("d", "alice"), PUBLISH, "a")
        assert isinstance(stranger, Deny)
        assert caplog.text.count("unable to open database file") == 1
        (tmp_path / "away").rename(kit.file)
        await kit.stand_in.advance(2)
        assert "can be read again" in caplog.text
        assert await kit.may(alice, PUBLISH, "a")
        assert isinstance(await kit.login("alice"), Allow)
        assert not [path for path in tmp_path.iterdir() if path != kit.file]


async def test_a_locked_database_fails_closed(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        writer = sqlite3.connect(kit.file, isolation_level=None)
        writer.execute("BEGIN EXCLUSIVE")
        answer = await kit.login("alice")
        assert isinstance(answer, Deny)
        assert answer.code == 0x88
        writer.execute("COMMIT")
        writer.close()
        assert isinstance(await kit.login("alice"), Allow)


@pytest.mark.parametrize(("action", "topic_filter"), [("write", "a"), ("all", "a/#/b")])
async def test_rights_that_mean_nothing_let_nobody_in(
    tmp_path: Path, action: str, topic_filter: str
) -> None:
    kit = filled(tmp_path, rights=RIGHTS)
    kit.grant("alice", "all", "a")
    async with Running(kit):
        alice = Client("c", "alice")
        await kit.enter(alice)
        kit.grant("alice", action, topic_filter)
        await kit.stand_in.advance(2)
        assert isinstance(await kit.login("alice"), Deny)
        await kit.stand_in.advance(31)  # it is asked again and again, and never confirmed
        assert not await kit.may(alice, PUBLISH, "a")
        kit.run(f"DELETE FROM rights WHERE action = '{action}' AND filter = '{topic_filter}'")
        kit.grant("alice", "all", "b")
        await kit.stand_in.advance(2)
        assert await kit.may(alice, PUBLISH, "b")


async def test_nothing_is_ever_written(tmp_path: Path) -> None:
    kit = filled(tmp_path, users="DELETE FROM users WHERE username = :username")
    with pytest.raises(ValueError, match="users: attempt to write a readonly database"):
        await kit.plugin.start()
    await kit.plugin.stop()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"users": "SELECT x FROM users WHERE username = :username"}, "users: no such column: x"),
        ({"users": "SELECT 1, 2, 3, 4 WHERE 'a' = :username"}, "4 columns, expected 1 to 3"),
        ({"rights": "SELECT action FROM rights WHERE username = :username"}, "1 columns"),
        ({"rights": "SELECT 1, 2 WHERE :username = ?"}, "rights: "),
        ({"users": "SELECT 1 WHERE 'a' = :username; SELECT 2"}, "one statement at a time"),
    ],
)
async def test_a_query_that_is_no_good_stops_the_start(
    tmp_path: Path, keys: dict[str, str], problem: str
) -> None:
    kit = filled(tmp_path, **keys)
    with pytest.raises(ValueError, match=problem):
        await kit.plugin.check()
    with pytest.raises(ValueError, match=problem):
        await kit.plugin.start()
    await kit.plugin.stop()


async def test_a_missing_database_stops_the_start_and_is_not_made(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    with pytest.raises(ValueError, match=r"users.db: users: unable to open database file"):
        await kit.plugin.start()
    assert not kit.file.exists()
    kit.file.write_text("this is no database at all, however long the text may be")
    with pytest.raises(ValueError, match="file is not a database"):
        await kit.plugin.check()


async def test_a_reload_takes_what_is_good_and_nothing_else(tmp_path: Path) -> None:
    async with Running(filled(tmp_path)) as kit:
        bad = kit.config(users="SELECT hash FROM people WHERE name = :username")
        with pytest.raises(ValueError, match="no such table: people"):
            await kit.plugin.reload(bad)
        assert isinstance(await kit.login("alice"), Allow)
        alice = Client("c", "alice")
        await kit.enter(alice)
        kit.grant("alice", "all", "a")
        await kit.plugin.reload(kit.config(rights=RIGHTS))
        assert kit.stand_in.forgotten == [None]
        assert await kit.may(alice, PUBLISH, "a")
        assert not await kit.may(alice, PUBLISH, "b")


async def test_without_aiosqlite_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    with pytest.raises(RuntimeError, match=r'pip install "mqttd\[sql\]"'):
        await filled(tmp_path).plugin.start()


@pytest.mark.parametrize("keys", [{"users": "SELECT 1"}, {"rights": "SELECT 1"}, {"poll": 0}])
def test_a_configuration_that_makes_no_sense_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"database": "x", **keys})


# What rows mean.


@pytest.mark.parametrize("name", ["+", "#", "a/b", "a+", "", "#/x", "$SYS"])
def test_a_name_with_wildcards_fills_no_filter(name: str) -> None:
    """CVE-2017-7650: a user called "#" had the rights of everybody."""
    for mark in ("%u", "%c"):
        rights = rights_of([("all", f"home/{mark}/#")])
        who = (name, "c") if mark == "%u" else ("alice", name)
        for topic in ("home/bob/x", f"home/{name}/x", "home/+/#", "home/#"):
            assert isinstance(rights.decide(SUBSCRIBE, topic, *who), Deny)


def test_a_client_id_with_a_dollar_reaches_nothing_of_the_brokers() -> None:
    rights = rights_of([("all", "%c/#")])
    assert isinstance(rights.decide(PUBLISH, "c1/x", "alice", "c1"), Allow)
    for topic in ("$SYS/#", "$SYS/broker/version", "$delayed/1/x"):
        client_id = topic.partition("/")[0]
        assert isinstance(rights.decide(SUBSCRIBE, topic, "alice", client_id), Deny)


@pytest.mark.parametrize("no", ["0", "false", "", b"", 2, -1, 0.0, 1.0])
def test_a_flag_that_is_no_number_is_no_yes(no: object) -> None:
    with pytest.raises(BadRow, match="expected the number 0 or 1"):
        rights_of([("all", "#", no)])


def test_a_flag_without_a_value_is_a_no() -> None:
    assert isinstance(rights_of([("all", "#", None)]).decide(PUBLISH, "a", "u", "c"), Deny)


def test_a_denial_that_cant_be_filled_in_denies_everything() -> None:
    rights = rights_of([("all", "#", 1), ("publish", "secret/%c", 0)])
    assert isinstance(rights.decide(PUBLISH, "a", "alice", "c"), Allow)
    assert isinstance(rights.decide(PUBLISH, "a", "alice", "+"), Deny)


def test_names_are_filled_in_once() -> None:
    rights = rights_of([("publish", "%u/%c")])
    assert isinstance(rights.decide(PUBLISH, "%c/x", "%c", "x"), Allow)
    assert isinstance(rights.decide(PUBLISH, "x/x", "%c", "x"), Deny)
    assert isinstance(rights.decide(PUBLISH, "a/%u", "a", "%u"), Allow)


def test_a_denial_wins_wherever_it_stands() -> None:
    rows = [("all", "a/#", 0), ("all", "#", 1)]
    for order in (rows, rows[::-1]):
        rights = rights_of(order)
        assert isinstance(rights.decide(PUBLISH, "a/b", "u", "c"), Deny)
        assert isinstance(rights.decide(PUBLISH, "b", "u", "c"), Allow)


def test_subscribing_includes_receiving_and_not_the_other_way() -> None:
    subscriber, receiver = rights_of([("subscribe", "a")]), rights_of([("receive", "a")])
    assert isinstance(subscriber.decide(RECEIVE, "a", "u", "c"), Allow)
    assert isinstance(receiver.decide(RECEIVE, "a", "u", "c"), Allow)
    assert isinstance(receiver.decide(SUBSCRIBE, "a", "u", "c"), Deny)
    assert isinstance(subscriber.decide(PUBLISH, "a", "u", "c"), Deny)


def test_a_wildcard_reaches_no_dollar_topic() -> None:
    assert isinstance(rights_of([("all", "#")]).decide(PUBLISH, "$SYS/x", "u", "c"), Deny)
    assert isinstance(rights_of([("all", "$SYS/#")]).decide(RECEIVE, "$SYS/x", "u", "c"), Allow)


@pytest.mark.parametrize("row", [("all", "$share/g/a"), ("all", None), (None, "a"), ("all", "")])
def test_rows_that_mean_nothing(row: tuple[Any, Any]) -> None:
    with pytest.raises(BadRow):
        rights_of([row])


@given(st.lists(st.sampled_from(["a", "b", "+", "#", "%u"]), min_size=1, max_size=4), st.text())
def test_no_rights_allow_nothing(levels: list[str], name: str) -> None:
    assert isinstance(rights_of([]).decide(PUBLISH, "/".join(levels), name, name), Deny)
