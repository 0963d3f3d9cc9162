"""schema: what is valid, what becomes of what isn't, schema files that are no good, changes."""

import json
import logging
import os
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._json_schema import Checker, SchemaProblem, _compiled, load
from mqttd_plugins.schema import INLINE, Config, Schema
from pydantic import ValidationError

from mqttd.api import Client, Deny, Drop, Message, MessageProperties, reason_codes
from mqttd.testing import StandIn, settled

READING = {
    "type": "object",
    "properties": {"celsius": {"type": "number", "maximum": 150}, "note": {"type": "string"}},
    "required": ["celsius"],
    "additionalProperties": False,
}
CLIENT = Client("pump")


def rule(file: Path, topic_filter: str = "sensors/+", **more: Any) -> dict[str, Any]:
    return {"filter": topic_filter, "file": str(file), **more}


async def started(*rules: dict[str, Any], **more: Any) -> tuple[Schema, StandIn]:
    broker = StandIn("schema")
    config = Config.model_validate({"rules": list(rules), **more})
    return cast(Schema, await broker.start(Schema, config)), broker


async def publish(
    plugin: Schema, payload: bytes, topic: str = "sensors/1", **more: Any
) -> Deny | Drop | None:
    answer = await settled(plugin.on_publish(CLIENT, Message(topic, payload, qos=1, **more)))
    return cast(Deny | Drop | None, answer)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "reading.json", READING)


def written(path: Path, schema: object) -> Path:
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return path


def checker_of(schema: Any) -> Checker:
    return Checker(_compiled(Path("schema.json"), schema))


READER = checker_of(READING)


# What is valid.


async def test_what_is_valid_goes_on(file: Path) -> None:
    plugin, broker = await started(rule(file))
    assert await publish(plugin, b'{"celsius": 21.5}') is None
    assert broker.counts == {"valid": 1}


async def test_topics_without_a_rule_are_not_looked_at(file: Path) -> None:
    plugin, broker = await started(rule(file))
    assert await publish(plugin, b"\xff", "other/1") is None
    assert broker.counts == {}


BAD = [
    (b'{"celsius": 151}', "schema: properties/celsius/maximum"),
    (b'{"celsius": "21"}', "schema: properties/celsius/type"),
    (b"{}", "schema: required"),
    (b'{"celsius": 1, "x": 1}', "schema: additionalProperties"),
    (b"21", "schema: type"),
    (b"", "no JSON"),
    (b"21 degrees", "no JSON"),
    (b'{"celsius": NaN}', "no JSON"),
    (b'{"celsius": -Infinity}', "no JSON"),
    (b'{"celsius": 1, "celsius": 151}', "no JSON: a key twice in an object"),
    (b'{"celsius": ' + b"9" * 4000 + b"}", "schema: properties/celsius/maximum"),
    (b'{"celsius": ' + b"9" * 5000 + b"}", "no JSON"),
    (b'{"celsius": 1e999}', "schema: properties/celsius/maximum"),
    (b"\xff\xfe{\x00}\x00", "no JSON: not UTF-8"),
    (b"\xef\xbb\xbf{}", "no JSON"),
    (b"[" * 100_000, "no JSON: nested too deeply"),
]


@pytest.mark.parametrize(("payload", "reason"), BAD)
async def test_what_is_not_valid_is_rejected(file: Path, payload: bytes, reason: str) -> None:
    plugin, broker = await started(rule(file))
    deny = await publish(plugin, payload)
    assert isinstance(deny, Deny)
    assert deny.code == reason_codes.PAYLOAD_FORMAT_INVALID
    assert deny.reason == f"payload is not valid: {reason}"
    assert deny.rule == str(file)
    assert broker.counts == {"rejected": 1}


async def test_what_is_too_large_is_not_parsed(file: Path) -> None:
    plugin, _ = await started(rule(file, max_size=20))
    assert await publish(plugin, b'{"celsius":   21.5 }') is None
    deny = await publish(plugin, b'{"celsius":    21.5 }')
    assert isinstance(deny, Deny)
    assert deny.reason.endswith("larger than max_size")


async def test_a_large_payload_is_checked_in_a_thread(file: Path) -> None:
    plugin, broker = await started(rule(file))
    blank = b" " * INLINE
    for payload, counted in ((b'{"celsius": 1}', "valid"), (b'{"celsius": 151}', "rejected")):
        answer = plugin.on_publish(CLIENT, Message("sensors/1", payload + blank))
        assert isinstance(answer, Awaitable)
        assert isinstance(await answer, Deny) == (counted == "rejected")
    assert broker.counts == {"valid": 1, "rejected": 1}


