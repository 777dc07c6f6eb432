"""The house stays walkable: the walks of docs/architecture.md, the import order, what the rooms may know."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mvader_jax"
sys.path.insert(0, str(Path(__file__).parent / "bench"))

import house  # noqa: E402


def module(path: Path) -> str:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """The package's modules that are imported when a file is: not those of its functions or of type checking."""
    todo: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mvader_jax"):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            todo += node.body + node.orelse
        elif isinstance(node, (ast.Try, ast.With)):
            todo += node.body


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: set(imported(path)) & MODULES.keys() for name, path in MODULES.items()}


def reached(name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        for other in IMPORTS[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found


def test_imports_make_no_circle() -> None:
    assert [name for name in MODULES if name in reached(name)] == []


def test_rooms_know_only_what_lies_below() -> None:
    def known(room: str) -> set[str]:
        return {
            other.split(".")[1]
            for name in MODULES
            if name.startswith(f"mvader_jax.{room}.")
            for other in reached(name)
            if other.count(".")
        }

    assert not known("diffusion") & {"models", "data", "train", "sampling", "storage", "convert", "cli"}
    assert not known("data") & {"train", "sampling", "paper", "plan", "convert", "cli"}
    assert not known("models") & {"train", "sampling", "paper", "plan", "convert", "cli", "data"}
    assert not known("sampling") & {"train", "paper", "plan", "convert", "cli"}
    assert not known("train") & {"plan", "convert", "cli", "paper"}


def walks() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    found = {part.splitlines()[0]: re.findall(r"^\d+\. `([^`]+)`", part, flags=re.M) for part in sections}
    return {title: stops for title, stops in found.items() if stops}


def test_there_are_two_walks() -> None:
    assert len(walks()) == 2


@pytest.mark.parametrize("title", sorted(walks()))
def test_a_walk_is_short_and_never_turns_back(title: str) -> None:
    stops = walks()[title]
    assert 10 <= len(stops) <= 15
    names = [module(ROOT / stop) for stop in stops]
    assert [name for name in names if name not in MODULES] == []
    back = [
        (names[j], names[i])
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if names[i] in reached(names[j])
    ]
    assert back == []


def test_figures_of_the_house() -> None:
    found = house.figures(ROOT)
    assert found["Python files at the top level"] <= 6
    assert found["branches on an objective's name"] == 0
    assert found["branches on an embedder's name"] == 0
    assert found["branches on a source's name"] == 0
    assert found["files of more than 400 lines"] == 0


def test_figures_count_what_they_say(tmp_path: Path) -> None:
    package = tmp_path / "mvader_jax"
    package.mkdir()
    (package / "one.py").write_text(
        '"""Words."""\n\n# more\ndef f(a, b, c, d, e, f, g):\n    """Words\n    of two lines."""\n'
        '    if stage.objective == "vae" or embedder in ("a", "b"):\n        return Any\n',
        encoding="utf-8",
    )
    found = house.figures(tmp_path)
    assert {name: count for name, count in found.items() if count} == {
        "Python files at the top level": 1,
        "branches on an objective's name": 1,
        "branches on an embedder's name": 1,
        "functions of more than six parameters": 1,
        "uses of Any": 1,
        "Python files": 1,
        "lines of code": 3,
    }
