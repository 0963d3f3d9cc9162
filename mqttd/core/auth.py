"""The seam through which somebody outside decides and changes.

Owns: the verdict types and `Hooks`, the table of deciders and transformers that the core consults.
The broker ships with an empty table; the hook manager fills it when plugins are loaded, before the
first connection. An empty slot costs one comparison.

Must not know: passwords, plugins, coroutines. Who cannot answer at once returns None; the
connection then stands suspended, as plain state, until the shell brings the answer
(`Connection.authenticated`, `enhanced_step`, `ruled`, `filtered`). Meanwhile nothing more of that
client is read, so that its packets keep their order, and everybody else goes on.

Invariant: fail closed. An exception out of a slot is a refusal, never an admission.
"""

from collections.abc import Callable

from mqttd.core import spec
from mqttd.core.letters import Letter
from mqttd.core.message import Message
from mqttd.core.packets import Connect, Filter


class Verdict:
    """The answer to a CONNECT. `username` replaces the claimed one as owner of the session."""

    def __init__(
        self,
        allowed: bool,
        code: int = spec.NOT_AUTHORIZED,
        reason: str = "",
        username: str | None = None,
        valid_s: float = 0.0,
        revoked: list[str] | None = None,
        guest: object = None,
        private: str = "",
    ) -> None:
        self.allowed = allowed
        self.code = code  # CONNACK reason code when refused
        self.reason = reason  # for the log and, where the client wants it, the Reason String
        self.private = private  # for the log alone: nobody knows yet who the client is
        self.username = username
        self.valid_s = valid_s  # seconds until the credentials expire; 0.0 = never
        self.revoked = revoked  # filters of its session that the client may have no longer
        self.guest = guest  # what the hooks know the client by; the core only keeps it


class AuthStep:
    """One step of an enhanced authentication (MQTT 5, 4.12).

    `code` is CONTINUE_AUTHENTICATION (send `data`, wait for the client's AUTH), SUCCESS (admit as
    `verdict` says; `data` travels in CONNACK or the closing AUTH) or a code of 0x80 or above
    (refuse). Without a verdict `username` is who is admitted. Of who authenticates again
    `verdict.guest` takes the place of what the hooks knew it by.
    """

    def __init__(
        self,
        code: int,
        data: bytes | None = None,
        username: str | None = None,
        reason: str = "",
        verdict: Verdict | None = None,
        private: str = "",
    ) -> None:
        self.code = code
        self.data = data
        self.reason = reason
        self.private = private  # as in a verdict
        self.verdict = Verdict(True, username=username) if verdict is None else verdict

    @property
    def username(self) -> str | None:
        return self.verdict.username


class Grant:
    """What was decided about a client and a topic: 0 or the reason code of the refusal."""

    def __init__(self, code: int = 0, reason: str = "", rule: str = "", cache: bool = True) -> None:
        self.code = code
        self.reason = reason
        self.rule = rule  # which rule decided, for the record of decisions
        self.cache = cache  # of `Hooks.receive`: it holds for the next message of the topic, too


class Ruling:
    """What became of one PUBLISH.

    With a `grant` of 0 `message` is what is routed, None for nothing at all: then a hook has taken
    it, and what is in the journal by now is what the acknowledgement promises. `cache`: the grant
    holds for the topic as it came.
    """

    def __init__(
        self,
        grant: Grant,
        message: Message | None,
        cache: bool = False,
        disconnect: bool = False,
        changes: str = "",
    ) -> None:
        self.grant = grant
        self.message = message
        self.cache = cache
        self.disconnect = disconnect  # a refusal that ends the connection
        self.changes = changes  # who changed or took it, for the record of decisions


class FilterRuling:
    """What became of one filter of a SUBSCRIBE."""

    def __init__(self, entry: Filter, grant: Grant) -> None:
        self.entry = entry
        self.grant = grant


class Hooks:
    """The deciders and transformers in force. A connection is their first argument."""

    def __init__(self) -> None:
        # authenticate(connection, connect) -> Verdict, or None when the answer comes later. It may
        # change `connect`.
        self.authenticate: Callable[[object, Connect], Verdict | None] | None = None
        # The methods that `enhanced` serves, as they stand in Authentication Method.
        self.enhanced_methods: tuple[str, ...] = ()
        # enhanced(connection, method, data, first) -> AuthStep, or None when it comes later.
        # `first` is True for the data of CONNECT and of AUTH 0x19 (re-authentication).
        self.enhanced: Callable[[object, str, bytes | None, bool], AuthStep | None] | None = None
        # publish(connection, message, granted) -> Ruling, or None when it comes later. `granted`:
        # the topic has been allowed before. Where nothing `transforms`, only topics that have no
        # grant yet are asked about.
        self.publish: Callable[[object, Message, bool], Ruling | None] | None = None
        self.transforms: bool = False
        # subscribe(connection, filters) -> a FilterRuling for each, or None when they come later.
        self.subscribe: Callable[[object, list[Filter]], list[FilterRuling] | None] | None = None
        # unsubscribe(connection, filter) -> the filter that is meant.
        self.unsubscribe: Callable[[object, str], str] | None = None
        # receive(connection, topic) -> whether the client may get it. At once, and remembered
        # unless the grant says otherwise.
        self.receive: Callable[[object, str], Grant] | None = None
        # deliver(connection, message, qos) -> the message to send to this client, None for none.
        self.deliver: Callable[[object, Message, int], Message | None] | None = None
        # will(session, message) -> True: it is published, if it may be. False: the answer comes
        # later, by `Registry.will_decided`.
        self.will: Callable[[object, Message], bool] | None = None
        # undelivered(letter) -> what is published instead, with the mark of a dead letter.
        self.undelivered: Callable[[Letter], Message | None] | None = None
