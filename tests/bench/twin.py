"""Drawing in PyTorch, from diffusers' parts, with the weights of one of our bundles."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from mvader_jax.convert.export import export
from mvader_jax.storage.bundle import Bundle, save_bundle


@contextlib.contextmanager
def exported(bundle: Bundle) -> Iterator[Path]:
    """A folder of diffusers with the bundle's UNet, autoencoder and scheduler."""
    with tempfile.TemporaryDirectory() as place:
        parts = {name: bundle.components[name] for name in ("unet", "vae")}
        save_bundle(Path(place) / "ours", Bundle(bundle.model, parts))
        export(Path(place) / "ours", Path(place) / "theirs", "diffusers")
        yield Path(place) / "theirs"


def networks(folder: Path) -> tuple[diffusers.UNet2DConditionModel, diffusers.AutoencoderKL]:
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    return unet, diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()


class FewStepTwin:
    """diffusers' latent-consistency pipeline itself; of a bundle whose UNet was distilled (`Bundle.fast`)."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        torch.set_num_threads(threads)
        with exported(bundle) as folder:
            unet, vae = networks(folder)
            scheduler = diffusers.LCMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.pipe = diffusers.LatentConsistencyModelPipeline(
            vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
        )
        self.pipe.set_progress_bar_config(disable=True)

    def draw(self, condition: np.ndarray, noise: np.ndarray, *, steps: int, scale: float) -> np.ndarray:
        """condition: [S, D], the prompt's, as its text encoder would give it; noise: [B, h, w, C]. Returns uint8
        [B, H, W, 3]."""
        states = torch.from_numpy(condition).expand(len(noise), -1, -1)
        images = self.pipe(
            prompt_embeds=states,
            num_inference_steps=steps,
            original_inference_steps=self.pipe.scheduler.config.original_inference_steps,
            guidance_scale=scale,
            latents=torch.from_numpy(np.ascontiguousarray(noise.transpose(0, 3, 1, 2))),
            output_type="np",
        ).images
        return (images * 255).round().astype(np.uint8)


class Twin:
    """UNet, VAE and scheduler as diffusers' own pipeline drives them."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        torch.set_num_threads(threads)
        with exported(bundle) as folder:
            self.unet, self.vae = networks(folder)
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
