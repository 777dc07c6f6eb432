"""How the tests check the package's annotations: beartype, where an int is a float too (PEP 484's tower)."""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype

_check: Any = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Any) -> Any:
    """Of functions. What a dataclass is made of is not checked: `jax.tree.map` fills the fields of a pytree with
    whatever it made of them (shapes, shardings, stacks of rows)."""
    return function if function.__name__ == "__init__" else _check(function)
