"""What is wrong with a scenario is said with its place, its path, and what was expected."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from device_sim.language.load import ScenarioError, parse
from tests.device_sim.scenarios import entry, group, problems, tree

TEXT = """\
scenario: small
groups:
  - name: sensor
    count: 10
    publish:
      - topic: t/{id}
        every: 2s
        fields:
          a: {walk: {start: 1}}
          b: {expression: "a * 2"}
stages:
  - name: only
    duration: 10s
    actions:
      - publish: {}
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "count: 10",
            "cuont: 10",
            "4:5 groups[0].cuont: unknown key 'cuont', expected one of clean_start, clock, count, "
            "credentials, flaky, id, keep_alive, name, offline, profile, publish, receive_maximum, "
            "reconnect, request, respond, session_expiry, sleep, subscribe, tags, tls, version, "
            "will, window (did you mean 'count'?)",
        ),
        (
            "count: 10",
            "count: many",
            "4:12 groups[0].count: found 'many', expected a whole number from 1 to 1000000",
        ),
        (
            "every: 2s",
            "every: 2 weeks",
            "7:16 groups[0].publish[0].every: found '2 weeks', expected a duration such as 500ms, "
            "10s, 1h30m or 30d, or a plain number of seconds",
        ),
        (
            "every: 2s",
            "every: 0",
            "7:16 groups[0].publish[0].every: found 0, expected more than 0",
        ),
        (
            "every: 2s",
            "qos: 3",
            "7:14 groups[0].publish[0].qos: found 3, expected 2 or less or a list",
        ),
        (
            "every: 2s",
            "encoding: jsno",
            "7:19 groups[0].publish[0].encoding: found 'jsno', expected 'json', 'cbor', 'raw' or "
            "'packed' (did you mean 'json'?)",
        ),
        (
            "every: 2s",
            "size: {unifrom: {min: 40, max: 50}}",
            "7:16 groups[0].publish[0].size.unifrom: unknown key 'unifrom', expected one of "
            "choice, lognormal, normal, uniform (did you mean 'uniform'?)",
        ),
        (
            "every: 2s",
            "size: {uniform: {min: 40, max: 33}}",
            "7:25 groups[0].publish[0].size.uniform: found a mapping, expected min that isn't "
            "above max",
        ),
        (
            "every: 2s",
            "arrival: sometimes",
            "7:18 groups[0].publish[0].arrival: found 'sometimes', expected 'linear' or 'poisson' "
            "or a mapping of keys",
        ),
        (
            "{walk: {start: 1}}",
            "{walk: {start: 1}, sine: {period: 1}}",
            "9:14 groups[0].publish[0].fields.a: found a mapping, expected exactly one of "
            "constant, walk, sine, counter, choice, uniform, normal, expression, replay, text, "
            "timestamp, object (there are 2 keys)",
        ),
        (
            "{walk: {start: 1}}",
            "{walk: {strat: 1}}",
            "9:22 groups[0].publish[0].fields.a.walk.strat: unknown key 'strat', expected one of "
            "digits, max, min, spread, start, step (did you mean 'start'?)",
        ),
        (
            "{walk: {start: 1}}",
            "[1]",
            "9:14 groups[0].publish[0].fields.a: found a list, expected a mapping of keys",
        ),
        (
            "a * 2",
            "aa * 2",
            "10:27 groups[0].publish[0].fields.b.expression: found 'aa', expected variables that "
            "are there (there are: a, index, last, seq, t; a field has to stand above)",
        ),
        (
            "a * 2",
            "open('x')",
            "10:27 groups[0].publish[0].fields.b.expression: found \"open('x')\", expected "
            "arithmetic (found something that isn't arithmetic at character 6)",
        ),
        (
            "t/{id}",
            "t/{di}",
            "6:16 groups[0].publish[0].topic: found {di}, expected the parts group, id, index, "
            "run, stream",
        ),
        (
            "t/{id}",
            "t/{id}/#",
            "6:16 groups[0].publish[0].topic: found 't/{id}/#', expected another name "
            "('t/sensor-00000/#' has a wildcard)",
        ),
        (
            "t/{id}",
            "t/{id",
            "6:16 groups[0].publish[0].topic: found 't/{id', expected a template (a lone '{' at "
            "character 3)",
        ),
        (
            "publish: {}",
            "publish: {groups: [senors]}",
            "15:28 stages[0].actions[0].publish.groups[0]: found 'senors', expected the name of a "
            "group (there are: sensor)",
        ),
        (
            "publish: {}",
            "jump: {}",
            "15:9 stages[0].actions[0].jump: unknown key 'jump', expected one of connect, "
            "disconnect, kill_broker, network, pause, publish, restart_broker, slow_reader, wait",
        ),
        (
            "publish: {}",
            "publish:",
            "15:9 stages[0].actions[0]: found a mapping, expected exactly one of connect, publish, "
            "disconnect, slow_reader, pause, kill_broker, restart_broker, network, wait, and what "
            "it needs",
        ),
        (
            "    duration: 10s\n",
            "",
            "12:5 stages[0]: nothing ends this stage, expected duration, or an action with an end",
        ),
        ("scenario: small\n", "", "1:1 scenario: missing"),
        ("  - name: sensor\n    count", "  - count", "3:5 groups[0].name: missing"),
    ],
)
def test_the_words(old: str, new: str, line: str) -> None:
    assert problems(TEXT) == []
    assert TEXT.count(old) == 1
    assert problems(TEXT.replace(old, new)) == [line]


