"""The numbers that bound the broker's behaviour, as the core sees them.

Owns: one plain object with every limit and policy the core reads. All durations are seconds, all
sizes are bytes, 0 switches a bound off where the comment says so.

Must not know: YAML, units, files, defaults of the operator's configuration syntax. `mqttd.config`
translates its validated tree into this object; a test holds the two sets of defaults equal.

`SharePolicy` is the same for one shared group whose queue somebody has declared.

Invariant: every value is legal when the object is handed to `Broker`; the core does not re-check.
"""

from typing import Final

DROP_NEWEST: Final = "drop_newest"
DROP_OLDEST: Final = "drop_oldest"

NEVER: Final = 0xFFFFFFFF
"""Session Expiry Interval that means "does not expire" (MQTT 5, 3.1.2.11.2)."""


class Settings:
    """Limits and policies of one broker. Plain attributes; change them only before traffic."""

    def __init__(self) -> None:
        self.max_packet_size: int = 1048576  # one inbound packet, fixed header included
        self.max_connect_size: int = 65536  # the same, before CONNECT was accepted
        self.receive_maximum: int = 1024  # inbound QoS>0 in flight per client
        self.max_inflight: int = 1024  # outbound QoS>0 in flight per client
        self.max_queued_messages: int = 10000  # per session and shared group; 0 = no limit
        self.queue_overflow: str = DROP_NEWEST
        self.queue_qos0: bool = False  # keep QoS 0 for absent persistent sessions
        self.topic_alias_maximum: int = 64  # both directions; 0 = none
        self.session_expiry_max: int = 2592000  # longest Session Expiry Interval; NEVER = no cap
        self.connect_timeout: float = 10.0  # from accept to a whole CONNECT
        self.max_keep_alive: int = 0  # longest keep alive granted; 0 = the client decides
        self.write_buffer: int = 1048576  # held for a reader that lags; then QoS 0 is dropped
        self.max_subscriptions: int = 10000  # per session
        self.max_topic_levels: int = 200
        self.response_information: str = "response"  # topic prefix offered for request/response


class SharePolicy:
    """How one shared group keeps and hands out messages, where it isn't as all others do."""

    def __init__(self) -> None:
        self.max_length: int = 0  # 0 = as max_queued_messages
        self.overflow: str = DROP_NEWEST
        self.ttl: float = 0.0  # no message waits longer; 0.0 = as its publisher says
        self.redelivery_limit: int = 0  # handed out again so often, then dropped; 0 = no limit
        self.exclusive: bool = False  # one member is served, until it leaves
        self.one_at_a_time: bool = False  # the next goes out when the one before is settled
        self.last_value: bool = False  # of each topic only the newest waits
        self.keep_qos0: bool = False  # QoS 0 waits as well
