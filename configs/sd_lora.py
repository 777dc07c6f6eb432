"""A LoRA of Stable Diffusion from a few captioned pictures of one's own: a style, or a subject; on one chip.

    mvader convert hf:CompVis/stable-diffusion-v1-4 bundles/sd14
    mvader data build image_captions FOLDER data/mine       # *.jpg with *.txt beside them, JSONL, CSV, COCO
    mvader train sd_lora
    mvader sample "a lighthouse" --bundle bundles/sd14 --lora runs/sd_lora/diffusion/lora.safetensors@0.8

`runs/sd_lora/diffusion/lora.safetensors` is what others load: diffusers' `load_lora_weights` takes it as it is, and
`mvader export FILE OUT.safetensors --to kohya` writes it for programs that want kohya's names. `bundle/` beside it is
the whole model with the factors in its weights.

`--stage subject` is DreamBooth: pictures of one subject, each captioned with a rare word and its class ("a photo of sks
dog"), and pictures of the class, which keep the model from forgetting it ("a photo of a dog"; some 200, drawn with
`mvader sample` or found), one of each in every two samples:

    mvader data build image_captions SKS data/subject
    mvader data build image_captions DOGS data/class
    mvader train sd_lora --stage subject

Rank, rates and steps are this project's choice, after what scripts for LoRA take; attention alone is what Hu et al. 2021
change. Convolutions too: `'stages.diffusion.lora.unet.targets="attn.*/to_|ff/|proj_|resnets"'`.
"""

import dataclasses

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Records
from mvader_jax.lora.config import LoraConfig
from mvader_jax.train.config import Group, Stage, TrainConfig
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.optim.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    style = Stage(
        objective=Diffusion(p_image=0.0),
        init=("bundles/sd14",),
        data=DataConfig(source=Records(("data/mine",)), threads=8),
        lora={"unet": LoraConfig(rank=16, alpha=16.0, targets="attn.*/to_[qkvo].*")},
        groups={"lora": Group("lora/.*", 1e-4)},
        steps=1_500,
        batch_size=8,
        optimizer=OptimizerConfig(warmup_steps=50, ema_decay=0.99),
        remat="blocks",
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        sample_every=500,
    )
    subject = dataclasses.replace(
        style,
        objective=dataclasses.replace(style.objective, dropout=0.0, prior_weight=1.0),
        data=dataclasses.replace(
            style.data, source=Records(("data/subject", "data/class"), weights=(1.0, 1.0))
        ),
        steps=800,
    )
    return TrainConfig(name="sd_lora", stages={"diffusion": style, "subject": subject})
