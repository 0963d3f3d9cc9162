"""Interrupts last as long as the run that takes them."""

import asyncio
import os
import signal
import threading

import pytest

from device_sim.engine.interrupts import SIGNALS, interrupts
from device_sim.engine.loops import factory_of


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_a_signal_calls_it_and_then_does_what_it_did_before(loop: str) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[int] = []

    async def run(number: signal.Signals) -> None:
        met = asyncio.Event()

        def interrupt() -> None:
            seen.append(number)
            met.set()

        with interrupts(interrupt):
            os.kill(os.getpid(), number)
            await met.wait()

    for number in SIGNALS:
        with asyncio.Runner(loop_factory=factory_of(loop)) as runner:
            runner.run(run(number))
    assert seen == list(SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_thread_has_no_signals_to_take() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    ran: list[bool] = []

    async def run() -> None:
        with interrupts(lambda: None):
            ran.append([signal.getsignal(number) for number in SIGNALS] == before)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join()
    assert ran == [True]
