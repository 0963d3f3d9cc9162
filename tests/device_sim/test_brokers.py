"""The flood against real brokers: Debian's mosquitto and mqttd, each on a free loopback port."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device_sim.cli import main
from tests.net.kit import PATIENCE, reserved_port
from tests.tls import Authority

Serve = Callable[[Path, Authority | None], Any]
# A process that gets no turn for a while is no reason to call its messages lost.
PATIENT = ["--settle", str(PATIENCE), "--connect-timeout", str(PATIENCE)]


@contextmanager
def mosquitto(place: Path, authority: Authority | None) -> Iterator[int]:
    with reserved_port() as port:
        yield from _mosquitto(place, authority, port)


def mosquitto_program() -> str:
    """Where it is; a test that needs it is skipped without it."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    return program


def _mosquitto(place: Path, authority: Authority | None, port: int) -> Iterator[int]:
    program = mosquitto_program()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "max_queued_messages 0"]
    if authority is not None:
        certificate, key = authority.issue("server", "localhost")
        key.chmod(0o644)
        place.chmod(0o755)
        lines += [f"cafile {authority.file}", f"certfile {certificate}", f"keyfile {key}"]
    config = place / "mosquitto.conf"
    config.write_text("\n".join([*lines, f"user {'root' if authority else 'nobody'}", ""]))
    with subprocess.Popen(
        [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                assert process.poll() is None, "mosquitto ended at once"
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


@contextmanager
def mqttd(place: Path, authority: Authority | None) -> Iterator[int]:
    listener: dict[str, Any] = {"name": "t", "bind": "127.0.0.1:0"}
    if authority is not None:
        certificate, key = authority.issue("server", "localhost")
        listener["tls"] = {"cert": str(certificate), "key": str(key)}
    config = place / "mqttd.yaml"
    # JSON is YAML.
    config.write_text(json.dumps({"listeners": [listener], "storage": {"path": ":memory:"}}))
    with subprocess.Popen(
        [sys.executable, "-m", "mqttd", "run", "-c", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said.startswith("listening"), said
            yield int(said.rsplit(":", 1)[1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.close()


@pytest.mark.parametrize("serve", [mosquitto, mqttd])
def test_every_promise_is_kept(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path, None) as port:
        for arguments in (
            ["-c", "100", "-q", "0,1,2", "-V", "3.1.1"],
            ["-c", "100", "-q", "0,1,2", "-V", "5", "--streams", "2", "--user-property", "a=b"],
            ["-c", "20", "-q", "1", "--watch", "all", "--subscribers", "4", "-s", "3000"],
            ["-c", "20", "-q", "2", "-r", "40"],
        ):
            flood = ["flood", "-p", str(port), "-n", "12", "--strict", "--quiet", "--json"]
            code = main([*flood, *PATIENT, *arguments])
            report = json.loads(capsys.readouterr().out)
            assert code == 0, report["verdict"]
            numbers = report["totals"]["all"]
            assert numbers["received"] == numbers["sent"] > 0


@pytest.mark.parametrize("serve", [mosquitto, mqttd])
def test_over_tls(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path)
    with serve(tmp_path, authority) as port:
        flood = ["flood", "-p", str(port), "-n", "3", "-c", "20", "-q", "1", "--quiet", *PATIENT]
        assert main([*flood, "--cafile", str(authority.file)]) == 0
        assert main([*flood, "--insecure"]) == 0
        assert main([*flood, "--tls"]) == 3
        assert "BROKEN OFF" in capsys.readouterr().out


def test_interrupted(tmp_path: Path) -> None:
    with mqttd(tmp_path, None) as port:
        arguments = ["-p", str(port), "-n", "2", "-r", "10", "-t", "600", "--json", *PATIENT]
        with subprocess.Popen(
            [sys.executable, "-m", "device_sim", "flood", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stderr.readline()  # the first line of progress: it runs
            process.send_signal(signal.SIGINT)
            report = json.loads(process.stdout.read())
    assert process.returncode == 3
    assert report["verdict"]["broken_off"] == "interrupted"
    assert report["totals"]["all"]["lost"] == 0
