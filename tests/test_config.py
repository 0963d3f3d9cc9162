"""Configuration: every key, every way to get one wrong, and what the operator is told."""

import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from mqttd import cli, config
from mqttd.config import Config, ConfigError, load_config, parse_config, parse_yaml
from mqttd.core.settings import Settings
from mqttd.scalars import parse_duration, parse_size
from mqttd.yamltree import Document


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    return [str(problem) for problem in caught.value.problems]


def one(text: str) -> str:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


def listener(**keys: Any) -> config.ListenerConfig:
    tree = parse_config({"listeners": [{"name": "t", "bind": "127.0.0.1:0", **keys}]})
    return tree.listeners[0]


class Certificates:
    """A certificate authority and a server certificate, in files."""

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cert = folder / "server.crt"
        self.key = folder / "server.key"
        self.ca = folder / "ca.crt"
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            encryption = serialization.BestAvailableEncryption(passphrase)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker.example")])
        today = datetime(2026, 1, 1, tzinfo=UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(today)
            .not_valid_after(today + timedelta(days=36500))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.cert.write_bytes(pem)
        self.ca.write_bytes(pem)
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
        )


def test_no_file_is_the_defaults() -> None:
    assert load_config() == Config() == parse_config({}) == parse_yaml("")


def test_the_commented_file_equals_the_defaults(root: Path) -> None:
    text = (root / "config" / "mqttd.yaml").read_text()
    assert parse_yaml(text) == Config()  # in the same directory: relative paths start at the file


def test_the_commented_file_shows_every_key(root: Path) -> None:
    text = (root / "config" / "mqttd.yaml").read_text()
    shown = set(re.findall(r"^[ #-]*(\w+):", text, re.MULTILINE))
    models: list[type[BaseModel]] = [Config, config.ListenerConfig, config.TlsConfig]
    models += [config.StorageConfig, config.LimitsConfig, config.LoggingConfig]
    models += [config.MetricsConfig, config.ControlConfig]
    models += [config.PluginEntry, config.BreakerConfig]
    keys = {name for model in models for name in model.model_fields}
    assert keys <= shown, keys - shown


def test_the_development_file_loads(root: Path) -> None:
    tree = load_config(root / "config" / "dev.yaml")
    assert [entry.transport for entry in tree.listeners] == ["tcp", "websocket"]
    assert tree.warnings() == []


