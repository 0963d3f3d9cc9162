"""The load generator's engine: MQTT connections driven from one thread, faster than any broker.

Owns: raw non-blocking sockets on one `epoll`, prebuilt PUBLISH frames, the receiving parser that
checks every message, and the meters that read the broker's CPU time and memory. It knows packets,
not cases: what to open and how long to run is decided in `bench.scenarios`. It deliberately shares
no code with `mqttd.core`, so that a codec bug of ours cannot hide from it.

How it stays cheap. A publisher owns a *ring*: its next `laps` PUBLISH frames, all of one length,
encoded once. Publishing n messages is one slice of that buffer and one `send`. A received chunk is
walked by offsets without copying; each PUBLISH carries (publisher, position in the ring) in its
first four payload bytes, which is compared with what that flow must bring next. A ring is at least
four times as long as what can be under way, so a position identifies a message. Latency needs no
clock in the payload: sender and receiver are one process, which keeps the send time of every k-th
message aside; the same k-th message is also compared byte by byte.

Invariants: a publisher keeps at most `window` messages unfinished (closed loop); a frame counted as
delivered was the next one that its flow expected, or the difference is in `gaps` or `dups`.

The module is typed for mypyc (`bench.build` compiles it) and runs, slower, as plain Python.
"""

import contextlib
import os
import resource
import select
import socket
import struct
import time
from typing import Final

from mypy_extensions import i64

CHUNK: Final = 65536
SMALL_CHUNK: Final = 4096
READABLE: Final = 0x001  # EPOLLIN and EPOLLOUT, as constants that compile to constants
WRITABLE: Final = 0x004
ETERNITY: Final = 1 << 62
COUNTS: Final = 4  # numbers in the file of a counter

CONNECT_SENT: Final = 1
CONNECTED: Final = 2
SUBSCRIBED: Final = 3


class BenchError(Exception):
    """The broker refused, closed or stalled: the run has no figures."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("!H", len(raw)) + raw


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body


def connect_packet(client_id: str, version: int, clean: bool = True, user: str = "") -> bytes:
    # No keep alive; MQTT 5 also sets Receive Maximum 65535 like a 3.1.1 client has it, and an hour
    # for a session that is to be kept.
    properties = b""
    if version == 5:
        properties = b"\x21\xff\xff" if clean else b"\x11\x00\x00\x0e\x10\x21\xff\xff"
        properties = varint(len(properties)) + properties
    flags = (2 if clean else 0) | (0xC0 if user else 0)
    head = text("MQTT") + bytes([version, flags, 0, 0])
    # The password of a user is its name.
    credentials = text(user) * 2 if user else b""
    return packet(0x10, head + properties + text(client_id) + credentials)


def subscribe_packet(packet_id: int, filters: list[str], qos: int, version: int) -> bytes:
    body = bytearray(struct.pack("!H", packet_id))
    if version == 5:
        body.append(0)
    for topic_filter in filters:
        body += text(topic_filter)
        body.append(qos)
    return packet(0x82, bytes(body))


def user_property(name: str, value: str) -> bytes:
    return b"\x26" + text(name) + text(value)


def payload(publisher: int, position: int, size: int) -> bytes:
    filler = bytes([33 + (publisher + i) % 90 for i in range(size - 4)])
    return struct.pack("!HH", publisher, position) + filler


def ack_table(first: int) -> bytes:
    """All 65,536 acknowledgements of one type in a row: a run of consecutive ids is one slice."""
    return b"".join([struct.pack("!BBH", first, 2, i) for i in range(65536)])


class Meter:
    """CPU time, run-queue delay and memory of one process; pid 0 reads as zeros."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # The kernel's per-process CPU clock: all threads, living and ended, in nanoseconds. It is
        # the figure behind utime+stime of /proc/PID/stat without that file's rounding to 10 ms.
        self.clock = (~pid << 3) | 2
        self.counter = ""  # the file that its counter writes to

    def cpu_ns(self) -> int:
        if self.pid == 0:
            return 0
        return time.clock_gettime_ns(self.clock)

    def waited_ns(self) -> int:
        """Nanoseconds its threads were runnable but had no CPU: who else was on that core?"""
        total = 0
        if self.pid == 0:
            return total
        try:
            for task in os.listdir(f"/proc/{self.pid}/task"):
                with open(f"/proc/{self.pid}/task/{task}/schedstat") as file:
                    total += int(file.read().split()[1])
        except (OSError, IndexError):
            return total
        return total

    def main_ns(self) -> int:
        """CPU time of its first thread, where a Python broker has its event loop."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/task/{self.pid}/schedstat") as f:
            return int(f.read().split()[0])
        return 0

    def counts(self) -> list[int]:
        """What `bench.counter` counted in it so far (see counter.c); zeros when it isn't there."""
        if not self.counter:
            return [0] * COUNTS
        with open(self.counter, "rb") as file:
            return list(struct.unpack(f"={COUNTS}Q", file.read(8 * COUNTS)))

    def rss(self) -> int:
        if self.pid == 0:
            return 0
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def busy_ns() -> int:
    """Nanoseconds that all cores together weren't idle since the machine started."""
    with contextlib.suppress(OSError), open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        spent = user + nice + system + irq + softirq + steal
        return spent * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    return 0


