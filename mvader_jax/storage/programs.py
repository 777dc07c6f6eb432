"""What a process need not work out again: traced programs and shapes, kept beside JAX's compiled programs.

JAX's persistent cache finds a compiled program by its StableHLO, for which the program is traced and lowered
first: half of what a second process would wait for. Here StableHLO and shapes are kept under what determines
them: this package's source, the libraries' versions, JAX's settings, the model, the arguments' shapes. They are
kept where JAX keeps its programs, and nowhere if it keeps none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
import jax.export

from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local, make_directory, sweep, write_file

_SOURCE = Path(__file__).parents[1]
_LIBRARIES = ("jax", "jaxlib", "flax")
#: Settings of JAX that say where things are kept, not what is traced.
_ELSEWHERE = ("jax_compilation_cache", "jax_persistent_cache", "jax_log")


class Program:
    """A pure function of arrays, compiled once a shape and setting.

    function: `function(*trees of arrays, **settings)`, returning an array or a tuple of them.
    name, about: what beside shapes and settings tells this program from others.
    options: `jax.jit`'s. With any of them (they place it on a mesh) every process traces it anew.
    """

    def __init__(self, function: Callable[..., Any], name: str, about: Hashable, **options: Any) -> None:
        self._function, self._name, self._about, self._options = function, name, about, options
        self._compiled: dict[Hashable, Any] = {}

    @property
    def compiled(self) -> int:
        """How many programs have been compiled."""
        return len(self._compiled)

    def __call__(self, *trees: Any, keep: bool = True, **settings: Hashable) -> Any:
        """keep: whether the traced program may be kept on disk: False where the function calls code from
        outside this package (a sampler of the user's own), in which a change would not be noticed."""
        leaves, structure = jax.tree.flatten(trees)
        shapes = tuple((leaf.shape, str(jax.dtypes.canonicalize_dtype(leaf.dtype))) for leaf in leaves)
        key = (structure, shapes, tuple(sorted(settings.items())))
        if key not in self._compiled:

            def flat(*leaves: Any) -> Any:
                return self._function(*jax.tree.unflatten(structure, leaves), **settings)

            flat.__name__ = self._name
            file = kept_file(self._name, (self._about, key)) if keep and not self._options else None
            traced = flat if file is None else _kept(flat, shapes, file)
            self._compiled[key] = jax.jit(traced, **self._options)
        return self._compiled[key](*leaves)


def _kept(function: Callable[..., Any], shapes: tuple[Any, ...], file: Path) -> Callable[..., Any]:
    """The function as StableHLO, read from the file, or traced and written to it."""
    data = read_kept(file)
    if data is not None:
        return jax.export.deserialize(bytearray(data)).call
    try:
        exported = jax.export.export(jax.jit(function))(*(jax.ShapeDtypeStruct(*s) for s in shapes))
    except ValueError:  # a kernel for which JAX promises no stable form
        return function
    write_kept(file, bytes(exported.serialize()))
    return exported.call


def kept_file(name: str, about: Hashable) -> Path | None:
    """The file under which something that `about` determines is kept; None where nothing is."""
    directory = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not directory or "://" in str(directory):
        return None
    digest = hashlib.sha256(f"{_surroundings()}\n{about!r}".encode()).hexdigest()
    return Path(directory) / "traced" / f"{name}-{digest[:32]}"


def read_kept(file: Path) -> bytes | None:
    """What was written; None where there is nothing, or it is damaged."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def write_kept(file: Path, data: bytes) -> None:
    """Whole or not at all, after its hash; a place that cannot be written keeps nothing."""
    with contextlib.suppress(UserError):
        sweep(make_directory(file.parent))
        write_file(file, hashlib.sha256(data).digest() + data)


def _surroundings() -> str:
    settings = sorted(
        (name, str(value)) for name, value in jax.config.values.items() if not name.startswith(_ELSEWHERE)
    )
    return f"{_source()} {jax.default_backend()} {jax.devices()[0].device_kind} {settings}"


@functools.lru_cache(maxsize=1)
def _source() -> str:
    """The hash of this package's source and the versions of what it is traced with."""
    digest = hashlib.sha256()
    for file in sorted(_SOURCE.rglob("*.py")):
        digest.update(f"{file.relative_to(_SOURCE)}\n".encode() + file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    return digest.hexdigest()


def cache_directory() -> Path:
    """$MVADER_CACHE, or $XDG_CACHE_HOME/mvader_jax, or ~/.cache/mvader_jax. Raises UserError for a URL."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return local(os.environ.get("MVADER_CACHE") or home / "mvader_jax")


def compilation_cache() -> Path:
    """Keeps compiled programs on disk from now on, unless JAX was told where already. Returns the directory.

    The command line calls it, and whoever wants that in Python. Beside it only a command's `--mesh` changes JAX's
    configuration (`mesh.open_mesh`).
    """
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen:
        return Path(chosen)
    directory = cache_directory()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return directory
