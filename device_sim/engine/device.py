"""One device: it connects, subscribes, loses its connection in one way or another, and comes back.

Owns the life of a device across its connections, and tells the books about it: what the next
CONNACK has to say about the session, from when to when its reader was away, how each connection
ended and whether a will is due. What it publishes is fed by its feeds, what it is owed stands in
its watcher; both were set up by `fleet`.

A device is in one of three states: away (no link), connecting (a coroutine of the run brings it
up), up. Timers bring about what happens by itself: the next try, the end of being awake, the
moment when a flaky link drops. There is one timer at a time for each of these and no task between
them.

Faults of the scenario that it stands in are counted (`faults`), so that a connection that fails
because of one is known. One of them damages bytes: `harm` tells the books, and they are told again
when the connection has ended. A subscription whose bytes were damaged may be another one, so it is
made anew, and what comes to that reader stays in doubt.

A connection whose device vanished (half-open) is kept as a ghost: its socket stays open, nobody
reads it, nobody pings. That is what power loss looks like from the broker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from device_sim.engine.client import CLOSED, Client
from device_sim.engine.device_link import DeviceLink
from device_sim.engine.feed import Feed
from device_sim.engine.introduction import connect_packet
from device_sim.engine.link import ConnectionEnded, Link
from device_sim.engine.plan import FILTERS_A_PACKET, VERSIONS, UsageError
from device_sim.engine.proxy import reset
from device_sim.engine.subscriptions import Subscription
from device_sim.engine.surroundings import Surroundings
from device_sim.judge.ledger import Watcher
from device_sim.judge.oracles import NEVER_EXPIRES, PRESENT, Session, Wills
from device_sim.judge.tracks import Sender
from device_sim.language.chance import Chance
from device_sim.language.naming import Names, Template
from device_sim.language.scenario import Group
from mqttd.core import spec
from mqttd.core.packets import Connack, Suback

WILL_GRACE_S: Final = 2.0
"""A broker may be so late with a will that is due."""


class Vanished:
    """A connection that ended without a word; whether its will is due shows later."""

    def __init__(self, number: int, at: float, noticed_s: float, half_open: bool) -> None:
        self.number = number
        self.at = at
        self.noticed_s = noticed_s
        self.half_open = half_open


class Device:
    """One simulated device; see the module for what it owns."""

    __slots__ = (  # there are thousands of them
        "_acknowledged",
        "_chance",
        "_connections",
        "_expiry_s",
        "_introduced",
        "_misheard",
        "_session",
        "_subscribed",
        "_tasks",
        "_timers",
        "_tries",
        "_vanished",
        "answer",
        "around",
        "client",
        "connecting",
        "fault_until",
        "faults",
        "feeds",
        "ghosts",
        "group",
        "harmed",
        "index",
        "link",
        "names",
        "subscriptions",
        "up",
        "wanted",
        "will_sender",
        "wills",
    )

    def __init__(self, around: Surroundings, group: Group, names: Names) -> None:
        self.around = around
        self.group = group
        self.names = names
        self.index = int(names.parts["index"])
        version = VERSIONS[group.version]
        self.client = Client(names.client_id, version, around.switchboard.ledger.ready)
        self.client.keeps_frames = group.session_expiry > 0
        self.link: DeviceLink | None = None
        self.up = False
        self.connecting = False
        self.wanted = False
        self.answer: Callable[[Device], None] | None = None
        self.feeds: list[Feed] = []
        self.subscriptions: list[Subscription] = []
        self.will_sender: Sender | None = None
        self.wills = Wills()
        self.ghosts: list[DeviceLink] = []
        self.faults = 0
        self.fault_until = 0.0
        self.harmed = False
        self._misheard = False
        self._vanished: list[Vanished] = []
        self._session = Session()
        self._expiry_s = 0.0
        self._subscribed = False
        self._introduced = False
        self._acknowledged = False
        self._connections = 0
        self._tries = 0
        self._chance = Chance(around.seed, "life", group.name, self.index)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def watcher(self) -> Watcher | None:
        """What it is owed; None for a device that subscribes to nothing."""
        return self.client.watcher

    # Connecting

    async def connect(self, timeout_s: float) -> None:
        """Be up, with all subscriptions; ConnectionEnded says why not."""
        self.wanted = True
        if self.up or self.connecting:
            return
        self.connecting = True
        self._cancel("reconnect", "sleep", "drop")
        try:
            first = self._connections == 0
            persistent = self.group.session_expiry > 0
            if first and persistent and self.group.clean_start and self.client.version < spec.MQTT5:
                # Before MQTT 5 a session that begins clean also ends with its connection.
                await self._open(True, timeout_s)
                self._close_cleanly()
            await self._open(self._clean(first), timeout_s)
            await self._subscribe(timeout_s)
        except ConnectionEnded:
            if self.link is not None:
                self._broke(time.monotonic())
                self._let_go()
            raise
        finally:
            self.connecting = False
        if not self.wanted:  # somebody has changed their mind meanwhile
            self._close_cleanly()
            return
        self.up = True
        self._tries = 0
        for feed in self.feeds:
            self.around.switchboard.mark_ready(feed)
        self._live()

    def _clean(self, first: bool) -> bool:
        group = self.group
        if self.client.version < spec.MQTT5:
            return group.session_expiry == 0
        return group.clean_start if first else group.session_expiry == 0

    async def _open(self, clean: bool, timeout_s: float) -> None:
        around = self.around
        client = self.client
        client.reopen()
        if self._connections == 0 and not clean and not self.group.clean_start:
            self._session.doubt()  # who knows what an earlier run has left
        now = time.monotonic()
        kept = self._session.expected(clean, now) == PRESENT
        link = self.link = DeviceLink(around.switchboard, client, self.lost, self._after_data)
        for feed in self.feeds:
            feed.blocked = False
            around.switchboard.attach(feed, link)
        begun_ns = time.monotonic_ns()
        host, port = around.addresses[self.group.name]
        tls = around.tls[self.group.name]
        try:
            async with asyncio.timeout(timeout_s):
                transport, _ = await around.switchboard.loop.create_connection(
                    lambda: link, host, port, ssl=tls.context(self.names) if tls else None
                )
                if self.group.name in around.carried:
                    here = int(transport.get_extra_info("sockname")[1])
                    around.carried_links[port, here] = self, link
                if kept and self.watcher is not None:
                    self.watcher.back(True)
                client.connect(connect_packet(self, clean))
                self._introduced = True
                around.switchboard.mark_dirty(link)
                packet = await link.event()
        except TimeoutError:
            client.error = f"no CONNACK within {timeout_s:g} s"
            raise ConnectionEnded(f"{client.client_id}: {client.error}") from None
        except (OSError, UsageError) as error:
            client.error = str(error)
            raise ConnectionEnded(f"{client.client_id}: {error}") from None
        assert isinstance(packet, Connack)
        around.connect_times.record((time.monotonic_ns() - begun_ns) // 1000)
        self._connections += 1
        self._acknowledged = True
        self._came_up(packet, clean, kept)

    def _came_up(self, packet: Connack, clean: bool, kept: bool) -> None:
        now = time.monotonic()
        present = packet.session_present
        wrong = self._session.check(clean, present, now)
        if wrong:
            self.around.violation(wrong)
        self._expiry_s = float(self.group.session_expiry)
        if self.client.version < spec.MQTT5:
            self._expiry_s = 0.0 if clean else NEVER_EXPIRES
        elif packet.properties.session_expiry_interval is not None:
            self._expiry_s = float(packet.properties.session_expiry_interval)
        if not present or self._misheard:
            self._subscribed = False
        if not present and self._misheard:
            # The subscriptions that nobody knows are gone with their session.
            self._misheard = False
            if self.watcher is not None and self.watcher.harmed and not self.harmed:
                self.watcher.heal()
        if kept and self.watcher is not None:
            # Once more: what is owed to nobody who is away was sent until now.
            self.watcher.leave()
            self.watcher.back(True)
        elif self._subscribed and self.watcher is not None:
            # A session that need not have been there: what was sent meanwhile isn't owed.
            self.watcher.back(False)
        self._decide_wills(now, present)

    def topic(self, text: str, extra: Mapping[str, str | int] | None = None) -> str:
        """A topic or filter of this device, in the run's part of the topic space."""
        return self.around.prefix + self.names.render(Template(text), extra)

    # Subscribing

    async def _subscribe(self, timeout_s: float) -> None:
        if not self._subscribed:
            for at in range(0, len(self.subscriptions), FILTERS_A_PACKET):
                await self._ask_for(self.subscriptions[at : at + FILTERS_A_PACKET], timeout_s)
            self._subscribed = True
            if self.watcher is not None:
                self.watcher.back(False)

    async def _ask_for(self, part: list[Subscription], timeout_s: float) -> None:
        client = self.client
        assert self.link is not None
        for each in part:
            if each.wanted.retain_handling < 2:
                for owed in each.replays:
                    owed.ask()
                    if self.harmed:
                        owed.replay.waive()
        client.subscribe([each.wanted for each in part])
        self.around.switchboard.mark_dirty(self.link)
        try:
            async with asyncio.timeout(timeout_s):
                packet = await self.link.event()
        except TimeoutError:
            client.error = f"no SUBACK within {timeout_s:g} s"
            raise ConnectionEnded(f"{client.client_id}: {client.error}") from None
        assert isinstance(packet, Suback)
        for each, reason in zip(part, packet.reasons, strict=False):
            if reason >= 0x80:
                client.error = f"refused the subscription to {each.wanted.topic_filter}"
                raise ConnectionEnded(f"{client.client_id}: {client.error}")
            for track in each.tracks:
                track.qos = min(track.qos, reason)
            for owed in each.replays:
                owed.replay.subscribed()

    # Losing the connection

    def lost(self, link: Link) -> None:
        """The socket has closed, and not because the device wanted it to."""
        if link is not self.link:
            return
        was_up = self.up
        words = self.client.error
        self._broke(time.monotonic())
        self.link = None
        if was_up:
            self.around.report(self, "lost", words)
            self.come_back()

    def leave(self) -> None:
        """Disconnect in good manners, and stay away."""
        self.wanted = False
        self._cancel("reconnect", "sleep", "drop")
        if self.up:
            self._close_cleanly()

    def drop(self, mode: str, down_s: float | None = None) -> None:
        """Lose the connection: `reset` or `half_open`. Back after `down_s`, or as it is used to."""
        link = self.link
        if not self.up or link is None:
            return
        now = time.monotonic()
        half_open = mode == "half_open"
        noticed_s = 1.5 * self.client.keep_alive if half_open else 0.0
        if half_open and not self.client.keep_alive:
            noticed_s = NEVER_EXPIRES
        if self.harmed:
            self.wills.doubtful()  # a damaged packet may have been a DISCONNECT
        else:
            self._vanished.append(Vanished(self.wills.vanished(), now, noticed_s, half_open))
        self._connection_ended(now)
        self._decide_wills(now, None)
        if half_open:
            if self._expiry_s == 0:
                self._session.doubt()
            link.ghost = True
            if link.transport is not None and not link.transport.is_closing():
                link.transport.pause_reading()
            self.ghosts = [ghost for ghost in self.ghosts if not ghost.lost]
            self.ghosts.append(link)
            self.link = None
        else:
            self._let_go()
        self.come_back(down_s)

    def freeze(self, frozen: bool) -> None:
        """Hang, or go on."""
        if self.link is not None:
            self.link.freeze(frozen)

    def read_slowly(self, rate: int) -> None:
        """Read so many bytes a second, 0 for none; -1 as fast as they come."""
        link = self.link
        if link is not None:
            link.slow_rate = rate
            if rate < 0:
                link.read_on()

    def _broke(self, now: float) -> None:
        """It ended, and it can't be known what the broker makes of it."""
        if self._introduced:
            self.wills.doubtful()
        self._connection_ended(now)

    def _connection_ended(self, now: float) -> None:
        """Tell the books, however it came to pass."""
        harmed = self.harmed
        self._heal()
        self.up = False
        self._cancel("sleep", "drop")
        if self._acknowledged:
            self._session.ended(self._expiry_s, now)
        elif self._introduced and self._session.expected(False, now) != PRESENT:
            self._session.doubt()  # a session may have begun, or not
        if harmed:
            self._session.doubt()  # damaged bytes may have been anything, also its end
        self._introduced = self._acknowledged = False
        if self.watcher is not None:
            self.watcher.leave()
        self.client.state = CLOSED
        for feed in self.feeds:
            feed.interrupted()

    def harm(self, link: DeviceLink) -> None:
        """The scenario has damaged bytes of a connection: what became of them can't be known."""
        self.around.switchboard.ledger.harmed = True
        if link is not self.link:
            # What was under way when it ended; what was sent since then went another way.
            for sender in self.client.senders:
                sender.harm()
                sender.heal()
            return
        if not self.up:
            self._misheard = True
        if self.harmed:
            return
        self.harmed = self.client.harmed = True
        for sender in self.client.senders:
            sender.harm()
        if self.watcher is not None and not self.watcher.harmed:
            self.watcher.harm()

    def _heal(self) -> None:
        if not self.harmed:
            return
        self.harmed = False
        for sender in self.client.senders:
            sender.heal()
        if self.watcher is not None and not self._misheard:
            self.watcher.heal()

    def _let_go(self) -> None:
        link = self.link
        self.link = None
        if link is not None:
            link.leaving = True
            link.ghost = True
            if link.transport is not None:
                reset(link.transport)

    def _close_cleanly(self) -> None:
        link = self.link
        if link is None:
            return
        if self.harmed:
            self.wills.doubtful()
        else:
            self.wills.left()
        link.leaving = True
        self.client.disconnect()
        link.flush(time.monotonic_ns())
        self._connection_ended(time.monotonic())
        link.ghost = True
        self.link = None
        if link.transport is not None:
            link.transport.close()

    # What happens by itself

    def come_back(self, after_s: float | None = None) -> None:
        """Connect again after a while, as often as it takes."""
        policy = self.group.reconnect
        if not self.wanted or policy is None:
            return
        if after_s is None:
            after_s = min(policy.first * 2.0 ** min(self._tries, 30), policy.most)
            after_s *= 1.0 + policy.jitter * self._chance.random()
            self._tries += 1
        self._later("reconnect", after_s, self._try_again)

    def hurry(self) -> None:
        """Whoever sleeps or waits tries at once, or waits for an answer to damaged bytes."""
        if self.connecting and self.harmed and self.link is not None:
            if self.link.transport is not None:
                self.link.transport.abort()
        elif self.wanted and not self.up and not self.connecting:
            self._try_again()

    def _try_again(self) -> None:
        self._cancel("reconnect", "sleep")
        task = self.around.switchboard.loop.create_task(self._reconnect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconnect(self) -> None:
        async with self.around.gate:
            if not self.wanted:
                return
            try:
                await self.connect(self.around.connect_timeout_s)
            except ConnectionEnded as ended:
                self.around.report(self, "failed", str(ended))
                self.come_back()

    def _live(self) -> None:
        """Start the timers of a device that is up."""
        if not self.around.restless:
            return
        flaky, sleep = self.group.flaky, self.group.sleep
        if flaky is not None:
            up_s = self._chance.exponential(flaky.up)
            self._later("drop", up_s, self._drop_by_chance)
        if sleep is not None:
            # Devices that were switched on together don't fall asleep together.
            share = self._chance.random() if self._connections == 1 else 1.0
            self._later("sleep", sleep.awake * share, self._fall_asleep)

    def _drop_by_chance(self) -> None:
        flaky = self.group.flaky
        if flaky is not None and self.around.restless:
            self.drop(flaky.mode, self._chance.exponential(flaky.down))

    def _fall_asleep(self) -> None:
        sleep = self.group.sleep
        if sleep is not None and self.around.restless:
            self._cancel("drop")
            self._close_cleanly()
            self._later("reconnect", sleep.asleep, self._try_again)

    def _later(self, what: str, after_s: float, call: Callable[[], None]) -> None:
        self._cancel(what)
        self._timers[what] = self.around.switchboard.loop.call_later(after_s, call)

    def _cancel(self, *names: str) -> None:
        for name in names:
            timer = self._timers.pop(name, None)
            if timer is not None:
                timer.cancel()

    def _after_data(self) -> None:
        """Answer what came, and let an acknowledgement to one feed make room for the others."""
        if self.client.inbox and self.answer is not None:
            self.answer(self)
        if len(self.feeds) > 1:
            for feed in self.feeds:
                if feed.starved:
                    feed.starved = False
                    self.around.switchboard.mark_ready(feed)

    # The end

    def _decide_wills(self, now: float, resumed: bool | None) -> None:
        """Whether wills are due, by what came after: a connection that resumed the session or not.

        None: nothing came after, so far.
        """
        will = self.group.will
        waiting: list[Vanished] = []
        for each in self._vanished:
            delay_s = min(float(will.delay) if will is not None else 0.0, self._expiry_s)
            overdue = now - each.at > each.noticed_s + delay_s + WILL_GRACE_S
            at_once = delay_s == 0 and (not each.half_open or resumed is not None)
            # Without the session, the will comes with its end.
            if overdue or at_once or resumed is False:
                self.wills.decide(each.number, True)
            elif resumed:
                self.wills.decide(each.number, False)
            else:
                waiting.append(each)
        self._vanished = waiting

    def broker_died(self) -> None:
        """Nobody will notice any more that this device has vanished."""
        for each in self._vanished:
            self.wills.decide(each.number, False)
        self._vanished = []

    def close_books(self, now: float, abandoned: bool) -> None:
        """The run is over: what is still open will stay so."""
        self._cancel("reconnect", "sleep", "drop")
        self._decide_wills(now, None)
        for each in self._vanished:
            self.wills.decide(each.number, False)
        for lane, sender in enumerate(self.client.senders):
            answering = self.up and not self.harmed and not abandoned
            sender.close(self.client.unanswered(lane), answering)
        if self.watcher is not None and abandoned:
            self.watcher.cut = True

    def part(self) -> list[Link]:
        """Say goodbye, and close ghosts without a word; the links that are closing now."""
        for task in list(self._tasks):
            task.cancel()
        self._cancel("reconnect", "sleep", "drop")
        self.wanted = False
        for ghost in self.ghosts:
            if ghost.transport is not None:
                ghost.transport.abort()
        link = self.link
        if self.up:
            self._close_cleanly()
        elif link is not None:
            self._let_go()
        return [link] if link is not None else []
