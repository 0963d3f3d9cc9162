"""A backup of a database, also while a broker commits to it.

Owns: the way from a live database to a copy under another name: where it is made, when it gets that
name, and what it may not take the place of.

Must not know: the broker and its core, what is in the tables, terminals, exit codes.

Invariants: nothing of the database is changed; the copy is one instant of it, but for the serial
that comes next: it is beyond all that the broker gives from now on, so that whoever starts on the
copy gives none of them again; it has its name only when it is whole, checked and on the disk, and
nothing is left of one that failed.

A broker that commits all the time would make SQLite's online backup start over with each slice. So
it reads inside one transaction, which keeps the pages as they are; meanwhile the broker's log can't
be reset and grows.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Final

from mqttd.store.admin import (
    Damaged,
    Document,
    Progress,
    Unusable,
    connection,
    damages_in,
    find,
    one,
    reading,
    silent,
    size_of,
    snapshot,
    use_of,
    version_in,
)

BACKUP: Final = "mqttd.db.backup/1"

_SLICE_PAGES: Final = 1024  # copied between two reports of progress
_AHEAD: Final = 1 << 40  # serials: more than a broker gives between a backup and its use
_PARTS: Final = ("", "-wal", "-shm", "-journal", ".lock")  # what belongs to one database


def backup(
    path: Path, target: Path, *, force: bool = False, progress: Progress = silent
) -> Document:
    """A copy of the database under the name `target`, with all that is committed right now."""
    find(path)
    began = time.time()
    _refuse(path, target, force)
    draft: Path | None = None
    done = False
    try:
        # Made with mode 0600, under a name that nobody else has.
        descriptor, name = tempfile.mkstemp(".part", target.name + ".", target.parent)
        os.close(descriptor)
        draft = Path(name)
        copied = reading(path, lambda db: _copy(db, path, target, Path(name), progress))
        progress("checking", 0, 0)
        with connection(draft, "mode=ro&immutable=1") as db:
            damages = damages_in(db)
        if damages:
            raise Damaged(f"{path}: is damaged ({damages[0]}); no backup was made")
        progress("writing to disk", 0, 0)
        _sync(draft)
        _refuse(path, target, force)
        draft.rename(target)
        done = True
        _sync(target.parent)
    except sqlite3.Error as error:
        raise Damaged(f"{path}: is damaged ({error}); no backup was made") from error
    except OSError as error:
        left = "it is there, but perhaps not yet on the disk" if done else "no backup was made"
        raise Unusable(f"{target}: {error.strerror or error}; {left}") from error
    finally:
        if draft is not None and not done:
            draft.unlink(missing_ok=True)
    return {
        "schema": BACKUP,
        "file": str(path),
        "target": str(target),
        "as_of": began,
        "seconds": round(time.time() - began, 3),
        "bytes": target.stat().st_size,
        **copied,
    }


def _refuse(path: Path, target: Path, force: bool) -> None:
    """A backup must not harm what is there, least of all the database itself."""
    if target.is_dir():
        raise Unusable(f"{target}: is a directory; give the name of the file to make")
    if not target.parent.is_dir():
        raise Unusable(f"{target}: there is no directory {target.parent}")
    real = Path(os.path.realpath(target))
    if any(real == Path(f"{os.path.realpath(path)}{suffix}") for suffix in _PARTS):
        raise Unusable(f"{target}: belongs to the database itself; choose another name")
    for suffix in ("-wal", "-journal"):
        if size_of(f"{target}{suffix}"):
            raise Unusable(
                f"{target}: {target}{suffix} is there, which SQLite would take for the log of the"
                " backup; choose another name"
            )
    if not os.path.lexists(target):
        return
    if not force:
        raise Unusable(f"{target}: is there already; choose another name, or say --force")
    if not target.is_file() and not target.is_symlink():
        raise Unusable(f"{target}: is not a file")
    use = use_of(target)
    if use.taken:
        raise Unusable(f"{target}: a broker uses it (process {use.process or 'unknown'})")


def _copy(
    db: sqlite3.Connection, path: Path, target: Path, draft: Path, progress: Progress
) -> Document:
    with snapshot(db):
        version = version_in(db, path)
        pages: int = one(db, "PRAGMA page_count")[0]
        size = pages * one(db, "PRAGMA page_size")[0]
        room = os.statvfs(target.parent)
        free = room.f_bavail * room.f_frsize
        if room.f_blocks and free < size:
            # A broker on the same disk would refuse what it has to store, were it filled.
            raise Unusable(
                f"{target}: no room left on the disk: the backup takes {size:,} bytes, {free:,} are"
                " free; no backup was made"
            )
        os.truncate(draft, 0)
        # Nothing of a half draft is ever used, so it needs no journal, and one sync at its end.
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as copy:
            for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = OFF", "synchronous = OFF"):
                copy.execute(f"PRAGMA {pragma}").fetchall()

            def report(_: int, remaining: int, total: int) -> None:
                progress("copying", total - remaining, total)

            try:
                db.backup(copy, pages=_SLICE_PAGES, progress=report)
                copy.execute("UPDATE meta SET value = value + ? WHERE key = 'serials'", (_AHEAD,))
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code == sqlite3.SQLITE_FULL:
                    raise Unusable(
                        f"{target}: no room left on the disk ({error}); no backup was made"
                    ) from error
                if code == sqlite3.SQLITE_IOERR:
                    raise Unusable(
                        f"{target}: input/output error between it and {path} ({error}); no backup"
                        " was made"
                    ) from error
                raise
    return {"schema_version": version, "pages": pages}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
