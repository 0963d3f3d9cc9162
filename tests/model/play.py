"""A broker, its devices and the judge: what each step of the model test does.

Owns: the devices as they have to behave (what they resend, what they hand over once, which
acknowledgements they still have in hand), the order in which judge and broker hear of things, and
what a crash or a restart does to the harness. A step tells the judge, then the broker, then shows
the judge every packet that came of it.

Must not know: Hypothesis, or anything of the broker but its wire, `balance` and `counters`.
"""

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from mqttd.core.packets import Will as WireWill
from mqttd.core.properties import Properties
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST, Settings
from tests.harness import FakeClient, Harness
from tests.model.judge import Judge
from tests.model.reference import Connection, Message, Receipt, Sub, Will, is_shared
from tests.store.disk import Disk, assert_sound

TICK: Final = 2.0**-10  # between two steps, so that no two deadlines are one by chance
START: Final = 4096.0
MOST_OPEN: Final = 4  # publications that a device has under way
REFUSED, SHUTTING_DOWN, TAKEN_OVER = 0x87, 0x8B, 0x8E


@dataclass(eq=False)
class Outgoing:
    """A PUBLISH that the device has not seen the end of."""

    message: Message
    interval: int
    receipt: Receipt
    released: bool = False
    repeated: bool = False
    since: int = 0  # of the PUBREL
    reason: int = 0  # what PUBCOMP has to say


@dataclass(eq=False)
class Link:
    """One connection of a device, accepted or refused."""

    device: "Device"
    fake: FakeClient
    connection: Connection | None
    present: bool
    promise: int
    asked: dict[int, tuple[int, int]] = field(default_factory=dict)  # id → reason, since


@dataclass(eq=False)
class Device:
    """A client; what it keeps over connections is as the standard wants it."""

    name: str
    link: Link | None = None
    forgetting: bool = False  # asked for a clean start, and not answered: to be asked for again
    out: dict[int, Outgoing] = field(default_factory=dict)
    taken: dict[int, tuple[object, ...]] = field(default_factory=dict)  # QoS 2, PUBREL to come
    pending: list[Record] = field(default_factory=list)  # answers it has not given yet

    def free_id(self) -> int:
        asked = self.link.asked if self.link else {}
        return next(n for n in range(1, 1000) if n not in self.out and n not in asked)


