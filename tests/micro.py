"""The smallest model that has every part, for tests that compile; a few hundred thousand parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.data.config import DataConfig
from mvader_jax.data.scenes.captions import caption
from mvader_jax.data.scenes.world import scene_at
from mvader_jax.data.sources import Scenes
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.models.components import COMPONENTS, abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig, train_tokenizer
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.config import Group, Stage, TrainConfig
from mvader_jax.train.objectives import Autoencoding, Captioning, Contrastive, Diffusion, Objective
from mvader_jax.train.optim.optimizer import OptimizerConfig

MODEL = ModelConfig(
    decoder=DecoderConfig(320, 320, 48, 2, 2, 24, 96, 96, rotary_dim=12),
    adapters=AdaptersConfig(width=16),
    image_encoder=ImageEncoderConfig((1, 1, 1, 1), 8, 64),
    image_prefix=ImagePrefixConfig(in_width=256, width=48),
    unet=UNetConfig(4, 4, (16, 32), 1, (True, True), 48, 2, 8, 1e-5, 8),
    vae=VAEConfig(3, (8, 8, 16, 16), 1, 4, 4, 1.0, 64),
    schedule=ScheduleConfig(),
    tokenizer=TokenizerConfig(eos_id=0, max_positions=96),
)
DATA = DataConfig(Scenes(num_records=64), threads=1)


def draw(rng: np.random.Generator, path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """A random parameter: kernels of unit gain, everything else a little off its neutral value."""
    name = path[-1].key
    if name in ("kernel", "embedding"):
        fan_in = leaf.shape[-2] if len(leaf.shape) < 4 else int(np.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), jnp.float32)
    neutral = 1.0 if name in ("scale", "var") else 0.0
    return jnp.asarray(neutral + 0.05 * rng.uniform(-1, 1, leaf.shape), jnp.float32)


def bundle(of: ModelConfig = MODEL, *names: str) -> Bundle:
    """Random weights, a tokenizer trained on a hundred captions. names: components, all where none is named."""
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer([caption(scene_at(0, i), rng) for i in range(100)], 320, max_positions=96)
    # Drawn in NumPy from the shapes alone: compiling every initialiser would take a minute.
    shapes, _ = abstract_components(
        of, names or [name for name, part in COMPONENTS.items() if getattr(of, part)]
    )
    components = jax.tree_util.tree_map_with_path(lambda path, leaf: draw(rng, path, leaf), shapes)
    model = dataclasses.replace(of, tokenizer=tokenizer.config)
    return Bundle(model, components, tokenizer)


def train_config(**changes: object) -> TrainConfig:
    """Every stage, a handful of steps each."""

    def stage(objective: Objective, groups: dict[str, Group], **more: object) -> Stage:
        settings = {
            "steps": 6,
            "batch_size": 8,
            "data": DATA,
            "optimizer": OptimizerConfig(warmup_steps=2),
            "log_every": 2,
            "save_every": 2,
            "validate_every": 100,
            **more,
            **changes,
        }
        return Stage(objective, groups, **settings)  # type: ignore[arg-type]

    return TrainConfig(
        "micro",
        MODEL,
        {
            "vae": stage(Autoencoding(), {"vae": Group("vae/.*", 1e-3)}),
            "language": stage(
                Captioning(images=False, caption_length=24), {"decoder": Group("decoder/.*", 1e-3)}
            ),
            "captioning": stage(
                Captioning(caption_length=24),
                {"adapters": Group("(adapters|image_prefix)/.*", 1e-3)},
                init=("language",),
            ),
            "contrastive": stage(
                Contrastive(caption_length=24), {"biases": Group("biases/.*", 1e-3)}, init=("captioning",)
            ),
            "diffusion": stage(
                Diffusion(caption_length=24),
                {
                    "cross_attention": Group("unet/.*/attn2/to_[kv]/.*", 1e-3),
                    "unet": Group("unet/.*", 5e-4),
                },
                init=("vae", "contrastive"),
            ),
        },
    )


#: Whole, and as little to compile as can be: for tests that compile many programs or start many processes.
NANO = ModelConfig(
    decoder=DecoderConfig(320, 320, 32, 1, 2, 16, 64, 96, rotary_dim=8),
    adapters=AdaptersConfig(width=8),
    image_encoder=ImageEncoderConfig((1, 1, 1, 1), 8, 64),
    image_prefix=ImagePrefixConfig(in_width=256, width=32),
    unet=UNetConfig(4, 4, (16,), 1, (True,), 32, 2, 8, 1e-5, 8),
    vae=VAEConfig(3, (8,), 1, 4, 4, 1.0, 8),
    schedule=ScheduleConfig(),
    tokenizer=TokenizerConfig(eos_id=0, max_positions=96),
)


def nano_config(**changes: object) -> TrainConfig:
    """`train_config` of the model NANO."""
    config = train_config(**changes)
    data = dataclasses.replace(DATA, image_size=8)
    stages = {name: dataclasses.replace(stage, data=data) for name, stage in config.stages.items()}
    return dataclasses.replace(config, model=NANO, stages=stages)


def language_config(init: str, **changes: object) -> TrainConfig:
    """The stage that starts and compiles fastest: the decoder of the bundle `init` learns captions."""
    stage = nano_config(**changes).stages["language"]
    return TrainConfig("nano", NANO, {"language": dataclasses.replace(stage, init=(init,))})
