"""The architecture as a test: who may import whom, and what no file may hold.

`L0 < L1 < L2 < L3 < L4 < {net, store} < app < cli`, where an import under TYPE_CHECKING
counts like any other. A module that is in no list fails: a new file gets its place here.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("mqttd", "device_sim", "plugins", "tests", "bench", "fuzz", "tools")
LONGEST = 700
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME)\b")

CORE_LAYERS = (
    ("spec", "errors", "wire", "settings", "counters"),
    ("packets", "properties", "decode", "encode", "framer"),
    ("topics", "trie", "retained", "message"),
    (
        *("inflight", "queue", "journal", "tables", "link", "session", "outbound", "shared"),
        *("auth", "watch", "handshake", "router", "inbound", "connection", "inside"),
        *("letters", "wills"),
    ),
    ("registry", "broker", "restore"),
)
LEVELS = {f"mqttd.core.{name}": level for level, names in enumerate(CORE_LAYERS) for name in names}
SIDES = ("mqttd.net", "mqttd.store", "mqttd.hooks")
# What a side may use besides the core and itself: the log, and for hooks what describes plugins.
SIDES_MAY_USE = {
    "mqttd.net": ("mqttd.log",),
    "mqttd.store": ("mqttd.log",),
    "mqttd.hooks": ("mqttd.log", "mqttd.config", "mqttd.scalars"),
}
# What stands beside the layers, and all that it may import of mqttd.
ALONE = {
    "mqttd.yamltree": (),
    "mqttd.scalars": ("mqttd.core.settings",),
    "mqttd.config": (
        *("mqttd.yamltree", "mqttd.scalars", "mqttd.core.spec", "mqttd.core.settings"),
    ),
    "mqttd.log": ("mqttd.core.spec",),
    "mqttd.census": ("mqttd.core",),
    "mqttd.sysinfo": ("mqttd.core", "mqttd.census"),
    "mqttd.metrics": ("mqttd.core", "mqttd.census"),
    "mqttd.monitor": (
        *("mqttd.core", "mqttd", "mqttd.census", "mqttd.sysinfo", "mqttd.metrics"),
        *("mqttd.net.flow", "mqttd.net.http", "mqttd.net.sockets"),
    ),
    "mqttd.api": (
        *("mqttd.core", "mqttd.scalars", "mqttd.config"),
        *("mqttd.hooks.values", "mqttd.hooks.plugin", "mqttd.hooks.loader"),
    ),
    "mqttd.testing": ("mqttd.api", "mqttd.app", "mqttd.config"),
    # The operator's side of the broker ...
    "mqttd.operate.audit": ("mqttd.core", "mqttd.log"),
    "mqttd.operate.explain": ("mqttd.core", "mqttd.hooks.manager", "mqttd.hooks.values"),
    "mqttd.operate.why": (
        "mqttd.core",
        "mqttd.operate.explain",
        "mqttd.hooks.manager",
        "mqttd.hooks.values",
    ),
    "mqttd.operate.answers": (
        *(
            "mqttd",
            "mqttd.core",
            "mqttd.operate.audit",
            "mqttd.operate.explain",
            "mqttd.operate.why",
            "mqttd.metrics",
        ),
        "mqttd.census",
        *("mqttd.hooks.manager", "mqttd.hooks.plugin", "mqttd.net.lines"),
    ),
    "mqttd.wiring": (
        *("mqttd.config", "mqttd.net.listener", "mqttd.net.protocol"),
        *("mqttd.net.sockets", "mqttd.net.tls"),
    ),
    "mqttd.operate.reload": (
        *(
            "mqttd",
            "mqttd.core",
            "mqttd.log",
            "mqttd.operate.audit",
            "mqttd.config",
            "mqttd.monitor",
        ),
        *("mqttd.hooks", "mqttd.hooks.checking", "mqttd.hooks.loader", "mqttd.hooks.manager"),
        *("mqttd.net.flow", "mqttd.net.http", "mqttd.net.listener", "mqttd.net.tls"),
        "mqttd.wiring",
    ),
    # ... and that of the terminal, which knows the broker by its socket alone.
    "mqttd.operate": (),
    "mqttd.operate.show": ("mqttd.log",),
    "mqttd.operate.client": (),
    "mqttd.operate.explained": ("mqttd.operate.show",),
    "mqttd.operate.top": ("mqttd.operate.client", "mqttd.log", "mqttd.operate.show"),
    "mqttd.operate.bridges": ("mqttd.operate.client", "mqttd.operate.show"),
    "mqttd.operate.plugins": (
        *("mqttd.hooks", "mqttd.hooks.checking", "mqttd.hooks.loader", "mqttd.hooks.plugin"),
        "mqttd.operate.show",
    ),
    "mqttd.operate.commands": (
        *("mqttd", "mqttd.config", "mqttd.scalars", "mqttd.operate.client", "mqttd.log"),
        *("mqttd.operate.show", "mqttd.operate.explained", "mqttd.operate.top"),
        "mqttd.operate.bridges",
    ),
    "mqttd.cli": (
        *("mqttd", "mqttd.app", "mqttd.config", "mqttd.log", "mqttd.net.loops"),
        *("mqttd.store.admin", "mqttd.store.view", "mqttd.operate", "mqttd.operate.commands"),
        *("mqttd.operate.plugins", "mqttd.hooks", "mqttd.hooks.checking", "mqttd.hooks.loader"),
    ),
    "mqttd.__main__": ("mqttd.cli",),
}
TOP = ("mqttd", "mqttd.app")
CODEC = tuple(f"mqttd.core.{name}" for name in ("spec", "errors", "wire", *CORE_LAYERS[1]))
# Without a clock, a socket or chance the core can't be anything but a function of its input.
CORE_MAY_USE = {
    *("typing", "array", "bisect", "collections", "heapq", "math", "struct", "mypy_extensions"),
}


def sources(*trees: str) -> list[Path]:
    found = [path for tree in trees for path in (ROOT / tree).rglob("*.py")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources("mqttd", "device_sim", "plugins")}
EVERY_FILE = [*sources(*TREES), ROOT / "setup.py"]


def imports_of(name: str) -> Iterator[str]:
    """Every module that this one imports, by its full name."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in MODULES else module


