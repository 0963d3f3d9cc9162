"""`ban`: keeps out who was banned by hand, who guesses passwords, and who comes and goes too often.

Owns: the two rules that ban by themselves, the operator's actions, and the check at CONNECT, which
comes before authentication: who is banned costs no password hash. *Brute force*: so many refused
connections of an address (or of a client identifier, or for a user name) within a window.
*Flapping*: so many connections of a client identifier within a window. Each further ban of the same
subject is longer, by a factor.

A ban by hand ends the connections that it concerns, and so does one for flapping. One for brute
force only keeps newcomers out: who is connected has shown that its password is right, and may sit
behind the same address as the one who guesses.

Must not know: how anybody is authenticated. A user name is claimed at CONNECT; the one that turned
out to be the client's is looked at again as soon as it is connected.

Invariants: addresses under `exempt` are never counted and never banned; what is counted and what is
banned is bounded in number; a refusal by a ban is no further offence; bans survive a restart.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from mqttd.api import (
    CONNECTED,
    REFUSED,
    BrokerServices,
    Client,
    ConnectRequest,
    Deny,
    Duration,
    Event,
    NoRoom,
    Plugin,
    PluginConfig,
    reason_codes,
)
from mqttd_plugins._bans import (
    OPERATOR,
    Ban,
    Bans,
    Kind,
    Network,
    brief,
    from_row,
    network_of,
    row_key,
    spelt,
    subject_of,
    to_row,
    worth,
)

SWEEP_S: Final = 60.0
NO_ATTEMPTS: Final = tuple(
    reason_codes.reason_name(code)
    for code in (
        reason_codes.UNSPECIFIED_ERROR,
        reason_codes.SERVER_UNAVAILABLE,
        reason_codes.SERVER_BUSY,
        reason_codes.BANNED,
        reason_codes.QUOTA_EXCEEDED,
        reason_codes.USE_ANOTHER_SERVER,
        reason_codes.SERVER_MOVED,
        reason_codes.CONNECTION_RATE_EXCEEDED,
    )
)
"""How reasons begin that say nothing about the client: the broker, or a plugin, can't decide."""
Count = Annotated[int, Field(ge=1)]


class Rule(PluginConfig):
    window: Duration
    """The time in which they are counted."""
    ban: Duration
    """How long the first ban lasts."""

    @model_validator(mode="after")
    def _lasts(self) -> Rule:
        if self.window <= 0 or self.ban <= 0:
            raise ValueError("window and ban have to be longer than nothing")
        return self


class BruteForce(Rule):
    failures: Count = 10
    """Refused connections that bring a ban."""
    window: Duration = 60.0
    ban: Duration = 300.0
    by: list[Literal["address", "client", "user"]] = ["address"]
    """Whose failures are counted, and who is banned then."""


class Flapping(Rule):
    connects: Count = 15
    """Connections of one client identifier that bring a ban."""
    window: Duration = 60.0
    ban: Duration = 300.0


class Config(PluginConfig):
    brute_force: BruteForce | None = BruteForce()
    """`null`: not looked for."""
    flapping: Flapping | None = Flapping()
    """`null`: not looked for."""
    growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """Each further ban is so many times as long as the one before it."""
    max_ban: Duration = 86400.0
    """The longest ban by a rule."""
    remember: Duration = 86400.0
    """How long after its end a ban still makes the next one longer."""
    exempt: list[str] = ["127.0.0.0/8", "::1"]
    """Addresses and networks that are never counted and never banned."""
    ipv6_prefix: Annotated[int, Field(ge=16, le=128)] = 64
    """IPv6 addresses that share so many bits are taken for one."""
    max_tracked: Count = 10_000
    """Subjects whose attempts are counted at once, per rule."""
    max_bans: Count = 10_000
    """Bans in the book at once."""

    @field_validator("exempt")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for text in value:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise ValueError(f"expected addresses or networks: {error}") from None
        return value


class Attempts:
    """Instants by subject; tells when so many of them lie within the window."""

    def __init__(self, limit: int, window_s: float, most: int) -> None:
        self._limit = limit
        self._window_s = window_s
        self._most = most
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def hit(self, subject: str, now: float) -> bool:
        """Count one more; True when it is one too many, and counting begins anew."""
        instants = self._seen.get(subject)
        if instants is None:
            if len(self._seen) >= self._most:
                self._seen.popitem(last=False)
            instants = self._seen[subject] = deque(maxlen=self._limit)
        else:
            self._seen.move_to_end(subject)
        instants.append(now)
        if len(instants) < self._limit or now - instants[0] > self._window_s:
            return False
        del self._seen[subject]
        return True

    def sweep(self, now: float) -> None:
        """Forget whose last attempt is out of the window."""
        while self._seen:
            subject, instants = next(iter(self._seen.items()))
            if now - instants[-1] <= self._window_s:
                break
            del self._seen[subject]


