"""V1 of the paper starts from bundles that hold adapters, and leaves them behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import micro

from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.start import earlier_components, needed_components


def test_a_model_without_adapters_takes_none_from_its_bundles(tmp_path: Path) -> None:
    bundle = micro.bundle()
    small = dataclasses.replace(
        bundle, components={name: bundle.components[name] for name in ("adapters", "biases")}
    )
    save_bundle(tmp_path / "captioning" / "bundle", small)
    config = micro.train_config()
    stage = dataclasses.replace(config.stages["diffusion"], init=("captioning",))
    second, sources, _ = earlier_components(config, stage, tmp_path)
    assert second.adapters == micro.MODEL.adapters and set(sources) == {"adapters", "biases"}
    v1 = dataclasses.replace(config, model=dataclasses.replace(config.model, adapters=None))
    first, sources, _ = earlier_components(v1, stage, tmp_path)
    assert first.adapters is None and set(sources) == {"biases"}
    assert "adapters" not in needed_components(first, stage)
