"""Clients that know more of the promises than those in `actors`.

`Pacer` publishes with expiry and payloads of all sizes, `Receiver` looks at every packet of its
connection, `Sleeper` stays away until its queue has left the broker's memory, `Deserter` does so
and then wants nothing of it, `Mourner` has wills.

What must not happen is judged only where that is certain: instants are of this machine's one clock,
an acknowledgement is known later than its message was routed, and a connection is asked for later
than this was noted. So a slow machine makes a check say nothing, never something wrong.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence

from mqttd.core.packets import (
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Suback,
    Subscribe,
    Will,
)
from tests.crash.actors import Publisher, Subscriber
from tests.crash.wire import PATIENCE, RECEIVE_MAXIMUM, Gone, Process, Wire

FLEETING = 1
"""Seconds until a message under x/ expires."""
LASTING = 3600


class Pacer(Publisher):
    """Some messages are large, some expire; remembers when it was told what."""

    def __init__(self, name: str, broker: Process, chance: random.Random, wrong: list[str]) -> None:
        super().__init__(name, broker, chance, wrong)
        self.repeated: set[int] = set()  # numbers at QoS 1 that were sent more than once
        self.passed = 0  # messages at QoS 0 up to this number have been routed, if they arrived
        self.fleeting: dict[int, float] = {}  # those under x/ that were acknowledged: until when
        self._fleeting_sent = 0
        self._marks: dict[int, int] = {}  # by packet id: messages at QoS 0 that were sent before

    async def serve(self, wire: Wire) -> None:
        for publish in self.open.values():
            if publish.qos == 1:
                self.repeated.add(int(publish.payload))
        await super().serve(wire)

    def message(self, qos: int, number: int) -> Publish:
        publish = super().message(qos, number)
        if self.chance.random() < 0.2:
            publish.payload += b" " * self.chance.randrange(8000)
        if self.chance.random() < 0.3:
            publish.message_expiry = LASTING
        return publish

    def _publish(self, wire: Wire) -> None:
        before = len(self.open)
        if self.chance.random() < 0.1 and before + len(self.released) < self.WINDOW:
            self._fleeting_sent += 1
            publish = Publish(f"x/{self.name}", b"%d" % self._fleeting_sent, 1)
            publish.message_expiry = FLEETING
            publish.packet_id = self._free_id()
            self.open[publish.packet_id] = publish
            wire.send(publish)
        else:
            super()._publish(wire)
        if len(self.open) > before:
            self._marks[self._last_id] = self.sent[0]

    def on_packet(self, wire: Wire, packet: object) -> None:
        if isinstance(packet, Puback | Pubrec):
            self.passed = max(self.passed, self._marks.pop(packet.packet_id, 0))
        if isinstance(packet, Puback) and self.open[packet.packet_id].topic[0] == "x":
            number = int(self.open.pop(packet.packet_id).payload)
            self.fleeting[number] = time.monotonic() + FLEETING
        else:
            super().on_packet(wire, packet)


class Receiver(Subscriber):
    """Judges each packet by what came before it, on this connection and on earlier ones."""

    def __init__(
        self,
        name: str,
        broker: Process,
        chance: random.Random,
        wrong: list[str],
        topic_filters: Sequence[str],
        publishers: Sequence[Pacer],
    ) -> None:
        super().__init__(name, broker, chance, wrong, topic_filters[0], {})
        self.filters = [Filter(name, 2) for name in topic_filters]
        self.publishers = {publisher.name: publisher for publisher in publishers}
        self.seen_at: dict[tuple[str, int], float] = {}
        self.asked_at = 0.0  # no later than the CONNECT was sent
        self.most_repeated = 0
        self._known: dict[tuple[str, int], tuple[int, bytes, int]] = {}  # id, payload, start
        self._last: dict[str, int] = {}  # on this connection: topic → number
        self._unanswered: dict[int, bytes] = {}  # likewise: QoS > 0, what it holds
        self._exchanges: dict[int, tuple[str, int]] = {}  # QoS 2: by packet id, what it holds
        self._repeats = 0
        self._answers: list[Puback | Pubrec | Pubcomp] = []

    @property
    def acknowledged(self) -> int:
        return sum(
            len(p.acknowledged[0]) + len(p.acknowledged[1]) for p in self.publishers.values()
        )

    def before(self) -> None:
        self.asked_at = time.monotonic()
        self._last.clear()
        self._unanswered.clear()
        self._answers.clear()
        self._repeats = 0

    def answer(self, wire: Wire, packet: Puback | Pubrec | Pubcomp) -> None:
        """Lags behind a little, so that the window fills."""
        self._answers.append(packet)
        if self.stays or len(self._answers) >= 15 or self.chance.random() < 0.3:
            for answer in self._answers:
                wire.send(answer)
                if not isinstance(answer, Pubrec):
                    self._unanswered.pop(answer.packet_id, None)
            self._answers.clear()

    def on_packet(self, wire: Wire, packet: object) -> None:
        if isinstance(packet, Publish):
            number = int(packet.payload)
            self.seen_at.setdefault((packet.topic, number), time.monotonic())
            self._judge(packet, number)
        super().on_packet(wire, packet)

    def complain(self, packet: Publish, text: str) -> None:
        what = f"{packet.topic} {int(packet.payload)}"
        self.wrong.append(
            f"{self.name}: {what} (id {packet.packet_id}, dup {packet.dup}) {text};"
            f" start {self.start}"
        )

    def _judge(self, packet: Publish, number: int) -> None:
        publisher = self.publishers.get(packet.topic.split("/")[1])
        again = publisher is not None and packet.qos == 1 and number in publisher.repeated
        if packet.qos:
            self._judge_id(packet, number)
        if packet.topic[0] == "t":
            last = self._last.get(packet.topic, 0)
            if number <= last and not again:
                self.complain(packet, f"after {last} on one connection")
            self._last[packet.topic] = max(number, last)
        if packet.topic[0] == "x" and publisher is not None and not packet.dup and not again:
            until = publisher.fleeting.get(number)
            if until is not None and until < self.asked_at:
                late = self.asked_at - until
                self.complain(packet, f"had expired {late:.3f} s before the connection began")
        allowed = {"t": LASTING, "x": FLEETING}.get(packet.topic[0])
        if allowed is not None and packet.message_expiry > allowed:
            self.complain(packet, f"lasts {packet.message_expiry} s, longer than it did")
        if packet.qos == 1 and not again:
            self._judge_repeat(packet, number)

    def _judge_id(self, packet: Publish, number: int) -> None:
        what = (packet.topic, number)
        exchange = self._exchanges.get(packet.packet_id) if packet.packet_id in self._open else None
        if exchange is not None and exchange != what:
            self.complain(packet, f"has the identifier of {exchange}, which is not finished")
        if packet.packet_id in self._unanswered:
            self.complain(packet, "has an identifier that is in use on this connection")
        self._unanswered[packet.packet_id] = packet.payload
        if len(self._unanswered) > RECEIVE_MAXIMUM:
            self.complain(packet, f"is number {len(self._unanswered)} without an answer")
        if packet.qos == 2:
            self._exchanges[packet.packet_id] = what

    def _judge_repeat(self, packet: Publish, number: int) -> None:
        key = (packet.topic, number)
        now = (packet.packet_id, packet.payload, self.start)
        known = self._known.get(key)
        self._known[key] = now
        if known is None:
            return
        if known[1] != packet.payload:
            self.complain(packet, "has another payload than before")
        if known[2] != self.start:
            return  # a crash may have cost the note of its identifier
        self._repeats += 1
        self.most_repeated = max(self.most_repeated, self._repeats)
        if not packet.dup or known[0] != packet.packet_id:
            self.complain(packet, f"came before, with id {known[0]}")
        if self._repeats > RECEIVE_MAXIMUM:
            self.complain(packet, f"is repetition {self._repeats} of one reconnect")


class Sleeper(Receiver):
    """Away until more waits than the head of its queue holds; then takes all of it."""

    def __init__(
        self,
        name: str,
        broker: Process,
        chance: random.Random,
        wrong: list[str],
        topic_filters: Sequence[str],
        publishers: Sequence[Pacer],
        depth: int,
    ) -> None:
        super().__init__(name, broker, chance, wrong, topic_filters, publishers)
        self.depth = depth
        self.sleeps = 0
        self._left: dict[str, int] = {}  # by publisher: messages at QoS 0 that were sent
        self._missed: dict[str, tuple[int, int]] = {}  # at QoS 0: above the one, up to the other

    def before(self) -> None:
        super().before()
        self._missed = {
            name: (left, self.publishers[name].passed) for name, left in self._left.items()
        }
        self._left = {}

    async def serve(self, wire: Wire) -> None:
        owed = self.acknowledged
        if self.sleeps or self.stays:
            await super().serve(wire)
        if not self.stays:
            wire.send(Disconnect())
            try:
                while True:
                    self.on_packet(wire, await wire.receive())
            except Gone:
                pass
            self._left = {name: p.sent[0] for name, p in self.publishers.items()}
            self.sleeps += 1
            while self.acknowledged < owed + self.depth and not (self.stays or self.ending):
                await asyncio.sleep(0.01)

    def _judge(self, packet: Publish, number: int) -> None:
        if packet.qos == 0:
            above, to = self._missed.get(packet.topic.split("/")[1], (0, 0))
            if above < number <= to:
                self.complain(packet, f"was kept at QoS 0; absent from {above} to {to}")
        super()._judge(packet, number)


class Deserter(Sleeper):
    """Comes back with a clean start: nothing of what waits is for it, nor ever will be."""

    def __init__(
        self,
        name: str,
        broker: Process,
        chance: random.Random,
        wrong: list[str],
        topic_filters: Sequence[str],
        publishers: Sequence[Pacer],
        depth: int,
    ) -> None:
        super().__init__(name, broker, chance, wrong, topic_filters, publishers, depth)
        self._waived: dict[str, set[int]] = {}  # by topic

    def before(self) -> None:
        super().before()
        self.clean = self.clean or bool(self._missed)
        if self.clean:
            self._open.clear()
            self._known.clear()
            self._waived = {
                publisher.topic(qos): set(publisher.acknowledged[qos - 1])
                for publisher in self.publishers.values()
                for qos in (1, 2)
            }

    def _judge(self, packet: Publish, number: int) -> None:
        publisher = self.publishers.get(packet.topic.split("/")[1])
        again = publisher is not None and packet.qos == 1 and number in publisher.repeated
        if number in self._waived.get(packet.topic, ()) and not again:
            self.complain(packet, "was acknowledged before the clean start")
        super()._judge(packet, number)


class Mourner:
    """Has a will in each of its lives, and ends them in every way there is."""

    LATE = 60  # seconds: longer than it stays away

    def __init__(
        self,
        name: str,
        broker: Process,
        chance: random.Random,
        wrong: list[str],
        watcher: Receiver,
    ) -> None:
        self.name = name
        self.broker = broker
        self.chance = chance
        self.wrong = wrong
        self.watcher = watcher
        self.ending = False
        self.topic = f"w/{name}/2"
        self.expected: list[tuple[int, int, int]] = []  # life, at least so many wills, at most
        self.lives = 0
        self._promised = False
        self._pending: tuple[int, float, int] | None = None  # life, good until, starts

    async def run(self) -> None:
        while not self.ending:
            self.lives += 1
            try:
                await self._live(self.lives)
            except Gone:
                # Before SUBACK: perhaps the broker knows of this will, perhaps not.
                self.expected.append((self.lives, 0, 1))
        while self._pending is not None:
            try:
                wire = await self._connect(None)
                wire.send(Disconnect())
                await self._end_of(wire)
            except Gone:
                continue

    async def _connect(self, will: Will | None) -> Wire:
        await self.broker.up.wait()
        starts = self.broker.starts
        try:
            wire, present = await Wire.connect(self.broker.port, self.name, will=will)
        except Gone:
            await asyncio.sleep(0.01)
            raise
        if self._pending is not None:
            # What the last life left to this one: a will that was still to come, or none.
            life, until, its_start = self._pending
            certain = time.monotonic() < until and (not its_start or its_start == starts)
            self.expected.append((life, 0, 0 if certain else 1))
            self._pending = None
        if self._promised and not present:
            self.wrong.append(f"{self.name}: the session has gone")
        return wire

    async def _live(self, life: int) -> None:
        way = self.chance.choice(("goodbye", "at once", "later", "back in time"))
        delay = {"later": 1, "back in time": self.LATE}.get(way, 0)
        wire = await self._connect(Will(self.topic, b"%d" % life, 2, False, delay))
        try:
            wire.send(Subscribe(1, [Filter(f"none/{self.name}", 0)]))
            while not isinstance(await wire.receive(), Suback):
                pass
            self._promised = True
            alive = time.monotonic()
            starts = self.broker.starts
            killed = False
            try:
                async with asyncio.timeout(self.chance.random() * 0.1):
                    await wire.receive()
            except TimeoutError:
                pass
            except Gone:
                killed = True
            if way == "goodbye" and not killed:
                wire.send(Disconnect())
                await self._end_of(wire)
                self._pending = (life, alive + PATIENCE * 1000, starts)
                return
        finally:
            wire.close()
        if way == "back in time":
            self._pending = (life, alive + delay, 0)
            return
        while (self.topic, life) not in self.watcher.seen_at:
            if time.monotonic() > alive + PATIENCE:
                self.wrong.append(f"{self.name}: no will of life {life} ({way})")
                break
            await asyncio.sleep(0.01)
        else:
            early = alive + delay - self.watcher.seen_at[self.topic, life]
            if early > 0:
                self.wrong.append(f"{self.name}: the will of life {life} came {early} s early")
        self.expected.append((life, 1, 1))

    async def _end_of(self, wire: Wire) -> None:
        """DISCONNECT was sent: the broker closes."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(Gone):
                while True:
                    await wire.receive()

    def judge(self) -> None:
        came = self.watcher.handed.get(self.topic, [])
        for life, least, most in self.expected:
            count = came.count(life)
            if not least <= count <= most:
                self.wrong.append(
                    f"{self.name}: {count} wills of life {life}, not {least} to {most}"
                )