def test_the_hardened_file_loads(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Certificates(tmp_path / "tls")
    shutil.copy(root / "config" / "hardened.yaml", tmp_path)
    file = str(tmp_path / "hardened.yaml")
    assert cli.main(["check", "-c", file]) == 2  # its plugins miss their files
    problems = capsys.readouterr().err.splitlines()
    assert ["passwd" in problems[0], "acl" in problems[1], len(problems)] == [True, True, 2]
    assert cli.main(["passwd", "-b", "-c", str(tmp_path / "passwd"), "alice", "s3cr3t"]) == 0
    shutil.copy(root / "config" / "acl.example", tmp_path / "acl")
    capsys.readouterr()
    assert cli.main(["check", "-c", file]) == 0
    assert capsys.readouterr().err == ""
    tree = load_config(tmp_path / "hardened.yaml")
    assert tree.listeners[0].tls is not None
    assert tree.listeners[0].tls.cert == tmp_path / "tls" / "server.crt"
    assert not tree.listeners[0].accepts_anonymous()
    assert tree.warnings() == []


def test_default_settings_are_the_cores_own() -> None:
    ours, core = Config().to_settings(), Settings()
    names = [name for name in dir(core) if not name.startswith("_")]
    assert {name: getattr(ours, name) for name in names} == {
        name: getattr(core, name) for name in names
    }


def test_every_limit_reaches_the_core() -> None:
    changed = {
        "max_packet_size": 1000,
        "max_connect_size": 200,
        "receive_maximum": 1,
        "max_inflight": 2,
        "max_queued_messages": 3,
        "queue_overflow": "drop_oldest",
        "queue_qos0": True,
        "topic_alias_maximum": 4,
        "session_expiry_max": 5,
        "connect_timeout": 6.5,
        "max_keep_alive": 7,
        "write_buffer": 8192,
        "max_subscriptions": 9,
        "max_topic_levels": 10,
    }
    assert set(changed) == set(config.LimitsConfig.model_fields)
    settings = parse_config({"limits": changed, "response_information": "r"}).to_settings()
    assert {name: getattr(settings, name) for name in changed} == changed
    assert settings.response_information == "r"
    assert {*changed, "response_information"} == {
        name for name in dir(settings) if not name.startswith("_")
    }


def test_a_tree_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().limits.max_inflight = 3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("512B", 512),
        ("1kB", 1000),
        ("1KB", 1000),
        ("2MB", 2_000_000),
        ("1KiB", 1024),
        ("64 KiB", 65536),
        ("1MiB", 1_048_576),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_yaml(f"limits: {{max_packet_size: {text}}}").limits.max_packet_size == size


@pytest.mark.parametrize("text", ["1M", "1Mi", "-1", "1.5MiB", "MiB", "''", "true", "null", "[]"])
def test_what_is_no_size(text: str) -> None:
    assert "limits.max_packet_size: found " in one(f"limits: {{max_packet_size: {text}}}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10),
        ("1h", 3600),
        ("1m30s", 90),
        ("2.5s", 2.5),
        ("7", 7),
        ("0.2", 0.2),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    tree = parse_yaml(f"limits: {{connect_timeout: {text}}}")
    assert tree.limits.connect_timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["10", "10 s", "10sec", "s", "-1s", "''", "true", "null", ".nan", "1e999", "9" * 400 + "d"],
)
def test_what_is_no_duration(text: str) -> None:
    found = one(f"limits: {{connect_timeout: '{text}'}}")
    assert "expected a duration such as 500ms, 10s" in found


@pytest.mark.parametrize(("parse", "what"), [(parse_size, "a size"), (parse_duration, "a dur")])
def test_nothing_is_negative(parse: Callable[[object], float], what: str) -> None:
    """Not the plain number either: the JSON Schema of every plugin says so."""
    assert parse(0) == 0
    with pytest.raises(PydanticCustomError, match=what):
        parse(-1)


def test_whole_seconds() -> None:
    assert "expected whole seconds" in one("limits: {max_keep_alive: 1500ms}")
    assert parse_yaml("limits: {max_keep_alive: 5m}").limits.max_keep_alive == 300


def test_sessions_that_never_expire() -> None:
    tree = parse_yaml("limits: {session_expiry_max: never}")
    assert tree.limits.session_expiry_max == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1:1883", ("127.0.0.1", 1883, "")),
        ("localhost:0", ("localhost", 0, "")),
        ("[::1]:1883", ("::1", 1883, "")),
        ("0.0.0.0:65535", ("0.0.0.0", 65535, "")),
        ("unix:/run/mqttd.sock", ("", 0, "/run/mqttd.sock")),
    ],
)
def test_binds(bind: str, address: tuple[str, int, str]) -> None:
    entry = listener(bind=bind)
    assert (entry.host, entry.port, entry.unix_path) == address


@pytest.mark.parametrize(
    "bind",
    [
        "1883",
        ":1883",
        "h:65536",
        "h:-1",
        "h:",
        "h",
        "::1:1883",
        "[h]:1",
        "a b:1",
        "unix:",
        "",
        "h:²",
    ],
)
def test_what_is_no_bind(bind: str) -> None:
    found = one(f"listeners: [{{name: t, bind: '{bind}'}}]")
    assert found.startswith(f"f:1:29 listeners[0].bind: found '{bind}'".replace("²", "\\xb2"))
    assert "expected host:port, [v6]:port or unix:/path" in found


