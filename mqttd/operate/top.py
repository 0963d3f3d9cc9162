"""`mqttd top`: a live view of one broker, redrawn each second; plain lines where there is no
terminal.

Owns: how two readings of the figures become rates, and the screen.

Must not know: where figures come from; it asks `figures` over the control socket.

Invariant: the terminal is as it was when the view ends, by `q`, Ctrl-C or a broker that has gone.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mqttd.log import escape
from mqttd.operate.show import columns

if TYPE_CHECKING:
    from mqttd.operate.client import Control

_RATES: Final = (
    ("messages_received", "messages in"),
    ("messages_sent", "messages out"),
    ("bytes_received", "bytes in"),
    ("bytes_sent", "bytes out"),
)


def watch(control: Control, interval: float, *, as_json: bool) -> None:
    """Show the figures until somebody has seen enough."""
    live = sys.stdout.isatty() and not as_json
    before: dict[str, Any] | None = None
    with _keys() if live else contextlib.nullcontext(), _screen(live) as draw:
        while True:
            _, figures = control.ask({"do": "figures"})
            if as_json:
                print(json.dumps(figures), flush=True)
            else:
                draw(lines(figures, before))
            before = figures
            if _pressed_q(interval, live):
                return


def lines(figures: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """One screen; rates need a reading before this one."""
    found = [
        f"mqttd {figures['version']}, process {figures['pid']}",
        f"clients {figures['clients']}   sessions {figures['sessions']}   retained"
        f" {figures['retained']}   queued {figures['queued']}   in flight {figures['in_flight']}",
    ]
    rates = []
    for key, word in _RATES:
        rate = _rate(figures, before, key)
        rates.append(f"{word} {figures[key] if rate is None else f'{rate:,.0f}/s'}")
    found.append("   ".join(rates))
    dropped = figures["dropped"]
    refused = f"refused: {figures['refused_connects']} connections,"
    found.append(f"{refused} {figures['refused_messages']} messages")
    if dropped:
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(dropped.items()))
        found.append(f"dropped: {reasons}")
    deepest = [one for one in figures["deepest"] if one["queued"]]
    if deepest:
        rows = [[escape(one["client"]), str(one["queued"])] for one in deepest]
        found += ["", *columns(["longest queues", "messages"], rows)]
    if figures["plugins"]:
        rows = [_plugin(one) for one in figures["plugins"]]
        titles = ["plugin", "calls", "failures", "mean", "longest", "state"]
        found += ["", *columns(titles, rows)]
    return found


def _rate(figures: dict[str, Any], before: dict[str, Any] | None, key: str) -> float | None:
    if before is None or figures["at"] <= before["at"]:
        return None
    return float(figures[key] - before[key]) / float(figures["at"] - before["at"])


def _plugin(one: dict[str, Any]) -> list[str]:
    mean = one["seconds"] / one["calls"] if one["calls"] else 0.0
    return [
        one["name"],
        str(one["calls"]),
        str(one["failures"]),
        f"{mean * 1000:.2f} ms",
        f"{one['longest_s'] * 1000:.1f} ms",
        "left alone" if one["resting"] else "",
    ]


class _Draw:
    """Puts lines on the screen, or under each other."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def __call__(self, text: list[str]) -> None:
        if self._live is None:
            print("\n".join([*text, ""]), flush=True)
            return
        from rich.text import Text

        self._live.update(Text("\n".join([*text, "", "q ends it"])), refresh=True)


@contextlib.contextmanager
def _screen(live: bool) -> Iterator[_Draw]:
    if live:
        try:
            from rich.live import Live
        except ImportError:
            pass
        else:
            with Live(screen=True, auto_refresh=False) as screen:
                yield _Draw(screen)
            return
    yield _Draw(None)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one, without Return."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _pressed_q(interval: float, live: bool) -> bool:
    """Wait for the next reading, or for a q."""
    if not live or not sys.stdin.isatty():
        time.sleep(interval)
        return False
    until = time.monotonic() + interval
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready and sys.stdin.read(1) in ("q", "Q", ""):
            return True
    return False
