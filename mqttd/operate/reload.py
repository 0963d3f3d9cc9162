"""A new configuration for a broker that runs: checked as a whole first, then put in place.

Owns: the order of a reload, what of a configuration can change live, and the report on it.

1. The file is read, the plugins are found, their configurations and files are checked, and so are
   certificates. A problem ends it here, and nothing has changed: also where the file can't be read
   at all, since a broker without rules is the last thing that an operator wants (CVE-2017-7652).
2. What can fail is done where it can be taken back: new listeners are bound beside the old ones.
3. The old listeners go, limits, plugins, `$SYS` and the log get their new values.

Must not know: signals, the control socket, how the report is printed.

Invariants: there is one reload at a time; whoever is connected stays, but for the clients of a
listener that is no longer in the configuration: they are told so and closed; a plugin that can't
take its new configuration keeps its old one and is named; what needs a restart is named and keeps
its old value, also for the next reload.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from mqttd import log
from mqttd.config import Config, ConfigError, LimitsConfig, PluginEntry, load_config
from mqttd.core import spec
from mqttd.core.connection import Connection
from mqttd.hooks import checking
from mqttd.hooks.loader import Prepared, prepare
from mqttd.hooks.manager import HookManager
from mqttd.monitor import Monitor
from mqttd.net.flow import Flow
from mqttd.net.http import HttpServer
from mqttd.net.listener import Endpoint, Listener, ListenError
from mqttd.net.tls import expires_at
from mqttd.operate.audit import audit
from mqttd.wiring import endpoint_of, place_of

_SLICE: Final = 100  # connections closed before others get their turn


@dataclass(slots=True)
class Report:
    """What a reload has done. With `problems` nothing has changed."""

    changed: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)  # named in the file, but not applied
    failed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems and not self.failed

    def told(self) -> dict[str, object]:
        """As plain values."""
        return {
            "good": self.good,
            "changed": self.changed,
            "restart": self.restart,
            "failed": self.failed,
            "problems": self.problems,
        }


@dataclass(slots=True)
class _Plan:
    """What a reload is about to do with the sockets."""

    contexts: dict[str, ssl.SSLContext | None] = field(default_factory=dict)  # of those that stay
    gone: list[Listener] = field(default_factory=list)
    fresh: list[Endpoint] = field(default_factory=list)
    started: list[Listener] = field(default_factory=list)
    http: HttpServer | None = None


class Reloader:
    """Changes one running broker; `config` and `prepared` are what is in force."""

    def __init__(
        self,
        config: Config,
        prepared: list[Prepared],
        flow: Flow,
        listeners: list[Listener],
        monitor: Monitor,
        hooks: HookManager | None,
        owns_log: bool,
    ) -> None:
        """`listeners` is changed in place; `owns_log`: the log of the process is the broker's."""
        self.config = config
        self.prepared = prepared
        self._flow = flow
        self._listeners = listeners
        self._monitor = monitor
        self._hooks = hooks
        self._owns_log = owns_log
        self._turn = asyncio.Lock()

    async def reload(self) -> Report:
        """Read the file again and apply it; without a file, the files that it would name."""
        async with self._turn:
            report = Report()
            try:
                await self._reload(report)
            except ConfigError as error:
                report.problems = [str(problem) for problem in error.problems]
            except ListenError as error:
                report.problems = [str(error)]
            _tell(report)
            return report

    async def _reload(self, report: Report) -> None:
        old = self.config
        new = load_config(old.file) if old.file else old
        prepared = prepare(new)
        problems = await checking.check(new, prepared)
        if problems:
            raise ConfigError(problems)
        plan = self._plan(new)
        await self._bind(plan, new)
        # From here on nothing is refused any more.
        await self._swap(plan, report)
        self._limits(new, report)
        for listener in self._listeners:
            if listener.endpoint.name in plan.contexts:
                listener.renew(plan.contexts[listener.endpoint.name])
        await self._figures(plan, new, report)
        entries = await self._plugins(new, prepared, report)
        if new.storage != old.storage:
            report.restart.append("storage")
        if new.control != old.control:
            report.restart.append("control")
        kept = {"storage": old.storage, "control": old.control, "plugins": entries}
        self.config = new.model_copy(update=kept)

    # Sockets.

    def _plan(self, new: Config) -> _Plan:
        authenticated = any(one.authenticates for one in self.prepared)
        wanted = [endpoint_of(one, authenticated) for one in new.listeners]
        plan = _Plan()
        for listener in self._listeners:
            if listener.endpoint in wanted:
                plan.contexts[listener.endpoint.name] = listener.fresh_context()
            else:
                plan.gone.append(listener)
        for endpoint in wanted:
            if endpoint.name not in plan.contexts:
                Listener(self._flow, endpoint).fresh_context()
                plan.fresh.append(endpoint)
        return plan

    async def _bind(self, plan: _Plan, new: Config) -> None:
        """Listen wherever nobody of ours does yet. ListenError, and then nowhere new."""
        taken = {_address(listener.endpoint) for listener in plan.gone}
        try:
            for endpoint in plan.fresh:
                if _address(endpoint) not in taken:
                    await self._start(plan, endpoint)
            if new.metrics != self.config.metrics:
                plan.http = await self._monitor.serve_at(place_of(new.metrics))
        except ListenError:
            for listener in plan.started:
                await listener.stop()
            raise

    async def _start(self, plan: _Plan, endpoint: Endpoint) -> None:
        listener = Listener(self._flow, endpoint)
        await listener.start()
        plan.started.append(listener)

    async def _swap(self, plan: _Plan, report: Report) -> None:
        """Stop the listeners that go, and start those that wait for their addresses."""
        before = {listener.endpoint.name: listener.endpoint for listener in plan.gone}
        for listener in plan.gone:
            await listener.stop()
            self._listeners.remove(listener)
        started = [listener.endpoint for listener in plan.started]
        for endpoint in plan.fresh:
            if endpoint in started:
                continue
            try:
                await self._start(plan, endpoint)
            except ListenError as error:
                report.failed.append(str(error))
                await self._put_back(plan, before.get(endpoint.name), report)
        self._listeners += plan.started
        names = {endpoint.name for endpoint in plan.fresh}
        for listener in plan.started:
            name = listener.endpoint.name
            kind = "rebound" if name in before else "added"
            report.changed.append(f"listener {name}: {kind}, {' '.join(listener.urls)}")
        removed = before.keys() - names
        report.changed += [f"listener {name}: removed" for name in sorted(removed)]
        await self._close_clients(removed)
        self._monitor.facts.listeners = [one.endpoint.name for one in self._listeners]

    async def _put_back(self, plan: _Plan, old: Endpoint | None, report: Report) -> None:
        if old is None:
            return
        try:
            await self._start(plan, old)
        except ListenError as error:
            report.failed.append(f"the old one neither: {error}")

    async def _close_clients(self, names: set[str]) -> None:
        """Whoever came through a listener that is gone for good has to go, too."""
        if not names:
            return
        closed = 0
        for connection in list(self._flow.broker.connections):
            assert isinstance(connection, Connection)
            if connection.listener.name not in names:
                continue
            now = monotonic()
            connection.close(spec.ADMINISTRATIVE_ACTION, "the listener was removed", now)
            closed += 1
            if closed % _SLICE == 0:
                self._flow.schedule()
                await asyncio.sleep(0)
        self._flow.schedule()

    # Everything else.

    def _limits(self, new: Config, report: Report) -> None:
        broker = self._flow.broker
        settings = broker.settings
        for name in LimitsConfig.model_fields:
            value = getattr(new.limits, name)
            if getattr(settings, name) != value:
                setattr(settings, name, value)
                report.changed.append(f"limits.{name}: {value}")
        if settings.response_information != new.response_information:
            settings.response_information = new.response_information
            report.changed.append("response_information")
        broker.trie.max_levels = settings.max_topic_levels
        if self._hooks is not None:
            self._hooks.chains.max_topic_levels = settings.max_topic_levels

    async def _figures(self, plan: _Plan, new: Config, report: Report) -> None:
        old = self.config
        if new.metrics != old.metrics:
            await self._monitor.move_to(place_of(new.metrics), plan.http)
            report.changed.append("metrics")
        if new.sys_interval != old.sys_interval:
            self._monitor.retime(new.sys_interval)
            report.changed.append(f"sys_interval: {new.sys_interval:g} s")
        if new.logging != old.logging:
            if self._owns_log:
                log.setup(new.logging.level, new.logging.format)
                report.changed.append(f"logging: {new.logging.level}, {new.logging.format}")
            else:
                report.restart.append("logging: it belongs to the process around the broker")
        before = self._monitor.facts.certificates
        self._monitor.facts.certificates = after = certificates_of(self._listeners)
        for name in sorted(after):
            if after[name] != before.get(name):
                report.changed.append(f"certificate of listener {name}")

    async def _plugins(
        self, new: Config, prepared: list[Prepared], report: Report
    ) -> list[PluginEntry]:
        """Reload those that stay; returns the entries that are in force."""
        running = {one.name: one for one in self.prepared}
        if [(one.name, one.entry.use) for one in prepared] != [
            (one.name, one.entry.use) for one in self.prepared
        ]:
            report.restart.append("plugins: added, removed, or in another order")
        same = [
            one
            for one in prepared
            if one.name in running and running[one.name].entry.use == one.entry.use
        ]
        failed = {} if self._hooks is None else await self._hooks.reload(same)
        for name, why in failed.items():
            report.failed.append(f"plugin {name} keeps what it had: {why}")
        for one in same:
            if one.name in failed:
                continue
            if one.entry != running[one.name].entry:
                report.changed.append(f"plugin {one.name}: its configuration")
            running[one.name] = one
        self.prepared = [running[one.name] for one in self.prepared]
        return [one.entry for one in self.prepared]


