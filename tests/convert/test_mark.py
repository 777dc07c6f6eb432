"""What trained a bundle's components is said again by what is converted from its export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import twins
from converting import convert

from mvader_jax.convert.export import export
from mvader_jax.convert.mark import MARK
from mvader_jax.storage.bundle import load_bundle, read_config, save_bundle

TRAINED = {"stage": "diffusion", "config": "mine", "steps": 10, "data": "records of x", "code": "0.1.0"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Stable Diffusion, its UNet trained on."""
    convert(
        twins.save_diffusers(tmp_path / "sd", twins.unet(), twins.vae(), twins.clip_text()), tmp_path / "a"
    )
    loaded = load_bundle(tmp_path / "a")
    records: dict[str, dict[str, Any]] = {
        **loaded.records,
        "unet": {**loaded.records["unet"], "trained": TRAINED},
    }
    save_bundle(tmp_path / "trained", dataclasses.replace(loaded, records=records))
    return tmp_path / "trained"


@pytest.mark.parametrize("to", ["diffusers", "compvis"])
def test_out_and_in_again(bundle: Path, tmp_path: Path, to: str) -> None:
    export(bundle, tmp_path / "out", to)
    convert(tmp_path / "out", tmp_path / "again")
    before, after = (read_config(path)["components"] for path in (bundle, tmp_path / "again"))
    assert after["unet"]["trained"] == TRAINED and after["unet"]["sha256"] == before["unet"]["sha256"]
    assert after["unet"]["source"] == "out" and "trained" not in after["vae"]


def test_other_numbers_have_another_past(bundle: Path, tmp_path: Path) -> None:
    export(bundle, tmp_path / "half", "diffusers", dtype="float16")
    convert(tmp_path / "half", tmp_path / "a16")
    assert "trained" not in read_config(tmp_path / "a16")["components"]["unet"]

    from safetensors.numpy import load_file, save_file

    export(bundle, tmp_path / "out", "diffusers")
    weights = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + np.float32(1)}, weights)
    convert(tmp_path / "out", tmp_path / "changed")
    assert "trained" not in read_config(tmp_path / "changed")["components"]["unet"]


@pytest.mark.parametrize("content", ["", "[]", '{"components": 3}', '{"components": {"unet": 3}}'])
def test_a_damaged_file_tells_nothing(bundle: Path, tmp_path: Path, content: str) -> None:
    export(bundle, tmp_path / "out", "diffusers")
    assert json.loads((tmp_path / "out" / MARK).read_text())["components"].keys() >= {"unet", "vae"}
    (tmp_path / "out" / MARK).write_text(content)
    convert(tmp_path / "out", tmp_path / "again")
    assert "trained" not in read_config(tmp_path / "again")["components"]["unet"]
