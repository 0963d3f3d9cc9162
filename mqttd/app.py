"""The composition root: a configuration becomes a running broker, and ends as one.

Owns: the order in which the parts start (HTTP, store, core, flow, plugins, listeners, control
socket) and stop (listeners, control socket, clients, plugins, store, HTTP); signals; what the
operator reads on standard output; the settings of the process itself (file descriptors, garbage
collection), which only `run` touches, never an embedding.

Must not know: packets, SQL, sockets' options. It knows every other part, and no part knows it.

Invariants: nobody can connect before what was kept is loaded; a start that fails leaves nothing
behind; after `stop` there is no task, no timer, no socket of ours, and it takes every step even if
one fails; `stop` may be called at any time, twice, and `start` again after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import sys
from functools import partial
from typing import Final

import mqttd
from mqttd import log
from mqttd.config import Config, ControlConfig, StorageConfig
from mqttd.core import counters as count
from mqttd.core.broker import Broker
from mqttd.core.watch import Watcher
from mqttd.hooks.loader import prepare
from mqttd.hooks.manager import HookManager, PluginError
from mqttd.metrics import Buckets, HookFacts, PluginFacts
from mqttd.monitor import Monitor, facts_of
from mqttd.net.flow import Flow
from mqttd.net.lines import LineServer
from mqttd.net.listener import Listener, ListenError
from mqttd.operate.answers import Operator
from mqttd.operate.audit import Audit
from mqttd.operate.reload import Reloader, Report, certificates_of
from mqttd.store.base import Store, StoreError
from mqttd.store.committer import Committer
from mqttd.store.memory import MemoryStore
from mqttd.store.sqlite import SqliteStore
from mqttd.sysinfo import announce
from mqttd.wiring import certificate_of, endpoint_of, place_of

logger: Final = logging.getLogger("mqttd")

DRAIN_GRACE: Final = 5.0
"""Seconds that clients get on shutdown to take what is left for them, and to close."""

# The store's thread asks for the interpreter between any two statements, and a busy loop keeps it
# for so long: at 5 ms, which is usual, a commit would wait longer for that than for the disk.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SWITCH_INTERVAL: Final = 0.0005


class App:
    """One broker with its listeners and its store, on the running loop."""

    def __init__(self, config: Config, store: Store | None = None) -> None:
        """ConfigError where a plugin isn't there, or its configuration is wrong."""
        self.config = config
        self.prepared = prepare(config)
        self.store = store_of(config.storage) if store is None else store
        self.listeners: list[Listener] = []
        self.monitor: Monitor | None = None
        self.hooks: HookManager | None = None
        self.control: LineServer | None = None
        # A broker inside another process has one only where it is asked for.
        self._control_at = None if config.control is None else config.control_socket()
        self._owns_process = False
        self._audit = Audit()
        self._reloader: Reloader | None = None
        self._reloading: asyncio.Task[Report] | None = None
        self._flow: Flow | None = None
        self._committer: Committer | None = None
        self._stopping: asyncio.Event | None = None
        self._started = False  # or at least begun to
        self.failed = False  # the store broke: no promise can be kept

    @property
    def broker(self) -> Broker:
        """The core, while it runs."""
        if self._flow is None:
            raise RuntimeError("the broker isn't running")
        return self._flow.broker

    async def start(self) -> None:
        """Load, then listen. StoreError, PluginError or ListenError where that isn't possible."""
        self._started = True
        self.failed = False
        try:
            await self._start()
        except BaseException:
            await self.stop(0.0)
            raise

    async def _start(self) -> None:
        store = self.store
        monitor = self.monitor = self._make_monitor()
        await monitor.open()
        if not self._started:
            await monitor.close()
            raise StoreError("stopped before anything was loaded")
        broker = Broker(self.config.to_settings(), store.durable)
        # Nobody else may guess the client id that the broker assigns.
        broker.new_client_id = _random_client_id
        broker.hooks_to_come = bool(self.prepared)
        await store.load(broker)
        if not self._started:
            raise StoreError("stopped before everything was loaded")
        self._announce(broker)
        commit = self._kick if store.durable else None
        flow = Flow(broker, asyncio.get_running_loop(), self._audit.events, commit)
        self._flow = flow
        if store.durable:
            self._committer = Committer(store, broker, flow.schedule, self._fail)
            self._committer.start()
        flow.start()
        await self._start_plugins(broker, flow)
        monitor.watch(flow)
        monitor.plugins = self._plugin_facts
        monitor.commits = self._commit_facts
        for listener_config in self.config.listeners:
            listener = Listener(flow, endpoint_of(listener_config, self._authenticated))
            self.listeners.append(listener)
            await listener.start()
            if not self._started:
                await listener.stop()
                raise StoreError("stopped before everything was listening")
        monitor.facts.certificates = certificates_of(self.listeners)
        # Whoever can ask for a reload finds all there is to reload.
        self._reloader = Reloader(
            self.config,
            self.prepared,
            flow,
            self.listeners,
            monitor,
            self.hooks,
            self._owns_process,
        )
        await self._start_control(broker, flow)
        monitor.ready()

    async def _start_plugins(self, broker: Broker, flow: Flow) -> None:
        control = self.config.control or ControlConfig()
        if control.record and self._control_at is not None:
            broker.context.watcher = Watcher(control.record)
        if not self.prepared:
            return
        hooks = HookManager(broker, self.prepared, flow.schedule, certificate_of)
        self.hooks = hooks
        flow.after = partial(self._after_flush, broker, hooks)
        await hooks.start()
        if not self._started:
            raise StoreError("stopped before every plugin was started")
        broker.hooks_to_come = False
        context = broker.context
        if broker.hooks.publish is not None or broker.hooks.subscribe is not None:
            if context.watcher is None:
                context.watcher = Watcher(0)
            self._audit.watch(context.watcher)

    def _after_flush(self, broker: Broker, hooks: HookManager) -> None:
        watcher = broker.context.watcher
        if watcher is not None and watcher.pending:
            self._audit.denials(watcher)
        hooks.tick()

    async def _start_control(self, broker: Broker, flow: Flow) -> None:
        """Answer the operator. A socket that nobody has named may be missing."""
        if self._control_at is None:
            return
        operator = Operator(broker, self.hooks, flow.schedule, self._reload_told)
        control = LineServer(self._control_at, operator.answer)
        try:
            await control.start()
        except ListenError as error:
            if self.config.control is not None and self.config.control.path is not None:
                raise
            log.event(logger, "no_control", level=logging.WARNING, reason=str(error))
            return
        if not self._started:
            await control.stop()
            raise StoreError("stopped before the operator could ask")
        self.control = control

    def _plugin_facts(self) -> list[PluginFacts]:
        """What plugins have cost and counted, for the metrics."""
        hooks = self.hooks
        if hooks is None:
            return []
        lost = {one.guard.name: one.lost for one in hooks.observers}
        failed = {one.guard.name: one.failed for one in hooks.observers}
        return [
            PluginFacts(
                guard.name,
                {
                    hook: HookFacts(one.calls, one.failures, one.seconds, one.longest_s)
                    for hook, one in guard.stats.items()
                },
                guard.resting,
                lost.get(guard.name),
                hooks.services[guard.name].counts,
                hooks.services[guard.name].gauges,
                guard.figures(),
                failed.get(guard.name, 0),
            )
            for guard in hooks.guards
        ]

    def _commit_facts(self) -> tuple[Buckets | None, int]:
        """How long commits took, and how much was in them."""
        if self._committer is None:
            return None, 0
        durations = self._committer.durations
        took = Buckets(count.BOUNDS, durations.counts, durations.seconds)
        return took, self._committer.operations

    @property
    def _authenticated(self) -> bool:
        """Plugins have a say in who may connect."""
        return any(one.authenticates for one in self.prepared)

    def warnings(self) -> list[str]:
        """What the configuration allows but hardly means."""
        return self.config.warnings(self._authenticated)

    @property
    def _durability(self) -> str:
        return self.config.storage.durability if self.store.durable else "none"

    def _make_monitor(self) -> Monitor:
        config = self.config
        names = [listener.name for listener in config.listeners]
        facts = facts_of(mqttd.__version__, self._durability, names, mqttd.COMPILED)
        return Monitor(config.sys_interval, place_of(config.metrics), facts)

    def _announce(self, broker: Broker) -> None:
        """Retained, and never stored: what this broker is, for whoever asks under $SYS."""
        announce(broker, "version", f"mqttd {mqttd.__version__}", 0.0)
        announce(broker, "durability", self._durability, 0.0)

    async def stop(self, grace: float = DRAIN_GRACE) -> None:
        """Stop accepting, say goodbye to every client, settle, close."""
        if not self._started:
            return
        self._started = False
        if self._reloading is not None:  # half of a reload would leave sockets behind
            await asyncio.wait((self._reloading,), timeout=DRAIN_GRACE)
            self._reloading.cancel()
            self._reloading = None
        flow, self._flow = self._flow, None
        listeners, self.listeners = self.listeners, []
        monitor, self.monitor = self.monitor, None
        hooks, self.hooks = self.hooks, None
        control, self.control = self.control, None
        self._reloader = None
        # Each step is taken whatever became of the others; the last one stands first here.
        async with contextlib.AsyncExitStack() as steps:
            if monitor is not None:
                monitor.end()
                steps.push_async_callback(monitor.close)
            steps.push_async_callback(self.store.close)
            steps.push_async_callback(self._settle)
            if flow is not None:
                steps.callback(flow.stop)
                if hooks is not None:
                    steps.push_async_callback(hooks.stop)
                steps.push_async_callback(flow.drain, grace)
            if control is not None:
                steps.push_async_callback(control.stop)
            for listener in reversed(listeners):
                steps.push_async_callback(listener.stop)

    async def _settle(self) -> None:
        # Until here it was needed: what clients ask for last is committed while they are drained.
        committer, self._committer = self._committer, None
        if committer is not None:
            await committer.stop()

    async def run(self) -> int:
        """Serve until a signal says otherwise; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._owns_process = True
        self._control_at = self.config.control_socket()
        _raise_file_limit()
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        try:
            gc.disable()  # of what is loaded, which may be millions of objects, nothing is garbage
            try:
                await self.start()
            except (ListenError, PluginError, StoreError) as error:
                print(f"mqttd: {error}", file=sys.stderr)
                return 1
            finally:
                gc.enable()
            _tune_garbage_collection()
            if self.store.durable:
                sys.setswitchinterval(_SWITCH_INTERVAL)
            for listener in self.listeners:
                for url in listener.urls:
                    print(f"listening {listener.endpoint.name} {url}")
            if self.monitor is not None and self.monitor.http is not None:
                for url in self.monitor.http.urls:
                    print(f"listening metrics {url}")
            print("ready", flush=True)
            await self._stopping.wait()
            log.event(logger, "stopping")
            await self.stop()
            log.event(logger, "stopped")
        finally:
            for number, handler in handlers.items():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        return 1 if self.failed else 0

    def _kick(self) -> None:
        if self._committer is not None:
            self._committer.kick()

    def _fail(self) -> None:
        """The store is broken: no promise can be kept from here on."""
        self.failed = True
        if self._stopping is not None:
            self._stopping.set()

    def _reload_soon(self) -> asyncio.Task[Report]:
        """SIGHUP. The log says what became of it."""
        self._reloading = asyncio.get_running_loop().create_task(self.reload())
        return self._reloading

    async def reload(self) -> Report:
        """Read the configuration again and apply what can change live, see `operate.reload`."""
        reloader = self._reloader
        if reloader is None:
            return Report(problems=["the broker isn't running"])
        report = await reloader.reload()
        self.config, self.prepared = reloader.config, reloader.prepared
        return report

    async def _reload_told(self) -> dict[str, object]:
        # Who asked may go meanwhile; what was begun is finished.
        return (await asyncio.shield(self._reload_soon())).told()


def store_of(storage: StorageConfig) -> Store:
    """Where the configuration wants state to be kept."""
    if storage.path == ":memory:":
        return MemoryStore()
    return SqliteStore(storage.path, storage.durability)


def _random_client_id() -> str:
    # [MQTT-3.2.2-16] 80 random bits: neither in use nor to be met in a stored session.
    return "auto-" + secrets.token_hex(10)


def _raise_file_limit() -> None:
    """One descriptor a client: take what the system allows without asking for more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tune_garbage_collection() -> None:
    """Keep the collector from walking over all sessions and messages again and again.

    Nearly everything here dies by its reference count; a test holds that a connection that ended
    leaves no cycle. What the collector is for, the odd cycle of an exception, is young. A full
    collection of a million retained messages would stop the broker for most of a second, so the
    oldest generation is never collected by itself, and what start-up made is not even looked at.
    """
    gc.freeze()  # without a collection, which would take seconds after a large start
    gc.set_threshold(100_000, 20, 1_000_000)