def certificates_of(listeners: list[Listener]) -> dict[str, float]:
    """When the certificate of each listener with TLS is over, in seconds since 1970."""
    found: dict[str, float] = {}
    for listener in listeners:
        tls = listener.endpoint.tls
        if tls is None:
            continue
        try:
            found[listener.endpoint.name] = expires_at(tls.cert)
        except (OSError, ValueError) as error:
            log.event(
                logging.getLogger("mqttd"),
                "certificate",
                level=logging.WARNING,
                listener=listener.endpoint.name,
                reason=f"its end can't be read: {error}",
            )
    return found


def _address(endpoint: Endpoint) -> tuple[Any, ...]:
    """What two listeners may not be able to share; each free port is another one."""
    if endpoint.unix_path:
        return (endpoint.unix_path,)
    return ("port", endpoint.port) if endpoint.port else ("any", endpoint.name)


def _tell(report: Report) -> None:
    found = [("reload_refused", logging.ERROR, problem) for problem in report.problems]
    found += [("reload_failed", logging.ERROR, failure) for failure in report.failed]
    found += [("reload_needs_restart", logging.WARNING, name) for name in report.restart]
    found += [("reload_changed", logging.INFO, change) for change in report.changed]
    if report.good:
        found.append(("reload", logging.INFO, f"{len(report.changed)} changes"))
    log.events(audit, [(kind, level, {"what": what}) for kind, level, what in found])
