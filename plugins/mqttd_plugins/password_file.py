"""Authentication by a password file, also one of Mosquitto's or amqtt's.

Owns: what the answer to a user name and a password is. What a line looks like is `_user_file`, what
a hash looks like `_hashes`; `_user_store` reads the file again when it changes, and `_verifier`
sees to it that few hashes are computed at a time.

A client without a user name is not ours. A user of the file gets in with his password and is
refused without it (0x86). One who isn't in the file is left to the next plugin, after a hash has
been computed all the same: neither the answer nor the time it takes tells who exists, as long as
the last one in the chain refuses with the same code.

Must not know: topics, how the file came to be (`passwd` writes it).

Invariants: fail closed; no password is kept, logged or part of an error. The empty user name is a
name like any other, and never stands for an anonymous client.
"""

from __future__ import annotations

from pathlib import Path

from mqttd.api import (
    NOT_MINE,
    Allow,
    BrokerServices,
    Client,
    Credentials,
    Decision,
    Deny,
    Plugin,
    reason_codes,
)
from mqttd_plugins import _hashes, _user_file
from mqttd_plugins._hashes import PasswordHash
from mqttd_plugins._user_file import Entry
from mqttd_plugins._user_store import UserFileConfig, UserStore
from mqttd_plugins._verifier import Busy, HashingConfig, Verifier


class Config(UserFileConfig, HashingConfig):
    """Configuration of `password_file`."""


class PasswordFile(Plugin[Config]):
    """Checks user names and passwords against a file."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._store = UserStore(broker, config, _read, self._replaced)
        self._verifier = Verifier(broker, config)
        self._hashes: list[PasswordHash] = []

    async def start(self) -> None:
        await self._store.load(self.config)
        self.broker.log.info("%s: %d users", self.config.file, len(self._store.entries))

    async def stop(self) -> None:
        self._store.stop()

    async def check(self) -> None:
        await self.broker.run_blocking(_read, self.config.file)

    async def reload(self, config: Config) -> None:
        await self._store.load(config)
        if config != self.config:
            self.config = config
            self._verifier = Verifier(self.broker, config)

    def _replaced(self) -> None:
        self._hashes = [entry.value for entry in self._store.entries.values()]
        self._verifier.forget()

    async def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        user = credentials.username
        if user is None:
            return NOT_MINE
        password = b"" if credentials.password is None else credentials.password
        entry = self._store.entries.get(user)
        try:
            if entry is None:
                await self._verifier.waste(user, self._hashes, password)
                self.broker.count("unknown_users")
                return NOT_MINE
            right = await self._verifier.verify(user, entry.value, password)
        except Busy:
            return Deny("too many logins at a time", reason_codes.SERVER_BUSY)
        if not right or credentials.password is None or not self._still_holds(user, entry):
            self.broker.count("wrong_passwords")
            return Deny("bad user name or password", reason_codes.BAD_USER_NAME_OR_PASSWORD)
        self.broker.count("logins")
        return Allow(rule=self._store.place(entry))

    def _still_holds(self, user: str, entry: Entry[PasswordHash]) -> bool:
        """Whether the file, which may have changed meanwhile, still says the same."""
        now = self._store.entries.get(user)
        return now is not None and now.value == entry.value


def _read(path: Path) -> dict[str, Entry[PasswordHash]]:
    entries = _user_file.read(path, _hashes.parse)
    if not entries or any(e.value.scheme == _hashes.ARGON2ID for e in entries.values()):
        _hashes.argon2()  # missing, it is told now and not at the first login
    return entries
