"""Configuration: YAML in, one validated and frozen tree out, or a list of problems with places.

Owns the names of all keys, their defaults and their limits. Three passes, each of which collects
every problem it finds before it gives up, so that a file is corrected in few rounds:

1. `mqttd.yamltree` turns the text into plain values and remembers where each of them stands.
2. pydantic checks the shape: unknown keys, types, ranges. Nothing is coerced; sizes (`1MiB`) and
   durations (`10s`) are text with a unit or a plain number.
3. What needs a second look: two listeners of one name, files that can't be read, keys that
   contradict each other.

A problem reads `file:line:col path: what was found, what was expected (a hint)`. Only keys that the
broker honours exist; a key that does nothing would be a lie. Relative paths are taken from the
directory of the configuration file, or from the working directory where there is no file.

Must not know: sockets, event loops, the broker. `Config.to_settings` hands the core its plain
numbers; the composition root reads the rest of the tree.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import ssl
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails

from mqttd.core.settings import NEVER, Settings
from mqttd.scalars import (
    EXPIRY_SCHEMA,
    SIZE_SCHEMA,
    TIME_SCHEMA,
    Duration,
    FilePath,
    Node,
    base_of,
    can_name_a_file,
    parse_duration,
    parse_expiry,
    parse_interval,
    parse_path,
    parse_size,
    parse_whole_seconds,
    refuse,
)
from mqttd.yamltree import ConfigError, Document, Loc, Problem, decode, dotted, shown

__all__ = [
    "OFF",
    "Config",
    "ConfigError",
    "Problem",
    "explain",
    "json_schema",
    "load_config",
    "parse_config",
    "parse_yaml",
]

_LARGEST_PACKET: Final = (
    268_435_460  # the longest remaining length, its four bytes and the first byte
)
OFF: Final = "off"
_SOCKET_PATH_BYTES: Final = 107  # sun_path of Linux without its closing NUL
_NAME: Final = r"^[A-Za-z0-9_.-]{1,64}$"
_NOT_IN_TOPICS: Final = ("Cc", "Cs")  # control characters, surrogates


_TOPIC_PATTERN: Final = r"^[^#+\x00-\x1f\x7f-\x9f]*$"


def _parse_response_information(value: object) -> object:
    """What clients put topics under: the start of a topic name, which stands in a packet."""
    if isinstance(value, str):
        for place, character in enumerate(value, 1):
            if character in "+#" or unicodedata.category(character) in _NOT_IN_TOPICS:
                hint = f"character {place} is {shown(character)}"
                raise refuse("a topic without wildcards and control characters", hint)
    return value


def _parse_storage(value: object, info: ValidationInfo) -> str:
    return ":memory:" if value == ":memory:" else str(parse_path(value, info))


def split_bind(bind: str) -> tuple[str, int, str]:
    """Host, port and socket path of a bind; the path is "" or the other two are. May ValueError."""
    if bind.startswith("unix:"):
        if len(bind) == 5 or not can_name_a_file(bind):
            raise ValueError(bind)
        return "", 0, bind[5:]
    host, colon, digits = bind.rpartition(":")
    if not colon or not digits.isascii() or not digits.isdigit() or int(digits) > 65535:
        raise ValueError(bind)
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1])), int(digits), ""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", host):
        raise ValueError(bind)
    return host, int(digits), ""


def _parse_use(value: object, info: ValidationInfo) -> str:
    """A loose file is taken from the directory of the configuration file; names stay."""
    if not isinstance(value, str) or not value:
        raise refuse("the name of a plugin, dotted.path:Class, or a file such as ./mine.py")
    return str(base_of(info) / value) if value.endswith(".py") else value


def _parse_control(value: object, info: ValidationInfo) -> object:
    if value in (None, OFF):
        return value
    path = str(parse_path(value, info))
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise refuse(f"a socket path of at most {_SOCKET_PATH_BYTES} bytes")
    return path


def _parse_bind(value: object, info: ValidationInfo) -> str:
    expected = "host:port, [v6]:port or unix:/path, with a port from 0 (any free one) to 65535"
    if not isinstance(value, str):
        raise refuse(expected)
    try:
        _, _, path = split_bind(value)
    except ValueError:
        hint = ""
        if value.count(":") > 1:
            hint = "an IPv6 address stands in brackets"
        elif value.startswith((":", "*:")):
            hint = "for all addresses write 0.0.0.0:port"
        raise refuse(expected, hint) from None
    if not path:
        return value
    resolved = str(base_of(info) / path)
    if len(os.fsencode(resolved)) > _SOCKET_PATH_BYTES:
        raise refuse(f"a socket path of at most {_SOCKET_PATH_BYTES} bytes")
    return f"unix:{resolved}"


def _parse_network(value: object) -> str:
    try:
        return str(ipaddress.ip_network(value if isinstance(value, str) else ""))
    except ValueError:
        raise refuse("an IP address or a network such as 10.0.0.0/8") from None


def _is_local(bind: str) -> bool:
    """Reached from this machine only: loopback or a Unix socket."""
    host, _, path = split_bind(bind)
    if path or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TlsConfig(Node):
    """TLS on one listener: 1.2 and 1.3."""

    cert: FilePath
    """PEM file with the server's certificate and the chain behind it."""
    key: FilePath
    """PEM file with the private key, not encrypted."""
    client_ca: FilePath | None = None
    """PEM file with the authorities that sign client certificates."""
    client_cert: Literal["none", "optional", "required"] = "none"
    """Whether clients are asked for a certificate, and whether they need one."""
    username_from: Literal["cn", "subject", "none"] = "cn"
    """The part of a verified client certificate that becomes the user name."""


