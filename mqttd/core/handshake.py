"""From the first byte to the accepted session: CONNECT, authentication, CONNACK.

Owns: the states NEW and WAITING of a connection, the checks on a CONNECT that need no session, what
CONNACK announces, enhanced authentication and re-authentication.

Must not know: PUBLISH, subscriptions, how sessions are kept (`Router.admit` decides that).

Invariants: nothing of an existing session is touched before authentication succeeded; at most one
CONNACK leaves, and nothing but AUTH before it; while a decider is awaited the connection is data:
`suspended` is True, `connect` holds the packet, and no byte is read.
"""

from typing import Final

from mqttd.core import counters as count
from mqttd.core import encode, spec
from mqttd.core.auth import AuthStep, Verdict
from mqttd.core.decode import decode_auth, decode_connect
from mqttd.core.errors import ProtocolError
from mqttd.core.framer import Framer
from mqttd.core.outbound import Held, Outbound
from mqttd.core.packets import Auth, Connack, Connect
from mqttd.core.properties import Properties
from mqttd.core.router import ListenerInfo, Router
from mqttd.core.session import Session
from mqttd.core.settings import NEVER, Settings
from mqttd.core.topics import validate_topic_name

NEW: Final = 0
WAITING: Final = 1
OPEN: Final = 2
CLOSED: Final = 3

MAX_REASON: Final = 256
MAX_RESPONSE: Final = 1024  # bytes of a response topic that is handed out

# MQTT 3.1.1, 3.1.4-1: a CONNECT that does not conform is closed without a CONNACK.
_SILENT_V3: Final = (
    spec.MALFORMED_PACKET,
    spec.PROTOCOL_ERROR,
    spec.PACKET_TOO_LARGE,
    spec.TOPIC_NAME_INVALID,
)