class BanPlugin(Plugin[Config]):
    """Bans by hand and by rule."""

    watches = frozenset({CONNECTED, REFUSED})

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._bans = Bans(config.max_bans, config.remember)
        self._take_config(config)

    def _take_config(self, config: Config) -> None:
        self.config = config
        self._bans.most, self._bans.remember_s = config.max_bans, config.remember
        self._exempt: list[Network] = [ipaddress.ip_network(text) for text in config.exempt]
        most = config.max_tracked
        force, flapping = config.brute_force, config.flapping
        self._failures: dict[Kind, Attempts] = {}
        if force is not None:
            self._failures = {
                kind: Attempts(force.failures, force.window, most) for kind in force.by
            }
        self._connects: Attempts | None = None
        if flapping is not None:
            self._connects = Attempts(flapping.connects, flapping.window, most)

    async def start(self) -> None:
        self._table = self.broker.table()
        now, epoch = self.broker.now(), time.time()
        found: list[Ban] = []
        for key, value in self._table.items():
            try:
                found.append(from_row(key, value, now, epoch))
            except ValueError as error:
                self.broker.log.error("a row of the table of bans can't be read: %s", error)
        # `max_bans` may be fewer than there were: what comes last stays.
        for ban in sorted(found, key=lambda ban: worth(ban, now)):
            gone = self._bans.put(ban, now)
            if gone is None:
                self.broker.count("no_room")
                self.broker.log.error(
                    "the ban of %s is not in force: max_bans are in the book", row_key(ban.key)
                )
            for other in gone or ():
                self._table.delete(row_key(other))
        self._sweep()

    async def reload(self, config: Config) -> None:
        """Bans stay; what was counted is counted anew."""
        self._take_config(config)

    def on_connect(self, client: Client, request: ConnectRequest) -> Deny | None:
        names = (request.username, client.identity)
        ban = self._ban_of(client.address, request.client_id, names)
        if ban is None:
            return None
        self.broker.count("refused")
        return Deny("banned", reason_codes.BANNED, rule=row_key(ban.key))

    def observe(self, events: Sequence[Event]) -> None:
        for event in events:
            address = Client("", peer=event.peer).address
            banned = self._ban_of(address, event.client_id, (event.username,)) is not None
            if event.kind == CONNECTED:
                if banned or self._flaps(event.client_id, address):
                    self.broker.kick(event.client_id, "banned")
            elif not banned and not self._is_exempt(address):
                self._on_refused(event, address)

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        if action == "list":
            now = self.broker.now()
            bans = sorted(self._bans.active(now), key=lambda ban: ban.key)
            return {"bans": [_shown(ban, now) for ban in bans]}
        if action == "add":
            return await self._add(arguments)
        if action == "remove":
            return await self._remove(arguments)
        return await super().control(action, arguments)

    # Who is banned.

    def _is_exempt(self, address: str) -> bool:
        network = network_of(address)
        if network is None:
            return True  # a Unix socket: whoever may open it is let in by the file system
        return any(
            network.version == other.version and network.network_address in other
            for other in self._exempt
        )

    def _ban_of(self, address: str, client_id: str, usernames: Sequence[str | None]) -> Ban | None:
        now = self.broker.now()
        ban = self._bans.holds("client", client_id, now)
        for username in usernames:
            if ban is None and username is not None:
                ban = self._bans.holds("user", username, now)
        if ban is None and not self._is_exempt(address):
            ban = self._bans.of_address(address, now)
        return ban

    # Rules.

    def _flaps(self, client_id: str, address: str) -> bool:
        """Count a connection; whether it is one too many."""
        rule = self.config.flapping
        if rule is None or self._connects is None or self._is_exempt(address):
            return False
        value = brief(client_id)
        if not self._connects.hit(value, self.broker.now()):
            return False
        why = f"{rule.connects} connections within {rule.window:g} s"
        self._ban_by_rule("client", value, rule.ban, "flapping", why)
        return True

    def _on_refused(self, event: Event, address: str) -> None:
        rule = self.config.brute_force
        if rule is None or event.reason.startswith(NO_ATTEMPTS):
            return
        network = network_of(address, self.config.ipv6_prefix)
        values: dict[Kind, str | None] = {
            "address": None if network is None else spelt(network),
            "client": brief(event.client_id),
            "user": brief(event.username or ""),
        }
        for kind, attempts in self._failures.items():
            value = values[kind]
            if value and attempts.hit(value, self.broker.now()):
                why = f"{rule.failures} refused connections within {rule.window:g} s"
                self._ban_by_rule(kind, value, rule.ban, "brute_force", why)

    def _ban_by_rule(self, kind: Kind, value: str, first_s: float, by: str, why: str) -> None:
        times = self._bans.times_of(kind, value) + 1
        try:
            grown_s = first_s * self.config.growth ** (times - 1)
        except OverflowError:
            grown_s = math.inf
        seconds = min(grown_s, self.config.max_ban)
        now = self.broker.now()
        ban = Ban(kind, value, now + seconds, time.time() + seconds, seconds, why, by, times)
        if self._enter(ban) is None:
            self.broker.count("no_room")
            self.broker.log.warning("no room for another ban: max_bans are in the book")
            return
        self.broker.count(by)
        self.broker.audit("ban", target=kind, value=value, seconds=seconds, by=by, reason=why)

    def _enter(self, ban: Ban) -> Awaitable[None] | None:
        """Ban from now on; what comes back is done when it is durable. None: no room."""
        gone = self._bans.put(ban, self.broker.now())
        if gone is None:
            return None
        for key in gone:
            self._table.delete(row_key(key))
        self._count()
        try:
            return self._table.set(row_key(ban.key), to_row(ban))
        except NoRoom:  # better one that ends with the broker than none
            self.broker.log.warning("the disk is full: a ban is in memory only")
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

    def _sweep(self) -> None:
        now = self.broker.now()
        for key in self._bans.forgotten(now):
            self._table.delete(row_key(key))
        for attempts in (*self._failures.values(), self._connects):
            if attempts is not None:
                attempts.sweep(now)
        self._count()
        self.broker.call_later(SWEEP_S, self._sweep)

    def _count(self) -> None:
        self.broker.gauge("bans", len(self._bans.active(self.broker.now())))

    # By hand.

    async def _add(self, arguments: Mapping[str, object]) -> object:
        kind, value = subject_of(arguments.get("kind"), arguments.get("value"))
        if kind == "address":
            self._refuse_exempt(value)
        seconds = _seconds(arguments.get("seconds"))
        reason = arguments.get("reason", "")
        if not isinstance(reason, str):
            raise ValueError("reason: expected text")
        now = self.broker.now()
        length_s = math.inf if seconds is None else seconds
        ban = Ban(kind, value, now + length_s, time.time() + length_s, seconds, reason, OPERATOR)
        written = self._enter(ban)
        if written is None:
            raise ValueError(f"there are {self.config.max_bans} bans already (max_bans)")
        self.broker.audit("ban", target=kind, value=value, seconds=seconds, by=OPERATOR)
        kicked = await self._kick()
        await written
        return {"added": _shown(ban, now), "kicked": kicked}

    def _refuse_exempt(self, value: str) -> None:
        network = ipaddress.ip_network(value)
        for other in self._exempt:
            inside = network.version == other.version and (
                network.network_address in other and network.prefixlen >= other.prefixlen
            )
            if inside:
                raise ValueError(f"{value} is exempt from bans ({other})")

    async def _remove(self, arguments: Mapping[str, object]) -> object:
        kind, value = subject_of(arguments.get("kind"), arguments.get("value"))
        ban = self._bans.take((kind, value))
        if ban is None:
            raise ValueError(f"{kind} {value!r} is not banned")
        written = self._table.delete(row_key(ban.key))
        self._count()
        self.broker.audit("unban", target=kind, value=value)
        await written
        return {"removed": {"kind": kind, "value": value}}

    async def _kick(self) -> list[str]:
        """End the connections of who is banned by now; their client identifiers."""
        kicked = []
        async for session in self.broker.sessions():
            if not session.connected:
                continue
            address = Client("", peer=session.peer).address
            found = self._ban_of(address, session.client_id, (session.username,))
            if found is not None and self.broker.kick(session.client_id, "banned"):
                kicked.append(session.client_id)
        return kicked


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("seconds: expected a number; without it the ban is for good")
    if not 0 < value <= 10**9:
        raise ValueError("seconds: expected more than 0 and at most 1000000000")
    return float(value)


def _shown(ban: Ban, now: float) -> dict[str, object]:
    """A ban as JSON."""
    until, left_s = None, None
    if ban.seconds is not None:
        until = datetime.fromtimestamp(ban.until, UTC).isoformat(timespec="seconds")
        left_s = round(ban.ends_at - now, 1)
    return {
        "kind": ban.kind,
        "value": ban.value,
        "until": until,
        "seconds_left": left_s,
        "reason": ban.reason,
        "by": ban.by,
        "times": ban.times,
    }
