"""A result for other programs: a CSV of its seconds, its promises as JUnit test cases.

The CSV has a line for each second with the faults that began in it, durations in microseconds. In
the JUnit file every promise that was made is a test case, kept or broken, and so is every limit
that was set: a build server then shows which of them failed. A run that was broken off is an error.
Characters that XML can't hold are replaced.
"""

import csv
import io
import re
from typing import Final
from xml.etree import ElementTree

from device_sim.judge.verdict import promises
from device_sim.results.result import Point, Result

CSV_COLUMNS: Final = (
    "at_s",
    "phase",
    "connected",
    "sent",
    "received",
    "sent_per_s",
    "received_per_s",
    "outstanding",
    "p50_us",
    "p90_us",
    "p99_us",
    "max_us",
    "faults",
)
_NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def csv_series(result: Result) -> str:
    """The seconds of a run, first line the names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    begun = -1.0
    for point in result.series:
        faults = [fault.kind for fault in result.faults if begun < fault.at_s <= point.at_s]
        begun = point.at_s
        writer.writerow([*_numbers(point), "; ".join(faults)])
    return text.getvalue()


def _numbers(point: Point) -> list[str]:
    latency = point.latency.histogram()
    return [
        f"{point.at_s:.3f}",
        point.phase,
        str(point.connected),
        str(point.sent),
        str(point.received),
        f"{point.sent_per_s:.1f}",
        f"{point.received_per_s:.1f}",
        str(point.outstanding),
        *(f"{latency.percentile(percent):.1f}" for percent in (50, 90, 99)),
        str(latency.maximum),
    ]


class _Suite:
    def __init__(self, result: Result) -> None:
        self.name = f"device_sim {result.scenario.name}".strip()
        seconds = result.connect.seconds + result.throughput.publish_s + result.throughput.settle_s
        self.element = ElementTree.Element("testsuite", name=_clean(self.name))
        self.element.set("time", f"{seconds:.3f}")
        if result.started:
            self.element.set("timestamp", result.started)
        self.count = {"tests": 0, "failures": 0, "errors": 0}

    def case(self, group: str, name: str, failure: str = "", detail: str = "") -> None:
        self._add(group, name, "failure", failure, detail)

    def error(self, group: str, name: str, message: str) -> None:
        self._add(group, name, "error", message, "")

    def _add(self, group: str, name: str, kind: str, message: str, detail: str) -> None:
        self.count["tests"] += 1
        case = ElementTree.SubElement(
            self.element, "testcase", classname=_clean(f"{self.name}.{group}"), name=_clean(name)
        )
        case.set("time", "0")
        if message:
            self.count[f"{kind}s"] += 1
            ElementTree.SubElement(case, kind, message=_clean(message)).text = _clean(detail)


def junit(result: Result) -> str:
    """The promises and limits of a judged run as a JUnit document."""
    suite = _Suite(result)
    verdict = result.verdict
    if verdict.broken_off:
        suite.error("run", "ran to its end", verdict.broken_off)
    else:
        suite.case("run", "ran to its end")
    for qos, total in sorted(result.books().totals.items()):
        for words, name in promises(qos, verdict.strict):
            count = getattr(total, name)
            message = f"{words}: {count:,} of {total.sent:,}" if count else ""
            suite.case(f"QoS {qos}", f"not {words}", message, _streams(result, qos, name))
    suite.case("run", "no message on topics of nobody", _matching(result, "unexpected m"))
    suite.case("run", "no protocol error", _matching(result, "protocol: "))
    failed = {text.partition(": ")[0]: text for text in verdict.thresholds}
    for term in result.scenario.thresholds:
        suite.case("limits", f"not {term}", failed.get(term, ""))
    for name, number in suite.count.items():
        suite.element.set(name, str(number))
    root = ElementTree.Element("testsuites")
    root.append(suite.element)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _matching(result: Result, prefix: str) -> str:
    return "; ".join(text for text in result.verdict.broken if text.startswith(prefix))


def _streams(result: Result, qos: int, name: str) -> str:
    """The listed streams with that trouble, a line each."""
    return "\n".join(
        f"{stream.topic} → subscriber {stream.subscriber}: {stream.counts()[name]:,}"
        for stream in result.troubled
        if stream.qos == qos and stream.counts()[name]
    )


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
