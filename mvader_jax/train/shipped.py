"""The configs that come with the project, and what a config is named by."""

from __future__ import annotations

import ast
from pathlib import Path

from mvader_jax.errors import UserError

#: A link to configs/ at the top of the repository; an installed package has the files here.
SHIPPED = Path(__file__).parents[1] / "configs"


def shipped_configs() -> dict[str, Path]:
    """{name: the config's file}."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.py"))}


def find_config(name: str | Path) -> Path:
    """The file of a config that is given by its path, or by its name if it is a shipped one.

    Raises UserError, naming those, where there is none.
    """
    path, shipped = Path(name), shipped_configs()
    if path.is_file():
        return path
    if str(name) not in shipped:
        raise UserError(f"no config {str(name)!r}: it is neither a file nor one of {', '.join(shipped)}")
    return shipped[str(name)]


def about(path: Path) -> str:
    """What a config is, in a line: the first of its file."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
