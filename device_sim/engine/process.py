"""A broker that a scenario starts, kills and starts again.

Owns one child process: its command line, its files, its output and its end. The command and the
files may name `{port}`, where it is to listen; `{dir}`, a directory of its own, which lasts as long
as the run, so that a broker comes back to what it left; and `{python}`, this interpreter.

The broker is up when its `ready` text has stood in a line of its output (if one is asked for) and
its port takes a connection. It runs in a session of its own, and whatever ends it kills what is
left of that session: no run leaves a broker behind. What it prints is read until its end, so that a
full pipe never stops it; the last lines are kept for the error message of a start that failed.
"""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

POLL_S: Final = 0.02
LINES_KEPT: Final = 20
GRACE_S: Final = 10.0
"""After SIGTERM it gets this long, then SIGKILL."""
_PART: Final = re.compile(r"\{(port|dir|python)\}")


class ProcessError(Exception):
    """The broker could not be started; the text says what was run and what it said."""


def environment() -> dict[str, str]:
    """That of this process, in which a child finds the packages that this process runs."""
    here = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{before}" if before else here}


def free_port(host: str) -> int:
    """A port on which nobody listens at this moment."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


class BrokerProcess:
    """One broker, on one port for as long as the run lasts."""

    def __init__(
        self,
        command: list[str],
        files: Mapping[str, str],
        ready: str | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.host = host
        self.port = port
        self.directory = ""
        self._command = command
        self._files = files
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._said = asyncio.Event()
        self._place: tempfile.TemporaryDirectory[str] | None = None

    @property
    def running(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, timeout_s: float) -> None:
        """Start it, and wait until it takes connections; ProcessError when it doesn't.

        One that still runs is killed first, and so is what is left of one that ended by itself.
        """
        await self.kill()
        if self._place is None:
            self._prepare()
        words = [self._filled(word) for word in self._command]
        self._lines.clear()
        self._said.clear()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self.directory,
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessError(f"the broker {words[0]!r} could not be started: {error}") from None
        self._reader = asyncio.create_task(self._read(self._process))
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_up(self._process)
        except TimeoutError:
            await self.kill()
            raise ProcessError(self._why(f"was not ready within {timeout_s:g} s")) from None

    async def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> None:
        """SIGTERM, and SIGKILL when it doesn't end."""
        await self._end(signal.SIGTERM)

    async def close(self) -> None:
        """The run is over: end it, and remove its directory."""
        await self.terminate()
        if self._place is not None:
            self._place.cleanup()
            self._place = None

    def _prepare(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="device_sim-", ignore_cleanup_errors=True)
        self.directory = self._place.name
        # Brokers that give up root have to get into it as whoever they become.
        os.chmod(self.directory, 0o777)
        if not self.port:
            self.port = free_port(self.host)
        for name, text in self._files.items():
            path = Path(self.directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._filled(text), encoding="utf-8")

    def _filled(self, text: str) -> str:
        parts = {"port": str(self.port), "dir": self.directory, "python": sys.executable}
        return _PART.sub(lambda found: parts[found[1]], text)

    async def _until_up(self, process: asyncio.subprocess.Process) -> None:
        if self._ready is not None:
            said = asyncio.ensure_future(self._said.wait())
            ended = asyncio.ensure_future(process.wait())
            try:
                await asyncio.wait({said, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                said.cancel()
                ended.cancel()
        loop = asyncio.get_running_loop()
        while True:
            if process.returncode is not None:
                if self._reader is not None:
                    await asyncio.wait({self._reader}, timeout=1.0)
                raise ProcessError(self._why(f"ended at once with code {process.returncode}"))
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.setblocking(False)
                await loop.sock_connect(probe, (self.host, self.port))
                return
            await asyncio.sleep(POLL_S)

    def _why(self, what: str) -> str:
        said = " | ".join(self._lines)
        words = shlex.join(self._command)
        return f"the broker {words!r} {what}" + (f"; it said: {said}" if said else "")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                continue  # longer than the buffer: not the line that is waited for
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            self._lines.append(line)
            if self._ready is not None and self._ready in line:
                self._said.set()

    async def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            _signal_session(process.pid, number)
            try:
                async with asyncio.timeout(GRACE_S):
                    await process.wait()
            except TimeoutError:
                _signal_session(process.pid, signal.SIGKILL)
                await process.wait()
        # What it started must not outlive it.
        _signal_session(process.pid, signal.SIGKILL)
        if self._reader is not None:
            # Its output ends with it, unless somebody who left its session still holds the pipe.
            await asyncio.wait({self._reader}, timeout=1.0)
            self._reader.cancel()
        self._reader = self._process = None


def _signal_session(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