class ListenerConfig(Node):
    """One address that clients connect to."""

    name: Annotated[str, Field(pattern=_NAME)]
    """How logs and the embedding face call it."""
    bind: Annotated[str, BeforeValidator(_parse_bind), WithJsonSchema({"type": "string"})]
    """host:port, [v6]:port or unix:/path; port 0 takes any free one."""
    transport: Literal["tcp", "websocket"] = "tcp"
    """Plain MQTT, or MQTT over WebSocket."""
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/mqtt"
    """The URL path of a WebSocket listener."""
    allow_anonymous: bool | None = None
    """Accept clients without credentials. When absent: on loopback and Unix sockets only, and only
    while no plugin authenticates."""
    allow_origins: list[Annotated[str, Field(pattern=r"^(null|[a-z]+://[^/?#\s]+)$")]] = []
    """Web pages that may connect, as https://host or https://host:port; empty: all."""
    proxy_protocol: Literal["off", "v1", "v2"] = "off"
    """Which PROXY protocol header a load balancer in front puts before each connection."""
    proxy_from: list[Annotated[str, BeforeValidator(_parse_network)]] = []
    """Addresses or networks that the load balancers connect from; empty: whoever can connect."""
    tls: TlsConfig | None = None

    def accepts_anonymous(self, authenticated: bool = False) -> bool:
        """Whether clients without credentials may connect; `authenticated`: plugins check them."""
        if self.allow_anonymous is not None:
            return self.allow_anonymous
        return self.is_local and not authenticated

    @property
    def host(self) -> str:
        return split_bind(self.bind)[0]

    @property
    def port(self) -> int:
        return split_bind(self.bind)[1]

    @property
    def unix_path(self) -> str:
        """The path of a Unix socket, "" for TCP."""
        return split_bind(self.bind)[2]

    @property
    def is_local(self) -> bool:
        return _is_local(self.bind)


class StorageConfig(Node):
    """Where sessions, queues and retained messages live."""

    path: Annotated[str, BeforeValidator(_parse_storage), WithJsonSchema({"type": "string"})] = (
        "data/mqttd.db"
    )
    """A file that the broker makes and keeps them in; :memory: keeps them until it stops."""
    durability: Literal["full", "os", "none"] = "full"
    """What an acknowledgement promises: on disk, with the operating system, nothing."""


