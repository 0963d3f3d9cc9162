"""The one connection of a bridge: made, kept, made again; paused and resumed.

Owns: the state, and when to try again. A connection that failed or ended is followed by the next
after a wait that grows from `retry_first` to `retry_most`, somewhat at random, so that a thousand
bridges don't come back in the same second. It shrinks again when a connection was of use: when
something got through, or when it lasted.

    connecting   under way
    up           messages flow
    down         failed or ended; `reason` says how, and it is tried again
    refused      the remote system won't have us as configured: tried again every `retry_most`
    paused       by the operator; messages wait

Must not know: messages; it calls the two ways and looks at nothing they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mqttd.api import BrokerServices
from mqttd_plugins._bridge.inward import Inward
from mqttd_plugins._bridge.outward import Outward, backoff_s
from mqttd_plugins._bridge.remote import Failure, Refused, Remote, Retry
from mqttd_plugins._bridge.rules import BridgeConfig

CONNECTING: Final = "connecting"
UP: Final = "up"
DOWN: Final = "down"
REFUSED: Final = "refused"
PAUSED: Final = "paused"
_BY_OPERATOR: Final = "by the operator"
_CLOSING_S: Final = 5.0


class Link:
    """Keeps one connection."""

    def __init__(
        self,
        services: BrokerServices,
        config: BridgeConfig,
        make: Callable[[], Remote],
        outward: Outward,
        inward: Inward,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called after each change of the state."""
        self.state = DOWN
        self.reason = "not started"
        self.since = services.now()
        self.attempts = 0  # since a connection was of use
        self._services = services
        self._config = config
        self._make = make
        self._outward = outward
        self._inward = inward
        self._changed = changed
        self._paused = False
        self._turn: asyncio.Future[None] | None = None  # what the operator's word interrupts

    async def run(self) -> None:
        """Connect, again and again, until it is cancelled."""
        while True:
            if self._paused:
                self._become(PAUSED, _BY_OPERATOR)
                await self._interrupted()
                continue
            self._become(CONNECTING, self.reason if self.attempts else "")
            remote = self._make()
            began, progress = self._services.now(), self._progress()
            try:
                failure = await self._one(remote)
            finally:
                self._outward.lost(by_us=self._paused)
                self._inward.lost()
                await self._close(remote)
            if self._paused:
                continue
            lasted_s = self._services.now() - began
            if self._progress() != progress or lasted_s > self._config.retry_most:
                self.attempts = 0
            self.attempts += 1
            refused = isinstance(failure, Refused)
            self._become(REFUSED if refused else DOWN, str(failure))
            delay_s = backoff_s(self._config, 64 if refused else self.attempts)
            timer = self._services.call_later(delay_s, self._interrupt)
            try:
                await self._interrupted()
            finally:
                timer.cancel()

    def stopped(self) -> None:
        """`run` was cancelled for good. Nobody is told: who asks shall not hear that it is up."""
        self.state, self.reason, self.since = DOWN, "stopped", self._services.now()

    def pause(self) -> None:
        """End the connection and make no other until `resume`. Messages wait."""
        self._paused = True
        self._become(PAUSED, _BY_OPERATOR)
        self._interrupt()

    def resume(self) -> None:
        """Connect at once, also when it was only waiting for the next try."""
        self._paused = False
        if self.state != UP:
            self.attempts = 0
            self._interrupt()

    async def _close(self, remote: Remote) -> None:
        try:
            async with asyncio.timeout(_CLOSING_S):
                await remote.close()
        except TimeoutError:
            pass
        except Exception as error:
            self._bug(error)

    def _bug(self, error: BaseException) -> Failure:
        """A face failed in a way that it doesn't know: that costs a connection, not the bridge."""
        self._services.log.error("bridge %s failed", self._services.name, exc_info=error)
        return Retry(f"an error of the bridge: {error}")

    async def _one(self, remote: Remote) -> Failure:
        """One connection, from its beginning to its end."""
        self._inward.begin()
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                await remote.connect()
                if self._inward.rules:
                    await remote.consume(self._inward)
        except Failure as failure:
            return failure
        except TimeoutError:
            return Retry(f"no connection within {self._config.connect_timeout:g} s")
        except OSError as error:
            return Retry(error.strerror or str(error) or type(error).__name__)
        except Exception as error:
            return self._bug(error)
        if self._paused:
            return Retry(_BY_OPERATOR)
        self._become(UP, "")
        ended = asyncio.ensure_future(remote.wait())
        sending = asyncio.ensure_future(self._outward.send_all(remote))
        paused = asyncio.ensure_future(self._interrupted())
        together = {ended, sending, paused}
        try:
            await asyncio.wait(together, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in together:
                task.cancel()
            await asyncio.gather(*together, return_exceptions=True)
        for task in (ended, sending):
            bug = None if task.cancelled() else task.exception()
            if bug is not None:
                return self._bug(bug)
        return Retry(_BY_OPERATOR) if ended.cancelled() else ended.result()

    def _progress(self) -> int:
        return self._outward.figures.confirmed + self._inward.figures.confirmed

    def _become(self, state: str, reason: str) -> None:
        if state == self.state and reason == self.reason:
            return
        before, self.state, self.reason = self.state, state, reason
        self.since = self._services.now()
        log = self._services.log
        if state == UP:
            log.info("bridge %s is connected", self._services.name)
        elif state in (DOWN, REFUSED) and before in (UP, CONNECTING) and self.attempts == 1:
            log.warning("bridge %s is %s: %s; messages wait", self._services.name, state, reason)
        self._changed()

    async def _interrupted(self) -> None:
        self._turn = turn = asyncio.get_running_loop().create_future()
        try:
            await turn
        finally:
            if self._turn is turn:
                self._turn = None

    def _interrupt(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
