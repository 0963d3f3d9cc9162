"""What the broker counts: plain integers, added to in place.

Owns: the counters, the reasons a message may be dropped for, those a connection may be refused for
and those a client may be gone for. An attribute increment is nearly the whole cost on the hot path;
whoever publishes the numbers reads them at scrape time.

Must not know: Prometheus, `$SYS`, clocks, rates.

Invariant (the balance): every message × matching subscription ends in exactly one state, so at rest
`matched == delivered + queued + inflight + sum(dropped.values())`, where queued and inflight are
read from the sessions (`Broker.balance`). A test holds it. Reasons come from this file and from the
reason codes of CONNACK and DISCONNECT, so there are few of them.
"""

from bisect import bisect_left
from typing import Final

DROP_OFFLINE_QOS0: Final = "offline_qos0"  # QoS 0 for a session without a connection
DROP_SLOW_READER: Final = "slow_reader"  # QoS 0 while the reader's write buffer is full
DROP_QUEUE_FULL: Final = "queue_full"
DROP_EXPIRED: Final = "expired"
DROP_TOO_LARGE: Final = "packet_too_large"  # larger than the receiver's Maximum Packet Size
DROP_SESSION_ENDED: Final = "session_ended"
DROP_REFUSED: Final = "refused_by_receiver"  # PUBACK or PUBREC with 0x80 or above
DROP_LOST: Final = "lost_by_store"  # the store no longer has what it was left
DROP_NOT_AUTHORIZED: Final = "not_authorized"  # the receiver may not have it
DROP_BY_PLUGIN: Final = "dropped_by_plugin"
DROP_REDELIVERIES: Final = "redelivery_limit"  # its receivers left it unfinished too often
DROP_REPLACED: Final = "replaced"  # a newer message of its topic came to a last-value queue
DROP_NO_MEMBER: Final = "no_shared_member"  # QoS 0, and no member of the group could take it

GONE_BY_CLIENT: Final = "by_the_client"  # with DISCONNECT
GONE_LOST: Final = "connection_lost"

REFUSED_HANDSHAKE: Final = "handshake"  # TLS or the header of a proxy, before MQTT began
REFUSED_NOT_CONNECT: Final = "not_connect"  # the first packet is another one
REFUSED_TIMEOUT: Final = "no_connect_in_time"
REFUSED_LEFT: Final = "left_undecided"  # the client went while its CONNECT was decided on


BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


class Durations:
    """How long something took: how many up to each of `BOUNDS`, and all of their seconds."""

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS) + 1)  # the last: longer than all of them
        self.seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.counts[bisect_left(BOUNDS, seconds)] += 1


class Counters:
    """Totals since the broker began. The core writes; so does the shell, what it refuses."""

    def __init__(self) -> None:
        self.connections_total: int = 0
        self.connections: int = 0  # transports open now
        self.clients_connected: int = 0  # CONNECT accepted and not yet gone
        self.clients_maximum: int = 0  # the most that were connected at once
        self.connects_accepted: int = 0
        self.connects_refused: int = 0
        self.refused: dict[str, int] = {}  # the same, by reason
        self.gone: dict[str, int] = {}  # clients that were connected, by why they no longer are
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self.packets_received: int = 0
        # By type, both without PUBLISH: that has counters of its own.
        self.received: list[int] = [0] * 16
        self.sent: list[int] = [0] * 16
        self.publish_received: int = 0
        self.publish_received_qos1: int = 0
        self.publish_received_qos2: int = 0
        self.publish_bytes_received: int = 0  # of payload
        self.publish_sent: int = 0
        self.publish_sent_qos1: int = 0
        self.publish_sent_qos2: int = 0
        self.publish_bytes_sent: int = 0
        self.publish_refused: int = 0
        self.acks: Durations = Durations()  # from a PUBLISH to its PUBACK or PUBREC, if it waited
        self.acks_at_once: int = 0  # those that waited for nothing
        self.answers_too_large: int = 0  # connections ended since the client could not take one
        self.matched: int = 0
        self.delivered: int = 0
        self.redelivered: int = 0
        self.takeovers: int = 0
        self.sessions_expired: int = 0
        self.wills_published: int = 0
        self.protocol_errors: int = 0
        self.hook_failures: int = 0
        self.bugs: int = 0
        self.dropped: dict[str, int] = {}

    @property
    def packets_sent(self) -> int:
        """Without PUBLISH."""
        return sum(self.sent)

    def admit(self) -> None:
        """Count a CONNECT that was accepted."""
        self.connects_accepted += 1
        self.clients_connected += 1
        if self.clients_connected > self.clients_maximum:
            self.clients_maximum = self.clients_connected

    def leave(self, reason: str) -> None:
        """Count a client that is gone."""
        self.clients_connected -= 1
        self.gone[reason] = self.gone.get(reason, 0) + 1

    def refuse(self, reason: str) -> None:
        """Count a connection that ended without a CONNECT that was accepted."""
        self.connects_refused += 1
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def drop(self, reason: str, count: int = 1) -> None:
        """Count `count` message × subscription pairs that end here, for `reason`."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count
