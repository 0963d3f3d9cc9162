"""How long a plugin may make a client wait, held against the time limit of its hooks.

Owns: `check_waits`. A hook that takes longer than the plugin's `timeout` counts as failed, so a
plugin that waits on purpose, or for somebody else, has to be done before. Otherwise its own answer
never counts, and a few of them in a row open the circuit breaker.

Must not know: what is waited for.
"""

from __future__ import annotations

from pydantic import ValidationInfo


def check_waits(info: ValidationInfo, **waits_s: float) -> None:
    """ValueError where one of them isn't below the plugin's `timeout`.

    `info` is that of a validator of a configuration; where it is validated outside of one of the
    broker, nobody has set a limit.
    """
    context = info.context if isinstance(info.context, dict) else {}
    limit_s = context.get("timeout")
    if not isinstance(limit_s, float):
        return
    for key, wait_s in waits_s.items():
        if wait_s >= limit_s:
            raise ValueError(
                f"{key}: found {wait_s:g}s, expected less than the plugin's timeout of "
                f"{limit_s:g}s, at which its hooks count as failed (raise `timeout` beside `use`)"
            )
