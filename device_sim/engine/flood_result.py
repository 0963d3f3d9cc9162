"""The result of a finished flood: its settings, its books and its histograms in one document."""

from typing import Any

from device_sim.engine.course import Sample
from device_sim.engine.flood import Flood
from device_sim.engine.limits import peak_memory
from device_sim.engine.plan import VERSIONS, Settings
from device_sim.results.result import Connects, Point, Result, Scenario, Throughput, environment


def flood_result(flood: Flood, strict: bool, warnings: list[str]) -> Result:
    """Everything about a run that is over, yet to be judged."""
    settings = flood.settings
    result = Result(
        run=f"{flood.run_id:08x}",
        started=flood.started.isoformat(timespec="seconds"),
        scenario=Scenario(command="flood", name="flood", headline=_headline(settings)),
        environment=environment(flood.loop_name),
        settings=_settings(settings),
        violations=flood.violations,
        throughput=Throughput(
            asked_per_s=settings.rate * settings.devices if settings.paced else None,
            sent=flood.sent_in_time,
            received=flood.received_in_time,
            publish_s=flood.publish_s,
            settle_s=flood.settle_s,
            held_back=flood.held_back,
            written_off=flood.written_off,
            generator_cpu=flood.cpu_s / flood.publish_s if flood.publish_s else 0.0,
            generator_memory=peak_memory(),
        ),
        connect=Connects(seconds=flood.connect_s),
        series=[point(sample) for sample in flood.series],
        warnings=warnings,
    )
    result.verdict.strict = strict
    result.verdict.broken_off = flood.broken_off
    result.book(flood.verdict)
    result.measure("from_sent", flood.ledger.from_sent)
    result.measure("connect", flood.connect_times)
    if settings.paced:
        result.measure("from_intended", flood.ledger.from_intended)
        result.measure("pacing_lag", flood.pacing_lag)
    return result


def _headline(settings: Settings) -> str:
    names = {number: name for name, number in VERSIONS.items()}
    pace = f"{settings.rate:g}/s each" if settings.rate else f"window {settings.window}"
    qos = "/".join(str(level) for level in settings.qos)
    return (
        f"{settings.host}:{settings.port}  MQTT {names[settings.version]}"
        f"{' over TLS' if settings.tls else ''}  {settings.devices} devices, {pace}, "
        f"QoS {qos}, {settings.size} bytes  →  {settings.subscribers} subscribers"
    )


def _settings(settings: Settings) -> dict[str, Any]:
    names = {number: name for name, number in VERSIONS.items()}
    return {
        "host": settings.host,
        "port": settings.port,
        "version": names[settings.version],
        "tls": settings.tls,
        "devices": settings.devices,
        "rate": settings.rate,
        "qos": list(settings.qos),
        "seconds": settings.seconds,
        "count": settings.count,
        "size": settings.size,
        "window": settings.window,
        "streams": settings.streams,
        "subscribers": settings.subscribers,
        "subscriber_qos": settings.subscriber_qos,
        "watch": settings.watch,
        "pattern": settings.pattern,
        "user_properties": len(settings.user_properties),
        "keep_alive": settings.keep_alive,
        "settle": settings.settle,
    }


def point(sample: Sample) -> Point:
    """A second of the run as the result has it."""
    return Point(
        phase=sample.phase,
        at_s=round(sample.elapsed_s, 3),
        connected=sample.connected,
        sent=sample.sent,
        received=sample.received,
        sent_per_s=round(sample.sent_per_s, 1),
        received_per_s=round(sample.received_per_s, 1),
        outstanding=sample.outstanding,
        p50_us=sample.p50_us,
        p99_us=sample.p99_us,
        latency=sample.latency,
    )