def test_hints_for_binds() -> None:
    assert "for all addresses write 0.0.0.0:port" in one("listeners: [{name: t, bind: ':1'}]")
    assert "IPv6 address stands in brackets" in one("listeners: [{name: t, bind: '::1:1'}]")


def test_a_socket_path_that_the_kernel_would_cut() -> None:
    found = one(f"listeners: [{{name: t, bind: 'unix:/{'x' * 107}'}}]")
    assert "expected a socket path of at most 107 bytes" in found


@pytest.mark.parametrize(
    ("bind", "anonymous"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/tmp/s", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.0.2.1:1", False),
        ("example.org:1", False),
    ],
)
def test_anonymous_is_on_by_default_only_on_local_binds(bind: str, anonymous: bool) -> None:
    entry = listener(bind=bind)
    assert entry.accepts_anonymous() is anonymous
    assert entry.is_local is anonymous
    assert listener(bind=bind, allow_anonymous=not anonymous).allow_anonymous is (not anonymous)


def test_a_listener_that_lets_nobody_in_gets_a_warning() -> None:
    tree = parse_yaml("listeners: [{name: lan, bind: '0.0.0.0:1883'}]")
    assert len(tree.warnings()) == 1
    assert "listener lan: nobody can connect to 0.0.0.0:1883" in tree.warnings()[0]
    asked = "listeners: [{name: lan, bind: '0.0.0.0:1883', allow_anonymous: true}]"
    assert parse_yaml(asked).warnings() == []


def test_all_problems_of_a_file_come_at_once() -> None:
    text = """\
limits:
  max_inflight: lots
  recieve_maximum: 3
logging:
  level: Debug
listeners:
  - bind: 127.0.0.1:1883
"""
    assert problems(text) == [
        "f:2:17 limits.max_inflight: found 'lots', expected a whole number",
        "f:3:3 limits.recieve_maximum: unknown key 'recieve_maximum', expected one of "
        + ", ".join(sorted(config.LimitsConfig.model_fields))
        + " (did you mean 'receive_maximum'?)",
        "f:5:10 logging.level: found 'Debug', expected 'debug', 'info', 'warning' or 'error'"
        " (did you mean 'debug'?)",
        "f:7:5 listeners[0].name: missing",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plugin: []", "f:1:1 plugin: unknown key 'plugin', expected one of control, "),
        ("max_inflight: 1", "(it belongs at limits.max_inflight)"),
        ("cert: a", "(it belongs at listeners.tls.cert)"),
        ("limits: 3", "f:1:9 limits: found 3, expected a mapping of keys"),
        ("limits:", "f:1:8 limits: found nothing, expected a mapping of keys"),
        ("listeners: {}", "f:1:12 listeners: found a mapping, expected a list"),
        ("listeners: []", "f:1:12 listeners: found a list, expected at least 1 of them"),
        ("listeners: [3]", "f:1:13 listeners[0]: found 3, expected a mapping of keys"),
        ("- limits", "f:1:1 found a list, expected a mapping of keys"),
        ("limits: {queue_qos0: yes}", "found 'yes', expected true or false"),
        ("limits: {queue_qos0: 1}", "found 1, expected true or false"),
        ("limits: {max_inflight: 1.0}", "found 1.0, expected a whole number"),
        ("limits: {max_inflight: '1'}", "found '1', expected a whole number"),
        ("limits: {max_inflight: 0}", "found 0, expected 1 or more"),
        ("limits: {max_inflight: 65536}", "found 65536, expected 65535 or less"),
        ("limits: {connect_timeout: 0}", "found 0, expected more than 0"),
        ("limits: {max_packet_size: 1GiB}", "found '1GiB', expected 268435460 or less"),
        ("response_information: 3", "found 3, expected text"),
        (
            "response_information: a/#",
            "f:1:23 response_information: found 'a/#', expected a topic without wildcards and"
            " control characters (character 3 is '#')",
        ),
        ("response_information: +", "(character 1 is '+')"),
        ('response_information: "a\\tb"', "(character 2 is '\\t')"),
        ('response_information: "a\\0"', "(character 2 is '\\x00')"),
        ('response_information: "\\x9f"', "(character 1 is '\\x9f')"),
        ('response_information: "\\ud800"', "(character 1 is '\\ud800')"),
        (f"response_information: {'x' * 257}", "...', expected at most 256 characters"),
        ("storage: {path: 3}", "f:1:17 storage.path: found 3, expected the name of a file"),
        ('storage: {path: "\\ud800"}', "f:1:17 storage.path: found '\\ud800', expected the name"),
        ('storage: {path: "a\\0"}', "found 'a\\x00', expected the name of a file"),
        (
            'listeners: [{name: u, bind: "unix:\\ud800"}]',
            "found 'unix:\\ud800', expected host:port",
        ),
        (f"limits: {{connect_timeout: {'9' * 400}}}", "expected a duration such as 500ms"),
        (f"limits: {{connect_timeout: 0x{'9' * 5000}}}", "expected a duration such as 500ms"),
        (f"limits: {{connect_timeout: {'9' * 400}s}}", "expected a duration such as 500ms"),
        (f"limits: {{session_expiry_max: {'9' * 400}}}", "expected a duration such as 500ms"),
        (f"limits: {{max_packet_size: {'9' * 400}}}", "expected 268435460 or less"),
        (f"limits: {{max_packet_size: 0x{'9' * 5000}}}", "expected 268435460 or less"),
        (f"limits: {{max_packet_size: {'9' * 5000}kB}}", "max_packet_size: found '999"),
        (f"limits: {{max_inflight: {'9' * 400}}}", "f:1:24 limits.max_inflight: found 999"),
        (f"limits: {{max_inflight: {'9' * 5000}}}", "f:1:24 limits.max_inflight: found "),
        ("1: 2", "a key that isn't text, expected the name of a key"),
        ("[a]: 2", "a key that isn't text, expected the name of a key"),
        ('"a\\e[31m\\n": 2', "f:1:1 'a\\x1b[31m\\n': unknown key 'a\\x1b[31m\\n', expected"),
    ],
)
def test_what_is_told(text: str, told: str) -> None:
    assert told in one(text)