async def test_the_first_rule_that_holds_the_topic_decides(tmp_path: Path, file: Path) -> None:
    anything = written(tmp_path / "any.json", "true")
    plugin, _ = await started(rule(anything, "sensors/1"), rule(file))
    assert await publish(plugin, b"7") is None
    assert isinstance(await publish(plugin, b"7", "sensors/2"), Deny)


async def test_an_empty_message_that_clears_a_retained_one_may(file: Path) -> None:
    plugin, _ = await started(rule(file), rule(file, "x", allow_clearing=False))
    assert await publish(plugin, b"", retain=True) is None
    assert isinstance(await publish(plugin, b""), Deny)
    assert isinstance(await publish(plugin, b"", "x", retain=True), Deny)


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_payload_has_an_answer(payload: bytes) -> None:
    assert READER.reason_against(payload, 1.0).startswith(("no JSON", "schema: "))


def test_a_reason_holds_nothing_of_the_payload() -> None:
    checker = checker_of(
        {"additionalProperties": {"type": "string"}, "properties": {"a": {"enum": ["b"]}}}
    )
    for payload in (b'{"secret": 4711}', b'{"a": "secret"}', b"secret", b'{"secret": [[]]}'):
        assert checker.reason_against(payload, 1.0) != ""
        assert "secret" not in checker.reason_against(payload, 1.0)
        assert "4711" not in checker.reason_against(payload, 1.0)


def test_a_value_that_breaks_the_validator_is_not_valid() -> None:
    assert checker_of({"multipleOf": 0.5}).reason_at_once(b"1e999") == (
        "the validator failed: OverflowError"
    )


# Payloads that are made to take long.


def test_what_is_nested_too_deeply_is_not_read() -> None:
    checker = checker_of({"items": {"$ref": "#"}})
    for payload, told in (
        (b"[" * 100 + b"]" * 100, ""),
        (b"[" * 101 + b"]" * 101, "no JSON: nested too deeply"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "no JSON: nested too deeply"),
        (b"[" * 100_000, "no JSON: nested too deeply"),
        (b"[" + b"[]," * 500 + b"1]", ""),
        (json.dumps(["[" * 200, "{" * 200, '\\"' + "[" * 200]).encode(), ""),
    ):
        assert checker.reason_against(payload, 1.0) == told


def test_numbers_of_many_digits_are_no_json() -> None:
    checker = checker_of({"type": "integer", "multipleOf": 7})
    assert checker.reason_at_once(b"1" * 4300).startswith("schema: ")  # type: ignore[union-attr]
    assert checker.reason_against(b"1" * 100_000, 1.0) == "no JSON"


TWICE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "anyOf": [
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "null"},
    ],
}
BOMB = b"[" * 60 + b"1" + b"]" * 60


def test_a_payload_that_is_looked_at_twice_on_each_level_is_given_up() -> None:
    checker = checker_of(TWICE)
    assert checker.reason_at_once(b"[[null]]") == ""
    assert checker.reason_at_once(BOMB) is None
    assert checker.reason_against(BOMB, 0.0) == "it takes too long to be checked"
    assert checker.reason_against(b"[[1]]", 1.0) == "schema: anyOf"


async def test_what_takes_long_is_checked_beside_the_loop_and_then_given_up(tmp_path: Path) -> None:
    plugin, broker = await started(rule(written(tmp_path / "s.json", TWICE)), max_time=0.01)
    answer = plugin.on_publish(CLIENT, Message("sensors/1", BOMB, qos=1))
    assert isinstance(answer, Awaitable)
    deny = await answer
    assert isinstance(deny, Deny)
    assert deny.reason == "payload is not valid: it takes too long to be checked"
    assert broker.counts == {"rejected": 1}


@pytest.mark.parametrize("version", ["draft-07", "draft/2020-12"])
def test_no_text_makes_a_pattern_take_long(version: str) -> None:
    """Those of the standard library hold every thread up meanwhile."""
    checker = checker_of(
        {
            "$schema": f"http{'s' * ('2020' in version)}://json-schema.org/{version}/schema"
            + "#" * ("draft-07" in version),
            "pattern": "^(a+)+$",
            "patternProperties": {"^(b+)+$": {"type": "number"}},
            "items": {"$ref": "#"},
        }
    )
    for text in ("a" * 2000 + "!", "a" * 2000):
        assert (checker.reason_at_once(json.dumps(text).encode()) == "") == ("!" not in text)
        nested = json.dumps([[text]]).encode()  # by way of the root, and its $schema
        assert (checker.reason_at_once(nested) == "") == ("!" not in text)
    assert checker.reason_at_once(json.dumps({"b" * 2000 + "!": "x"}).encode()) == ""
    assert checker.reason_at_once(json.dumps({"b" * 2000: "x"}).encode()) != ""


