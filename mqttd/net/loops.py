"""Which event loop runs the broker.

uvloop where it is installed: in an echo test it is five to six times as fast as asyncio's own loop.
asyncio otherwise, and whenever asked for. The argument wins over the environment variable
`MQTTD_LOOP`, which wins over the default; each is `uvloop`, `asyncio` or `auto`.

Must not know: brokers, configuration. The rest of `net` works on either loop; the places where the
two differ ask `is_uvloop` and say why.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

UVLOOP: Final = "uvloop"
ASYNCIO: Final = "asyncio"
AUTO: Final = "auto"
VARIABLE: Final = "MQTTD_LOOP"


def choose(wanted: str | None = None) -> str:
    """The name of the loop to use. ValueError if it is unknown, ImportError if not installed."""
    name = wanted or os.environ.get(VARIABLE) or AUTO
    if name not in (UVLOOP, ASYNCIO, AUTO):
        raise ValueError(f"unknown event loop {name!r}: one of uvloop, asyncio, auto")
    if name == ASYNCIO:
        return ASYNCIO
    try:
        import uvloop  # noqa: F401
    except ImportError:
        if name == UVLOOP:
            raise
        return ASYNCIO
    return UVLOOP


def new_event_loop(wanted: str | None = None) -> asyncio.AbstractEventLoop:
    """A loop of the chosen kind; also the `loop_factory` of `asyncio.Runner`."""
    if choose(wanted) == UVLOOP:
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    return type(loop).__module__.partition(".")[0] == UVLOOP
