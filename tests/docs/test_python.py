"""The Python of the pages, run with the smallest model in place of the one that a page loads."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import PIL.Image
import pytest
from pages import PAGES, blocks, text_of
from test_pages import kind_of, put_pictures

import mvader_jax as mv
from mvader_jax.sampling.generate import attended, generate
from mvader_jax.sampling.pipeline import Pipeline

#: What a page takes for granted, by its name in the page.
GIVEN: dict[str, Any] = {
    "mv": mv,
    "latents": jnp.zeros((1, 8, 8, 4)),
    "noise": jnp.ones((1, 8, 8, 4)),
    "t": 500,
    "mask": np.ones((4, 4), np.float32),
    "factors": np.ones((1, 2)),
    "model": micro.MODEL,
    "denoise": lambda latents, t: jnp.zeros_like(latents),
}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    """A pipeline whose programs are traced, which checks all shapes, and never compiled: what they give is ones."""
    deep = dataclasses.replace(micro.MODEL.decoder, num_layers=4)
    made = Pipeline(micro.bundle(dataclasses.replace(micro.MODEL, decoder=deep)))
    walk = functools.partial(generate, model=made.model, dtype=made.dtype)
    for name in ("_embed", "_features", "_decode", "_encode", "_denoise"):
        setattr(made, name, traced(getattr(made, name)))
    look = functools.partial(attended, model=made.model, dtype=made.dtype)
    made._attended = lambda *arrays, keep, static: traced(functools.partial(look, static=static))(*arrays)  # type: ignore[assignment]
    made.use_lora = lambda *files: None  # type: ignore[method-assign]
    made._steps.draw = lambda components, draws, static, watch: _watched(
        made, components, draws, static, watch
    )  # type: ignore[method-assign]
    made._generate = lambda *arrays, keep, static: traced(functools.partial(walk, static=static))(*arrays)  # type: ignore[assignment]
    return made


def _watched(made: Pipeline, components: Any, draws: Any, static: Any, watch: Any) -> Any:
    """Of the steps the last is told."""
    pixels, finite = made._generate(components, draws, keep=False, static=static)
    pictures = mv.Pictures(PIL.Image.fromarray(np.asarray(one)) for one in pixels)
    watch.tell(mv.Step(static.steps, static.steps, lambda: pictures))
    return pixels, finite


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arrays: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), jax.eval_shape(function, *arrays))

    return call


@pytest.mark.parametrize("page", PAGES)
def test_python(page: str, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block runs, in the page's order; a prompt that is only shown is embedded."""
    put_pictures(tmp_path, 64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pipe)
    names = {**GIVEN, "pipe": pipe}
    for block in blocks(text_of(page)):
        if kind_of(block) != "python":
            continue
        for statement in ast.parse(block.text).body:
            try:
                if not isinstance(statement, ast.Expr):
                    exec(compile(ast.Module([statement], []), page, "exec"), names)
                    continue
                shown = eval(compile(ast.Expression(statement.value), page, "eval"), names)
            except Exception as error:
                error.add_note(f"{page}:{block.line + statement.lineno - 1}: {ast.unparse(statement)}")
                raise
            if isinstance(shown, (mv.Text, mv.Image, mv.Prompt)):
                pipe.embed(shown)