_Size = Annotated[int, BeforeValidator(parse_size), SIZE_SCHEMA]
_Seconds = Annotated[int, BeforeValidator(parse_whole_seconds), TIME_SCHEMA]


class LimitsConfig(Node):
    """What one client may ask of the broker."""

    max_packet_size: Annotated[_Size, Field(ge=128, le=_LARGEST_PACKET)] = 1_048_576
    """The largest packet that is accepted from a client."""
    max_connect_size: Annotated[_Size, Field(ge=128, le=_LARGEST_PACKET)] = 65_536
    """The largest CONNECT; a stranger gets no more than this."""
    receive_maximum: Annotated[int, Field(ge=1, le=65535)] = 1024
    """QoS 1 and 2 messages that a client may have in flight towards the broker."""
    max_inflight: Annotated[int, Field(ge=1, le=65535)] = 1024
    """QoS 1 and 2 messages in flight towards a client, bounded by its own Receive Maximum too."""
    max_queued_messages: Annotated[int, Field(ge=0, le=2**31 - 1)] = 10_000
    """Messages that wait for one session; 0 is no limit."""
    queue_overflow: Literal["drop_newest", "drop_oldest"] = "drop_newest"
    """Which message goes when the queue is full; counted either way."""
    queue_qos0: bool = False
    """Whether QoS 0 messages wait for an absent client too."""
    topic_alias_maximum: Annotated[int, Field(ge=0, le=65535)] = 64
    """Topic aliases that a client may use, and that the broker uses when the client allows it."""
    session_expiry_max: Annotated[
        int, BeforeValidator(parse_expiry), Field(ge=0, le=NEVER), EXPIRY_SCHEMA
    ] = 2_592_000
    """The longest that a session outlives its connection; `never` is no limit."""
    connect_timeout: Annotated[
        float, BeforeValidator(parse_duration), Field(gt=0, le=3600), TIME_SCHEMA
    ] = 10.0
    """How long a new connection may take until its CONNECT is complete."""
    max_keep_alive: Annotated[_Seconds, Field(ge=0, le=65535)] = 0
    """The longest keep alive, imposed on MQTT 5 clients that ask for more; 0 is no limit."""
    write_buffer: Annotated[_Size, Field(ge=1024, le=2**31 - 1)] = 1_048_576
    """Bytes kept for a client that reads too slowly before QoS 0 messages for it are dropped."""
    max_subscriptions: Annotated[int, Field(ge=1, le=2**31 - 1)] = 10_000
    """Subscriptions of one session."""
    max_topic_levels: Annotated[int, Field(ge=1, le=65535)] = 200
    """Levels of a topic name or filter."""


class MetricsConfig(Node):
    """Figures for Prometheus, and health checks, over HTTP."""

    bind: Annotated[str, BeforeValidator(_parse_bind), WithJsonSchema({"type": "string"})] = (
        "127.0.0.1:9883"
    )
    """host:port, [v6]:port or unix:/path; whoever can connect can read it."""

    @property
    def host(self) -> str:
        return split_bind(self.bind)[0]

    @property
    def port(self) -> int:
        return split_bind(self.bind)[1]

    @property
    def unix_path(self) -> str:
        """The path of a Unix socket, "" for TCP."""
        return split_bind(self.bind)[2]

    @property
    def is_local(self) -> bool:
        return _is_local(self.bind)


