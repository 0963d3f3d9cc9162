"""What a session asks of whoever carries its messages to the client.

Owns: `Link`, the interface with the few facts that a session looks at for each message. The one
on the wire is `Connection`; a client inside the broker (`mqttd.core.inside`) is another.

Must not know: sessions, windows, transports.
"""

from mqttd.core.message import Holder, Message
from mqttd.core.trie import SharedGroup


class Link(Holder):
    """What a session asks of its connection. `Connection` and `Inside` implement it."""

    def __init__(self) -> None:
        self.version: int = 4  # protocol level: 3, 4 or 5
        self.established: bool = False  # CONNACK has left
        self.writable: bool = False  # established, and the transport takes bytes
        # 4 or 5 where a frame of that version may be passed on as it is, 0 where every PUBLISH has
        # to be made for this client (topic aliases, a limit on the packet size, a hook).
        self.lane: int = 0
        self.guarded: bool = False  # not everything may be sent to it: see `may_receive`
        self.through: SharedGroup | None = None  # the group of what is being sent

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
        """Queue a PUBLISH for writing; False when it is too large for the client, or not for it."""
        raise AssertionError("a Link has to override send_publish")

    def send_frame(self, frame: bytes) -> None:
        """Queue a QoS 0 PUBLISH of this connection's `lane` as it came."""
        raise AssertionError("a Link has to override send_frame")

    def send_pubrel(self, packet_id: int, reason: int, barrier: int) -> None:
        """Queue a PUBREL, behind `barrier` and the acknowledgements already held."""
        raise AssertionError("a Link has to override send_pubrel")

    def backlog(self) -> int:
        """Bytes that wait to be written."""
        raise AssertionError("a Link has to override backlog")

    def may_receive(self, topic: str, key: bytes) -> bool:
        """Whether the client may have messages of the topic (`key` is its UTF-8)."""
        raise AssertionError("a Link has to override may_receive")
