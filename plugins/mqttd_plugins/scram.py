"""Authentication with SCRAM-SHA-256 in MQTT 5's AUTH packets: the password never travels.

Owns: the exchange of each client, from its CONNECT (or the AUTH that begins a re-authentication) to
the verdict; the salts of users who don't exist. The messages are `_scram`, the keys
`_scram_keys`; `_user_store` reads the file again when it changes.

Must not know: topics, sessions, plain passwords.

Invariants: fail closed. Somebody who doesn't exist gets a salt that is always the same for his
name, also after a restart (it comes from a secret in the plugin's table), of a length and at a cost
that some of the users have, in the same proportions, and fails where a wrong password would. Who
connected as one user can't go on as another: a user name in CONNECT, and that of the connection
afterwards, has to be the one of the exchange. Refusals carry 0x87, which CONNACK and DISCONNECT
both know.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Final

from mqttd.api import (
    Allow,
    BrokerServices,
    Client,
    Continue,
    Deny,
    NoRoom,
    Plugin,
    reason_codes,
)
from mqttd_plugins import _scram_keys, _user_file
from mqttd_plugins._scram import BadMessage, ClientFirst, Exchange
from mqttd_plugins._scram_keys import Keys
from mqttd_plugins._user_file import Entry
from mqttd_plugins._user_store import UserFileConfig, UserStore

METHOD: Final = "SCRAM-SHA-256"
_NONCE_BYTES: Final = 24
_SECRET_BYTES: Final = 32
_SECRET: Final = "secret of the salts"


class Config(UserFileConfig):
    """Configuration of `scram`."""


class Scram(Plugin[Config]):
    """Checks clients that authenticate with SCRAM-SHA-256."""

    auth_methods = (METHOD,)

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._store = UserStore(broker, config, _read, self._replaced)
        self._under_way = f"{broker.name}: exchange"
        self._secret = b""
        self._kinds: list[tuple[int, int]] = []  # of all users: iterations, length of the salt

    async def start(self) -> None:
        table = self.broker.table()
        secret = table.get(_SECRET)
        if secret is None:
            secret = secrets.token_bytes(_SECRET_BYTES)
            with contextlib.suppress(NoRoom):  # then it is another one after the next start
                table.set(_SECRET, secret)
        self._secret = secret
        await self._store.load(self.config)
        self.broker.log.info("%s: %d users", self.config.file, len(self._store.entries))

    async def stop(self) -> None:
        self._store.stop()

    async def check(self) -> None:
        await self.broker.run_blocking(_read, self.config.file)

    async def reload(self, config: Config) -> None:
        await self._store.load(config)
        self.config = config

    def _replaced(self) -> None:
        keys = [entry.value for entry in self._store.entries.values()]
        self._kinds = sorted((one.iterations, len(one.salt)) for one in keys)

    def authenticate_enhanced(
        self, client: Client, method: str, data: bytes | None, first: bool
    ) -> Continue | Allow | Deny:
        if method != METHOD:
            return Deny(f"expected {METHOD}", reason_codes.BAD_AUTHENTICATION_METHOD)
        # With the client, so that it goes when the client goes.
        exchange: Exchange | None = client.attributes.pop(self._under_way, None)
        try:
            if first:
                return self._begin(client, data or b"")
            if exchange is None:
                raise BadMessage("there is no exchange to go on with")
            return self._finish(client, exchange, data or b"")
        except BadMessage as error:
            self.broker.count("bad_messages")
            return Deny(f"{METHOD}: {error}")

    def _begin(self, client: Client, data: bytes) -> Continue:
        message = ClientFirst(data)
        entry = self._store.entries.get(message.user)
        keys = self._nobody(message.user) if entry is None else entry.value
        exchange = Exchange(message, keys, secrets.token_urlsafe(_NONCE_BYTES))
        client.attributes[self._under_way] = exchange
        return Continue(exchange.challenge.encode())

    def _finish(self, client: Client, exchange: Exchange, data: bytes) -> Allow | Deny:
        signature = exchange.finish(data)
        user = exchange.user
        entry = self._store.entries.get(user)
        is_somebody_else = client.username is not None and client.username != user
        if signature is None or entry is None or is_somebody_else or not exchange.used(entry.value):
            self.broker.count("failures")
            return Deny("bad user name or password")
        self.broker.count("logins")
        return Allow(rule=self._store.place(entry), username=user, data=signature.encode())

    def _nobody(self, user: str) -> Keys:
        """Keys that no password has, with a salt and a cost that look like anybody's."""
        name = user.encode("utf-8")
        iterations, length = _scram_keys.ITERATIONS, _scram_keys.SALT_BYTES
        if self._kinds:
            # A place among all users in order, not a number of one: another user more or less
            # changes the answer for hardly any name.
            part = int.from_bytes(hmac.digest(self._secret, b"kind" + name, "sha256")[:8], "big")
            iterations, length = self._kinds[(part * len(self._kinds)) >> 64]
        salt = hashlib.shake_256(self._secret + name).digest(length)
        return Keys(iterations, salt, secrets.token_bytes(32), secrets.token_bytes(32))


def _read(path: Path) -> dict[str, Entry[Keys]]:
    return _user_file.read(path, _scram_keys.parse)
