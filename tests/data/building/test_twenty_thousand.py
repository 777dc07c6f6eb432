"""The whole path at a size that counts: 20,000 images, 2 % of them damaged, built, filtered, trained from."""

from __future__ import annotations

import dataclasses
import json

import img2dataset_like as like
import jax
import micro
import numpy as np
import pytest

from mvader_jax.data.batches import Shape
from mvader_jax.data.building.describe import describe
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.parts import find_shards
from mvader_jax.data.building.run import build
from mvader_jax.data.loader import make_loader
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Autoencoding

IMAGES = 20_000


@pytest.mark.slow
def test_twenty_thousand_images_of_which_two_in_a_hundred_are_damaged(tmp_path):
    damage = like.two_in_a_hundred(IMAGES)
    assert len(damage) == IMAGES // 50
    made = like.make(tmp_path / "in", shards=20, per_shard=1000, damage=damage, size=(96, 72))
    report = build(
        find_shards(tmp_path / "in"), tmp_path / "out", "laion_aesthetics", FilterConfig.paper(), workers=2
    )
    assert report.rejected == made.rejected
    assert report.read == made.read == report.written + sum(report.rejected.values())
    assert report.written == made.written
    assert f"records        {made.written:,} in 20 files" in describe(tmp_path / "out")[0]

    # One epoch: every record once, none of them damaged; one in a hundred is held out.
    data = dataclasses.replace(micro.DATA, source="records", paths=(str(tmp_path / "out"),), image_size=16)
    loader = make_loader(data, Autoencoding(), None, Shape(64))
    held_out = -(-made.written // 100)
    steps = (made.written - held_out) // 64
    assert all(next(loader)["pixels"].shape == (64, 16, 16, 3) for _ in range(steps))
    assert loader.damaged == {}

    config = micro.train_config(data=dataclasses.replace(data, image_size=64))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert train(config, "vae", tmp_path / "run", mesh, quiet=True) == 0
    lines = (tmp_path / "run" / "vae" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("loss", 0.0)) for line in lines)
