"""Grids drawn while a stage trains: a picture of NaN is labelled as one, and does not end the run."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import micro
import numpy as np
import pytest

from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.train.samples import Pictures


def test_a_picture_that_is_not_finite_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(micro.bundle(micro.NANO))
    drawn = jnp.zeros((2, 8, 8, 3), jnp.uint8), jnp.array([True, False])
    monkeypatch.setattr(pipe, "generate", lambda draws, static: drawn)
    stage = micro.nano_config().stages["diffusion"]
    stage = dataclasses.replace(stage, sample_prompts=("a red circle", "a blue cross"))
    picture, labels = Pictures()(pipe, stage)
    assert labels == ["a red circle", "(NaN or infinity) a blue cross"]
    assert picture.dtype == np.uint8 and picture.ndim == 3
