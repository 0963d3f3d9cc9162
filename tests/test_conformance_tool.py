"""tools/conformance.py: what it counts as honoured and proved, and what it refuses.

The trees that it reads here are made up, and so are their tags: written as `{1}` for the first
statement, so that this file itself carries none.
"""

from pathlib import Path

import pytest

from tools import conformance

STATEMENTS = """\
id,section,concern,statement
MQTT-3.1.2-1,3.1.2,server,First.
MQTT-3.1.2-2,3.1.2,both,"Second, with a comma and a | bar."
MQTT-3.1.2-3,3.1.2,client,Third.
MQTT-4.2-1,4.2,both,Fourth.
"""
IDS = ("", "MQTT-3.1.2-1", "MQTT-3.1.2-2", "MQTT-3.1.2-3", "MQTT-4.2-1", "MQTT-9.9.9-9")


class Tree:
    """A made-up repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("docs/conformance/statements.csv", STATEMENTS)
        self.write("docs/conformance/exceptions.yaml", "# none\n")

    def write(self, name: str, text: str) -> None:
        for number, statement in enumerate(IDS):
            text = text.replace(f"{{{number}}}", f"[{statement}]")
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def problems(self) -> list[str]:
        return conformance.Conformance(self.root).problems

    def rows(self) -> list[str]:
        page = conformance.Conformance(self.root).page()
        return [line for line in page.splitlines() if line.startswith("| **MQTT")]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    code = "class C:\n    def f(self):\n        pass  # {1}\n\n# {2} {4}\n@g\ndef g(): pass\n"
    tree.write("mqttd/core/a.py", code)
    tests = "def test_a():\n    '''{1} {2}'''\n\nasync def test_b():\n    pass  # {4}\n"
    tree.write("tests/spec/test_a.py", tests)
    return tree


def test_what_is_honoured_and_proved_is_no_problem(tree: Tree) -> None:
    assert tree.problems() == []
    assert tree.rows() == [
        "| **MQTT-3.1.2-1** First. | `core/a.py::C.f` | `spec/test_a.py::test_a` | proved |",
        "| **MQTT-3.1.2-2** Second, with a comma and a \\| bar. | `core/a.py::g`"
        " | `spec/test_a.py::test_a` | proved |",
        "| **MQTT-4.2-1** Fourth. | `core/a.py::g` | `spec/test_a.py::test_b` | proved |",
        "| **MQTT-3.1.2-3** Third. |  |  | the client's |",
    ]


def test_lines_may_move_without_a_change_of_the_page(tree: Tree) -> None:
    before = conformance.Conformance(tree.root).page()
    path = tree.root / "mqttd/core/a.py"
    path.write_text("import x\n\n\n" + path.read_text())
    assert conformance.Conformance(tree.root).page() == before


def test_code_without_test_and_test_without_code(tree: Tree) -> None:
    tree.write("tests/spec/test_a.py", "def test_a():\n    pass  # {2} {3}\n")
    tree.write("mqttd/core/a.py", "x = 1  # {1}\n")
    assert tree.problems() == [
        "MQTT-3.1.2-1: no test",
        "MQTT-3.1.2-2: no code",
        "MQTT-4.2-1: missing",
    ]
    assert tree.rows()[0] == "| **MQTT-3.1.2-1** First. | `core/a.py` |  | **no test** |"


def test_the_clause_of_an_error_is_a_tag_in_code_alone(tree: Tree) -> None:
    clauses = ", ".join(f'"{statement}"' for statement in IDS[1:5])
    tree.write("mqttd/core/a.py", f"CLAUSES = ({clauses})\n")
    assert tree.problems() == []
    tree.write("tests/spec/test_a.py", f"CLAUSES = ({clauses})\n")
    assert [problem.split(": ")[1] for problem in tree.problems()] == ["no test"] * 3


def test_a_number_that_does_not_exist(tree: Tree) -> None:
    tree.write("mqttd/core/b.py", "x = 1\ny = 2  # {5}\n")
    assert tree.problems() == ["mqttd/core/b.py:2: MQTT-9.9.9-9 doesn't exist"]


def test_exceptions(tree: Tree) -> None:
    tree.write("mqttd/core/a.py", "x = 1  # {2} {4}\n")
    tree.write("docs/conformance/exceptions.yaml", "MQTT-3.1.2-1: >\n  It can't\n  happen.\n")
    assert tree.problems() == []
    assert tree.rows()[0].endswith("| exception: It can't happen. |")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("MQTT-3.1.2-2: because", "MQTT-3.1.2-2 is proved, it needs no exception"),
        ("MQTT-9.9.9-9: because", "MQTT-9.9.9-9 doesn't exist"),
        ("MQTT-3.1.2-3:", "MQTT-3.1.2-3 has no reason"),
    ],
)
def test_exceptions_that_are_wrong(tree: Tree, text: str, told: str) -> None:
    tree.write("docs/conformance/exceptions.yaml", text)
    assert tree.problems() == [f"exceptions.yaml: {told}"]


def test_an_id_twice(tree: Tree) -> None:
    row = "MQTT-4.2-1,4.2,both,Again.\n"
    tree.write("docs/conformance/statements.csv", STATEMENTS + row)
    assert tree.problems() == ["statements.csv: an id stands there twice"]


def test_write_then_check(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["--check"], tree.root) == 1
    assert "docs/conformance.md is stale" in capsys.readouterr().err
    assert conformance.main([], tree.root) == 0
    assert conformance.main(["--check"], tree.root) == 0
    assert capsys.readouterr().out.endswith("3 of 3 statements proved, 0 problems\n")
    page = (tree.root / "docs/conformance.md").read_text()
    assert "| that bind a server | 3 |\n" in page
    assert "| of these, uncovered | 0 |\n" in page
    (tree.root / "docs/conformance.md").write_text(page + "edited by hand\n")
    assert conformance.main(["--check"], tree.root) == 1


def test_gaps_fail_either_way(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.write("tests/spec/test_a.py", "x = 1\n")
    assert conformance.main([], tree.root) == 1
    assert "conformance: MQTT-3.1.2-1: no test\n" in capsys.readouterr().err


def test_the_statements_of_this_repository(root: Path) -> None:
    ours = conformance.Conformance(root)
    concerns = [statement.concern for statement in ours.statements.values()]
    assert len(concerns) == 251
    assert concerns.count("client") == 25
    assert set(concerns) == {"server", "client", "both"}
    for statement in ours.statements.values():
        assert statement.id == f"MQTT-{statement.section}-{statement.id.rpartition('-')[2]}" or (
            statement.id.startswith(f"MQTT-{statement.section}.0-")
        ), statement.id
    assert {s.section.split(".")[0] for s in ours.statements.values()} == set(conformance.CHAPTERS)
    assert not [problem for problem in ours.problems if "doesn't exist" in problem]
