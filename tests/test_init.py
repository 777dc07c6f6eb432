"""The names of the package, and what a notebook shows of what they make."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import micro
import numpy as np
import PIL.Image
import pytest

import mvader_jax as mv
from mvader_jax.images.png import read_png_metadata
from mvader_jax.sampling.manifest import read_rows
from mvader_jax.train.state import TrainState

PICTURE = np.zeros((4, 6, 3), np.uint8)


def test_the_names_are_listed_and_nothing_is_loaded_for_them() -> None:
    code = (
        "import sys, mvader_jax as mv; names = dir(mv)\n"
        "assert not {'jax', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert set(mv.__all__) < set(names) and 'importlib' not in names, names\n"
        "assert all(getattr(mv, name) is not None for name in mv.__all__)\n"
        "assert mv.tasks.variation and mv.grid and issubclass(mv.NotFiniteError, mv.UserError)\n"
        "assert not {'torch', 'transformers', 'tensorflow', 'gradio'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        mv.Pipelin  # noqa: B018


def test_what_it_shows_of_itself_is_short() -> None:
    pipe = mv.Pipeline(micro.bundle(micro.NANO))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(pipe.bundle.components))
    assert repr(pipe) == f"Pipeline(s_magma, 8 x 8, {parameters:,} parameters, float32)"
    assert (
        repr(pipe.bundle).startswith("Bundle(s_magma; parameters: adapters ") and len(repr(pipe.bundle)) < 200
    )
    batch = pipe.bundle.to_batch(["a red circle"])
    assert repr(batch) == (
        "PromptBatch(token_ids int32 [1, 16], pixels float32 [1, 0, 64, 64, 3], image_index int32 [1, 16], "
        "log_weights float32 [1, 16], condition_log_weights float32 [1, 16])"
    )
    condition = mv.Condition(jnp.zeros((1, 16, 32)), jnp.zeros((1, 16)))
    assert repr(condition) == "Condition(hidden float32 [1, 16, 32], log_weights float32 [1, 16])"
    state = TrainState(
        jnp.int32(3), jnp.int32(0), {"vae": {"kernel": jnp.zeros((2, 3))}}, {}, ({"mu": jnp.zeros(7)},), {}
    )
    assert repr(state) == (
        "TrainState(step int32 [], key int32 [], trainable 1 arrays of 6, frozen 0 arrays of 0, "
        "opt_state 1 arrays of 7, ema 0 arrays of 0)"
    )


def test_a_prompt_reads_as_it_is_written() -> None:
    prompt = mv.Prompt.of(
        ["a hat", mv.Text("a cat", 0.5, {"cat": 2}), mv.Image("a.png", 0.3)], site="decoder"
    )
    assert repr(prompt) == (
        "Prompt([Text('a hat'), Text('a cat', 0.5, spans={'cat': 2.0}), Image('a.png', 0.3)], site='decoder')"
    )
    assert repr(mv.Image(PICTURE, regions=[((0, 0, 1, 1), 2)])) == "Image(<ndarray (4, 6, 3)>, 1 regions)"
    assert repr(mv.Image(b"\x89PNG" * 1000)) == "Image(<bytes>)"


def test_pictures_are_a_list_that_shows_itself(tmp_path: Path) -> None:
    pipe = mv.Pipeline(micro.bundle(micro.NANO))
    pictures = pipe(mv.Text("a red circle", 0.5), steps=2, num_images=3, seed=5)
    assert isinstance(pictures, list) and isinstance(pictures[0], PIL.Image.Image)
    assert repr(pictures) == "<3 pictures of 8 x 8>" and repr(pictures[:1]) == "<1 picture of 8 x 8>"
    shown = PIL.Image.open(io.BytesIO(pictures._repr_png_() or b""))
    assert shown.size == pictures.grid().size == mv.grid(pictures).size
    assert mv.Pictures()._repr_png_() is None and repr(mv.Pictures()) == "<0 pictures>"
    paths = pictures[1:].save(tmp_path / "out")
    assert [path.name for path in paths] == ["00000.png", "00001.png", "grid-00000.png"]
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(paths[0])), np.asarray(pictures[1]))
    rows = list(read_rows(tmp_path / "out"))
    assert [(row["index"], row["seed"], row["steps"]) for row in rows] == [(1, 5, 2), (2, 5, 2)]
    assert rows[0]["prompt"] == [{"text": "a red circle", "weight": 0.5}]
    assert read_png_metadata(paths[1])["index"] == "2"
