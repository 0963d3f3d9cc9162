"""`device_sim schema`, `check` and `plan`: a scenario looked at without a broker.

Each exits with 0, or with 2 and one line on standard error for each problem.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_sim.language.forecast import Forecast


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three commands; each sets `run`, a function from options to an exit code."""
    schema = commands.add_parser(
        "schema", add_help=False, help="print the JSON Schema of scenarios, for editors"
    )
    schema.add_argument("--help", action="help", help="show this help and exit")
    schema.set_defaults(run=_schema)
    check = commands.add_parser(
        "check", add_help=False, help="read a scenario and say what is wrong with it"
    )
    _add_scenario(check)
    check.set_defaults(run=_check)
    plan = commands.add_parser(
        "plan", add_help=False, help="say what a scenario is going to do, without a broker"
    )
    _add_scenario(plan)
    plan.add_argument("--json", action="store_true", help="for machines")
    plan.set_defaults(run=_plan)


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--help", action="help", help="show this help and exit")
    parser.add_argument("scenario", metavar="SCENARIO", help="a file, or a name in the catalogue")
    add_shrinking(parser)


def add_shrinking(parser: argparse.ArgumentParser) -> None:
    """The options that make a scenario smaller or faster, and its chance another one."""
    parser.add_argument(
        "--scale", type=_positive, default=1.0, metavar="F", help="so many times the devices"
    )
    parser.add_argument(
        "--speed", type=_positive, default=1.0, metavar="F", help="time passes so many times faster"
    )
    parser.add_argument("--seed", type=_seed, metavar="N", help="instead of the scenario's own")


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from above 0 to 1000000")
    return number


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:20]) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^63 - 1")
    return int(text)


def _schema(options: argparse.Namespace) -> int:
    from device_sim.language.load import json_schema

    print(json.dumps(json_schema(), indent=1))
    return 0


def _check(options: argparse.Namespace) -> int:
    from device_sim.language.load import ScenarioError, load

    try:
        scenario = load(options.scenario, options.scale, options.speed, options.seed)
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 2
    devices = sum(group.count for group in scenario.groups)
    print(f"{options.scenario}: good, {devices} devices in {len(scenario.stages)} stages")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from device_sim.engine import limits
    from device_sim.language.forecast import forecast
    from device_sim.language.load import ScenarioError, load

    try:
        scenario = load(options.scenario, options.scale, options.speed, options.seed)
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 2
    found = forecast(scenario)
    carried = [group.count for group in scenario.carried()]
    for text in limits.prepare([group.count for group in scenario.groups], carried):
        print(f"device_sim: warning: {text}", file=sys.stderr)
    if options.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        print("\n".join(lines_of(found)))
    return 0


def lines_of(found: Forecast) -> list[str]:
    """A plan as text."""
    lines = [f"{found.scenario}, seed {found.seed}", "", "groups"]
    rows = [
        [
            each.group,
            f"{each.count:,}",
            f"MQTT {each.version}",
            each.first_id,
            f"{each.filters} subscriptions" if each.filters else "",
            ", ".join(each.notes),
        ]
        for each in found.clients
    ]
    lines += _table(rows)
    lines += ["", "messages"]
    rows = [
        [
            f"{each.group} {each.entry}",
            "closed loop" if each.rate is None else f"{each.rate:,.6g}/s",
            f"QoS {each.qos}",
            each.topic,
            f"to {each.fan:g}",
            each.note,
        ]
        for each in found.streams
    ]
    lines += _table(rows)
    lines += ["", "stages"]
    rows = [
        [
            each.name,
            f"{each.seconds:g} s" if each.seconds else "until done",
            f"{each.messages:,.0f} messages" if each.messages else "",
            f"{each.deliveries:,.0f} deliveries" if each.messages else "",
            f"up to {each.rate:,.6g}/s" if each.rate else "",
            "and a closed loop" if each.closed_loop else "",
            ", ".join(each.actions),
        ]
        for each in found.stages
    ]
    lines += _table(rows)
    total = (
        f"in all {found.connections:,} connections, {found.messages:,.0f} messages, "
        f"{found.deliveries:,.0f} deliveries, {found.seconds:g} s and more"
    )
    return [*lines, "", total]


def _table(rows: list[list[str]]) -> list[str]:
    """Rows in columns; empty columns are left out."""
    if not rows:
        return ["  none"]
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
