"""The cases: what is measured, and what mqttd has to reach in them.

`table` holds the closed-loop cases, each in MQTT 3.1.1 and in MQTT 5 with one user property on
every message; `extras` what a table of message costs doesn't show. A case is plain data: `spec()`
is what the generator process gets.
"""

import fnmatch
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    scenario: str
    mode: str = "pairs"
    publishers: int = 10
    subscribers: int = 10
    window: int = 10
    qos: int = 0
    version: int = 4
    user_properties: int = 0
    size: int = 64
    count: int = 0
    # Mosquitto's CPU time a message divided by ours must reach this; 0 = no target.
    target: float = 0.0

    def spec(self) -> dict[str, Any]:
        return asdict(self)


_V4 = [
    Case("pairs-w1-q0", "10 pairs, window 1, QoS 0", "throughput", window=1, target=1.1),
    Case("pairs-w10-q0", "10 pairs, window 10, QoS 0", "throughput", target=5),
    Case("pairs-w100-q0", "10 pairs, window 100, QoS 0", "throughput", window=100, target=10),
    Case(
        "fanin-w10-q0",
        "100 → 1, window 10, QoS 0",
        "throughput",
        mode="fanin",
        publishers=100,
        subscribers=1,
        target=6,
    ),
    Case(
        "fanout-w10-q0",
        "1 → 100, window 10, QoS 0",
        "throughput",
        mode="fanout",
        publishers=1,
        subscribers=100,
        target=6,
    ),
    Case("pairs-w10-q1", "10 pairs, window 10, QoS 1", "throughput", qos=1, target=4.5),
    Case("pairs-w10-q2", "10 pairs, window 10, QoS 2", "throughput", qos=2, target=5),
]

# MQTT 5 has no target against a peer: it may cost at most this many times our own 3.1.1 figure.
V5_LIMIT = 1.5


def _v5(case: Case) -> Case:
    changes = {"name": case.name + "-v5", "title": case.title + ", MQTT 5", "target": 0.0}
    return Case(**{**asdict(case), **changes, "version": 5, "user_properties": 1})


TABLE = _V4 + [_v5(case) for case in _V4]


QUICK = 100_000
FULL = 1_000_000


def extras(clients: int = 5000, retained: int = QUICK, subscriptions: int = QUICK) -> list[Case]:
    return [
        Case("connections", f"{clients:,} idle clients", "connections", count=clients),
        Case("retained", f"# over {retained:,} retained topics", "retained", count=retained),
        Case(
            "subscriptions",
            f"{subscriptions:,} subscriptions",
            "subscriptions",
            count=subscriptions,
        ),
    ]


def select(wanted: str, others: list[Case]) -> list[Case]:
    """The cases that a comma-separated list of names, patterns and groups stands for, in order."""
    every = TABLE + others
    chosen: list[Case] = []
    for word in wanted.split(","):
        if word == "all":
            found = every
        elif word == "table":
            found = TABLE
        elif word == "extras":
            found = others
        else:
            found = [case for case in every if fnmatch.fnmatchcase(case.name, word)]
        if not found:
            names = ", ".join(case.name for case in every)
            raise ValueError(f"no case is called {word!r}; there are: all, table, extras, {names}")
        chosen += [case for case in found if case not in chosen]
    return chosen
