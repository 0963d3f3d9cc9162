"""The command line: arguments in, an exit code out.

Owns: the sub-commands, their help, and how a bad configuration is told: one line a problem on
standard error, exit 2. Those for a broker that runs are in `operator_commands`, those that plugins
bring are found by `plugin_commands`. Each imports what it needs when it runs, so that `mqttd
--help` costs no pydantic.

Exit codes, everywhere: 0 good, 1 the verdict is bad, 2 usage or configuration.

Must not know: what a broker is made of. `run` hands the validated tree to the composition root and
the chosen event loop to asyncio, no more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mqttd.operate import commands as operator_commands

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
  mqttd db stats mqttd.db           what is in a database
  mqttd db check mqttd.db           whether it is whole, and nothing in it can't be
  mqttd db backup mqttd.db COPY     a copy of it, also while the broker runs
  mqttd passwd FILE USER            a password file; its own --help says more
  mqttd acl check --help            what an access control list says
  mqttd plugins                     what is installed; with a name: its configuration
  mqttd clients                     who is connected to the broker that runs here
  mqttd bridges                     how its bridges to other systems are
  mqttd explain --client sensor-7   why messages did, or didn't, reach it

exit code: 0 good, 1 the verdict is bad, 2 usage or configuration
"""

_DB_EXAMPLES: Final = """\
examples:
  mqttd db stats /var/lib/mqttd/mqttd.db --top 3
  mqttd db check /var/lib/mqttd/mqttd.db --json
  mqttd db backup /var/lib/mqttd/mqttd.db /backup/mqttd-monday.db --force

Each works while a broker runs on FILE, and changes nothing in it.
exit code: 0 good, 1 the database is damaged or wrong, 2 it or TARGET can't be used
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
    plugins = commands.add_parser(
        "plugins",
        help="list the plugins that are installed, or the configuration of one",
        description="Lists plugins with their hooks; with NAME, the keys of its configuration.",
    )
    plugins.add_argument(
        "name", metavar="NAME", nargs="?", help="as in `use`: a name, a path:Class, a file.py"
    )
    plugins.add_argument("--json", action="store_true", help="JSON; with NAME its JSON Schema")
    operator_commands.add(commands)
    _add_db(commands.add_parser("db", help="look at a database, or back it up", **_db_help()))
    return parser


def _db_help() -> dict[str, Any]:
    return {"epilog": _DB_EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _add_db(db: argparse.ArgumentParser) -> None:
    db.description = "Looks at the file that `storage.path` names, or copies it."
    actions = db.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    check = actions.add_parser(
        "check",
        help="say whether a database is whole",
        description="Reads every page, and looks for rows that no broker would write.",
        **_db_help(),
    )
    stats = actions.add_parser(
        "stats",
        help="say what is in a database, and how much",
        description="Counts sessions, messages and bytes, and names the deepest queues.",
        **_db_help(),
    )
    backup = actions.add_parser(
        "backup",
        help="copy a database, also while a broker runs on it",
        description="Copies everything committed so far to TARGET, checked and synced to disk.",
        **_db_help(),
    )
    for action in (check, stats, backup):
        action.add_argument("file", metavar="FILE", type=Path, help="the database")
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")
    backup.add_argument("target", metavar="TARGET", type=Path, help="the file to make")
    backup.add_argument("--force", action="store_true", help="take the place of a TARGET that is")
    stats.add_argument(
        "--top", metavar="N", type=_count, default=10, help="deepest queues to name (default: 10)"
    )
    for action in (check, backup):
        action.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _main(argv)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough; the exit must not flush into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    brought = _brought_by_a_plugin(parser, words)
    if brought is not None:
        return brought(words[1:])
    args = parser.parse_args(words)
    if args.version:
        print(_version())
        return GOOD
    if args.command == "run":
        return _run(args.config, args.loop)
    if args.command == "check":
        return _schema() if args.schema else _check(args.config, as_json=args.json)
    if args.command == "db":
        return _db(args)
    if args.command == "plugins":
        return _plugins(args.name, as_json=args.json)
    if args.command is not None:
        return operator_commands.run(args)
    parser.print_help(sys.stderr)
    return USAGE


def _brought_by_a_plugin(
    parser: argparse.ArgumentParser, words: list[str]
) -> Callable[[Sequence[str]], int] | None:
    """The command of a plugin, if that is what the first word names."""
    if not words or words[0].startswith("-") or words[0] in _names(parser):
        return None
    from mqttd.operate import plugins as plugin_commands

    return plugin_commands.find(words[0])


def _names(parser: argparse.ArgumentParser) -> set[str]:
    """The commands that are ours."""
    actions = parser._subparsers._group_actions if parser._subparsers is not None else []
    return {name for action in actions for name in action.choices or ()}


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
    from mqttd.config import ConfigError
    from mqttd.net import loops

    logger = logging.getLogger("mqttd")
    try:
        app = App(tree)
    except ConfigError as error:
        return _tell(error)
    for warning in app.warnings():
        log.event(logger, "config", level=logging.WARNING, warning=warning)
    with asyncio.Runner(loop_factory=lambda: loops.new_event_loop(loop)) as runner:
        return runner.run(app.run())


def _check(file: str, *, as_json: bool) -> int:
    import asyncio

    from mqttd import config
    from mqttd.hooks import checking, loader

    problems: list[config.Problem] = []
    warnings: list[str] = []
    try:
        tree = config.load_config(file)
        prepared = loader.prepare(tree)
        problems = asyncio.run(checking.check(tree, prepared))
        warnings = tree.warnings(any(one.authenticates for one in prepared))
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


def _plugins(name: str | None, *, as_json: bool) -> int:
    from mqttd.hooks.loader import NoPlugin
    from mqttd.operate import plugins as plugin_commands

    if name is None:
        plugin_commands.list_plugins(as_json)
        return GOOD
    try:
        plugin_commands.show_plugin(name, as_json)
    except NoPlugin as error:
        _complain(f"{name}: {error}")
        return USAGE
    return GOOD


def _schema() -> int:
    from mqttd import config

    _print_json(config.json_schema())
    return GOOD


def _db(args: argparse.Namespace) -> int:
    import signal

    from mqttd.store import admin, view

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a draft is taken away
    try:
        if args.action == "check":
            verdict = view.check(args.file, as_json=args.json, quiet=args.quiet)
            return {"good": GOOD, "bad": BAD}.get(verdict, USAGE)
        if args.action == "stats":
            view.stats(args.file, top=args.top, as_json=args.json)
        else:
            view.backup(
                args.file, args.target, force=args.force, as_json=args.json, quiet=args.quiet
            )
        return GOOD
    except admin.Unusable as error:
        if args.json:
            view.failed(args.action, args.file, str(error))
        _complain(str(error))
        return BAD if isinstance(error, admin.Damaged) else USAGE
    except KeyboardInterrupt:
        _complain("stopped")
        return BAD
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_json(value: dict[str, Any]) -> None:
    import json

    print(json.dumps(value, indent=2))
