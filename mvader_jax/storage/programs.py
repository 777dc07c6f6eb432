"""What a process need not work out again: traced and compiled programs, and shapes, beside JAX's own cache.

JAX's persistent cache finds a compiled program by its StableHLO, for which the program is traced and lowered
first: most of what a second process would wait for. Here StableHLO and shapes are kept under what determines
them: this package's source, the libraries' versions, JAX's settings, the model, the arguments' shapes. What was compiled
of StableHLO is kept under its hash, the machine and XLA's flags, so that another source of the same program finds it. All
are kept where JAX keeps its programs, and nowhere if it keeps none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local, make_directory, sweep, write_file

_SOURCE = Path(__file__).parents[1]
_LIBRARIES = ("jax", "jaxlib", "flax")
#: Settings of JAX that say where things are kept, not what is traced.
_ELSEWHERE = ("jax_compilation_cache", "jax_persistent_cache", "jax_log")
#: Digits of a SHA-256.
_HASH = 64
#: What stands in place of a compiled program that cannot be kept.
_NOT_KEPT = b""
#: Where in the source something is, in StableHLO's text.
_PLACES = re.compile(r' ?loc\((?:unknown|#loc\d*|"[^"]*")\)|^#loc.*$', re.M)


class Program:
    """A pure function of arrays, compiled once a shape and setting.

    function: `function(*trees of arrays, **settings)`, returning an array or a tuple of them.
    name, about: what beside shapes and settings tells this program from others.
    options: `jax.jit`'s. With any of them (they place it on a mesh), and of arrays that lie elsewhere than on the first
    device, every process traces it anew.
    """

    def __init__(self, function: Callable[..., Any], name: str, about: Hashable, **options: Any) -> None:
        self._function, self._name, self._about, self._options = function, name, about, options
        self._compiled: dict[Hashable, Any] = {}
        self._calls: dict[Hashable, Any] = {}

    @property
    def compiled(self) -> int:
        """How many programs have been compiled."""
        return len(self._compiled)

    def __call__(self, *trees: Any, keep: bool = True, **settings: Hashable) -> Any:
        """keep: whether the program may be kept on disk: False where the function calls code from
        outside this package (a sampler of the user's own), in which a change would not be noticed."""
        leaves, structure = jax.tree.flatten(trees)
        given = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        call = (structure, given, tuple(sorted(settings.items())))
        if call not in self._calls:  # names of types take longer than a small drawing's Python
            shapes = tuple((shape, str(jax.dtypes.canonicalize_dtype(dtype))) for shape, dtype in given)
            self._calls[call] = self._program((structure, shapes, call[2]), leaves, keep, settings)
        return self._calls[call](*leaves)

    def _program(
        self, key: tuple[Any, Any, Any], leaves: list[Any], keep: bool, settings: dict[str, Hashable]
    ) -> Callable[..., Any]:
        structure, shapes, _ = key
        if key not in self._compiled:

            def flat(*leaves: Any) -> Any:
                return self._function(*jax.tree.unflatten(structure, leaves), **settings)

            flat.__name__ = self._name
            whole = keep and not self._options and _on_first_device(leaves)
            file = kept_file(self._name, (self._about, key)) if whole else None
            found = jax.jit(flat, **self._options) if file is None else _Kept(flat, shapes, file)
            self._compiled[key] = found
        return self._compiled[key]


def _on_first_device(leaves: list[Any]) -> bool:
    """What is kept runs where it was compiled."""
    first = {jax.devices()[0]}
    return all(leaf.devices() == first for leaf in leaves if isinstance(leaf, jax.Array))


class _Kept:
    """A function of arrays of these shapes; read from disk, or traced and compiled at its first call and written there.

    file: where its StableHLO is, after the hash that its compiled program is found by.
    """

    def __init__(self, function: Callable[..., Any], shapes: tuple[Any, ...], file: Path) -> None:
        self._function, self._shapes, self._file = function, [jax.ShapeDtypeStruct(*s) for s in shapes], file
        self._run: Callable[..., Any] | None = None

    def __call__(self, *leaves: Any) -> Any:
        if self._run is None:
            self._run = self._found() or self._made(leaves)
        return self._run(*leaves)

    def _found(self) -> Callable[..., Any] | None:
        data = read_kept(self._file)
        return None if data is None else _read_compiled(self._compiled_file(data[:_HASH].decode()))

    def _made(self, leaves: tuple[Any, ...]) -> Callable[..., Any]:
        from jax import export  # not where everything is found

        data = read_kept(self._file)
        if data is not None:
            exported, digest = export.deserialize(bytearray(data[_HASH:])), data[:_HASH].decode()
        else:
            try:
                exported = export.export(jax.jit(self._function))(*self._shapes)
            except ValueError:  # a kernel for which JAX promises no stable form
                return jax.jit(self._function)
            # Arguments that nothing reads are in the program's shapes, and not in its text.
            text = f"{self._shapes}\n{_PLACES.sub('', exported.mlir_module())}"
            digest = hashlib.sha256(text.encode()).hexdigest()
            write_kept(self._file, digest.encode() + bytes(exported.serialize()))
        file = self._compiled_file(digest)
        if (known := _read_compiled(file)) is not None:
            return known  # of another source

        def kept(*leaves: Any) -> Any:
            return exported.call(*leaves)

        compiled = jax.jit(kept).lower(*self._shapes).compile()
        if read_kept(file) == _NOT_KEPT:
            return compiled
        # XLA's CPU programs that JAX's cache gave are not whole when they are written once more, which shows when they
        # run: what is kept has run, and what cannot be is not tried again.
        try:
            data = pickle.dumps(serialize_executable.serialize(compiled))
            run = _loaded(data)
            jax.block_until_ready(run(*leaves))
        except Exception:
            write_kept(file, _NOT_KEPT)
            return compiled
        write_kept(file, data)
        return run

    def _compiled_file(self, digest: str) -> Path:
        name = hashlib.sha256(f"{digest} {_machine()} {_surroundings()}".encode()).hexdigest()[:32]
        return self._file.with_name(f"compiled-{name}")


def _read_compiled(file: Path) -> Callable[..., Any] | None:
    data = read_kept(file)
    with contextlib.suppress(Exception):  # what another XLA wrote under the same names is compiled anew
        return None if data is None else _loaded(data)
    return None


def _loaded(data: bytes) -> Callable[..., Any]:
    program, takes, gives = pickle.loads(data)
    return serialize_executable.deserialize_and_load(
        program, takes, gives, execution_devices=jax.devices()[:1]
    )


def kept_file(name: str, about: Hashable) -> Path | None:
    """The file under which something that `about` determines is kept; None where nothing is."""
    directory = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not directory or "://" in str(directory):
        return None
    digest = hashlib.sha256(f"{_source()} {_surroundings()}\n{about!r}".encode()).hexdigest()
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
    return f"{_libraries()} {jax.default_backend()} {jax.devices()[0].device_kind} {settings}"


@functools.lru_cache(maxsize=1)
def _libraries() -> str:
    return " ".join(f"{library} {importlib.metadata.version(library)}" for library in _LIBRARIES)


@functools.lru_cache(maxsize=1)
def _source() -> str:
    """The hash of this package's source."""
    digest = hashlib.sha256()
    for file in sorted(_SOURCE.rglob("*.py")):
        digest.update(f"{file.relative_to(_SOURCE)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def compiler_flags() -> list[str]:
    """What the environment tells XLA's compilers: another program comes of other flags."""
    return [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]


def _machine() -> str:
    """What a compiled program is for beside its device: a CPU's kind and cores, XLA's flags."""
    known = [platform.machine(), str(os.cpu_count()), jax.devices()[0].client.platform_version]
    known += compiler_flags()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        known += [
            next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags")
        ]
    return " ".join(known)


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
