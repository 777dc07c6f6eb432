"""The architecture of a model: each module owns its frozen dataclass, this file composes them."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.clip_vision import ClipProjectionsConfig, ClipVisionConfig
from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig
from mvader_jax.models.inception import InceptionConfig
from mvader_jax.models.s_magma import SMagmaConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig
from mvader_jax.settings import Checked

Part = TypeVar("Part")
#: What the fields of a model are shaped by.
_FIELDS: dict[type, str] = {
    DecoderConfig: "decoder",
    AdaptersConfig: "adapters",
    ImageEncoderConfig: "image_encoder",
    ImagePrefixConfig: "image_prefix",
    ClipTextConfig: "text_encoder",
    UNetConfig: "unet",
    VAEConfig: "vae",
    ScheduleConfig: "schedule",
    TokenizerConfig: "tokenizer",
    InceptionConfig: "inception",
    ClipVisionConfig: "vision_encoder",
    ClipProjectionsConfig: "clip_projections",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """The architecture of every component a bundle may hold; None where it has no such component.

    embedder: what turns prompts into a Condition, by its name in `embed.EMBEDDERS`. unet_fast: of a UNet that was
    distilled to few steps, beside the one that it learnt from. inception, vision_encoder, clip_projections: of networks
    that judge pictures (`scores/`); no picture is drawn with them.
    """

    embedder: str = "s_magma"
    decoder: DecoderConfig | None = None
    adapters: AdaptersConfig | None = None
    image_encoder: ImageEncoderConfig | None = None
    image_prefix: ImagePrefixConfig | None = None
    text_encoder: ClipTextConfig | None = None
    unet: UNetConfig | None = None
    vae: VAEConfig | None = None
    schedule: ScheduleConfig | None = None
    tokenizer: TokenizerConfig | None = None
    unet_fast: UNetConfig | None = None
    inception: InceptionConfig | None = None
    vision_encoder: ClipVisionConfig | None = None
    clip_projections: ClipProjectionsConfig | None = None

    @classmethod
    def open_m_vader(cls) -> ModelConfig:
        """M-VADER on public weights: GPT-J-6B and MAGMA, with Stable Diffusion 1.4 attending to 4096 wide states.

        MAGMA's checkpoint has one image token more than GPT-2, and its adapters are version 1's.
        """
        return cls(
            decoder=dataclasses.replace(DecoderConfig.gptj_6b(), vocab_size=50258),
            adapters=AdaptersConfig.magma_v1(),
            image_encoder=ImageEncoderConfig.rn50x16(),
            image_prefix=ImagePrefixConfig.magma(),
            unet=dataclasses.replace(UNetConfig.sd14(), cross_attention_dim=4096),
            vae=VAEConfig.sd14(),
            schedule=ScheduleConfig(),
            tokenizer=TokenizerConfig.gpt2(),
        )

    @classmethod
    def luminous_m_vader(cls) -> ModelConfig:
        """The paper's own M-VADER, with the inferred dimensions of Luminous-13B; 5120 wide."""
        return cls(
            decoder=DecoderConfig.luminous_13b(),
            adapters=AdaptersConfig(width=640, attention=True),
            image_encoder=ImageEncoderConfig.rn50x16(),
            image_prefix=ImagePrefixConfig(width=5120),
            unet=dataclasses.replace(UNetConfig.sd14(), cross_attention_dim=5120),
            vae=VAEConfig.sd14(),
            schedule=ScheduleConfig(),
            # Its tokenizer of 128,000 is not public; plans need no more than its size.
            tokenizer=TokenizerConfig(eos_id=0),
        )

    def require(self, kind: type[Part]) -> Part:
        """The part of the model that a class of configs shapes: `model.require(UNetConfig)`.

        Raises UserError naming it where the model has none.
        """
        part = getattr(self, _FIELDS[kind])
        if isinstance(part, kind):
            return part
        raise UserError(f"this model has no {_FIELDS[kind]}; it has {', '.join(self.parts) or 'no parts'}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that it has."""
        return tuple(name for name in (*_FIELDS.values(), "unet_fast") if getattr(self, name) is not None)

    @property
    def fast(self) -> ModelConfig:
        """The model that draws in few steps: its UNet is the distilled one. Raises UserError where there is none."""
        if self.unet_fast is None:
            raise UserError(
                "this model has no unet_fast, a UNet distilled to few steps; `mvader train --stage distill` makes one"
            )
        return dataclasses.replace(self, unet=self.unet_fast, unet_fast=None)

    @property
    def s_magma(self) -> SMagmaConfig:
        """The four parts of S-MAGMA as its embedder reads them. Raises UserError without a decoder."""
        return SMagmaConfig(
            decoder=self.require(DecoderConfig),
            adapters=self.adapters,
            image_encoder=self.image_encoder,
            image_prefix=self.image_prefix,
        )
