"""The benchmark's own promises: what it counts, how it compares, and that a run comes to an end.

No assertion here is about speed. The generator is fed through a socket pair, so that what it makes
of a broken stream is seen without a broken broker.
"""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from bench import macro, peers, report
from bench.cases import TABLE, Case, extras, select
from bench.loadgen import (
    BenchError,
    Conn,
    Engine,
    Flow,
    Plan,
    connect_packet,
    packet,
    percentiles,
    subscribe_packet,
    varint,
)


class Bench:
    """An engine with one publisher and one subscriber, each on a socket pair."""

    def __init__(self, qos: int = 0, version: int = 4, window: int = 10) -> None:
        self.engine = Engine(0, "127.0.0.1", 0, Plan(version, qos, window, 16))
        self.near: list[socket.socket] = []
        self.far: list[socket.socket] = []
        self.source = self.join()
        self.sink = self.join()
        self.publisher = self.engine.add_publisher(self.source, ["a/b"])
        self.sink.flows = [Flow(self.publisher)]

    def join(self) -> Conn:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.far.append(far)
        conn = Conn(near)
        self.engine.conns[conn.fd] = conn
        self.engine.epoll.register(conn.fd)
        return conn

    def frames(self, count: int) -> list[bytes]:
        """Publish `count` messages and take what was written, a frame each."""
        self.engine.publish(self.publisher, count, 1)
        data = self.far[0].recv(65536)
        length = self.publisher.frame_length
        return [data[i : i + length] for i in range(0, len(data), length)]

    def answered(self, side: int) -> bytes:
        return self.far[side].recv(65536)

    def close(self) -> None:
        self.engine.close()
        for sock in self.far:
            sock.close()


@pytest.fixture
def bench() -> Any:
    made: list[Bench] = []

    def make(**options: int) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_varint_and_packets() -> None:
    assert varint(127) == b"\x7f"
    assert varint(128) == b"\x80\x01"
    assert packet(0xC0, b"") == b"\xc0\x00"
    assert connect_packet("x", 4) == b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x"
    assert (
        connect_packet("x", 5) == b"\x10\x11\x00\x04MQTT\x05\x02\x00\x00\x03\x21\xff\xff\x00\x01x"
    )
    assert subscribe_packet(1, ["a"], 1, 4) == b"\x82\x06\x00\x01\x00\x01a\x01"


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_perfect_stream_has_no_faults(bench: Any, piece: int) -> None:
    b = bench()
    stream = b"".join(b.frames(10) + b.frames(10))
    for i in range(0, len(stream), piece):
        b.engine.receive(b.sink, stream[i : i + piece])
    assert b.engine.delivered == 20
    assert not any(b.engine.verdict().values())
    # The 1st, 8th and 15th are timed (and compared byte by byte).
    assert len(b.engine.latencies) == 3


def test_long_frames_and_mqtt5_properties(bench: Any) -> None:
    b = bench(version=5)
    b.engine.size = b.engine.plan.size = 200
    b.engine.plan.set_user_properties(1)
    b.engine.publishers.clear()
    b.publisher = b.engine.add_publisher(b.source, ["a/b"])
    b.sink.flows = [Flow(b.publisher)]
    for frame in b.frames(10):
        b.engine.receive(b.sink, frame)
    assert b.engine.delivered == 10
    assert not any(b.engine.verdict().values())


def test_a_position_wraps_with_the_ring(bench: Any) -> None:
    b = bench()
    for _ in range(20):
        b.engine.receive(b.sink, b"".join(b.frames(10)))
    assert b.engine.delivered == 200 > b.publisher.laps
    assert not any(b.engine.verdict().values())


def faults(b: Bench) -> dict[str, int]:
    return {name: int(n) for name, n in b.engine.verdict().items() if n}


