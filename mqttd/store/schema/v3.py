"""Version 3: who published a message that waits.

`origin` is the client id of the publisher, as in `retained`; empty for what the broker or a plugin
published, and for every message that was stored before. It stands with the message and not with
each of its deliveries. The column is added without a rewrite: a file of any size is migrated at
once, and rows written before keep their bytes.
"""

from typing import Final

STATEMENTS: Final = ("ALTER TABLE messages ADD COLUMN origin TEXT NOT NULL DEFAULT ''",)
