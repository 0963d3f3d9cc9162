"""The commands of the operator on a broker that runs, over its socket; and the socket's place."""

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

import mqttd
from mqttd import cli
from mqttd.app import App
from mqttd.config import Config, parse_config
from mqttd.core.packets import Connect, Disconnect, Publish
from mqttd.core.properties import Properties
from mqttd.core.trie import Subscription
from mqttd.net.lines import ListenError, Refused
from mqttd.operate import answers as control
from mqttd.operate import top
from mqttd.operate.answers import Operator
from tests.harness import Harness
from tests.net.kit import Wire, loopback, running

GATE: dict[str, object] = {"use": "tests.gate:Gate", "name": "gate"}


def tree(tmp_path: Path, *plugins: dict[str, object]) -> dict[str, object]:
    return {
        "listeners": [loopback(allow_anonymous=True)],
        "control": {"path": str(tmp_path / "m.ctl")},
        "plugins": list(plugins),
    }


class Terminal:
    """Runs commands against one broker, which goes on meanwhile."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.socket = str(tmp_path / "m.ctl")
        self._capsys = capsys
        self.code = 0
        self.err = ""

    async def run(self, *words: str) -> str:
        argv = [words[0], "--socket", self.socket, *words[1:]]
        self.code = await asyncio.to_thread(cli.main, argv)
        out, self.err = self._capsys.readouterr()
        return out

    async def json(self, *words: str) -> Any:
        return json.loads(await self.run(*words, "--json"))


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path, capsys)


async def connected(app: App, client_id: str, user: str | None = None, expiry: int = 0) -> Wire:
    wire = await Wire.open(app.listeners[0].port)
    properties = Properties()
    properties.session_expiry_interval = expiry
    password = None if user is None else b"x"
    wire.send(Connect("MQTT", 5, True, 0, client_id, None, user, password, properties))
    await wire.receive(object)
    return wire


async def test_clients_and_sessions(tmp_path: Path, terminal: Terminal) -> None:
    async with (
        running(tree(tmp_path)) as app,
        await connected(app, "sensor-1", "ann") as one,
        await connected(app, "sensor-2", expiry=100) as two,
    ):
        await one.subscribe("a/#", qos=1)
        await two.close()
        while app.broker.counters.clients_connected > 1:
            await asyncio.sleep(0.005)
        text = await terminal.run("clients")
        assert terminal.code == 0
        assert [line.split()[:2] for line in text.splitlines()[1:]] == [["sensor-1", "ann"]]
        text = await terminal.run("sessions", "sensor-*")
        assert [line.split()[0] for line in text.splitlines()[1:]] == ["sensor-1", "sensor-2"]
        assert "away" in text.splitlines()[2]
        found = await terminal.json("sessions", "sensor-1")
        assert found["filters"] == [{"filter": "a/#", "qos": 1, "no_local": False}]
        assert (found["listener"], found["version"], found["user"]) == ("tcp", "5", "ann")
        assert found["peer"].startswith("127.0.0.1:")
        text = await terminal.run("sessions", "sensor-1")
        assert "  a/# (QoS 1)" in text
        assert (await terminal.run("clients", "nobody")).splitlines()[1:] == []


async def test_what_came_from_the_network_cannot_steer_a_terminal(
    tmp_path: Path, terminal: Terminal
) -> None:
    async with (
        running(tree(tmp_path)) as app,
        await connected(app, "evil\x1b[2Jx\nfake", "user\u202e") as wire,
    ):
        await wire.subscribe("t\x1b[31m")
        for words in (("clients",), ("sessions",), ("sessions", "evil\x1b[2Jx\nfake")):
            text = await terminal.run(*words)
            assert "\x1b" not in text
            assert "\u202e" not in text
            assert "evil\\x1b[2Jx\\nfake" in text
        await terminal.run("kick", "no\x1b[2Jbody")
        assert "\x1b" not in terminal.err


async def test_retained(tmp_path: Path, terminal: Terminal) -> None:
    async with running(tree(tmp_path)) as app, await connected(app, "pub") as wire:
        for topic in ("a/1", "a/2", "b"):
            wire.send(_retained(topic))
        await wire.subscribe("none")  # answered after what came before it
        text = await terminal.run("retained")
        assert [line.split()[0] for line in text.splitlines()[1:]] == ["a/1", "a/2", "b"]
        assert "secret payload" not in text
        lines = (await terminal.run("retained", "a/+", "--json")).splitlines()
        assert [json.loads(line)["topic"] for line in lines] == ["a/1", "a/2"]
        assert json.loads(lines[0])["bytes"] == len(b"secret payload")
        await terminal.run("retained", "a#")
        assert terminal.code == 1
        assert "not a filter" in terminal.err


def _retained(topic: str) -> Any:
    return Publish(topic, b"secret payload", 0, True, False, 0)


async def test_kick(tmp_path: Path, terminal: Terminal, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(tree(tmp_path)) as app, await connected(app, "c") as wire:
        text = await terminal.run("kick", "c", "--reason", "maintenance")
        assert (terminal.code, text) == (0, "c: its connection is ended\n")
        assert (await wire.receive(Disconnect)).reason == 0x98
        await wire.closed()
        await terminal.run("kick", "c")
        assert (terminal.code, terminal.err) == (1, "mqttd: c is not connected\n")
    kicks = [record for record in caplog.records if record.getMessage() == "kick"]
    assert [record.__dict__["mqttd_fields"] for record in kicks] == [
        {"uid": os.geteuid(), "client": "c", "reason": "maintenance"}
    ]


async def test_plugins_answer(tmp_path: Path, terminal: Terminal) -> None:
    async with running(tree(tmp_path, GATE)):
        words = ("plugin", "gate", "echo", "a=1", 'b={"c": [2]}', "d=text")
        assert await terminal.json(*words) == {"a": 1, "b": {"c": [2]}, "d": "text"}
        await terminal.run("plugin", "gate", "fly")
        assert (terminal.code, terminal.err) == (1, "mqttd: gate has no action 'fly'\n")
        await terminal.run("plugin", "gate", "bug")
        assert (terminal.code, "secret detail" in terminal.err) == (1, False)
        await terminal.run("plugin", "nobody", "echo")
        assert "there is no plugin 'nobody'" in terminal.err


async def test_the_trail_says_who_asked_for_what_and_no_secret(
    tmp_path: Path, terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tree(tmp_path, GATE)):
        words = ("user=bob", "Password=geheim", "api_key=geheim", 'more={"token": "geheim"}')
        await terminal.run("plugin", "gate", "echo", *words)
        await terminal.run("reload")
        assert "geheim" not in caplog.text
    found = {
        record.getMessage(): record.__dict__["mqttd_fields"]
        for record in caplog.records
        if record.getMessage() in ("plugin_action", "reload_asked")
    }
    assert found == {
        "plugin_action": {
            "uid": os.geteuid(),
            "plugin": "gate",
            "action": "echo",
            "arguments": "user=bob, Password=***, api_key=***, more=…",
        },
        "reload_asked": {"uid": os.geteuid()},
    }


async def test_bans(tmp_path: Path, terminal: Terminal) -> None:
    async with running(tree(tmp_path, {"use": "ban"})) as app, await connected(app, "bad") as wire:
        answer = await terminal.json("ban", "add", "client", "bad", "--for", "1h", "--reason", "x")
        assert answer["kicked"] == ["bad"]
        await wire.receive(Disconnect)
        text = await terminal.run("ban", "list")
        (row,) = text.splitlines()[1:]
        assert row.split()[:2] == ["client", "bad"]
        assert row.split()[-2:] == ["operator", "x"]
        await terminal.run("ban", "remove", "client", "bad")
        assert terminal.code == 0
        assert (await terminal.run("ban", "list")).splitlines()[1:] == []
        assert await _refused(terminal, "ban", "add") == 2


async def _refused(terminal: Terminal, *words: str) -> int:
    await terminal.run(*words)
    return terminal.code


async def test_top_once(tmp_path: Path, terminal: Terminal) -> None:
    async with running(tree(tmp_path, GATE)) as app, await connected(app, "c") as wire:
        wire.publish("a", b"x")
        await wire.subscribe("none")
        figures = await terminal.json("top", "--once")
        assert (figures["clients"], figures["messages_received"]) == (1, 1)
        assert figures["plugins"][0]["name"] == "gate"
        assert figures["plugins"][0]["calls"] > 0
        text = await terminal.run("top", "--once")
        assert text.startswith(f"mqttd {mqttd.__version__}, process ")


@pytest.mark.parametrize("as_json", [True, False])
def test_top_into_a_pipe_goes_on_until_it_is_stopped(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    readings = [reading(at=10.0), reading(at=11.0, messages_received=3100)]

    class Asked:
        def ask(self, request: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
            assert request == {"do": "figures"}
            if not readings:
                raise KeyboardInterrupt
            return [], readings.pop(0)

    with pytest.raises(KeyboardInterrupt):
        top.watch(Asked(), 0.0, as_json=as_json)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    if as_json:
        assert [json.loads(line)["at"] for line in out.splitlines()] == [10.0, 11.0]
    else:
        assert out.count("mqttd 1, process 1") == 2
        assert "messages in 3,000/s" in out


def reading(**more: object) -> dict[str, Any]:
    """The figures of a broker."""
    return {
        "version": "1",
        "pid": 1,
        "at": 10.0,
        "clients": 0,
        "sessions": 0,
        "retained": 0,
        "queued": 7,
        "in_flight": 0,
        "messages_received": 100,
        "messages_sent": 0,
        "bytes_received": 0,
        "bytes_sent": 0,
        "refused_connects": 0,
        "refused_messages": 0,
        "dropped": {"expired": 3},
        "deepest": [{"client": "deep\x1b", "queued": 7}],
        "plugins": [],
        **more,
    }


def test_two_readings_make_a_rate() -> None:
    before = reading()
    after = reading(at=12.0, messages_received=5100)
    text = "\n".join(top.lines(after, before))
    assert "messages in 2,500/s" in text
    assert "dropped: expired 3" in text
    assert "deep\\x1b" in text
    assert "messages in 5100 " in "\n".join(top.lines(after, None))


async def test_explain_from_the_terminal(tmp_path: Path, terminal: Terminal) -> None:
    async with running(tree(tmp_path)) as app, await connected(app, "c") as wire:
        await wire.subscribe("a/+")
        wire.publish("a/b", b"x")
        await wire.receive(object)
        text = await terminal.run("explain", "--client", "c", "--topic", "a/b", "--since", "5m")
        assert text.startswith("1 delivered.\n")
        answer = await terminal.json("explain")
        assert answer["messages"][0]["topic"] == "a/b"
        assert set(answer) == {"messages", "findings", "record", "late"}


async def test_a_walk_over_many_sessions_lets_others_pass() -> None:
    """Slice by slice: what else is due runs in between, and who has gone is no error."""
    h = Harness()
    h.client("first", expiry=100)
    session = h.broker.sessions["first"]
    session.subscriptions["a"] = Subscription(session, "a")
    for number in range(5 * control.SLICE):
        h.broker.sessions[f"c{number}"] = session
    operator = Operator(h.broker, None, lambda: None, _no_reload)
    portions = []
    async for portion in operator.answer({"do": "sessions"}):
        portions.append(len(portion))
        h.broker.sessions.pop(f"c{5 * control.SLICE - 1}", None)
        assert len(portion) <= control.SLICE
    assert portions[:5] == [control.SLICE] * 5
    assert len(portions) == 7


async def _no_reload() -> dict[str, object]:
    raise AssertionError


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"do": "nonsense"},
        {"do": ["clients"]},
        {"do": "clients", "filter": 5},
        {"do": "clients", "filter": "x" * 5000},
        {"do": "kick"},
        {"do": "kick", "client": ""},
        {"do": "plugin", "name": "x", "action": "y", "arguments": []},
        {"do": "figures", "top": "many"},
    ],
)
async def test_a_request_that_is_wrong_is_refused(request_: dict[str, Any]) -> None:
    operator = Operator(Harness().broker, None, lambda: None, _no_reload)
    with pytest.raises(Refused):
        async for _ in operator.answer(request_):
            pass


# Where the socket is.


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ({}, "data/mqttd.ctl"),
        ({"storage": {"path": "/var/lib/x/a.db"}}, "/var/lib/x/a.ctl"),
        ({"storage": {"path": ":memory:"}}, None),
        ({"storage": {"path": ":memory:"}, "control": {"path": "x.ctl"}}, "x.ctl"),
        ({"control": {"path": "off"}}, None),
        ({"control": {"record": 5}}, "data/mqttd.ctl"),
    ],
)
def test_the_place_of_the_socket(text: dict[str, object], path: str | None) -> None:
    found = parse_config(text).control_socket()
    assert (None if found is None else str(found)) == path


async def test_nobody_answers(tmp_path: Path, terminal: Terminal) -> None:
    await terminal.run("clients")
    assert terminal.code == 2
    assert "no broker answers at" in terminal.err


def test_the_configuration_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("control: {path: off}\n")
    assert cli.main(["clients", "-c", str(file)]) == 2
    assert "has no control socket" in capsys.readouterr().err
    file.write_text("control: {path: there.ctl}\n")
    assert cli.main(["clients", "-c", str(file)]) == 2
    assert str(tmp_path / "there.ctl") in capsys.readouterr().err
    file.write_text("nonsense: 1\n")
    assert cli.main(["clients", "-c", str(file)]) == 2
    assert "unknown key" in capsys.readouterr().err


async def test_a_broker_inside_a_process_has_none_unless_asked() -> None:
    async with mqttd.Broker() as broker:
        assert broker._app.control is None
        assert broker._app.broker.context.watcher is None


async def test_a_socket_that_is_somebody_elses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Named: the start fails. Only the default: the broker runs without, and says so."""
    async with running(tree(tmp_path)) as first:
        app = App(parse_config({"storage": {"path": ":memory:"}, **tree(tmp_path)}))
        with pytest.raises(ListenError, match="another process listens there"):
            await app.start()
        assert first.control is not None
        assert first.control.path.exists()
        config: Config = parse_config(
            {"listeners": [loopback()], "storage": {"path": str(tmp_path / "m.db")}}
        )
        second = App(config)
        second._control_at = config.control_socket()  # as `run` does
        await second.start()
        assert second.control is None
        await second.stop(0.0)
        assert "no_control" in caplog.text
        assert first.control.path.exists()