class LoggingConfig(Node):
    """Lines on standard error, one an event."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class BreakerConfig(Node):
    """When a plugin that keeps failing is no longer asked, for a while."""

    failures: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    """Failures in a row; 0 asks it for ever."""
    rest: Annotated[Duration, Field(gt=0, le=86400)] = 10.0
    """How long it is left alone before it is tried again."""


class PluginEntry(Node):
    """A plugin, and how far it is trusted."""

    use: Annotated[str, BeforeValidator(_parse_use), WithJsonSchema({"type": "string"})]
    """Its name in the list of `mqttd plugins`, dotted.path:Class, or a file such as ./mine.py."""
    name: Annotated[str, Field(pattern=_NAME)] | None = None
    """How logs, metrics and its tables call it. When absent: what `use` says."""
    config: dict[str, Any] = {}
    """Its own configuration: see its page, or `mqttd plugins NAME`."""
    timeout: Annotated[Duration, Field(gt=0, le=3600)] = 5.0
    """How long a hook that waits may take."""
    on_failure: Literal["deny", "allow", "skip"] = "deny"
    """What counts as the answer of a hook that fails or takes too long. `skip`: as if the plugin
    weren't there."""
    breaker: BreakerConfig = BreakerConfig()


class ControlConfig(Node):
    """The socket that `mqttd clients`, `explain`, `top` and the like speak to."""

    path: (
        Annotated[str, BeforeValidator(_parse_control), WithJsonSchema({"type": "string"})] | None
    ) = None
    """A Unix socket, for the user that the broker runs as; `off`: none. When absent: beside the
    database, with the ending .ctl; none where nothing is kept."""
    record: Annotated[int, Field(ge=0, le=10_000_000)] = 10_000
    """Decisions that `mqttd explain` can tell of, the last so many; 0: none."""


class _Origin:
    """Where a tree was read. Two trees with the same values are equal, wherever that was."""

    def __init__(self, document: Document | None, file: str, base: Path) -> None:
        self.document = document
        self.file = file  # only a name, for the problems
        self.base = base
        self.loaded_from = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Origin)

    __hash__ = None  # type: ignore[assignment]


class Config(Node):
    """The whole configuration; `Config()` is what a broker without a file uses."""

    listeners: Annotated[list[ListenerConfig], Field(min_length=1)] = [
        ListenerConfig(name="tcp", bind="127.0.0.1:1883")
    ]
    storage: StorageConfig = StorageConfig()
    limits: LimitsConfig = LimitsConfig()
    response_information: Annotated[
        str,
        Field(max_length=256),
        BeforeValidator(_parse_response_information),
        WithJsonSchema({"type": "string", "maxLength": 256, "pattern": _TOPIC_PATTERN}),
    ] = "response"
    """Topic prefix for MQTT 5 clients that request response information; empty gives none."""
    sys_interval: Annotated[
        float, BeforeValidator(parse_interval), Field(ge=0, le=86400), TIME_SCHEMA
    ] = 10.0
    """How often what has changed below $SYS is published; 0 publishes nothing there."""
    metrics: MetricsConfig | None = None
    """Answer /metrics, /healthz and /readyz over HTTP. When absent: don't."""
    control: ControlConfig | None = None
    """Answer `mqttd clients`, `explain`, `reload` … on a Unix socket. When absent: `mqttd run` does
    so beside the database, a broker inside another process doesn't."""
    logging: LoggingConfig = LoggingConfig()
    plugins: list[PluginEntry] = []
    """Asked in this order."""

    _origin: _Origin = PrivateAttr(default_factory=lambda: _Origin(None, "", Path()))

    @property
    def base(self) -> Path:
        """What relative file names are taken from."""
        return self._origin.base

    @property
    def file(self) -> str:
        """The file that it was loaded from; "" where it wasn't."""
        return self._origin.loaded_from

    def control_socket(self) -> Path | None:
        """Where the commands of `mqttd` reach a broker of this configuration; None for nowhere."""
        path = None if self.control is None else self.control.path
        if path is not None:
            return None if path == OFF else Path(path)
        if self.storage.path == ":memory:":
            return None
        return Path(self.storage.path).with_suffix(".ctl")

    def problem(
        self, loc: Loc, found: str, expected: str = "", hint: str = "", at_key: bool = False
    ) -> Problem:
        """Something wrong at `loc`, with its place in the file."""
        origin = self._origin
        mark = None if origin.document is None else _mark_of(origin.document, loc, at_key)
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        return Problem(origin.file, line, column, dotted(loc), found, expected, hint)

    def to_settings(self) -> Settings:
        """The core's plain numbers: the limits under the same names, and the response prefix."""
        settings = Settings()
        for name in LimitsConfig.model_fields:
            setattr(settings, name, getattr(self.limits, name))
        settings.response_information = self.response_information
        return settings

    def warnings(self, authenticated: bool = False) -> list[str]:
        """What is allowed but hardly meant; `authenticated`: a plugin checks who connects."""
        found = []
        for listener in self.listeners:
            tls = listener.tls
            certified = (
                tls is not None and tls.client_cert != "none" and tls.username_from != "none"
            )
            if not authenticated and not listener.accepts_anonymous() and not certified:
                found.append(
                    f"listener {listener.name}: nobody can connect to {listener.bind}: it is not"
                    " local, allow_anonymous is not set and there is no way to authenticate"
                )
        if self.metrics is not None and not self.metrics.is_local:
            found.append(
                f"metrics: {self.metrics.bind} is not local: whoever reaches it can read the"
                " metrics, nobody is asked who they are"
            )
        return found


