"""Events on their way out: a bounded queue in a table of the broker's store.

Owns: the form of an event as JSON, its id, the order, and what goes when there are too many or too
large ones in all: the oldest. With a full disk it is the newest, which find no place.

Must not know: where they are sent.

Invariants: ids rise, over restarts too, so a receiver can tell a repetition by them; a row is an
event as it will be sent; the payload is in it only if it was asked for.
"""

from __future__ import annotations

import base64
import json
import time
from collections import deque
from datetime import UTC, datetime
from itertools import islice

from mqttd.api import Event, NoRoom, Table


class EventQueue:
    """The events that wait, oldest first."""

    def __init__(self, table: Table, most: int, most_bytes: int) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self.dropped = 0
        self.octets = 0
        self._table = table
        self._waiting: deque[int] = deque()
        rows = sorted((int(key), len(row)) for key, row in table.items() if key.isdecimal())
        for number, size in rows:
            self._waiting.append(number)
            self.octets += size
        # Microseconds: no process makes a million events a second, so its first id lies above
        # all those of the one before it.
        self._last = max(rows[-1][0] if rows else 0, time.time_ns() // 1000)
        self._trim()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: Event, with_payload: int | None) -> None:
        """Queue an event; its payload goes along up to `with_payload` bytes, None: not at all."""
        self._last += 1
        row = json.dumps(_fields(self._last, event, with_payload), ensure_ascii=True).encode()
        try:
            self._table.set(str(self._last), row)
        except NoRoom:  # what waits already has its place, and may make some
            self.dropped += 1
            return
        self._waiting.append(self._last)
        self.octets += len(row)
        self._trim()

    def head(self, most: int, most_bytes: int) -> list[tuple[int, bytes]]:
        """The oldest events, as many as fit; at least one, if there is one."""
        found: list[tuple[int, bytes]] = []
        for number in islice(self._waiting, most):
            row = self._table.get(str(number)) or b""
            most_bytes -= len(row)
            if most_bytes < 0 and found:
                break
            found.append((number, row))
        return found

    def done(self, numbers: list[int]) -> None:
        """These need not be sent any more. They were the oldest; some may have been dropped."""
        last = max(numbers, default=0)
        while self._waiting and self._waiting[0] <= last:
            self._forget_oldest()

    def _trim(self) -> None:
        while self._waiting and (len(self) > self.most or self.octets > self.most_bytes):
            self._forget_oldest()
            self.dropped += 1

    def _forget_oldest(self) -> None:
        key = str(self._waiting.popleft())
        self.octets -= len(self._table.get(key) or b"")
        self._table.delete(key)


def _fields(number: int, event: Event, with_payload: int | None) -> dict[str, object]:
    at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds")
    fields: dict[str, object] = {
        "id": number,
        "kind": event.kind,
        "at": at,
        "client_id": event.client_id,
        "username": event.username,
        "peer": event.peer,
        "topic": event.topic,
        "qos": event.qos,
        "retain": event.retain,
        "reason": event.reason,
    }
    if with_payload is not None:
        fields["payload_bytes"] = len(event.payload)
        if len(event.payload) <= with_payload:
            fields["payload"] = base64.b64encode(event.payload).decode()
    return fields