def test_two_listeners_must_differ() -> None:
    same = "{name: t, bind: '127.0.0.1:1883'}"
    assert problems(f"listeners: [{same}, {same}]") == [
        "f:1:55 listeners[1].name: found 't' twice, expected a name of its own",
        "f:1:64 listeners[1].bind: found '127.0.0.1:1883' twice, expected an address of its own",
    ]
    any_port = "listeners: [{name: a, bind: '127.0.0.1:0'}, {name: b, bind: '127.0.0.1:0'}]"
    assert len(parse_yaml(any_port).listeners) == 2


def test_a_path_is_for_websocket() -> None:
    found = one("listeners: [{name: t, bind: 'localhost:1', path: /x}]")
    assert "listeners[0].path: found path, expected transport: websocket beside it" in found
    assert listener(transport="websocket", path="/x").path == "/x"
    found = one("listeners: [{name: t, bind: 'localhost:1', allow_origins: []}]")
    assert "listeners[0].allow_origins: found allow_origins, expected transport" in found
    found = one("listeners: [{name: t, bind: 'unix:/x', transport: websocket}]")
    assert "listeners[0].bind: found a Unix socket, expected host:port, for WebSocket" in found


def test_origins_are_schemes_with_hosts() -> None:
    good = ["https://panel.example", "http://localhost:8080", "null"]
    assert listener(transport="websocket", allow_origins=good).allow_origins == good
    for bad in ("panel.example", "https://panel.example/", "*"):
        with pytest.raises(ConfigError, match=r"allow_origins\[0\]"):
            listener(transport="websocket", allow_origins=[bad])


