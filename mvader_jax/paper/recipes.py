"""The stages of the paper and of the works it builds on; `configs/` puts them together.

Every number that a stage sets is from the source its docstring names; what a source leaves open is
marked as this project's choice. Paths are of bundles and data sets below the working directory.
"""

from __future__ import annotations

from typing import Literal

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Pairs, Records
from mvader_jax.train.config import Group, Stage
from mvader_jax.train.objectives import Captioning, Contrastive, Diffusion
from mvader_jax.train.optim.optimizer import OptimizerConfig

#: Samples of the NLI pairs that SGPT's symmetric models train on (its model cards: 8,807 batches of 64).
NLI_PAIRS = 563_648


def laion(path: str = "data/laion_aesthetics_5plus") -> DataConfig:
    """LAION aesthetics v2 5+, 512 x 512 and up, about 40 M pairs (paper section 3.2).

    `data.precomputed` names latents and features made before.
    """
    return DataConfig(source=Records((path,)), image_size=512, threads=16)


def diffusion(version: Literal["v1", "v2"], *, init: tuple[str, ...], data: DataConfig) -> Stage:
    """Tables 1 and 2 of the paper.

    v1: 54k iterations, cross-attention at 5e-4, embedding dropout .05; the semantic biases train too.
    v2: 60k iterations, cross-attention at 1e-4, embedding dropout .1; biases and adapters stay frozen.
    Both: batches of 2048, the rest of the UNet at 5e-5, p(image) of .2; 77 tokens per caption, as Stable
    Diffusion. "Cross-attention" are the new matrices to_k and to_v. Left open by the paper and chosen here: the
    biases' rate (the UNet's), AdamW (.9, .999) with decay 1e-2 and EMA .9999 (Stable Diffusion's), constant
    rates after 1,000 steps of warm-up, clipping at 1; bfloat16 for computing and for what is frozen.
    """
    first = version == "v1"
    groups = {
        "cross_attention": Group("unet/.*/attn2/to_[kv]/.*", 5e-4 if first else 1e-4),
        "unet": Group("unet/.*", 5e-5),
    }
    if first:
        groups["biases"] = Group("biases/.*", 5e-5)
    return Stage(
        objective=Diffusion(dropout=0.05 if first else 0.1, p_image=0.2, caption_length=77),
        init=init,
        data=data,
        groups=groups,
        steps=54_000 if first else 60_000,
        batch_size=2048,
        optimizer=OptimizerConfig(warmup_steps=1000),
        remat="blocks",
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        save_every=1000,
        keep=3,
        validate_every=2000,
    )


def captioning(*, init: tuple[str, ...], data: DataConfig) -> Stage:
    """MAGMA's training (Aleph-Alpha/magma configs): the language model frozen, the rest learns to caption.

    AdamW (.9, .95) without decay, batches of 256, 8e-4 for adapters, projection and its LayerNorm, 2e-6
    for the encoder; clip 1, warm-up 100, linear decay over 300k of which 150k steps are run. The
    encoder's batch-norm statistics stay as they are (chosen here); MAGMA keeps no average.
    """
    return Stage(
        objective=Captioning(caption_length=77),
        init=init,
        data=data,
        groups={
            "adapters": Group("(adapters|image_prefix)/.*", 8e-4),
            "encoder": Group("image_encoder/(?!.*/(mean|var)$).*", 2e-6),
        },
        steps=150_000,
        batch_size=256,
        optimizer=OptimizerConfig(
            b1=0.9,
            b2=0.95,
            weight_decay=0.0,
            warmup_steps=100,
            decay="linear",
            decay_steps=300_000,
            ema_decay=0.0,
        ),
        remat="blocks",
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        save_every=1000,
        keep=3,
        validate_every=2000,
    )


def contrastive(*, init: tuple[str, ...], pairs: str = "data/nli.jsonl") -> Stage:
    """SGPT's symmetric semantic search by biases alone (Muennighoff/sgpt, weightedmean-nli-bitfit).

    NLI pairs with hard negatives, one epoch in batches of 1024 whose candidates are gathered from the
    whole mesh; 3.2e-4, 75 tokens, 10 % warm-up, linear decay, clip 1, cosine x 20.
    """
    batch = 1024
    steps = NLI_PAIRS // batch
    return Stage(
        objective=Contrastive(caption_length=75, similarity_scale=20.0),
        init=init,
        data=DataConfig(source=Pairs((pairs,)), threads=16),
        groups={"biases": Group("biases/.*", 3.2e-4)},
        steps=steps,
        batch_size=batch,
        optimizer=OptimizerConfig(warmup_steps=steps // 10, decay="linear", ema_decay=0.0),
        remat="blocks",
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        save_every=100,
        validate_every=100,
    )
