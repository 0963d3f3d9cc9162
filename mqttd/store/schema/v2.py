"""Version 2: what plugins keep.

A plugin's table is a `name`; its rows are keys and values of which only the plugin knows the
meaning. They are read as a whole at a start and looked up nowhere else, so one tree is enough.
"""

from typing import Final

STATEMENTS: Final = (
    """CREATE TABLE plugin_rows (
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (name, key)
    ) STRICT, WITHOUT ROWID""",
)
