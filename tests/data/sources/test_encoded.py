"""Precomputed latents and features: encoded over a mesh, gone on with after a stop, trained from."""

from __future__ import annotations

import dataclasses
import pathlib

import img2dataset_like as like
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from array_record.python import array_record_data_source

from mvader_jax.data.batches import Shape
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.parts import find_shards
from mvader_jax.data.building.run import build
from mvader_jax.data.loader import make_loader
from mvader_jax.data.sources import Records, Scenes
from mvader_jax.data.sources.encoded import INFO, Encoded, parts_of, read_info
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_float
from mvader_jax.models.image_encoder import ImageEncoder
from mvader_jax.models.vae import VAE
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.precompute.encode import encode
from mvader_jax.precompute.job import Options
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.train.objectives import Autoencoding
from mvader_jax.train.run import build_run, stage_loader

#: 60 training scenes in shards of 16 records, the last one not full; as many for validation.
DATA = dataclasses.replace(micro.DATA, source=Scenes(60), threads=2)


def mesh(count=1):
    return make_mesh(MeshConfig(data=count), jax.devices()[:count])


def config(**data):
    base = micro.train_config()
    stage = dataclasses.replace(base.stages["diffusion"], data=dataclasses.replace(DATA, **data))
    return dataclasses.replace(base, stages={**base.stages, "diffusion": stage})


def with_settings(stage, **settings):
    return dataclasses.replace(stage, objective=dataclasses.replace(stage.objective, **settings))


