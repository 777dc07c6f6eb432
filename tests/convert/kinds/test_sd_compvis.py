"""What a CompVis file says of its noise schedule, and what it does not say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import twins
from converting import convert, converted
from safetensors.torch import load_file, save_file

from mvader_jax.convert.export import export
from mvader_jax.convert.kinds.sd_compvis import COMPVIS_FILE
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.storage.bundle import save_bundle


def compvis(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    """A CompVis file of a small UNet, with these tensors more."""
    convert(twins.save_diffusers(tmp_path / "sd", twins.unet()), tmp_path / "first")
    export(tmp_path / "first", tmp_path / "out", "compvis")
    (tmp_path / "out" / "config.json").write_text(json.dumps({"num_heads": 4, "norm_groups": 8}))
    state = load_file(tmp_path / "out" / COMPVIS_FILE)
    save_file({**state, **tensors}, tmp_path / "out" / COMPVIS_FILE)
    return tmp_path / "out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(),
        ScheduleConfig(beta_start=0.0015, beta_end=0.0195),
        ScheduleConfig(500, 1e-4, 0.02, "linear"),
    ],
    ids=["its own", "latent diffusion's", "linear"],
)
def test_compvis_table_of_the_schedule_is_read(
    schedule: ScheduleConfig, dtype: torch.dtype, tmp_path: Path
) -> None:
    table = schedule.alphas_cumprod()
    betas = 1 - table / np.concatenate([[1.0], table[:-1]])
    tables = {"alphas_cumprod": torch.from_numpy(table).to(dtype), "betas": torch.from_numpy(betas).to(dtype)}
    found = converted(compvis(tmp_path, **tables), tmp_path / "bundle").model.schedule
    assert found is not None and found.num_train_steps == schedule.num_train_steps
    np.testing.assert_allclose(found.alphas_cumprod(), schedule.alphas_cumprod(), atol=5e-4)
    assert found == schedule


def test_compvis_table_of_a_schedule_that_is_not_computed_is_refused(tmp_path: Path) -> None:
    cosine = np.cos((np.arange(1000) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    with pytest.raises(
        UserError, match=r"alphas_cumprod is of another noise schedule.*at timestep \d+ it says 0\."
    ):
        convert(compvis(tmp_path, alphas_cumprod=torch.from_numpy(cosine)), tmp_path / "bundle")
    # The last timestep of pure noise, as zero-terminal-SNR finetunes have it.
    zero = ScheduleConfig().alphas_cumprod()
    zero = zero - zero[-1]
    with pytest.raises(UserError, match="another noise schedule"):
        convert(compvis(tmp_path / "b", alphas_cumprod=torch.from_numpy(zero)), tmp_path / "bundle")


def test_compvis_keeps_an_unusual_schedule_beside_it(tmp_path: Path) -> None:
    bundle = converted(twins.save_diffusers(tmp_path / "sd", twins.unet()), tmp_path / "first")
    schedule = ScheduleConfig(800, 0.001, 0.02, "linear", 0, True, "trailing")
    bundle.model = dataclasses.replace(bundle.model, schedule=schedule)
    save_bundle(tmp_path / "second", bundle)
    done = export(tmp_path / "second", tmp_path / "out", "compvis")
    assert "only the config.json beside it says so" in " ".join(done.notes)
    assert converted(tmp_path / "out", tmp_path / "third").model.schedule == schedule


def test_compvis_of_unknown_width_needs_settings(tmp_path: Path) -> None:
    convert(twins.save_diffusers(tmp_path / "sd", twins.unet()), tmp_path / "first")
    export(tmp_path / "first", tmp_path / "out", "compvis")
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(UserError, match=r"a UNet of width 16 is not Stable Diffusion 1\.x's.*num_heads"):
        convert(tmp_path / "out" / COMPVIS_FILE, tmp_path / "second")
