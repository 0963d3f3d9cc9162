"""`mqttd acl check`: verdicts, what is printed, exit codes."""

import json
from pathlib import Path

import pytest
from mqttd_plugins import _acl_check as acl_check

RULES = """\
user roger
topic read news/#
topic deny news/secret
pattern write up/%c
"""


@pytest.fixture
def acl(tmp_path: Path) -> Path:
    file = tmp_path / "acl"
    file.write_text(RULES)
    return file


@pytest.mark.parametrize(
    ("question", "code", "told"),
    [
        ("--user roger receive news/x", 0, "allowed\n  {acl}:2 topic read news/#\n"),
        ("--user roger receive news/secret", 1, "denied\n  {acl}:3 topic deny news/secret\n"),
        ("--client c1 publish up/c1", 0, "allowed\n  {acl}:4 pattern write up/%c\n"),
        (
            "publish up/c1",
            1,
            "denied\n  {acl}: no rule lets a client without a user name write it; "
            "its client id can't stand in patterns\n",
        ),
        (
            "--user roger --client c subscribe $share/g/news/#",
            0,
            "allowed, in part: each delivery is asked about\n  {acl}:2 topic read news/#\n",
        ),
    ],
)
def test_the_answer_names_the_line(
    acl: Path, question: str, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert acl_check.main(["check", "--file", str(acl), *question.split()]) == code
    assert capsys.readouterr() == (told.format(acl=acl), "")


def test_the_answer_as_json(acl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "--file", str(acl), "--json", "--user", "roger", "publish", "news/x"]
    assert acl_check.main(words) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "allowed": False,
        "partial": False,
        "action": "publish",
        "topic": "news/x",
        "user": "roger",
        "client": "",
        "file": str(acl),
        "line": None,
        "rule": None,
        "reason": "no rule lets user 'roger' write it; its client id can't stand in patterns",
    }


@pytest.mark.parametrize("question", ["publish a/#", "subscribe a/#/b", "subscribe $share/g", ""])
def test_questions_that_are_none(
    acl: Path, question: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert acl_check.main(["check", "--file", str(acl), *question.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "mqttd acl" in err


def test_a_list_that_is_no_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "acl"
    assert acl_check.main(["check", "--file", str(file), "publish", "a"]) == 2
    file.write_text("foo\ntopic\n")
    assert acl_check.main(["check", "--file", str(file), "publish", "a"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"mqttd acl: can't read {file}: No such file or directory"
    assert err[1].startswith(f"mqttd acl: {file}:1: found 'foo'")
    assert err[2].startswith(f"mqttd acl: {file}:2: a rule without a topic")


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert acl_check.main(["check", "--help"]) == 0
    assert "--file config/acl.example" in capsys.readouterr().out
