"""The short form of `python -m tests.bridges`: both ways, while both ends are killed."""

from pathlib import Path

import pytest

from tests.bridges.far_mqtt import FarMosquitto, FarMqttd
from tests.bridges.trial import Far, Ledger, trial


def test_a_ledger_sees_what_is_lost_late_or_renamed() -> None:
    ledger = Ledger("out", 32)
    ledger.sent.update(range(32))
    ledger.acknowledged.update({0, 1, 16})
    ledger.take("out k0 16", "a")
    ledger.take("out k0 0", "b")
    ledger.take("out k0 0", "c")
    assert not ledger.complete
    lost, late, renamed = ledger.wrong(True)
    assert lost == "out 1: lost"
    assert late == "out k0: 0 came after 16"
    assert renamed.startswith("out 0: sent 1 times")


def test_a_ledger_forgives_what_came_later() -> None:
    ledger = Ledger("out", 64)
    for number in (16, 0):
        ledger.take(f"out k0 {number}", str(number))
    ledger.forgive_order()
    for number in (48, 32):
        ledger.take(f"out k0 {number}", str(number))
    ledger.forgive_order()
    assert ledger.wrong(False) == ["out k0: 0 came after 16"]


@pytest.mark.parametrize(("make", "version"), [(FarMqttd, 5), (FarMosquitto, "3.1.1")])
async def test_nothing_acknowledged_is_lost_whatever_is_killed(
    make: type[Far], version: object, tmp_path: Path
) -> None:
    verdict = await trial(make(tmp_path, version), 500, 2, seed=3)  # type: ignore[call-arg]
    assert verdict["wrong"] == []
    assert (verdict["out"], verdict["in"]) == (500, 500)
    assert verdict["kills"] == {"broker": 1, "far": 1}
