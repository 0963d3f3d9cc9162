"""`mqttd acl check`: verdicts, what is printed, exit codes."""

import json
from pathlib import Path

import pytest
from mqttd_plugins import acl_check

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
        "observe": False,
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


def configured(tmp_path: Path, plugins: str) -> str:
    file = tmp_path / "mqttd.yaml"
    file.write_text(plugins)
    return str(file)


def test_the_list_and_its_mode_come_from_a_configuration(
    acl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = "plugins:\n  - use: acl_file\n    config: {file: acl, MODE}\n"
    question = ["--user", "roger", "--client", "c"]
    for mode, asked, code, told in (
        ("observe: false", ["receive", "news/x"], 0, f"allowed\n  {acl}:2 topic read news/#"),
        (
            "observe: true",
            ["receive", "news/secret"],
            1,
            f"denied, but only observed: the broker allows it\n  {acl}:3 topic deny news/secret",
        ),
        (
            "compat: mosquitto",
            ["subscribe", "x"],
            0,
            f"allowed, in part: each delivery is asked about\n  {acl}: compat: mosquitto",
        ),
        (
            "partial_filters: deny",
            ["subscribe", "#"],
            1,
            f"denied\n  {acl}: it reaches further than {acl}:2 topic read news/#",
        ),
    ):
        file = configured(tmp_path, plugin.replace("MODE", mode))
        assert acl_check.main(["check", "-c", file, *question, *asked]) == code
        assert capsys.readouterr().out == told + "\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plugins: []\n", "no plugin acl_file in it"),
        ("plugins:\n  - use: acl_file\n    config: {fil: acl}\n", "mqttd.yaml:3:14 plugins[0]"),
        ("plugin: []\n", "mqttd.yaml:1:1 plugin: unknown key"),
    ],
)
def test_a_configuration_that_is_no_good(
    tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configured(tmp_path, text)
    assert acl_check.main(["check", "-c", file, "publish", "a"]) == 2
    assert told in capsys.readouterr().err


def test_a_configuration_that_isnt_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert acl_check.main(["check", "-c", str(tmp_path / "none.yaml"), "publish", "a"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_one_source_is_expected(acl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert acl_check.main(["check", "publish", "a"]) == 2
    assert acl_check.main(["check", "-c", "x", "--file", str(acl), "publish", "a"]) == 2
    assert "--file" in capsys.readouterr().err
