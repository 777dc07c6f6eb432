"""The parts of a bundle, each by itself, jitted: what a pipeline draws with and what experiments are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Num

from mvader_jax.condition import Array, Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import from_unit, to_float, to_unit
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed
from mvader_jax.models.unet import UNet
from mvader_jax.prompt.elements import ImageSource, LongPrompts, PromptLike, Site
from mvader_jax.sampling import arguments
from mvader_jax.sampling.generate import decode_latents, encode_images, image_features
from mvader_jax.sampling.placement import Placement
from mvader_jax.sampling.settings import image_size
from mvader_jax.settings import convert
from mvader_jax.storage.bundle import Bundle


class Parts:
    """A bundle's embedder, UNet and autoencoder, to be called one by one."""

    def __init__(self, bundle: Bundle, *, dtype: str, mesh: Mesh | None) -> None:
        hint = ': Pipeline.load("tiny") reads one by its name'
        self.bundle = bundle = arguments.instance(bundle, Bundle, "bundle", hint)
        self.dtype = dtype = arguments.compute_dtype(dtype)
        self.placement = Placement(arguments.mesh(mesh))
        fixed: dict[str, Any] = {"model": bundle.model, "dtype": dtype}
        whole = self.placement.whole()
        self._embed = jax.jit(functools.partial(embed, bundle.model, dtype=jnp.dtype(dtype)), **whole)
        self._features = jax.jit(functools.partial(image_features, **fixed), **whole)
        self._decode = jax.jit(functools.partial(decode_latents, **fixed))
        self._encode = jax.jit(functools.partial(encode_images, **fixed))
        if bundle.model.unet is not None:
            unet = UNet(bundle.model.unet, dtype=jnp.dtype(dtype))
            self._denoise = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs))

    @property
    def model(self) -> ModelConfig:
        return self.bundle.model

    def embed(
        self, prompt: PromptLike | None, *, site: Site | None = None, long_prompts: LongPrompts | None = None
    ) -> Condition:
        """The Condition of one prompt, hidden [1, S, D]; None is the null prompt."""
        site = convert(Site | None, site, "site")
        long_prompts = convert(LongPrompts | None, long_prompts, "long_prompts")
        return self.embed_batch(self.bundle.to_batch([prompt], site=site, long_prompts=long_prompts))

    def embed_batch(self, batch: PromptBatch) -> Condition:
        """The Condition of every prompt of a batch, which `pipe.bundle.to_batch` makes."""
        arguments.instance(batch, PromptBatch, "batch", ": pipe.bundle.to_batch(prompts) makes one")
        with self.placement.active():
            return self._embed(self.bundle.components, self.placement.placed(batch))

    def features(self, pixels: Float32[Array, "B H W 3"]) -> Float[jax.Array, "B T C"]:
        """The image encoder's features of preprocessed images (`images.preprocess.clip_preprocess`)."""
        self.bundle.need("image_encoder")
        pixels = arguments.encoder_pixels(self.model, pixels)
        with self.placement.active():
            return self._features(self.bundle.components, self.placement.placed(pixels))

    def denoise(
        self,
        latents: Float[Array, "B h w C"],
        t: Num[Array, ""] | Num[Array, " B"] | float,
        condition: Condition,
        guidance_scale: float | None = None,
    ) -> Float[jax.Array, "B h w C"]:
        """The UNet's prediction, without guidance: the noise eps, or v where the schedule's `prediction_type` says so.

        t: timesteps, 0 to 999, one or each row's. condition: what `embed` returns, one row for all or as many as the
        latents have. guidance_scale: of a distilled UNet, which takes it as an input, and of no other.
        Raises UserError for arrays of other shapes and types.
        """
        self.bundle.need("unet")
        latents = jnp.asarray(arguments.noisy_latents(self.model, latents))
        rows = latents.shape[0]
        timesteps = jnp.broadcast_to(jnp.asarray(arguments.timesteps(self.model, t, rows)), (rows,))
        condition = arguments.condition(self.model, condition, rows)
        scales = arguments.guidance(guidance_scale, rows)
        return self._denoise(self.bundle.components["unet"], latents, timesteps, condition, None, scales)

    def encode(
        self, images: Num[Array, "B H W 3"] | ImageSource | Sequence[ImageSource]
    ) -> Float32[jax.Array, "B h w C"]:
        """Images -> scaled latents.

        images: an array [B, H, W, 3] as it is, uint8 or floats in [0, 1]; or a picture or a list of pictures, which
        are resized (short side) and cropped to the model's size. Raises UserError for anything else.
        """
        self.bundle.need("vae")
        if getattr(images, "ndim", 0) != 4:
            height, width = image_size(self.model)
            chosen = arguments.listed(images)
            if not chosen:
                raise UserError("there are no pictures to encode")
            pixels = jnp.asarray(np.stack([to_vae_pixels(one, height, width) for one in chosen]))
        else:
            given = jnp.asarray(arguments.pixels(self.model, images))
            pixels = to_float(given) if given.dtype == jnp.uint8 else from_unit(given)
        return self._encode(self.bundle.components, pixels)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float32[jax.Array, "B H W 3"]:
        """Scaled latents -> images, floats in [0, 1], as `encode` and `Image` take them; what is beyond is clipped.

        Raises UserError for what are no latents.
        """
        self.bundle.need("vae")
        return to_unit(
            self._decode(self.bundle.components, jnp.asarray(arguments.latents(self.model, latents)))
        )
