"""The command line: arguments in, an exit code out.

Owns: the sub-commands, their help, and how a bad configuration is told: one line a problem on
standard error, exit 2. Each sub-command imports what it needs when it runs, so that `mqttd --help`
costs no pydantic and `mqttd check` no event loop.

Exit codes, everywhere: 0 good, 1 the verdict is bad, 2 usage or configuration.

Must not know: what a broker is made of. `run` hands the validated tree to the composition root and
the chosen event loop to asyncio, no more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mqttd.config import Config, ConfigError

GOOD: Final = 0
BAD: Final = 1
USAGE: Final = 2

_EXAMPLES: Final = """\
examples:
  mqttd run                         loopback, port 1883, no credentials needed
  mqttd run -c config/dev.yaml      what the file says
  mqttd check -c config/dev.yaml    only say whether the file is good
  mqttd check --schema              JSON Schema of the file, for editors

exit code: 0 good, 1 the verdict is bad, 2 usage or configuration
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttd",
        description="An MQTT 5 broker (3.1.1 and 3.1 too) in Python.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="store_true", help="version, Python, compiled or pure, event loop"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    run = commands.add_parser(
        "run",
        help="run the broker in the foreground",
        description="Runs the broker until SIGTERM or SIGINT; both drain it.",
    )
    run.add_argument("-c", "--config", metavar="FILE", help="YAML; without it, the defaults")
    run.add_argument(
        "--loop",
        choices=["auto", "uvloop", "asyncio"],
        help="event loop (default: $MQTTD_LOOP, or auto: uvloop where it is installed)",
    )

    check = commands.add_parser(
        "check",
        help="say whether a configuration file is good",
        description="Reads a configuration as `run` would, with the files it names, and stops.",
    )
    what = check.add_mutually_exclusive_group(required=True)
    what.add_argument("-c", "--config", metavar="FILE", help="YAML to check")
    what.add_argument("--schema", action="store_true", help="print the JSON Schema instead")
    check.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _main(argv)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough; the exit must not flush into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        print(_version())
        return GOOD
    if args.command == "run":
        return _run(args.config, args.loop)
    if args.command == "check":
        return _schema() if args.schema else _check(args.config, as_json=args.json)
    parser.print_help(sys.stderr)
    return USAGE


def _version() -> str:
    import platform
    from importlib import metadata

    import mqttd
    from mqttd.net import loops

    build = "compiled" if mqttd.COMPILED else "pure"
    try:
        loop = loops.choose()
        if loop == loops.UVLOOP:
            loop += f" {metadata.version(loop)}"
    except (ValueError, ImportError) as error:
        loop = f"no event loop: {error}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"mqttd {mqttd.__version__} ({python}, {build}, {loop})"


def _complain(text: str) -> None:
    print(f"mqttd: {text}", file=sys.stderr)


def _tell(error: ConfigError) -> int:
    for problem in error.problems:
        _complain(str(problem))
    return USAGE


def _run(file: str | None, loop: str | None) -> int:
    from mqttd import config, log
    from mqttd.net import loops

    try:
        tree = config.load_config(file)
        loops.choose(loop)
    except config.ConfigError as error:
        return _tell(error)
    except (ValueError, ImportError) as error:
        _complain(str(error))
        return USAGE
    log.setup(tree.logging.level, tree.logging.format)
    return _serve(tree, loop)


def _serve(tree: Config, loop: str | None) -> int:
    import asyncio
    import logging

    from mqttd import log
    from mqttd.app import App
    from mqttd.net import loops

    logger = logging.getLogger("mqttd")
    for warning in tree.warnings():
        log.event(logger, "config", level=logging.WARNING, warning=warning)
    with asyncio.Runner(loop_factory=lambda: loops.new_event_loop(loop)) as runner:
        return runner.run(App(tree).run())


def _check(file: str, *, as_json: bool) -> int:
    from mqttd import config

    problems: list[config.Problem] = []
    warnings: list[str] = []
    try:
        warnings = config.load_config(file).warnings()
    except config.ConfigError as error:
        problems = error.problems
    if as_json:
        from dataclasses import asdict

        _print_json(
            {
                "file": file,
                "good": not problems,
                "problems": [asdict(problem) for problem in problems],
                "warnings": warnings,
            }
        )
        return USAGE if problems else GOOD
    for text in [*map(str, problems), *(f"{file}: warning: {text}" for text in warnings)]:
        _complain(text)
    if problems:
        return USAGE
    print(f"{file}: good")
    return GOOD


def _schema() -> int:
    from mqttd import config

    _print_json(config.json_schema())
    return GOOD


def _print_json(value: dict[str, Any]) -> None:
    import json

    print(json.dumps(value, indent=2))
