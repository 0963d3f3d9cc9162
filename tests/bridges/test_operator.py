"""What the operator sees of bridges and does to them: `mqttd bridges`, and the page of metrics."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins._bridge.figures import Way
from prometheus_client.parser import text_string_to_metric_families

import mqttd
from mqttd import cli
from mqttd.api import Message, Plugin, PluginConfig
from mqttd.operate import answers, bridges
from tests.bridges.kit import FakeBridge, System, out
from tests.net.kit import until
from tests.test_control import Terminal

FAKE = "tests.bridges.kit:FakeBridge"
ODD = "tests.bridges.test_operator:Odd"


class Odd(Plugin[PluginConfig]):
    """Somebody's plugin with the role of a bridge; `BEHAVES` says how it answers."""

    role = "bridge"
    BEHAVES = ""

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        if self.BEHAVES == "hangs":
            await asyncio.get_running_loop().create_future()
        if self.BEHAVES == "fails":
            raise RuntimeError("secret detail")
        return {"raw": b"no JSON"} if self.BEHAVES == "no JSON" else ["what?"]


@pytest.fixture
def system() -> Iterator[System]:
    before, FakeBridge.SYSTEM = FakeBridge.SYSTEM, System()
    yield FakeBridge.SYSTEM
    FakeBridge.SYSTEM = before


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path, capsys)


def fake(name: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {"use": FAKE, "name": name, "config": {"rules": list(rules), "window": 4}}


def tree(tmp_path: Path, *plugins: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "listeners": [{"name": "t", "bind": "127.0.0.1:0"}],
        "control": {"path": str(tmp_path / "m.ctl")},
        "plugins": list(plugins),
        **more,
    }


def bridge_of(broker: mqttd.Broker, name: str) -> FakeBridge:
    assert broker._app.hooks is not None
    plugin = broker._app.hooks.plugin(name)
    assert isinstance(plugin, FakeBridge)
    return plugin


async def until_state(broker: mqttd.Broker, name: str, state: str) -> None:
    await until(lambda: bridge_of(broker, name).status()["state"] == state)


def table(text: str) -> list[dict[str, str]]:
    """The rows of a plain table; columns are two blanks apart, and no cell here has two."""
    titles, *lines = [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]
    keys = [title.strip() for title in titles]
    return [dict(zip(keys, (cell.strip() for cell in line), strict=True)) for line in lines]


async def test_all_bridges_with_their_figures(
    tmp_path: Path, terminal: Terminal, system: System
) -> None:
    system.silent = True
    given = tree(tmp_path, fake("far", out("#")), fake("other", out("b"), out("c", direction="in")))
    async with mqttd.Broker({**given, "limits": {"max_queued_messages": 5}}) as broker:
        for number in range(12):
            await bridge_of(broker, "far").broker.publish(Message("a", str(number).encode(), 1))
        await until(lambda: bridge_of(broker, "far").status()["out"]["dropped"])
        await until_state(broker, "other", "up")
        far, *other = table(await terminal.run("bridges"))
        assert terminal.code == 0
        assert (far["bridge"], far["kind"], far["state"], far["way"]) == (
            "far",
            "fake",
            "up",
            "out",
        )
        assert (far["in flight"], far["queued"], far["dropped"]) == ("4", "5", "3")
        assert [(row["bridge"], row["way"], row["queued"]) for row in other] == [
            ("other", "out", "0"),
            ("other", "in", "-"),
        ]
        text = await terminal.run("bridges", "far")
        assert text.splitlines()[-1] == "  out, dropped: queue_full 3"
        whole = [
            json.loads(line) for line in (await terminal.run("bridges", "--json")).splitlines()
        ]
        assert [one["bridge"] for one in whole] == ["far", "other"]
        assert whole[0]["out"]["matched"] == 12


async def test_pause_and_resume(tmp_path: Path, terminal: Terminal, system: System) -> None:
    given = tree(tmp_path, fake("far", out("#")), fake("other", out("b")))
    async with mqttd.Broker(given) as broker:
        await until_state(broker, "far", "up")
        assert await terminal.run("bridges", "pause", "far") == "far: paused; its messages wait\n"
        far, other = table(await terminal.run("bridges"))
        assert (far["state"], far["reason"], other["state"]) == ("paused", "by the operator", "up")
        await terminal.run("bridges", "pause", "--all")
        assert {row["state"] for row in table(await terminal.run("bridges"))} == {"paused"}
        text = await terminal.run("bridges", "resume", "--all")
        assert text == "far: resumed\nother: resumed\n"
        await until_state(broker, "far", "up")
        await until_state(broker, "other", "up")
        await terminal.run("bridges", "pause", "none")
        assert terminal.code == 1
        assert terminal.err == "mqttd: there is no bridge 'none'; there is: far, other\n"


async def test_a_broker_without_bridges_says_how_to_get_one(
    tmp_path: Path, terminal: Terminal
) -> None:
    async with mqttd.Broker(tree(tmp_path, {"use": "ban"})):
        assert await terminal.run("bridges") == ""
        assert (terminal.code, terminal.err) == (0, f"mqttd: {bridges.NONE}\n")
        await terminal.run("bridges", "pause", "--all")
        assert (terminal.code, terminal.err) == (1, f"mqttd: {bridges.NONE}\n")
        assert await terminal.run("bridges", "--json") == ""


@pytest.mark.parametrize(
    ("behaves", "error"),
    [
        ("hangs", "odd took longer than 0.05 s"),
        ("fails", "odd failed: RuntimeError; see the log"),
        ("no JSON", "Object of type bytes is not JSON serializable"),
    ],
)
async def test_a_bridge_that_gives_no_answer_costs_its_row_alone(
    tmp_path: Path,
    terminal: Terminal,
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    behaves: str,
    error: str,
) -> None:
    monkeypatch.setattr(answers, "ROLE_S", 0.05)
    monkeypatch.setattr(Odd, "BEHAVES", behaves)
    given = tree(tmp_path, {"use": ODD, "name": "odd"}, fake("far", out("#")))
    async with mqttd.Broker(given) as broker:
        await until_state(broker, "far", "up")
        odd, far = table(await terminal.run("bridges"))
        assert (odd["bridge"], odd["state"], odd["reason"]) == ("odd", "no answer", error)
        assert (far["state"], terminal.code) == ("up", 1)
        first = json.loads((await terminal.run("bridges", "--json")).splitlines()[0])
        assert first == {"bridge": "odd", "name": "odd", "error": error}


def test_an_answer_without_anything_in_it_is_a_row_all_the_same() -> None:
    assert list(bridges.rows({"name": "x", "answer": ["what?"]})) == [
        ["x", "-", "-", "-", way, "-", "-", "-", "-", "-", "0", "-", "-"] for way in ("out", "in")
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["pause"], "pause needs the name of a bridge, or --all"),
        (["resume", "a", "--all"], "resume needs the name of a bridge, or --all"),
        (["a", "b"], "expected one bridge, found 2: a, b"),
        (["a", "--all"], "expected a bridge or --all, not both"),
    ],
)
async def test_words_that_make_no_sense(
    tmp_path: Path, terminal: Terminal, words: list[str], text: str
) -> None:
    async with mqttd.Broker(tree(tmp_path)):
        await terminal.run("bridges", *words)
    assert (terminal.code, text in terminal.err) == (2, True)


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bridges", "--help"])
    assert "mqttd bridges resume --all" in capsys.readouterr().out


