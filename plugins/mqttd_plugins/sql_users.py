"""Authentication and authorisation by a SQLite database that others write.

Owns: when the database is asked, and what its answers mean for a client. The queries come from the
configuration; what rows of rights mean is `_sql_rights`; the connection is `_sql_reader`; hashes
and how many are computed at a time, `_hashes` and `_verifier`.

A user who isn't in the database is left to the next plugin, after a hash at the cost of one that
was seen before. For one who is, and where there is a query for rights, no right means no.

Must not know: the schema beyond the two queries, who writes the database.

Invariants: the database is opened for reading alone. A name is a parameter, never part of a query.
Fail closed: a database that is missing, locked or of another shape refuses logins with 0x88, and
once rights are older than `rights_for` every new question about them is answered with no. What the
broker decided before stays decided until the database can be read again. A change while somebody's
password is checked reaches him like those who are there already, at the next look.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Awaitable
from typing import Final, Self
from weakref import WeakValueDictionary

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mqttd.api import (
    ALLOW,
    NOT_MINE,
    Allow,
    BrokerServices,
    Client,
    Credentials,
    Decision,
    Deny,
    Duration,
    FilePath,
    Plugin,
    SubscriptionRequest,
    Timer,
    reason_codes,
)
from mqttd_plugins import _hashes
from mqttd_plugins._hashes import PasswordHash
from mqttd_plugins._sql_reader import Reader, Row
from mqttd_plugins._sql_rights import (
    PUBLISH,
    RECEIVE,
    SUBSCRIBE,
    BadRow,
    Rights,
    flag,
    rights_of,
)
from mqttd_plugins._time_limits import check_waits
from mqttd_plugins._user_store import disconnect
from mqttd_plugins._verifier import Busy, HashingConfig, Verifier

_SEEN: Final = 64
_UNREADABLE: Final = "the user database can't be read"


class Config(HashingConfig):
    """Configuration of `sql_users`."""

    database: FilePath
    """The SQLite file."""
    users: str = "SELECT password_hash, superuser, username FROM users WHERE username = :username"
    """One row: the hash; in a second column whether the user may do everything (1) or not (0); in a
    third what the user is called from then on, where the database takes several spellings for one
    name."""
    rights: str | None = None
    """Rows of (action, topic filter) or (action, topic filter, allow); absent: not our business."""
    rights_for: Duration = Field(default=30.0, gt=0)
    """How long rights are good for while the database can't be read."""
    poll: Duration = Field(default=2.0, ge=0.1)
    """How often the database is asked whether somebody has changed it."""
    busy_timeout: Duration = Field(default=1.0, ge=0, le=60)
    """How long to wait for a lock that a writer holds."""
    disconnect: bool = True
    """Whether who is taken out of the database, or has another hash there, is disconnected."""

    @model_validator(mode="after")
    def _asks_in_time(self, info: ValidationInfo) -> Self:
        check_waits(info, busy_timeout=self.busy_timeout)
        return self

    @field_validator("users", "rights")
    @classmethod
    def _is_about_a_user(cls, query: str | None) -> str | None:
        if query is not None and ":username" not in query:
            raise ValueError("a query about a user, with the parameter :username in it")
        return query


class _Account:
    """A user of the database, as long as one of his clients is there."""

    __slots__ = ("__weakref__", "rights", "stored", "superuser", "username")

    def __init__(self, username: str) -> None:
        self.username = username
        self.stored: object = None  # the hash, as the database has it
        self.superuser = False
        self.rights: Rights | None = None

    def close(self) -> None:
        """Its rows mean nothing: it may do nothing, until they do."""
        self.stored = None
        self.superuser = False
        self.rights = Rights([])


