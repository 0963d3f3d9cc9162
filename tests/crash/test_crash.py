"""The short form of `python -m tests.crash`: acknowledged is durable, at any instant."""

from pathlib import Path

import pytest

from tests.crash.run import Run


@pytest.mark.parametrize(("seed", "durability"), [(1, "full"), (2, "os")])
async def test_nothing_acknowledged_is_lost(seed: int, durability: str, tmp_path: Path) -> None:
    verdict = await Run(tmp_path, seed, 10, durability).run()
    assert verdict["wrong"] == []
    assert verdict["acknowledged_qos1"]
    assert verdict["acknowledged_qos2"]
