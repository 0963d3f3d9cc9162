"""password_file: who gets in, who doesn't, and that nothing tells which users there are."""

import asyncio
import base64
import hashlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins import _hashes, _verifier
from mqttd_plugins._hashes import PasswordHash
from mqttd_plugins.password_file import Config, PasswordFile
from pydantic import ValidationError

from mqttd.api import NOT_MINE, Allow, Client, Credentials, Decision, Deny, SessionInfo
from mqttd.testing import StandIn

POLL_S = 2.0


def cheap(password: str, salt: bytes = b"0123456789ab") -> str:
    """A hash of Mosquitto's old kind, which costs next to nothing."""
    digest = hashlib.sha512(password.encode() + salt).digest()
    return f"$6${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


class Kit:
    """The plugin on a file, without a broker."""

    def __init__(self, file: Path, **keys: Any) -> None:
        self.file = file
        self.stand_in = StandIn("password_file")
        self.plugin = PasswordFile(self.config(**keys), self.stand_in)

    def config(self, **keys: Any) -> Config:
        return Config.model_validate({"file": str(self.file), "poll": POLL_S, **keys})

    def write(self, *lines: str) -> None:
        draft = self.file.with_name("draft")
        draft.write_text("".join(f"{line}\n" for line in lines))
        os.replace(draft, self.file)

    async def login(self, user: str | None, password: str | None) -> Decision:
        secret = None if password is None else password.encode()
        return await self.plugin.authenticate(Client("c", user), Credentials(user, secret))

    @property
    def hashes(self) -> int:
        return self.stand_in.counts.get("hashes", 0)


async def started(tmp_path: Path, *lines: str, **keys: Any) -> Kit:
    kit = Kit(tmp_path / "passwd", **keys)
    kit.write(*lines)
    await kit.plugin.start()
    return kit


def connected(client_id: str, user: str) -> SessionInfo:
    return SessionInfo(client_id, user, True, "", (), 0, 0, 0)


async def test_who_knows_the_password_gets_in(tmp_path: Path) -> None:
    kit = await started(tmp_path, "# our users", "", f"alice:{cheap('secret')}")
    assert await kit.login("alice", "secret") == Allow(rule=f"{kit.file}:3")


@pytest.mark.parametrize("password", ["Secret", "", "secret ", None])
async def test_a_wrong_password_is_refused(tmp_path: Path, password: str | None) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    answer = await kit.login("alice", password)
    assert isinstance(answer, Deny)
    assert answer.code == 0x86


async def test_no_password_isnt_the_empty_one(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('')}")
    assert isinstance(await kit.login("alice", ""), Allow)
    assert isinstance(await kit.login("alice", None), Deny)


