"""What waits for one owner: the head in memory, the rest with the store.

Owns: `Queue`, the messages of an absent or slow client, or of a shared group none of whose members
can take them, in the order they came. Only the head is in memory. What comes behind a full head is
journalled and forgotten but for its serial, eight bytes, and comes back in pages once the head runs
low. So payloads take memory by the heads, not by how much waits.

Must not know: sessions, who is connected, how a page is read.

Invariants: head, page on its way, tail are in the order of delivery; there is no tail without a
store that pages, and nothing that isn't journalled is ever in it; at most one page is on its way;
serials in the tail grow; a page takes only serials that are durable.
"""

from array import array
from collections import deque
from typing import Final

from mqttd.core.inflight import Delivery

PAGE: Final = 1000  # deliveries in the head of somebody who takes them
PAGE_BYTES: Final = 4 << 20  # of payload in a page
_ABSENT: Final = 64  # deliveries in the head of somebody who doesn't
_ABSENT_BYTES: Final = 64 << 10
_CHUNK: Final = 4096  # serials in one array: what is taken out of the middle moves no more
_SEARCH_EVERY: Final = 1.0  # seconds between two searches of a full queue for what has expired


class Queue:
    """The messages that wait for one owner, a session or a shared group."""

    def __init__(self, number: int, paging: bool, client_id: str = "", group: str = "") -> None:
        self.number = number  # of the owner, in the journal
        self.client_id = client_id  # the owner's name, or that of the group
        self.group = group
        self.paging = paging
        self.head: deque[Delivery] = deque()
        self.tail: int = 0  # deliveries that only the store has
        self.coming: int = 0  # those of the page on its way, no longer counted in the tail
        self.expiry: float = 0.0  # nothing in here expires before this; 0.0 = nothing does
        self.wanting: bool = False  # a page was asked for and hasn't come
        self.closed: bool = False  # its owner has gone: a page that still comes is nobody's
        self.payload_bytes: int = 0  # of the head
        self.chunks: deque[array[int]] = deque()  # the serials of the tail

    def __len__(self) -> int:
        return len(self.head) + self.coming + self.tail

    def has_room(self, present: bool) -> bool:
        """Whether the next delivery goes to the head; if not, it has to be journalled."""
        if self.tail or self.coming:
            return False
        if not self.paging:
            return True
        if present:
            return len(self.head) < PAGE and self.payload_bytes < PAGE_BYTES
        return len(self.head) < _ABSENT and self.payload_bytes < _ABSENT_BYTES

    def append(self, delivery: Delivery) -> None:
        """Add to the head, after `has_room` said so, or behind a page."""
        self.head.append(delivery)
        self.payload_bytes += len(delivery.message.payload)
        self.note_expiry(delivery.message.expires_at)

    def note_expiry(self, expires_at: float) -> None:
        if expires_at and (not self.expiry or expires_at < self.expiry):
            self.expiry = expires_at

    def put_first(self, delivery: Delivery) -> None:
        """Give back what was taken."""
        self.head.appendleft(delivery)
        self.payload_bytes += len(delivery.message.payload)
        self.note_expiry(delivery.message.expires_at)

    def pop(self) -> Delivery:
        """Take the first of the head, which isn't empty."""
        delivery = self.head.popleft()
        self.payload_bytes -= len(delivery.message.payload)
        return delivery

    def take_topic(self, key: bytes) -> Delivery | None:
        """Take the first message of a topic out of the head, which costs its length."""
        for place, delivery in enumerate(self.head):
            if delivery.message.key == key:
                del self.head[place]
                self.payload_bytes -= len(delivery.message.payload)
                return delivery
        return None

    def expire(self, now: float) -> list[Delivery]:
        """Take what has expired out of the head, which costs its length."""
        gone: list[Delivery] = []
        left = list(self.head)
        self.head.clear()
        self.payload_bytes = 0
        self.expiry = 0.0
        for delivery in left:
            expires_at = delivery.message.expires_at
            if expires_at and now >= expires_at:
                gone.append(delivery)
            else:
                self.append(delivery)
        # Not for each message that finds the queue full. What the tail holds is not known.
        soonest = now + _SEARCH_EVERY
        if self.tail or self.coming or (self.expiry and self.expiry < soonest):
            self.expiry = soonest
        return gone

    # The tail.

    def leave(self, serial: int) -> None:
        """Leave a journalled delivery to the store."""
        chunks = self.chunks
        if not chunks or len(chunks[-1]) >= _CHUNK:
            chunks.append(array("q"))
        chunks[-1].append(serial)
        self.tail += 1

    def low(self) -> bool:
        """A page is wanted."""
        if self.tail == 0 or self.wanting:
            return False
        return 2 * len(self.head) < PAGE and 2 * self.payload_bytes < PAGE_BYTES

    def begin_page(self, limit: int, durable: int) -> list[int]:
        """Take the next serials out of the tail, none above `durable`."""
        serials: list[int] = []
        chunks = self.chunks
        while chunks and len(serials) < limit:
            chunk = chunks[0]
            part = list(chunk[: limit - len(serials)])
            while part and part[-1] > durable:
                part.pop()
            serials.extend(part)
            if len(part) < len(chunk):
                del chunk[: len(part)]
                break
            chunks.popleft()
        self.tail -= len(serials)
        self.coming = len(serials)
        return serials

    def end_page(self, page: list[Delivery], serials: list[int]) -> int:
        """Put a page behind the head. It may have been cut short: what comes behind its last is
        part of the tail again. Returns how many before that are missing."""
        self.wanting = False
        self.coming = 0
        left: list[int] = []
        if page:
            last = page[-1].serial
            left = [serial for serial in serials if serial > last]
        if left:
            self.chunks.appendleft(array("q", left))
            self.tail += len(left)
        for delivery in page:
            self.append(delivery)
        return len(serials) - len(left) - len(page)

    def shrink(self) -> bool:
        """The owner has left: give the end of a long head back to the tail, if that is possible."""
        if not self.paging or self.coming or len(self.head) <= _ABSENT:
            return False
        head = list(self.head)
        rest = head[_ABSENT:]
        for delivery in rest:
            if not delivery.journalled:
                return False
        self.chunks.appendleft(array("q", [delivery.serial for delivery in rest]))
        self.tail += len(rest)
        self.head = deque(head[:_ABSENT])
        self.payload_bytes = sum([len(delivery.message.payload) for delivery in self.head])
        return True

    def pop_serial(self) -> int:
        """Take the first of the tail, which isn't empty."""
        chunks = self.chunks
        serial = chunks[0].pop(0)
        if not chunks[0]:
            chunks.popleft()
        self.tail -= 1
        return serial

    def remove(self, gone: set[int]) -> list[int]:
        """Take those out of the tail that are in it; returns them."""
        found: list[int] = []
        first = min(gone)
        last = max(gone)
        kept: deque[array[int]] = deque()
        for chunk in self.chunks:
            if chunk[0] <= last and chunk[-1] >= first:
                found.extend([serial for serial in chunk if serial in gone])
                chunk = array("q", [serial for serial in chunk if serial not in gone])
            if chunk:
                kept.append(chunk)
        self.chunks = kept
        self.tail -= len(found)
        return found

    def close(self) -> "list[array[int]]":
        """The owner has gone; the serials of the tail, which nobody will ask for."""
        self.closed = True
        chunks = list(self.chunks)
        self.chunks.clear()
        self.tail = 0
        self.coming = 0
        return chunks
