"""Stable Diffusion fine-tuned on captioned pictures of one's own, on one chip or a few.

    mvader convert hf:CompVis/stable-diffusion-v1-4 bundles/sd14
    mvader data build image_captions FOLDER data/mine       # *.jpg with *.txt beside them, JSONL, CSV, COCO
    mvader train sd_finetune
    mvader sample "a photo of a lighthouse" --bundle runs/sd_finetune/diffusion/bundle

img2dataset's output is built with `mvader data build laion_aesthetics FOLDER data/mine --no-filters`. The stage
`diffusion` trains the whole UNet: 17.6 GB of parameters, optimizer, average and gradients, for four chips of 16 GB or
one of 32. `--stage attention` trains its cross-attention alone, 2.9 GB, for one chip of 16 GB. On TPUs mesh and
microbatches are chosen to fit; elsewhere `--mesh fsdp=-1` divides the state. The model is that of the bundle: any
other text-to-image bundle serves, with

    mvader train sd_finetune 'stages.diffusion.init=["bundles/mine"]' 'stages.diffusion.data.source.paths=["data/other"]'

CLIP's text tower reads no pictures and stays frozen, so that every sample is conditioned on its caption
(`p_image=0`). The rate, the average and a batch of 32 are this project's choice, after what fine-tuning scripts take.
"""

import dataclasses

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Records
from mvader_jax.train.config import Group, Stage, TrainConfig
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.optim.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    whole = Stage(
        objective=Diffusion(p_image=0.0),
        init=("bundles/sd14",),
        data=DataConfig(source=Records(("data/mine",)), threads=8),
        groups={"unet": Group("unet/.*", 1e-5)},
        steps=5_000,
        batch_size=32,
        optimizer=OptimizerConfig(warmup_steps=250, ema_decay=0.999),
        remat="blocks",
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        sample_every=500,
    )
    attention = dataclasses.replace(whole, groups={"attention": Group("unet/.*/attn2/.*", 1e-5)})
    return TrainConfig(name="sd_finetune", stages={"diffusion": whole, "attention": attention})
