"""The options of `compare` and `probe`; what they do is imported when they are called."""

import argparse


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands; each sets `run`, a function from options to an exit code."""
    compare = commands.add_parser(
        "compare",
        add_help=False,
        help="two results side by side; is the second worse?",
        description="Compare two results that --json wrote.",
        epilog="exit: 0 not worse, 1 worse, 2 usage",
    )
    compare.add_argument("--help", action="help", help="show this help and exit")
    compare.add_argument("before", metavar="BEFORE.json")
    compare.add_argument("after", metavar="AFTER.json")
    compare.add_argument(
        "--tolerance",
        default="10%",
        metavar="SHARE",
        help="how much slower is no worse; default: 10%%. Broken promises have none",
    )
    compare.add_argument("--json", action="store_true", help="for machines")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from device_sim.compare import run

    return run(options)
