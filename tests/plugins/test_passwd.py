"""`mqttd passwd`: what it writes, what it leaves alone, what it says."""

import getpass
import io
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins import _hashes, _scram_keys, _user_file, passwd

from mqttd.core.encode import encode_packet
from mqttd.core.packets import Connect
from mqttd.core.properties import Properties

CHEAP = ("-H", "sha512-pbkdf2", "-I", "1000")


class Terminal(io.TextIOWrapper):
    """Standard input: a pipe with some bytes in it, or a terminal."""

    def __init__(self, data: bytes = b"", is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "passwd"


def users(file: Path) -> dict[str, _hashes.PasswordHash]:
    return {user: entry.value for user, entry in _user_file.read(file, _hashes.parse).items()}


def run(*words: object) -> int:
    try:
        return passwd.main([str(word) for word in words])
    except SystemExit as error:  # argparse
        return int(error.code or 0)


def answers(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    left = list(texts)
    monkeypatch.setattr(sys, "stdin", Terminal(is_terminal=True))
    monkeypatch.setattr("getpass.getpass", lambda _: left.pop(0))


def test_a_new_file_is_nobody_elses(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-c", "-b", file, "alice", "secret") == 0
    assert capsys.readouterr().out == f"{file}: user alice created\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    stored = users(file)["alice"]
    assert stored.scheme == _hashes.ARGON2ID
    assert stored.verify(b"secret")


def test_the_password_is_asked_for_twice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "sécret", "sécret")
    assert run(*CHEAP, "-c", file, "alice") == 0
    assert users(file)["alice"].verify("sécret".encode())


def test_two_answers_that_differ_change_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, "secret", "sceret")
    assert run(*CHEAP, "-c", file, "alice") == 2
    error = capsys.readouterr().err
    assert error == "mqttd passwd: the passwords differ, nothing was changed\n"
    assert not file.exists()


@pytest.mark.parametrize("line", [b"secret\n", b"secret\r\n", b"secret", b"secret\nmore\n"])
def test_a_line_of_input(file: Path, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(line))
    assert run(*CHEAP, "--stdin", "-c", file, "alice") == 0
    assert users(file)["alice"].verify(b"secret")


def test_many_users_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*CHEAP, "-c", "-b", file, "bob", "old")
    file.write_text("# ours\n" + file.read_text())
    monkeypatch.setattr(sys, "stdin", Terminal(b"ann:one\n\nbob:two:three\r\ncy: x "))
    assert run(*CHEAP, "--stdin", file) == 0
    assert capsys.readouterr().out.endswith(f"{file}: 3 users added or updated\n")
    found = users(file)
    assert list(found) == ["bob", "ann", "cy"]
    for user, password in (("ann", b"one"), ("bob", b"two:three"), ("cy", b" x ")):
        assert found[user].verify(password)
    assert file.read_text().startswith("# ours\nbob:")
    monkeypatch.setattr(sys, "stdin", Terminal(b"dan:four"))
    assert run(*CHEAP, "--json", "--stdin", "-c", file) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": str(file), "done": "created", "user": None, "users": 1}
    assert list(users(file)) == ["dan"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"ann:one\nhunter2\n", "line 2 of the input: expected USER:PASSWORD"),
        (b"ann:hunter2\nann:x\n", "line 2 of the input: user 'ann' is there twice"),
        (b"ann:hunter2\nbob:\n", "line 2 of the input: expected a password of 1 to 1024"),
        (b" ann:hunter2\n", "line 1 of the input: user name ' ann': no blanks"),
        (b"#ann:hunter2\n", "line 1 of the input: user name '#ann'"),
        (b"\n", "no USER:PASSWORD line"),
    ],
)
def test_one_bad_line_of_many_changes_nothing(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
    told: str,
) -> None:
    run(*CHEAP, "-c", "-b", file, "zoe", "old")
    before = file.read_bytes()
    monkeypatch.setattr(sys, "stdin", Terminal(data))
    assert run(*CHEAP, "--stdin", file) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "hunter2" not in error
    assert file.read_bytes() == before


def test_many_users_of_scram_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(b"ann:one\nbob:two\n"))
    assert run("--scram", "-I", 4096, "-c", "--stdin", file) == 0
    found = _user_file.read(file, _scram_keys.parse)
    assert list(found) == ["ann", "bob"]
    monkeypatch.setattr(sys, "stdin", Terminal("a\u00adnn:one\n".encode()))
    assert run("--scram", "-I", 4096, "--stdin", file) == 2