class Handshake(Outbound):
    """The part of a connection that ends with CONNACK, and re-authentication after it."""

    def __init__(
        self,
        router: Router,
        listener: ListenerInfo,
        peer: str,
        identity: str | None,
        serial: int,
        now: float,
    ) -> None:
        super().__init__(router.context, router.dirty)
        self.router = router
        self.listener = listener
        self.peer = peer
        self.identity = identity  # from the client certificate, already verified
        self.serial = serial
        self.state: int = NEW
        self.suspended: bool = False  # a decider is awaited: the shell stops reading
        self.opened_at = now
        self.last_received = now
        self.keep_alive: int = 0
        self.client_id: str = ""
        self.username: str | None = None
        self.bridge: bool = False
        self.session: Session | None = None
        self.connect: Connect | None = None  # kept until the CONNECT is answered
        self.auth_method: str | None = None
        self.valid_until: float = 0.0  # when the credentials expire; 0.0 = never
        self.guest: object = None  # what the hooks know the client by
        self.claimant: object = None  # the same while it authenticates again, for the hooks alone
        self.wants_reasons: bool = True  # Request Problem Information
        self._assigned: bool = False  # the client has its id from us
        self._reauthenticating: bool = False
        self._auth_data: bytes | None = None
        self._private: str = ""  # what a refusal says to the log and not to the client
        self._framer = Framer(router.settings.max_connect_size)
        self._receive_maximum: int = router.settings.receive_maximum

    def run(self, now: float) -> None:
        """Act on the packets that are already here."""
        raise AssertionError("a Handshake has to override run")

    def _not_connect(self) -> None:
        self.router.note("refused", "", self.peer, "first packet is not CONNECT")
        self.counters.refuse(count.REFUSED_NOT_CONNECT)
        self.state = CLOSED
        self.finish()

    def fail(self, error: ProtocolError, now: float) -> None:
        """Turn an error into its packet and close."""
        raise AssertionError("a Handshake has to override fail")

    def authenticated(self, verdict: Verdict, now: float) -> None:
        """The late answer of `Hooks.authenticate`."""
        connect = self.connect
        if self.state != WAITING or connect is None:
            return
        self.context.at(now)
        self.suspended = False
        self.last_received = now  # or the wait for the answer would count as the client's silence
        try:
            self._decided(connect, verdict, now)
        except ProtocolError as error:
            self.fail(error, now)
        self.run(now)

    def enhanced_step(self, step: AuthStep, now: float) -> None:
        """The late answer of `Hooks.enhanced`."""
        if self.state == CLOSED:
            return
        self.context.at(now)
        self.suspended = False
        self.last_received = now  # as above
        try:
            self._on_auth_step(step, now)
        except ProtocolError as error:
            self.fail(error, now)
        self.run(now)

    def whose(self) -> str:
        return self.client_id

    def go_on(self, now: float) -> None:
        """What was awaited has come: act on what is here, and have the shell read on."""
        self.suspended = False
        self.last_received = now  # what it sent meanwhile is read only now
        self.run(now)
        if not self.dirty:
            self.dirty = True
            self.dirty_list.append(self)

    def on_early(self, first: int, data: bytes, pos: int, end: int, now: float) -> None:
        """A packet before the CONNECT was accepted."""
        kind = first >> 4
        if self.state == NEW:
            self.version = peek_version(data, pos, end)
            check_flags(first, 0)
            self.connect = decode_connect(data, pos, end)
            self._on_connect(self.connect, now)
            return
        # Waiting for the client's AUTH; [MQTT-3.1.4-6] nothing else is acted upon.
        if kind == spec.AUTH and self.auth_method is not None:
            self._on_auth(decode_auth(data, pos, end, first & 15, self.version), now)
            return
        if kind == spec.DISCONNECT:
            self.gave_up()
            self.state = CLOSED
            self.finish()
            return
        raise ProtocolError(
            spec.PROTOCOL_ERROR, "MQTT-3.1.2-30", "only AUTH may come before CONNACK"
        )

    def _on_connect(self, connect: Connect, now: float) -> None:
        self.version = connect.version
        self.bridge = connect.bridge
        properties = connect.properties
        self.client_id = connect.client_id
        self.username = connect.username
        self.wants_reasons = properties.request_problem_information != 0
        self.max_send = properties.maximum_packet_size or 0
        check_connect(connect, self.router.settings.max_topic_levels)
        if not connect.client_id:  # [MQTT-3.1.3-6]
            connect.client_id = self.router.new_client_id()
            self._assigned = True
        hooks = self.router.hooks
        method = properties.authentication_method
        if method is not None:  # [MQTT-4.12.0-6] AUTH goes only to who named a method
            if hooks.enhanced is None or method not in hooks.enhanced_methods:
                # [MQTT-4.12.0-1]
                raise ProtocolError(
                    spec.BAD_AUTHENTICATION_METHOD, "MQTT-4.12.0-1", "authentication method"
                )
            self.state = WAITING
            self.auth_method = method
            self._ask_enhanced(properties.authentication_data, True, now)
            return
        if hooks.authenticate is not None:
            self.state = WAITING
            self.suspended = True
            try:
                verdict = hooks.authenticate(self, connect)
            except Exception:  # fail closed, whatever went wrong in there
                verdict = self._hook_failed()
            if verdict is not None:
                self.suspended = False
                self._decided(connect, verdict, now)
            return
        if self.identity is not None:
            self._admit(connect, self.identity, now)
        elif self.listener.allow_anonymous:
            self._admit(connect, connect.username, now)
        else:  # [MQTT-3.1.4-2]
            raise ProtocolError(spec.NOT_AUTHORIZED, "MQTT-3.1.4-2", "nobody vouches for it")

    def gave_up(self) -> None:
        """The client goes while its CONNECT is undecided: an attempt like one that was refused."""
        if self.state == WAITING:
            self.counters.refuse(count.REFUSED_LEFT)
            reason = "it left before the decision"
            self.router.note("refused", self.client_id, self.peer, reason, self.username)

    def _hook_failed(self) -> Verdict:
        self.counters.hook_failures += 1
        return Verdict(False, spec.UNSPECIFIED_ERROR, "authentication failed to decide")

    def _decided(self, connect: Connect, verdict: Verdict, now: float) -> None:
        if not verdict.allowed:
            self._private = verdict.private
            raise ProtocolError(verdict.code, "MQTT-3.1.4-2", verdict.reason)
        check_connect(connect, self.router.settings.max_topic_levels)  # hooks may have changed it
        owner = verdict.username or self.identity or connect.username
        self._admit(connect, owner, now, verdict)

    def _admit(
        self, connect: Connect, owner: str | None, now: float, verdict: Verdict | None = None
    ) -> None:
        """Authentication succeeded: only now may anything of the session change."""
        self.username = owner
        settings = self.router.settings
        properties = connect.properties
        answer = Properties()  # [MQTT-3.2.2-20] user properties never stand in it
        if self._assigned:  # [MQTT-3.1.3-7]
            answer.assigned_client_identifier = connect.client_id
        self.client_id = connect.client_id
        self.keep_alive = grant_keep_alive(connect, settings, answer)
        session = self.router.admit(self, connect, owner, now)
        if session is None:
            raise ProtocolError(
                spec.NOT_AUTHORIZED, "", "the client identifier belongs to another user"
            )
        if verdict is not None:
            self._apply(verdict, session, now)
        self.session = session
        self.state = OPEN  # [MQTT-3.2.0-2] from here errors are a DISCONNECT
        self.counters.admit()
        how = describe(connect, session.resumed)
        self.router.note("connect", self.client_id, self.peer, how, owner)
        self.connect = None
        self._framer.max_packet_size = settings.max_packet_size
        if self.version >= 5:
            announce(connect, settings, session, answer)
            self.allow_aliases(
                min(properties.topic_alias_maximum or 0, settings.topic_alias_maximum)
            )
            self._receive_maximum = settings.receive_maximum
        else:
            self._receive_maximum = 65535
        hooks = self.context.hooks
        self.guarded = hooks.receive is not None or hooks.deliver is not None
        if self.max_send == 0 and not self.aliases_allowed and hooks.deliver is None:
            self.lane = 5 if self.version >= 5 else 4
        limit = properties.receive_maximum or 65535
        if limit > settings.max_inflight:
            limit = settings.max_inflight
        session.attach(self, limit)
        if self.auth_method is not None:  # [MQTT-4.12.0-6]
            answer.authentication_method = self.auth_method  # [MQTT-4.12.0-5]
            answer.authentication_data = self._auth_data
        present = session.resumed
        # [MQTT-3.1.4-5]
        frame = encode.encode_connack(Connack(present, spec.SUCCESS, answer), self.version)
        if self.max_send and len(frame) > self.max_send:
            self.unsendable()
            return
        # Session Present 1, and a session that clean start removed, are promises too.
        self._hold(Held(frame, session.barrier, None, False, True))
        self.release()
        # [MQTT-3.2.0-1] while CONNACK is held nothing is read that might be answered before it.
        self.suspended = not self.established

    def opened(self) -> None:
        self.established = True
        now = max(self.last_received, self.context.now)
        session = self.session
        if session is not None and session.link is self:
            self.writable = not self.blocked
            session.pump(now)
        if self.suspended:
            self.suspended = False
            self.run(now)

    def _apply(self, verdict: Verdict, session: Session, now: float) -> None:
        """What else the deciders said about the client."""
        self.guest = session.guest = verdict.guest
        self.valid_until = now + verdict.valid_s if verdict.valid_s else 0.0
        for topic_filter in verdict.revoked or ():
            self.router.unsubscribe(session, topic_filter)

    def for_the_log(self, reason: str) -> str:
        """A reason, with what the client isn't told of it."""
        return f"{reason} ({self._private})" if self._private else reason

    def refuse(self, code: int, reason: str) -> None:
        """Answer a CONNECT with an error and close. [MQTT-3.1.4-2] [MQTT-3.14.0-1]"""
        self.router.note(
            "refused", self.client_id, self.peer, self.for_the_log(reason), self.username
        )
        self.state = CLOSED
        if code < 0x80 or code not in spec.REASONS[spec.CONNACK]:
            code = spec.UNSPECIFIED_ERROR  # [MQTT-3.2.2-8] whatever a decider came up with
        self.counters.refuse(spec.reason_word(code))
        if self.version >= 5:
            properties = Properties()
            if self.wants_reasons and reason:
                properties.reason_string = reason[:MAX_REASON]
            frame = encode.encode_connack(Connack(False, code, properties), 5)
            if self.max_send and len(frame) > self.max_send:  # [MQTT-3.2.2-19]
                frame = encode.encode_connack(Connack(False, code), 5)
            if not self.max_send or len(frame) <= self.max_send:
                self.send(frame)
        elif code not in _SILENT_V3:
            answer = Connack(False, spec.connack_code_v3(code))
            self.send(encode.encode_connack(answer, self.version))
        self.finish()  # [MQTT-3.2.2-7] [MQTT-4.13.2-1] whether the answer left or not

    # Enhanced authentication.

    def _ask_enhanced(self, data: bytes | None, first: bool, now: float) -> None:
        enhanced = self.router.hooks.enhanced
        assert enhanced is not None
        assert self.auth_method is not None
        self.suspended = True
        try:
            step = enhanced(self, self.auth_method, data, first)
        except Exception:
            step = AuthStep(spec.UNSPECIFIED_ERROR, reason=self._hook_failed().reason)
        if step is not None:
            self.suspended = False
            self._on_auth_step(step, now)

    def _on_auth_step(self, step: AuthStep, now: float) -> None:
        if step.code >= 0x80:  # [MQTT-4.12.0-4] [MQTT-4.12.1-2]
            self._private = step.private
            raise ProtocolError(step.code, "MQTT-4.12.0-4", step.reason)
        # [MQTT-3.15.2-2] [MQTT-3.15.2-3] neither reason string nor user properties, ever.
        properties = Properties()
        properties.authentication_method = self.auth_method  # [MQTT-4.12.0-5]
        properties.authentication_data = step.data
        if step.code == spec.CONTINUE_AUTHENTICATION:  # [MQTT-4.12.0-2]
            self.send(encode.encode_auth(Auth(step.code, properties), self.version))
            return
        if self.state == OPEN:
            self._reauthenticating = False
            valid_s = step.verdict.valid_s
            self.valid_until = now + valid_s if valid_s else 0.0
            if step.username is not None and step.username != self.username:
                raise ProtocolError(spec.NOT_AUTHORIZED, "MQTT-4.12.1-2", "another user")
            if step.verdict.guest is not None:
                self.guest = step.verdict.guest
                if self.session is not None:
                    self.session.guest = self.guest
            self.claimant = None
            self.send(encode.encode_auth(Auth(spec.SUCCESS, properties), self.version))
            return
        connect = self.connect
        assert connect is not None
        self._auth_data = step.data
        self._decided(connect, step.verdict, now)

    def _on_auth(self, auth: Auth, now: float) -> None:
        """AUTH during CONNECT, or the next step of a re-authentication."""
        properties = auth.properties
        if properties is None or properties.authentication_method != self.auth_method:
            raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-4.12.0-5", "another method")
        if auth.reason != spec.CONTINUE_AUTHENTICATION:  # [MQTT-4.12.0-3]
            raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-4.12.0-3", "AUTH has to continue")
        self._ask_enhanced(properties.authentication_data, False, now)

    def on_reauth(self, auth: Auth, now: float) -> None:
        if self.auth_method is None:
            # A client that named no method in CONNECT may not send AUTH. [MQTT-4.12.0-7]
            raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-4.12.0-7", "AUTH without a method")
        if self._reauthenticating:
            self._on_auth(auth, now)
            return
        properties = auth.properties
        if (
            auth.reason != spec.REAUTHENTICATE
            or properties is None
            or properties.authentication_method != self.auth_method
        ):  # [MQTT-4.12.1-1]
            raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-4.12.1-1", "re-authentication")
        self._reauthenticating = True
        self._ask_enhanced(properties.authentication_data, True, now)


