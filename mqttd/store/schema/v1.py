"""Version 1: sessions and what hangs on them, queued messages, retained messages.

A payload stands once in `messages`; each of its recipients has a row in `deliveries`, in the order
of `serial`, which is the order of delivery. `owner` is the number of a session, or of a shared
group for what waits in the group's own queue; a number is used once, so rows of an owner that is
neither are garbage, and are cleared away when there is time. `share` is the group that a session's
delivery came through, 0 for none. `shared` is 1 where other deliveries have the same message: only
then `refs` holds how many are left. Instants are wall clock seconds; a message that never expires
has 0. An interval that is `expiry` or `delay` is as the client gave it.

`deliveries` has no second index: the broker knows the serials of what waits for whom, so that an
insertion appends to one tree (docs/decisions/0004).
"""

from typing import Final

STATEMENTS: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE sessions (
        client TEXT PRIMARY KEY,
        number INTEGER NOT NULL UNIQUE,
        user TEXT,
        expiry INTEGER NOT NULL,
        connected INTEGER NOT NULL,
        expires_at REAL,
        will_at REAL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE subscriptions (
        id INTEGER PRIMARY KEY,
        client TEXT NOT NULL,
        filter TEXT NOT NULL,
        qos INTEGER NOT NULL,
        no_local INTEGER NOT NULL,
        retain_as_published INTEGER NOT NULL,
        retain_handling INTEGER NOT NULL,
        identifier INTEGER NOT NULL,
        UNIQUE (client, filter)
    ) STRICT""",
    """CREATE TABLE wills (
        client TEXT PRIMARY KEY,
        topic TEXT NOT NULL,
        payload BLOB NOT NULL,
        qos INTEGER NOT NULL,
        retain INTEGER NOT NULL,
        delay INTEGER NOT NULL,
        expiry INTEGER NOT NULL,
        properties BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE inbound (
        client TEXT NOT NULL,
        packet_id INTEGER NOT NULL,
        PRIMARY KEY (client, packet_id)
    ) STRICT""",
    """CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        topic TEXT NOT NULL,
        payload BLOB NOT NULL,
        qos INTEGER NOT NULL,
        retain INTEGER NOT NULL,
        properties BLOB NOT NULL,
        expires_at REAL NOT NULL,
        stored_at REAL NOT NULL
    ) STRICT""",
    "CREATE INDEX expiring ON messages (expires_at) WHERE expires_at > 0",
    "CREATE TABLE refs (message INTEGER PRIMARY KEY, left INTEGER NOT NULL) STRICT",
    """CREATE TABLE deliveries (
        serial INTEGER PRIMARY KEY,
        owner INTEGER NOT NULL,
        message INTEGER NOT NULL,
        shared INTEGER NOT NULL,
        share INTEGER NOT NULL,
        packet_id INTEGER NOT NULL,
        state INTEGER NOT NULL,
        qos INTEGER NOT NULL,
        retain INTEGER NOT NULL,
        identifiers BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE shares (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        filter TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE retained (
        topic TEXT PRIMARY KEY,
        payload BLOB NOT NULL,
        qos INTEGER NOT NULL,
        properties BLOB NOT NULL,
        expires_at REAL,
        origin TEXT NOT NULL
    ) STRICT""",
)
