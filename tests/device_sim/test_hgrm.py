"""The percentile text of latencies: what HdrHistogram's plotters read is what was measured."""

import math
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from device_sim.judge.histogram import Histogram
from device_sim.results.hgrm import files, text_of
from tests.device_sim.results import histogram, result

GOLDEN = """\
       Value     Percentile TotalCount 1/(1-Percentile)

       0.001 0.000000000000          2           1.00
       0.001 0.100000000000          2           1.11
       0.001 0.200000000000          2           1.25
       0.001 0.300000000000          2           1.43
       0.001 0.400000000000          2           1.67
       0.001 0.500000000000          2           2.00
       0.003 0.550000000000          3           2.22
       0.003 0.600000000000          3           2.50
       0.003 0.650000000000          3           2.86
       0.003 0.700000000000          3           3.33
       0.003 0.750000000000          3           4.00
      10.000 1.000000000000          4
#[Mean    =        2.501, StdDeviation   =        4.336]
#[Max     =       10.000, Total count    =            4]
#[Buckets =           34, SubBuckets     =          128]
"""


def rows(text: str) -> list[tuple[float, float, int]]:
    """Value in milliseconds, share and count of each line."""
    found = []
    for line in text.splitlines():
        if re.match(r" +\d", line):
            value, share, count, *rest = line.split()
            assert len(rest) == (float(share) < 1)
            if rest:
                assert math.isclose(float(rest[0]), 1 / (1 - float(share)), rel_tol=0.01)
            found.append((float(value), float(share), int(count)))
    return found


def test_the_layout() -> None:
    assert text_of(histogram(1, 1, 3, 10_000)) == GOLDEN


@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=200))
def test_every_line_is_true_of_the_values(values: list[int]) -> None:
    found = rows(text_of(histogram(*values)))
    assert found[-1] == (max(values) / 1000, 1.0, len(values))
    assert [row[1] for row in found] == sorted({row[1] for row in found})
    for value_ms, share, count in found:
        assert count >= share * len(values) - 1e-6
        # The values up to the end of the bucket, and a bucket is never wider than 1/128.
        below = sum(1 for value in values if value <= value_ms * 1000 + 0.5)
        assert below == count


def test_nothing_was_measured() -> None:
    assert rows(text_of(Histogram())) == []


def test_each_latency_that_was_measured_has_a_file(tmp_path: Path) -> None:
    made = result()
    found = files(str(tmp_path / "out.hgrm"), made)
    assert [Path(name).name for name in found] == ["out.hgrm", "out.sent.hgrm", "out.connect.hgrm"]
    first, sent, _ = (rows(text)[-1] for text in found.values())
    assert first[2] == made.histograms["from_intended"].count
    assert sent[2] == made.histograms["from_sent"].count
    del made.histograms["from_intended"]
    made.measure("round_trip", histogram(5))
    names = [Path(name).name for name in files("x/out.hgrm", made)]
    assert names == ["out.hgrm", "out.connect.hgrm", "out.round_trip.hgrm"]
