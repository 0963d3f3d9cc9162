"""The users of one file, kept up to date while the broker runs.

Owns: reading the file (`_user_file`) at the start, when the operator reloads and after it has
changed; counting, auditing and disconnecting on what is different then.

Must not know: what a user's entry is, how somebody logs in.

Invariants: all or nothing, and fail closed: a file with a bad line stops the start of the broker,
and on a later reading leaves the users as they were. A file that was changed is left alone for half
a second, since an editor may still be writing it; half a file must not throw out half of the users.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

from mqttd.api import BrokerServices, FilePath, PluginConfig, reason_codes
from mqttd_plugins._files import Followed, Interval
from mqttd_plugins._user_file import Entry, is_open_to_all

T = TypeVar("T")

_SETTLE_S: Final = 0.5


class UserFileConfig(PluginConfig):
    """Where the users are, and what happens when the file changes."""

    file: FilePath
    """The file; `mqttd passwd` writes it."""
    poll: Interval = 2.0
    """How often the file is looked at, and read again if it has changed; 0 for never."""
    disconnect: bool = True
    """Whether who is taken out of the file, or has another entry there, is disconnected."""


class UserStore(Generic[T]):
    """`entries` is the last good reading; a dict that is replaced and never changed.

    `read` blocks, is called in a thread, and raises where the file is no good. `replaced` is called
    after each good reading.
    """

    def __init__(
        self,
        broker: BrokerServices,
        config: UserFileConfig,
        read: Callable[[Path], dict[str, Entry[T]]],
        replaced: Callable[[], object],
    ) -> None:
        self.entries: dict[str, Entry[T]] = {}
        self._broker = broker
        self._config = config
        self._read = read
        self._replaced = replaced
        self._files: Followed[dict[str, Entry[T]]] = Followed(
            broker, "users", self._replace, _SETTLE_S
        )

    async def load(self, config: UserFileConfig) -> None:
        """Read the file that `config` names; from then on it is looked at."""
        read = partial(self._read, config.file)
        entries = await self._files.follow([config.file], config.poll, read)
        self._config = config
        if await self._broker.run_blocking(is_open_to_all, config.file):
            self._broker.log.warning("%s: anybody on this machine may read it", config.file)
        await self._replace(entries)

    def stop(self) -> None:
        self._files.stop()

    def place(self, entry: Entry[T]) -> str:
        """FILE:LINE of an entry."""
        return f"{self._config.file}:{entry.line}"

    async def _replace(self, after: dict[str, Entry[T]]) -> None:
        before = self.entries
        self.entries = after
        self._broker.gauge("users", len(after))
        self._replaced()
        added = len(after.keys() - before.keys())
        removed = before.keys() - after.keys()
        both = before.keys() & after.keys()
        other = {user for user in both if before[user].value != after[user].value}
        if before and (added or removed or other):
            self._broker.audit(
                "users_changed",
                file=str(self._config.file),
                users=len(after),
                added=added,
                removed=len(removed),
                changed=len(other),
            )
        if self._config.disconnect and (removed or other):
            await disconnect(self._broker, removed | other)


async def disconnect(broker: BrokerServices, users: set[str]) -> None:
    """End the connections of users whose credentials have changed."""
    async for session in broker.sessions():
        if session.connected and session.username in users:
            broker.kick(session.client_id, "credentials changed", reason_codes.NOT_AUTHORIZED)
