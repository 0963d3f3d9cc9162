"""Files with one `user:something` a line, as Mosquitto's password files are.

Owns: the lines. Comments begin with `#`, blank lines mean nothing, a user stands in one line only,
and his name has no colon. Reading is all or nothing: a line that can't be understood refuses the
file, with its place, because a broker that went on would let in, or keep out, whom nobody meant
(CVE-2018-12551). Writing keeps comments and order, and is atomic: a new file, synced, in the place
of the old one, with its mode and owner (0600 for a new one); a lock keeps two writers apart.

Must not know: what stands behind the colon; whoever reads brings a function for it.

Invariant: no error text holds anything from behind a colon, or from a line that has none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

T = TypeVar("T")

LONGEST_NAME: Final = 65535  # bytes: more than that no MQTT string can hold
_NEW_MODE: Final = 0o600


class UserFileError(ValueError):
    """The file can't be used: `FILE:LINE: what is wrong`."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One user's line; `line` counts from 1."""

    line: int
    value: T


def read(path: Path, parse: Callable[[str], T]) -> dict[str, Entry[T]]:
    """All users. `parse` makes a value of the text behind the colon, or raises ValueError.

    UserFileError where the file can't be read, or a line is no good. It blocks.
    """
    entries: dict[str, Entry[T]] = {}
    for number, line in enumerate(lines_of(path), 1):
        if is_empty(line):
            continue
        try:
            user, text = split(line)
            if user in entries:
                raise ValueError(f"user {user!r} is in line {entries[user].line} already")
            entries[user] = Entry(number, parse(text))
        except ValueError as error:
            raise UserFileError(f"{path}:{number}: {error}") from None
    return entries


def lines_of(path: Path) -> list[str]:
    """The lines as they are, for somebody who writes them back. UserFileError as `read`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserFileError(f"{path}: can't be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserFileError(f"{path}:{number}: not UTF-8") from None
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in lines[: -1 if lines[-1] == "" else None]]


def is_empty(line: str) -> bool:
    """Whether a line is a comment or blank."""
    return line.startswith("#") or not line.strip()


def split(line: str) -> tuple[str, str]:
    """User and the text behind the colon, both without blanks around them."""
    user, colon, text = line.partition(":")
    if not colon:
        raise ValueError("expected USER:HASH, found no colon")
    user, text = user.strip(), text.strip()
    check_name(user)
    if not text:
        raise ValueError(f"nothing behind the colon of user {user!r}")
    return user, text


def check_name(user: str) -> None:
    """ValueError where a line can't hold the name, or no client could send it."""
    if not user:
        raise ValueError("the user name is empty")
    if user != user.strip() or user.startswith("#"):
        raise ValueError(f"user name {user!r}: no blanks around it, no # in front")
    if ":" in user or any(ord(character) < 32 or 127 <= ord(character) < 160 for character in user):
        raise ValueError(f"user name {user!r}: no colon and no control characters")
    if len(user.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise ValueError(f"the user name is longer than {LONGEST_NAME} bytes")


def is_open_to_all(path: Path) -> bool:
    """Whether anybody on the machine may read or write the file."""
    try:
        return bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except OSError:
        return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else who asks like this changes the file meanwhile. UserFileError if there is none."""
    while True:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserFileError(f"{path}: can't be read: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever had the lock has put another file in its place.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    yield
                    return
        finally:
            os.close(handle)


def write(path: Path, lines: list[str]) -> None:
    """Put `lines` into the place of the file, all or nothing; it is on the disk afterwards.

    UserFileError where that can't be done; the old file is unharmed then.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    try:
        before = target.stat() if target.exists() else None
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "wb") as draft:
                draft.write("".join(f"{line}\n" for line in lines).encode("utf-8"))
                draft.flush()
                os.fchmod(draft.fileno(), stat.S_IMODE(before.st_mode) if before else _NEW_MODE)
                if before is not None and os.geteuid() == 0:
                    os.fchown(draft.fileno(), before.st_uid, before.st_gid)
                os.fsync(draft.fileno())
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
        _sync_directory(target.parent)
    except OSError as error:
        raise UserFileError(f"{path}: can't be written: {error.strerror}") from None


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
