"""From single runs to tables: medians over rounds, ratios to the baseline, verdicts, Markdown.

A ratio is taken inside each round, where both brokers met the same machine, and the median of those
is reported: machines drift more between rounds than within one; where even the speed of the core
(a fixed loop before and after every run) varied, the row says so. A run with any gap, duplicate,
loss or foreign message makes its row BAD, whatever the other rounds say; a row whose generator was
busy while its broker wasn't says so, because its msg/s measures us.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.cases import V5_LIMIT, Case

Record = dict[str, Any]
FAULTS = ("gaps", "dups", "lost", "foreign", "corrupt", "refused")
BUSY = 0.95
CONTENDED = 0.10
UNSTEADY = 1.3


@dataclass
class Row:
    case: Case
    peer: str
    figures: dict[str, float]
    error: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    # Baseline's cost divided by this peer's: 2.0 = it spends half.
    ratio: float | None = None
    # MQTT 5: this peer's cost divided by its own 3.1.1 cost of the same case.
    v5_cost: float | None = None
    spread: tuple[float, float] = (0.0, 0.0)
    # The core's slowest speed in these runs and the baseline's, as a multiple of its best.
    unsteady: float = 1.0

    @property
    def bad(self) -> bool:
        return bool(self.faults)

    def notes(self) -> str:
        if self.error:
            return self.error
        figures = self.figures
        notes = []
        if self.faults:
            notes.append("BAD: " + ", ".join(f"{n} {name}" for name, n in self.faults.items()))
        if figures.get("replayed", 0.0) < figures.get("retained", 0.0):
            notes.append("CUT SHORT")
        if figures.get("gen_busy", 0.0) >= BUSY and figures["broker_busy"] < BUSY:
            notes.append("generator-bound")
        waited = max(figures.get("broker_waited", 0.0), figures.get("gen_waited", 0.0))
        if waited > CONTENDED:
            notes.append(f"contended {waited:.0%}")
        if self.unsteady > UNSTEADY:
            notes.append(f"core speed varied {self.unsteady:.1f}x")
        return "; ".join(notes)

    def target(self, ours: str) -> str:
        """`✓ 5` or `✗ 5` where this row has something to reach."""
        if self.peer != ours or self.error:
            return ""
        if self.case.target and self.ratio is not None:
            return f"{'✓' if self.ratio >= self.case.target else '✗'} ≥ {self.case.target:g}"
        if self.v5_cost is not None and self.case.name != "pairs-w1-q0-v5":
            return f"{'✓' if self.v5_cost <= V5_LIMIT else '✗'} {self.v5_cost:.2f} of 3.1.1"
        return ""


def _key(scenario: str) -> str:
    """The figure in which a scenario is compared (CPU cost: smaller is better)."""
    return {"throughput": "cpu_us", "connections": "connect_us"}.get(scenario, "")


def summarise(records: list[Record], cases: list[Case], baseline: str) -> list[Row]:
    rows = []
    for case in cases:
        of_case = [record for record in records if record["case"] == case.name]
        for peer in dict.fromkeys(record["peer"] for record in of_case):
            rows.append(_row(case, peer, of_case, baseline))
    costs = {(row.case.name, row.peer): row.figures.get("cpu_us", 0.0) for row in rows}
    for row in rows:
        old = costs.get((row.case.name.removesuffix("-v5"), row.peer), 0.0)
        if row.case.version == 5 and old and row.figures.get("cpu_us"):
            row.v5_cost = row.figures["cpu_us"] / old
    return rows


def _row(case: Case, peer: str, of_case: list[Record], baseline: str) -> Row:
    mine = [record for record in of_case if record["peer"] == peer]
    good = [record["figures"] for record in mine if "figures" in record]
    if not good:
        return Row(case, peer, {}, error=str(mine[0].get("error", "no figures")))
    figures = {name: median(run[name] for run in good) for name in good[0]}
    row = Row(case, peer, figures)
    compared = [r["figures"] for r in of_case if r["peer"] in (peer, baseline) and "figures" in r]
    spins = [run["spin_ms"] for run in compared if run.get("spin_ms")]
    if spins:
        row.unsteady = max(spins) / min(spins)
    for name in FAULTS:
        total = int(sum(run.get(name, 0.0) for run in good))
        if total:
            row.faults[name] = total
    key = _key(case.scenario)
    if key:
        values = [run[key] for run in good]
        row.spread = (min(values), max(values))
        base = {
            record["round"]: record["figures"][key]
            for record in of_case
            if record["peer"] == baseline and "figures" in record
        }
        ratios = [
            base[record["round"]] / record["figures"][key]
            for record in mine
            if record["round"] in base and record.get("figures", {}).get(key)
        ]
        if ratios:
            row.ratio = median(ratios)
    return row


# A column: its heading and how a row fills it.
Column = tuple[str, Callable[[Row], str]]


def _number(name: str, scale: float = 1.0, digits: int = 1) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row.figures.get(name)
        return "-" if value is None else f"{value / scale:,.{digits}f}"

    return cell


def _cost(row: Row) -> str:
    value = row.figures.get("cpu_us")
    return "-" if not value else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _percent(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row.figures.get(name)
        return "-" if value is None else f"{value:.0%}"

    return cell


def _ratio(row: Row) -> str:
    return "-" if row.ratio is None else f"{row.ratio:.2f}"


def _growth(kind: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        few = row.figures.get(f"few_{kind}_cpu_us")
        many = row.figures.get(f"many_{kind}_cpu_us")
        if not few or not many:
            return "-"
        return f"{few:.2f} → {many:.2f} ({many / few:.2f}x)"

    return cell


def columns(scenario: str, ours: str) -> list[Column]:
    head: list[Column] = [("case", lambda row: row.case.title), ("broker", lambda row: row.peer)]
    tail: list[Column] = [("notes", lambda row: row.notes())]
    middle: dict[str, list[Column]] = {
        "throughput": [
            ("k msg/s", _number("msgs_s", 1e3)),
            ("CPU µs/msg", _cost),
            ("ratio", _ratio),
            ("target", lambda row: row.target(ours)),
            ("p50 µs", _number("p50_us", digits=0)),
            ("p99 µs", _number("p99_us", digits=0)),
            ("p99.9 µs", _number("p999_us", digits=0)),
            ("broker", _percent("broker_busy")),
            ("generator", _percent("gen_busy")),
        ],
        "connections": [
            ("connects/s", _number("connects_s", digits=0)),
            ("ratio", _ratio),
            ("CPU µs/connect", _number("connect_cpu_us")),
            ("KiB/idle connection", _number("rss_per_conn", 1024)),
            ("idle CPU", _percent("idle_busy")),
            ("generator", _percent("gen_busy")),
        ],
        "retained": [
            ("stored k/s", _number("store_s", 1e3)),
            ("bytes/topic", _number("rss_per_retained", digits=0)),
            ("replayed", _number("replayed", digits=0)),
            ("seconds", _number("replay_seconds", digits=2)),
            ("canary calm p99 ms", _number("calm_p99_us", 1e3, 2)),
            ("replay p99 ms", _number("replay_p99_us", 1e3, 2)),
            ("worst stall ms", _number("replay_max_us", 1e3)),
        ],
        "subscriptions": [
            ("subscribed k/s", _number("subscribe_s", 1e3)),
            ("bytes/subscription", _number("rss_per_subscription", digits=0)),
            ("µs/msg, hot topics, 1k → all", _growth("hot")),
            ("µs/msg, cold topics, 1k → all", _growth("cold")),
        ],
    }
    return head + middle[scenario] + tail


def tables(rows: list[Row], ours: str) -> Iterable[tuple[list[str], list[list[str]]]]:
    """One (headings, lines) for each scenario that occurs."""
    for scenario in dict.fromkeys(row.case.scenario for row in rows):
        layout = columns(scenario, ours)
        lines = [[cell(row) for _, cell in layout] for row in rows if row.case.scenario == scenario]
        yield [heading for heading, _ in layout], lines


def plain(headings: list[str], lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    out = []
    for line in [headings, *lines]:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def _markdown_table(headings: list[str], lines: list[list[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *lines])


def _grid(rows: list[Row], peers: list[str], cell: Callable[[Row], str]) -> list[list[str]]:
    found = {(row.case.name, row.peer): row for row in rows}
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        line = [case.title]
        for peer in peers:
            row = found.get((case.name, peer))
            line.append("-" if row is None or not row.figures else cell(row))
        lines.append(line)
    return lines


def markdown(rows: list[Row], versions: dict[str, str], baseline: str, ours: str) -> str:
    """For a README: the table as one line a case, then the other scenarios as they are."""
    parts = []
    throughput = [row for row in rows if row.case.scenario == "throughput"]
    if throughput:
        peers = list(dict.fromkeys(row.peer for row in throughput))
        named = [f"{peer} {versions.get(peer, '')}".strip() for peer in peers]

        def cost(row: Row) -> str:
            text = f"{_cost(row)} ({row.figures['msgs_s'] / 1e3:,.0f})"
            return text + " **BAD**" if row.bad else text

        def latency(row: Row) -> str:
            return " / ".join(f"{row.figures[n]:,.0f}" for n in ("p50_us", "p99_us", "p999_us"))

        lines = _grid(throughput, peers, cost)
        headings = ["CPU µs per message (thousand msg/s)", *named]
        if ours in peers and baseline in peers and ours != baseline:
            headings.append(f"{baseline} ÷ {ours}")
            ratios = _grid(throughput, [ours], _ratio)
            lines = [[*line, ratio[1]] for line, ratio in zip(lines, ratios, strict=True)]
        parts.append(_markdown_table(headings, lines, 1))
        headings = ["latency p50 / p99 / p99.9, µs", *named]
        parts.append(_markdown_table(headings, _grid(throughput, peers, latency), 1))
    others = [row for row in rows if row.case.scenario != "throughput"]
    for headings, lines in tables(others, ours):
        parts.append(_markdown_table(headings, lines, 2))
    return "\n\n".join(parts) + "\n"