def test_items_that_are_there_twice_are_found_without_comparing_all_of_them() -> None:
    checker = checker_of({"uniqueItems": True})
    for text, told in (
        ('[1, true, 0, false, null, "1", [1], [true], {}]', ""),
        ("[1, 1.0]", "schema: uniqueItems"),
        ('[[1, {"a": 1}], [1, {"a": 1.0}]]', "schema: uniqueItems"),
        ('[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', "schema: uniqueItems"),
    ):
        assert checker.reason_at_once(text.encode()) == told
    many = json.dumps([{"a": number} for number in range(5000)]).encode()
    assert checker.reason_against(many, 10.0) == ""


SCHEMAS: list[Any] = [
    {"properties": {"a": {}}, "patternProperties": {"^b": {"type": "string"}},
     "additionalProperties": False},
    {"patternProperties": {"a": {"minimum": 1}, "b": {"maximum": 2}},
     "additionalProperties": {"type": "null"}},
    {"additionalProperties": True, "propertyNames": {"pattern": "^[a-c]$"}},
    {"items": {"pattern": "b$"}, "uniqueItems": True},
    {"uniqueItems": False, "not": {"required": ["a"], "additionalProperties": False}},
]  # fmt: skip
CHECKERS = [(checker_of(schema), jsonschema.Draft202012Validator(schema)) for schema in SCHEMAS]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "ab", "b"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(CHECKERS), VALUES)
def test_keywords_of_our_own_say_what_those_of_the_library_say(
    pair: tuple[Checker, Any], value: Any
) -> None:
    ours, theirs = pair
    assert (ours.reason_at_once(json.dumps(value).encode()) == "") == theirs.is_valid(value)


# Quarantine and observation.


async def test_quarantine_keeps_the_message_with_its_topic_and_the_reason(file: Path) -> None:
    plugin, broker = await started(rule(file, mode="quarantine", quarantine="quarantine/sensors"))
    properties = MessageProperties(
        content_type="text/plain", user_properties=(("unit", "K"), ("reason", "mine"))
    )
    drop = await publish(plugin, b"cold", retain=True, properties=properties)
    assert isinstance(drop, Drop)
    (kept,) = broker.published
    assert (kept.topic, kept.payload, kept.qos, kept.retain) == (
        *("quarantine/sensors", b"cold", 1, False),
    )
    assert kept.properties.content_type == "text/plain"
    assert kept.properties.user_properties == (
        ("unit", "K"),
        ("original-topic", "sensors/1"),
        ("reason", "no JSON"),
        ("client-id", "pump"),
    )
    assert broker.counts == {"quarantined": 1}
    assert await publish(plugin, b'{"celsius": 1}') is None


async def test_a_quarantine_that_fails_lets_nothing_through(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, broker = await started(rule(file, mode="quarantine", quarantine="q"))

    async def broken(message: Message) -> int:
        raise OSError("no space")

    monkeypatch.setattr(broker, "publish", broken)
    with pytest.raises(OSError, match="no space"):
        await publish(plugin, b"cold")
    assert broker.counts == {}


async def test_observation_lets_it_through_and_says_so_now_and_then(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, broker = await started(rule(file, mode="observe"))
    caplog.set_level(logging.WARNING)
    for _ in range(100):
        assert await publish(plugin, b"secret") is None
    await broker.advance(10.0)
    assert await publish(plugin, b"secret", "sensors/a\nb") is None
    assert broker.counts == {"observed": 101}
    assert [record.getMessage() for record in caplog.records] == [
        "a message of 'pump' to 'sensors/1' is not valid: no JSON",
        "a message of 'pump' to 'sensors/a\\nb' is not valid, and 99 before it: no JSON",
    ]


# Files.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ":1:1: Expecting value"),
        ('{"type":\n "object",}', ":2:11: "),
        ("7", "an object, or true or false"),
        ('{"type": "objekt"}', r"\$.type: "),
        ('{"properties": {"a": {"maximum": "x"}}}', r"\$.properties.a.maximum: "),
        ('{"type": "object", "type": "array"}', "stands twice"),
        ('{"$schema": "https://example.com/mine"}', "no known version"),
        ('{"$schema": 7}', "no known version"),
        ('{"properties": {"a": {"$ref": "#/$defs/no"}}}', r"\$.properties.a.\$ref: .*nowhere"),
        ('{"$ref": "https://example.com/s.json"}', "nothing is fetched"),
        ('{"anyOf": [true, {"$ref": "other.json"}]}', r"\$.anyOf\[1\].\$ref: .*nothing is fetched"),
        ('{"$ref": "file:///etc/passwd"}', "nothing is fetched"),
        ('{"pattern": "("}', r"\$.pattern: "),
        (
            '{"items": {"pattern": "(?=a)"}}',
            r"\$.items: pattern '\(\?=a\)': .*can't be matched in linear time",
        ),
        ('{"patternProperties": {"(a)\\\\1": {}}}', "a reference to a group, and"),
        ('{"pattern": "(a{50}){50}"}', "invalid repetition size"),
        (
            '{"patternProperties": {"a": {}}, "unevaluatedProperties": false}',
            "with unevaluatedProperties",
        ),
        (
            '{"$defs": {"a": {"$schema": "https://json-schema.org/draft/2020-12/schema"}}}',
            r"\$.\$defs.a.\$schema: expected at the top",
        ),
        ("[" * 100_000, "recursion"),
    ],
)
async def test_a_file_that_is_no_good_stops_the_start(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path / "bad.json", text)
    with pytest.raises(SchemaProblem, match=told) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    config = Config.model_validate({"rules": [rule(file)]})
    broker = StandIn()
    with pytest.raises(SchemaProblem):
        await broker.start(Schema, config)
    with pytest.raises(SchemaProblem):
        await Schema(config, broker).check()


