"""The state machine: which steps there are, and from which few names they choose.

Owns: the vocabulary (three devices, two users, four topics, ten filters: collisions are the rule)
and the variants of the broker. What a step means is in `tests.model.play`.
"""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model.play import Play
from tests.model.reference import Sub

NAMES = st.sampled_from(("a", "b", "c"))
TOPICS = st.sampled_from(("t", "t/x", "t/y", "u"))
FILTERS = st.sampled_from(
    ("t", "t/x", "t/+", "t/#", "+", "#", "+/+", "w/+", "$share/g/t/#", "$share/g/+", "$share/h/t/#")
)
QOS = st.sampled_from((1, 2, 0))
EXPIRY = st.sampled_from((50, 5, 0))
SHORT = st.sampled_from((0, 0, 0, 2, 9))
SECONDS = st.sampled_from((1, 3, 6, 20, 60))
OFTEN = st.sampled_from((False, False, True))
SUBS = st.builds(
    Sub,
    qos=st.sampled_from((2, 1, 0)),
    no_local=OFTEN,
    as_published=OFTEN,
    handling=st.sampled_from((0, 1, 2)),
    identifier=st.sampled_from((0, 0, 1, 2)),
)


class Machine(RuleBasedStateMachine):
    """Devices, a clock and a broker on a file."""

    durable = True

    def __init__(self) -> None:
        super().__init__()
        self.play: Play | None = None
        self.failed = False

    @initialize(max_queued=st.sampled_from((3, 1, 0)), drop_oldest=st.booleans())
    def start(self, max_queued: int, drop_oldest: bool) -> None:
        self.play = Play(self.durable, max_queued, drop_oldest)

    def _do(self) -> Play:
        assert self.play is not None
        self.failed = True  # until `succeeded`
        return self.play

    @invariant()
    def succeeded(self) -> None:
        self.failed = False

    def _there(self, name: str) -> Play:
        """With the device connected; an absent one comes back on its own."""
        play = self._do()
        if play.device(name).link is None:
            play.connect(name)
        if play.ready(name) is None:
            play.commit()
        return play

    @rule(
        name=NAMES,
        user=st.sampled_from((None, None, None, "u")),
        clean=OFTEN,
        expiry=EXPIRY,
        limit=st.sampled_from((2, 1, 3)),
        will=st.none() | st.tuples(QOS, st.booleans(), SHORT, SHORT),
    )
    def connect(
        self,
        name: str,
        user: str | None,
        clean: bool,
        expiry: int,
        limit: int,
        will: tuple[int, bool, int, int] | None,
    ) -> None:
        play = self._do()
        with_will = play.will(name, *will) if will else None
        play.connect(name, user=user, clean=clean, expiry=expiry, limit=limit, will=with_will)

    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        self._do().drop(name)

    @rule(name=NAMES, reason=st.sampled_from((0, 4)), expiry=st.none() | EXPIRY)
    def disconnect(self, name: str, reason: int, expiry: int | None) -> None:
        self._do().disconnect(name, reason, expiry)

    @rule(
        names=st.lists(NAMES, min_size=1, max_size=3),
        topic=TOPICS,
        qos=QOS,
        retain=OFTEN,
        expiry=SHORT,
        text=st.sampled_from((True, True, True, False)),
    )
    def publish(
        self, names: list[str], topic: str, qos: int, retain: bool, expiry: int, text: bool
    ) -> None:
        for name in names:
            self._there(name).publish(name, topic, qos, retain, expiry, text)

    @rule(name=NAMES, topic_filter=FILTERS, sub=SUBS)
    def subscribe(self, name: str, topic_filter: str, sub: Sub) -> None:
        self._there(name).subscribe(name, topic_filter, sub)

    @rule(name=NAMES, topic_filter=FILTERS)
    def unsubscribe(self, name: str, topic_filter: str) -> None:
        self._do().unsubscribe(name, topic_filter)

    @rule(name=NAMES, count=st.sampled_from((100, 1, 2)))
    def acknowledge(self, name: str, count: int) -> None:
        self._do().acknowledge(name, count)

    @rule(name=NAMES)
    def exchange(self, name: str) -> None:
        """The device and the broker answer each other until nothing is open."""
        play = self._there(name)
        for _ in range(4):
            play.acknowledge(name)
            play.commit()

    @rule()
    def commit(self) -> None:
        self._do().commit()

    @rule(seconds=SECONDS)
    def advance(self, seconds: int) -> None:
        self._do().advance(seconds)

    @rule(away=SECONDS)
    def crash(self, away: int) -> None:
        self._do().crash(away)

    @rule(away=SECONDS)
    def restart(self, away: int) -> None:
        self._do().restart(away)

    def teardown(self) -> None:
        if self.play is None:
            return
        try:
            if not self.failed:
                self.play.finish()
        finally:
            self.play.close()


class MemoryMachine(Machine):
    """The same without a store: nothing is held back, nothing survives."""

    durable = False


def variants() -> dict[str, Any]:
    return {"durable": Machine, "memory": MemoryMachine}
