"""A flood that is written down is the same flood: devices, topics, watchers, pace."""

from pathlib import Path
from typing import Any

import pytest

from device_sim.cli import main
from device_sim.engine.plan import Plan, Settings, UsageError
from device_sim.language import save
from device_sim.language.load import load, parse
from device_sim.language.naming import Filters, Names, Template
from device_sim.language.scenario import Scenario
from mqttd.core import spec

RUN = 0xABC


def checked(**values: Any) -> Settings:
    settings = Settings(**values)
    settings.check()
    return settings


def saved(settings: Settings, strict: bool = False, fail_on: tuple[str, ...] = ()) -> Scenario:
    return parse(save.scenario_text(settings, strict, list(fail_on)))


def owed(scenario: Scenario) -> dict[str, set[str]]:
    """What each watcher of a scenario is to receive."""
    device, watcher = scenario.groups
    filters: Filters[str] = Filters()
    received: dict[str, set[str]] = {}
    for index in range(watcher.count):
        names = Names(f"{RUN:08x}", "watcher", index, Template(watcher.id), {})
        received[names.client_id] = set()
        for each in watcher.subscribe[0].filters:
            filters.add(names.render(Template(each)), names.client_id)
    [entry] = device.publish
    for index in range(device.count):
        names = Names(f"{RUN:08x}", "device", index, Template(device.id), device.tags)
        for stream in range(entry.streams):
            topic = names.render(Template(entry.topic), {"stream": stream})
            for client_id in filters.match(topic):
                received[client_id].add(topic)
    return received


@pytest.mark.parametrize("watch", ["split", "all"])
@pytest.mark.parametrize("subscribers", [1, 3])
@pytest.mark.parametrize(
    "pattern", ["device_sim/{run}/{group}/{device}/{stream}", "g{group}/d{device:05d}-{stream}/end"]
)
def test_the_same_topics_go_to_the_same_watchers(
    watch: str, subscribers: int, pattern: str
) -> None:
    settings = checked(devices=7, streams=2, subscribers=subscribers, watch=watch, pattern=pattern)
    plan = Plan(settings, RUN)
    expected = {
        f"ds{RUN:08x}s{each}": {plan.topic(*pair) for pair in plan.owed(each)}
        for each in range(subscribers)
    }
    assert owed(saved(settings)) == expected


def test_load_and_limits() -> None:
    scenario = saved(
        checked(
            devices=20,
            rate=5.0,
            qos=(0, 2),
            seconds=4.0,
            size=200,
            version=spec.MQTT5,
            user_properties=[("a", "b")],
            connect_rate=10.0,
            settle=1.5,
        ),
        strict=True,
        fail_on=("p99>50ms,lost>0", "rate<1"),
    )
    device = scenario.groups[0]
    [entry] = device.publish
    assert (device.count, device.version, device.window) == (20, "5", 1000)
    assert (entry.rate, entry.qos, entry.size) == (5.0, [0, 2], 200)
    assert entry.user_properties == {"a": "b"}
    assert scenario.thresholds == ["p99>50ms", "lost>0", "rate<1", "lost.qos0>0"]
    assert scenario.drain == 1.5
    assert scenario.stages[1].actions[0].body.over == 2.0
    assert scenario.stages[2].actions[0].body.duration == 4.0


def test_a_closed_loop_with_a_count_and_nobody_watching() -> None:
    scenario = saved(checked(devices=2, seconds=0.0, count=9, subscribers=0))
    assert [group.name for group in scenario.groups] == ["device"]
    assert scenario.groups[0].publish[0].interval is None
    assert scenario.stages[-1].actions[0].body.count == 9


def test_the_broker_and_no_password(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    settings = checked(
        host="h",
        port=1884,
        username="{u}",
        password="s3cret",
        tls=True,
        cafile=str(tmp_path / "ca.pem"),
        insecure=True,
    )
    text = save.scenario_text(settings, False, [])
    assert "s3cret" not in text
    scenario = parse(text)
    assert (scenario.broker.host, scenario.broker.port) == ("h", 1884)
    assert scenario.broker.tls is not None
    assert scenario.broker.tls.insecure
    credentials = scenario.groups[1].credentials
    assert credentials is not None
    assert Template(credentials.username or "").render({}) == "{u}"
    assert credentials.password_env == "DEVICE_SIM_PASSWORD"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pattern": "x/{device}/{stream}"}, "no level of the topic pattern tells"),
        (
            {"version": spec.MQTT5, "user_properties": [("a", "b"), ("a", "c")]},
            "each user property once",
        ),
        ({"pattern": "{group}/{device:>9}"}, "--save:.*a lone"),
    ],
)
def test_floods_that_cant_be_written_down(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        save.scenario_text(checked(**values), False, [])


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flood.yaml"
    # Port 1 of the loopback has no broker: the run is broken off, the scenario is there.
    arguments = ["flood", "-p", "1", "-n", "3", "-r", "2", "--quiet"]
    assert main([*arguments, "--save", str(file)]) == 3
    assert load(file).groups[0].count == 3
    assert main([*arguments, "--save", str(tmp_path / "no" / "x.yaml")]) == 2
    assert "--save" in capsys.readouterr().err
