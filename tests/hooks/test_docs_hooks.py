"""docs/reference/hooks.md and docs/how-to/write-a-plugin.md are what the code says and does."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mqttd import api
from mqttd.app import App
from mqttd.config import PluginEntry, load_config
from mqttd.core.outbound import MAX_REMEMBERED
from mqttd.core.packets import Connack, Filter, Puback, Suback, Subscribe
from mqttd.hooks import guard, manager, observers, services
from mqttd.hooks.deciders import _DECIDERS, _TRANSFORMERS
from mqttd.hooks.plugin import BrokerServices, InternalClient, Plugin, Received, Table, Timer
from tests.core.handshake_kit import connect
from tests.net.kit import Wire

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "hooks.md"
GUIDE = ROOT / "docs" / "how-to" / "write-a-plugin.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(path: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(path.read_text()) if found == language]


def signature(name: str, value: Any) -> str:
    """As the page writes it: no self, no quotes around annotations."""
    function: Any = value.fget if isinstance(value, property) else value
    found = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_Bare(parameter.annotation))
        for parameter in list(found.parameters.values())[1:]
    ]
    text = str(
        found.replace(parameters=parameters, return_annotation=_Bare(found.return_annotation))
    )
    kind = "async def" if inspect.iscoroutinefunction(function) else "def"
    return f"{kind} {name}{text}"


class _Bare:
    """An annotation that prints without quotes."""

    def __init__(self, text: object) -> None:
        self.text = text

    def __repr__(self) -> str:
        return str(self.text)


def documented() -> set[str]:
    return {line for text in fences(PAGE, "python") for line in text.splitlines()}


def members(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(kind).items()
        if (inspect.isfunction(value) or isinstance(value, property))
        and (not name.startswith("_") or name == "__aiter__")
    }


EVERYTHING = {
    f"{kind.__name__}.{name}": signature(name, value)
    for kind in (Plugin, BrokerServices, InternalClient, Table, Timer, Received)
    for name, value in members(kind).items()
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_hook_and_service_is_there_with_its_signature(name: str) -> None:
    assert EVERYTHING[name] in documented()


def test_nothing_is_there_that_isnt() -> None:
    made = signature("__init__", Plugin.__init__)
    assert documented() == {*EVERYTHING.values(), made}


def test_every_hook_has_its_kind_and_whether_it_may_wait() -> None:
    text = PAGE.read_text()
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
    hooks = {"decider": (*_DECIDERS, "authenticate_enhanced"), "transformer": _TRANSFORMERS}
    for kind, found in hooks.items():
        for hook in found:
            assert f"`{hook}`" in rows[kind]
            part = text.partition(f"### {hook}\n")[2].partition("\n###")[0]
            waits = "Awaitable" in EVERYTHING[f"Plugin.{hook}"]
            assert ("May wait." in part, "May not wait" in part) == (waits, not waits), hook


def test_every_kind_of_event_is_described() -> None:
    part = PAGE.read_text().partition("### observe\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) == api.EVENT_KINDS


def test_the_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text().split())
    entry = PluginEntry.model_validate({"use": "x"})
    assert f"`timeout` ({entry.timeout:g} s)" in text
    assert f"`breaker.failures` failures in a row ({entry.breaker.failures})" in text
    assert f"`breaker.rest` ({entry.breaker.rest:g} s)" in text
    assert f"blocks the loop for {guard.BLOCKING_S:g} s" in text
    assert f"({MAX_REMEMBERED} topics" in text
    assert f"at most {observers.BATCH} at a time" in text
    assert f"up to {observers.MAX_WAITING:,}" in text
    assert f"Each may take {manager.START_S:g} s" in text
    assert f"{services._MAILBOX:,}, as `slow_reader`" in text
    assert services.THREADS == 2


def test_what_plugins_import_is_in_the_api() -> None:
    elsewhere = {
        "Awaitable",
        "Iterable",
        "Sequence",
        "Mapping",
        "AsyncIterator",
        "Callable",
        "Any",
        "None",
    }
    elsewhere |= {"ConfigT", "ResultT", "True", "False"}
    found = set(re.findall(r"\b[A-Z][a-z]\w+", "\n".join(documented())))
    assert found - elsewhere <= set(api.__all__)


# The tutorial.


async def test_the_plugin_of_the_tutorial_works(tmp_path: Path) -> None:
    """The file and the configuration as they stand there, in a broker."""
    (tmp_path / "corners.py").write_text(fences(GUIDE, "python")[0])
    text = fences(GUIDE, "yaml")[0].replace("127.0.0.1:1883", "127.0.0.1:0")
    (tmp_path / "mqttd.yaml").write_text(text + "storage: {path: ':memory:'}\n")
    app = App(load_config(tmp_path / "mqttd.yaml"))
    await app.start()
    try:
        async with await Wire.open(app.listeners[0].port) as wire:
            wire.send(connect(username="alice"))
            await wire.receive(Connack)
            for number, (topic, code) in enumerate(
                {"users/alice/x": 0x10, "public/x": 0x10, "users/bob/x": 0x87}.items(), 1
            ):
                wire.publish(topic, b"x", 1, number)
                assert (await wire.receive(Puback)).reason == code
            for number, (name, code) in enumerate(
                {"users/alice/#": 0, "users/+/x": 0x87, "#": 0x87, "public/#": 0}.items(), 10
            ):
                wire.send(Subscribe(number, [Filter(name, 0)]))
                assert (await wire.receive(Suback)).reasons == [code]
    finally:
        await app.stop(0.05)


def test_the_tests_of_the_tutorial_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, *tests = fences(GUIDE, "python")
    (tmp_path / "corners.py").write_text(plugin)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "corners", raising=False)
    ran = 0
    for text in tests:
        names: dict[str, Any] = {"__name__": "tutorial"}
        exec(compile(text, str(GUIDE), "exec"), names)
        for name, value in names.items():
            if name.startswith("test_"):
                value()
                ran += 1
    assert ran == 2
    sys.modules.pop("corners", None)