def test_every_problem_is_told_at_once_in_order() -> None:
    text = TEXT.replace("10\n", "0\n").replace("every", "evry").replace("publish: {}", "pub: {}")
    assert [line.split(" ")[0] for line in problems(text)] == ["4:12", "7:9", "15:9"]


def paths(scenario: dict[str, Any]) -> list[str]:
    return [line.split(" ", 1)[1].split(":")[0] for line in problems(scenario)]


REQUEST = {"topic": "c/{target}", "targets": "sensor", "response": "r/{id}", "every": 1}


@pytest.mark.parametrize(
    ("scenario", "path"),
    [
        (tree(groups=[group(), group()]), "groups[1].name"),
        (
            tree(groups=[group(), group(name="b", id="{index}"), group(name="c", id="{index}")]),
            "groups[2].id",
        ),
        (tree(groups=[group(id="x")]), "groups[0].id"),
        (tree(groups=[group(id="{id}")]), "groups[0].id"),
        (tree(groups=[group(id="{nope}")]), "groups[0].id"),
        (tree(groups=[group(version="3.1", name="a" * 20)]), "groups[0].id"),
        (tree(groups=[group(profile="p")]), "groups[0].profile"),
        (tree(groups=[group(tags={"id": 3})]), "groups[0].tags.id"),
        (tree(groups=[group(tags={"target_x": 3})]), "groups[0].tags.target_x"),
        (tree(groups=[group(tags={"room": []})]), "groups[0].tags.room"),
        (tree(thresholds=["lots>0"]), "thresholds[0]"),
        (tree(groups=[group(publish=[entry(streams=2)])]), "groups[0].publish[0].topic"),
        (tree(groups=[group(publish=[entry(topic="$SYS/{id}")])]), "groups[0].publish[0].topic"),
        (tree(groups=[group(publish=[entry(topic="{id:d}")])]), "groups[0].publish[0].topic"),
        (tree(groups=[group(publish=[entry(rate=1)])]), "groups[0].publish[0]"),
        (
            tree(groups=[group(publish=[entry(name="a"), entry(name="a")])]),
            "groups[0].publish[1].name",
        ),
        (
            tree(groups=[group(publish=[{"topic": "t", "arrival": "poisson"}])]),
            "groups[0].publish[0]",
        ),
        (
            tree(groups=[group(publish=[entry(on_change={"fields": {"x": 1}})])]),
            "groups[0].publish[0].on_change.fields.x",
        ),
        (
            tree(groups=[group(publish=[entry(transfer={"size": 9, "chunk": 64}, size=64)])]),
            "groups[0].publish[0]",
        ),
        (
            tree(groups=[group(publish=[entry(fields={"x": {"text": "{no}"}})])]),
            "groups[0].publish[0].fields.x.text",
        ),
        (
            tree(groups=[group(publish=[entry(fields={"x": {"walk": {"start": 5, "max": 3}}})])]),
            "groups[0].publish[0].fields.x.walk",
        ),
        (
            tree(groups=[group(publish=[entry(fields={"x": {"choice": {"of": []}}})])]),
            "groups[0].publish[0].fields.x.choice.of",
        ),
        (
            tree(
                groups=[
                    group(publish=[entry(fields={"x": {"choice": {"of": [1, 2], "weights": [1]}}})])
                ]
            ),
            "groups[0].publish[0].fields.x.choice",
        ),
        (
            tree(
                groups=[
                    group(
                        publish=[
                            entry(fields={"x": {"replay": {"file": "none.csv", "column": "c"}}})
                        ]
                    )
                ]
            ),
            "groups[0].publish[0].fields.x.replay",
        ),
        (
            tree(
                groups=[
                    group(publish=[entry(fields={"o": {"object": {"x": {"expression": "y"}}}})])
                ]
            ),
            "groups[0].publish[0].fields.o.object.x.expression",
        ),
        (
            tree(groups=[group(version="3.1.1", publish=[entry(expiry=5)])]),
            "groups[0].publish[0].expiry",
        ),
        (
            tree(groups=[group(version="3.1.1", publish=[entry(user_properties={"a": "b"})])]),
            "groups[0].publish[0].user_properties",
        ),
        (tree(groups=[group(version="3.1.1", receive_maximum=5)]), "groups[0].receive_maximum"),
        (
            tree(groups=[group(version="3.1.1", will={"topic": "w", "delay": 5})]),
            "groups[0].will.delay",
        ),
        (
            tree(groups=[group(version="3.1.1", subscribe=[{"filters": ["a"], "no_local": True}])]),
            "groups[0].subscribe[0].no_local",
        ),
        (tree(groups=[group(version="3.1.1", respond=[{"filter": "a"}])]), "groups[0].respond"),
        (
            tree(groups=[group(subscribe=[{"filters": ["a/#/b"]}])]),
            "groups[0].subscribe[0].filters[0]",
        ),
        (
            tree(groups=[group(subscribe=[{"filters": ["$share/a/b"]}])]),
            "groups[0].subscribe[0].filters[0]",
        ),
        (tree(groups=[group(subscribe=[{"filters": []}])]), "groups[0].subscribe[0].filters"),
        (tree(groups=[group(will={"topic": "w/+"})]), "groups[0].will.topic"),
        (tree(groups=[group(will={"topic": "w", "payload": "{x}"})]), "groups[0].will.payload"),
        (
            tree(groups=[group(version="3.1.1", credentials={"password": "x"})]),
            "groups[0].credentials",
        ),
        (
            tree(groups=[group(credentials={"username": "{user}"})]),
            "groups[0].credentials.username",
        ),
        (
            tree(groups=[group(credentials={"password": "x", "password_env": "Y"})]),
            "groups[0].credentials",
        ),
        (tree(groups=[group(tls={"ca": "/none.pem"})]), "groups[0].tls.ca"),
        (tree(groups=[group(tls={"key": "/none.pem"})]), "groups[0].tls"),
        (tree(broker={"tls": {"cert": "/none.pem"}}), "broker.tls.cert"),
        (tree(groups=[group(tls={"cert": "/{run}.pem"})]), "groups[0].tls.cert"),
        (tree(groups=[group(tls={"cert": "/{id"})]), "groups[0].tls.cert"),
        (tree(broker={"start": {"command": ["mqttd"]}}), "broker.start"),
        (
            tree(broker={"start": {"command": ["x", "{port}"], "files": {"../a": ""}}}),
            "broker.start.files.'../a'",
        ),
        (
            tree(groups=[group(), group(name="c", request=[{**REQUEST, "targets": "x"}])]),
            "groups[1].request[0].targets",
        ),
        (
            tree(groups=[group(), group(name="c", request=[REQUEST])]),
            "groups[1].request[0].targets",
        ),
        (
            tree(
                groups=[
                    group(respond=[{"filter": "c/{id}"}]),
                    group(name="c", request=[{**REQUEST, "topic": "{target_room}"}]),
                ]
            ),
            "groups[1].request[0].topic",
        ),
        (tree(groups=[group(keep_alive=1.5)]), "groups[0].keep_alive"),
        (tree(groups=[group(publish=[{"topic": "t", "rate": 0}])]), "groups[0].publish[0].rate"),
        (tree(broker={"tls": {"ca": ""}}), "broker.tls.ca"),
        (
            tree(groups=[group(publish=[{"topic": "t", "transfer": {"size": 9, "chunk": 64}}])]),
            "groups[0].publish[0]",
        ),
        (
            tree(groups=[group(publish=[{"topic": "t", "on_change": {"fields": {"x": 1}}}])]),
            "groups[0].publish[0]",
        ),
        (
            tree(groups=[group(publish=[entry(fields={"x": {"uniform": {"min": 2}}})])]),
            "groups[0].publish[0].fields.x.uniform",
        ),
        (
            tree(groups=[group(publish=[entry(size={"choice": {"of": [64], "weights": [0]}})])]),
            "groups[0].publish[0].size.choice",
        ),
        (tree(stages=[]), "stages"),
        (tree(stages=[{"name": "a"}]), "stages[0]"),
        (
            tree(stages=[{"name": "a", "duration": 5, "actions": [{"connect": {"at": 6}}]}]),
            "stages[0].actions[0].connect.at",
        ),
        (
            tree(stages=[{"name": "a", "actions": [{"kill_broker": {}}]}]),
            "stages[0].actions[0].kill_broker",
        ),
        (
            tree(
                stages=[{"name": "a", "duration": 5, "actions": [{"publish": {"entries": ["e"]}}]}]
            ),
            "stages[0].actions[0].publish.entries[0]",
        ),
        (
            tree(stages=[{"name": "a", "duration": 5, "actions": [{"network": {}}]}]),
            "stages[0].actions[0].network",
        ),
        (tree(stages=[{"name": "a", "actions": [{"wait": {}}]}]), "stages[0].actions[0].wait"),
        (
            tree(stages=[{"name": "a", "actions": [{"wait": {"duration": 1, "timeout": 1}}]}]),
            "stages[0].actions[0].wait",
        ),
        (
            tree(stages=[{"name": "a", "actions": [{"connect": {"arrival": "poisson"}}]}]),
            "stages[0].actions[0].connect",
        ),
        (
            tree(stages=[{"name": "a", "actions": [{"disconnect": {"fraction": 1.5}}]}]),
            "stages[0].actions[0].disconnect.fraction",
        ),
    ],
)
def test_one_problem_at_its_path(scenario: dict[str, Any], path: str) -> None:
    assert paths(scenario) == [path]


