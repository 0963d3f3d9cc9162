"""An HTTP service that answers questions about clients, in the JSON that EMQX asks for.

    200 {"result": "allow" | "deny" | "ignore", "is_superuser": false, "client_attrs": {},
         "expire_at": 1735689600, "acl": [...]}
    204                                                       means allow

Owns: `Outcome` (an answer that was understood), `read_outcome`, and `Service`: connections, their
number, time-outs, TLS, and answers that are remembered for a while.

Must not know: what is asked (`http_auth` puts requests together), what follows from an answer.

Invariants:
- What isn't one of these answers is `Unanswered`: any other status, a redirect, text, JSON of
  another shape, too many bytes, too long a time. It is never remembered.
- Nothing of a request or of an answer is in the text of an error: either may hold a secret.
  Remembered answers are found by a keyed hash of the request, so no password stays in memory.
- No cookies, no proxies from the environment, no compressed bodies.

It imports `aiohttp`, and is imported where that is needed, not before.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from mqttd_plugins._acl_rules import Rules, RulesError, parse_rules

ALLOW: Final = "allow"
DENY: Final = "deny"
IGNORE: Final = "ignore"

_LARGEST: Final = 64 * 1024
_CHUNK: Final = 16 * 1024


class Unanswered(Exception):
    """The service gave no answer that counts. The text is for the log."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer. `expire_at` is seconds since 1970; `rules` None where it brought none."""

    result: str
    superuser: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)
    expire_at: float | None = None
    rules: Rules | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """`fields` go into the query of a GET, and into the body of a POST as JSON or as a form."""

    method: str
    url: str
    headers: Mapping[str, str]
    fields: Mapping[str, Any]
    form: bool = False

    def text_fields(self) -> dict[str, str]:
        return {name: as_text(value) for name, value in self.fields.items()}


def as_text(value: object) -> str:
    """A value where there is only text: in a form, a query, a header."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_outcome(status: int, raw: bytes) -> Outcome:
    """What a complete answer means. Unanswered: nothing."""
    if status == 204:
        return Outcome(ALLOW)
    if status != 200:
        raise Unanswered(f"status {status}")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise Unanswered("a body that isn't JSON") from None
    if not isinstance(value, dict):
        raise Unanswered("JSON that is no object")
    result = value.get("result", IGNORE)
    if result not in (ALLOW, DENY, IGNORE):
        raise Unanswered("a result that is neither allow, deny nor ignore")
    superuser = value.get("is_superuser", False)
    if not isinstance(superuser, bool):
        raise Unanswered("is_superuser that is neither true nor false")
    attributes = value.get("client_attrs") or {}
    if not isinstance(attributes, dict) or not all(map(_is_text, attributes.values())):
        raise Unanswered("client_attrs that aren't texts by name")
    expire_at = _time(value.get("expire_at"))
    try:
        written = value.get("acl")
        rules = None if written is None else parse_rules(written)
    except RulesError as error:
        raise Unanswered(f"rules that can't be understood: {error}") from None
    return Outcome(result, superuser, attributes, expire_at, rules)


def _time(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # a whole number that no float can hold
            pass
    raise Unanswered("expire_at that is no time")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def tls_context(
    ca: Path | None, cert: Path | None, key: Path | None, verify: bool
) -> ssl.SSLContext:
    """ValueError with the names of the files where one is no good."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one; neither names the file
        raise ValueError(f"tls.ca: {ca}: {error.strerror or error}") from error
    if cert is not None:
        try:
            # Without a password callback an encrypted key would ask on the terminal.
            context.load_cert_chain(cert, key, password=lambda: b"")
        except OSError as error:
            raise ValueError(f"tls.cert: {cert} with {key}: {error.strerror or error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Service:
    """Asks, over a bounded number of connections, and remembers. To be made on the loop."""

    def __init__(
        self,
        context: ssl.SSLContext | None,
        timeout_s: float,
        connections: int,
        ttl_s: float,
        entries: int,
        clock: Callable[[], float],
    ) -> None:
        self._ttl_s = ttl_s
        self._entries = entries
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[float, Outcome]] = {}  # the oldest first
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=context or True),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    def remembered(self, request: Request) -> Outcome | None:
        """An answer that is young enough."""
        if not self._known:
            return None
        found = self._known.get(self._key(request))
        return found[1] if found is not None and found[0] > self._clock() else None

    async def ask(self, request: Request) -> Outcome:
        """Ask, whatever is remembered. Unanswered: there was no answer that counts."""
        try:
            status, raw = await self._exchange(request)
        except TimeoutError:
            raise Unanswered("too slow") from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # RuntimeError: a reload has closed the session in between.
            raise Unanswered(type(error).__name__) from None
        outcome = read_outcome(status, raw)
        if self._ttl_s > 0:
            self._remember(self._key(request), outcome)
        return outcome

    async def _exchange(self, request: Request) -> tuple[int, bytes]:
        body: dict[str, Any] = {}
        if request.method == "get":
            body["params"] = request.text_fields()
        elif request.form:
            body["data"] = request.text_fields()
        else:
            body["json"] = dict(request.fields)
        async with self._session.request(
            request.method, request.url, headers=request.headers, allow_redirects=False, **body
        ) as response:
            if response.status != 200:
                return response.status, b""
            raw = b""
            async for chunk in response.content.iter_chunked(_CHUNK):
                raw += chunk
                if len(raw) > _LARGEST:
                    raise Unanswered(f"more than {_LARGEST} bytes")
            return response.status, raw

    def _remember(self, key: bytes, outcome: Outcome) -> None:
        now = self._clock()
        self._known.pop(key, None)
        while self._known:
            oldest = next(iter(self._known))
            if len(self._known) < self._entries and self._known[oldest][0] > now:
                break
            del self._known[oldest]
        self._known[key] = (now + self._ttl_s, outcome)

    def _key(self, request: Request) -> bytes:
        parts = [request.method, request.url, dict(request.headers), dict(request.fields)]
        text = json.dumps(parts, sort_keys=True).encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=32).digest()