async def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SchemaProblem, match="No such file"):
        await started(rule(tmp_path / "none.json"))
    (tmp_path / "latin.json").write_bytes(b'{"title": "\xe9"}')
    with pytest.raises(SchemaProblem, match="not UTF-8"):
        await started(rule(tmp_path / "latin.json"))


async def test_references_within_the_file_are_followed(tmp_path: Path) -> None:
    file = written(
        tmp_path / "s.json",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"t": {"type": "number", "default": {"$ref": "http://no.example"}}},
            "items": {"$ref": "#/definitions/t"},
        },
    )
    plugin, _ = await started(rule(file))
    assert await publish(plugin, b"[]") is None
    deny = await publish(plugin, b'["x"]')
    assert isinstance(deny, Deny)
    assert deny.reason.endswith("schema: items/type")


async def test_without_jsonschema_it_says_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(RuntimeError, match=r'pip install "mqttd\[schema\]"'):
        await started(rule(file))


async def test_a_file_that_changes_is_read_again(file: Path) -> None:
    plugin, broker = await started(rule(file))
    written(file, {"type": "string"})
    await broker.advance(2.0)
    assert broker.counts == {"reloaded": 1}
    assert await publish(plugin, b'"x"') is None
    assert isinstance(await publish(plugin, b'{"celsius": 1}'), Deny)
    await plugin.stop()
    written(file, "true ")
    await broker.advance(10.0)
    assert broker.counts["reloaded"] == 1


async def test_a_change_for_the_worse_changes_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, broker = await started(rule(file))
    for text in ("{", '{"type": "objekt"}'):
        written(file, text)
        await broker.advance(2.0)
        assert await publish(plugin, b'{"celsius": 1}') is None
        assert isinstance(await publish(plugin, b'"x"'), Deny)
    os.unlink(file)
    await broker.advance(2.0)
    assert broker.counts["reload_failures"] == 3
    assert isinstance(await publish(plugin, b'"x"'), Deny)
    assert "the old schemas stay in force" in caplog.text


async def test_a_reload_takes_the_new_rules_or_none(tmp_path: Path, file: Path) -> None:
    plugin, _ = await started(rule(file))
    bad = Config.model_validate({"rules": [rule(tmp_path / "none.json")]})
    with pytest.raises(SchemaProblem):
        await plugin.reload(bad)
    assert isinstance(await publish(plugin, b'"x"'), Deny)
    good = Config.model_validate({"rules": [rule(file, "elsewhere")]})
    await plugin.reload(good)
    assert await publish(plugin, b'"x"') is None
    assert isinstance(await publish(plugin, b'"x"', "elsewhere"), Deny)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([], "no rules"),
        ([{"filter": "a/#/b"}], "no topic filter"),
        ([{"filter": "$share/g/a"}], "GROUP/ away"),
        ([{"filter": "a", "mode": "quarantine"}], "belong together"),
        ([{"filter": "a", "quarantine": "q"}], "belong together"),
        ([{"filter": "a", "mode": "quarantine", "quarantine": "q/#"}], "no topic"),
        ([{"filter": "a", "mode": "quarantine", "quarantine": "$SYS/q"}], "nobody but the broker"),
        ([{"filter": "a/#"}, {"filter": "a/b"}], r"rules\[1\] never gets a turn behind rules\[0\]"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate({"rules": [{"file": "s.json", **one} for one in rules]})
