"""Bundle + prompts + seed -> images, in one compiled program: embed, sample, decode."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from mvader_jax.bundle import Bundle, load_bundle
from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.config import ModelConfig
from mvader_jax.diffusion.guidance import guided
from mvader_jax.diffusion.noise import initial_noise
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import Schedule
from mvader_jax.embed import embed
from mvader_jax.errors import UserError
from mvader_jax.images import load_image, to_vae_pixels
from mvader_jax.models.unet import UNet
from mvader_jax.models.vae import VAE
from mvader_jax.prompt import Prompt

Components = Mapping[str, Any]


def generate(
    components: Components,
    prompts: PromptBatch,
    negatives: PromptBatch,
    rows: jax.Array,
    negative_rows: jax.Array,
    seeds: jax.Array,
    indices: jax.Array,
    guidance_scale: jax.Array,
    *,
    model: ModelConfig,
    steps: int,
    sampler: str,
    latent_size: tuple[int, int],
    dtype: str,
) -> jax.Array:
    """The whole walk from prompts to pictures; pure, jitted once a shape.

    prompts: P rows, negatives: N rows (the null prompt where there is no negative one); each is
    embedded once. rows, negative_rows: int32 [B], which of them each image is made from. seeds: uint32
    [B], indices: int32 [B]: an image's noise depends on these two alone. guidance_scale: float32 [B].
    Returns uint8 [B, H, W, 3].
    """
    assert model.unet is not None and model.schedule is not None
    condition = jax.tree.map(lambda x: x[rows], embed(model, components, prompts, dtype=jnp.dtype(dtype)))
    null = jax.tree.map(
        lambda x: x[negative_rows], embed(model, components, negatives, dtype=jnp.dtype(dtype))
    )
    unet = UNet(model.unet, dtype=jnp.dtype(dtype))
    noise = initial_noise(seeds, indices, (*latent_size, model.unet.in_channels))
    denoise = guided(
        functools.partial(unet.apply, {"params": components["unet"]}), condition, null, guidance_scale
    )
    latents = SAMPLERS[sampler](denoise, noise, Schedule.create(model.schedule), steps)
    return to_pixels(components, latents, model=model, dtype=dtype)


def to_pixels(components: Components, latents: jax.Array, *, model: ModelConfig, dtype: str) -> jax.Array:
    """Latents [B, h, w, C] -> uint8 [B, H, W, 3]."""
    images = decode_latents(components, latents, model=model, dtype=dtype)
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def decode_latents(
    components: Components, latents: jax.Array, *, model: ModelConfig, dtype: str
) -> jax.Array:
    """Latents [B, h, w, C] -> images float32 [B, H, W, 3] in [-1, 1] (not clipped)."""
    assert model.vae is not None
    vae = VAE(model.vae, dtype=jnp.dtype(dtype))
    images = vae.apply({"params": components["vae"]}, latents / model.vae.scaling_factor, method="decode")
    return images.astype(jnp.float32)


def encode_images(components: Components, images: jax.Array, *, model: ModelConfig, dtype: str) -> jax.Array:
    """Images float32 [B, H, W, 3] in [-1, 1] -> latents float32 [B, h, w, C], the posterior's mean, scaled."""
    assert model.vae is not None
    vae = VAE(model.vae, dtype=jnp.dtype(dtype))
    mean, _ = vae.apply({"params": components["vae"]}, images, method="encode")
    return mean.astype(jnp.float32) * model.vae.scaling_factor


