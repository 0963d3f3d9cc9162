"""Tables on a terminal: rich draws them where it is installed, plain columns otherwise.

Owns: how rows of text become lines, how a length of time is told, and that nothing which came from
the network can steer the terminal: client ids and topics are escaped as they are in the log.

Must not know: what stands in the cells.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from mqttd.log import escape

_LONGEST_CELL: Final = 200
_LONGEST_LINE: Final = 1000


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their titles; to a pipe, and without rich, as columns without lines."""
    cells = [[escape(cell, _LONGEST_CELL) for cell in row] for row in rows]
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            drawn = Table(*titles, box=None, header_style="bold", pad_edge=False)
            for row in cells:
                drawn.add_row(*(Text(cell) for cell in row))
            Console().print(drawn)
            return
    for line in columns(titles, cells):
        print(line)


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a plain table; the last column is as long as it is."""
    widths = [max(len(row[place]) for row in (titles, *rows)) for place in range(len(titles))]
    widths[-1] = 0
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]


def span(seconds: float | None) -> str:
    """`3d 4h`, `5m 3s`: two units are enough."""
    if seconds is None:
        return "-"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def line(text: str) -> None:
    """Print one line that may hold what came from the network."""
    print(escape(text, _LONGEST_LINE))
