"""`bench.loss` in small, and its verdict over what subscribers were handed."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import mqttd
from bench import loss, promises

HERE = str(Path(mqttd.__file__).resolve().parents[1])


def clients() -> tuple[promises.Publisher, promises.Subscriber]:
    async def make() -> tuple[promises.Publisher, promises.Subscriber]:
        stage = promises.Stage(0)
        chance = random.Random(1)
        publisher = promises.Publisher("p", stage, chance)
        return publisher, promises.Subscriber("s", stage, chance, False)

    return asyncio.run(make())


def test_what_is_lost_and_what_came_twice() -> None:
    publisher, subscriber = clients()
    publisher.acknowledged = {1: {1, 2, 3}, 2: {1, 2}}
    subscriber.handed = {"t/p/1": [1, 4, 4, 3], "t/p/2": [1, 2, 2, 2]}
    assert promises.lost([publisher], [subscriber], 1) == 1
    assert promises.lost([publisher], [subscriber], 2) == 0
    assert promises.doubled([publisher], [subscriber], 1) == 1
    assert promises.doubled([publisher], [subscriber], 2) == 1


def test_sums_and_verdict() -> None:
    good = dict.fromkeys(loss.COLUMNS, 0) | {"kills": 2, "doubled_1": 5}
    bad = good | {"lost_1_offline": 1}
    runs: list[dict[str, Any]] = [
        {"peer": "mqttd-full", "counts": good},
        {"peer": "mqttd-full", "counts": bad},
        {"peer": "mqttd-os", "counts": good},
        {"peer": "mosquitto-each", "counts": bad},
        {"peer": "amqtt", "error": "no"},
    ]
    rows = loss.summarise(runs)
    assert [row["counts"].get("kills") for row in rows] == [4, 2, 2, None]
    assert [loss.broken(row) for row in rows] == [True, False, False, False]
    assert "BAD" in loss.table(rows)


def test_a_short_run_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    peers = ["--peers", "mqttd-full", "--package", HERE, "--dir", str(tmp_path)]
    assert loss.main([*peers, "--kills", "2", "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["summary"]
    assert row["counts"]["acknowledged_1"]
    assert row["counts"]["acknowledged_2"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_wrong_commands_exit_2() -> None:
    assert loss.main(["--peers", "nobody"]) == 2
    assert loss.main(["--kills", "-1"]) == 2
