"""docs/explanation/verdict.md: the tests that it calls on exist, and it tells of every class."""

import re
from pathlib import Path

from device_sim.judge.verdict import CLASSES, promises

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "verdict.md"
CALL = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")
WORDS = {"unflagged": "duplicated without DUP"}


def test_every_rule_names_a_test_that_exists() -> None:
    calls = CALL.findall(PAGE.read_text())
    assert len(calls) > 40
    for name, path in calls:
        source = (PAGE.parent / path).resolve().read_text()
        assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), name


def test_every_class_is_told() -> None:
    text = PAGE.read_text()
    for name in CLASSES:
        if name not in ("sent", "unflagged"):
            assert f"\n| {name.replace('_', ' ')} |" in text, name


def test_the_table_of_broken_promises_is_that_of_the_code() -> None:
    text = PAGE.read_text().partition("## What breaks a promise")[2].partition("##")[0]
    told: dict[str, list[str]] = {}
    for names, *cells in re.findall(
        r"^\| ([\w, ]+) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE
    ):
        for name in names.split(", "):
            told[name] = cells
    for name in CLASSES:
        if name in ("sent", "received", "acked"):
            continue
        cells = told[WORDS.get(name, name.replace("_", " "))]
        for qos, cell in enumerate(cells):
            usual = name in {found for _, found in promises(qos, False)}
            strict = name in {found for _, found in promises(qos, True)}
            if name == "unflagged" and qos != 1:
                usual = strict = "duplicated" in {found for _, found in promises(qos, False)}
            if usual or strict:
                assert cell == ("bad" if usual else "with `--strict`"), name
            else:
                assert not cell.startswith(("bad", "with")), name