def run(out, workdir, data=DATA, count=1, on_progress=lambda done, total: None, **options):
    settings = Options(**{"batch_size": 8, "shard_size": 16, "sample": 16, **options})
    return encode(
        config(),
        "diffusion",
        data,
        out,
        mesh(count),
        workdir=workdir,
        options=settings,
        on_progress=on_progress,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    for stage in ("vae", "contrastive"):
        save_bundle(path / stage / "bundle", micro.bundle())
    return path


@pytest.fixture(scope="module")
def networks():
    """(the VAE's mean and log variance of pixels, the encoder's features), each compiled once a shape."""
    parts = micro.bundle()
    vae, encoder = VAE(parts.model.vae), ImageEncoder(parts.model.image_encoder)
    posterior = jax.jit(
        lambda x: vae.apply({"params": parts.components["vae"]}, to_float(x), method="encode")
    )
    return posterior, jax.jit(lambda x: encoder.apply({"params": parts.components["image_encoder"]}, x))


@pytest.fixture(scope="module")
def scenes(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "scenes"
    info, check = run(out, workdir)
    assert (info.splits, info.damaged) == ({"train": 60, "validation": 60}, {})
    assert check.records == 16 and check.worst < 4
    return out


def test_records_are_what_the_networks_compute(scenes, networks):
    pixels = make_loader(dataclasses.replace(DATA, shuffle=False), Autoencoding(), None, Shape(8))
    mean, logvar = networks[0](next(pixels)["pixels"])
    stored = Encoded(str(scenes), "train", DATA)
    assert len(stored) == 60
    for number in range(8):
        record = stored.record(number, np.random.default_rng(0))
        assert record["latents"].dtype == jnp.bfloat16
        np.testing.assert_allclose(
            record["latents"].astype(np.float32)[0], mean[number], rtol=1e-2, atol=1e-3
        )
        np.testing.assert_allclose(
            record["latents"].astype(np.float32)[1], logvar[number], rtol=1e-2, atol=1e-3
        )
        assert record["features"].shape == (4, 256)


def test_batches_hold_the_same_rows_as_without(scenes, networks):
    stage = config().stages["diffusion"]
    bundle = micro.bundle()
    precomputed = dataclasses.replace(stage, data=dataclasses.replace(DATA, precomputed=(str(scenes),)))
    plain, ready = stage_loader(bundle, stage), stage_loader(bundle, precomputed)
    for _ in range(3):
        a, b = next(plain), next(ready)
        assert "pixels" not in b
        np.testing.assert_array_equal(a["use_image"], b["use_image"])
        np.testing.assert_array_equal(a["text_prompt"].token_ids, b["text_prompt"].token_ids)
        mean, _ = networks[0](a["pixels"])
        np.testing.assert_allclose(b["latent_mean"].astype(np.float32), mean, rtol=1e-2, atol=1e-3)
        features = networks[1](a["image_prompt"].pixels[:, 0])
        known = b["image_prompt"].pixels[:, 0].astype(np.float32)
        np.testing.assert_allclose(known, features, rtol=1e-2, atol=1e-2 * float(np.abs(features).mean()))


def test_training_reads_them_and_needs_neither_vae_nor_encoder(scenes, workdir):
    settings = config(precomputed=(str(scenes),))
    losses = []
    for data in (settings, config()):
        run_ = build_run(data, data.stages["diffusion"], workdir, mesh())
        loader = stage_loader(run_.start.bundle, run_.stage, groups=1)
        # The same start for both: which parts there are shifts the keys of those made anew.
        components = {**micro.bundle().components}
        kept = {k: components[k] for k in run_.start.bundle.components}
        losses.append(float(run_.evaluate(kept, {}, next(loader), jax.random.key(0))["loss"][0]))
        if data is settings:
            assert not {"vae", "image_encoder"} & set(run_.start.bundle.components)
            assert {"vae", "image_encoder"} <= set(run_.start.unused)
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)


@pytest.mark.parametrize("posterior", ["sample", "mean"])
def test_the_posterior_is_sampled_unless_its_mean_is_asked_for(scenes, workdir, posterior):
    settings = config(precomputed=(str(scenes),))
    stage = with_settings(settings.stages["diffusion"], posterior=posterior)
    run_ = build_run(settings, stage, workdir, mesh())
    components = {k: micro.bundle().components[k] for k in run_.start.bundle.components}
    batch = next(stage_loader(run_.start.bundle, run_.stage, groups=1))
    wider = {**batch, "latent_logvar": np.zeros_like(batch["latent_logvar"])}
    one, other = (
        float(run_.evaluate(components, {}, rows, jax.random.key(0))["loss"][0]) for rows in (batch, wider)
    )
    assert (one == other) is (posterior == "mean")


def test_a_bias_draws_noisier_timesteps(scenes, workdir):
    settings = config(precomputed=(str(scenes),))
    rows = []
    for bias in (1.0, 50.0):
        stage = with_settings(settings.stages["diffusion"], timestep_bias=bias)
        run_ = build_run(settings, stage, workdir, mesh())
        components = {k: micro.bundle().components[k] for k in run_.start.bundle.components}
        batch = next(stage_loader(run_.start.bundle, run_.stage, groups=1))
        metrics = run_.evaluate(components, {}, batch, jax.random.key(0))
        rows.append([float(metrics[f"loss_quarter{n}"][1]) for n in (1, 2, 3, 4)])
    uniform, biased = rows
    assert sum(uniform) == sum(biased) == settings.stages["diffusion"].batch_size
    assert biased[3] > uniform[3]
    for bias in (0.5, float("nan")):
        with pytest.raises(UserError, match=r"timestep_bias is .*; (accepted: 1 or more|expected)"):
            with_settings(settings.stages["diffusion"], timestep_bias=bias)


def test_a_stopped_encoding_goes_on_with_another_mesh_and_ends_the_same(scenes, workdir, tmp_path):
    def stop(done, total):
        assert total == 120
        if done >= 40:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, workdir, on_progress=stop)
    assert not (out / INFO).exists()
    with pytest.raises(UserError, match="no finished encoded set"):
        read_info(out)
    with pytest.raises(UserError, match="unfinished encoding of other data"):
        run(out, workdir, data=dataclasses.replace(DATA, source=Scenes(59)))
    seen = []
    run(out, workdir, count=4, on_progress=lambda done, total: seen.append(done))
    assert seen[0] == 32 and seen[-1] == 120
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in scenes.iterdir())
    ours, theirs = (Encoded(str(path), "train", DATA) for path in (out, scenes))
    for number in range(60):
        a, b = (source.record(number, np.random.default_rng(0)) for source in (ours, theirs))
        assert a["caption"] == b["caption"]
        for part in ("latents", "features"):
            np.testing.assert_allclose(
                a[part].astype(np.float32), b[part].astype(np.float32), rtol=2e-2, atol=2e-3
            )


def test_wrong_content_is_found_by_recomputation(scenes, workdir, tmp_path):
    for file in scenes.iterdir():
        (tmp_path / file.name).symlink_to(file)
    # The records of another shard in the place of the first.
    (tmp_path / "train-00000.array_record").unlink()
    (tmp_path / "train-00000.array_record").symlink_to(scenes / "train-00001.array_record")
    with pytest.raises(UserError, match="does not hold what its model computes"):
        run(tmp_path, workdir)


