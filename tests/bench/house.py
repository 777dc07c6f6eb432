"""Figures of the house, by reading its source: `python tests/bench/house.py [ROOT ...]`, a column per tree.

Counted: Python files at the package's top level, branches on an objective's, embedder's or source's name outside
the files that define them, functions of more than 60 lines, functions of more than six parameters, uses of `Any`,
`assert ... is not None`, files of more than 400 lines, lines that hold code.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Names whose comparison with a word means that a caller knows what an object should.
KINDS = ("objective", "embedder", "source")
FIGURES = (
    "Python files at the top level",
    "branches on an objective's name",
    "branches on an embedder's name",
    "branches on a source's name",
    "functions of more than 60 lines",
    "functions of more than six parameters",
    "uses of Any",
    "assert ... is not None",
    "files of more than 400 lines",
    "Python files",
    "lines of code",
)


def figures(root: Path) -> dict[str, int]:
    """The figures of the package below `root`, in the order of `FIGURES`."""
    package = root / "mvader_jax"
    found: Counter[str] = Counter()
    found["Python files at the top level"] = len(list(package.glob("*.py")))
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found["Python files"] += 1
        found["files of more than 400 lines"] += text.count("\n") > 400
        found["lines of code"] += len(set(_code_lines(text)))
        for node in ast.walk(ast.parse(text)):
            found.update(_seen(node))
    return {name: found[name] for name in FIGURES}


def _seen(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        assert node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > 60:
            yield "functions of more than 60 lines"
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if len(names) - (names[:1] in (["self"], ["cls"])) > 6:
            yield "functions of more than six parameters"
    elif isinstance(node, ast.Name) and node.id == "Any":
        yield "uses of Any"
    elif isinstance(node, ast.Assert):
        for test in ast.walk(node.test):
            if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot):
                yield "assert ... is not None"
    elif isinstance(node, ast.Compare) and (kind := _compared(node)):
        yield f"branches on an {kind}'s name" if kind != "source" else "branches on a source's name"


def _compared(node: ast.Compare) -> str | None:
    """The kind of thing whose name is compared with words, or None."""
    left = node.left
    name = left.attr if isinstance(left, ast.Attribute) else left.id if isinstance(left, ast.Name) else ""
    words = node.comparators[0]
    parts = words.elts if isinstance(words, (ast.Tuple, ast.Set, ast.List)) else [words]
    spoken = all(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts)
    return name if spoken and name in KINDS else None


def _code_lines(text: str) -> Iterator[int]:
    """Numbers of the lines that hold code: neither blank, nor comment, nor docstring."""
    passed = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
    )
    fresh = True  # a string that begins a statement is a docstring
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            fresh = True
        elif token.type not in (*passed, tokenize.ENDMARKER):
            if not (fresh and token.type == tokenize.STRING):
                yield from range(token.start[0], token.end[0] + 1)
            fresh = False


if __name__ == "__main__":
    roots = [Path(argument) for argument in sys.argv[1:]] or [ROOT]
    columns = [figures(root) for root in roots]
    for name in FIGURES:
        print(f"{name:40}" + "".join(f"{column[name]:>9}" for column in columns))
