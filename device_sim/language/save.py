"""`device_sim flood --save FILE`: the flood as a scenario, to go on from.

Owns the translation of the flood's settings into a scenario's keys. The scenario does what the
flood does: the same devices, topics, watchers, pace and limits. Two things it says differently: the
subscriber that a device belongs to is the tag `part`, and a password is not written down but taken
from DEVICE_SIM_PASSWORD.

What was written has been read again, and checked, before it goes to the file.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

import yaml

from device_sim.engine.plan import Settings, UsageError
from device_sim.language.load import ScenarioError, parse
from mqttd.core import spec

_NAMES: Final = {spec.MQTT31: "3.1", spec.MQTT311: "3.1.1", spec.MQTT5: "5"}
_PART: Final = re.compile(r"(?<!\{)\{(run|group|device|stream)\b")
_MAPPED: Final = {"run": "run", "group": "part", "device": "index", "stream": "stream"}
_SHORTEST_DRAIN_S: Final = 0.1


def write(file: str, settings: Settings, strict: bool, fail_on: list[str]) -> None:
    """Write the scenario; UsageError when there is none, or it can't be written."""
    text = scenario_text(settings, strict, fail_on)
    try:
        with open(file, "w", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise UsageError(f"--save {file}: {error.strerror or error}") from None


def scenario_text(settings: Settings, strict: bool, fail_on: list[str]) -> str:
    """The flood of checked settings as YAML."""
    terms = [term.strip() for text in fail_on for term in text.split(",") if term.strip()]
    if strict:
        terms.append("lost.qos0>0")
    groups = [_devices(settings)]
    if settings.subscribers:
        groups.append(_watchers(settings))
    tree: dict[str, Any] = {
        "scenario": "flood",
        "broker": _broker(settings),
        "groups": groups,
        "stages": _stages(settings),
        "thresholds": terms,
        "drain": max(settings.settle, _SHORTEST_DRAIN_S),
    }
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    try:
        parse(text, "--save")
    except ScenarioError as error:
        raise UsageError(str(error)) from None
    return text


def _broker(settings: Settings) -> dict[str, Any]:
    broker: dict[str, Any] = {"host": settings.host, "port": settings.port}
    if settings.tls:
        files = {"ca": settings.cafile, "cert": settings.certfile, "key": settings.keyfile}
        broker["tls"] = {key: os.path.abspath(file) for key, file in files.items() if file}
        for key in {"cert", "key"} & broker["tls"].keys():
            broker["tls"][key] = _literal(broker["tls"][key])
        if settings.insecure:
            broker["tls"]["insecure"] = True
    return broker


def _client(settings: Settings, name: str, count: int, letter: str) -> dict[str, Any]:
    client: dict[str, Any] = {
        "name": name,
        "count": count,
        "id": f"ds{{run}}{letter}{{index}}",
        "version": _NAMES[settings.version],
        "keep_alive": settings.keep_alive,
    }
    credentials: dict[str, Any] = {}
    if settings.username is not None:
        credentials["username"] = _literal(settings.username)
    if settings.password is not None:
        credentials["password_env"] = "DEVICE_SIM_PASSWORD"
    if credentials:
        client["credentials"] = credentials
    return client


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _devices(settings: Settings) -> dict[str, Any]:
    group = _client(settings, "device", settings.devices, "p")
    group["window"] = settings.window
    group["reconnect"] = None
    if "{group" in settings.pattern:
        group["tags"] = {"part": max(1, settings.subscribers)}
    entry: dict[str, Any] = {
        "topic": _PART.sub(lambda found: "{" + _MAPPED[found[1]], settings.pattern),
        "qos": settings.qos[0] if len(settings.qos) == 1 else list(settings.qos),
        "streams": settings.streams,
        "size": settings.size,
    }
    if settings.paced:
        entry["rate"] = settings.rate
    properties = dict(settings.user_properties)
    if len(properties) < len(settings.user_properties):
        raise UsageError("--save: a scenario has each user property once")
    if properties:
        entry["user_properties"] = properties
    group["publish"] = [entry]
    return group


def _watchers(settings: Settings) -> dict[str, Any]:
    """A level of the pattern that varies is `+`, one that tells the watchers apart their number."""
    split = settings.watch == "split" and settings.subscribers > 1
    levels = []
    told_apart = False
    for level in settings.pattern.split("/"):
        parts = set(_PART.findall(level))
        if parts & ({"device", "stream"} if split else {"device", "stream", "group"}):
            levels.append("+")
        else:
            told_apart = told_apart or "group" in parts
            level = level.replace("{group", "{index")
            levels.append(level)
    if split and not told_apart:
        raise UsageError(
            "--save: no level of the topic pattern tells the subscribers apart; "
            "give one to {group} alone, or use --watch all"
        )
    group = _client(settings, "watcher", settings.subscribers, "s")
    group["reconnect"] = None
    group["subscribe"] = [{"filters": ["/".join(levels)], "qos": settings.subscriber_qos}]
    return group


def _stages(settings: Settings) -> list[dict[str, Any]]:
    stages = []
    counts = {"watcher": settings.subscribers, "device": settings.devices}
    for name, count in counts.items():
        if not count:
            continue
        connect: dict[str, Any] = {
            "groups": [name],
            "parallel": settings.connect_parallel,
            "timeout": settings.connect_timeout,
        }
        if settings.connect_rate:
            connect["over"] = count / settings.connect_rate
        stages.append({"name": f"connect {name}s", "actions": [{"connect": connect}]})
    publish: dict[str, Any] = {"groups": ["device"]}
    if settings.count:
        publish["count"] = settings.count
    if settings.seconds:
        publish["duration"] = settings.seconds
    stages.append({"name": "flood", "actions": [{"publish": publish}]})
    return stages