def test_missing_doubled_and_swapped_messages_are_seen(bench: Any) -> None:
    b = bench()
    f = b.frames(6)
    b.engine.receive(b.sink, f[0] + f[3])
    assert faults(b) == {"gaps": 2, "lost": 2}
    b.engine.receive(b.sink, f[3])
    assert faults(b) == {"gaps": 2, "dups": 1, "lost": 2}
    b.engine.receive(b.sink, f[5] + f[4])
    assert faults(b) == {"gaps": 3, "dups": 2}


def test_a_message_of_another_flow_is_foreign(bench: Any) -> None:
    b = bench()
    b.sink.first_publisher = 1
    b.engine.receive(b.sink, b.frames(1)[0])
    assert faults(b)["foreign"] == 1


def test_changed_bytes_are_seen_in_sampled_messages(bench: Any) -> None:
    b = bench()
    b.engine.receive(b.sink, b.frames(1)[0][:-1] + b"!")
    assert faults(b) == {"corrupt": 1}


def test_window_is_kept_and_refilled(bench: Any) -> None:
    b = bench(window=3)
    b.engine.pump()
    b.engine.pump()
    assert b.publisher.sent == 3
    stream = b.answered(0)
    b.engine.receive(b.sink, stream[: b.publisher.frame_length])
    b.engine.pump()
    assert b.publisher.sent == 4


def test_qos1_is_acknowledged_and_counted(bench: Any) -> None:
    b = bench(qos=1)
    f = b.frames(4)
    # Ids 1, 2 and then 4: two runs, one write.
    b.engine.receive(b.sink, f[0] + f[1] + f[3])
    assert b.answered(1) == b"\x40\x02\x00\x01\x40\x02\x00\x02\x40\x02\x00\x04"
    b.engine.receive(b.source, b"\x40\x02\x00\x01\x40\x03\x00\x02\x87")
    assert b.publisher.acked == 2
    assert b.engine.refused == 1


def test_qos2_takes_both_steps_on_both_sides(bench: Any) -> None:
    b = bench(qos=2)
    b.engine.receive(b.sink, b.frames(1)[0])
    assert b.answered(1) == b"\x50\x02\x00\x01"
    b.engine.receive(b.sink, b"\x62\x02\x00\x01")
    assert b.answered(1) == b"\x70\x02\x00\x01"
    b.engine.receive(b.source, b"\x50\x02\x00\x01")
    assert b.answered(0) == b"\x62\x02\x00\x01"
    b.engine.receive(b.source, b"\x70\x02\x00\x01")
    assert b.publisher.acked == 1


def test_a_refused_connection_ends_the_run(bench: Any) -> None:
    b = bench()
    with pytest.raises(BenchError, match="refused with code 0x05"):
        b.engine.receive(b.source, b"\x20\x02\x00\x05")


def test_percentiles() -> None:
    assert percentiles([])["p99_us"] == 0.0
    ordered = [i * 1000 for i in range(1, 1002)]
    assert percentiles(ordered) == {
        "p50_us": 501.0,
        "p99_us": 991.0,
        "p999_us": 1000.0,
        "max_us": 1001.0,
    }


def test_cases_are_selected_by_name_pattern_and_group() -> None:
    others = extras()
    assert select("all", others) == TABLE + others
    assert [case.name for case in select("fan*-q0,pairs-w1-q0", others)] == [
        "fanin-w10-q0",
        "fanout-w10-q0",
        "pairs-w1-q0",
    ]
    with pytest.raises(ValueError, match="no case is called 'nothing'"):
        select("nothing", others)


def run_of(case: Case, peer: str, number: int, cost: float, **more: float) -> report.Record:
    figures = {
        "cpu_us": cost,
        "msgs_s": 1e6 / cost,
        "broker_busy": 1.0,
        "gen_busy": 0.5,
        "broker_waited": 0.0,
        "gen_waited": 0.0,
        "p50_us": 1.0,
        "p99_us": 2.0,
        "p999_us": 3.0,
        "gaps": 0.0,
        **more,
    }
    return {"case": case.name, "peer": peer, "round": number, "figures": figures}


