"""The one error that bad input may cause.

`ProtocolError` carries the reason code that goes on the wire, so that the code which finds a
fault also decides what the peer is told, and a single place in the connection turns it into
CONNACK, DISCONNECT or a plain close. Whatever else escapes the core is a bug of ours and is
treated as one.

`detail` is for the log and for the Reason String. It is our own text: it never quotes what the
peer sent, because that may be huge, secret, or written to fool whoever reads the log.
"""

from mqttd.core import spec


class ProtocolError(Exception):
    """The peer broke the protocol.

    `code` is an MQTT 5 reason code (>= 0x80), `clause` the clause it broke ("MQTT-3.3.1-4", or ""
    where the specification states the rule without a number), `detail` a short explanation.
    """

    def __init__(self, code: int, clause: str = "", detail: str = "") -> None:
        super().__init__(code, clause, detail)
        self.code = code
        self.clause = clause
        self.detail = detail

    def __str__(self) -> str:
        text = spec.reason_name(self.code)
        if self.detail:
            text = f"{text}: {self.detail}"
        if self.clause:
            text = f"{text} [{self.clause}]"
        return text
