"""Reports of what clients did to a broker's files, tried on ours: see docs/hostile.md."""

import logging
from pathlib import Path

import pytest

from tests.store.disk import Disk, away, fill, payloads

ODD = [
    *("id", "ID", "id ", " id", "\u00e9", "e\u0301", "id\u200b", "x" * 60000, "x" * 59999),
    *("../../escaped", "/tmp/escaped", "..", ".", "a/b", "mqttd.db", "mqttd.db-wal"),
    *("'); DROP TABLE sessions; --", '"', "%", "_", "?", "NULL", "x'00'", "$share/g/t", "{0}"),
]


def all_files(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.iterdir() if file.is_file())


def test_cve_2026_95847_client_ids_that_look_alike_stay_apart_in_the_file(tmp_path: Path) -> None:
    """CVE-2026-95847: client ids collide or escape in storage keys; one corrupts another."""
    path = tmp_path / "mqttd.db"
    with Disk(path) as disk:
        for number, name in enumerate(ODD):
            away(disk, name, f"t/{number}")
        for number in range(len(ODD)):
            fill(disk, f"t/{number}", [number])
        away(
            disk, "'); DROP TABLE sessions; --", "t/#"
        )  # started clean: nobody else loses anything
        ended = ODD.index("'); DROP TABLE sessions; --")
        with disk.crash() as other:
            assert set(other.broker.sessions) == set(ODD)
            for number, name in enumerate(ODD):
                client = other.client(name, clean=False, expiry=3600)
                assert client.connack.session_present
                assert payloads(client) == ([b"%d" % number] if number != ended else [])


def test_path_injection_names_are_in_no_path(tmp_path: Path) -> None:
    """A client id, topic, filter or group that is used in the name of a file."""
    place = tmp_path / "deep" / "data"
    with Disk(place / "mqttd.db") as disk:
        for name in ODD:
            away(disk, name, "t", "$share/../t/+")
        source = disk.client("source")
        for topic in ("../../escaped", "/etc/escaped", ".."):
            source.publish(topic, b"x", qos=1, retain=True)
        disk.commit()
        names = {file.name for file in place.iterdir()}
        assert names == {"mqttd.db", "mqttd.db-wal", "mqttd.db-shm", "mqttd.db.lock"}
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]
    assert [file.name for file in place.parent.iterdir()] == ["data"]


def test_cve_2026_33216_passwords_are_not_written_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """CVE-2026-33216: MQTT passwords can be seen in what the server keeps about its clients."""
    with caplog.at_level(logging.DEBUG), Disk(tmp_path / "mqttd.db") as disk:
        client = disk.client("c", username="somebody", password=b"hunter2-secret", expiry=3600)
        client.drop()
        disk.commit()
        found = all_files(tmp_path)
        events = " ".join(f"{e.kind} {e.client_id} {e.reason}" for e in disk.broker.events)
    assert b"hunter2-secret" not in found + all_files(tmp_path)
    assert "hunter2" not in caplog.text + events