class Span:
    """What broker and generator used between its creation and `figures()`."""

    def __init__(self, broker: Meter, me: Meter) -> None:
        self.broker = broker
        self.me = me
        self.broker_wait = broker.waited_ns()
        self.my_wait = me.waited_ns()
        self.broker_main = broker.main_ns()
        self.counts = broker.counts()
        self.others = busy_ns()
        self.broker_cpu = broker.cpu_ns()
        self.my_cpu = me.cpu_ns()
        self.idle: i64 = 0  # of our CPU time, what went into looking for work in vain
        self.sleeps = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        self.elapsed = time.monotonic_ns()

    def figures(self) -> dict[str, float]:
        self.elapsed = time.monotonic_ns() - self.elapsed
        self.broker_cpu = self.broker.cpu_ns() - self.broker_cpu
        self.my_cpu = self.me.cpu_ns() - self.my_cpu
        self.others = max(0, busy_ns() - self.others - self.broker_cpu - self.my_cpu)
        self.my_cpu = max(0, self.my_cpu - self.idle)
        self.sleeps = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - self.sleeps
        self.broker_main = self.broker.main_ns() - self.broker_main
        self.counts = [n - m for n, m in zip(self.broker.counts(), self.counts, strict=True)]
        return {
            "seconds": self.elapsed / 1e9,
            "broker_busy": self.broker_cpu / self.elapsed,
            "main_busy": self.broker_main / self.elapsed,
            "gen_busy": self.my_cpu / self.elapsed,
            "others_busy": self.others / self.elapsed,
            "broker_waited": (self.broker.waited_ns() - self.broker_wait) / self.elapsed,
            "gen_waited": (self.me.waited_ns() - self.my_wait) / self.elapsed,
        }


class Flow:
    """What one subscriber receives from one publisher, in order."""

    def __init__(self, publisher: "Publisher") -> None:
        self.publisher = publisher
        self.expected: i64 = 0  # position in the ring of the next message
        self.received: i64 = 0  # the same, never wrapped
        self.next_sample: i64 = 0


class Conn:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.recv = sock.recv
        self.write = sock.send
        self.state = CONNECT_SENT
        self.refused = 0
        self.pending = b""  # written but not taken by the kernel
        self.chunk = SMALL_CHUNK
        self.tail = b""  # received but not a whole packet yet
        self.publisher: Publisher | None = None
        self.flows: list[Flow] = []
        self.first_publisher: i64 = 0  # the publisher that flows[0] belongs to
        self.retained: i64 = 0  # a connection without flows only counts what comes
        self.others: i64 = 0


