"""`mqttd passwd`: the command that writes password files, and SCRAM files.

Owns: the command line, which is that of `mosquitto_passwd` with `--stdin`, `--scram` and `--json`
beside it; asking for a password twice on a terminal; what is printed.

Must not know: a broker. One that runs notices the new file by itself.

Invariants: a password is never printed, and never read from an argument unless `-b` says so. The
file is changed as a whole or not at all; a file with a bad line is not touched. Exit 0: done;
1: there is no such user to delete; 2: usage, or the file can't be used.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mqttd_plugins import _hashes, _scram_keys, _user_file
from mqttd_plugins._user_file import UserFileError

GOOD: Final = 0
BAD: Final = 1
USAGE: Final = 2

_EXAMPLES: Final = """\
examples:
  mqttd passwd -c passwd alice              a new file; asks for the password, twice
  mqttd passwd passwd bob                   another user, or a new password for bob
  mqttd passwd -D passwd bob                no bob any more
  pass show bob | mqttd passwd --stdin passwd bob
  mqttd passwd --stdin passwd < users       many at once, as USER:PASSWORD lines
  mqttd passwd -b passwd bob secret         from the command line: others can see it there
  mqttd passwd -U passwd                    the file has passwords as they are: hash them
  mqttd passwd --scram scram alice          a file for the scram plugin

