"""Where a remote system is and how to get in: addresses, a password in a file, certificates.

Owns: what bridges that speak over TCP have in common in their configuration, read and checked the
same way everywhere. Files are read at the start and at a reload, never while messages flow.

Must not know: any one protocol.

Invariants: an error names the file and never holds what is in it; of several addresses the one
that served last is tried first.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from mqttd.api import FilePath, PluginConfig
from mqttd_plugins._bridge.rules import BridgeConfig


class TlsConfig(PluginConfig):
    ca: FilePath | None = None
    """Certificates (PEM) to trust instead of the system's."""
    cert: FilePath | None = None
    """Certificate (PEM) to show."""
    key: FilePath | None = None
    """Its key; absent: it is in `cert`."""


class AccessConfig(BridgeConfig):
    """A bridge to something that has an address and may want a password."""

    addresses: Annotated[list[str], Field(min_length=1)]
    """`HOST` or `HOST:PORT`; of several, the next is tried after a failure."""
    username: str | None = None
    """User name at the remote system."""
    password_file: FilePath | None = None
    """Holds the password, and may end with a line break."""
    tls: TlsConfig | None = None
    """Speak TLS."""

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            address_of(address, 1)
        return value

    @model_validator(mode="after")
    def _fits_access(self) -> AccessConfig:
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file: a password needs a username")
        if self.tls is not None and self.tls.key is not None and self.tls.cert is None:
            raise ValueError("tls: a key needs a cert")
        return self


class Access:
    """What was read from the files, and which address is next. Shared by all connections.

    `password` is text; who needs bytes sends it as UTF-8.
    """

    def __init__(self, config: AccessConfig, port: int) -> None:
        """Reads files: not for the loop's thread. `port` is the protocol's. ValueError."""
        self.password = None if config.password_file is None else _password(config.password_file)
        self.tls = None if config.tls is None else _context(config.tls)
        self._addresses = [address_of(address, port) for address in config.addresses]
        self._next = 0

    @property
    def address(self) -> tuple[str, int]:
        return self._addresses[self._next]

    def failed(self) -> None:
        """The address doesn't serve: the next one is tried next."""
        self._next = (self._next + 1) % len(self._addresses)


def address_of(address: str, port: int) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`. ValueError."""
    host, colon, number = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, number = address, str(port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not number.isascii() or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ValueError(f"{address!r} is no address: expected HOST or HOST:PORT")
    return host, int(number)


def _password(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a password as UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if not password:
        raise ValueError(f"{path}: empty: expected a password")
    return password


def _context(config: TlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if config.ca is None else str(config.ca))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{config.ca}: no certificates: {error}") from None
    if config.cert is not None:
        try:
            context.load_cert_chain(config.cert, config.key)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"{config.cert}: no certificate with its key: {error}") from None
    return context
