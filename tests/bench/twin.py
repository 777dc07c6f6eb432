"""Stable Diffusion's sampling loop in PyTorch, from diffusers' parts, with the weights of one of our bundles."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from mvader_jax.convert.export import export
from mvader_jax.storage.bundle import Bundle, save_bundle


class Twin:
    """UNet, VAE and scheduler as diffusers' own pipeline drives them."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as place:
            parts = {name: bundle.components[name] for name in ("unet", "vae")}
            save_bundle(Path(place) / "ours", Bundle(bundle.model, parts))
            export(Path(place) / "ours", Path(place) / "theirs", "diffusers")
            self.unet = diffusers.UNet2DConditionModel.from_pretrained(
                place + "/theirs", subfolder="unet"
            ).eval()
            self.vae = diffusers.AutoencoderKL.from_pretrained(place + "/theirs", subfolder="vae").eval()
        assert bundle.model.vae is not None and bundle.model.schedule is not None
        self.scale = bundle.model.vae.scaling_factor
        schedule = bundle.model.schedule
        self.scheduler = diffusers.PNDMScheduler(
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            beta_schedule=schedule.beta_schedule,
            skip_prk_steps=True,
            set_alpha_to_one=schedule.set_alpha_to_one,
            steps_offset=schedule.steps_offset,
        )

    def draw(
        self, condition: np.ndarray, null: np.ndarray, noise: np.ndarray, *, steps: int, guidance_scale: float
    ) -> np.ndarray:
        """condition, null: [S, D] and [S', D]; noise: [B, h, w, C]. Returns uint8 [B, H, W, 3]."""
        batch = len(noise)
        length = max(len(condition), len(null))
        states = torch.zeros(2 * batch, length, condition.shape[-1])
        mask = torch.zeros(2 * batch, length, dtype=torch.bool)
        for start, rows in ((0, null), (batch, condition)):
            states[start : start + batch, : len(rows)] = torch.from_numpy(np.array(rows))
            mask[start : start + batch, : len(rows)] = True
        options: dict[str, Any] = {} if mask.all() else {"encoder_attention_mask": mask}
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(noise.transpose(0, 3, 1, 2)))
            self.scheduler.set_timesteps(steps)
            for t in self.scheduler.timesteps:
                eps = self.unet(torch.cat([x, x]), t, states, **options).sample
                without, with_it = eps.chunk(2)
                eps = without + guidance_scale * (with_it - without)
                x = self.scheduler.step(eps, t, x).prev_sample
            pixels = self.vae.decode(x / self.scale).sample
            pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).numpy()
