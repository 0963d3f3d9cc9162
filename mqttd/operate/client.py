"""The other end of the control socket: a request to a broker that runs, and its answer.

Owns: finding the socket, and what the operator reads where nobody answers.

Must not know: what is asked, how it is shown. It blocks: it is for the command line alone.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

DEFAULT: Final = "data/mqttd.ctl"
WAIT_S: Final = 120.0  # for the next line of an answer


class Unanswered(Exception):
    """There is no answer; the text says why."""


class NotGranted(Unanswered):
    """The broker answers that it can't be done, and why."""


class Control:
    """A connection to one broker."""

    def __init__(self, path: Path) -> None:
        """Connect. Unanswered."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(WAIT_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unanswered(f"no broker answers at {path}: {_reason(error)}") from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def stream(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The items of an answer as they come, then its end. Unanswered."""
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            for line in self._lines:
                answer = json.loads(line)
                if "error" in answer:
                    raise NotGranted(str(answer["error"]))
                yield answer
                if "end" in answer:
                    return
        except OSError as error:
            raise Unanswered(f"the broker stopped answering: {_reason(error)}") from None
        raise Unanswered("the broker closed the connection before its answer was complete")

    def ask(self, request: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """All items of an answer, and its end."""
        items: list[Any] = []
        end: dict[str, Any] = {}
        for answer in self.stream(request):
            if "item" in answer:
                items.append(answer["item"])
            else:
                end = answer["end"]
        return items, end


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket (is it running, and with `control`?)"
    return error.strerror or str(error)
