"""Plugins without a broker: whether their files and services are any good, and what can be said of
them.

Owns: `check`, which makes each plugin of a configuration, never starts it, and asks its `check()`;
the services that such a plugin gets, which refuse all that only a broker that runs can do; and
`describe`, what a plugin class says about itself.

Must not know: the broker, the command line, how a problem is printed.

Invariant: what is made here changes nothing: no table, no client, no message, no task is left.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, NoReturn, TypeVar

from mqttd.config import Config, Problem
from mqttd.hooks.loader import Prepared
from mqttd.hooks.plugin import BrokerServices, Plugin

CHECK_S: Final = 30.0  # that a plugin may take for its check

HOOKS: Final = tuple(
    name
    for name in vars(Plugin)
    if name.startswith(("authenticate", "authorize_", "on_")) or name == "observe"
)

ResultT = TypeVar("ResultT")


class NoBroker(RuntimeError):
    """A plugin asked for something that is there only while the broker runs."""


class _Harmless(BrokerServices):
    """What can be had without a broker: a clock, a log, threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log = logging.getLogger(f"mqttd.plugins.{name}")

    def now(self) -> float:
        return monotonic()

    async def run_blocking(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return await asyncio.to_thread(function, *arguments)

    def count(self, name: str, by: int = 1) -> None:
        """Nobody reads it."""

    def gauge(self, name: str, value: float) -> None:
        """Nobody reads it."""

    def audit(self, kind: str, **fields: object) -> None:
        """Nothing has changed."""


def _refusal(what: str) -> Callable[..., NoReturn]:
    def refuse(self: BrokerServices, *arguments: object, **more: object) -> NoReturn:
        raise NoBroker(f"it asked for {what}, which only a broker that runs can do")

    return refuse


def no_services(name: str) -> BrokerServices:
    """What a plugin gets that is only checked; all but the harmless raises `NoBroker`."""
    made: BrokerServices = _NO_SERVICES(name)
    return made


# Whatever services there will be: one that isn't harmless is refused.
_NO_SERVICES: Final[Any] = type(
    "NoServices",
    (_Harmless,),
    {name: _refusal(name) for name in _Harmless.__abstractmethods__},
)


async def check(config: Config, prepared: list[Prepared]) -> list[Problem]:
    """What the plugins of a configuration find wrong with it, at the places of their entries."""
    problems: list[Problem] = []
    for index, one in enumerate(prepared):
        found = await _fault(one)
        if found:
            loc = ("plugins", index, "config" if one.entry.config else "use")
            problems.append(config.problem(loc, f"plugin {one.name}: {found}"))
    return problems


async def _fault(one: Prepared) -> str:
    try:
        plugin = one.made_by(one.config, no_services(one.name))
        async with asyncio.timeout(CHECK_S):
            await plugin.check()
    except TimeoutError:
        return f"its check took longer than {CHECK_S:g} s"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    except Exception as error:  # whatever its code does
        return str(error) or type(error).__name__
    except SystemExit:
        return "it called sys.exit"
    return ""


def hooks_of(made_by: type[Plugin[Any]]) -> list[str]:
    """The hooks that a plugin overrides."""
    return [name for name in HOOKS if getattr(made_by, name) is not getattr(Plugin, name)]


def describe(made_by: type[Plugin[Any]]) -> str:
    """One line about a plugin: the first of its module's docstring, or of its own.

    A module may begin with the name of its plugin, as "`delayed`: a message …".
    """
    module = inspect.getmodule(made_by)
    text = (module.__doc__ if module is not None else None) or made_by.__doc__ or ""
    first = inspect.cleandoc(text).partition("\n")[0]
    name, colon, rest = first.partition(": ")
    return rest if colon and name.startswith("`") and name.endswith("`") else first