@pytest.mark.parametrize("password", [8812345, ["8812345"], "{8812345", "{p8812345}"])
def test_a_password_is_not_repeated(password: Any) -> None:
    [line] = problems(tree(groups=[group(credentials={"username": "u", "password": password})]))
    assert "groups[0].credentials.password: found a" in line
    assert "8812345" not in line


def test_what_comes_from_a_profile_is_told_there_and_once() -> None:
    profiles = {"p": {"publish": [entry(topic="t/#")]}}
    groups = [{"name": name, "profile": "p"} for name in ("a", "b")]
    assert paths(tree(profiles=profiles, groups=groups)) == ["profiles.p.publish[0].topic"]


def test_an_action_without_an_end_is_fine_beside_one_that_has_one() -> None:
    actions = [{"publish": {}}, {"wait": {"until": "connected"}}]
    assert problems(tree(stages=[{"name": "a", "actions": actions}])) == []
    assert problems(tree(stages=[{"name": "a", "actions": [{"publish": {"count": 5}}]}])) == []
    assert problems(tree(stages=[{"name": "a", "actions": [{"publish": {"duration": 5}}]}])) == []


def test_the_first_three_certificates_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "{a}").mkdir()
    for name in ("0", "2"):
        (tmp_path / "{a}" / f"{name}.pem").write_text("x")
    changed = tree(groups=[group(count=7, tls={"cert": "{index}.pem"})])
    with pytest.raises(ScenarioError) as caught:
        parse(yaml.safe_dump(changed), "s.yaml", tmp_path / "{a}")
    (problem,) = caught.value.problems
    where = tmp_path / "{a}"
    named = ", ".join(repr(f"{where}/{number}.pem") for number in (1, 3, 4))
    assert problem.found == f"can't read {named} and 2 more"
    assert problem.hint == "No such file or directory"
