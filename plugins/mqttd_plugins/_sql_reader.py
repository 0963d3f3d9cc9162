"""Asking a SQLite database that somebody else writes.

Owns: one connection, opened when it is needed and again after it broke, and whether the database
has changed since the last time somebody asked that. aiosqlite runs it in a thread of its own.

Must not know: what is asked for.

Invariants: nothing is ever written: the file is opened read-only, so a wrong query can't change it,
and a file that isn't there is not made. Whatever goes wrong is a `sqlite3.Error`, and the
connection is a new one the next time.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import aiosqlite

Row = tuple[Any, ...]
Identity = tuple[int, int]


class Reader:
    """Questions to one file. For use on the event loop; questions queue up."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._connection: aiosqlite.Connection | None = None
        self._identity: Identity | None = None  # of the file that the connection has open
        self._version: int | None = None
        self._one_at_a_time = asyncio.Lock()

    async def row(self, query: str, parameters: Mapping[str, object]) -> Row | None:
        """The first row, or None."""
        rows = await self.rows(query, parameters)
        return rows[0] if rows else None

    async def rows(self, query: str, parameters: Mapping[str, object]) -> list[Row]:
        async with self._one_at_a_time:
            rows, _ = await self._ask(query, parameters)
            return rows

    async def columns(self, query: str, parameters: Mapping[str, object]) -> int:
        """How many columns the answer has."""
        async with self._one_at_a_time:
            _, columns = await self._ask(query, parameters)
            return columns

    async def has_changed(self) -> bool:
        """Whether anybody has committed since this was asked last, or put in another file."""
        async with self._one_at_a_time:
            if self._identity != _identity(self._path):
                await self._drop()
            rows, _ = await self._ask("PRAGMA data_version", {})
            before, self._version = self._version, int(rows[0][0])
            return before != self._version

    async def close(self) -> None:
        async with self._one_at_a_time:
            await self._drop()

    async def _ask(self, query: str, parameters: Mapping[str, object]) -> tuple[list[Row], int]:
        try:
            if self._connection is None:
                self._connection = await self._open()
            async with self._connection.execute(query, parameters) as cursor:
                rows = [tuple(row) for row in await cursor.fetchall()]
                return rows, len(cursor.description or ())
        except (sqlite3.Error, ValueError) as error:
            await self._drop()
            if isinstance(error, sqlite3.Error):
                raise
            raise sqlite3.OperationalError(str(error)) from error

    async def _open(self) -> aiosqlite.Connection:
        try:
            import aiosqlite
        except ImportError as error:
            raise RuntimeError('sql_users needs aiosqlite: pip install "mqttd[sql]"') from error
        self._version = None
        self._identity = _identity(self._path)
        if self._identity is None:  # before aiosqlite has a thread, which outlives its failure
            raise sqlite3.OperationalError("unable to open database file")
        address = f"file:{quote(os.path.abspath(self._path))}?mode=ro"
        return await aiosqlite.connect(address, uri=True, timeout=self._busy_timeout_s)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _identity(path: Path) -> Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
