"""The fuzz targets hold on their corpus and on some hundred mutations of it, always the same ones.

`make fuzz` goes on from here for as long as it is told to.
"""

import re
from pathlib import Path

import pytest

from fuzz.run import Mutator, attempt, main, run
from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_nothing_but_the_documented_exception_comes_out(name: str) -> None:
    """[MQTT-4.13.1-1]"""
    target = TARGETS[name]
    assert run(target, 0.0, seed=1, inputs=len(target.seeds()) + 150)


def test_make_test_fuzzes_all_targets_for_a_bounded_time() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ntest:")[2].partition("\n\n")[0]
    (seconds,) = re.findall(r"-m fuzz --seconds (\d+)$", recipe, re.MULTILINE)
    assert len(TARGETS) <= int(seconds) <= 40


def test_each_target_has_inputs_that_differ_in_what_they_do() -> None:
    for target in TARGETS.values():
        seeds = target.seeds()
        assert len({repr(target.check(data)) for data in seeds}) > 5, target.name


def broken(data: bytes) -> object:
    if b"!" in data:
        raise RuntimeError("found it")
    return len(data)


def test_a_fault_ends_the_run_and_leaves_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    target = Target("broken", lambda: [b"good", b"bad!"], broken)
    monkeypatch.setitem(TARGETS, "broken", target)
    assert not run(target, 60.0, seed=0)
    (file,) = (tmp_path / "build" / "fuzz").iterdir()
    assert file.read_bytes() == b"bad!"
    assert "found it" in capsys.readouterr().err
    assert main(["--target", "broken", "--input", str(file)]) == 1
    file.write_bytes(b"mended")
    assert main(["--target", "broken", "--input", str(file)]) == 0


def test_a_fault_is_found_by_mutation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def deeper(data: bytes) -> object:
        assert not data.startswith(b"\x10\x20"), "too deep"
        return data[:1]

    assert not run(Target("deeper", lambda: [b"\x00\x00"], deeper), 0.0, seed=0, inputs=100_000)


def test_the_same_seed_makes_the_same_inputs() -> None:
    first, second, other = (Mutator([b"seed", b"corpus"], seed) for seed in (1, 1, 2))
    made = [first.next() for _ in range(50)]
    assert made == [second.next() for _ in range(50)]
    assert made != [other.next() for _ in range(50)]
    assert len(set(made)) > 30
    assert Mutator([], 0).next() is not None


def test_an_input_that_costs_too_much_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fuzz.run.SLOW", -1.0)
    assert attempt(Target("slow", lambda: [b""], len), b"") == (False, None)
    assert "of computing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--target", "nothing"], ["--input", "x"], ["--seconds", "a"]]
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_all_targets_share_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0", "--engine", "own"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(TARGETS)