def test_pictures_of_a_data_set_and_the_damaged_among_them(workdir, tmp_path):
    like.make(tmp_path / "in", shards=2, per_shard=120, size=(80, 72))
    built = tmp_path / "built"
    build(find_shards(tmp_path / "in"), built, "laion_aesthetics", FilterConfig())
    data = dataclasses.replace(DATA, source=Records((str(built),)))
    spoil(built, (5, 60))
    damaged = unreadable(built)
    assert damaged
    info, check = run(tmp_path / "out", workdir, data=data, shard_size=100, parts=("latents",))
    # Records 0, 100 and 200 are held out; those of all that could not be read keep their places.
    assert info.splits == {"train": 237, "validation": 3}
    assert sum(info.damaged.values()) == damaged
    assert check.records in (15, 16)
    ready = dataclasses.replace(data, precomputed=(str(tmp_path / "out"),), shuffle=False)
    bundle = load_bundle(workdir / "contrastive" / "bundle")
    stage = dataclasses.replace(config().stages["diffusion"], data=ready)
    loader = stage_loader(bundle, stage, groups=1)
    plain = stage_loader(
        bundle, dataclasses.replace(stage, data=dataclasses.replace(data, shuffle=False)), groups=1
    )
    # Image rows have no features here: their pictures are read from the data set.
    for a, b in ((next(plain), next(loader)) for _ in range(4)):
        np.testing.assert_array_equal(a["image_prompt"].pixels, b["image_prompt"].pixels)
        np.testing.assert_array_equal(a["text_prompt"].token_ids, b["text_prompt"].token_ids)
    assert [reason for reason in loader.damaged.values() if "could not be encoded" in reason]


def spoil(built: pathlib.Path, numbers):
    """Overwrites the middle of these records of the first file (group_size 1: a chunk each)."""
    file = next(built.glob("*.array_record-00000-*"))
    data = bytearray(file.read_bytes())
    size = len(data) // 120
    for number in numbers:
        at = size * number + size // 2
        data[at : at + 64] = bytes(64)
    file.write_bytes(data)


def unreadable(built: pathlib.Path) -> int:
    """How many records of the files array_record itself cannot read: a hole may reach into a neighbour."""
    count = 0
    for file in built.glob("*.array_record-*"):
        source = array_record_data_source.ArrayRecordDataSource(str(file))
        for number in range(len(source)):
            try:
                source[number]
            except Exception:  # the library's own, of no one class
                count += 1
    return count


def test_mistakes_are_one_sentence(scenes, workdir, tmp_path):
    bare = dataclasses.replace(config().stages["diffusion"], init=())
    bare = dataclasses.replace(config(), stages={"diffusion": bare})
    with pytest.raises(UserError, match="no bundle in the stage's init holds one"):
        encode(bare, "diffusion", DATA, tmp_path / "o", mesh(), workdir=workdir)
    with pytest.raises(UserError, match="does not divide over 4 devices"):
        run(tmp_path / "o", workdir, count=4, batch_size=6)
    with pytest.raises(UserError, match="unknown part 'pixels'"):
        run(tmp_path / "o", workdir, parts=("pixels",))
    with pytest.raises(UserError, match="crop='centre'"):
        run(tmp_path / "o", workdir, data=dataclasses.replace(DATA, flip=0.5))
    with pytest.raises(UserError, match="encoded from other scenes"):
        Encoded(str(scenes), "train", dataclasses.replace(DATA, seed=1))
    with pytest.raises(UserError, match="encoded at 64 pixels"):
        Encoded(str(scenes), "train", dataclasses.replace(DATA, image_size=32))
    with pytest.raises(UserError, match="reads no precomputed"):
        make_loader(dataclasses.replace(DATA, precomputed=(str(scenes),)), Autoencoding(), None, Shape(4))


def test_parts_encoded_apart_are_not_joined(scenes, workdir, tmp_path):
    run(tmp_path / "features", workdir, parts=("features",))
    apart = dataclasses.replace(DATA, precomputed=(str(scenes), str(tmp_path / "features")))
    held = r"scenes holds latents 2 x 8 x 8 x 4 and features 4 x 256, .*features holds features 4 x 256$"
    with pytest.raises(UserError, match=held):
        parts_of(apart)


def test_latents_of_another_vae_are_refused(scenes, workdir, tmp_path):
    bundle = micro.bundle()
    bundle.components["vae"] = jax.tree.map(lambda x: x + 0.1, bundle.components["vae"])
    save_bundle(tmp_path / "vae" / "bundle", bundle)
    bundle.components.pop("vae")
    save_bundle(tmp_path / "contrastive" / "bundle", bundle)
    settings = config(precomputed=(str(scenes),))
    with pytest.raises(UserError, match="encoded by another vae"):
        build_run(settings, settings.stages["diffusion"], tmp_path, mesh())
