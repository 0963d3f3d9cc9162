"""The documentation as a test: what it says about keys, commands and tests has to be so.

Checked: every key of the configuration stands in docs/reference/configuration.md with its default
and its choices, and no other does; each relative link and anchor leads somewhere; commands name
targets, options and files that exist; YAML is a good configuration; Python examples run; tests that
docs/explanation/delivery.md calls on exist, and it lists the reasons for a drop.
"""

import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from device_sim import cli as device_sim
from mqttd import cli, config
from mqttd.core import counters
from mqttd.operate import plugins as plugin_commands
from mqttd.yamltree import Document

ROOT = Path(__file__).parents[1]
ELSEWHERE = {".venv", "build", "node_modules", "data", "dist"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(
        part in ELSEWHERE or part.startswith(".") for part in path.relative_to(ROOT).parts[:-1]
    )
)
GUIDES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *ROOT.glob("docs/how-to/*.md")]
DELIVERY = ROOT / "docs" / "explanation" / "delivery.md"

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
ROW = re.compile(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)

# The section of the page, the model it describes, and what an instance needs at least.
SECTIONS: dict[str, tuple[type[BaseModel], dict[str, object]]] = {
    "Top level": (config.Config, {}),
    "`listeners[]`": (config.ListenerConfig, {"name": "t", "bind": "127.0.0.1:0"}),
    "`listeners[].tls`": (config.TlsConfig, {"cert": "a", "key": "b"}),
    "`storage`": (config.StorageConfig, {}),
    "`limits`": (config.LimitsConfig, {}),
    "`metrics`": (config.MetricsConfig, {}),
    "`control`": (config.ControlConfig, {}),
    "`logging`": (config.LoggingConfig, {}),
    "`plugins[]`": (config.PluginEntry, {"use": "a"}),
    "`plugins[].breaker`": (config.BreakerConfig, {}),
}


def name(path: object) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