def check_flags(first: int, expected: int) -> None:
    """[MQTT-2.1.3-1] the reserved flags of a fixed header."""
    if first & 15 != expected:
        raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-2.1.3-1", "reserved flags")


def peek_version(data: bytes, pos: int, end: int) -> int:
    """The version a CONNECT speaks, for the answer to one that can't be decoded. [MQTT-3.1.2-2]"""
    if end - pos >= 7 and data[pos : pos + 6] == b"\x00\x04MQTT" and data[pos + 6] >= spec.MQTT5:
        return spec.MQTT5
    return spec.MQTT311


def check_connect(connect: Connect, max_levels: int) -> None:
    """What a CONNECT must satisfy beyond its format. [MQTT-3.1.4-1]"""
    if not connect.client_id and not (connect.version >= spec.MQTT5 or connect.clean_start):
        # [MQTT-3.1.3-8] MQTT 3.1.1: an empty id needs a clean session.
        raise ProtocolError(
            spec.CLIENT_IDENTIFIER_NOT_VALID, "MQTT-3.1.3-8", "empty client id, session kept"
        )
    if not connect.client_id and connect.version == spec.MQTT31:
        raise ProtocolError(
            spec.CLIENT_IDENTIFIER_NOT_VALID, "MQTT-3.1.3-8", "MQTT 3.1 needs a client id"
        )
    will = connect.will
    if will is not None:
        validate_topic_name(will.topic, max_levels)
        if is_reserved(will.topic):
            raise ProtocolError(spec.NOT_AUTHORIZED, "", "a will on a reserved topic")


