"""One queue of SQS on its way in: received, kept out of sight, deleted, given back.

Owns: what was received and isn't deleted. SQS hides a received message for a while, and hands it
out again when the while is over; a FIFO queue hands out nothing more of its group until it is
deleted. So a message that takes long here (the disk is full, say) is hidden for longer, again and
again: if it came back meanwhile there would be a copy, and its group would move on without it.

A message is deleted when it is durable here. When the bridge is paused or the broker ends, what is
in hand is given back, visible at once: otherwise its group would stand still until the while is
over. When the connection fails there is nobody to give it back to.

Must not know: rules, what a message is made into, how a connection is made.

Invariants: nothing is deleted before it is settled; what SQS couldn't delete is tried again; no
more than `window` messages of the queue are in hand, but for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from mqttd_plugins._bridge.remote import Failure, Intake

BATCH: Final = 10
_AGAIN_S: Final = 1.0

Settle = Callable[[Failure | None], None]
Put = Callable[[dict[str, Any], Settle], None]
"""What hands over a message as it came, with what is to be called when it is settled."""


class Receiver:
    """Consumes one queue. `poll`, `delete_all` and `keep_hidden` run beside each other."""

    def __init__(self, client: Any, url: str, visibility_s: int, poll_s: int, window: int) -> None:
        self._client = client
        self._url = url
        self._visibility_s = visibility_s
        self._poll_s = poll_s
        self._window = window
        self._in_hand: dict[str, float] = {}  # by receipt handle: when SQS shows it again
        self._settled: list[str] = []
        self._woken = asyncio.Event()

    async def poll(self, intake: Intake, put: Put, now: Callable[[], float]) -> None:
        """Receive for as long as there is room, until it is cancelled."""
        while True:
            await intake.room()
            answer = await self._client.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=max(1, min(BATCH, self._window - len(self._in_hand))),
                WaitTimeSeconds=self._poll_s,
                VisibilityTimeout=self._visibility_s,
                MessageAttributeNames=["All"],
                AttributeNames=["All"],
            )
            shown_at = now() + self._visibility_s
            for got in answer.get("Messages", ()):
                handle = got["ReceiptHandle"]
                self._in_hand[handle] = shown_at
                put(got, self._settler(handle))

    def _settler(self, handle: str) -> Settle:
        def settle(failure: Failure | None) -> None:
            if failure is None and self._in_hand.pop(handle, None) is not None:
                self._settled.append(handle)
                self._woken.set()
            # Else the broker ends: it is given back with the rest.

        return settle

    async def delete_all(self) -> None:
        """Delete what is settled, as soon as it is, until it is cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._settled:
                if not await self._delete(self._settled[:BATCH]):
                    await asyncio.sleep(_AGAIN_S)

    async def _delete(self, handles: list[str]) -> bool:
        """Whether SQS did what it could be asked for."""
        entries = _entries(handles)
        answer = await self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)
        again = {
            handles[int(failed["Id"])]
            for failed in answer.get("Failed", ())
            if not failed.get("SenderFault")  # a handle that is too old: it comes as a copy
        }
        self._settled = [
            handle for handle in self._settled if handle in again or handle not in handles
        ]
        return not again

    async def keep_hidden(self, now: Callable[[], float]) -> None:
        """Keep what is in hand out of sight, until it is cancelled."""
        while True:
            await asyncio.sleep(self._visibility_s / 3)
            await self.hide(now())

    async def hide(self, now: float) -> None:
        """Hide for longer what SQS would soon show again."""
        soon = now + self._visibility_s * 2 / 3
        due = [handle for handle, shown_at in self._in_hand.items() if shown_at <= soon]
        for start in range(0, len(due), BATCH):
            some = due[start : start + BATCH]
            await self._change(some, self._visibility_s)
            for handle in some:
                if handle in self._in_hand:
                    self._in_hand[handle] = now + self._visibility_s

    async def give_back(self) -> None:
        """Delete what is settled, and show the rest again at once. Once, at the end."""
        while self._settled and await self._delete(self._settled[:BATCH]):
            pass
        rest = list(self._in_hand)
        self._in_hand.clear()
        for start in range(0, len(rest), BATCH):
            await self._change(rest[start : start + BATCH], 0)

    async def _change(self, handles: Sequence[str], visibility_s: int) -> None:
        """What SQS says of single messages changes nothing: they come as copies, then."""
        entries = [each | {"VisibilityTimeout": visibility_s} for each in _entries(handles)]
        await self._client.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)


def _entries(handles: Sequence[str]) -> list[dict[str, Any]]:
    return [{"Id": str(n), "ReceiptHandle": handle} for n, handle in enumerate(handles)]
