"""A good scenario is read as it is meant: profiles, defaults, shrinking, the schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from device_sim.language.load import ScenarioError, elsewhere, find, json_schema, load, parse
from device_sim.language.scenario import Scenario
from device_sim.language.shapes import LONGEST_S, parse_duration, parse_size
from tests.device_sim.scenarios import entry, group, problems, read, tree


def test_defaults() -> None:
    scenario = read(tree())
    sensor = scenario.groups[0]
    assert (scenario.seed, scenario.drain, scenario.thresholds) == (0, 3.0, [])
    assert (sensor.version, sensor.keep_alive, sensor.session_expiry) == ("5", 60, 0)
    assert sensor.id == "{group}-{index:05d}"
    assert sensor.reconnect is not None
    assert sensor.publish[0].qos == 0
    assert scenario.broker.known_port == 1883


def test_no_reconnect_is_not_the_default_reconnect() -> None:
    assert read(tree(groups=[group(reconnect=None)])).groups[0].reconnect is None


def test_ports() -> None:
    assert read(tree(broker={"tls": {}})).broker.known_port == 8883
    assert read(tree(broker={"port": 1})).broker.known_port == 1
    started = {"start": {"command": ["x", "{port}"]}}
    assert read(tree(broker=started)).broker.known_port == 0


def test_a_group_takes_from_its_profile_what_it_doesnt_say() -> None:
    scenario = read(
        tree(
            profiles={"p": {"keep_alive": 10, "version": "3.1.1", "publish": [entry(qos=1)]}},
            groups=[
                {"name": "a", "profile": "p", "keep_alive": 20},
                {"name": "b", "profile": "p", "publish": [entry(qos=2)]},
                group(name="c"),
            ],
        )
    )
    a, b, c = scenario.chosen([])
    assert (a.keep_alive, a.version, a.publish[0].qos) == (20, "3.1.1", 1)
    assert (b.keep_alive, b.version, b.publish[0].qos) == (10, "3.1.1", 2)
    assert (c.keep_alive, c.version) == (60, "5")
    assert [each.name for each in scenario.chosen(["c", "a"])] == ["a", "c"]


def test_qos_is_dealt_out() -> None:
    dealt = read(tree(groups=[group(publish=[entry(qos=[0, 1, 2])])])).groups[0].publish[0]
    assert [dealt.qos_of(index) for index in range(4)] == [0, 1, 2, 0]


def test_payloads_that_never_change_are_known() -> None:
    def fixed(**keys: Any) -> int | None:
        return read(tree(groups=[group(publish=[entry(**keys)])])).groups[0].publish[0].fixed_size

    assert fixed() == 32
    assert fixed(size=100) == 100
    assert fixed(size={"uniform": {"min": 32, "max": 33}}) is None
    assert fixed(fields={"a": 1}) is None


def test_a_transfer_is_cut_into_payloads() -> None:
    def payloads(size: Any) -> list[int]:
        publish = entry(transfer={"size": size, "chunk": 1000})
        transfer = read(tree(groups=[group(publish=[publish])])).groups[0].publish[0].transfer
        assert transfer is not None
        assert len(transfer.payloads) == transfer.messages
        return transfer.payloads

    assert payloads(3000) == [1000, 1000, 1000]
    assert payloads(2500) == [1000, 1000, 500]
    assert payloads(2001) == [1000, 1000, 32]
    assert payloads(1) == [32]


# Shapes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1h30m", 5400), ("2d", 172800), ("1.5s", 1.5), (3, 3), (0.25, 0.25)],
)
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "wrong", ["", "10", "1 s", "-1s", -1, True, "s", "1w", LONGEST_S * 2, 10**400, float("nan"), []]
)
def test_no_durations(wrong: Any) -> None:
    with pytest.raises(Exception, match="a duration such as"):
        parse_duration(wrong)


@given(st.integers(0, 10**6), st.sampled_from(["", "B", "kB", "KiB", "MB", "MiB", "GiB"]))
def test_sizes(number: int, unit: str) -> None:
    factor = {"": 1, "B": 1, "kB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 2**20, "GiB": 2**30}
    assert parse_size(f"{number}{unit}") == number * factor[unit]


@pytest.mark.parametrize("wrong", [-1, "1TiB", "x", 1.5, True, "1 0", "9" * 30])
def test_no_sizes(wrong: Any) -> None:
    with pytest.raises(Exception, match="a size such as"):
        parse_size(wrong)


# Shrinking


def test_scale_multiplies_devices_and_leaves_one() -> None:
    groups = [group(count=1000), group(name="few", count=3)]
    scenario = read(tree(groups=groups), scale=0.01)
    assert [each.count for each in scenario.groups] == [10, 1]
    assert read(tree(groups=groups), scale=2).groups[0].count == 2000


def test_speed_makes_time_pass_faster_and_leaves_the_protocol_alone() -> None:
    scenario = read(
        tree(
            groups=[
                group(
                    keep_alive=30,
                    session_expiry="1h",
                    publish=[entry(expiry="10m"), {"topic": "r/{id}", "rate": 5}],
                    sleep={"awake": "10s", "asleep": "20s"},
                )
            ],
            stages=[
                {
                    "name": "a",
                    "duration": "1m",
                    "actions": [
                        {"connect": {"at": 2, "over": 10, "timeout": 5}},
                        {"network": {"delay": "100ms", "duration": 20}},
                    ],
                }
            ],
        ),
        speed=10,
    )
    sensor = scenario.groups[0]
    assert (sensor.keep_alive, sensor.session_expiry) == (30, 3600)
    assert (sensor.publish[0].interval, sensor.publish[0].expiry) == (0.2, 600)
    assert sensor.publish[1].interval == 1 / 50
    assert sensor.sleep is not None
    assert (sensor.sleep.awake, sensor.sleep.asleep) == (1, 2)
    assert sensor.reconnect is not None
    assert sensor.reconnect.first == 0.1
    stage = scenario.stages[0]
    assert stage.duration == 6
    connect, network = (action.body for action in stage.actions)
    assert (connect.at, connect.over, connect.timeout) == (0.2, 1, 5)
    assert (network.delay, network.duration) == (0.1, 2)


def test_the_seed_can_be_replaced() -> None:
    assert read(tree(seed=5)).seed == 5
    assert read(tree(seed=5), seed=9).seed == 9


# Files


def test_files_are_taken_from_the_scenarios_directory(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    (tmp_path / "v.csv").write_text("a\n7\n")
    replay = {"replay": {"file": "v.csv", "column": "a"}}
    path = tmp_path / "s.yaml"
    small = tree(
        broker={"tls": {"ca": "ca.pem"}}, groups=[group(publish=[entry(fields={"v": replay})])]
    )
    path.write_text(yaml.safe_dump(small))
    scenario = load(path)
    assert scenario.broker.tls is not None
    assert scenario.broker.tls.ca == str(tmp_path / "ca.pem")


def test_what_cant_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="can't be read"):
        load(tmp_path)
    with pytest.raises(ScenarioError, match=r"can't be read \(No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ScenarioError, match="is no file and no name in the catalogue"):
        load("no-such-scenario")
    bad = tmp_path / "b.yaml"
    bad.write_bytes(b"scenario: \xff")
    with pytest.raises(ScenarioError, match=r"b\.yaml:1:11 found bytes that aren't UTF-8"):
        load(bad)


def test_a_file_comes_before_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("smart-home").name == "smart-home.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smart-home").write_text("x")
    assert find("smart-home") == Path("smart-home")


def test_another_broker() -> None:
    scenario = read(tree())
    moved = elsewhere(scenario, "example.org", 1884)
    assert (moved.broker.host, moved.broker.port) == ("example.org", 1884)
    assert elsewhere(scenario, None, 7).broker.host == "127.0.0.1"
    assert elsewhere(scenario, None, None) is scenario
    own = read(tree(broker={"start": {"command": ["x", "{port}"]}}))
    with pytest.raises(ScenarioError, match="starts a broker of its own"):
        elsewhere(own, None, 7)


def test_a_password_is_not_shown() -> None:
    scenario = read(tree(groups=[group(credentials={"username": "u", "password": "s3cret"})]))
    assert "s3cret" not in repr(scenario)
    assert "s3cret" not in scenario.model_dump_json()


# The schema


def test_the_schema_is_a_schema_and_takes_what_is_good() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    fields = {"a": {"walk": {"start": 1}}, "b": "plain", "c": {"object": {"d": None}}}
    size = {"uniform": {"min": 32, "max": "1KiB"}}
    good = tree(groups=[group(publish=[entry(every="2s", fields=fields, size=size)])])
    assert not list(validator.iter_errors(good))
    read(good)


@pytest.mark.parametrize(
    "wrong",
    [
        tree(colour="red"),
        tree(groups=[]),
        tree(groups=[group(count=0)]),
        tree(groups=[group(publish=[entry(every="2 weeks")])]),
        tree(groups=[group(publish=[entry(fields={"v": {"walk": {}, "sine": {"period": 1}}})])]),
        tree(groups=[group(publish=[entry(fields={"v": {}})])]),
        tree(groups=[group(publish=[entry(size=10)])]),
        tree(stages=[{"name": "a", "actions": [{"jump": {}}]}]),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(wrong: dict[str, Any]) -> None:
    assert list(Draft202012Validator(json_schema()).iter_errors(wrong))
    assert problems(wrong)


def test_every_key_is_described_in_the_schema_by_its_type_at_least() -> None:
    text = json.dumps(json_schema())
    for key in Scenario.model_fields:
        assert f'"{key}"' in text


# Anything

WORDS = "scenario groups name count publish topic every stages actions connect fields walk"
words = st.sampled_from(WORDS.split())
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=40)
@given(st.dictionaries(words, anything, max_size=5))
def test_any_tree_is_read_or_explained(tree: dict[str, Any]) -> None:
    for line in problems(yaml.safe_dump(tree)):
        place, _, what = line.partition(" ")
        assert place.partition(":")[0].isdigit()
        assert what


@settings(max_examples=60)
@given(anything, st.data())
def test_any_value_in_a_good_tree_is_read_or_explained(value: Any, data: st.DataObject) -> None:
    fields = {"a": {"walk": {"start": 1}}, "b": {"expression": "a"}, "c": "x"}
    good = tree(
        profiles={"p": {"will": {"topic": "w/{id}"}, "subscribe": [{"filters": ["a/#"]}]}},
        groups=[group(profile="p", publish=[entry(name="e", fields=fields, size=64)])],
        stages=[{"name": "s", "duration": 9, "actions": [{"connect": {"over": 1}}]}],
        thresholds=["lost>0"],
    )
    node: Any = good
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        below = node[key]
        if not isinstance(below, dict | list) or data.draw(st.booleans()):
            node[key] = value
            break
        node = below
    for line in problems(good):
        assert line


def test_text_that_is_no_yaml() -> None:
    with pytest.raises(ScenarioError, match=r"s\.yaml:1:2 not YAML"):
        parse("[", "s.yaml")