def test_where_proxies_connect_from() -> None:
    entry = listener(proxy_protocol="v2", proxy_from=["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"])
    assert entry.proxy_from == ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]
    for bad in ("10.0.0.1/8", "somewhere", 7):
        with pytest.raises(ConfigError, match="an IP address or a network such as"):
            listener(proxy_protocol="v2", proxy_from=[bad])
    found = one("listeners: [{name: t, bind: 'localhost:1', proxy_from: [10.0.0.1]}]")
    assert "proxy_from: found proxy_from, expected proxy_protocol: v1 or v2 beside it" in found


def test_problems_of_plain_values_have_a_path_and_no_place() -> None:
    with pytest.raises(ConfigError, match=r"^limits\.max_inflight: found 'x', expected a whole"):
        parse_config({"limits": {"max_inflight": "x"}})


def test_yaml_1_2_scalars() -> None:
    document = Document(
        "{a: off, b: yes, c: 0o17, d: 0123, e: 1_000, f: 12:30, g: 2027-01-31, h: 0x1F, i: ~,"
        " j: 'true', k: TRUE, l: 1e3, m: .inf, n: -7, o: '', p: }",
        "f",
    )
    assert document.problems == []
    assert document.value == {
        "a": "off",
        "b": "yes",
        "c": 15,
        "d": 123,
        "e": "1_000",
        "f": "12:30",
        "g": "2027-01-31",
        "h": 31,
        "i": None,
        "j": "true",
        "k": True,
        "l": 1000.0,
        "m": ".inf",
        "n": -7,
        "o": "",
        "p": None,
    }


def test_a_key_twice() -> None:
    assert problems("limits: {}\nlogging: {}\nlimits: {}\n") == [
        "f:3:1 limits: found 'limits' twice, expected it once (first on line 1)"
    ]
    assert "f:1:29 limits.max_inflight" in one("limits: {max_inflight: 1,   max_inflight: 1}")


