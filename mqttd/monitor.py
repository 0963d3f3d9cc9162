"""What can be seen of a running broker from outside: `$SYS` on a timer, and three pages over HTTP.

Owns: when the figures are gathered and in what portions; whether the broker is ready, and why not;
the figures of the process. `/metrics` is for Prometheus, `/healthz` says that the loop turns,
`/readyz` whether clients are served and their messages taken.

Must not know: how the figures are called (`sysinfo`, `metrics`), how HTTP is spoken (`net.http`),
the configuration tree.

Invariants: HTTP answers from before the store is loaded until after it is closed; the loop is never
kept for longer than one step of a census, one portion of announcements or one rendered page; a bug
in here is logged and costs nobody a message; after `close` there is no timer, task or socket left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import resource
import time
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from mqttd import metrics
from mqttd.census import Census
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.net.flow import Flow
from mqttd.net.http import HttpServer, Response
from mqttd.net.sockets import Place
from mqttd.sysinfo import SysTree, announce

logger: Final = logging.getLogger("mqttd")

STARTING: Final = "starting"
STOPPING: Final = "stopping"

_PORTION: Final = 2000  # receivers of announcements in one turn of the loop
_FRESH: Final = 1.0  # seconds for which a census serves those who ask over HTTP
_BEAT: Final = 1.0
_BEATS: Final = 15


class Monitor:
    """Watches one broker. `sys_interval` 0: no `$SYS`; `place` None: no HTTP."""

    def __init__(self, sys_interval: float, place: Place | None, facts: metrics.Facts) -> None:
        self.http: HttpServer | None = None
        self.state = STARTING  # empty while it is ready
        self._sys_interval = sys_interval
        self._place = place
        self.facts = facts
        self.plugins: Callable[[], list[metrics.PluginFacts]] = list
        self.commits: Callable[[], tuple[metrics.Buckets | None, int]] = lambda: (None, 0)
        self._flow: Flow | None = None
        self._tree: SysTree | None = None
        self._news: list[tuple[str, str]] = []  # still to be announced
        self._timers: dict[str, asyncio.Handle] = {}
        self._lags: deque[float] = deque(maxlen=_BEATS)
        self._census: Census | None = None
        self._census_at = 0.0
        self._counting = asyncio.Lock()

    async def open(self) -> None:
        """Answer over HTTP, if that is wanted. ListenError."""
        if self._place is None:
            return
        self.http = HttpServer("metrics", self._place, self._respond)
        await self.http.start()

    def watch(self, flow: Flow) -> None:
        """The broker is loaded: its figures are good from here on. Nobody is connected yet."""
        self._flow = flow
        self.facts.started_at = time.time()
        if self._sys_interval:
            now = monotonic()
            self._tree = SysTree(flow.broker, now)
            census = Census(flow.broker)
            while not census.step():
                pass
            for name, value in self._tree.changed(census, _memory(), now):
                announce(flow.broker, name, value, now)
            self._later("sys", self._sys_interval, self._tick)
        self._begin_beat()

    def retime(self, sys_interval: float) -> None:
        """Publish what changes below $SYS as often as this from now on."""
        self._sys_interval = sys_interval
        timer = self._timers.pop("sys", None)
        if timer is not None:
            timer.cancel()
        if sys_interval and self._flow is not None:
            if self._tree is None:
                self._tree = SysTree(self._flow.broker, monotonic())
            self._later("sys", sys_interval, self._tick)

    async def serve_at(self, place: Place | None) -> HttpServer | None:
        """Answer over HTTP at another place too, for `move_to`. ListenError."""
        if place is None:
            return None
        server = HttpServer("metrics", place, self._respond)
        await server.start()
        return server

    async def move_to(self, place: Place | None, server: HttpServer | None) -> None:
        """Answer there alone from now on."""
        old, self.http = self.http, server
        self._place = place
        if old is not None:
            await old.stop()
        self._begin_beat()

    def _begin_beat(self) -> None:
        if self.http is not None and "beat" not in self._timers:
            self._later("beat", _BEAT, self._beat, monotonic() + _BEAT)

    def ready(self) -> None:
        """Clients are served."""
        self.state = ""

    def end(self) -> None:
        """The broker is stopping: what is told from here on is that."""
        self.state = STOPPING
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        self._flow = None
        self._census = None

    async def close(self) -> None:
        self.end()
        http, self.http = self.http, None
        if http is not None:
            await http.stop()

    def _later(self, name: str, delay: float, call: object, *arguments: object) -> None:
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(delay, call, *arguments)  # type: ignore[arg-type]

    # $SYS: a census in steps, then its news in portions, each on a turn of the loop.

    def _tick(self) -> None:
        self._later("sys", self._sys_interval, self._tick)
        if "step" not in self._timers and self._flow is not None:
            self._later("step", 0.0, self._step, Census(self._flow.broker))

    def _step(self, census: Census) -> None:
        del self._timers["step"]
        flow, tree = self._flow, self._tree
        if flow is None or tree is None:
            return
        try:
            now = monotonic()
            if not self._news:
                if not census.step():
                    self._later("step", 0.0, self._step, census)
                    return
                self._news = tree.changed(census, _memory(), now)
            self._announce(flow.broker, now)
        except Exception:
            logger.exception("bug: $SYS can't be told")
            self._news = []
            tree.forget()
        flow.schedule()
        if self._news:
            self._later("step", 0.0, self._step, census)

    def _announce(self, broker: Broker, now: float) -> None:
        budget = _PORTION
        told = 0
        for name, value in self._news:
            if budget <= 0:
                break
            told += 1
            budget -= 1 + announce(broker, name, value, now)
        del self._news[:told]

    # HTTP.

    async def _respond(self, path: str) -> Response | None:
        if path == "/healthz":
            return Response(200, b"ok\n")
        if path == "/readyz":
            reason = self._unready()
            return Response(503 if reason else 200, f"{reason or 'ready'}\n".encode())
        if path != "/metrics":
            return None
        flow = self._flow
        if flow is None:
            return Response(503, f"{self.state}\n".encode())
        census = await self._counted(flow.broker)
        facts = self.facts
        facts.lag = max(self._lags, default=0.0)
        facts.cpu_s = time.process_time()
        facts.resident = _memory()[0]
        facts.max_fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        facts.plugins = self.plugins()
        facts.commits, facts.operations = self.commits()
        found = metrics.samples(flow.broker, census, facts)
        page = metrics.render(found, metrics.of_plugins(facts.plugins))
        return Response(200, page, metrics.CONTENT_TYPE)

    def _unready(self) -> str:
        flow = self._flow
        if self.state or flow is None:
            return self.state
        refusing = flow.broker.journal.refusing
        if refusing == spec.QUOTA_EXCEEDED:
            return "the disk is full: what would have to be stored is refused"
        return "the store is broken: nothing is acknowledged" if refusing else ""

    async def _counted(self, broker: Broker) -> Census:
        """A census not older than a second, however many ask."""
        async with self._counting:
            found = self._census
            if found is None or monotonic() - self._census_at >= _FRESH:
                found = Census(broker)
                while not found.step():
                    await asyncio.sleep(0)
                self._census = found
                self._census_at = monotonic()
        return found

    def _beat(self, due: float) -> None:
        now = monotonic()
        self._lags.append(max(0.0, now - due))
        self._later("beat", _BEAT, self._beat, now + _BEAT)


def facts_of(version: str, durability: str, listeners: list[str], compiled: bool) -> metrics.Facts:
    """What stays the same as long as the broker runs; to be called on its loop."""
    return metrics.Facts(
        version=version,
        python=platform.python_version(),
        build="compiled" if compiled else "pure",
        loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
        durability=durability,
        listeners=listeners,
    )


def _memory() -> tuple[int, int]:
    """Bytes of memory now and at their most; 0 where the system doesn't say."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            pages = int(statm.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0, 0
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return resident, max(most, resident)