class Play:
    """One broker's life; `durable`: on a file, in which it outlives crashes."""

    def __init__(self, durable: bool, max_queued: int = 3, drop_oldest: bool = False) -> None:
        self.settings = Settings()
        self.settings.max_queued_messages = max_queued
        self.settings.queue_overflow = DROP_OLDEST if drop_oldest else DROP_NEWEST
        self.settings.max_inflight = 4
        self.durable = durable
        self.judge = Judge(durable, max_queued, drop_oldest, self.settings.max_inflight)
        self.judge.now = START
        self.devices: dict[str, Device] = {}
        self.links: list[Link] = []
        self.handed: set[tuple[object, ...]] = set()  # QoS 2, never twice
        self.groups: dict[str, int] = {}
        self._overflows = 0
        self._directory = Path(tempfile.mkdtemp(prefix="mqttd-model-")) if durable else None
        self._generation = 0
        self.harness = self._start(START)

    def _start(self, wall: float) -> Harness:
        self._overflows = 0
        if self._directory is None:
            return Harness(self.settings)
        path = self._directory / str(self._generation) / "model.db"
        path.parent.mkdir(exist_ok=True)
        return Disk(path, wall, self.settings, "os")

    def close(self) -> None:
        if isinstance(self.harness, Disk):
            self.harness.__exit__()
        if self._directory is not None:
            shutil.rmtree(self._directory)

    def device(self, name: str) -> Device:
        return self.devices.setdefault(name, Device(name))

    # What devices do.

    def connect(
        self,
        name: str,
        *,
        user: str | None = None,
        clean: bool = False,
        expiry: int = 50,
        limit: int = 2,
        will: Will | None = None,
    ) -> None:
        """CONNECT, also where a connection exists: it is taken over, or the newcomer refused."""
        self.tick()
        device = self.device(name)
        clean = clean or device.forgetting
        accepted = self.judge.connect(name, user, clean, expiry, limit, will)
        wire_will = None
        if will is not None:
            m = will.message
            wire_will = WireWill(
                m.topic, m.payload, m.qos, m.retain, will.delay, int(m.expires_at) or -1
            )
        properties = Properties()
        properties.session_expiry_interval = expiry
        properties.receive_maximum = limit
        fake = self.harness.open()
        fake.auto_ack = False
        if accepted is None:
            self.links.append(Link(device, fake, None, False, -1))
        else:
            device.pending.clear()
            device.forgetting = clean
            device.link = Link(device, fake, *accepted)
            self.links.append(device.link)
        fake.send(Connect("MQTT", 5, clean, 0, name, wire_will, user, None, properties))
        self.settle()

    def will(
        self, name: str, qos: int, retain: bool = False, delay: int = 0, expiry: int = 0
    ) -> Will:
        number = self.judge.number()
        payload = b"will %d" % number
        return Will(Message(number, f"w/{name}", payload, qos, retain, name, expiry), delay)

    def drop(self, name: str) -> None:
        """The network breaks."""
        self.tick()
        link = self.device(name).link
        if link is not None:
            self._leave(link, True)
            link.fake.drop()
            self.settle()

    def disconnect(self, name: str, reason: int = 0, expiry: int | None = None) -> None:
        self.tick()
        link = self.ready(name)
        if link is None or link.connection is None:
            return
        properties = Properties()
        session = link.connection.session
        if expiry is not None and session.expiry:
            session.expiry = properties.session_expiry_interval = expiry
        self._leave(link, reason != 0)
        link.fake.disconnect(reason, properties)
        self.settle()

    def _leave(self, link: Link, with_will: bool) -> None:
        assert link.connection is not None
        self.judge.lose(link.connection.session, with_will)
        link.device.link = None
        link.device.pending.clear()

    def ready(self, name: str) -> Link | None:
        """The connection of a device if it is accepted."""
        link = self.device(name).link
        if link is None or link.connection is None or not link.connection.established:
            return None
        return link

    def publish(
        self,
        name: str,
        topic: str,
        qos: int,
        retain: bool = False,
        expiry: int = 0,
        text: bool = True,
    ) -> None:
        self.tick()
        link, device = self.ready(name), self.device(name)
        if link is None or len(device.out) >= MOST_OPEN:
            return
        number = self.judge.number()
        payload = b"%d" % number if text else b""
        self._publish(link, Message(number, topic, payload, qos, retain, name), expiry, 0)
        self.settle()

    def _publish(self, link: Link, message: Message, interval: int, packet_id: int) -> None:
        """`packet_id` is that of the first sending, 0 if this is it."""
        assert link.connection is not None
        device, m = link.device, message
        at = self.judge.now + interval if interval else 0.0
        sent = Message(m.number, m.topic, m.payload, m.qos, m.retain, m.origin, at)
        number = packet_id or (device.free_id() if m.qos else 0)
        receipt = self.judge.publish(link.connection.session, sent, number)
        if m.qos:
            device.out[number] = Outgoing(m, interval, receipt, False, packet_id != 0)
        link.fake.publish(
            m.topic, m.payload, m.qos, m.retain, number, packet_id != 0, b"", 0, interval or -1
        )
        self._overflow()

    def _pubrel(self, link: Link, packet_id: int) -> None:
        assert link.connection is not None
        out = link.device.out[packet_id]
        out.released = True
        out.reason = self.judge.pubrel(link.connection.session, packet_id)
        if out.reason == 0:  # otherwise the broker has done so already
            out.since = self.judge.commits
        link.fake.send(Pubrel(packet_id))

    def subscribe(self, name: str, topic_filter: str, sub: Sub) -> None:
        self.tick()
        link = self.ready(name)
        if link is None or link.connection is None:
            return
        if is_shared(topic_filter):
            # [MQTT-3.8.3-4]; and an identifier that tells through which group a message came.
            number = self.groups.setdefault(topic_filter, 100 + len(self.groups))
            sub = replace(sub, no_local=False, identifier=number)
        number = link.device.free_id()
        link.asked[number] = (sub.qos, self.judge.commits)
        self.judge.subscribe(link.connection.session, topic_filter, sub)
        entry = Filter(topic_filter, sub.qos, sub.no_local, sub.as_published, sub.handling)
        link.fake.send(Subscribe(number, [entry], sub.identifier))
        self.settle()

    def unsubscribe(self, name: str, topic_filter: str) -> None:
        self.tick()
        link = self.ready(name)
        if link is None or link.connection is None:
            return
        number = link.device.free_id()
        reason = self.judge.unsubscribe(link.connection.session, topic_filter)
        link.asked[number] = (reason, -1 if reason else self.judge.commits)
        link.fake.send(Unsubscribe(number, [topic_filter]))
        self.settle()

    def acknowledge(self, name: str, count: int = 1000) -> None:
        """The device gives the first of the answers that it owes. [MQTT-4.6.0-2]"""
        self.tick()
        link, device = self.ready(name), self.device(name)
        for _ in range(count):
            if link is None or link.connection is None or not device.pending:
                return
            answer = device.pending.pop(0)
            if isinstance(answer, Pubrel):
                self._pubrel(link, answer.packet_id)
            elif isinstance(answer, (Puback, Pubrec, Pubcomp)):
                released = isinstance(answer, Pubrec)
                self.judge.answered(link.connection, answer.packet_id, released)
                link.fake.send(answer)
            self.settle()

    # What happens to the broker.

    def tick(self) -> None:
        self.advance(TICK)

    def advance(self, seconds: float) -> None:
        end = self.judge.now + seconds
        while self.judge.now < end:
            at = min(end, self.judge.next_event())
            seconds = at - self.judge.now
            self.judge.advance(at)
            self.harness.advance(seconds)
            self.settle()

    def commit(self) -> None:
        self.tick()
        self.judge.commits += 1
        self.harness.commit()
        self._overflow()
        reactions = self._receive()
        self.judge.picture()
        self.judge.at_rest()
        self._react(reactions)
        self.settle()

    def crash(self, away: float = 1.0) -> None:
        """kill -9, and a broker that starts on what is left; in memory nothing would be."""
        if not isinstance(self.harness, Disk):
            return
        self.tick()
        old = self.harness
        self._generation += 1
        place = old.path.parent.with_name(str(self._generation))
        place.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{old.path}{suffix}", place)
        old.__exit__()
        self._go_on(old.wall + away)

    def restart(self, away: float = 1.0) -> None:
        """A graceful end, as the shell does it."""
        if not isinstance(self.harness, Disk):
            return
        self.tick()
        old = self.harness
        for link in self.links:
            connection = link.connection
            if connection is not None and connection.session.connection == connection.number:
                self.judge.lose(connection.session, True)
            link.device.link = None
        old.broker.drain(old.now)
        old.flush()
        self._overflow()
        self._receive()
        self.judge.commits += 1
        old.commit()
        self.judge.picture()
        old.__exit__()
        self._go_on(old.wall + away)

    def _go_on(self, wall: float) -> None:
        for device in self.devices.values():
            device.link = None
            device.pending.clear()
        self.links.clear()
        self.judge.restore(wall)
        self.harness = self._start(wall)
        self.settle()

    # What devices receive.

    def settle(self) -> None:
        """Look at all that the broker wrote, react to it, and see that the sums are right."""
        self._overflow()
        while reactions := self._receive():
            self._react(reactions)
            self._overflow()
        self.check()
        if not self.durable:
            self.judge.at_rest()

    def _overflow(self) -> None:
        dropped = self.harness.dropped.get("queue_full", 0)
        self.judge.dropped(dropped - self._overflows)
        self._overflows = dropped

    def check(self) -> None:
        broker = self.harness.broker
        counters = broker.counters
        queued, inflight = broker.balance()
        ended = counters.delivered + sum(counters.dropped.values())
        assert counters.matched == ended + queued + inflight, "the balance"
        assert counters.wills_published == self.judge.wills, "wills"
        assert counters.bugs == 0
        most = self.settings.max_queued_messages
        # What a member of a group leaves unfinished goes back to the queue, full or not.
        beyond = self.settings.max_inflight * len(self.judge.state.pools)
        assert not most or queued <= most * self.judge.queues() + beyond

    def _receive(self) -> list[Link]:
        """Show every packet to the judge; the links whose CONNACK has come."""
        opened: list[Link] = []
        answers: list[tuple[Link, Record]] = []
        for link in list(self.links):
            for packet in link.fake.recv():
                if isinstance(packet, (Puback, Pubrec)):
                    answers.append((link, packet))  # judged by what all others have received
                else:
                    self._take(link, packet)
                if isinstance(packet, Connack) and link.connection is not None:
                    opened.append(link)
            if link.fake.closed:
                self.links.remove(link)
        for link, packet in answers:
            self._take(link, packet)
        return opened

    def _react(self, opened: list[Link]) -> None:
        """[MQTT-4.4.0-1] a session that goes on: what is unacknowledged is sent again."""
        for link in opened:
            device = link.device
            if not link.present:
                device.out.clear()
                device.taken.clear()
            for number, out in list(device.out.items()):
                if out.released:
                    self._pubrel(link, number)
                else:
                    self._publish(link, out.message, out.interval, number)

    def _take(self, link: Link, packet: Record) -> None:
        connection, device, judge = link.connection, link.device, self.judge
        if connection is None:
            assert isinstance(packet, Connack)
            assert packet.reason == REFUSED
            return
        session = connection.session
        if isinstance(packet, Connack):
            assert packet.reason == 0
            assert packet.session_present == link.present, "Session Present"
            judge.established(connection, link.promise)
            device.forgetting = False
        elif isinstance(packet, Publish):
            self._take_publish(link, connection, packet)
        elif isinstance(packet, Puback):
            out = device.out.pop(packet.packet_id)
            judge.acknowledged(out.receipt, packet.reason, False)
        elif isinstance(packet, Pubrec):
            out = device.out[packet.packet_id]
            assert not out.released
            judge.acknowledged(out.receipt, packet.reason, out.repeated)
            device.pending.append(Pubrel(packet.packet_id))
        elif isinstance(packet, Pubcomp):
            out = device.out.pop(packet.packet_id)
            assert packet.reason == out.reason, "PUBCOMP"
            assert not session.expiry or judge.covered(out.since), "PUBCOMP before it is durable"
        elif isinstance(packet, Pubrel):
            assert packet.reason == 0
            judge.released(connection, packet.packet_id)
            device.taken.pop(packet.packet_id, None)
            device.pending.append(Pubcomp(packet.packet_id))
        elif isinstance(packet, (Suback, Unsuback)):
            reason, since = link.asked.pop(packet.packet_id)
            assert packet.reasons == [reason]
            assert not session.expiry or judge.covered(since), "SUBACK before it is durable"
        else:
            assert isinstance(packet, Disconnect)
            assert packet.reason in (SHUTTING_DOWN, TAKEN_OVER)

    def _take_publish(self, link: Link, connection: Connection, packet: Publish) -> None:
        device, number = link.device, packet.packet_id
        owed = self.judge.received(
            connection,
            (
                packet.topic,
                packet.payload,
                packet.qos,
                packet.retain,
                tuple(packet.subscription_ids),
            ),
            packet.dup,
            number,
            packet.message_expiry,
        )
        if packet.qos == 1:
            device.pending.append(Puback(number))
        elif packet.qos == 2:
            life = "" if owed.kind.startswith("$share/") else connection.session.life
            once = (life, owed.message.number, owed.kind)
            if number in device.taken:
                assert device.taken[number] == once, "another message under an id in use"
            else:
                assert once not in self.handed, "handed over twice"
                self.handed.add(once)
                device.taken[number] = once
            device.pending.append(Pubrec(number))

    # The end.

    def finish(self) -> None:
        """Everybody comes back, takes all that is left, and goes for good."""
        judge = self.judge
        for session in list(judge.state.sessions.values()):
            self.connect(session.client, user=session.owner, expiry=1000, limit=100)
        self.connect("probe", clean=True, expiry=0, limit=100)
        self.commit()
        self.subscribe("probe", "#", Sub(2))
        for _ in range(200):
            self.commit()
            for name in list(self.devices):
                self.acknowledge(name)
            if self.harness.broker.balance() == (0, 0) and not any(
                device.out or device.pending for device in self.devices.values() if device.link
            ):
                break
        self.commit()
        assert self.harness.broker.balance() == (0, 0), "something never leaves"
        judge.drained()
        self._check_rows("messages", "deliveries", "inbound")
        for name in list(self.devices):
            self.disconnect(name, 0, 0)
        for _ in range(3):
            self.commit()
        assert not judge.state.sessions
        self._check_rows("messages", "deliveries", "inbound", "sessions", "subscriptions", "wills")

    def _check_rows(self, *empty: str) -> None:
        if isinstance(self.harness, Disk):
            while self.harness.tidy():
                pass
            self.settle()
            assert self.harness.rows("PRAGMA integrity_check") == [("ok",)]
            assert_sound(self.harness)
            for table in empty:
                found = self.harness.rows(f"SELECT * FROM {table}")
                assert not found, f"rows left in {table}: {found}"
