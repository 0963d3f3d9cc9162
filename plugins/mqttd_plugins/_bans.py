"""The book of bans: who is out, until when, and how a ban is kept in a table.

Owns: `Ban`, the forms of a subject (a client identifier, a user name, an address or network in
its shortest spelling), and `Bans`: look-up, bound, expiry, rows. A ban that is over stays in the
book for a while, so that the next one for the same subject can be longer.

Must not know: why somebody is banned, connections.

Invariants: within a process a ban ends by the monotonic clock, so that a wall clock that is set
neither shortens nor lengthens it; rows hold seconds since 1970, and what is read back lasts no
longer than it did at first. There are never more than `most` entries: those that are over go
first, then of those that were made by rules the one that ends first. What an operator has entered
never goes by itself before its time. A name that is long stands in the book, and wherever else
names are gathered, as its digest, so that no name makes the book large.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["client", "user", "address"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Key = tuple[str, str]

KINDS: Final[tuple[Kind, ...]] = ("client", "user", "address")
OPERATOR: Final = "operator"
LONGEST_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class Ban:
    """`ends_at` is monotonic, `until` seconds since 1970; a ban for good has no `seconds`."""

    kind: Kind
    value: str
    ends_at: float
    until: float
    seconds: float | None
    reason: str
    by: str
    times: int = 1

    @property
    def key(self) -> Key:
        return self.kind, self.value


def network_of(address: str, ipv6_prefix: int = 128) -> Network | None:
    """The network that an address stands for; None for what is no address (a Unix socket)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return ipaddress.IPv4Network(found.ipv4_mapped)
        return ipaddress.IPv6Network((found, ipv6_prefix), strict=False)
    return ipaddress.IPv4Network(found)


def spelt(network: Network) -> str:
    """`192.0.2.1` for one address, `192.0.2.0/24` for more."""
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if single else str(network)


def brief(name: str) -> str:
    """The name, or what stands for a long one."""
    if len(name) <= LONGEST_NAME:
        return name
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def subject_of(kind: object, value: object) -> tuple[Kind, str]:
    """Kind and value in the form that is compared. ValueError says what was expected."""
    known = next((name for name in KINDS if name == kind), None)
    if known is None:
        raise ValueError(f"kind: expected {', '.join(KINDS)}")
    if not isinstance(value, str) or not value:
        raise ValueError("value: expected a client identifier, a user name or an address")
    value.encode()  # UnicodeEncodeError is a ValueError: half a surrogate pair is no name
    if known != "address":
        return known, brief(value)
    try:
        network: Network | None = ipaddress.ip_network(value)
    except ValueError:
        network = None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen == 128:
        network = network_of(str(network.network_address))
    if network is None:
        raise ValueError("value: expected an address or a network such as 192.0.2.0/24")
    return known, spelt(network)


class Bans:
    """All bans, and those that are over and remembered."""

    def __init__(self, most: int, remember_s: float) -> None:
        self.most = most
        self.remember_s = remember_s
        self.entries: dict[Key, Ban] = {}
        self._prefixes: Counter[tuple[int, int]] = Counter()

    def active(self, now: float) -> list[Ban]:
        return [ban for ban in self.entries.values() if ban.ends_at > now]

    def holds(self, kind: Kind, value: str, now: float) -> Ban | None:
        """The ban of exactly this subject."""
        ban = self.entries.get((kind, brief(value)))
        return ban if ban is not None and ban.ends_at > now else None

    def of_address(self, address: str, now: float) -> Ban | None:
        """The ban of an address or of a network around it."""
        network = network_of(address)
        if network is None:
            return None
        for version, length in self._prefixes:
            if version == network.version:
                wider = spelt(network.supernet(new_prefix=length))
                ban = self.holds("address", wider, now)
                if ban is not None:
                    return ban
        return None

    def times_of(self, kind: Kind, value: str) -> int:
        """How often rules have banned the subject lately."""
        ban = self.entries.get((kind, value))
        return 0 if ban is None or ban.by == OPERATOR else ban.times

    def put(self, ban: Ban, now: float) -> list[Key] | None:
        """Enter a ban; the keys that had to go for it, or None when there is no room."""
        gone: list[Key] = []
        while ban.key not in self.entries and len(self.entries) >= self.most:
            worst = min(self.entries.values(), key=lambda other: worth(other, now))
            if worst.by == OPERATOR and worst.ends_at > now:
                return None
            self.take(worst.key)
            gone.append(worst.key)
        self.take(ban.key)
        self.entries[ban.key] = ban
        if ban.kind == "address":
            self._prefixes[_prefix(ban.value)] += 1
        return gone

    def take(self, key: Key) -> Ban | None:
        """Out of the book, whether it is over or not."""
        ban = self.entries.pop(key, None)
        if ban is not None and ban.kind == "address":
            prefix = _prefix(ban.value)
            self._prefixes[prefix] -= 1
            if not self._prefixes[prefix]:
                del self._prefixes[prefix]
        return ban

    def forgotten(self, now: float) -> list[Key]:
        """What was over for so long that it no longer counts; taken out."""
        keys = [ban.key for ban in self.entries.values() if self._is_past(ban, now)]
        for key in keys:
            self.take(key)
        return keys

    def _is_past(self, ban: Ban, now: float) -> bool:
        kept_s = 0.0 if ban.by == OPERATOR else self.remember_s
        return ban.ends_at + kept_s <= now


def worth(ban: Ban, now: float) -> tuple[bool, bool, float]:
    """What has least of it goes first."""
    return ban.ends_at > now, ban.by == OPERATOR, ban.ends_at


def _prefix(value: str) -> tuple[int, int]:
    network = ipaddress.ip_network(value)
    return network.version, network.prefixlen


# Rows.


def row_key(key: Key) -> str:
    return ":".join(key)


def to_row(ban: Ban) -> bytes:
    fields = {
        "until": None if ban.seconds is None else ban.until,
        "seconds": ban.seconds,
        "reason": ban.reason,
        "by": ban.by,
        "times": ban.times,
    }
    return json.dumps(fields).encode()


def from_row(key: str, value: bytes, now: float, epoch: float) -> Ban:
    """The ban of a row; `epoch` is what the wall clock shows. ValueError for what is none."""
    kind, _, name = key.partition(":")
    fields = json.loads(value)
    if not isinstance(fields, dict):
        raise ValueError("no object")
    known, name = subject_of(kind, name)
    reason, by, times = (fields.get(field) for field in ("reason", "by", "times"))
    if not isinstance(reason, str) or not isinstance(by, str) or not isinstance(times, int):
        raise ValueError("a field is missing")
    seconds, until = fields.get("seconds"), fields.get("until")
    if seconds is None:
        return Ban(known, name, math.inf, math.inf, None, reason, by, times)
    if not isinstance(seconds, int | float) or not isinstance(until, int | float):
        raise ValueError("no number of seconds")
    left_s = min(until - epoch, float(seconds))
    return Ban(known, name, now + left_s, epoch + left_s, float(seconds), reason, by, times)
