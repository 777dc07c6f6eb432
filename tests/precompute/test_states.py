"""Hidden states computed once stand for the decoder: the same loss, and one sentence where they cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import PIL.Image
import pytest

from mvader_jax.data.building.catalogue import find_parts
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.run import build
from mvader_jax.data.config import DataConfig
from mvader_jax.data.mixed import STATES
from mvader_jax.data.sources import Records
from mvader_jax.data.sources.encoded import EncodedShapes, encoded_shapes, parts_of
from mvader_jax.errors import UserError
from mvader_jax.models.embed import embed_rows
from mvader_jax.parallel.mesh import MeshConfig, make_global, make_mesh
from mvader_jax.precompute.encode import encode
from mvader_jax.precompute.job import Options
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.assemble import batch_shape, stage_loss
from mvader_jax.train.config import Group, Stage
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.run import stage_loader
from mvader_jax.train.start import check_precomputed, check_states, needed_components

CONFIG = micro.nano_config()
STAGE = dataclasses.replace(
    CONFIG.stages["diffusion"], objective=Diffusion(caption_length=12, p_image=0.25, dropout=0.25)
)
BUNDLE = micro.bundle(micro.NANO)


def write(folder: Path, captions: list[str]) -> DataConfig:
    """Pictures with these captions, built in `folder`."""
    (folder / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (len(captions), 9, 9, 3), np.uint8)
    for number, caption in enumerate(captions):
        PIL.Image.fromarray(noise[number]).save(folder / "in" / f"{number}.png")
        (folder / "in" / f"{number}.txt").write_text(caption)
    build(
        find_parts("image_captions", str(folder / "in")), folder / "built", "image_captions", FilterConfig()
    )
    return dataclasses.replace(STAGE.data, source=Records((str(folder / "built"),)))


def encoded(folder: Path, data: DataConfig, stage: Stage, *parts: str) -> DataConfig:
    """The data with a set of its parts in `folder`."""
    save_bundle(folder / "start", BUNDLE, overwrite=True)
    stage = dataclasses.replace(stage, data=data, init=(str(folder / "start"),))
    config = dataclasses.replace(CONFIG, stages={"diffusion": stage})
    out = folder / "-".join(parts)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    encode(config, "diffusion", data, out, mesh, workdir=folder, options=Options(parts=parts, batch_size=4))
    return dataclasses.replace(data, precomputed=(str(out),))


def test_the_loss_is_that_of_a_decoder_that_runs(tmp_path: Path) -> None:
    """In float32, alone and on a mesh that divides batch and weights; what is stored differs by bfloat16's rounding."""
    data = write(tmp_path, ["a red circle", "a large blue square", "a ring", "green"])
    plain, stored = (
        dataclasses.replace(STAGE, data=encoded(tmp_path, data, STAGE, "latents", part))
        for part in ("features", "states")
    )
    assert parts_of(stored.data) == {"latents", "states"}
    assert needed_components(BUNDLE.model, stored) == ("unet",)
    check_precomputed(BUNDLE.model, stored, {"decoder": tmp_path / "start"})
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    batches = [next(stage_loader(BUNDLE, stage, groups=4)) for stage in (plain, stored)]
    shape = batch_shape(BUNDLE.model, stored, 4)
    abstract = stored.objective.abstract_batch(*shape, BUNDLE.model.tokenizer, encoded_shapes(stored.data))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), batches[1]
    )
    prompts = [batches[0][name] for name in ("image_prompt", "text_prompt")]
    null = stored.objective.null_prompt(BUNDLE.model)
    assert null is not None
    found = embed_rows(BUNDLE.model, BUNDLE.components, [*prompts, null])
    hidden = [np.asarray(condition.hidden) for condition in found]
    hidden[2] = np.repeat(hidden[2], 4, axis=0)
    for name, exact in zip(STATES, hidden, strict=True):
        kept = batches[1][name].astype(np.float32)
        # Rows of padding and of samples of the other kind hold anything.
        close = np.abs(kept - exact) <= 2.0**-7 * np.maximum(np.abs(exact), 1)
        assert np.mean(close.all(axis=(1, 2))) >= 0.5
    loss = jax.jit(stage_loss(BUNDLE.model, plain), static_argnums=3)
    components = {name: BUNDLE.components[name] for name in ("unet", "vae")}

    def of(components: Any, batch: Any) -> float:
        return float(loss(components, batch, jax.random.key(0), 4)[0])

    expected = of(BUNDLE.components, batches[0])
    exactly = {**batches[1], **dict(zip(STATES, hidden, strict=True))}
    assert of(components, exactly) == pytest.approx(expected, rel=1e-5)
    with jax.set_mesh(mesh):
        assert of(components, make_global(exactly, mesh)) == pytest.approx(expected, rel=1e-5)
        assert of(components, make_global(batches[1], mesh)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"groups": {"unet": Group("unet/.*", 1e-3), "biases": Group("biases/.*", 1e-3)}},
            "in which biases train",
        ),
        ({"objective": Diffusion(p_interleaved=0.5)}, "p_interleaved goes without them"),
        ({"sample_every": 5}, "sample_every needs the decoder"),
        (
            {"optimizer": micro.OptimizerConfig(whiten=("unet",), muon=("unet",))},
            "optimizer.whiten needs the decoder",
        ),
    ],
)
def test_a_stage_that_cannot_do_with_states_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_states(BUNDLE.model, dataclasses.replace(STAGE, **changes))


def test_captions_that_are_not_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the source scenes words its captions anew: leave out --part states"):
        encoded(tmp_path, STAGE.data, STAGE, "states")


def test_states_of_other_prompts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = dataclasses.replace(STAGE, data=dataclasses.replace(STAGE.data, precomputed=("set",)))
    monkeypatch.setattr(
        "mvader_jax.train.start.encoded_shapes", lambda data: EncodedShapes(None, None, (4, 9, 8, 32))
    )
    with pytest.raises(
        UserError, match="4 positions for a picture, 9 for a caption and 8 for the null prompt, 32 wide"
    ):
        check_precomputed(BUNDLE.model, stage, {})
