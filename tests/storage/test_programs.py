"""Traces and shapes that a second process finds: kept, found, and made anew where they do not hold."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mvader_jax.errors import UserError
from mvader_jax.models import components
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage import programs
from mvader_jax.storage.programs import Program


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A place for what is kept. JAX's own cache is off: what a machine did before would be found there."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


class Traced:
    """A function of a tree and an array that counts how often it is traced."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, tree: Any, x: Any, *, power: int = 1) -> jax.Array:
        self.times += 1
        return (tree["a"] * x) ** power


TREE, X = {"a": np.float32(1.7), "b": None}, np.arange(5, dtype=np.float32)


def test_second_process_traces_nothing(cache: Path) -> None:
    first, second = Traced(), Traced()
    drawn = Program(first, "test", "about")(TREE, X, power=3)
    program = Program(second, "test", "about")
    for _ in range(2):
        np.testing.assert_array_equal(program(TREE, X, power=3), drawn)
    assert (first.times, second.times, program.compiled) == (1, 0, 1)
    np.testing.assert_allclose(drawn, (np.float32(1.7) * X) ** 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("about", "x", "settings"),
    [
        ("about", X, {"power": 2}),
        ("about", X[:4], {}),
        ("about", X.astype(np.int32), {}),
        ("another model", X, {}),
    ],
)
def test_another_program_is_traced(cache: Path, about: str, x: np.ndarray, settings: dict[str, int]) -> None:
    Program(Traced(), "test", "about")(TREE, X)
    traced = Traced()
    out = Program(traced, "test", about)(TREE, x, **settings)
    assert traced.times == 1
    np.testing.assert_allclose(out, (np.float32(1.7) * x) ** settings.get("power", 1), rtol=1e-6)


def test_another_source_is_traced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Program(Traced(), "test", "about")(TREE, X)
    monkeypatch.setattr(programs, "_source", lambda: "edited")
    traced = Traced()
    Program(traced, "test", "about")(TREE, X)
    assert traced.times == 1


def test_settings_of_jax_are_told_apart(cache: Path) -> None:
    Program(Traced(), "test", "about")(TREE, X)
    traced = Traced()
    before = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        Program(traced, "test", "about")(TREE, X)
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert traced.times == 1


@pytest.mark.parametrize("damage", [b"", b"not a program", None])
def test_damaged_file_is_traced_again(cache: Path, damage: bytes | None) -> None:
    drawn = Program(Traced(), "test", "about")(TREE, X)
    for kind, traces in (("test-*", 1), ("compiled-*", 0)):
        (file,) = (cache / "traced").glob(kind)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
        traced = Traced()
        np.testing.assert_array_equal(Program(traced, "test", "about")(TREE, X), drawn)
        assert traced.times == traces
        Program(traced, "test", "about")(TREE, X)
        assert traced.times == traces and programs.read_kept(file)


def test_what_is_compiled_is_read_back_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lowered for it, and another source of the same program finds it."""
    drawn = Program(Traced(), "test", "about")(TREE, X)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", None)
        np.testing.assert_array_equal(Program(Traced(), "test", "about")(TREE, X), drawn)
    monkeypatch.setattr(programs, "_source", lambda: "edited")
    Program(Traced(), "test", "about")(TREE, X)
    assert len(list((cache / "traced").glob("compiled-*"))) == 1
    monkeypatch.setattr(programs, "_machine", lambda: "another")
    Program(Traced(), "test", "about")(TREE, X)
    assert len(list((cache / "traced").glob("compiled-*"))) == 2


def test_what_does_not_run_when_read_back_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As XLA's CPU programs that JAX's cache gave; the program itself runs."""

    def broken(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> None:
            tried.append(1)
            raise RuntimeError("NOT_FOUND: Function multiply_fusion not found")

        return run

    tried: list[int] = []
    monkeypatch.setattr(programs.serialize_executable, "deserialize_and_load", broken)
    for _ in range(2):
        out = Program(Traced(), "test", "about")(TREE, X)
        np.testing.assert_allclose(out, np.float32(1.7) * X, rtol=1e-6)
    assert len(tried) == 1
    monkeypatch.undo()
    np.testing.assert_array_equal(Program(Traced(), "test", "about")(TREE, X), out)


def test_an_argument_that_nothing_reads_has_its_shape_too(cache: Path) -> None:
    def first(x: jax.Array, unread: jax.Array) -> jax.Array:
        return 2 * x

    for length in (3, 5, 3):
        out = Program(first, "test", f"about {length}")(X, np.zeros(length, np.float32))
        np.testing.assert_allclose(out, 2 * X, rtol=1e-6)


def test_what_runs_elsewhere_is_not_kept(cache: Path) -> None:
    there = jax.devices()[1]
    out = Program(Traced(), "test", "about")(TREE, jax.device_put(X, there))
    assert out.devices() == {there} and not list(cache.glob("traced/*"))


def test_nothing_is_kept_where_it_may_not_be(cache: Path) -> None:
    Program(Traced(), "test", "about")(TREE, X, keep=False)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    Program(Traced(), "test", "about", out_shardings=sharding)(TREE, X)
    assert not list(cache.iterdir())
    jax.config.update("jax_compilation_cache_dir", None)
    np.testing.assert_allclose(Program(Traced(), "test", "about")(TREE, X), np.float32(1.7) * X, rtol=1e-6)


def test_shapes_are_those_that_tracing_finds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(vae=VAEConfig.tiny())
    components._abstract_component.cache_clear()
    traced = abstract_components(model, ["vae"])
    components._abstract_component.cache_clear()
    (file,) = (cache / "traced").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(components, "abstract_init", None)
        assert abstract_components(model, ["vae"]) == traced
    components._abstract_component.cache_clear()
    file.write_text("{")
    assert abstract_components(model, ["vae"]) == traced
    components._abstract_component.cache_clear()


PROGRAM = """
import jax
before = dict(jax.config.values)
import mvader_jax as mv
mv.Pipeline.load("tiny")
assert dict(jax.config.values) == before
print(mv.compilation_cache())
print(jax.config.jax_compilation_cache_dir)
"""


def test_the_cache_is_set_up_by_who_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVADER_CACHE", str(tmp_path / "kept"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.stdout.splitlines() == [str(tmp_path / "kept")] * 2, done.stderr
    monkeypatch.setenv("MVADER_CACHE", "gs://bucket/kept")
    with pytest.raises(UserError, match="'gs://bucket/kept' is not on this machine's file system"):
        programs.cache_directory()


def test_pictures_are_the_same_with_and_without(cache: Path) -> None:
    bundle = micro.bundle()
    kept = [np.asarray(Pipeline(bundle)("a red circle", steps=2)[0]) for _ in range(2)]
    jax.config.update("jax_compilation_cache_dir", None)
    alone = np.asarray(Pipeline(bundle)("a red circle", steps=2)[0])
    np.testing.assert_array_equal(kept[0], kept[1])
    assert jnp.abs(jnp.asarray(alone, int) - jnp.asarray(kept[0], int)).max() <= 1
    jax.config.update("jax_compilation_cache_dir", str(cache))
    assert len([file for file in (cache / "traced").iterdir() if file.name.startswith("generate")]) == 1
