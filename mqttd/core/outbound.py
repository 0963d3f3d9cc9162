"""The sending half of a connection: what waits to be written, and what waits for the disk.

Owns: the list of frames the shell writes once per tick; topic aliases towards the client; the
client's Maximum Packet Size; the acknowledgements that are held until what they promise is
durable.

Must not know: how packets are read, sessions, topics' subscribers, when the shell flushes.

Invariants: frames leave in the order they were appended; nothing larger than the client accepts
is ever appended; held acknowledgements leave in the order of their requests, each only after its
barrier is durable (or, where nothing but deliveries stands behind it, after the last of those
settled); a connection with something to write stands in `dirty_list` exactly once.
"""

from collections import deque
from typing import Any, Final

from mqttd.core import counters as count
from mqttd.core import encode
from mqttd.core.counters import Counters
from mqttd.core.journal import Journal
from mqttd.core.link import Link
from mqttd.core.message import Message
from mqttd.core.packets import Puback, Pubrel
from mqttd.core.session import Context
from mqttd.core.wire import packet_id_bytes

_PUBREL: Final = b"\x62\x02"
_PUBACK_TYPE: Final = 0x40
_HELD_COST: Final = 256  # bytes of memory for an acknowledgement that is held, roughly
MAX_REMEMBERED: Final = 4096  # verdicts of one connection and kind; then it is asked anew
_ALIAS_KEY: Final = 512  # longer topics are not watched: that would cost memory, not save it
_ALIAS_SIZE: Final = 3  # bytes of the property: a shorter topic is cheaper than its alias
_ALIAS_CANDIDATES: Final = 1024  # topics watched for becoming hot; then the count starts anew


class Held:
    """A frame that is a promise, and what has to be durable before it may leave."""

    def __init__(
        self,
        frame: bytes,
        barrier: int,
        message: Message | None,
        frees: bool,
        opens: bool,
        asked_at: float = 0.0,
    ) -> None:
        self.frame = frame
        self.barrier = barrier
        self.message = message  # set: may also leave when this has no undurable delivery left
        self.frees = frees  # ends an inbound QoS > 0 exchange: gives its quota back
        self.opens = opens  # the CONNACK: the session may send after it
        self.asked_at = asked_at  # when the PUBLISH came that it answers; 0.0 for all else


