"""Which mqttd the suite runs on, and on which event loop.

MQTTD_BUILD  directory with a built mqttd (build/compiled, build/pure); absent: the source tree
MQTTD_LOOP   uvloop | asyncio; absent: uvloop where it is installed

The build is imported here, before any test module: from then on `mqttd` and `device_sim` are the
ones of that directory, wherever else they could be found. Processes that tests start inherit it
through PYTHONPATH. A build that isn't what its name says stops the run, because a suite that
passes on the wrong code proves nothing.

What spends its time in other processes, or waiting for them, is marked `once`: it shows how the
whole stands up to kills, cuts and other programs, and a second build would teach nothing more.

A test that is a coroutine function runs on that loop, to its end, with no task left over. What lies
outside of `LOOP_FREE` is marked `loop`: it runs a second time on the other loop.

A test with real sockets or processes (one of `loop`, or below `LIVE`) that fails is run once more:
the machine may have starved it. All others are deterministic, and fail for good; how long an
example of Hypothesis takes is no reason to.
"""

import asyncio
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
NATIVE = (".so", ".pyd")
LIVE = ("crash", "power", "bench", "plugins", "device_sim", "bridges")
"""Processes and sockets, on a loop of their own choice, or on one that makes no difference."""
LOOP_FREE = ("core", "spec", *LIVE)
ONCE = ("bench", "bridges", "crash", "interop", "power")
ONCE_FILES = (
    # of device_sim, and of plugins: several processes
    "test_brokers.py",
    "test_html.py",
    "test_queues_killed.py",
    "test_run.py",
    "test_run_brokers.py",
    "test_workers.py",
)
LOOP_FREE_FILES = (
    # device_sim without its sockets
    "test_client.py",
    "test_histogram.py",
    "test_ledger.py",
    "test_payload.py",
    "test_plan.py",
    "test_publisher.py",
    "test_ranges.py",
    "test_arrival.py",
    "test_catalogue.py",
    "test_chance.py",
    "test_doubt.py",
    "test_hgrm.py",
    "test_encodings.py",
    "test_expression.py",
    "test_forecast.py",
    "test_naming.py",
    "test_scenario.py",
    "test_scenario_commands.py",
    "test_scenario_docs.py",
    "test_scenario_errors.py",
    "test_values.py",
    "test_feed.py",
    "test_compare.py",
    "test_export.py",
    "test_html.py",
    "test_oracles.py",
    "test_result.py",
    "test_verdict_page.py",
    # plugins without a broker
    "test_acl_check.py",
    "test_acl_rights.py",
    "test_acl_rules.py",
    "test_acl_text.py",
    "test_filters.py",
    "test_hashes.py",
    "test_rights_pages.py",
    "test_traffic_pages.py",
    "test_user_pages.py",
    # net without its sockets
    "test_identity.py",
    "test_proxy.py",
    "test_timers.py",
    # power without its processes
    "test_rebuild.py",
    # everything else
    "test_config.py",
    "test_cli.py",
    "test_plugin_commands.py",
    "test_explain.py",
    "test_audit.py",
    "test_cert_expiry.py",
    "test_log.py",
    "test_metrics.py",
    "test_sysinfo.py",
    "test_layering.py",
    "test_conformance_tool.py",
    "test_packaging.py",
    "test_docs.py",
    "test_fuzz.py",
    "test_hostile.py",
    "test_hostile_memory.py",
    "test_hostile_state.py",
)


def _select_build() -> str:
    """Put the chosen build first and import it; how it should be called in the report."""
    wanted = os.environ.get("MQTTD_BUILD", "")
    place = (ROOT / wanted).resolve() if wanted else ROOT
    places = [str(place)] if wanted else [str(place), str(place / "plugins")]
    sys.path[:0] = places
    os.environ["PYTHONPATH"] = os.pathsep.join(places)
    os.environ["PYTHONSAFEPATH"] = "1"  # children don't put their working directory first
    for name in ("mqttd", "device_sim", "mqttd_plugins"):
        file = importlib.import_module(name).__file__
        if file is None or not Path(file).resolve().is_relative_to(place):
            pytest.exit(f"{name} comes from {file}, not from {place}", returncode=4)
    core = importlib.import_module("mqttd.core.spec").__file__ or ""
    build = "compiled" if core.endswith(NATIVE) else "pure"
    if place.name in ("compiled", "pure") and place.name != build:
        pytest.exit(f"{place} holds a {build} build", returncode=4)
    return build


BUILD = _select_build()

hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


def new_loop() -> asyncio.AbstractEventLoop:
    from mqttd.net import loops

    return loops.new_event_loop()


def pytest_report_header() -> str:
    from mqttd.net import loops

    return f"mqttd: {BUILD} build on {loops.choose()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).parts
        if place[0] in ONCE or place[-1] in ONCE_FILES:
            item.add_marker(pytest.mark.once)
        if place[-1] in LOOP_FREE_FILES:
            continue
        if place[0] not in LOOP_FREE:
            item.add_marker(pytest.mark.loop)
        live = place[0] in LIVE or place[0] not in LOOP_FREE
        if live and "_is_lost" not in item.name:  # what was lost once was lost
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A handler that a test leaves behind fails another one, anywhere; here it fails its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests; other plugins never see them."""
    function: Callable[..., object] = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    names = inspect.signature(function).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(function(**arguments))
    return True


@pytest.fixture
def build() -> str:
    """`compiled` or `pure`."""
    return BUILD


@pytest.fixture
def root() -> Path:
    """The source tree."""
    return ROOT
