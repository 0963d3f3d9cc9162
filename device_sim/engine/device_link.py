"""The socket of a device's connection, with all that can be wrong with a device's end of it.

It can read slowly, hang (neither read nor write), and be a ghost: the device has gone without a
word, the socket stays open, and what happens to it reaches nobody any more. Knows sockets, as
`link` does, and nothing of what a device is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from device_sim.engine.client import Client
from device_sim.engine.link import Link, Switchboard

READ_SLICE_S: Final = 0.1
"""A slow reader reads so often."""


class DeviceLink(Link):
    """The socket of a device's connection; `on_data` is called after each read of it."""

    def __init__(
        self,
        switchboard: Switchboard,
        client: Client,
        on_lost: Callable[[Link], None],
        on_data: Callable[[], None],
    ) -> None:
        super().__init__(switchboard, client, on_lost)
        self._on_data = on_data
        self.ghost = False
        self.slow_rate = -1
        self._debt = 0.0

    def data_received(self, data: bytes) -> None:
        if self.ghost:
            return
        super().data_received(data)
        if self.slow_rate >= 0 and self.transport is not None:
            self._debt += len(data)
            self.transport.pause_reading()
            if self.slow_rate:
                pause_s = max(READ_SLICE_S, self._debt / self.slow_rate)
                self._debt = 0.0
                self.switchboard.loop.call_later(pause_s, self.read_on)
        self._on_data()

    def read_on(self) -> None:
        """Read the socket again, unless something else forbids it."""
        if self.transport is None or self.transport.is_closing() or self.ghost or self.frozen:
            return
        self.transport.resume_reading()

    def freeze(self, frozen: bool) -> None:
        """Neither read nor write, or do so again."""
        self.frozen = frozen
        for publisher in self.publishers:
            publisher.blocked = frozen
            if not frozen:
                self.switchboard.mark_ready(publisher)
        if self.transport is None or self.transport.is_closing():
            return
        if frozen:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def resume_writing(self) -> None:
        if not self.frozen:
            super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ghost:
            self.lost = True
        else:
            super().connection_lost(exc)
