"""The short form of `python -m tests.crash`: acknowledged is durable, at any instant."""

from pathlib import Path

import pytest

from tests.crash.points import POINTS
from tests.crash.run import Run

TOGETHER = (
    ("create-statement", "commit-before", "load-copy"),
    ("create-made", "commit-after", "checkpoint-before"),
    ("create-named", "released", "checkpoint-after"),
    ("between", "load-before", "rest-before"),
    ("torn", "load-after", "rest-after"),
    ("page-before", "page-after", "page-served"),
    ("tidy-garbage", "tidy-sweep", "tidy-vacuum"),
)
"""Crash points of one run, one after the other."""


@pytest.mark.parametrize(("seed", "durability"), [(1, "full"), (2, "os")])
async def test_nothing_acknowledged_is_lost(seed: int, durability: str, tmp_path: Path) -> None:
    verdict = await Run(tmp_path, seed, 6, durability).run()
    assert verdict["wrong"] == [], f"python -m tests.crash --kills 6 --seed {seed}"
    assert verdict["acknowledged_qos1"]
    assert verdict["acknowledged_qos2"]


@pytest.mark.parametrize("at", TOGETHER, ids="+".join)
async def test_nothing_is_lost_at_a_crash_point(at: tuple[str, ...], tmp_path: Path) -> None:
    seed = 1 + TOGETHER.index(at)
    run = Run(tmp_path, seed, at=at)
    verdict = await run.run()
    again = " ".join(f"--point {name}" for name in at)
    assert verdict["wrong"] == [], f"python -m tests.crash --points {again} --seed {seed}"
    assert run.hits == dict.fromkeys(at, 1)
    assert verdict["acknowledged_qos1"]
    assert verdict["acknowledged_qos2"]


def test_every_crash_point_is_tried() -> None:
    assert sorted(name for at in TOGETHER for name in at) == sorted(POINTS)
