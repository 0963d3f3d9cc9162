"""What all clients have in common: one notation for a message, one way to publish and to receive.

Every client library names the same things differently. The cross tests compare `Message`s; an
adapter per client (`python_peers`, `program_peers`) translates. Tests of a single client use its
own interface instead, through the small helpers beside them.
"""

import shutil
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import pytest

from tests.interop.server import Server

PATIENCE = 30.0
"""Seconds after which a test gives up; none is meant to come near."""

V31 = "3.1"
V311 = "3.1.1"
V5 = "5"

DEBIAN_PACKAGES = {
    "mosquitto_pub": "mosquitto-clients",
    "mosquitto_sub": "mosquitto-clients",
    "mosquitto_rr": "mosquitto-clients",
    "stdbuf": "coreutils",
    "node": "nodejs",
    "npm": "npm",
}


def need(program: str) -> str:
    """The program's path; skips the test where it isn't installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is missing (Debian: apt-get install {DEBIAN_PACKAGES[program]})")
    return path


@dataclass(frozen=True)
class Properties:
    """The properties of MQTT 5 that travel with a message; absent ones are None or empty."""

    payload_format: int | None = None
    expiry: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    user: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=Properties)

    def without_properties(self) -> "Message":
        return replace(self, properties=Properties())

    def user_by_name(self) -> "Message":
        """User properties in the order of their names: the order between names isn't compared."""
        user = tuple(sorted(self.properties.user, key=lambda pair: pair[0]))
        return replace(self, properties=replace(self.properties, user=user))

    def expiring(self, other: "Message") -> "Message":
        """This message with the expiry of `other`, if `other` has waited only for a moment."""
        ours, theirs = self.properties.expiry, other.properties.expiry
        if ours is None or theirs is None or not theirs - PATIENCE <= ours <= theirs:
            return self
        return replace(self, properties=replace(self.properties, expiry=theirs))


class Inbox(Protocol):
    async def get(self) -> Message:
        """The next message; an error when none comes."""


class Peer(Protocol):
    """A client of one kind and one protocol version."""

    version: str
    keeps_user_order: bool
    """Whether user properties of different names stay in their order inside of this client."""

    def receiving(self, server: Server, topic_filter: str) -> AbstractAsyncContextManager[Inbox]:
        """Connected and subscribed with QoS 2, acknowledged by the broker."""

    async def publish(self, server: Server, messages: Sequence[Message]) -> None:
        """Connect, publish, wait until all is acknowledged, disconnect."""
