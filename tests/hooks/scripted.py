"""Plugins whose hooks a test scripts, and the ways in which a hook can be broken."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from mqttd.api import (
    ALLOW,
    Client,
    Credentials,
    Deny,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
)
from tests.hooks.kit import Hooked

Ask = Callable[..., Any]


class Scripted(Plugin[PluginConfig]):
    """Hooks that a test replaces: `authenticate`, `publish`, `subscribe`, `receive`."""

    authenticate_: ClassVar[Ask] = staticmethod(lambda *_: ALLOW)
    publish_: ClassVar[Ask] = staticmethod(lambda *_: ALLOW)
    subscribe_: ClassVar[Ask] = staticmethod(lambda *_: ALLOW)
    receive_: ClassVar[Ask] = staticmethod(lambda *_: ALLOW)

    def authenticate(self, client: Client, credentials: Credentials) -> Any:
        return self.authenticate_(client, credentials)

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Any:
        return self.publish_(client, topic)

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Any:
        return self.subscribe_(client, subscription.topic_filter)

    def authorize_receive(self, client: Client, topic: str) -> Any:
        return self.receive_(client, topic)


def scripted(**hooks: Ask) -> type[Scripted]:
    return type("Scripted", (Scripted,), {f"{name}_": staticmethod(f) for name, f in hooks.items()})


def raising(*_: object) -> Any:
    raise RuntimeError("broken")


def hanging(*_: object) -> Any:
    return asyncio.get_running_loop().create_future()


def exiting(*_: object) -> Any:
    sys.exit(3)


async def exiting_late(*_: object) -> Any:
    await asyncio.sleep(0)
    sys.exit(3)


async def cancelled(*_: object) -> Any:
    raise asyncio.CancelledError


BROKEN: dict[str, Ask] = {
    "raises": raising,
    "exits": exiting,
    "exits late": exiting_late,
    "hangs": hanging,
    "rubbish": lambda *_: "yes",
    "nothing": lambda *_: None,
    "cancelled": cancelled,
    "code": lambda *_: Deny("no", code=0),
}
broken = pytest.mark.parametrize("what", BROKEN)


class Later:
    """A decider that waits until it is told."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Any]] = []

    def __call__(self, *_: object) -> Any:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    async def answer(self, made: Hooked, what: Any) -> None:
        await made.until(lambda: self.asked)
        self.asked.pop(0).set_result(what)
        await made.turn()
