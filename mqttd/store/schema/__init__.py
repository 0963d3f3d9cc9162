"""The tables of the database, version by version.

Owns: how a database of any earlier version becomes one of this version, forward only, and the row
that says which version a file has. Version n is a module here with the statements that lead from
n - 1 to n; a version that was released is never edited.

Must not know: what the rows mean to the core, files, threads.

Invariants: all steps of a migration and the version row are one transaction, so that a crash leaves
the old version or the new one; a database of a newer version is left alone.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from mqttd.store.schema import v1, v2, v3

APPLICATION_ID: Final = 0x6D717474  # "mqtt", where file(1) and we look for it

STEPS: Final[tuple[tuple[str, ...], ...]] = (v1.STATEMENTS, v2.STATEMENTS, v3.STATEMENTS)
VERSION: Final = len(STEPS)

_SET_VERSION: Final = "INSERT OR REPLACE INTO meta VALUES ('schema', ?)"


def version_of(db: sqlite3.Connection) -> int:
    """The schema version of a database, 0 for an empty one; -1 when it isn't one of ours."""
    application: int = db.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        tables: int = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        return 0 if tables == 0 and application == 0 else -1
    row = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) else -1


def migrate(db: sqlite3.Connection) -> None:
    """Bring a database that is not newer than this code to `VERSION`. Autocommit connections."""
    version = version_of(db)
    if version == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for statements in STEPS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(_SET_VERSION, (VERSION,))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise
