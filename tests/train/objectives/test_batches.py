"""The batch that a plan knows is the one that a loader makes: tree, shapes and dtypes, for every setting."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

from mvader_jax.data.prompts import null_row
from mvader_jax.data.sources.encoded import EncodedShapes, encoded_shapes
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.precompute.encode import encode
from mvader_jax.precompute.job import Options
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.storage.bundle import Bundle, save_bundle
from mvader_jax.train.assemble import batch_shape
from mvader_jax.train.config import Stage
from mvader_jax.train.objectives import (
    Autoencoding,
    Captioning,
    Contrastive,
    Diffusion,
    Distillation,
    Objective,
)
from mvader_jax.train.run import stage_loader

MIXED = Diffusion(caption_length=24, p_interleaved=0.5)
OBJECTIVES = [
    Autoencoding(),
    Captioning(),
    Captioning(images=False, caption_length=9),
    Contrastive(),
    Contrastive(picture_queries=True, caption_length=9),
    Diffusion(),
    Diffusion(p_image=0.0),
    Diffusion(p_image=1.0, caption_length=5),
    MIXED,
    dataclasses.replace(MIXED, p_image=0.0, interleaved_images=3, interleaved_length=60),
    Diffusion(p_image=0.2, p_interleaved=0.8),
    Distillation(caption_length=24, p_interleaved=0.5),
]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return micro.bundle()


@pytest.fixture(scope="module")
def encoded(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Latents and features of the micro config's scenes."""
    root = tmp_path_factory.mktemp("encoded")
    for stage in ("vae", "contrastive"):
        save_bundle(root / stage / "bundle", bundle)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = micro.train_config()
    options = Options(batch_size=32, sample=1)
    encode(config, "diffusion", micro.DATA, root / "out", mesh, workdir=root, options=options)
    return str(root / "out")


def stage_of(objective: Objective, **data: Any) -> Stage:
    base = micro.train_config(batch_size=16).stages["diffusion"]
    return dataclasses.replace(base, objective=objective, data=dataclasses.replace(base.data, **data))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (tuple(x.shape), jnp.dtype(x.dtype).name), tree)


def check(bundle: Bundle, stage: Stage, **options: Any) -> None:
    made = next(stage_loader(bundle, stage, **options))
    data, shape = batch_shape(bundle.model, stage, **options)
    encoded = EncodedShapes(*encoded_shapes(data))
    assert bundle.tokenizer is not None
    abstract = stage.objective.abstract_batch(data, shape, bundle.tokenizer.config, encoded)
    assert shapes(abstract) == shapes(made)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_batch_is_the_one_a_loader_makes(bundle: Bundle, objective: Objective) -> None:
    check(bundle, stage_of(objective), groups=4)


@pytest.mark.parametrize("objective", [Diffusion(), MIXED, Captioning()], ids=str)
def test_a_process_s_part_too(bundle: Bundle, objective: Objective) -> None:
    check(bundle, stage_of(objective), groups=4, process=(1, 2))


@pytest.mark.parametrize("objective", [Captioning(), Diffusion(), MIXED], ids=str)
def test_precomputed_parts_stand_for_pictures(bundle: Bundle, encoded: str, objective: Objective) -> None:
    check(bundle, stage_of(objective, precomputed=(encoded,)), groups=4)


def test_every_registered_objective_is_tried() -> None:
    tried = {type(objective) for objective in OBJECTIVES}
    assert tried == {cls for name, cls in Objective.kinds.items() if name != "toy"}


@pytest.mark.parametrize("image_size", [0, 32])
def test_the_null_prompt_is_the_empty_one_laid_out(bundle: Bundle, image_size: int) -> None:
    tokenizer = bundle.tokenizer
    assert tokenizer is not None
    padded = dataclasses.replace(
        tokenizer.config, bos_id=1, pad_id=2, add_bos=True, add_eos=True, length=20, max_positions=20
    )
    for config in (tokenizer.config, dataclasses.replace(tokenizer.config, max_positions=3), padded):
        expected = lay_out(Tokenizer(tokenizer.backend, config), [None], image_size=image_size)
        found = null_row(config, image_size)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert shapes(found) == shapes(expected)


def test_the_null_prompt_of_a_stage_is_the_bundle_s(bundle: Bundle) -> None:
    found = Diffusion().null_prompt(bundle.model)
    jax.tree.map(np.testing.assert_array_equal, found, bundle.to_batch([None]))
    assert Diffusion(null="zeros").null_prompt(bundle.model) is None