def own_imports(name: str) -> set[str]:
    return {target for target in imports_of(name) if target.partition(".")[0] in TREES}


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def may_import(name: str, target: str) -> bool:
    if name in LEVELS:
        return LEVELS.get(target, len(CORE_LAYERS)) <= LEVELS[name]
    if is_within(name, SIDES):
        side = ".".join(name.split(".")[:2])
        return is_within(target, ("mqttd.core", side)) or target in SIDES_MAY_USE[side]
    if name in ALONE:
        return target in ALONE[name] or ("mqttd.core" in ALONE[name] and target in LEVELS)
    if name in TOP:
        return is_within(target, ("mqttd",)) and target not in ("mqttd.cli", "mqttd.__main__")
    if is_within(name, ("device_sim",)):
        return is_within(target, ("device_sim",)) or target in (*CODEC, "mqttd.yamltree")
    if is_within(name, ("plugins",)):
        return target == "mqttd.api"
    return False


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_goes_up(name: str) -> None:
    wrong = {target for target in own_imports(name) if not may_import(name, target)}
    assert not wrong, f"{name} imports {wrong}"


def test_every_core_module_has_a_layer() -> None:
    found = {name for name in MODULES if name.startswith("mqttd.core.")}
    assert found == set(LEVELS)


def test_no_import_goes_in_a_circle() -> None:
    # A package and the modules inside it may name each other: that is how Python loads them.
    graph = {name: own_imports(name) - {"mqttd"} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_the_core_is_pure(name: str) -> None:
    outside = {target.partition(".")[0] for target in imports_of(name)} - {"mqttd"}
    assert outside <= CORE_MAY_USE, f"{name} imports {outside - CORE_MAY_USE}"


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_the_core_is_written_for_its_compiler(name: str) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        place = f"{name}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{place}: coroutine"
        assert not isinstance(node, ast.Yield | ast.YieldFrom), f"{place}: generator"
        if isinstance(node, functions):
            assert node.args.kwarg is None, f"{place}: **{node.args.kwarg}"
            inner = [child for child in ast.walk(node) if child is not node]
            nested = [child for child in inner if isinstance(child, (*functions, ast.ClassDef))]
            assert not nested, f"{place}: something nested on line {nested[0].lineno}"
        if isinstance(node, ast.ClassDef):
            assert not node.keywords, f"{place}: metaclass"
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            assert not {d for d in decorators if "dataclass" in d}, f"{place}: dataclass"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if is_within(n, ("mqttd",))))
def test_tasks_are_made_in_few_places(name: str) -> None:
    if is_within(name, ("mqttd.net", "mqttd.store", "mqttd.hooks", "mqttd.app", "mqttd.testing")):
        return
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("create_task", "ensure_future"), f"{name}:{node.lineno}"


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= LONGEST, f"{len(lines)} lines"
    package = path.name == "__init__.py" and path.is_relative_to(ROOT / "mqttd")
    if text.strip() or package:
        assert ast.get_docstring(ast.parse(text)), "no module docstring"
    for number, line in enumerate(lines, 1):
        assert not UNFINISHED.search(line), f"line {number}: {line.strip()}"


def test_nothing_is_built_into_the_source_tree() -> None:
    suffixes = (".so", ".pyd", ".o", ".c")
    written = {ROOT / "tests/power/shim.c", ROOT / "bench/counter.c"}
    found = [path for tree in TREES for path in (ROOT / tree).rglob("*") if path.suffix in suffixes]
    found = [path for path in found if path not in written]
    assert not [path for path in found if "node_modules" not in path.parts]
