"""Where a result goes: the terminal and the files that were asked for.

`add_outputs` gives a command its options, `write` honours them. Every command that runs something
shares them, so that a report is asked for in one way. The modules that make the files are imported
when one is wanted.
"""

import argparse
from typing import TYPE_CHECKING

from device_sim.engine.plan import UsageError

if TYPE_CHECKING:
    from device_sim.results.result import Result


def add_outputs(parser: argparse._ActionsContainer) -> None:
    """The options that say where the result goes."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="the result for machines, to a file, or instead of the tables",
    )
    parser.add_argument("--report", metavar="FILE", help="one HTML page with plots")
    parser.add_argument("--csv", metavar="FILE", help="a line for each second")
    parser.add_argument(
        "--save-hgrm", metavar="FILE", help="latencies by percentile, for HdrHistogram's plotters"
    )
    parser.add_argument("--junit", metavar="FILE", help="the promises as JUnit test cases")


def write(result: "Result", options: argparse.Namespace) -> None:
    """Show and store a judged result; UsageError names the file that can't be written."""
    if options.json != "-":
        from device_sim.results import report

        report.show(result.document())
    if options.json == "-":
        print(result.to_json())
    elif options.json is not None:
        _store("--json", options.json, result.to_json() + "\n")
    if options.report is not None:
        from device_sim.results.html import page

        _store("--report", options.report, page(result))
    if options.csv is not None:
        from device_sim.results.export import csv_series

        _store("--csv", options.csv, csv_series(result))
    if options.save_hgrm is not None:
        from device_sim.results import hgrm

        for name, text in hgrm.files(options.save_hgrm, result).items():
            _store("--save-hgrm", name, text)
    if options.junit is not None:
        from device_sim.results.export import junit

        _store("--junit", options.junit, junit(result))


def _store(option: str, target: str, text: str) -> None:
    try:
        with open(target, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{option} {target}: {error}") from None
