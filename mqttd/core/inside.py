"""A client inside the process: a session like any other, with no connection below it.

Owns: `Inside`, which takes what its session sends and keeps it in an inbox for the shell, and
`Arrival`, one message in it. Bridges and services of plugins stand on it: their queue is the
session's, durable and paged as everybody's, and what they don't acknowledge comes again.

Must not know: who reads the inbox, coroutines.

Invariants: an arrival above QoS 0 stays in the session's window until `settle`; the inbox never
holds more than the receive maximum of them, since the session sends no more; one with something
in its inbox stands in `woken` once; while the shell has taken `writable` away, QoS 0 is dropped as
for any reader that lags; the number of an arrival is that of its delivery in the store, which is
given once, over restarts too.
"""

from typing import Final

from mqttd.core.link import Link
from mqttd.core.message import Message
from mqttd.core.session import Session

_FULL: Final = 1 << 62  # bytes: above any bound for what a reader that lags may have waiting


class Arrival:
    """One message that came. `packet_id` is 0 at QoS 0, `number` where the store has none that
    stays; so often other members of a shared group left it unfinished: `redeliveries`."""

    def __init__(
        self,
        message: Message,
        qos: int,
        retain: bool,
        packet_id: int,
        dup: bool,
        number: int = 0,
        redeliveries: int = 0,
    ) -> None:
        self.message = message
        self.qos = qos
        self.retain = retain
        self.packet_id = packet_id
        self.dup = dup
        self.number = number
        self.redeliveries = redeliveries


class Inside(Link):
    """Made by `Broker.connect_inside`. Its subscriptions have QoS 1 at most."""

    def __init__(self, woken: "list[Inside]", client_id: str) -> None:
        super().__init__()
        self.version = 5
        self.established = True
        self.writable = True
        self.client_id = client_id
        self.session: Session | None = None
        self.inbox: list[Arrival] = []
        self.awake: bool = False  # stands in `woken`
        self._woken = woken

    def send_publish(
        self,
        message: Message,
        qos: int,
        retain: bool,
        packet_id: int,
        dup: bool,
        identifiers: bytes,
        now: float,
    ) -> bool:
        number = redeliveries = 0
        session = self.session
        if packet_id and session is not None:
            delivery = session.window.get(packet_id)
            # What comes through a group gets another number each time that a member begins it.
            if delivery is not None and delivery.group is None:
                number = delivery.serial
            elif delivery is not None:
                redeliveries = delivery.redeliveries
        self.inbox.append(Arrival(message, qos, retain, packet_id, dup, number, redeliveries))
        if not self.awake:
            self.awake = True
            self._woken.append(self)
        return True

    def send_pubrel(self, packet_id: int, reason: int, barrier: int) -> None:
        """Only a session that once had QoS 2 can ask for it: the exchange ends here."""
        if self.session is not None:
            self.session.on_pubcomp(packet_id, 0.0)

    def backlog(self) -> int:
        return 0 if self.writable else _FULL

    def may_receive(self, topic: str, key: bytes) -> bool:
        return True

    def release(self) -> None:
        """It holds no acknowledgements."""

    def settle(self, packet_id: int, reason: int, now: float) -> None:
        """The message with this identifier is done with."""
        if self.session is not None:
            self.session.on_puback(packet_id, reason, now)

    def take(self) -> list[Arrival]:
        """What came since the last call."""
        self.awake = False
        inbox = self.inbox
        self.inbox = []
        return inbox
