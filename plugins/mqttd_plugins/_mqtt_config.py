"""The configuration of `bridge_mqtt`, and what it names outside of itself: addresses, files.

Owns: what can be found wrong before anything is connected. On MQTT 5 the remote broker is asked not
to send back what the bridge itself published; before it there is no such thing, so rules that
would send a message back and forth are refused, unless the remote broker is told that this is a
bridge. What a message is for is said by subscription identifiers on MQTT 5; before it the filters
of two rules in may not overlap.

Must not know: connections. A ValueError says what is wrong, and of which rule or file.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from mqttd.api import Duration, FilePath, PluginConfig
from mqttd_plugins._bridge.rules import BridgeConfig, Rule, loops, overlap, placed
from mqttd_plugins._mqtt_lines import rules_of


class MqttRule(Rule):
    """A rule. Inward, `from` is a filter at the remote broker."""

    SOURCE_IS_FILTER: ClassVar[bool] = True
    TARGET_IS_TOPIC: ClassVar[bool] = True


class TlsConfig(PluginConfig):
    ca: FilePath | None = None
    """Certificates (PEM) to trust instead of the system's."""
    cert: FilePath | None = None
    """Certificate (PEM) to show."""
    key: FilePath | None = None
    """Its key; absent: it is in `cert`."""
    server_name: str | None = None
    """The name that the certificate of the remote broker has to bear, instead of the host's."""


class Config(BridgeConfig):
    addresses: Annotated[list[str], Field(min_length=1)]
    """`HOST:PORT` or `HOST` of the remote broker; of several, the next is tried after a failure."""
    rules: list[MqttRule] = []
    """What goes which way."""
    topics: list[str] = []
    """The same as Mosquitto's lines: `PATTERN [[[out|in|both] QOS] LOCAL-PREFIX REMOTE-PREFIX]`."""
    version: Literal[5, "3.1.1"] = 5
    """The version to speak."""
    bridge_bit: bool = False
    """3.1.1: say that this is a bridge, as Mosquitto does; Mosquitto sends nothing back then."""
    remote_client_id: str | None = None
    """The client id at the remote broker; without one it is made from the bridge's origin."""
    username: str | None = None
    """User name at the remote broker."""
    password_file: FilePath | None = None
    """Holds the password."""
    tls: TlsConfig | None = None
    """Speak TLS."""
    keep_alive: Annotated[int, Field(ge=0, le=65535)] = 60
    """Seconds; 0: never ask for a sign of life."""
    session_expiry: Duration = 7 * 86400.0
    """How long the remote broker keeps the session while there is no connection."""

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            address_of(address, 1883)
        return value

    @model_validator(mode="after")
    def _fits_mqtt(self) -> Config:
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file: a password needs a username")
        if self.tls is not None and self.tls.key is not None and self.tls.cert is None:
            raise ValueError("tls: a key needs a cert")
        if self.bridge_bit and self.version == 5:
            raise ValueError("bridge_bit: MQTT 5 has No Local instead, which is used")
        if not 0 < self.session_expiry <= 0xFFFFFFFF:
            raise ValueError("session_expiry is above 0 and at most 4294967295 seconds")
        rules = self.all_rules()
        inward = [rule for rule in rules if rule.direction == "in"]
        for number, rule in enumerate(inward):
            for other in inward[:number]:
                if rule.source == other.source:
                    raise ValueError(f"{rule.place}: the same filter as {other.place}")
                if self.version != 5 and overlap(rule.source, other.source):
                    raise ValueError(
                        f"{rule.place}: its filter overlaps with {other.place}: before MQTT 5 "
                        "nothing says which of the two a message is for"
                    )
        if self.version != 5 and not self.bridge_bit:
            for text in loops(rules):
                raise ValueError(
                    f"{text}; or use version 5, or bridge_bit if the remote broker is Mosquitto"
                )
        return self

    def all_rules(self) -> list[Rule]:
        found: list[Rule] = list(super().all_rules())
        for number, line in enumerate(self.topics):
            for tree in rules_of(line):
                try:
                    rule = MqttRule.model_validate(tree)
                except ValidationError as error:
                    (first, *_) = error.errors()
                    raise ValueError(f"topics[{number}]: {line!r}: {first['msg']}") from None
                placed([rule], "topics", number)
                found.append(rule)
        return found


def address_of(address: str, port: int) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`. ValueError."""
    host, colon, number = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, number = address, str(port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not number.isascii() or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ValueError(f"{address!r} is no address: expected HOST or HOST:PORT")
    return host, int(number)


def read_files(config: Config) -> tuple[bytes | None, ssl.SSLContext | None]:
    """The password and the certificates. ValueError names the file that is no good."""
    password = None
    if config.password_file is not None:
        password = _bytes_of(config.password_file).strip()
        if not password:
            raise ValueError(f"{config.password_file}: empty: expected a password")
    tls = config.tls
    if tls is None:
        return password, None
    context = _context(tls.ca)
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"{tls.cert}: no certificate with its key: {error}") from None
    return password, context


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{ca}: no certificates: {error}") from None


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