def fences(path: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(path.read_text()):
        if language in languages:
            yield text


def section(title: str) -> str:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_is_described(title: str) -> None:
    model, _ = SECTIONS[title]
    assert [key for key, *_ in ROW.findall(section(title))] == list(model.model_fields)


def test_no_part_of_the_tree_is_left_out() -> None:
    found: set[type[BaseModel]] = set()
    todo: list[type[BaseModel]] = [config.Config]
    while todo:
        model = todo.pop()
        found.add(model)
        for field in model.model_fields.values():
            arguments = [field.annotation, *typing.get_args(field.annotation)]
            todo += [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
    assert found == {model for model, _ in SECTIONS.values()}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_default_is_the_real_one(title: str) -> None:
    model, needed = SECTIONS[title]
    usual = model.model_validate(needed)
    for key, _, default, _ in ROW.findall(section(title)):
        field = model.model_fields[key]
        if default == "required":
            assert field.is_required(), key
        elif default == "absent":
            assert field.default is None, key
        elif default == "by bind":
            assert key == "allow_anonymous"
        else:
            text = default.removeprefix("`").removesuffix("`")
            written = Document(f"key: {text}" if text != ":memory:" else f"key: '{text}'", "doc")
            assert not written.problems, written.problems
            value = typing.cast(dict[str, object], written.value)["key"]
            assert model.model_validate({**needed, key: value}) == usual, key


@pytest.mark.parametrize("title", SECTIONS)
def test_every_choice_is_named(title: str) -> None:
    model, _ = SECTIONS[title]
    for key, kind, _, _ in ROW.findall(section(title)):
        annotation = model.model_fields[key].annotation
        if typing.get_origin(annotation) is typing.Literal:
            choices = list(typing.get_args(annotation))
            assert re.findall(r"`(\w+)`", kind) == choices, key


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for _, target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for _, target in LINK.findall(index.read_text())}
    guides = [path for path in PAGES if path.parent.name in ("how-to", "reference", "explanation")]
    assert set(guides) <= linked


def commands(page: Path) -> Iterator[list[str]]:
    """What a reader is told to type: `$` lines, shell blocks, indented blocks, `code`."""
    text = page.read_text()
    lines = [
        line[2:]
        for block in fences(page, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    for block in fences(page, "sh"):
        lines += block.replace("\\\n", " ").splitlines()
    rest = FENCE.sub("", text)
    lines += re.findall(r"^    (make .*)$", rest, re.MULTILINE)
    lines += re.findall(r"`((?:make|(?:\.venv/bin/)?(?:mqttd|device_sim)) [^`]*)`", rest)
    for line in lines:
        yield shlex.split(line, comments=True)


def option_names(parser: object) -> set[str]:
    return set(getattr(parser, "_option_string_actions", {}))


@pytest.mark.parametrize("page", [*GUIDES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if not words:
            continue
        program = words[0].rpartition("/")[2]
        if program == "make":
            told = [word for word in words[1:] if "=" not in word]
            assert set(told) <= targets, words
            words = " ".join(words).replace("=", " ").split()
        elif program == "mqttd":
            if len(words) > 1 and words[1] in plugin_commands.OWN:
                continue  # its page is the plugin's, and has its own test
            check_options(words, option_names(cli._parser()), *sorted(cli._names(cli._parser())))
        elif program == "device_sim":
            check_options(words, set(), "flood", "run", "check", "plan", "compare", "probe")
        for word in words:
            if word.startswith("config/"):
                assert (ROOT / word).exists(), words


def check_options(words: list[str], own: set[str], *subcommands: str) -> None:
    """Let argparse read the line, but for placeholders such as `...`."""
    parser = cli._parser() if words[0].endswith("mqttd") else device_sim._parser()
    assert words[1] in subcommands or words[1] in own, words
    if "..." not in words and "…" not in words:
        try:
            parser.parse_args(words[1:])
        except SystemExit as error:
            pytest.fail(f"{shlex.join(words)}: exit {error.code}")


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_configurations_are_good(page: Path) -> None:
    for text in fences(page, "yaml"):
        try:
            config.parse_yaml(text)
        except config.ConfigError as error:
            problems = [str(problem) for problem in error.problems]
            # The certificates are the reader's.
            assert all("can't read" in problem for problem in problems), problems


def test_the_mistakes_of_the_readme_are_told_as_it_says() -> None:
    readme = ROOT / "README.md"
    (text,) = fences(readme, "yaml invalid")
    with pytest.raises(config.ConfigError) as caught:
        config.parse_yaml(text, "bad.yaml")
    for problem in caught.value.problems:
        assert f"mqttd: {problem}\n" in readme.read_text()


EXAMPLES = [
    pytest.param(text, id=f"{name(page)}-{number}")
    for page in GUIDES
    if page.name != "write-a-plugin.md"  # tests/hooks/test_docs_hooks.py runs what it builds
    for number, text in enumerate(fences(page, "python"))
    if "asyncio.run(" in text or "pytest.fixture" in text
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_run(text: str, tmp_path: Path) -> None:
    file = tmp_path / "test_example.py"
    command = [sys.executable, str(file)]
    if "pytest.fixture" in text:
        text += "\n\ndef test_it(broker_port: int) -> None:\n    assert broker_port > 0\n"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    file.write_text(text)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "greetings/world b'" in text or "print(message.topic" in text:
        assert done.stdout == "greetings/world b'hello'\n"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_that_are_called_on_exist(page: Path) -> None:
    for text, target in LINK.findall(page.read_text()):
        if text.startswith("`test_") and target.endswith(".py"):
            source = (page.parent / target).read_text()
            assert re.search(rf"^(async )?def {text.strip('`')}\(", source, re.MULTILINE), text


def test_every_reason_for_a_drop_is_listed() -> None:
    """A reason that nothing in the core gives is none."""
    sources = [
        p.read_text() for p in (ROOT / "mqttd" / "core").glob("*.py") if p.name != "counters.py"
    ]
    reasons = {
        value
        for constant, value in vars(counters).items()
        if constant.startswith("DROP_") and any(constant in source for source in sources)
    }
    drops = DELIVERY.read_text().partition("## Drops")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", drops, re.MULTILINE)) == reasons
