"""Reload: what changes live, what doesn't, and that a bad configuration changes nothing at all."""

import asyncio
import os
import resource
import ssl
from pathlib import Path

import pytest

from mqttd.app import App
from mqttd.config import load_config, parse_config, parse_yaml
from mqttd.core import spec
from mqttd.core.packets import Disconnect, Puback
from mqttd.net.listener import Listener, ListenError
from mqttd.operate.reload import Report
from tests.net.kit import Wire, reserved_port
from tests.tls import Authority

TCP = "- {name: tcp, bind: '127.0.0.1:0', allow_anonymous: true}"
GATE = "plugins: [{use: 'tests.gate:Gate', name: gate, config: {%s}}]\n"


class Live:
    """A broker with a file, which a test rewrites."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "mqttd.yaml"
        self.app: App | None = None

    def write(self, text: str, *listeners: str) -> None:
        lines = "".join(f"  {line}\n" for line in listeners or (TCP,))
        self.file.write_text(f"storage: {{path: ':memory:'}}\nlisteners:\n{lines}{text}")

    async def start(self, text: str = "", *listeners: str) -> App:
        self.write(text, *listeners)
        self.app = App(load_config(self.file))
        await self.app.start()
        return self.app

    async def reload(self, text: str = "", *listeners: str) -> Report:
        assert self.app is not None
        self.write(text, *listeners)
        return await self.app.reload()

    def port(self, name: str = "tcp") -> int:
        assert self.app is not None
        (port,) = [one.port for one in self.app.listeners if one.endpoint.name == name]
        return port

    async def connect(self, client_id: str, name: str = "tcp") -> Wire:
        wire = await Wire.open(self.port(name))
        await wire.connect(client_id)
        return wire

    async def __aenter__(self) -> "Live":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.app is not None:
            await self.app.stop(0.0)


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path)


async def may_publish(wire: Wire, topic: str) -> bool:
    wire.publish(topic, b"x", 1, 1)
    return (await wire.receive(Puback)).reason < 0x80


async def test_nothing_new(live: Live) -> None:
    async with live:
        await live.start()
        report = await live.reload()
        assert report.told() == {
            "good": True,
            "changed": [],
            "restart": [],
            "failed": [],
            "problems": [],
        }


async def test_limits(live: Live) -> None:
    async with live:
        app = await live.start()
        async with await live.connect("stays") as wire:
            report = await live.reload(
                "limits: {max_queued_messages: 7, max_topic_levels: 2}\nresponse_information: x\n"
            )
            assert report.changed == [
                "limits.max_queued_messages: 7",
                "limits.max_topic_levels: 2",
                "response_information",
            ]
            settings = app.broker.settings
            assert settings.max_queued_messages == 7
            assert settings.response_information == "x"
            await wire.subscribe("a/b")
            wire.publish("a/b/c", b"", 1, 1)
            await wire.closed()  # three levels
        assert (await live.reload("limits: {max_queued_messages: 7}")).good
        assert app.config.limits.max_topic_levels == 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense: 1\n", "unknown key 'nonsense'"),
        ("limits: {max_inflight: many}\n", "limits.max_inflight"),
        ("plugins: [{use: nobody}]\n", "no such plugin"),
        (GATE % "color: red", "plugins[0].config.color"),
        (GATE % "check: it is broken", "plugin gate: it is broken"),
        ("metrics: {bind: '192.0.2.1:9'}\n", "can't listen on 192.0.2.1:9"),
        ("]", "not YAML"),
    ],
)
async def test_a_bad_one_changes_nothing(text: str, told: str, live: Live) -> None:
    async with live:
        app = await live.start("limits: {max_queued_messages: 7}\n" + GATE % "forbidden: a")
        before, port = app.config, live.port()
        report = await live.reload("limits: {max_inflight: 3}\n" * ("limits" not in text) + text)
        assert not report.good
        assert not report.changed
        assert told in " ".join(report.problems)
        if "metrics" not in text:
            assert str(live.file) in " ".join(report.problems)
        assert app.config is before
        assert app.broker.settings.max_inflight == 1024
        assert app.broker.settings.max_queued_messages == 7
        assert live.port() == port
        async with await live.connect("c") as wire:
            assert not await may_publish(wire, "a/x")


async def test_a_file_that_cannot_be_opened_opens_no_door(live: Live) -> None:
    """CVE-2017-7652: without a free descriptor a reload fell back to a broker without rules."""
    async with live:
        await live.start(GATE % "forbidden: a")
        async with await live.connect("c") as wire:
            assert not await may_publish(wire, "a/x")
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            held = [os.open(os.devnull, os.O_RDONLY)]
            try:
                # The next descriptor would be the first above the limit.
                resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, hard))
                assert live.app is not None
                report = await live.app.reload()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                os.close(held[0])
            assert "Too many open files" in report.problems[0]
            assert not report.changed
            assert not await may_publish(wire, "a/x")
        async with await live.connect("d") as wire:
            assert not await may_publish(wire, "a/x")


async def test_plugins_take_their_new_configuration(live: Live) -> None:
    async with live:
        app = await live.start(GATE % "forbidden: a")
        async with await live.connect("c") as wire:
            assert not await may_publish(wire, "a/x")
            report = await live.reload(GATE % "forbidden: b")
            assert report.changed == ["plugin gate: its configuration"]
            assert app.hooks is not None
            app.hooks.forget_decisions(None)
            assert await may_publish(wire, "a/x")
            assert not await may_publish(wire, "b/x")
        assert (await live.reload(GATE % "forbidden: b")).changed == []
        assert app.hooks.services["gate"].counts["reloads"] == 2  # its files are read again


async def test_a_plugin_that_fails_keeps_what_it_had_and_is_named(live: Live) -> None:
    async with live:
        app = await live.start(GATE % "forbidden: a")
        report = await live.reload(
            GATE % "forbidden: b, reload: no" + "limits: {max_inflight: 5}\n"
        )
        assert not report.good
        assert report.failed == ["plugin gate keeps what it had: no"]
        assert report.changed == ["limits.max_inflight: 5"]  # the rest counts
        assert app.config.plugins[0].config == {"forbidden": "a"}
        async with await live.connect("c") as wire:
            assert not await may_publish(wire, "a/x")
        assert (await live.reload(GATE % "forbidden: b" + "limits: {max_inflight: 5}\n")).good


async def test_what_needs_a_restart_is_named_again_and_again(live: Live, tmp_path: Path) -> None:
    async with live:
        app = await live.start(GATE % "")
        text = "control: {path: x.ctl}\nlimits: {max_inflight: 9}\n"
        for _ in range(2):
            report = await live.reload(text)
            assert report.good
            assert report.restart == ["plugins: added, removed, or in another order", "control"]
        assert app.broker.settings.max_inflight == 9
        assert not (tmp_path / "x.ctl").exists()
        live.file.write_text(f"storage: {{path: other.db}}\nlisteners:\n  {TCP}\n" + GATE % "")
        report = await app.reload()
        assert report.restart == ["storage"]
        assert not (tmp_path / "other.db").exists()


# Listeners.


async def test_a_listener_comes_and_goes(live: Live) -> None:
    other = TCP.replace("tcp", "other")
    async with live:
        await live.start()
        async with await live.connect("stays") as stays:
            report = await live.reload("", TCP, other)
            url = f"mqtt://127.0.0.1:{live.port('other')}"
            assert report.changed == [f"listener other: added, {url}"]
            async with await live.connect("goes", "other") as goes:
                report = await live.reload("", TCP)
                assert report.changed == ["listener other: removed"]
                # Its clients go with it: a door that was closed has nobody inside.
                assert (await goes.receive(Disconnect)).reason == spec.ADMINISTRATIVE_ACTION
                await goes.closed()
            await stays.subscribe("a")


async def test_a_listener_moves_and_its_clients_stay(live: Live) -> None:
    async with live:
        await live.start()
        old = live.port()
        with reserved_port() as port:
            async with await live.connect("stays") as wire:
                report = await live.reload("", TCP.replace(":0", f":{port}"))
                assert report.changed == [f"listener tcp: rebound, mqtt://127.0.0.1:{port}"]
                assert live.port() == port != old
                await wire.subscribe("a")
                with pytest.raises(ConnectionRefusedError):
                    await Wire.open(old)
                async with await live.connect("new"):
                    pass
            # The same address, other rules: the old one has to go first.
            changed = TCP.replace(":0", f":{port}").replace("true", "false")
            assert len((await live.reload("", changed)).changed) == 1
            async with await Wire.open(port) as wire:
                await wire.connect("x")
                assert (await wire.closed()) == b""


async def test_an_address_that_is_taken_changes_nothing(live: Live) -> None:
    async with live:
        await live.start()
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        taken = server.sockets[0].getsockname()[1]
        port = live.port()
        fresh = "- {name: fresh, bind: '127.0.0.1:0'}"
        report = await live.reload(
            "limits: {max_inflight: 3}\n", fresh, TCP.replace(":0", f":{taken}")
        )
        assert not report.good
        assert f"can't listen on 127.0.0.1:{taken}" in report.problems[0]
        assert live.port() == port
        assert live.app is not None
        assert [one.endpoint.name for one in live.app.listeners] == ["tcp"]
        assert live.app.broker.settings.max_inflight == 1024
        server.close()


async def test_an_old_listener_comes_back_when_the_new_one_fails(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reserved_port() as port:
        here = TCP.replace(":0", f":{port}")
        async with live:
            await live.start("", here)
            real = Listener.start

            async def start(self: Listener) -> None:
                if not self.endpoint.allow_anonymous:
                    raise ListenError("listener tcp: no luck")
                await real(self)

            monkeypatch.setattr(Listener, "start", start)
            report = await live.reload("", here.replace("true", "false"))
            assert report.failed == ["listener tcp: no luck"]
            async with await live.connect("c"):
                pass


async def test_certificates_and_authorities(live: Live, tmp_path: Path) -> None:
    """Both are read again: an authority that was taken out no longer vouches for anybody."""
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "theirs")
    cert, key, trusted = tmp_path / "s.crt", tmp_path / "s.key", tmp_path / "ca.crt"
    for target, source in zip((cert, key), ours.issue("server", "x"), strict=True):
        target.write_bytes(source.read_bytes())
    trusted.write_bytes(theirs.file.read_bytes())
    tls = "{cert: s.crt, key: s.key, client_ca: ca.crt, client_cert: required}"
    listener = f"- {{name: tls, bind: '127.0.0.1:0', tls: {tls}}}"
    async with live:
        app = await live.start("", listener)

        async def enters(authority: Authority) -> bool:
            context = ours.client(authority.issue("client", "ann"))
            try:
                async with await Wire.open(live.port("tls"), tls=context) as wire:
                    await wire.connect("c")
                    return True
            except (ssl.SSLError, OSError, AssertionError):
                return False

        assert await enters(theirs)
        assert not await enters(ours)
        assert app.monitor is not None
        first = app.monitor.facts.certificates["tls"]
        trusted.write_bytes(ours.file.read_bytes())
        assert (await live.reload("", listener)).good
        assert await enters(ours)
        assert not await enters(theirs)
        assert app.monitor.facts.certificates["tls"] == first
        key.write_text("nonsense")
        report = await live.reload("", listener)
        assert "cert and key don't work together" in report.problems[0]
        assert await enters(ours)


# Figures and the log.


async def test_metrics_move_appear_and_go(live: Live) -> None:
    async with live:
        app = await live.start()
        monitor = app.monitor
        assert monitor is not None
        assert monitor.http is None
        assert (await live.reload("metrics: {bind: '127.0.0.1:0'}\n")).changed == ["metrics"]
        assert monitor.http is not None
        port = monitor.http.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.close()
        assert (await live.reload()).changed == ["metrics"]
        assert monitor.http is None
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_the_interval_of_the_sys_tree(live: Live) -> None:
    async with live:
        app = await live.start("sys_interval: 0\n")
        assert app.monitor is not None
        assert not app.monitor._timers
        assert (await live.reload("sys_interval: 100ms\n")).changed == ["sys_interval: 0.1 s"]
        async with await live.connect("c") as wire:
            await wire.subscribe("$SYS/broker/uptime")
            await wire.receive(object)
        assert (await live.reload("sys_interval: 0\n")).good
        assert "sys" not in app.monitor._timers


async def test_the_log_belongs_to_the_process_around_an_embedded_broker(live: Live) -> None:
    async with live:
        await live.start()
        report = await live.reload("logging: {level: debug}\n")
        assert report.restart == ["logging: it belongs to the process around the broker"]


async def test_one_reload_at_a_time(live: Live) -> None:
    async with live:
        app = await live.start()
        live.write("limits: {max_inflight: 3}\n")
        first, second = await asyncio.gather(app.reload(), app.reload())
        assert first.changed == ["limits.max_inflight: 3"]
        assert second.changed == []


async def test_a_stop_waits_for_a_reload_that_has_begun(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one would leave a listener behind that nobody knows of."""
    async with live:
        app = await live.start()
        going = asyncio.Event()
        real = Listener.start

        async def slow(self: Listener) -> None:
            going.set()
            await asyncio.sleep(0.05)
            await real(self)

        monkeypatch.setattr(Listener, "start", slow)
        with reserved_port() as port:
            live.write("", TCP, f"- {{name: other, bind: '127.0.0.1:{port}'}}")
            task = app._reload_soon()
            await going.wait()
            await app.stop(0.0)
            assert (await task).good
            with pytest.raises(ConnectionRefusedError):
                await Wire.open(port)
        assert app.listeners == []


async def test_text_that_was_never_a_file(live: Live) -> None:
    app = App(parse_yaml("storage: {path: ':memory:'}\nlisteners:\n" + TCP, "only a name"))
    await app.start()
    assert (await app.reload()).good
    await app.stop(0.0)


async def test_a_broker_that_does_not_run(live: Live) -> None:
    live.write("")
    app = App(load_config(live.file))
    assert (await app.reload()).problems == ["the broker isn't running"]


async def test_without_a_file_the_files_are_read_again() -> None:
    config = {
        "storage": {"path": ":memory:"},
        "listeners": [{"name": "t", "bind": "127.0.0.1:0"}],
        "plugins": [{"use": "tests.gate:Gate"}],
    }
    app = App(parse_config(config))
    await app.start()
    assert (await app.reload()).good
    assert app.hooks is not None
    assert app.hooks.services["Gate"].counts["reloads"] == 1
    await app.stop(0.0)