async def test_others_are_left_to_the_next_plugin(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    assert await kit.login("bob", "secret") == NOT_MINE
    assert await kit.login(None, None) == NOT_MINE
    assert await kit.login("Alice", "secret") == NOT_MINE


async def test_argon2id(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{_hashes.make(b'secret')}")
    assert isinstance(await kit.login("alice", "secret"), Allow)
    assert isinstance(await kit.login("alice", "sesame"), Deny)


async def test_an_unknown_user_costs_a_hash_of_the_kind_that_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[PasswordHash] = []
    verify = PasswordHash.verify

    def counted(self: PasswordHash, password: bytes) -> bool:
        stored.append(self)
        return verify(self, password)

    monkeypatch.setattr(PasswordHash, "verify", counted)
    kit = await started(tmp_path, f"alice:{cheap('secret')}", f"bob:{cheap('sesame')}")
    answers = [await kit.login(user, "wrong") for user in ("alice", "mallory", "trudy", "")]
    assert [type(answer) for answer in answers] == [Deny, *[type(NOT_MINE)] * 3]
    assert [one.scheme for one in stored] == [_hashes.SHA512] * 4


async def test_an_unknown_user_costs_as_much_the_second_time(tmp_path: Path) -> None:
    """Also one who comes with a password that is right for somebody else."""
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    await kit.login("alice", "secret")
    for _ in range(2):
        assert await kit.login("mallory", "secret") == NOT_MINE
    assert kit.hashes == 3


async def test_in_an_empty_file_nobody_costs_argon2id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemes: list[str] = []
    monkeypatch.setattr(PasswordHash, "verify", lambda self, _: schemes.append(self.scheme))
    kit = await started(tmp_path, "# nobody yet")
    assert await kit.login("alice", "secret") == NOT_MINE
    assert schemes == [_hashes.ARGON2ID]


async def test_what_was_right_is_not_hashed_again_for_a_while(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}", remember=10, poll=0)
    for _ in range(3):
        assert isinstance(await kit.login("alice", "secret"), Allow)
    assert kit.hashes == 1
    assert isinstance(await kit.login("alice", "wrong"), Deny)
    assert isinstance(await kit.login("alice", "wrong"), Deny)
    assert kit.hashes == 3  # what was wrong is hashed each time
    await kit.stand_in.advance(10)
    await kit.login("alice", "secret")
    assert kit.hashes == 4


async def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    lines = [f"user{number}:{cheap('secret')}" for number in range(3)]
    kit = await started(tmp_path, *lines, remember_entries=2)
    for number in (0, 1, 2):
        await kit.login(f"user{number}", "secret")
    await kit.login("user2", "secret")
    assert kit.hashes == 3
    await kit.login("user0", "secret")  # it had to go
    assert kit.hashes == 4


async def test_remembering_can_be_turned_off(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}", remember=0)
    await kit.login("alice", "secret")
    await kit.login("alice", "secret")
    assert kit.hashes == 2


class Gate:
    """Hashes that don't end before the test says so; counts how many there are at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = self.all = 0
        monkeypatch.setattr(PasswordHash, "verify", lambda _, password: self(password))

    def __call__(self, password: bytes) -> bool:
        with self.lock:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)
        self.open.wait(30)
        with self.lock:
            self.now -= 1
        return password == b"secret"


async def test_few_hashes_are_computed_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    lines = [f"user{number}:{cheap('secret')}" for number in range(20)]
    kit = await started(tmp_path, *lines, parallel=2)
    logins = [asyncio.ensure_future(kit.login(f"user{n}", "secret")) for n in range(20)]
    while gate.now < 2:
        await asyncio.sleep(0)
    assert kit.stand_in.gauges["hashes_waiting"] == 18
    gate.open.set()
    assert all(isinstance(answer, Allow) for answer in await asyncio.gather(*logins))
    assert gate.most == 2
    assert kit.stand_in.gauges["hashes_waiting"] == 0


async def test_a_fleet_with_one_password_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.open.set()
    kit = await started(tmp_path, f"fleet:{cheap('secret')}", parallel=2)
    answers = await asyncio.gather(*(kit.login("fleet", "secret") for _ in range(200)))
    assert all(isinstance(answer, Allow) for answer in answers)
    assert gate.all == 1
    answers = await asyncio.gather(*(kit.login("fleet", "wrong") for _ in range(200)))
    assert all(isinstance(answer, Deny) for answer in answers)
    assert gate.all == 2


async def test_when_the_first_of_a_fleet_gives_up_the_next_one_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    kit = await started(tmp_path, *(f"{u}:{cheap('secret')}" for u in ("a", "b")), parallel=1)
    other = asyncio.ensure_future(kit.login("a", "secret"))
    while gate.now < 1:
        await asyncio.sleep(0)
    first, second = (asyncio.ensure_future(kit.login("b", "secret")) for _ in range(2))
    while kit.stand_in.gauges["hashes_waiting"] < 1:
        await asyncio.sleep(0)
    first.cancel()
    gate.open.set()
    assert isinstance(await second, Allow)
    assert isinstance(await other, Allow)
    assert gate.all == 2


async def test_who_gave_up_waiting_costs_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    kit = await started(tmp_path, *(f"u{n}:{cheap('secret')}" for n in range(3)), parallel=1)
    first, second, third = (asyncio.ensure_future(kit.login(f"u{n}", "secret")) for n in range(3))
    while gate.now < 1:
        await asyncio.sleep(0)
    second.cancel()
    gate.open.set()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert gate.all == 2


async def test_too_many_at_a_time_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    lines = [f"user{number}:{cheap('secret')}" for number in range(2)]
    kit = await started(tmp_path, *lines, parallel=1, patience=0.01)
    first = asyncio.ensure_future(kit.login("user0", "secret"))
    while gate.now < 1:
        await asyncio.sleep(0)
    for user in ("user1", "nobody"):
        answer = await kit.login(user, "secret")
        assert isinstance(answer, Deny)
        assert answer.code == 0x89
    gate.open.set()
    assert isinstance(await first, Allow)
    assert isinstance(await kit.login("user1", "secret"), Allow)
    assert kit.stand_in.counts["busy"] == 2
    assert gate.all == 2


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    kit.write(f"alice:{cheap('sesame')}", f"bob:{cheap('secret')}")
    assert isinstance(await kit.login("alice", "secret"), Allow)
    await kit.stand_in.advance(POLL_S + 1)
    assert isinstance(await kit.login("alice", "secret"), Deny)
    assert isinstance(await kit.login("alice", "sesame"), Allow)
    assert isinstance(await kit.login("bob", "secret"), Allow)
    (audited,) = kit.stand_in.audited
    assert audited == (
        "users_changed",
        {"file": str(kit.file), "users": 2, "added": 1, "removed": 0, "changed": 1},
    )


async def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """Truncated first and filled afterwards, as many editors do it."""
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    kit.stand_in.known["c"] = connected("c", "alice")
    kit.file.write_text("")
    await kit.stand_in.advance(POLL_S)
    kit.file.write_text(f"alice:{cheap('secret')}\nbob:{cheap('secret')}\n")
    await kit.stand_in.advance(POLL_S + 1)
    assert kit.stand_in.kicked == []
    assert isinstance(await kit.login("bob", "secret"), Allow)


async def test_a_bad_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    kit.write(f"alice:{cheap('sesame')}", "bob:hunter2")
    with caplog.at_level(logging.ERROR):
        await kit.stand_in.advance(POLL_S + 1)
    assert f"{kit.file}:2: not a password hash" in caplog.text
    assert "hunter2" not in caplog.text
    assert kit.stand_in.counts["reload_failures"] == 1
    assert isinstance(await kit.login("alice", "secret"), Allow)
    with pytest.raises(ValueError, match="passwd:2: not a password hash"):
        await kit.plugin.reload(kit.config())
    assert isinstance(await kit.login("alice", "secret"), Allow)
    kit.write(f"alice:{cheap('sesame')}")  # and it is still looked at
    await kit.stand_in.advance(POLL_S + 1)
    assert isinstance(await kit.login("alice", "sesame"), Allow)


async def test_a_file_that_has_gone_changes_nothing(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    kit.file.unlink()
    await kit.stand_in.advance(2 * POLL_S)
    assert isinstance(await kit.login("alice", "secret"), Allow)
    with pytest.raises(ValueError, match="No such file"):
        await kit.plugin.reload(kit.config())
    kit.write(f"bob:{cheap('secret')}")
    await kit.stand_in.advance(POLL_S + 1)
    assert await kit.login("alice", "secret") == NOT_MINE


async def test_a_reload_takes_another_file(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    other = tmp_path / "other"
    other.write_text(f"bob:{cheap('secret')}\n")
    await kit.plugin.reload(kit.config(file=str(other)))
    assert await kit.login("alice", "secret") == NOT_MINE
    assert await kit.login("bob", "secret") == Allow(rule=f"{other}:1")
    kit.write(f"carol:{cheap('secret')}")  # the old file is nobody's business any more
    await kit.stand_in.advance(POLL_S + 1)
    assert await kit.login("carol", "secret") == NOT_MINE


async def test_whose_entry_changes_is_disconnected(tmp_path: Path) -> None:
    users = ("alice", "bob", "carol")
    kit = await started(tmp_path, *(f"{user}:{cheap('secret')}" for user in users))
    kit.stand_in.known.update((f"of-{user}", connected(f"of-{user}", user)) for user in users)
    kit.write(f"bob:{cheap('sesame')}", f"carol:{cheap('secret')}")
    await kit.stand_in.advance(POLL_S + 1)
    assert {client_id for client_id, _, _ in kit.stand_in.kicked} == {"of-alice", "of-bob"}
    assert {code for _, _, code in kit.stand_in.kicked} == {0x87}


async def test_disconnecting_can_be_turned_off(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}", disconnect=False)
    kit.stand_in.known["c"] = connected("c", "alice")
    kit.write("# nobody")
    await kit.stand_in.advance(POLL_S + 1)
    assert await kit.login("alice", "secret") == NOT_MINE
    assert kit.stand_in.kicked == []


async def test_a_password_that_changes_while_it_is_checked_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    kit = await started(tmp_path, f"alice:{cheap('secret')}", parallel=1)
    login = asyncio.ensure_future(kit.login("alice", "secret"))
    while gate.now < 1:
        await asyncio.sleep(0)
    kit.write(f"alice:{cheap('sesame')}")
    await kit.plugin.reload(kit.config())
    gate.open.set()
    assert isinstance(await login, Deny)


async def test_after_the_stop_nothing_is_read(tmp_path: Path) -> None:
    kit = await started(tmp_path, f"alice:{cheap('secret')}")
    await kit.plugin.stop()
    kit.write("nonsense")
    await kit.stand_in.advance(10 * POLL_S)
    assert "reload_failures" not in kit.stand_in.counts


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"alice\n", "passwd:1: expected USER:HASH, found no colon"),
        (b"# fine\n\nalice:\n", "passwd:3: nothing behind the colon of user 'alice'"),
        (b":$6$x$y\n", "passwd:1: the user name is empty"),
        (b"alice:secret\n", "passwd:1: not a password hash .*mqttd passwd -U"),
        (b"a\x07b:secret\n", "passwd:1: user name .* no control characters"),
        (b"# fine\n\xff:x\n", "passwd:2: not UTF-8"),
        (f"a:{cheap('x')}\na:{cheap('y')}\n".encode(), "passwd:2: user 'a' is in line 1 already"),
        (f"a:{cheap('x')}:rest\n".encode(), "passwd:1: expected .6.SALT.DIGEST"),
    ],
)
async def test_a_line_that_is_no_good_stops_the_start(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    kit = Kit(tmp_path / "passwd")
    kit.file.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        await kit.plugin.start()
    with pytest.raises(ValueError, match=problem):
        await kit.plugin.check()


async def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    kit = Kit(tmp_path / "passwd")
    for call in (kit.plugin.start, kit.plugin.check):
        with pytest.raises(ValueError, match=r"passwd: can't be read: No such file"):
            await call()


async def test_blanks_and_line_ends_are_taken_as_mosquitto_takes_them(tmp_path: Path) -> None:
    kit = Kit(tmp_path / "passwd")
    text = f"#alice:x\r\n\r\n alice : {cheap('secret')} \r\nbob:{cheap('sesame')}"
    kit.file.write_bytes(text.encode())
    await kit.plugin.start()
    assert isinstance(await kit.login("alice", "secret"), Allow)
    assert isinstance(await kit.login("bob", "sesame"), Allow)


async def test_a_file_that_anybody_can_read_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = Kit(tmp_path / "passwd")
    kit.write("# nobody")
    kit.file.chmod(0o644)
    await kit.plugin.start()
    assert "anybody on this machine may read it" in caplog.text
    caplog.clear()
    kit.file.chmod(0o640)
    await kit.plugin.reload(kit.config())
    assert caplog.text == ""


async def test_without_argon2_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = Kit(tmp_path / "passwd")
    kit.write(f"alice:{_hashes.make(b'secret')}")
    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(RuntimeError, match="pip install argon2-cffi"):
        await kit.plugin.start()


@pytest.mark.parametrize(
    "keys", [{"parallel": 0}, {"patience": 0}, {"remember": -1}, {"files": "x"}, {"poll": -1}]
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path, keys: Any) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"file": str(tmp_path / "passwd"), **keys})


def test_half_of_the_processors_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, expected in ((1, 1), (2, 1), (4, 2), (64, 4)):
        monkeypatch.setattr(_verifier, "processors", lambda count=processors: count)
        made = _verifier.Verifier(StandIn(), _verifier.HashingConfig())
        assert made.parallel == expected


async def test_whose_turn_would_come_too_late_is_not_let_into_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what hashes take: a guess at first, 50 ms."""
    gate = Gate(monkeypatch)
    lines = [f"user{number}:{cheap('secret')}" for number in range(9)]
    kit = await started(tmp_path, *lines, parallel=2, patience=0.1)
    logins = [asyncio.ensure_future(kit.login(f"user{n}", "secret")) for n in range(7)]
    while gate.now < 2 or kit.stand_in.gauges["hashes_waiting"] < 5:
        await asyncio.sleep(0)
    answer = await kit.login("user7", "secret")  # five of 50 ms, two at a time: 125 ms
    assert isinstance(answer, Deny)
    assert answer.code == 0x89
    gate.open.set()
    await asyncio.gather(*logins)
    assert isinstance(await kit.login("user8", "secret"), Allow)