class Publisher:
    def __init__(self, conn: Conn, index: int, topics: list[str], plan: "Plan") -> None:
        self.conn = conn
        self.index = index
        window = plan.window
        # A subscriber of a fan-out may lag by more than a window while the others are ahead.
        under_way = window * max(1, plan.copies)
        self.laps: i64 = max(64, 4 * under_way, len(topics))
        self.laps += -self.laps % len(topics)  # as many messages for each topic
        if self.laps > 65535:
            raise BenchError("window x copies is too large for positions of 16 bits")
        frames = []
        for i in range(self.laps + window):
            position = i % self.laps
            body = text(topics[position % len(topics)])
            if plan.qos:
                body += struct.pack("!H", position + 1)
            body += plan.properties + payload(index, position, plan.size)
            frames.append(packet(0x30 | plan.qos << 1 | plan.retain, body))
        self.ring = b"".join(frames)
        self.frame_length: i64 = len(frames[0])
        if len(self.ring) != self.frame_length * len(frames):
            raise BenchError("all frames of a ring must have one length")
        self.head_length: i64 = 1 + len(varint(self.frame_length - 2))
        self.topic_length: i64 = 2 + len(topics[0].encode())
        self.window: i64 = window
        self.copies: i64 = plan.copies  # deliveries that one published message makes
        self.limit: i64 = ETERNITY  # stop after so many
        self.sent: i64 = 0
        self.acked: i64 = 0
        self.done: i64 = 0  # deliveries received, over all flows
        self.every: i64 = plan.every
        self.stamps: list[int] = [0] * (under_way // plan.every + 2)
        self.next_stamp: i64 = 0


class Plan:
    """Everything that the frames of a run have in common."""

    def __init__(self, version: int, qos: int, window: int, size: int) -> None:
        self.version = version
        self.qos = qos
        self.window = window
        self.size = size
        self.retain = 0
        self.copies = 1
        self.every = 3 if window < 10 else 7
        # A sleeping generator has to be woken by the broker's writes, at the broker's expense.
        self.spin = True
        self.properties = b"\x00" if version == 5 else b""
        self.user = ""  # whom every connection says it is

    def set_user_properties(self, count: int) -> None:
        raw = b"".join([user_property("unit", "celsius") for _ in range(count)])
        self.properties = varint(len(raw)) + raw


class Engine:
    def __init__(self, port: int, host: str, pid: int, plan: Plan) -> None:
        self.address = (host, port)
        self.plan = plan
        self.qos: i64 = plan.qos
        self.size: i64 = plan.size
        self.broker = Meter(pid)
        self.me = Meter(os.getpid())
        self.epoll = select.epoll()
        self.conns: dict[int, Conn] = {}
        self.publishers: list[Publisher] = []
        self.acks = [ack_table(first) for first in (0x40, 0x50, 0x62, 0x70)]
        self.pumping = False
        self.time_acks = False  # take the time of acknowledgements rather than of deliveries
        self.acked: i64 = 0
        self.delivered: i64 = 0
        self.reads: i64 = 0
        self.gaps: i64 = 0
        self.dups: i64 = 0
        self.foreign: i64 = 0  # came to the wrong subscriber, or can't be read
        self.corrupt: i64 = 0
        self.refused: i64 = 0  # acknowledgements with an error code
        self.latencies: list[int] = []

    def open(self, client_id: str, clean: bool = True) -> Conn:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Closed with a reset: thousands of connections a round leave no TIME_WAIT behind.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # In progress is fine: what is sent meanwhile waits until the socket is writable.
        sock.connect_ex(self.address)
        conn = Conn(sock)
        self.conns[conn.fd] = conn
        self.epoll.register(conn.fd, READABLE)
        self.send(conn, connect_packet(client_id, self.plan.version, clean, self.plan.user))
        return conn

    def leave(self, conn: Conn) -> None:
        """DISCONNECT, and forget the connection."""
        self.send(conn, b"\xe0\x00")
        self.epoll.unregister(conn.fd)
        del self.conns[conn.fd]
        conn.sock.close()

    def open_many(
        self, prefix: str, count: int, outstanding: int = 64, clean: bool = True, first: int = 0
    ) -> list[Conn]:
        """Open `count` clients, never more than `outstanding` of them waiting for their CONNACK."""
        conns: list[Conn] = []
        up = 0
        deadline = time.monotonic() + 60
        while up < count:
            while len(conns) < count and len(conns) - up < outstanding:
                conns.append(self.open(f"{prefix}{first + len(conns):05d}", clean))
            self.poll(0.05)
            while up < len(conns) and conns[up].state >= CONNECTED:
                up += 1
            if time.monotonic() > deadline:
                raise BenchError(f"only {up} of {count} clients were accepted in 60 s")
        return conns

    def subscribe(self, conn: Conn, filters: list[str], qos: int, packet_id: int = 1) -> None:
        conn.state = CONNECTED
        data = subscribe_packet(packet_id, filters, qos, self.plan.version)
        self.send(conn, data)

    def wait(self, conns: list[Conn], state: int, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        for conn in conns:
            while conn.state < state:
                self.poll(0.05)
                if time.monotonic() > deadline:
                    raise BenchError(f"no answer in {timeout:.0f} s")

    def add_publisher(self, conn: Conn, topics: list[str]) -> Publisher:
        publisher = Publisher(conn, len(self.publishers), topics, self.plan)
        conn.publisher = publisher
        self.publishers.append(publisher)
        return publisher

    def close(self) -> None:
        for conn in self.conns.values():
            conn.sock.close()
        self.conns.clear()
        self.epoll.close()

    def send(self, conn: Conn, data: bytes) -> None:
        if conn.pending:
            conn.pending += data
            return
        try:
            taken = conn.write(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            raise BenchError(f"send failed: {error}") from None
        if taken < len(data):
            conn.pending = data[taken:]
            self.epoll.modify(conn.fd, READABLE | WRITABLE)

    def send_pending(self, conn: Conn) -> None:
        data = conn.pending
        conn.pending = b""
        self.send(conn, data)
        if not conn.pending:
            self.epoll.modify(conn.fd, READABLE)

    def publish(self, publisher: Publisher, count: i64, stamp: int) -> None:
        """Send the next `count` messages (at most a window); note when the sampled ones left."""
        start = publisher.sent % publisher.laps * publisher.frame_length
        publisher.sent += count
        while publisher.next_stamp < publisher.sent:
            slot = publisher.next_stamp // publisher.every % len(publisher.stamps)
            publisher.stamps[slot] = stamp
            publisher.next_stamp += publisher.every
        end = start + count * publisher.frame_length
        self.send(publisher.conn, publisher.ring[start:end])

    def pump(self) -> None:
        """Fill every publisher's window."""
        stamp = 0
        for publisher in self.publishers:
            finished: i64 = publisher.done // publisher.copies if publisher.copies else ETERNITY
            if self.qos and publisher.acked < finished:
                finished = publisher.acked
            room = publisher.window - publisher.sent + finished
            if publisher.limit - publisher.sent < room:
                room = publisher.limit - publisher.sent
            if room > 0:
                if stamp == 0:
                    stamp = time.monotonic_ns()
                self.publish(publisher, room, stamp)

    def poll(self, timeout: float) -> bool:
        """Serve what is ready, then refill the windows; False: nothing was ready."""
        events = self.epoll.poll(timeout, 128)
        for fd, mask in events:
            conn = self.conns[fd]
            if mask & WRITABLE:
                self.send_pending(conn)
            if mask != WRITABLE:
                try:
                    data = conn.recv(conn.chunk)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise BenchError(f"receive failed: {error}") from None
                self.reads += 1
                # A buffer is allocated at full size and shrunk: large only where much comes.
                conn.chunk = CHUNK if len(data) * 2 > conn.chunk else SMALL_CHUNK
                if not data:
                    raise BenchError("the broker closed a connection")
                self.receive(conn, data)
        if events and self.pumping:
            self.pump()
        return len(events) > 0

    def receive(self, conn: Conn, data: bytes) -> None:
        if conn.tail:
            data = conn.tail + data
        flows = conn.flows
        flow_count: i64 = len(flows)
        size = self.size
        end: i64 = len(data)
        pos: i64 = 0
        now = 0
        delivered: i64 = 0
        answers: list[bytes] = []
        # Acknowledgements that this chunk asks for, as a run of consecutive ids of one type.
        run_kind: i64 = 0
        run_first: i64 = 0
        run_length: i64 = 0
        while end - pos >= 2:
            first: i64 = data[pos]
            length: i64 = data[pos + 1]
            body = pos + 2
            if length > 127:
                length &= 127
                shift: i64 = 7
                more = True
                while more and body < end:
                    byte: i64 = data[body]
                    body += 1
                    length |= (byte & 127) << shift
                    shift += 7
                    more = byte > 127
                if more:
                    break
            after = body + length
            if after > end:
                break
            answer: i64 = -1
            packet_id: i64 = 0
            kind = first >> 4
            if kind == 3:
                if first & 6:
                    at = body + 2 + (i64(data[body]) << 8 | i64(data[body + 1]))
                    packet_id = i64(data[at]) << 8 | i64(data[at + 1])
                    answer = (first >> 1 & 3) - 1
                start = after - size
                if flow_count == 0:
                    if first & 1:
                        conn.retained += 1
                    else:
                        conn.others += 1
                elif start < body:
                    self.foreign += 1
                else:
                    who = (i64(data[start]) << 8 | i64(data[start + 1])) - conn.first_publisher
                    position = i64(data[start + 2]) << 8 | i64(data[start + 3])
                    if who < 0 or who >= flow_count or position >= flows[who].publisher.laps:
                        self.foreign += 1
                    else:
                        flow = flows[who]
                        if position == flow.expected or self.skipped(flow, position):
                            index = flow.received
                            publisher = flow.publisher
                            flow.received = index + 1
                            position += 1
                            flow.expected = position if position < publisher.laps else 0
                            publisher.done += 1
                            delivered += 1
                            if index >= flow.next_sample and not self.time_acks:
                                if now == 0:
                                    now = time.monotonic_ns()
                                self.sample(flow, index, now, data[body:after])
            elif kind == 4 or kind == 7:
                publisher_acked = conn.publisher
                if publisher_acked is not None:
                    if self.time_acks and publisher_acked.acked % publisher_acked.every == 0:
                        if now == 0:
                            now = time.monotonic_ns()
                        self.sample_ack(publisher_acked, now)
                    publisher_acked.acked += 1
                    self.acked += 1
                if length > 2 and data[body + 2] > 127:
                    self.refused += 1
            elif kind == 5 or kind == 6:
                packet_id = i64(data[body]) << 8 | i64(data[body + 1])
                answer = kind - 3
            else:
                self.control(conn, kind, data[body:after])
            if answer >= 0:
                if answer == run_kind and packet_id == run_first + run_length:
                    run_length += 1
                else:
                    if run_length:
                        table = self.acks[run_kind]
                        answers.append(table[run_first * 4 : (run_first + run_length) * 4])
                    run_kind = answer
                    run_first = packet_id
                    run_length = 1
            pos = after
        conn.tail = data[pos:] if pos < end else b""
        self.delivered += delivered
        if run_length:
            table = self.acks[run_kind]
            last = table[run_first * 4 : (run_first + run_length) * 4]
            if answers:
                answers.append(last)
                last = b"".join(answers)
            self.send(conn, last)

    def skipped(self, flow: Flow, position: i64) -> bool:
        """Not the expected message: count what is missing (True: take it) or came again (False)."""
        ahead = position - flow.expected
        if ahead < 0:
            ahead += flow.publisher.laps
        if ahead * 2 < flow.publisher.laps:
            self.gaps += ahead
            flow.received += ahead
            # What is lost for good leaves the window too, or the flow would end here.
            flow.publisher.done += ahead
            return True
        self.dups += 1
        return False

    def sample(self, flow: Flow, index: i64, now: int, body: bytes) -> None:
        """Take the latency of a sampled message and compare it with what was sent."""
        publisher = flow.publisher
        every = publisher.every
        flow.next_sample = (index // every + 1) * every
        if index % every:
            return
        self.latencies.append(now - publisher.stamps[index // every % len(publisher.stamps)])
        sent = index % publisher.laps * publisher.frame_length
        topic = sent + publisher.head_length
        tail = len(self.plan.properties) + self.size
        sent_end = sent + publisher.frame_length
        if (
            body[: publisher.topic_length] != publisher.ring[topic : topic + publisher.topic_length]
            or body[len(body) - tail :] != publisher.ring[sent_end - tail : sent_end]
        ):
            self.corrupt += 1

    def sample_ack(self, publisher: Publisher, now: int) -> None:
        """The time from sending to acknowledgement; those of a connection come in order."""
        slot = publisher.acked // publisher.every % len(publisher.stamps)
        self.latencies.append(now - publisher.stamps[slot])

    def control(self, conn: Conn, kind: i64, body: bytes) -> None:
        if kind == 2:
            if body[1]:
                raise BenchError(f"CONNECT refused with code {body[1]:#04x}")
            conn.state = CONNECTED
        elif kind == 9:
            conn.refused += sum([code > 2 for code in body[2 + (self.plan.version == 5) :]])
            conn.state = SUBSCRIBED
        elif kind == 14:
            raise BenchError(f"the broker sent DISCONNECT {body.hex()}")

    def counted(self) -> int:
        """What a run is about: deliveries, or acknowledgements where nobody is there to receive."""
        return int(self.delivered if self.plan.copies else self.acked)

    def measure(self, seconds: float, warm_up: float, patience: float = 2.0) -> dict[str, float]:
        """Keep all windows full for `seconds`; figures are taken after `warm_up` of them."""
        self.pumping = True
        self.pump()
        begin = time.monotonic_ns()
        start_at = begin + int(warm_up * 1e9)
        end_at = begin + int(seconds * 1e9)
        timeout = 0.0 if self.plan.spin else 0.02
        while time.monotonic_ns() < start_at:
            self.poll(timeout)
        self.latencies.clear()
        delivered = self.counted()
        reads = int(self.reads)
        idle: i64 = 0
        span = Span(self.broker, self.me)
        before: i64 = time.monotonic_ns()
        while before < end_at:
            ready = self.poll(timeout)
            now: i64 = time.monotonic_ns()
            if not ready:
                idle += now - before
            before = now
        if self.plan.spin:
            span.idle = idle
        figures = span.figures()
        delivered = self.counted() - delivered
        self.latencies.sort()
        figures.update(percentiles(self.latencies))
        figures["samples"] = float(len(self.latencies))
        figures["msgs_s"] = delivered / span.elapsed * 1e9
        figures["cpu_us"] = span.broker_cpu / delivered / 1e3 if delivered else 0.0
        figures["gen_us"] = span.my_cpu / delivered / 1e3 if delivered else 0.0
        figures["gen_reads"] = (int(self.reads) - reads) / delivered if delivered else 0.0
        figures["gen_sleeps"] = span.sleeps / delivered if delivered else 0.0
        syncs, sync_ns, commits, written = span.counts
        figures["syncs_s"] = syncs / span.elapsed * 1e9
        figures["sync_ms"] = sync_ns / syncs / 1e6 if syncs else 0.0
        figures["per_commit"] = delivered / commits if commits else 0.0
        figures["written"] = written / delivered if delivered else 0.0
        figures["main_us"] = span.broker_main / delivered / 1e3 if delivered else 0.0
        self.pumping = False
        self.settle(patience)
        figures.update(self.verdict())
        return figures

    def settle(self, patience: float = 2.0) -> None:
        """Publish nothing more and wait until all that was sent has arrived."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            missing = sum([p.sent * p.copies - p.done for p in self.publishers])
            if self.qos:
                missing += sum([p.sent - p.acked for p in self.publishers])
            if missing <= 0:
                return
            self.poll(0.02)

    def verdict(self) -> dict[str, float]:
        """What must be zero."""
        lost = 0
        for conn in self.conns.values():
            lost += sum([flow.publisher.sent - flow.received for flow in conn.flows])
        return {
            "gaps": float(self.gaps),
            "dups": float(self.dups),
            "lost": float(lost),
            "foreign": float(self.foreign),
            "corrupt": float(self.corrupt),
            "refused": float(self.refused),
        }


def percentiles(ordered: list[int]) -> dict[str, float]:
    """p50, p99, p99.9 and the maximum of sorted nanoseconds, in microseconds."""
    if not ordered:
        return {"p50_us": 0.0, "p99_us": 0.0, "p999_us": 0.0, "max_us": 0.0}
    last = len(ordered) - 1
    return {
        "p50_us": ordered[last * 50 // 100] / 1e3,
        "p99_us": ordered[last * 99 // 100] / 1e3,
        "p999_us": ordered[last * 999 // 1000] / 1e3,
        "max_us": ordered[last] / 1e3,
    }
