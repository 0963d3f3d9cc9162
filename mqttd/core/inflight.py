"""Deliveries and the window of those sent and not yet acknowledged.

Owns: `Delivery`, one message on its way to one subscriber, and `Window`, the packet identifiers
the server has in use towards one client. The client's own identifiers (inbound QoS 2) are another
space and live in the session: the same number may be in use both ways at once.

Must not know: sockets, the journal, why something is delivered.

Invariants: an identifier is in `Window` from the first sending until PUBACK, PUBCOMP or an error
PUBREC, and is never handed out twice meanwhile; insertion order is sending order, which is the
order of redelivery; `state` only moves forward.
"""

from typing import Final

from mqttd.core.message import Message
from mqttd.core.trie import SharedGroup

QUEUED: Final = 0  # not sent on any connection
SENT: Final = 1  # PUBLISH sent, waits for PUBACK or PUBREC
RELEASED: Final = 2  # PUBREC received, PUBREL due or sent, waits for PUBCOMP
SETTLED: Final = 3


class Delivery:
    """One message × one session. Plain state: printable, storable, comparable."""

    def __init__(
        self,
        message: Message,
        qos: int,
        retain: bool,
        identifiers: bytes,
        group: SharedGroup | None,
    ) -> None:
        self.message = message
        self.qos = qos  # of this delivery: min(publish, granted)
        self.retain = retain
        self.identifiers = identifiers  # encoded Subscription Identifier properties
        self.group = group  # the shared group it came through, if any
        self.packet_id: int = 0
        self.state: int = QUEUED
        self.sent: bool = False  # on some connection already: the next sending is a DUP
        self.redeliveries: int = 0  # members of its group that got it and left it unfinished
        self.barrier: int = 0  # not to be sent before this journal batch is durable
        self.journalled: bool = False  # the journal has, or will have, a row for it
        self.lent: bool = False  # the row is that of the group's queue, until the PUBACK
        self.pending: object | None = None  # the journal's operation, until its batch is taken
        self.serial: int = 0  # its place among those of its owner, once it was journalled
        self.row: int = 0  # the store's row id of its message
        self.shared: bool = False  # which other deliveries have as well


class Window:
    """Outbound packet identifiers in use, in sending order."""

    def __init__(self) -> None:
        self.deliveries: dict[int, Delivery] = {}
        self._last_id: int = 0
        self._fresh: int = 0  # so many identifiers after the last are known to be unused

    def full(self) -> bool:
        """All 65,535 identifiers are in use."""
        return len(self.deliveries) >= 65535

    def add(self, delivery: Delivery) -> int:
        """Give `delivery` an unused identifier and keep it; not to be called when `full()`."""
        deliveries = self.deliveries
        packet_id = self._last_id
        if not deliveries:
            self._fresh = 65535
        self._fresh -= 1
        while True:  # [MQTT-2.2.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1] non-zero and not in use
            packet_id += 1
            if packet_id > 65535:
                packet_id = 1
            if self._fresh > 0 or packet_id not in deliveries:
                break
        self._last_id = packet_id
        delivery.packet_id = packet_id
        deliveries[packet_id] = delivery
        return packet_id

    def restore(self, delivery: Delivery) -> None:
        """Keep a delivery that has its identifier from before a restart; in sending order."""
        self._last_id = delivery.packet_id
        self._fresh = 0
        self.deliveries[delivery.packet_id] = delivery

    def get(self, packet_id: int) -> Delivery | None:
        return self.deliveries.get(packet_id)

    def pop(self, packet_id: int) -> Delivery | None:
        delivery = self.deliveries.get(packet_id)
        if delivery is not None:
            del self.deliveries[packet_id]
        return delivery

    def remove(self, packet_id: int) -> None:
        """Give up an identifier that is in use."""
        del self.deliveries[packet_id]
