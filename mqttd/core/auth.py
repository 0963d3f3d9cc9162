"""The seam through which somebody outside decides who may connect.

Owns: the verdict types and `Hooks`, the table of deciders that the connection machine consults.
The broker ships with an empty table; the hook manager fills it when plugins are loaded. An empty
slot costs one comparison with None.

Must not know: passwords, plugins, coroutines. A decider that cannot answer at once returns None;
the connection then stands suspended, as plain state, until the shell calls
`Connection.authenticated`.

Invariant: fail closed. An exception out of a decider is a refusal, never an admission.
"""

from collections.abc import Callable

from mqttd.core import spec
from mqttd.core.packets import Connect


class Verdict:
    """The answer to a CONNECT. `username` replaces the claimed one as owner of the session."""

    def __init__(
        self,
        allowed: bool,
        code: int = spec.NOT_AUTHORIZED,
        reason: str = "",
        username: str | None = None,
    ) -> None:
        self.allowed = allowed
        self.code = code  # CONNACK reason code when refused
        self.reason = reason  # for the log and, where the client wants it, the Reason String
        self.username = username


class AuthStep:
    """One step of an enhanced authentication (MQTT 5, 4.12).

    `code` is CONTINUE_AUTHENTICATION (send `data`, wait for the client's AUTH), SUCCESS (admit as
    `username`; `data` travels in CONNACK or the closing AUTH) or a code of 0x80 or above (refuse).
    """

    def __init__(
        self, code: int, data: bytes | None = None, username: str | None = None, reason: str = ""
    ) -> None:
        self.code = code
        self.data = data
        self.username = username
        self.reason = reason


class Hooks:
    """The deciders in force. Callables get the connection as their first argument."""

    def __init__(self) -> None:
        # authenticate(connection, connect) -> Verdict, or None when the answer comes later.
        self.authenticate: Callable[[object, Connect], Verdict | None] | None = None
        # The methods that `enhanced` serves, as they stand in Authentication Method.
        self.enhanced_methods: tuple[str, ...] = ()
        # enhanced(connection, method, data, first) -> AuthStep, or None when it comes later.
        # `first` is True for the data of CONNECT and of AUTH 0x19 (re-authentication).
        self.enhanced: Callable[[object, str, bytes | None, bool], AuthStep | None] | None = None
