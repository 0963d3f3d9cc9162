"""The verdict: closed books in numbers, and the rules that tell which of them break a promise.

What breaks the promise of a delivery at

    QoS 0   duplicated, reordered, corrupt, unexpected, late     (lost: counted; fails when strict)
    QoS 1   lost, unflagged, reordered, corrupt, unexpected, late, unacknowledged
    QoS 2   lost, duplicated, reordered, corrupt, unexpected, late, unacknowledged
    each    stale, missing_retained, missing_will     (at QoS 0 the missing ones: when strict)

`promises` is the only place where these rules are code. The classes are explained in ledger.py,
which fills the numbers in; here they are added up, ranked and judged, nothing else.
"""

from typing import Final

CLASSES: Final = (
    "sent",
    "received",
    "acked",
    "lost",
    "unknown",
    "refused",
    "duplicated",
    "unflagged",
    "reordered",
    "late",
    "corrupt",
    "unexpected",
    "unacknowledged",
    "stale",
    "missing_retained",
    "missing_will",
)


def promises(qos: int, strict: bool) -> list[tuple[str, str]]:
    """What a QoS promises: what must not be, in words, and the class that counts it."""
    found: list[tuple[str, str]] = []
    if qos > 0 or strict:
        found.append(("lost", "lost"))
    if qos == 1:
        # At least once: a second copy is allowed, but it has to own up to being one.
        found.append(("duplicated without DUP", "unflagged"))
    else:
        found.append(("duplicated", "duplicated"))
    found.append(("reordered", "reordered"))
    found.append(("late", "late"))
    found.append(("corrupt", "corrupt"))
    found.append(("unexpected", "unexpected"))
    if qos > 0:
        found.append(("unacknowledged", "unacknowledged"))
    found.append(("stale retained", "stale"))
    if qos > 0 or strict:
        found.append(("missing retained", "missing_retained"))
        found.append(("missing will", "missing_will"))
    return found


class Tally:
    """One number for each class, of a track or of many, all of one QoS."""

    def __init__(self, qos: int) -> None:
        self.qos = qos
        self.tracks = 0
        self.sent = 0
        self.received = 0
        self.acked = 0
        self.lost = 0
        self.unknown = 0
        self.refused = 0
        self.duplicated = 0
        self.unflagged = 0
        self.reordered = 0
        self.late = 0
        self.corrupt = 0
        self.unexpected = 0
        self.unacknowledged = 0
        self.stale = 0
        self.missing_retained = 0
        self.missing_will = 0

    def add(self, other: "Tally") -> None:
        """Count another one in."""
        self.tracks += other.tracks
        self.sent += other.sent
        self.received += other.received
        self.acked += other.acked
        self.lost += other.lost
        self.unknown += other.unknown
        self.refused += other.refused
        self.duplicated += other.duplicated
        self.unflagged += other.unflagged
        self.reordered += other.reordered
        self.late += other.late
        self.corrupt += other.corrupt
        self.unexpected += other.unexpected
        self.unacknowledged += other.unacknowledged
        self.stale += other.stale
        self.missing_retained += other.missing_retained
        self.missing_will += other.missing_will

    def broken(self, strict: bool) -> list[str]:
        """The promises of this QoS that these numbers break, in words."""
        return [words for words, name in promises(self.qos, strict) if getattr(self, name)]

    def trouble(self) -> int:
        """How many messages were anything but received once, in order and intact."""
        return (
            self.lost
            + self.unknown
            + self.refused
            + self.duplicated
            + self.reordered
            + self.late
            + self.corrupt
            + self.unexpected
            + self.stale
            + self.missing_retained
            + self.missing_will
        )

    def numbers(self) -> dict[str, int]:
        """The classes by name, for machines."""
        return {name: int(getattr(self, name)) for name in CLASSES}

    @staticmethod
    def of(qos: int, numbers: dict[str, int]) -> "Tally":
        """The tally that had these numbers."""
        tally = Tally(qos)
        for name in CLASSES:
            setattr(tally, name, numbers.get(name, 0))
        return tally


class Outcome(Tally):
    """A closed track: the numbers of one publisher, stream and subscriber."""

    def __init__(self, qos: int, publisher: int, stream: int, subscriber: int, topic: str) -> None:
        super().__init__(qos)
        self.tracks = 1
        self.publisher = publisher
        self.stream = stream
        self.subscriber = subscriber
        self.topic = topic


class Verdict:
    """All tracks of a run: sums by QoS, strays by reason, and the tracks in most trouble.

    `strays` says why messages were unexpected. Those that no track can own (`ownerless` of them)
    are part of no sum by QoS and break the promise on their own.
    """

    def __init__(self, keep: int = 20) -> None:
        self.keep = keep
        self.totals: dict[int, Tally] = {}
        self.strays: dict[str, int] = {}
        self.ownerless = 0
        self.troubled: list[Outcome] = []
        self.troubled_count = 0

    def total(self, qos: int) -> Tally:
        """The sums of one QoS."""
        total = self.totals.get(qos)
        if total is None:
            total = self.totals[qos] = Tally(qos)
        return total

    def add(self, outcome: Outcome) -> None:
        """Count a track in, and remember it when it is among the `keep` worst."""
        self.total(outcome.qos).add(outcome)
        if outcome.trouble() == 0:
            return
        self.troubled_count += 1
        self.troubled.append(outcome)
        if len(self.troubled) >= 4 * self.keep:
            self.rank()

    def stray(self, reason: str, count: int) -> None:
        """Count unexpected messages by their reason."""
        if count:
            self.strays[reason] = self.strays.get(reason, 0) + count

    def rank(self) -> None:
        """The worst track first, and no more of them than asked for."""
        order = sorted(
            (-outcome.trouble(), outcome.publisher, outcome.stream, outcome.subscriber, at)
            for at, outcome in enumerate(self.troubled)
        )
        self.troubled = [self.troubled[entry[4]] for entry in order[: self.keep]]

    def broken(self, strict: bool) -> list[str]:
        """Every broken promise as `QoS n: what`; empty when the broker kept all of them."""
        found = [
            f"QoS {qos}: {what}"
            for qos in sorted(self.totals)
            for what in self.totals[qos].broken(strict)
        ]
        if self.ownerless:
            found.append("unexpected messages on topics of nobody")
        return found

    def sum(self, name: str, qos: int = -1) -> int:
        """One class of CLASSES over all QoS levels, or of one of them."""
        count = 0
        for total in self.totals.values():
            if qos < 0 or total.qos == qos:
                count += total.numbers()[name]
        if name == "unexpected" and qos < 0:
            count += self.ownerless
        return count
