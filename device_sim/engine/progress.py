"""The live view of a run, on standard error so that standard output stays the report's.

On a terminal with rich installed a small table is redrawn in place; otherwise there is one line a
second, good for logs. Owns nothing but the drawing: it is handed a Sample and forgets it.
"""

import sys
from types import TracebackType

from device_sim.engine.course import Sample
from device_sim.results.report import duration


def line(sample: Sample) -> str:
    """A sample in one line."""
    return (
        f"{sample.elapsed_s:6.1f} s  {sample.phase:<10} {sample.connected:>6} up  "
        f"sent {sample.sent:>11,} ({sample.sent_per_s:>9,.0f}/s)  "
        f"received {sample.received:>11,} ({sample.received_per_s:>9,.0f}/s)  "
        f"waiting {sample.outstanding:>7,}  "
        f"p50 {duration(sample.p50_us)}  p99 {duration(sample.p99_us)}"
    )


class Plain:
    """One line a second."""

    def __enter__(self) -> "Plain":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to tidy up."""

    def update(self, sample: Sample) -> None:
        """Show a sample."""
        print(line(sample), file=sys.stderr, flush=True)


class Quiet(Plain):
    """No view at all."""

    def update(self, sample: Sample) -> None:
        """Show nothing."""


class Fancy(Plain):
    """A table that is redrawn in place, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> "Fancy":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        self._live.stop()

    def update(self, sample: Sample) -> None:
        """Redraw."""
        from rich.table import Table

        table = Table(title=f"{sample.phase}, {sample.elapsed_s:.0f} s, {sample.connected} up")
        for title in ("", "total", "a second"):
            table.add_column(title, justify="right" if title else "left")
        table.add_row("sent", f"{sample.sent:,}", f"{sample.sent_per_s:,.0f}")
        table.add_row("received", f"{sample.received:,}", f"{sample.received_per_s:,.0f}")
        table.add_row("waiting", f"{sample.outstanding:,}", "")
        table.add_row("latency p50 / p99", duration(sample.p50_us), duration(sample.p99_us))
        self._live.update(table, refresh=True)


def view(quiet: bool) -> Plain:
    """The view that suits standard error."""
    if quiet:
        return Quiet()
    if sys.stderr.isatty():
        try:
            return Fancy()
        except ImportError:
            return Plain()
    return Plain()