exit code: 0 done, 1 no such user, 2 usage, or the file can't be used
"""


class _Refused(Exception):
    """What was asked for can't be done; the text says why."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttd passwd",
        description="Writes the files that the plugins password_file and scram read.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-c", "--create", action="store_true", help="begin a new, empty file")
    what.add_argument("-D", "--delete", action="store_true", help="take the user out of the file")
    what.add_argument(
        "-U", "--hash-file", action="store_true", help="hash the passwords in FILE, in place"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-b", "--batch", action="store_true", help="PASSWORD is an argument")
    source.add_argument(
        "--stdin",
        action="store_true",
        help="the password is a line of input; without USER, all lines of it are USER:PASSWORD",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "-H", "--hash", choices=_hashes.WRITABLE, default=_hashes.ARGON2ID, metavar="KIND",
        help=f"{' or '.join(_hashes.WRITABLE)} (default: {_hashes.ARGON2ID})",
    )  # fmt: skip
    kind.add_argument("--scram", action="store_true", help="keys for SCRAM-SHA-256 instead")
    parser.add_argument(
        "-I", "--iterations", type=int, metavar="N",
        help=f"of sha512-pbkdf2 (default: {_hashes.PBKDF2_ITERATIONS}) or SCRAM "
        f"(default: {_scram_keys.ITERATIONS})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("user", metavar="USER", nargs="?")
    parser.add_argument("password", metavar="PASSWORD", nargs="?")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check_usage(parser, args)
    try:
        done, count = _run(args)
    except (_Refused, UserFileError, RuntimeError) as error:
        if args.json:
            print(json.dumps({"file": str(args.file), "done": None, "error": str(error)}))
        print(f"mqttd passwd: {error}", file=sys.stderr)
        return BAD if isinstance(error, _Refused) else USAGE
    except KeyboardInterrupt:
        print("mqttd passwd: stopped, nothing was changed", file=sys.stderr)
        return BAD
    if args.json:
        print(json.dumps({"file": str(args.file), "done": done, "user": args.user, "users": count}))
    else:
        whom = f"{count} users" if args.user is None else f"user {args.user}"
        print(f"{args.file}: {whom} {done}")
    return GOOD


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.hash_file:
        if args.user is not None or args.batch or args.stdin or args.scram:
            parser.error("-U takes FILE alone, and makes hashes")
    elif args.user is not None:
        wrong = _wrong_name(args.user, args.scram)
        if wrong:
            parser.error(wrong)
    elif not args.stdin or args.delete:
        parser.error("USER is missing")
    if args.delete and (args.batch or args.stdin):
        parser.error("-D needs no password")
    if args.batch != (args.password is not None):
        parser.error("-b goes with USER PASSWORD, and PASSWORD with -b")
    if args.iterations is not None:
        if not args.scram and args.hash != _hashes.PBKDF2:
            parser.error(f"-I goes with --scram or -H {_hashes.PBKDF2}")
        fewest = _scram_keys.FEWEST_ITERATIONS if args.scram else 1000
        if not fewest <= args.iterations <= 10_000_000:
            parser.error(f"-I: expected {fewest} to 10000000")


def _wrong_name(user: str, scram: bool) -> str:
    """Why there can't be a user of this name; "" if there can."""
    try:
        _user_file.check_name(user)
    except ValueError as error:
        return str(error)
    if scram and len(user) > _scram_keys.LONGEST_NAME:
        return f"--scram: a user name has at most {_scram_keys.LONGEST_NAME} characters"
    if scram and _is_unprepared(user):
        return "--scram: a user name has to be one that SASLprep doesn't change"
    return ""


def _is_unprepared(user: str) -> bool:
    try:
        return _scram_keys.saslprep(user) != user
    except ValueError:
        return True


def _run(args: argparse.Namespace) -> tuple[str, int]:
    """What was done, as a word, and to how many users."""
    if args.hash_file:
        return "hashed", _hash_file(args)
    path: Path = args.file
    values = {} if args.delete else _new_values(args)
    if args.create:
        _user_file.write(path, [f"{user}:{value}" for user, value in values.items()])
        return "created", len(values)
    with _user_file.locked(path):
        # Whoever has a bad line in there should hear of it now.
        entries = _user_file.read(path, _scram_keys.parse if args.scram else _hashes.parse)
        lines = _user_file.lines_of(path)
        if args.delete:
            if args.user not in entries:
                raise _Refused(f"{path}: no user {args.user!r}")
            del lines[entries[args.user].line - 1]
        for user, value in values.items():
            if user in entries:
                lines[entries[user].line - 1] = f"{user}:{value}"
            else:
                lines.append(f"{user}:{value}")
        _user_file.write(path, lines)
    if args.delete:
        return "deleted", 1
    if args.user is None:
        return "added or updated", len(values)
    return ("updated" if args.user in entries else "added"), 1


def _new_values(args: argparse.Namespace) -> dict[str, str]:
    """What is to stand behind the colon of each user who is added or updated."""
    maker = _maker(args)
    if args.user is None:
        return _read_users(args, maker)
    password = _password(args)
    try:
        return {args.user: maker(password)}
    except ValueError as error:
        raise UserFileError(str(error)) from None


def _read_users(args: argparse.Namespace, maker: Callable[[str], str]) -> dict[str, str]:
    """USER:PASSWORD lines of standard input. No password is part of an error."""
    values: dict[str, str] = {}
    for number, raw in enumerate(sys.stdin.buffer, 1):
        line = os.fsdecode(raw.removesuffix(b"\n").removesuffix(b"\r"))
        if not line:
            continue
        user, colon, password = line.partition(":")
        wrong = _wrong_name(user, args.scram) if colon else "expected USER:PASSWORD"
        if user in values:
            wrong = f"user {user!r} is there twice"
        try:
            if wrong:
                raise ValueError(wrong)
            values[user] = maker(password)
        except ValueError as error:
            raise UserFileError(f"line {number} of the input: {error}") from None
    if not values:
        raise UserFileError("the input holds no USER:PASSWORD line")
    return values


def _maker(args: argparse.Namespace) -> Callable[[str], str]:
    if args.scram:
        iterations = args.iterations or _scram_keys.ITERATIONS
        return lambda password: _scram_keys.make(password, iterations)
    if args.hash == _hashes.ARGON2ID:
        _hashes.argon2()  # before anybody is asked for a password
    iterations = args.iterations or _hashes.PBKDF2_ITERATIONS
    return lambda password: _hashes.make(_encoded(password), args.hash, iterations)


def _encoded(password: str) -> bytes:
    try:
        return password.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("the password holds characters that are none") from None


def _password(args: argparse.Namespace) -> str:
    if args.batch:
        return str(args.password)
    if args.stdin:
        return os.fsdecode(sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r"))
    if not sys.stdin.isatty():
        raise UserFileError("no terminal to ask for a password: use --stdin or -b")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise UserFileError("the passwords differ, nothing was changed")
    return password


def _hash_file(args: argparse.Namespace) -> int:
    """Replace what is no hash yet by one, so that doing it twice does no harm."""
    maker = _maker(args)
    hashed = 0
    path: Path = args.file
    with _user_file.locked(path):
        entries = _user_file.read(path, str)
        lines = _user_file.lines_of(path)
        for user, entry in entries.items():
            try:
                _hashes.parse(entry.value)
                continue
            except _hashes.BadHash as error:
                if entry.value.startswith(_hashes.PREFIXES):  # rather broken than a password
                    raise UserFileError(f"{path}:{entry.line}: {error}") from None
            # A password may begin or end with a blank, unlike a hash.
            password = lines[entry.line - 1].partition(":")[2]
            try:
                lines[entry.line - 1] = f"{user}:{maker(password)}"
            except ValueError as error:
                raise UserFileError(f"{path}:{entry.line}: {error}") from None
            hashed += 1
        _user_file.write(path, lines)
    return hashed