class Outbound(Link):
    """Base of `Connection`: everything on the way out."""

    def __init__(self, context: Context, dirty_list: "list[Outbound]") -> None:
        super().__init__()
        self.context = context
        self.counters: Counters = context.counters
        self.journal: Journal = context.journal
        self.dirty_list = dirty_list
        self.dirty: bool = False
        self.blocked: bool = False  # the kernel takes no more: output stays here
        self.attention: bool = False  # the shell wants to look itself, see Broker.collect
        self.shell: Any = None  # what the shell knows this connection by
        self.closing: bool = False  # after writing data_to_send, close the transport
        self.closed: bool = False  # nothing may be appended any more
        self.max_send: int = 0  # the client's Maximum Packet Size; 0 = none given
        self.inbound_open: int = 0  # inbound QoS > 0 exchanges not yet acknowledged
        self._out: list[bytes] = []
        self._out_size: int = 0
        self._held: deque[Held] | None = None
        self._receivable: dict[bytes, bool] | None = None  # by topic, as the hooks have said
        self._alias_max: int = 0
        self._aliases: dict[bytes, int] | None = None
        self._alias_seen: dict[bytes, int] | None = None

    def data_to_send(self) -> bytes:
        """Everything that waits to be written; the caller owns it from here."""
        self.dirty = False
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        self._out = []
        self._out_size = 0
        self.counters.bytes_sent += len(data)
        return data

    def backlog(self) -> int:
        return self._out_size

    def pressure(self) -> int:
        """Bytes in memory on behalf of answers: above a bound the shell stops reading."""
        if self._held is None:
            return self._out_size
        return self._out_size + _HELD_COST * len(self._held)

    def send(self, frame: bytes) -> None:
        """Append one whole packet."""
        if self.closed:
            return
        if self.max_send and len(frame) > self.max_send:
            self.unsendable()
            return
        self._out.append(frame)
        self._out_size += len(frame)
        self.counters.sent[frame[0] >> 4] += 1
        if not self.dirty:
            self.dirty = True
            self.dirty_list.append(self)

    def send_ack(self, head: bytes, packet_id: int) -> None:
        """Append a successful acknowledgement: `head` is its first two bytes.

        Four bytes, hence no properties: [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3]
        [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.1.2-29].
        """
        if self.closed:
            return
        if self.max_send and self.max_send < 4:
            self.unsendable()
            return
        out = self._out
        out.append(head)
        out.append(packet_id_bytes(packet_id))
        self._out_size += 4
        self.counters.sent[head[0] >> 4] += 1
        if not self.dirty:
            self.dirty = True
            self.dirty_list.append(self)

    def unsendable(self) -> None:
        """An answer is larger than the client's Maximum Packet Size. [MQTT-3.1.2-24]"""
        raise AssertionError("an Outbound has to override unsendable")

    def finish(self) -> None:
        """Nothing comes after what was sent: the shell closes once it is written."""
        self.closed = True  # [MQTT-3.14.4-1]
        self.closing = True  # [MQTT-3.14.4-2]
        self.writable = False
        self.drop_held()
        if not self.dirty:
            self.dirty = True
            self.dirty_list.append(self)

    # PUBLISH.

    def send_frame(self, frame: bytes) -> None:
        """A QoS 0 PUBLISH as it came; only for a connection whose `lane` is the sender's.

        The caller counts it, with all others that get the same frame.
        """
        self._out.append(frame)
        self._out_size += len(frame)
        if not self.dirty:
            self.dirty = True
            self.dirty_list.append(self)

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
        version = self.version
        if self.guarded:
            found = self._screen(message, qos)
            if found is None:
                return False
            message = found
        if dup or (
            version >= 5 and (identifiers or message.expires_at or self._aliases is not None)
        ):
            return self._send_single(message, qos, retain, packet_id, dup, identifiers, now)
        layout = qos  # layout_of, spelled out: this is the hottest line of the way out
        if retain:
            layout |= 4
        if version >= 5:
            layout |= 8
        if layout != message.layout:
            message.use(layout)
        head = message.head
        size = len(head)
        if qos:
            tail = message.tail
            size += 2 + len(tail)
            if self.max_send and size > self.max_send:
                self._lost(count.DROP_TOO_LARGE, message)
                return False
            out = self._out
            out.append(head)
            out.append(packet_id_bytes(packet_id))
            out.append(tail)
            if qos == 1:
                self.counters.publish_sent_qos1 += 1
            else:
                self.counters.publish_sent_qos2 += 1
        else:
            if self.max_send and size > self.max_send:
                self._lost(count.DROP_TOO_LARGE, message)
                return False
            self._out.append(head)
        self._out_size += size
        self.counters.publish_sent += 1
        self.counters.publish_bytes_sent += len(message.payload)
        if not self.dirty:
            self.dirty = True
            self.dirty_list.append(self)
        return True

    def _send_single(
        self,
        message: Message,
        qos: int,
        retain: bool,
        packet_id: int,
        dup: bool,
        identifiers: bytes,
        now: float,
    ) -> bool:
        """A PUBLISH that differs for this receiver: DUP, expiry, identifiers or an alias."""
        first = 0x30 | (qos << 1)
        if retain:
            first |= 1
        if dup:
            first |= 8  # never at QoS 0 [MQTT-3.3.1-2]: only an unacknowledged delivery repeats
        key = message.key
        number = packet_id_bytes(packet_id) if qos else b""
        if self.version < 5:
            identifiers = b""
        alias = 0
        fresh = False
        aliases = self._aliases
        if aliases is not None and _ALIAS_SIZE < len(key) <= _ALIAS_KEY:
            alias = aliases.get(key, 0)
            if alias == 0 and self._is_hot(key) and len(aliases) < self._alias_max:
                alias = len(aliases) + 1  # [MQTT-3.1.2-26] [MQTT-3.3.2-8] 1 up to the maximum
                fresh = True
        frame = message.encode_once(
            self.version,
            first,
            b"" if alias and not fresh else key,
            number,
            alias,
            identifiers,
            now,
        )
        if self.max_send and len(frame) > self.max_send and fresh:
            # The alias makes this one longer: it must not cost the client the message.
            alias = 0
            fresh = False
            frame = message.encode_once(self.version, first, key, number, 0, identifiers, now)
        if self.max_send and len(frame) > self.max_send:  # [MQTT-3.1.2-24]
            self._lost(count.DROP_TOO_LARGE, message)
            return False
        if fresh and aliases is not None:
            aliases[key] = alias
        self._out.append(frame)
        self._out_size += len(frame)
        self.counters.publish_sent += 1
        self.counters.publish_bytes_sent += len(message.payload)
        if qos == 1:
            self.counters.publish_sent_qos1 += 1
        elif qos:
            self.counters.publish_sent_qos2 += 1
        if not self.dirty:
            self.dirty = True
            self.dirty_list.append(self)
        return True

    def _lost(self, reason: str, message: Message) -> None:
        """A message that this client does not get."""
        group = "" if self.through is None else self.through.title
        self.context.drop(reason, self.whose(), message, group)

    def whose(self) -> str:
        """The client id, for the record of decisions; "" before there is one."""
        return ""

    # Hooks.

    def _screen(self, message: Message, qos: int) -> Message | None:
        """What may be sent of a message, to a client that hooks guard; None for nothing of it."""
        if not self.may_receive(message.topic, message.key):
            self._lost(count.DROP_NOT_AUTHORIZED, message)
            return None
        deliver = self.context.hooks.deliver
        if deliver is None:
            return message
        try:
            changed = deliver(self, message, qos)
        except Exception:  # fail closed
            self.counters.hook_failures += 1
            changed = None
        if changed is None:
            self._lost(count.DROP_BY_PLUGIN, message)
        elif changed.key != message.key and not self.may_receive(changed.topic, changed.key):
            # What a hook makes of a topic is for the receiver to see only if that is, too.
            self._lost(count.DROP_NOT_AUTHORIZED, message)
            return None
        return changed

    def may_receive(self, topic: str, key: bytes) -> bool:
        known = self._receivable
        if known is None:
            known = self._receivable = {}
        allowed = known.get(key)
        if allowed is None:
            receive = self.context.hooks.receive
            if receive is None:
                return True
            try:
                grant = receive(self, topic)
            except Exception:  # fail closed
                self.counters.hook_failures += 1
                return False
            allowed = grant.code == 0
            if grant.cache:
                if len(known) >= MAX_REMEMBERED:
                    known.clear()
                known[key] = allowed
        return allowed

    def forget_decisions(self) -> None:
        """What the hooks said is no longer true."""
        self._receivable = None

    def allow_aliases(self, maximum: int) -> None:
        """The client takes topic aliases 1 to `maximum`. [MQTT-3.3.2-11]"""
        if maximum > 0:  # [MQTT-3.1.2-27]
            self._alias_max = maximum
            self._aliases = {}
            self._alias_seen = {}

    @property
    def aliases_allowed(self) -> bool:
        return self._aliases is not None

    def _is_hot(self, key: bytes) -> bool:
        """A topic earns an alias when it is sent for the second time."""
        seen = self._alias_seen
        if seen is None:
            return False
        if key in seen:
            return True
        if len(seen) >= _ALIAS_CANDIDATES:
            seen.clear()
        seen[key] = 1
        return False

    # Acknowledgements.

    def send_pubrel(self, packet_id: int, reason: int, barrier: int) -> None:
        if reason:
            # [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.1.2-29] never any properties.
            frame = encode.encode_pubrel(Pubrel(packet_id, reason), self.version)
            self.promise(frame, barrier, None, False)
        else:
            self.promise_ack(_PUBREL, packet_id, barrier, None, False)

    def promise_ack(
        self,
        head: bytes,
        packet_id: int,
        barrier: int,
        message: Message | None,
        frees: bool,
        asked_at: float = 0.0,
    ) -> None:
        """`promise`, for a successful acknowledgement that begins with `head`."""
        if self._held is None and barrier <= self.journal.committed:
            if frees:
                self.inbound_open -= 1
            if asked_at == self.context.now:  # as nearly all: it waited for nothing
                self.counters.acks_at_once += 1
            elif asked_at:
                self._time(asked_at)
            self.send_ack(head, packet_id)
            return
        frame = head + packet_id_bytes(packet_id)
        self._hold(Held(frame, barrier, message, frees, False, asked_at))

    def promise(
        self,
        frame: bytes,
        barrier: int,
        message: Message | None,
        frees: bool,
        asked_at: float = 0.0,
    ) -> None:
        """Send an acknowledgement once what it promises is durable; in order of the requests.

        `asked_at`: when the PUBLISH came that it answers, for the figures.
        """
        if self._held is None and barrier <= self.journal.committed:
            if frees:
                self.inbound_open -= 1
            if asked_at:
                self._time(asked_at)
            self.send(frame)
            return
        self._hold(Held(frame, barrier, message, frees, False, asked_at))

    def _time(self, asked_at: float) -> None:
        """Count how long the acknowledgement that leaves now took."""
        waited = self.context.now - asked_at
        if waited > 0.0:
            self.counters.acks.add(waited)
        else:
            self.counters.acks_at_once += 1

    def _hold(self, held: Held) -> None:
        if (
            self.journal.refusing != 0
            and self.version >= 5
            and held.barrier <= self.journal.committed
            and held.frame[0] == _PUBACK_TYPE
        ):
            # While the store refuses, no PUBACK is held, see `refuse_held`: nothing is overtaken.
            if held.frees:
                self.inbound_open -= 1
            if held.asked_at:
                self._time(held.asked_at)
            self.send(held.frame)
            return
        if self._held is None:
            self._held = deque()
        self._held.append(held)
        if held.message is not None:
            held.message.holder = self
        self.context.holding[self] = None

    def release(self) -> None:
        """Send what is held and need not be any longer; stop at the first that still has to."""
        queue = self._held
        committed = self.journal.committed
        while queue:
            held = queue[0]
            message = held.message
            if message is not None:
                if held.barrier > committed and message.undurable > 0:
                    return
                if message.owed > committed:
                    return
                message.holder = None
            elif held.barrier > committed:
                return
            queue.popleft()
            if held.frees:
                self.inbound_open -= 1
            if held.asked_at:
                self._time(held.asked_at)
            self.send(held.frame)
            if held.opens:
                self.opened()
        # `opened` may have let the client's next packets in, and those may hold answers again.
        if self._held is queue:
            self._held = None
            self.context.holding.pop(self, None)

    def drop_held(self) -> None:
        """Nobody is there any more to answer; messages that wait elsewhere forget us."""
        for held in self._held or ():
            if held.message is not None:
                held.message.holder = None
        self._held = None
        self.context.holding.pop(self, None)

    def refuse_held(self) -> None:
        """The store has no room: answer the QoS 1 publishes that wait for it, if MQTT 5 can."""
        queue = self._held
        if queue is None or self.version < 5:
            return
        kept: deque[Held] = deque()
        for held in queue:
            frame = held.frame
            if frame[0] != _PUBACK_TYPE:
                kept.append(held)
                continue
            if held.frees:
                self.inbound_open -= 1
            message = held.message
            if message is not None and message.holder is self:
                message.holder = None
            owed = 0 if message is None else message.owed
            if max(held.barrier, owed) > self.journal.committed:
                puback = Puback((frame[2] << 8) | frame[3], self.journal.refusing)
                frame = encode.encode_puback(puback, self.version)
            elif held.asked_at:
                self._time(held.asked_at)
            self.send(frame)  # [MQTT-4.6.0-2] whichever it is, in order
        self._held = kept if kept else None
        if not kept:
            self.context.holding.pop(self, None)

    def opened(self) -> None:
        """CONNACK has left. `Connection` lets the session send."""
        raise AssertionError("an Outbound has to override opened")
