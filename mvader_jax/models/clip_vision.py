"""CLIP's image tower as a vision transformer, and the projections that bring images and texts into one space.

openai/CLIP clip/model.py `VisionTransformer`; transformers CLIPVisionModel.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from mvader_jax.bounds import PositiveFloat, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipLayer
from mvader_jax.parallel.sharding import constrain, partitioned
from mvader_jax.settings import Checked

Dtype = Any


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig(Checked):
    """A pre-norm transformer over patches and one token of its own. Raises UserError where sizes do not divide."""

    image_size: PositiveInt = 224
    patch_size: PositiveInt = 32
    width: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: PositiveFloat = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, divisor in (
            ("image_size", self.image_size, self.patch_size),
            ("width", self.width, self.num_heads),
        ):
            if value % divisor:
                raise UserError(f"the vision encoder's {name} of {value} does not divide by {divisor}")

    @property
    def num_tokens(self) -> int:
        """Patches, and the token that stands for the picture."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def vit_b32(cls) -> ClipVisionConfig:
        return cls()

    @classmethod
    def vit_b16(cls) -> ClipVisionConfig:
        return cls(patch_size=16)

    @classmethod
    def vit_l14(cls) -> ClipVisionConfig:
        return cls(patch_size=14, width=1024, num_layers=24, num_heads=16, mlp_width=4096)

    @classmethod
    def vit_l14_336(cls) -> ClipVisionConfig:
        """CMMD's."""
        return dataclasses.replace(cls.vit_l14(), image_size=336)

    @classmethod
    def tiny(cls) -> ClipVisionConfig:
        return cls(image_size=32, patch_size=8, width=48, num_layers=2, num_heads=3, mlp_width=96)


@dataclasses.dataclass(frozen=True)
class ClipProjectionsConfig(Checked):
    """width: of the space that texts and images share; the others: of what the two towers give."""

    width: PositiveInt = 512
    text_width: PositiveInt = 512
    image_width: PositiveInt = 768


class ClipVision(nn.Module):
    """Pixels, normalised as CLIP's, -> the normed state of the picture's own token."""

    config: ClipVisionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[jax.Array, "N H W 3"]) -> Float[jax.Array, "N D"]:
        c = self.config
        init = nn.initializers.normal(0.02)
        patches = nn.Conv(
            c.width,
            (c.patch_size, c.patch_size),
            strides=(c.patch_size, c.patch_size),
            padding="VALID",
            use_bias=False,
            kernel_init=partitioned(init, "kernel", "kernel", "channels_in", "channels_out"),
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels.astype(self.dtype))
        own = self.param("class_embedding", partitioned(init, "vector"), (c.width,))
        positions = self.param(
            "position_embedding", partitioned(init, "sequence", "embed"), (c.num_tokens, c.width)
        )
        rows = len(pixels)
        first = jnp.broadcast_to(own.astype(self.dtype), (rows, 1, c.width))
        x = jnp.concatenate([first, patches.reshape(rows, -1, c.width)], axis=1)
        x = constrain(x + positions.astype(self.dtype), "batch", "sequence", "activation")
        x = self._norm("pre_norm", x)
        layers = nn.scan(
            ClipLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, False, name="layers")
        x, _ = layers(x, None, None)
        return self._norm("post_norm", x[:, 0])

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(epsilon=self.config.norm_eps, dtype=jnp.float32, name=name)(x).astype(self.dtype)


class ClipProjections(nn.Module):
    """The towers' states -> unit vectors of the shared space, float32."""

    config: ClipProjectionsConfig

    def setup(self) -> None:
        init = partitioned(nn.initializers.normal(0.02), "embed", "mlp")
        self.text = nn.Dense(self.config.width, use_bias=False, kernel_init=init)
        self.image = nn.Dense(self.config.width, use_bias=False, kernel_init=init)

    def __call__(
        self, texts: Float[jax.Array, "N T"], images: Float[jax.Array, "M I"]
    ) -> tuple[Float[jax.Array, "N W"], Float[jax.Array, "M W"]]:
        return self.of_texts(texts), self.of_images(images)

    def of_texts(self, states: Float[jax.Array, "N T"]) -> Float[jax.Array, "N W"]:
        return _unit(self.text(states.astype(jnp.float32)))

    def of_images(self, states: Float[jax.Array, "N I"]) -> Float[jax.Array, "N W"]:
        return _unit(self.image(states.astype(jnp.float32)))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