# /metrics.


async def page(broker: mqttd.Broker) -> dict[tuple[str, str, str], float]:
    """(name, direction, reason) → value, of the bridge `far`."""
    monitor = broker._app.monitor
    assert monitor is not None
    answer = await monitor._respond("/metrics")
    assert answer is not None
    found: dict[tuple[str, str, str], float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name.startswith("mqttd_plugin_bridge_") and labels.pop("plugin") == "far":
                name = sample.name.removeprefix("mqttd_plugin_bridge_")
                found[name, labels.pop("direction", ""), labels.pop("reason", "")] = sample.value
                assert not labels
    return found


def identity(found: dict[tuple[str, str, str], float]) -> float:
    """`matched`, which is the sum of all that can become of a message."""
    parts = ("queued", "in_flight", "confirmed_total", "dead_lettered_total", "dropped_total")
    each = [value for (name, way, _), value in found.items() if way == "out" and name in parts]
    assert found["matched", "out", ""] == sum(each)
    return sum(each)


async def test_the_page_of_metrics_accounts_for_every_message(
    tmp_path: Path, system: System
) -> None:
    system.silent = True
    rules = [
        out("a"),
        out("b", "{property[none]}"),
        out("c", function="tests.bridges.kit:dropping"),
    ]
    given = tree(tmp_path, fake("far", *rules), limits={"max_queued_messages": 5})
    async with mqttd.Broker(given) as broker:
        plugin = bridge_of(broker, "far")
        await until_state(broker, "far", "up")
        before = await page(broker)
        assert identity(before) == 0
        for topic in "bbc":
            await plugin.broker.publish(Message(topic, b"x", 1))
        await until(lambda: plugin.outward is not None and plugin.outward.figures.settled == 3)
        for _ in range(12):
            await plugin.broker.publish(Message("a", b"x", 1))
        await until(lambda: plugin.status()["out"]["matched"] == 15)
        held = await page(broker)
        assert identity(held) == 15
        assert held["dead_lettered_total", "out", "target"] == 2
        assert held["dropped_total", "out", "function"] == 1
        assert held["dropped_total", "out", "queue_full"] == 3
        assert (held["in_flight", "out", ""], held["queued", "out", ""]) == (4, 5)
        assert held["up", "", ""] == 1
        system.silent = False
        for item, done in system.last.unanswered:
            done(item, None)
        await until(lambda: plugin.status()["out"]["confirmed"] == 9)
        after = await page(broker)
        assert identity(after) == 15
        assert after["confirmed_total", "out", ""] == 9
        assert after["lag_seconds", "out", ""] == 0
        # What is there at all is there from the start, so that the first one counts in a rate.
        assert before.keys() == after.keys()


def test_the_reference_names_every_figure_and_every_reason(system: System) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/bridges.md").read_text()
    rows = dict(re.findall(r"^\| `mqttd_plugin_(bridge_\w+)` \| (.*) \|$", text, re.MULTILINE))
    shown = [*Way("out").figures(), *Way("in").figures()]
    others = {f"bridge_{name}" for name in ("up", "matched", "queued", "in_flight", "lag_seconds")}
    assert rows.keys() == others | {figure.name for figure in shown}
    for name, row in rows.items():
        assert row.startswith("counter" if name.endswith("_total") else "gauge")
    for figure in shown:
        reason = dict(figure.labels).get("reason")
        assert reason is None or f"`{reason}`" in rows[figure.name]