def is_reserved(topic: str) -> bool:
    """Topics that only the broker itself may write."""
    return topic.startswith(("$SYS/", "$share/", "$CONTROL/")) or topic in ("$SYS", "$CONTROL")


def grant_keep_alive(connect: Connect, settings: Settings, answer: Properties) -> int:
    """The keep alive in force, in seconds; told to an MQTT 5 client that asked for another."""
    wanted = connect.keep_alive
    longest = settings.max_keep_alive
    if longest and connect.version >= spec.MQTT5 and (wanted == 0 or wanted > longest):
        answer.server_keep_alive = longest
        return longest
    return wanted  # [MQTT-3.2.2-22]


def announce(connect: Connect, settings: Settings, session: Session, answer: Properties) -> None:
    """Fill in what CONNACK tells an MQTT 5 client about this server."""
    answer.receive_maximum = settings.receive_maximum  # [MQTT-4.9.0-1]
    answer.maximum_packet_size = settings.max_packet_size
    if settings.topic_alias_maximum:
        answer.topic_alias_maximum = settings.topic_alias_maximum
    asked = connect.properties.session_expiry_interval or 0
    if asked != session.expiry_interval:
        answer.session_expiry_interval = session.expiry_interval
    prefix = settings.response_information
    if connect.properties.request_response_information == 1 and prefix:
        # [MQTT-3.1.2-28] only on request; and only where it makes a topic one can subscribe to.
        topic = prefix + "/" + session.client_id
        if "+" not in topic and "#" not in topic and len(topic.encode("utf-8")) <= MAX_RESPONSE:
            answer.response_information = topic


def wanted_expiry(connect: Connect, settings: Settings) -> int:
    """The Session Expiry Interval granted, in seconds."""
    if connect.version >= spec.MQTT5:
        wanted = connect.properties.session_expiry_interval or 0
    else:
        wanted = 0 if connect.clean_start else NEVER
    return min(wanted, settings.session_expiry_max)


def describe(connect: Connect, present: bool) -> str:
    """One phrase for the log."""
    version = "5.0" if connect.version == 5 else ("3.1.1" if connect.version == 4 else "3.1")
    return "MQTT " + version + (", session resumed" if present else ", new session")
