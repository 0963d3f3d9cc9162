"""`mqttd acl check`: what an access control list says, without a broker.

Owns: the command's arguments, what it prints, its exit codes. The answer comes from the code that
the plugin asks, on a file that is read the same way.

Must not know: how configurations are read (`mqttd.api` does that), clients.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Final

from mqttd.api import (
    ProtocolError,
    configured,
    split_shared,
    validate_topic_filter,
    validate_topic_name,
)
from mqttd_plugins._acl_rights import Acl, Ruling
from mqttd_plugins.acl_file import AclFile, Config, judge, load

ALLOWED: Final = 0
DENIED: Final = 1
USAGE: Final = 2

_EXAMPLES: Final = """\
examples:
  mqttd acl check -c mqttd.yaml --user alice --client c1 publish site/alice/state
  mqttd acl check --file config/acl.example --user alice --client c1 publish site/alice/state
  mqttd acl check --file config/acl.example --client c1 --json subscribe 'news/#'

Without --user the client is one without a user name. The exit code is 0 where it is allowed, 1
where it is denied, 2 where the question or the list is no good.
"""


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as done:
        return USAGE if done.code else ALLOWED
    try:
        topic = _topic(arguments.action, arguments.topic)
        config = _config(arguments)
        acl = Acl(load(config.file))
    except ProtocolError as error:
        return _refuse(f"{arguments.topic!a} can't be asked about: {error.detail}")
    except ValueError as error:
        return _refuse(*str(error).splitlines())
    except OSError as error:
        return _refuse(f"can't read {error.filename}: {error.strerror}")
    for warning in acl.text.warnings:
        print(f"mqttd acl: {warning}", file=sys.stderr)
    rights = acl.rights(arguments.user, arguments.client)
    ruling = judge(config, acl, rights, arguments.action, topic)
    _print(arguments, config, acl, ruling)
    return ALLOWED if ruling.allowed else DENIED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttd acl", description="Ask an access control list of the plugin acl_file."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="say whether a client may do something, and which line decides",
        description="Say whether a client may do something, and which line decides.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("-c", "--config", metavar="FILE", help="the broker's configuration")
    source.add_argument("--file", metavar="ACL", help="an access control list")
    check.add_argument("--user", help="the user name; absent: a client without one")
    check.add_argument("--client", default="", help="the client id")
    check.add_argument("--json", action="store_true", help="answer as one JSON object")
    check.add_argument("action", choices=("publish", "subscribe", "receive"))
    check.add_argument("topic", help="a topic; for subscribe a filter")
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    """Of the plugin that decides; ValueError, OSError."""
    if arguments.file is not None:
        return Config.model_validate({"file": arguments.file})
    found = configured(arguments.config, AclFile)
    if not found:
        raise ValueError(f"{arguments.config}: no plugin acl_file in it")
    return found[0]  # it has an opinion about everything, so a second one is never asked


def _topic(action: str, text: str) -> str:
    """What is asked about: for a shared subscription the filter inside."""
    if action == "subscribe":
        validate_topic_filter(text)
        return split_shared(text)[1]
    validate_topic_name(text)
    return text


def _print(arguments: argparse.Namespace, config: Config, acl: Acl, ruling: Ruling) -> None:
    if arguments.json:
        rule = ruling.rule
        answer = {
            "allowed": ruling.allowed,
            "partial": ruling.partial,
            "observe": config.observe,
            "action": arguments.action,
            "topic": arguments.topic,
            "user": arguments.user,
            "client": arguments.client,
            "file": acl.text.file,
            "line": rule.line if rule else None,
            "rule": rule.text if rule else None,
            "reason": ruling.reason,
        }
        print(json.dumps(answer))
        return
    verdict = "allowed" if ruling.allowed else "denied"
    if ruling.partial:
        verdict += ", in part: each delivery is asked about"
    if config.observe and not ruling.allowed:
        verdict += ", but only observed: the broker allows it"
    print(f"{verdict}\n  {acl.where(ruling)}")


def _refuse(*problems: str) -> int:
    for problem in problems:
        print(f"mqttd acl: {problem}", file=sys.stderr)
    return USAGE
