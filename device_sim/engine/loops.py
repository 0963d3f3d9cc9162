"""Which event loop a command runs on: uvloop where it is installed, unless told otherwise."""

import asyncio
from collections.abc import Callable

from device_sim.engine.plan import UsageError


def factory_of(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop called `auto`, `uvloop` or `asyncio`; None for Python's own."""
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise UsageError("uvloop is not installed") from None
        return None
    return uvloop.new_event_loop
