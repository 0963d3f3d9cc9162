"""The commands that ask a broker that runs, over its control socket.

Owns: their arguments, what they print (tables and sentences, or JSON with `--json`), and how the
socket is found: `--socket PATH`, else what the configuration `-c FILE` says, else the default.

Must not know: how the broker finds its answers. Nothing is imported before a command runs.

Exit codes: 0 it was done, 1 the broker says no or the reload failed, 2 usage, or nobody answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mqttd.operate.client import Control

GOOD: Final = 0
BAD: Final = 1
USAGE: Final = 2

_BRIDGES: Final = """\
examples:
  mqttd bridges                 all of them: state, figures, and why one is down
  mqttd bridges kafka           one of them, with the reasons of what was dropped
  mqttd bridges pause kafka     end its connection; messages wait in the broker
  mqttd bridges resume --all    connect again, at once
  mqttd bridges --json          one object a line

exit code: 0 done, 1 a bridge gave no answer or isn't there, 2 usage, or no broker answers
"""

Commands = Any  # what argparse's add_subparsers returns has no public name


def add(commands: Commands) -> None:
    """Add the sub-commands to the parser of the command line."""
    clients = _command(commands, "clients", "list who is connected")
    clients.add_argument("filter", nargs="?", default="", help="a client id; * and ? match")
    sessions = _command(commands, "sessions", "list sessions, also of clients that are away")
    sessions.add_argument(
        "filter", nargs="?", default="", help="a client id, which shows its subscriptions too; * ?"
    )
    retained = _command(commands, "retained", "list retained messages, without their payload")
    retained.add_argument("filter", nargs="?", default="#", help="a topic filter (default: #)")
    kick = _command(commands, "kick", "end the connection of a client")
    kick.add_argument("client", help="its client id")
    kick.add_argument("--reason", default="", help="told to the client, and logged")
    _add_ban(_command(commands, "ban", "list, add and remove bans (the plugin ban)"))
    _add_bridges(_command(commands, "bridges", "show bridges, pause and resume them"))
    plugin = _command(commands, "plugin", "ask a plugin to do something")
    plugin.add_argument("name", help="its name in the configuration")
    plugin.add_argument("action", help="what its page calls it")
    plugin.add_argument(
        "arguments", metavar="KEY=VALUE", nargs="*", type=_pair, help="a value is JSON, or text"
    )
    _command(commands, "reload", "read the configuration again, and apply what can change live")
    explain = _command(commands, "explain", "why messages were, or were not, delivered")
    explain.add_argument("--client", default="", help="who published, or got, or didn't get it")
    explain.add_argument("--topic", default="", help="a topic or a filter")
    explain.add_argument("--since", type=_duration, default=0.0, help="5m: only of the last time")
    explain.add_argument("--limit", type=int, default=50, help="the last so many (default: 50)")
    top = _command(commands, "top", "watch rates, clients, queues and plugins; q ends it")
    top.add_argument("--once", action="store_true", help="print the figures once")
    top.add_argument("--interval", type=float, default=1.0, help="seconds (default: 1)")


def _add_ban(ban: argparse.ArgumentParser) -> None:
    ban.add_argument("action", choices=("list", "add", "remove"))
    ban.add_argument("kind", nargs="?", choices=("client", "user", "address"))
    ban.add_argument("value", nargs="?", help="a client id, a user name, an address or network")
    ban.add_argument("--for", dest="lasts", type=_duration, help="1h; without it, for good")
    ban.add_argument("--reason", default="", help="for the list")
    ban.add_argument("--plugin", default="ban", help="its name in the configuration")


def _add_bridges(bridges: argparse.ArgumentParser) -> None:
    bridges.epilog = _BRIDGES
    bridges.formatter_class = argparse.RawDescriptionHelpFormatter
    bridges.add_argument(
        "words",
        metavar="[pause|resume] NAME",
        nargs="*",
        help="a bridge, by its name in the configuration; without any word: all are shown",
    )
    bridges.add_argument("--all", action="store_true", help="pause or resume all of them")


def _command(commands: Commands, name: str, what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + "."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", type=Path, help="the broker's control socket")
    where.add_argument(
        "-c", "--config", metavar="FILE", help="the broker's configuration, which says where it is"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _duration(text: str) -> float:
    from pydantic_core import PydanticCustomError

    from mqttd.scalars import parse_duration

    try:
        return parse_duration(float(text) if text.replace(".", "", 1).isdigit() else text)
    except PydanticCustomError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {error.message()}") from None


def run(args: argparse.Namespace) -> int:
    """Run one of the commands; an exit code."""
    from mqttd.config import ConfigError
    from mqttd.operate.client import Control, NotGranted, Unanswered

    try:
        path = _socket_of(args)
        if path is None:
            _complain(f"{args.config}: a broker with this configuration has no control socket")
            return USAGE
        with Control(path) as control:
            return _COMMANDS[args.command](control, args)
    except ConfigError as error:
        for problem in error.problems:
            _complain(str(problem))
        return USAGE
    except NotGranted as error:
        _complain(str(error))
        return BAD
    except Unanswered as error:
        _complain(str(error))
        return USAGE
    except KeyboardInterrupt:
        return GOOD


def _socket_of(args: argparse.Namespace) -> Path | None:
    from mqttd.config import load_config
    from mqttd.operate.client import DEFAULT

    if args.socket is not None:
        return Path(args.socket)
    return Path(DEFAULT) if args.config is None else load_config(args.config).control_socket()


def _complain(text: str) -> None:
    from mqttd.log import escape

    print(f"mqttd: {escape(text, 1000)}", file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


# Lists.


def _list(control: Control, args: argparse.Namespace) -> int:
    from mqttd.operate import show

    request = {"do": args.command, "filter": args.filter}
    if args.json:
        for answer in control.stream(request):
            if "item" in answer:
                print(json.dumps(answer["item"]))
        return GOOD
    items, _ = control.ask(request)
    titles, row = _TABLES[args.command]
    show.table(titles, [row(item) for item in items])
    for item in items:
        for one in item.get("filters", ()):
            local = ", no local" if one["no_local"] else ""
            show.line(f"  {one['filter']} (QoS {one['qos']}{local})")
    return GOOD


def _client_row(item: dict[str, Any]) -> list[str]:
    from mqttd.operate.show import span

    return [
        item["client"],
        item["user"] or "-",
        item["peer"] or "-",
        item["listener"] or "-",
        item["version"] or "-",
        span(item["connected_s"]),
        *_numbers(item),
    ]


def _session_row(item: dict[str, Any]) -> list[str]:
    from mqttd.operate.show import span

    state = item["peer"] or "away"
    expires = "-" if item["expires_in_s"] is None else span(item["expires_in_s"])
    return [item["client"], item["user"] or "-", state, expires, *_numbers(item)]


def _retained_row(item: dict[str, Any]) -> list[str]:
    from mqttd.operate.show import span

    expires = "-" if item["expires_in_s"] is None else span(item["expires_in_s"])
    return [item["topic"], str(item["bytes"]), str(item["qos"]), expires, item["from"] or "-"]


def _numbers(item: dict[str, Any]) -> list[str]:
    return [str(item[key]) for key in ("subscriptions", "queued", "in_flight")]


_COUNTS: Final = ["filters", "queued", "in flight"]
_TABLES: Final[dict[str, tuple[list[str], Callable[[dict[str, Any]], list[str]]]]] = {
    "clients": (
        ["client", "user", "from", "listener", "mqtt", "since", *_COUNTS],
        _client_row,
    ),
    "sessions": (["client", "user", "from", "ends in", *_COUNTS], _session_row),
    "retained": (["topic", "bytes", "qos", "ends in", "published by"], _retained_row),
}


# Acts.


def _kick(control: Control, args: argparse.Namespace) -> int:
    request = {"do": "kick", "client": args.client, "reason": args.reason}
    return _done(control, args, request, lambda end: f"{end['kicked']}: its connection is ended")


def _ban(control: Control, args: argparse.Namespace) -> int:
    from mqttd.operate import show

    arguments: dict[str, object] = {}
    if args.action != "list":
        if args.kind is None or args.value is None:
            _complain(f"ban {args.action} needs client, user or address, and which")
            return USAGE
        arguments = {"kind": args.kind, "value": args.value}
    if args.action == "add":
        if args.lasts is not None:
            arguments["seconds"] = args.lasts
        if args.reason:
            arguments["reason"] = args.reason
    request = {
        "do": "plugin",
        "name": args.plugin,
        "action": args.action,
        "arguments": arguments,
    }
    if args.action != "list" or args.json:
        return _plugin_answer(control, args, request)
    _, end = control.ask(request)
    rows = [
        [
            one["kind"],
            one["value"],
            "for good" if one["seconds_left"] is None else show.span(one["seconds_left"]),
            one["by"],
            one["reason"],
        ]
        for one in end["answer"]["bans"]
    ]
    show.table(["kind", "who", "ends in", "by", "reason"], rows)
    return GOOD


def _bridges(control: Control, args: argparse.Namespace) -> int:
    from mqttd.operate import bridges

    try:
        action, name = bridges.parsed(args.words, args.all)
    except bridges.Usage as error:
        _complain(str(error))
        return USAGE
    items = bridges.ask(control, action, name)
    if not items:
        _complain(bridges.NONE)
        return GOOD if action == "status" and not name else BAD
    bridges.show_answers(items, action, name, as_json=args.json)
    return BAD if any("error" in item for item in items) else GOOD


def _plugin(control: Control, args: argparse.Namespace) -> int:
    request = {
        "do": "plugin",
        "name": args.name,
        "action": args.action,
        "arguments": dict(args.arguments),
    }
    return _plugin_answer(control, args, request)


def _plugin_answer(control: Control, args: argparse.Namespace, request: dict[str, Any]) -> int:
    _, end = control.ask(request)
    _print_json(end["answer"])
    return GOOD


def _reload(control: Control, args: argparse.Namespace) -> int:
    from mqttd.operate import show

    _, end = control.ask({"do": "reload"})
    if args.json:
        _print_json(end)
    else:
        for change in end["changed"]:
            show.line(f"changed: {change}")
        for name in end["restart"]:
            show.line(f"needs a restart: {name}")
        for failure in [*end["failed"], *end["problems"]]:
            _complain(failure)
        if end["problems"]:
            _complain("nothing has changed")
        elif not (end["changed"] or end["restart"] or end["failed"]):
            print("read again, nothing in it is different")
    return GOOD if end["good"] else BAD


def _done(
    control: Control,
    args: argparse.Namespace,
    request: dict[str, Any],
    says: Callable[[dict[str, Any]], str],
) -> int:
    from mqttd.operate import show

    _, end = control.ask(request)
    if args.json:
        _print_json(end)
    else:
        show.line(says(end))
    return GOOD


def _explain(control: Control, args: argparse.Namespace) -> int:
    from mqttd.operate import explained

    request = {
        "do": "explain",
        "client": args.client,
        "topic": args.topic,
        "since_s": args.since,
        "limit": args.limit,
    }
    items, end = control.ask(request)
    if args.json:
        _print_json({"messages": items, **end})
    else:
        explained.show(items, end, args.client)
    return GOOD


def _top(control: Control, args: argparse.Namespace) -> int:
    from mqttd.operate import top

    if args.once:
        _, figures = control.ask({"do": "figures"})
        if args.json:
            _print_json(figures)
        else:
            for text in top.lines(figures, None):
                print(text)
        return GOOD
    top.watch(control, max(args.interval, 0.1), as_json=args.json)
    return GOOD


_COMMANDS: Final[dict[str, Callable[[Control, argparse.Namespace], int]]] = {
    "clients": _list,
    "sessions": _list,
    "retained": _list,
    "kick": _kick,
    "ban": _ban,
    "bridges": _bridges,
    "plugin": _plugin,
    "reload": _reload,
    "explain": _explain,
    "top": _top,
}