_EXPECTED: Final = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "a mapping of keys",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} of them",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "greater_than": "more than {gt}",
    "literal_error": "{expected}",
    "refused": "{expected}",
}


def _model_at(loc: Loc, root: type[Node]) -> type[Node] | None:
    """The model whose keys stand at `loc` of `root`; None below a scalar."""
    model: type[Node] | None = root
    for part in loc:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part)
        model = None if field is None else _model_in(field.annotation)
    return model


def _model_in(annotation: object) -> type[Node] | None:
    if isinstance(annotation, type) and issubclass(annotation, Node):
        return annotation
    for argument in typing.get_args(annotation):
        if (model := _model_in(argument)) is not None:
            return model
    return None


def _close(word: str, words: list[str]) -> str:
    matches = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {matches[0]!r}?" if matches else ""


def _homes(key: str, model: type[Node], path: str = "") -> Iterator[str]:
    """The places in the tree where a key of this name belongs."""
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        if name == key:
            yield here
        if (inner := _model_in(field.annotation)) is not None:
            yield from _homes(key, inner, here)


def _unknown(loc: Loc, root: type[Node]) -> tuple[str, str, str]:
    key = str(loc[-1])
    model = _model_at(loc[:-1], root)
    names = sorted(model.model_fields) if model is not None else []
    hint = _close(key, names)
    if not hint and (homes := list(_homes(key, root))):
        hint = f"it belongs at {homes[0]}"
    return f"unknown key {shown(key)}", f"one of {', '.join(names)}", hint