def test_any_bytes_are_a_password(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(b"\xff\x00 x \n"))
    assert run(*CHEAP, "--stdin", "-c", file, "alice") == 0
    assert users(file)["alice"].verify(b"\xff\x00 x ")


@pytest.mark.parametrize("line", [b"\n", b"", b"x" * 1025])
def test_a_password_of_no_length_or_too_much(
    file: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(line))
    assert run(*CHEAP, "--stdin", "-c", file, "alice") == 2
    assert "1 to 1024 bytes" in capsys.readouterr().err
    assert not file.exists()


def test_without_a_terminal_nobody_is_asked(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert run("-c", file, "alice") == 2
    assert "use --stdin or -b" in capsys.readouterr().err


def test_adding_updating_and_deleting_keep_the_rest(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*CHEAP, "-c", "-b", file, "alice", "one")
    file.write_text(f"# ours\n{file.read_text()}\n# theirs\n")
    file.chmod(0o640)
    assert run(*CHEAP, "-b", file, "bob", "two") == 0
    assert run(*CHEAP, "-b", file, "alice", "three") == 0
    lines = file.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["# ours", "alice", "", "# theirs", "bob"]
    assert users(file)["alice"].verify(b"three")
    assert users(file)["bob"].verify(b"two")
    assert run("-D", file, "alice") == 0
    assert list(users(file)) == ["bob"]
    assert file.read_text().startswith("# ours\n\n# theirs\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    told = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == ["created", "added", "updated", "deleted"]


def test_create_begins_anew(file: Path) -> None:
    run(*CHEAP, "-c", "-b", file, "alice", "one")
    run(*CHEAP, "-c", "-b", file, "bob", "two")
    assert list(users(file)) == ["bob"]


def test_deleting_nobody(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*CHEAP, "-c", "-b", file, "alice", "one")
    before = file.read_bytes()
    assert run("-D", file, "bob") == 1
    assert capsys.readouterr().err == f"mqttd passwd: {file}: no user 'bob'\n"
    assert file.read_bytes() == before


def test_a_file_that_isnt_there_is_not_made_by_chance(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*CHEAP, "-b", file, "alice", "secret") == 2
    assert "can't be read: No such file" in capsys.readouterr().err
    assert not file.exists()


def test_a_file_with_a_bad_line_is_not_touched(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("alice:hunter2\n")
    for words in (("-b", file, "bob", "secret"), ("-D", file, "alice")):
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert f"{file}:1: not a password hash" in error
        assert "hunter2" not in error
    assert file.read_text() == "alice:hunter2\n"


def test_a_link_stays_a_link(tmp_path: Path, file: Path) -> None:
    run(*CHEAP, "-c", "-b", file, "alice", "one")
    link = tmp_path / "link"
    link.symlink_to(file)
    assert run(*CHEAP, "-b", link, "bob", "two") == 0
    assert link.is_symlink()
    assert list(users(file)) == ["alice", "bob"]


def test_nothing_is_left_behind_when_writing_fails(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*CHEAP, "-c", "-b", file, "alice", "one")
    before = file.read_bytes()

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    assert run(*CHEAP, "-b", file, "bob", "two") == 2
    assert "can't be written: No space left on device" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_several_at_the_same_time_lose_nobody(file: Path) -> None:
    file.write_text("# nobody yet\n")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: run(*CHEAP, "-b", file, f"user{n}", "x"), range(24)))
    assert sorted(users(file)) == sorted(f"user{n}" for n in range(24))


def test_a_plain_file_is_hashed_in_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("# plain\nalice:secret\n\nbob: two:parts \n")
    assert run(*CHEAP, "-U", file) == 0
    assert capsys.readouterr().out == f"{file}: 2 users hashed\n"
    assert users(file)["alice"].verify(b"secret")
    assert users(file)["bob"].verify(b" two:parts ")
    assert file.read_text().startswith("# plain\nalice:$7$1000$")
    before = file.read_bytes()
    assert run(*CHEAP, "-U", file) == 0  # twice does no harm
    assert file.read_bytes() == before


def test_a_hash_that_is_cut_off_is_no_password(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("alice:$7$101$AAEC\n")
    assert run("-U", file) == 2
    assert f"{file}:1: expected $7$ITERATIONS" in capsys.readouterr().err


def test_scram_keys(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("pass\u00adword\n".encode()))  # a soft hyphen
    assert run("--scram", "-I", 4096, "--stdin", "-c", file, "alice") == 0
    assert run("--scram", "-b", file, "bob", "secret") == 0
    entries = _user_file.read(file, _scram_keys.parse)
    alice, bob = entries["alice"].value, entries["bob"].value
    assert alice == _scram_keys.derive("password", alice.salt, 4096)
    assert bob == _scram_keys.derive("secret", bob.salt, _scram_keys.ITERATIONS)
    assert run("--scram", "-D", file, "alice") == 0
    assert list(_user_file.read(file, _scram_keys.parse)) == ["bob"]


def test_the_two_kinds_of_files_are_not_mixed(file: Path) -> None:
    run("--scram", "-b", "-c", file, "alice", "secret")
    before = file.read_bytes()
    assert run(*CHEAP, "-b", file, "bob", "secret") == 2
    assert file.read_bytes() == before


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CHEAP, "--json", "-c", "-b", file, "alice", "secret") == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(file),
        "done": "created",
        "user": "alice",
        "users": 1,
    }
    assert run("--json", "-D", file, "bob") == 1
    assert json.loads(capsys.readouterr().out) == {
        "file": str(file),
        "done": None,
        "error": f"{file}: no user 'bob'",
    }


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["F"], "USER is missing"),
        (["F", "alice", "secret"], "-b goes with"),
        (["-b", "F", "alice"], "-b goes with"),
        (["-b", "--stdin", "F", "alice", "x"], "not allowed with"),
        (["-c", "-D", "F", "alice"], "not allowed with"),
        (["-U", "F", "alice"], "-U takes FILE alone"),
        (["-U", "--scram", "F"], "-U takes FILE alone"),
        (["-D", "--stdin", "F", "alice"], "-D needs no password"),
        (["-H", "md5", "F", "alice"], "invalid choice"),
        (["-I", "5000", "F", "alice"], "-I goes with"),
        (["--scram", "-I", "4095", "F", "alice"], "expected 4096"),
        (["F", "a:b"], "no colon"),
        (["F", ""], "the user name is empty"),
        (["F", " alice"], "no blanks around it"),
        (["F", "#alice"], "no # in front"),
        (["F", "a\nb"], "no control characters"),
        (["--scram", "F", "ali\u00adce"], "SASLprep"),
        (["--scram", "F", "a" * 257], "at most 256 characters"),
    ],
)
def test_usage(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert problem in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: mqttd passwd ")
    assert "examples:" in out


needs_mosquitto = pytest.mark.skipif(
    shutil.which("mosquitto_passwd") is None,
    reason="needs mosquitto_passwd (Debian: apt-get install mosquitto)",
)


@needs_mosquitto
@pytest.mark.parametrize("kind", ["sha512", "sha512-pbkdf2"])
def test_what_mosquitto_passwd_writes_is_read(file: Path, kind: str) -> None:
    command = ["mosquitto_passwd", "-H", kind, "-c", "-b", str(file), "alice", "secret"]
    subprocess.run(command, check=True, capture_output=True)
    assert users(file)["alice"].verify(b"secret")
    assert not users(file)["alice"].verify(b"sesame")


@needs_mosquitto
def test_mosquitto_passwd_works_on_what_we_write(file: Path) -> None:
    run(*CHEAP, "-c", "-b", file, "alice", "secret")
    command = ["mosquitto_passwd", "-b", str(file), "bob", "sesame"]
    subprocess.run(command, check=True, capture_output=True)
    assert users(file)["alice"].verify(b"secret")
    assert users(file)["bob"].verify(b"sesame")


def connack(path: Path, user: str, password: str) -> int:
    """The return code of an MQTT 3.1.1 broker behind a Unix socket."""
    connect = Connect("MQTT", 4, True, 0, "c", None, user, password.encode(), Properties())
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(encode_packet(connect, 4))
        return client.recv(4)[3]


@needs_mosquitto
@pytest.mark.skipif(
    shutil.which("mosquitto") is None, reason="mosquitto is missing: apt-get install mosquitto"
)
def test_mosquitto_lets_in_whom_we_write_down(tmp_path: Path, file: Path) -> None:
    run(*CHEAP, "-c", "-b", file, "alice", "secret")
    at, conf = tmp_path / "socket", tmp_path / "mosquitto.conf"
    conf.write_text(f"user {getpass.getuser()}\nlistener 0 {at}\npassword_file {file}\n")
    with subprocess.Popen(["mosquitto", "-c", conf], stderr=subprocess.DEVNULL) as broker:
        try:
            while not at.exists() and broker.poll() is None:
                time.sleep(0.01)
            assert [connack(at, "alice", word) for word in ("secret", "sesame")] == [0, 5]
        finally:
            broker.terminate()