class SqlUsers(Plugin[Config]):
    """Checks user names, passwords and rights against a SQLite database."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._verifier = Verifier(broker, config)
        self._reader = Reader(config.database, config.busy_timeout)
        self._accounts: WeakValueDictionary[str, _Account] = WeakValueDictionary()
        self._seen: deque[PasswordHash] = deque(maxlen=_SEEN)
        self._mine = f"{broker.name}: account"
        self._confirmed_at = 0.0
        self._behind = False  # the database has changed, and not everything was asked again
        self._refreshes = 0
        self._broken = False
        self._timer: Timer | None = None
        self._stopped = False

    async def start(self) -> None:
        await _try(self._reader, self.config)
        await self._reader.has_changed()
        self._confirmed_at = self.broker.now()
        self._arm()

    async def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        await self._reader.close()

    async def check(self) -> None:
        reader = Reader(self.config.database, self.config.busy_timeout)
        try:
            await _try(reader, self.config)
        finally:
            await reader.close()

    async def reload(self, config: Config) -> None:
        reader = Reader(config.database, config.busy_timeout)
        try:
            await _try(reader, config)
        except BaseException:
            await reader.close()
            raise
        before, self._reader = self._reader, reader
        self.config = config
        self._verifier = Verifier(self.broker, config)
        await before.close()
        self._behind = True
        await self._look()

    # Who.

    async def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        user = credentials.username
        if user is None:
            return NOT_MINE
        password = b"" if credentials.password is None else credentials.password
        asked_in = self._refreshes
        try:
            row = await self._reader.row(self.config.users, {"username": user})
            if row is None:
                await self._verifier.waste(user, self._seen, password)
                self.broker.count("unknown_users")
                return NOT_MINE
            stored = self._usable(user, row[0])
            if stored is None:
                right = False
                await self._verifier.waste(user, self._seen, password)
            else:
                self._seen.append(stored)
                right = await self._verifier.verify(user, stored, password)
            if not right or credentials.password is None:
                self.broker.count("wrong_passwords")
                return Deny("bad user name or password", reason_codes.BAD_USER_NAME_OR_PASSWORD)
            name = _name_in(row, user)
            client.attributes[self._mine] = await self._load(name, row)
            self._mark(asked_in)
        except Busy:
            return Deny("too many logins at a time", reason_codes.SERVER_BUSY)
        except BadRow as error:
            self._warn(user, error)
            return Deny("what the user may do can't be read", reason_codes.SERVER_UNAVAILABLE)
        except sqlite3.Error as error:
            self._complain(error)
            return Deny("the users can't be looked up", reason_codes.SERVER_UNAVAILABLE)
        self.broker.count("logins")
        return Allow(rule=str(self.config.database), username=name)

    def _warn(self, user: str, error: BadRow) -> None:
        self.broker.count("failures")
        self.broker.log.error("%s, user %r: %s", self.config.database, user, error)

    def _usable(self, user: str, text: object) -> PasswordHash | None:
        try:
            return _hashes.parse(str(text))
        except _hashes.BadHash as error:
            self.broker.log.error("%s, user %r: %s", self.config.database, user, error)
            return None

    async def _load(self, user: str, row: Row | None) -> _Account:
        """The account of a user, with the rights of now. BadRow where the database has nonsense."""
        rights = None
        if self.config.rights is not None:
            found = (
                []
                if row is None
                else await self._reader.rows(self.config.rights, {"username": user})
            )
            rights = rights_of(found)
        superuser = row is not None and len(row) > 1 and flag("superuser", row[1])
        account = self._accounts.get(user)
        if account is None:
            account = self._accounts[user] = _Account(user)
        account.stored = None if row is None else row[0]
        account.superuser = superuser
        account.rights = rights
        return account

    def _mark(self, asked_in: int) -> None:
        """Ask once more for everybody if the database has changed since an account was asked for.

        What was read before the change is what the account has now, and no other change may come.
        """
        if asked_in != self._refreshes:
            self._behind = True

    # What.

    def authorize_publish(
        self, client: Client, topic: str, qos: int, retain: bool
    ) -> Decision | Awaitable[Decision]:
        return self._authorize(client, PUBLISH, topic)

    def authorize_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> Decision | Awaitable[Decision]:
        return self._authorize(client, SUBSCRIBE, subscription.inner_filter)

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return self._decide(client, RECEIVE, topic)

    def _authorize(self, client: Client, action: str, topic: str) -> Decision | Awaitable[Decision]:
        if self._mine in client.attributes or client.username is None:
            return self._decide(client, action, topic)
        return self._meet(client, client.username, action, topic)

    async def _meet(self, client: Client, user: str, action: str, topic: str) -> Decision:
        """Decide about somebody whom another plugin let in, or an earlier process of the broker."""
        asked_in = self._refreshes
        try:
            row = await self._reader.row(self.config.users, {"username": user})
            if row is None or _name_in(row, user) != user:
                return NOT_MINE
            client.attributes[self._mine] = await self._load(user, row)
            self._mark(asked_in)
        except BadRow as error:
            self._warn(user, error)
            return Deny(_UNREADABLE, cache=False)
        except sqlite3.Error as error:
            self._complain(error)
            return Deny(_UNREADABLE, cache=False)
        return self._decide(client, action, topic)

    def _decide(self, client: Client, action: str, topic: str) -> Decision:
        account: _Account | None = client.attributes.get(self._mine)
        if account is None or client.username != account.username:
            return NOT_MINE
        if account.superuser is False and account.rights is None:
            return NOT_MINE
        if self.broker.now() - self._confirmed_at > self.config.rights_for:
            return Deny(_UNREADABLE, cache=False)
        if account.superuser or account.rights is None:
            return ALLOW
        return account.rights.decide(action, topic, account.username, client.client_id)

    # What has changed meanwhile.

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._stopped:
            self._timer = self.broker.call_later(self.config.poll, self._look)

    async def _look(self) -> None:
        try:
            if await self._reader.has_changed():
                self._behind = True
            if self._behind:
                await self._refresh()
            self._confirmed_at = self.broker.now()
            if self._broken:
                self._broken = False
                self.broker.log.info("%s: can be read again", self.config.database)
        except sqlite3.Error as error:
            self._complain(error)
        finally:
            self._arm()

    async def _refresh(self) -> None:
        """Ask again for everybody who is here, and let the broker ask again, too."""
        self._verifier.forget()
        self._refreshes += 1
        self._behind = False  # a login that is under way may find that it is not
        changed = set()
        try:
            for account in list(self._accounts.values()):
                before = account.stored
                row = await self._reader.row(self.config.users, {"username": account.username})
                try:
                    await self._load(account.username, row)
                except BadRow as error:  # nobody else has to suffer from it
                    self._warn(account.username, error)
                    account.close()
                if account.stored != before:
                    changed.add(account.username)
        except BaseException:
            self._behind = True
            raise
        self._confirmed_at = self.broker.now()
        self.broker.forget_decisions()
        if changed and self.config.disconnect:
            await disconnect(self.broker, changed)

    def _complain(self, error: sqlite3.Error) -> None:
        self.broker.count("failures")
        if not self._broken:
            self._broken = True
            self.broker.log.error("%s: %s", self.config.database, error)


async def _try(reader: Reader, config: Config) -> None:
    """Ask the database for nobody. ValueError where it or a query is no good."""
    queries: list[tuple[str, str, tuple[int, ...]]] = [("users", config.users, (1, 2, 3))]
    if config.rights is not None:
        queries.append(("rights", config.rights, (2, 3)))
    for key, query, columns in queries:
        try:
            found = await reader.columns(query, {"username": ""})
        except sqlite3.Error as error:
            raise ValueError(f"{config.database}: {key}: {error}") from error
        if found not in columns:
            expected = f"{columns[0]} to {columns[-1]}"
            raise ValueError(f"{key}: the query has {found} columns, expected {expected}")


def _name_in(row: Row, asked: str) -> str:
    """What the user is called. BadRow where the database has no name for him."""
    if len(row) < 3:
        return asked
    if not isinstance(row[2], str) or not row[2]:
        raise BadRow(f"username: found {type(row[2]).__name__}, expected text")
    return row[2]
