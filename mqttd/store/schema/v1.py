"""Version 1: sessions and what hangs on them, queued messages, retained messages.

A payload stands once in `messages`; each of its recipients has a row in `deliveries`, in the order
of `serial`, which is the order of delivery. `client` is NULL where a shared group's own queue holds
the message: a client identifier may look like anything, so no name is reserved for groups. `share`
is the group it came through, "NAME/FILTER". Instants are wall clock seconds; an interval that is
`expiry` or `delay` is as the client gave it. `deliveries` has no second index: they are read once,
in order, and found by serial; so an insertion appends to one tree.
"""

from typing import Final

STATEMENTS: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE sessions (
        client TEXT PRIMARY KEY,
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
        expires_at REAL
    ) STRICT""",
    """CREATE TABLE deliveries (
        serial INTEGER PRIMARY KEY,
        client TEXT,
        share TEXT,
        message INTEGER NOT NULL,
        packet_id INTEGER NOT NULL,
        state INTEGER NOT NULL,
        qos INTEGER NOT NULL,
        retain INTEGER NOT NULL,
        identifiers BLOB NOT NULL
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