def explain(error: ErrorDetails, root: type[Node]) -> tuple[str, str, str]:
    """found, expected, hint of one pydantic error in a tree of `root`."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        return _unknown(error["loc"], root)
    if kind == "missing":
        return "missing", "", ""
    found = f"found {shown(value)}"
    if kind == "value_error":  # a validator's own words
        text = str(context["error"])
        return text if isinstance(value, dict | list) else f"{found}: {text}", "", ""
    template = _EXPECTED.get(kind)
    expected = error["msg"] if template is None else template.format(**context)
    hint = str(context.get("hint", ""))
    if kind == "literal_error" and isinstance(value, str):
        hint = _close(value, re.findall(r"'(\w+)'", expected))
    return found, expected, hint


def _second_look(config: Config) -> Iterator[tuple[Loc, str, str, str]]:
    names: dict[str, int] = {}
    binds: dict[str, int] = {}
    for index, listener in enumerate(config.listeners):
        at: Loc = ("listeners", index)
        if listener.name in names:
            yield (*at, "name"), f"found {listener.name!r} twice", "a name of its own", ""
        if listener.bind in binds and (listener.port or listener.unix_path):
            yield (*at, "bind"), f"found {listener.bind!r} twice", "an address of its own", ""
        names[listener.name] = binds[listener.bind] = index
        if listener.transport == "tcp":
            for key in {"path", "allow_origins"} & listener.model_fields_set:
                yield (*at, key), f"found {key}", "transport: websocket beside it", ""
        elif listener.unix_path:
            yield (*at, "bind"), "found a Unix socket", "host:port, for WebSocket", ""
        if listener.proxy_from and listener.proxy_protocol == "off":
            yield (*at, "proxy_from"), "found proxy_from", "proxy_protocol: v1 or v2 beside it", ""
        if listener.tls is not None:
            yield from _tls_problems(listener.tls, (*at, "tls"))
    metrics = config.metrics
    if metrics is not None and metrics.bind in binds and (metrics.port or metrics.unix_path):
        yield ("metrics", "bind"), f"found {metrics.bind!r} twice", "an address of its own", ""


def _tls_problems(tls: TlsConfig, at: Loc) -> Iterator[tuple[Loc, str, str, str]]:
    unreadable = False
    for key in ("cert", "key", "client_ca"):
        path = getattr(tls, key)
        reason = _unreadable(path) if path is not None else ""
        if reason:
            unreadable = True
            yield (*at, key), f"can't read {shown(str(path))}", "a readable PEM file", reason
    if tls.client_cert != "none" and tls.client_ca is None:
        yield (*at, "client_cert"), f"found {tls.client_cert!r}", "client_ca beside it", ""
    if tls.client_cert == "none":
        for key in ("client_ca", "username_from"):
            if key in tls.model_fields_set and getattr(tls, key) not in (None, "none"):
                expected = "client_cert: optional or required beside it"
                yield (*at, key), f"found {key}", expected, ""
    if unreadable:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would ask for its passphrase on the terminal.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        expected = "a PEM certificate and its unencrypted PEM key"
        yield (*at, "key"), "cert and key don't work together", expected, reason
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or str(error)
            yield (*at, "client_ca"), "found no certificate", "PEM certificates", reason


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _validate(data: object, base: Path, document: Document | None, file: str) -> Config:
    problems: list[Problem] = []

    def report(loc: Loc, found: str, expected: str, hint: str, at_key: bool) -> None:
        mark = _mark_of(document, loc, at_key) if document is not None else None
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        problems.append(Problem(file, line, column, dotted(loc), found, expected, hint))

    try:
        config = Config.model_validate(data, context={"base": str(base)})
    except ValidationError as error:
        for details in error.errors(include_url=False):
            found, expected, hint = explain(details, Config)
            at_key = details["type"] == "extra_forbidden"
            report(details["loc"], found, expected, hint, at_key)
        raise ConfigError(sorted(problems, key=_place)) from None
    for loc, found, expected, hint in _second_look(config):
        report(loc, found, expected, hint, at_key=False)
    if problems:
        raise ConfigError(sorted(problems, key=_place))
    config._origin = _Origin(document, file, base)
    return config


def _place(problem: Problem) -> tuple[int, int]:
    return problem.line, problem.column


def _mark_of(document: Document, loc: Loc, at_key: bool) -> yaml.Mark | None:
    """The mark of a key or value; for one that is missing, of the nearest thing around it."""
    if at_key and loc in document.keys:
        return document.keys[loc]
    while loc not in document.values and loc:
        loc = loc[:-1]
    return document.values.get(loc)


def parse_config(data: Mapping[str, object]) -> Config:
    """A configuration from plain values, as an embedder gives it."""
    return _validate(dict(data), Path(), None, "")


def parse_yaml(text: str, file: str = "<config>", base: Path | None = None) -> Config:
    """A configuration from YAML text; `file` is only a name for the problems."""
    document = Document(text, file)
    if document.problems:
        raise ConfigError(document.problems)
    return _validate(document.value, base if base is not None else Path(), document, file)


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """The configuration in a file, or the defaults where there is none."""
    if path is None:
        return Config()
    file = os.fspath(path)
    try:
        raw = Path(file).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([Problem(file, 0, 0, "", "can't be read", "", reason)]) from None
    config = parse_yaml(decode(raw, file), file, Path(file).parent)
    config._origin.loaded_from = file
    return config


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "mqttd configuration"
    return schema