class Pipeline:
    """A bundle ready to draw: `Pipeline.load("tiny")(["a red circle"], num_images=4, seed=0)`."""

    def __init__(self, bundle: Bundle, *, dtype: str = "float32", mesh: Mesh | None = None) -> None:
        """dtype: compute dtype; mesh: where the bundle's components are sharded, if they are."""
        self.bundle = bundle
        self.dtype = dtype
        self.mesh = mesh
        static: dict[str, Any] = {"model": bundle.model, "dtype": dtype}
        self._generate = jax.jit(
            functools.partial(generate, **static), static_argnames=("steps", "sampler", "latent_size")
        )
        self._embed = jax.jit(functools.partial(embed, bundle.model, dtype=jnp.dtype(dtype)))
        self._decode = jax.jit(functools.partial(decode_latents, **static))
        self._encode = jax.jit(functools.partial(encode_images, **static))
        if bundle.model.unet is not None:
            unet = UNet(bundle.model.unet, dtype=jnp.dtype(dtype))
            self._denoise = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs))

    @classmethod
    def load(
        cls,
        name: str | Path = "tiny",
        *,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        cache: bool = True,
    ) -> Pipeline:
        """Loads a bundle by the name of an embedded one, or by its directory.

        cache: keep compiled programs on disk between runs (see `compilation_cache`).
        Raises UserError for an unknown or damaged bundle.
        """
        if cache:
            compilation_cache()
        return cls(load_bundle(name, mesh=mesh, dtype=dtype), dtype=dtype, mesh=mesh)

    @property
    def model(self) -> ModelConfig:
        return self.bundle.model

    def __call__(
        self,
        prompt: Any,
        *,
        negative: Any = None,
        num_images: int = 1,
        seed: int = 0,
        steps: int = 50,
        guidance_scale: float = 8.0,
        sampler: str = "plms",
        site: str | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> list[PIL.Image.Image]:
        """Draws `num_images` pictures of one prompt.

        prompt, negative: a string, Text, Image, picture, or a sequence of these (`Prompt.of`); image
        number i of a seed is the same picture whatever `num_images` is. site: where weights act
        ("decoder", "cross_attention", "both"); None takes the prompt's own. height, width: pixels;
        None takes the model's size. Raises UserError for input it cannot take.
        """
        if num_images < 1:
            raise UserError(f"num_images is {num_images}; at least 1 is needed")
        pixels = self.generate(
            self.bundle.to_batch([Prompt.of(prompt)], site=site),
            self.bundle.to_batch([None if negative is None else Prompt.of(negative)], site=site),
            seeds=np.full(num_images, check_seed(seed), np.uint32),
            indices=np.arange(num_images, dtype=np.int32),
            guidance_scale=guidance_scale,
            steps=steps,
            sampler=sampler,
            size=self.image_size(height, width),
        )
        return [PIL.Image.fromarray(image) for image in np.asarray(pixels)]

    def generate(
        self,
        prompts: PromptBatch,
        negatives: PromptBatch,
        *,
        seeds: np.ndarray,
        indices: np.ndarray,
        rows: np.ndarray | None = None,
        negative_rows: np.ndarray | None = None,
        guidance_scale: float | np.ndarray = 8.0,
        steps: int = 50,
        sampler: str = "plms",
        size: tuple[int, int] | None = None,
    ) -> jax.Array:
        """The batch form of `__call__`: uint8 [B, H, W, 3] on the device. `rows` and `negative_rows`
        say which prompt each image is made from (default: the first)."""
        self.bundle.need("unet", "vae")
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler {sampler!r}; accepted: {', '.join(SAMPLERS)}")
        check_steps(steps)
        scale = np.broadcast_to(np.asarray(guidance_scale, np.float32), seeds.shape)
        if not np.all(np.isfinite(scale)):
            raise UserError(f"the guidance scale is {guidance_scale}; it must be a finite number")
        first = np.zeros(len(seeds), np.int32)
        height, width = size or self.image_size()
        return self._generate(
            self.bundle.components,
            prompts,
            negatives,
            first if rows is None else rows,
            first if negative_rows is None else negative_rows,
            seeds,
            indices,
            scale,
            steps=steps,
            sampler=sampler,
            latent_size=(height // self._factor, width // self._factor),
        )

    def embed(self, prompt: Any, *, site: str | None = None) -> Condition:
        """The Condition of one prompt, hidden [1, S, D]; None is the null prompt."""
        return self._embed(self.bundle.components, self.bundle.to_batch([prompt], site=site))

    def denoise(self, latents: Any, t: Any, condition: Condition) -> jax.Array:
        """The UNet's noise prediction: latents [B, h, w, C], t [] or [B] in 0..999 -> eps [B, h, w, C]."""
        self.bundle.need("unet")
        latents = jnp.asarray(latents)
        timesteps = jnp.broadcast_to(jnp.asarray(t), (latents.shape[0],))
        return self._denoise(self.bundle.components["unet"], latents, timesteps, condition)

    def encode(self, images: Any) -> jax.Array:
        """Images -> scaled latents [B, h, w, C].

        images: [B, H, W, 3], float in [-1, 1] or uint8; or a sequence of pictures, which are resized
        (short side) and cropped to the model's size.
        """
        self.bundle.need("vae")
        if not hasattr(images, "ndim"):
            height, width = self.image_size()
            images = np.stack([to_vae_pixels(load_image(image), height, width) for image in images])
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1.0
        return self._encode(self.bundle.components, images)

    def decode(self, latents: Any) -> jax.Array:
        """Scaled latents [B, h, w, C] -> images float32 [B, H, W, 3], clipped to [-1, 1]."""
        self.bundle.need("vae")
        return jnp.clip(self._decode(self.bundle.components, jnp.asarray(latents)), -1.0, 1.0)

    @property
    def _factor(self) -> int:
        """Pixels a latent, along a side."""
        self.bundle.need("vae")
        assert self.model.vae is not None
        return 2 ** (len(self.model.vae.block_out_channels) - 1)

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels, the model's own where None. Raises UserError where they do not divide."""
        self.bundle.need("unet", "vae")
        assert self.model.unet is not None
        own = self.model.unet.sample_size * self._factor
        multiple = self._factor * 2 ** (len(self.model.unet.block_out_channels) - 1)
        size = (own if height is None else height, own if width is None else width)
        for name, value in zip(("height", "width"), size, strict=True):
            if value < multiple or value % multiple:
                raise UserError(f"{name} is {value}; accepted are positive multiples of {multiple}")
        return size


def check_seed(seed: int) -> int:
    """Raises UserError for a seed outside 0 .. 2**32 - 1."""
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed is {seed}; accepted are 0 to {2**32 - 1}")
    return seed


def check_steps(steps: int) -> int:
    """Raises UserError for a step count outside 1 .. 1000."""
    if not 1 <= steps <= 1000:
        raise UserError(f"steps is {steps}; accepted are 1 to 1000")
    return steps


def compilation_cache() -> Path:
    """Keeps compiled programs on disk, unless JAX was told where already. Returns the directory:
    $MVADER_CACHE, or $XDG_CACHE_HOME/mvader_jax, or ~/.cache/mvader_jax."""
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen:
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(os.environ.get("MVADER_CACHE") or home / "mvader_jax")
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return directory
