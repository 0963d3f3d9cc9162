"""Interrupts: what Ctrl-C and a service manager's SIGTERM do to a run, and for how long.

Owns the two signals while a run lasts. Knows nothing of runs: it is given what to call.

Invariant: afterwards both signals do what they did before. A loop doesn't see to that: uvloop
leaves its handler in place when it closes, and the process that embeds a run could not be
interrupted any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupts(interrupt: Callable[[], object]) -> Iterator[None]:
    """Within it, both signals call `interrupt` on the running loop.

    In a thread that isn't the main one, and on a system whose loop has no signals, nothing changes.
    """
    loop = asyncio.get_running_loop()
    before = {}
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        for number in SIGNALS:
            handler = signal.getsignal(number)
            loop.add_signal_handler(number, interrupt)
            before[number] = handler
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
