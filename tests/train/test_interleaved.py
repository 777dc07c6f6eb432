"""Interleaved prompts in the diffusion objective: which sample sees which prompt, and a run with them."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

from mvader_jax.condition import PADDING, Condition, spread, spread_rows, where
from mvader_jax.data.rows import row_layout
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.loop import train
from mvader_jax.train.run import stage_loader


def config(**settings):
    base = micro.train_config(batch_size=10, steps=3, save_every=3, log_every=1)
    stage = base.stages["diffusion"]
    objective = dataclasses.replace(stage.objective, p_interleaved=0.4, **settings)
    stages = {**base.stages, "diffusion": dataclasses.replace(stage, objective=objective)}
    return dataclasses.replace(base, stages=stages)


def test_rows_of_three_kinds_are_joined_where_the_layout_says():
    # Two groups of five; shares 0.3 and 0.4: image rows for samples 0-1, interleaved 1-3, captions 3-4.
    layout = row_layout(5, 0.3, 0.4)
    assert (layout.image_rows, layout.interleaved_start, layout.interleaved_rows) == (2, 1, 3)
    assert (layout.text_start, layout.text_rows) == (3, 2)

    def rows(level, count, length):
        hidden = jnp.repeat(jnp.arange(2.0 * count) + level, length).reshape(2 * count, length, 1)
        return Condition(hidden, jnp.zeros((2 * count, length)))

    image, interleaved, text = rows(10, 2, 2), rows(20, 3, 4), rows(30, 2, 1)
    use_image = jnp.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0], bool)
    use_interleaved = jnp.array([0, 0, 1, 1, 0, 0, 1, 1, 0, 0], bool)
    joined = where(use_image, spread(image, 2, 5, 0), spread(text, 2, 5, layout.text_start))
    joined = where(use_interleaved, spread(interleaved, 2, 5, layout.interleaved_start), joined)
    np.testing.assert_array_equal(joined.hidden[:, 0, 0], [10, 11, 21, 22, 31, 12, 23, 24, 32, 33])
    lengths = [2, 2, 4, 4, 1, 2, 4, 4, 1, 1]
    np.testing.assert_array_equal((joined.log_weights == PADDING).sum(1), 4 - np.array(lengths))
    np.testing.assert_array_equal(
        spread_rows(jnp.arange(1.0, 5.0), 2, 4, 1), [0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0]
    )


@pytest.fixture(scope="module")
def bundle():
    return micro.bundle()


def test_each_sample_sees_its_own_prompt(bundle):
    """Changing the interleaved prompts changes the losses of the samples that use them, and no other's."""
    stage = config(dropout=0.0, null="zeros").stages["diffusion"]
    batch = next(stage_loader(bundle, stage, groups=2))
    assert batch["use_interleaved"].sum() == 4 and batch["use_image"].sum() == 2
    loss = jax.jit(stage.objective.loss(bundle.model), static_argnums=3)

    def metrics(changes):
        return {k: np.asarray(v) for k, v in loss(bundle.components, {**batch, **changes}, key, 2)[1].items()}

    key = jax.random.key(0)
    plain = metrics({})
    assert plain["interleaved_rows"].tolist() == [4, 10]
    assert [plain[f"loss_{kind}"][1] for kind in ("image", "interleaved", "text")] == [2, 4, 4]
    prompt = batch["interleaved_prompt"]
    swapped = jax.tree.map(lambda x: np.roll(x, 1, axis=0), prompt)
    other = metrics({"interleaved_prompt": swapped})
    assert other["loss_interleaved"][0] != plain["loss_interleaved"][0]
    for kind in ("image", "text"):
        assert other[f"loss_{kind}"][0] == plain[f"loss_{kind}"][0]


@pytest.mark.slow
def test_a_stage_with_interleaved_prompts_trains_and_goes_on(bundle, tmp_path):
    for stage in ("vae", "contrastive"):
        save_bundle(tmp_path / stage / "bundle", bundle)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert train(config(), "diffusion", tmp_path, mesh, quiet=True) == 0
    lines = (tmp_path / "diffusion" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["interleaved_rows"] for r in records if "interleaved_rows" in r] == pytest.approx([0.4] * 3)
    assert any(np.isfinite(r["validation/loss_interleaved"]) for r in records if "validation/loss" in r)