@pytest.mark.parametrize(
    "text",
    [
        "limits: !!python/object/apply:os.system ['true']",
        "limits: !mine {}",
        "logging: {level: !!binary aGk=}",
        "limits: {queue_qos0: !!bool maybe}",
        "limits: {queue_qos0: !!int maybe}",
    ],
)
def test_tags_are_refused(text: str) -> None:
    assert "found the tag '!" in one(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limits: {", "f:1:10 not YAML: "),
        ("limits:\n\tmax_inflight: 1", "f:2:1 not YAML: "),
        ("a: *b", "f:1:4 not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "f:2:1 not YAML: expected a single document"),
        ("limits: &a [*a]", "an alias that contains itself"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_what_is_no_yaml(text: str, told: str) -> None:
    assert told in one(text)


def test_aliases_work_and_do_not_explode() -> None:
    tree = parse_yaml("limits: &l {max_inflight: 7}\nstorage: {durability: none}\n")
    assert tree.limits.max_inflight == 7
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "more than 100000 values" in one("\n".join(lines))


def test_merge_keys_are_ordinary_keys() -> None:
    assert "unknown key '<<'" in one("limits: {<<: {max_inflight: 7}}")


@given(st.text(alphabet=" \n\t:-[]{}#&*!|>'\"%@`,?ab019~.", max_size=60))
@example("? a\n? b")
@example("'\\x")
def test_no_text_does_anything_but_load_or_be_refused(text: str) -> None:
    told: list[config.Problem] = []
    try:
        parse_yaml(text)
    except ConfigError as error:
        told = error.problems or [config.Problem("", 0, 0, "", "refused without a reason\n", "")]
    assert not any("\n" in str(problem) for problem in told)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read \(No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"can't be read \(Is a directory\)"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"a: b\nc: \xff\n", "f.yaml:2:4 found bytes that aren't UTF-8, expected UTF-8 text"),
        (b"a: b\nc: \x00\n", "f.yaml:2:4 found a control character, expected UTF-8 text"),
        ("é: \x07".encode(), "f.yaml:1:4 found a control character"),
    ],
)
def test_a_file_that_is_no_text(raw: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "f.yaml")
    assert told in str(caught.value)


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("listeners: [{name: t, bind: 'unix:s'}]\n")
    assert load_config(file).listeners[0].unix_path == str(tmp_path / "s")
    assert listener(bind="unix:s").unix_path == "s"
    file.write_text("storage: {path: data/mqttd.db}\n")
    assert load_config(file).storage.path == str(tmp_path / "data" / "mqttd.db")
    file.write_text("storage: {path: ':memory:'}\n")
    assert load_config(file).storage.path == ":memory:"


def tls(folder: Path, **keys: object) -> dict[str, object]:
    values = {key: os.fspath(v) if isinstance(v, Path) else v for key, v in keys.items()}
    entry = {"name": "t", "bind": "127.0.0.1:0", "tls": values}
    return {"listeners": [entry]}


def refused(data: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    return str(caught.value)


def test_tls_files_that_serve(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    tree = parse_config(tls(tmp_path, cert=made.cert, key=made.key))
    assert tree.listeners[0].tls is not None
    assert tree.listeners[0].tls.client_cert == "none"
    asked = tls(tmp_path, cert=made.cert, key=made.key, client_ca=made.ca, client_cert="required")
    assert parse_config(asked).warnings() == []


def test_tls_files_that_do_not(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    other = Certificates(tmp_path / "other")
    locked = Certificates(tmp_path / "locked", passphrase=b"secret")
    empty = tmp_path / "empty.pem"
    empty.touch()
    missing = tmp_path / "none.pem"

    assert "tls.cert: can't read " in refused(tls(tmp_path, cert=missing, key=made.key))
    assert "tls.key: can't read " in refused(tls(tmp_path, cert=made.cert, key=missing))
    assert "cert and key don't work together" in refused(
        tls(tmp_path, cert=made.cert, key=other.key)
    )
    assert "unencrypted" in refused(tls(tmp_path, cert=locked.cert, key=locked.key))
    assert "don't work together" in refused(tls(tmp_path, cert=empty, key=made.key))
    assert "tls.key: missing" in refused(tls(tmp_path, cert=made.cert))
    assert "found 3, expected the name of a file" in refused(tls(tmp_path, cert=3, key=made.key))

    good: dict[str, object] = {"cert": made.cert, "key": made.key}
    asked = tls(tmp_path, **good, client_cert="required")
    assert "found 'required', expected client_ca beside it" in refused(asked)
    asked = tls(tmp_path, **good, client_cert="required", client_ca=empty)
    assert "tls.client_ca: found no certificate" in refused(asked)
    asked = tls(tmp_path, **good, client_cert="optional", client_ca=missing)
    assert "tls.client_ca: can't read " in refused(asked)
    for idle in ({"client_ca": made.ca}, {"username_from": "cn"}):
        asked = tls(tmp_path, **good, **idle)
        assert "expected client_cert: optional or required beside it" in refused(asked)


@pytest.mark.parametrize("key", ["cert", "key", "client_ca"])
def test_a_tls_file_with_a_name_that_no_file_can_have(key: str, tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    files = {"cert": made.cert, "key": made.key, key: "\ud800"}
    told = refused(tls(tmp_path, **files))
    assert f"tls.{key}: found '\\ud800', expected the name of a file" in told


def test_a_key_file_is_never_shown(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    text = refused(tls(tmp_path, cert=made.key, key=made.cert))
    assert "cert and key don't work together" in text
    secret = made.key.read_text().splitlines()[1]
    assert secret not in text


def test_the_schema_describes_every_key() -> None:
    schema = config.json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
    limits = schema["$defs"]["LimitsConfig"]["properties"]
    assert all("description" in entry for entry in limits.values())
    size = limits["max_packet_size"]
    assert re.search(size["pattern"], "1MiB")
    assert not re.search(size["pattern"], "1M")
    assert re.search(limits["session_expiry_max"]["pattern"], "never")