def test_ratios_are_taken_inside_rounds() -> None:
    (case,) = select("pairs-w10-q0", [])
    records = [
        run_of(case, "mosquitto", 0, 5.0),
        run_of(case, "mqttd", 0, 1.0),
        run_of(case, "mosquitto", 1, 50.0),
        run_of(case, "mqttd", 1, 10.0),
        run_of(case, "mosquitto", 2, 6.0),
        run_of(case, "mqttd", 2, 1.0),
    ]
    base, ours = report.summarise(records, [case], "mosquitto")
    assert base.ratio == 1.0
    assert ours.ratio == 5.0
    assert ours.figures["cpu_us"] == 1.0
    assert ours.spread == (1.0, 10.0)
    assert ours.target("mqttd") == "✓ ≥ 5"
    assert not ours.bad
    assert ours.notes() == ""


def test_one_bad_round_makes_the_row_bad() -> None:
    (case,) = select("pairs-w10-q0", [])
    records = [run_of(case, "mqttd", 0, 1.0, gaps=3.0), run_of(case, "mqttd", 1, 1.0)]
    (row,) = report.summarise(records, [case], "mosquitto")
    assert row.bad
    assert row.ratio is None
    assert row.notes() == "BAD: 3 gaps"


def test_who_was_the_bottleneck_is_said() -> None:
    (case,) = select("pairs-w10-q0", [])
    busy = run_of(case, "mqttd", 0, 1.0, gen_busy=0.99, broker_busy=0.6, broker_waited=0.3)
    slow = run_of(case, "mqttd", 1, 1.0, gen_busy=0.99, broker_busy=0.6, broker_waited=0.3)
    busy["figures"]["spin_ms"] = 4.0
    slow["figures"]["spin_ms"] = 8.0
    (row,) = report.summarise([busy, slow], [case], "mosquitto")
    assert row.notes() == "generator-bound; contended 30%; core speed varied 2.0x"


def test_mqtt5_is_held_against_our_own_cost_and_refusals_are_shown() -> None:
    cases = select("pairs-w10-q0,pairs-w10-q0-v5", [])
    records = [
        run_of(cases[0], "mqttd", 0, 1.0),
        run_of(cases[1], "mqttd", 0, 1.4),
        {"case": cases[1].name, "peer": "aedes", "round": 0, "error": "refused"},
    ]
    rows = report.summarise(records, cases, "mosquitto")
    assert [row.target("mqttd") for row in rows] == ["", "✓ 1.40 of 3.1.1", ""]
    assert rows[2].notes() == "refused"
    text = report.markdown(rows, {"mqttd": "1.0"}, "mosquitto", "mqttd")
    assert "| 10 pairs, window 10, QoS 0, MQTT 5 | 1.40 (714) | - |" in text


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert macro.main(["--cases", "nothing"]) == 2
    assert macro.main(["--peers", "nobody"]) == 2
    assert macro.main(["--peers", "", "--peer", "x=1"]) == 2
    assert "no peer is called 'nobody'" in capsys.readouterr().err


def test_smoke_run_against_mosquitto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        peers.find("mosquitto", print)
    except peers.PeerError as error:
        pytest.skip(str(error))
    out = tmp_path / "out.json"
    command = "--peers mosquitto --cases pairs-w10-q1-v5,connections --pure --markdown -"
    sizes = ["--seconds", "2", "--rounds", "1", "--clients", "200"]
    code = macro.main([*command.split(), *sizes, "--json", str(out)])
    assert code == 0
    result = json.loads(out.read_text())
    assert result["meta"]["generator"] == "pure"
    flow, idle = result["summary"]
    assert not flow["bad"]
    assert flow["figures"]["msgs_s"] > 0
    assert idle["figures"]["connects_s"] > 0
    assert "10 pairs, window 10, QoS 1, MQTT 5" in capsys.readouterr().out
