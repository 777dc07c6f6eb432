"""Bundle + prompts + seed -> images, in one compiled program: embed, sample, decode."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float32, Num, UInt8

from mvader_jax.condition import Array, Condition, PromptBatch
from mvader_jax.diffusion.samplers import OWN, SAMPLERS
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_float
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.images.read import load_image
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed
from mvader_jax.models.unet import UNet
from mvader_jax.parallel.processes import gather_rows
from mvader_jax.prompt.elements import ImageSource, Prompt, PromptLike
from mvader_jax.sampling.generate import (
    Draws,
    InitImages,
    Prompted,
    decode_latents,
    encode_images,
    generate,
    image_features,
)
from mvader_jax.sampling.pictures import DRAWN, Pictures
from mvader_jax.sampling.placement import Placement
from mvader_jax.sampling.settings import SamplingSettings, StaticSettings, image_count, image_size
from mvader_jax.storage.bundle import Bundle, load_bundle, parameter_count
from mvader_jax.storage.programs import Program, compilation_cache


class NotFiniteError(UserError):
    """Some pictures hold NaN or infinity. pictures: {index: the picture} of those that do not."""

    def __init__(self, count: int, pictures: Mapping[int, PIL.Image.Image]) -> None:
        bad = [str(index) for index in range(count) if index not in pictures]
        super().__init__(not_finite(f"picture{'s' * (len(bad) > 1)} {', '.join(bad)}"))
        self.pictures = dict(pictures)


def not_finite(what: str) -> str:
    """The sentence that says so."""
    return (
        f"{what}: NaN or infinity arose on the way, so nothing is shown; the guidance scale may be too large, "
        "or the bundle's weights are damaged"
    )


class Pipeline:
    """A bundle ready to draw: `Pipeline.load("tiny")(["a red circle"], num_images=4, seed=0)`."""

    def __init__(self, bundle: Bundle, *, dtype: str = "float32", mesh: Mesh | None = None) -> None:
        """dtype: compute dtype; mesh: where the bundle's components are sharded, if they are: pictures
        are then drawn by all of its devices, a batch divided over its batch axes."""
        self.bundle = bundle
        self.dtype = dtype
        self.placement = Placement(mesh)
        fixed: dict[str, Any] = {"model": bundle.model, "dtype": dtype}
        whole = self.placement.whole()
        walk = functools.partial(generate, **fixed)
        self._generate = Program(walk, "generate", (bundle.model, dtype), **self.placement.by_row(4, 1))
        self._embed = jax.jit(functools.partial(embed, bundle.model, dtype=jnp.dtype(dtype)), **whole)
        self._features = jax.jit(functools.partial(image_features, **fixed), **whole)
        self._decode = jax.jit(functools.partial(decode_latents, **fixed))
        self._encode = jax.jit(functools.partial(encode_images, **fixed))
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
        cache: bool = False,
    ) -> Pipeline:
        """Loads a bundle by the name of an embedded one, or by its directory.

        cache: call `compilation_cache` first, which changes JAX's settings for the whole process.
        Raises UserError for an unknown or damaged bundle.
        """
        if cache:
            compilation_cache()
        return cls(load_bundle(name, mesh=mesh, dtype=dtype), dtype=dtype, mesh=mesh)

    def __repr__(self) -> str:
        model, mesh = self.model, self.placement.mesh
        size = "" if model.unet is None or model.vae is None else " {} x {},".format(*image_size(model))
        count = sum(parameter_count(tree) for tree in self.bundle.components.values())
        where = "" if mesh is None else f" on {mesh.size} devices"
        return f"Pipeline({model.embedder},{size} {count:,} parameters, {self.dtype}{where})"

    @property
    def model(self) -> ModelConfig:
        return self.bundle.model

    @property
    def compiled(self) -> int:
        """How many programs that draw pictures this pipeline has compiled: one per shape and `static`."""
        return self._generate.compiled

    @property
    def shards(self) -> int:
        """The number of devices that a batch of pictures is divided over."""
        return self.placement.shards

    def __call__(
        self,
        prompt: PromptLike | None,
        settings: SamplingSettings | None = None,
        *,
        negative: PromptLike | None = None,
        num_images: int = 1,
        init_image: ImageSource | Sequence[ImageSource] | None = None,
        shares: Sequence[float] | None = None,
        **changes: Any,
    ) -> Pictures:
        """Draws `num_images` pictures of one prompt: `pipe("a red hat", steps=20, seed=3, num_images=4)`.

        prompt, negative: a string, Text, Image, picture, or a sequence of these (`Prompt.of`); None is
        the null prompt. settings: how to draw (default, the paper's way); changes: its fields by name.
        init_image: a picture to start from, or a list of pictures mixed by `shares` (default: equal ones, and
        they sum to 1): noised to `strength` and denoised from there.
        Raises UserError for input it cannot take, and NotFiniteError, which holds the good pictures, where
        NaN or infinity arose in others.
        """
        if "init" in changes:  # the name of before
            init_image = changes.pop("init")
        settings = (settings or SamplingSettings()).changed(**changes)
        count = image_count(num_images)
        self.bundle.need("unet", "vae")
        strength = settings.negative_strength
        if negative is None and strength != 1.0:
            raise UserError(f"negative_strength is {strength:g}, but there is no negative prompt")
        if init_image is None and (settings.strength is not None or shares is not None):
            raise UserError("strength and shares belong to an init_image, but there is none to start from")

        def laid_out(one: PromptLike | None) -> Prompted:
            prompts = [None if one is None else Prompt.of(one)]
            return Prompted(self.bundle.to_batch(prompts, site=settings.site, balance=settings.balance))

        # A strength of 0 is the null prompt, of 1 the negative one in its place; others take both.
        both = negative is not None and strength not in (0.0, 1.0)
        init = None
        if init_image is not None:
            size = image_size(self.model, settings.height, settings.width)
            init = init_images(init_image, shares, count, size)
        draws = Draws.of(
            settings,
            laid_out(prompt),
            laid_out(negative if strength == 1.0 else None),
            np.arange(count),
            negative=laid_out(negative) if both else None,
            init=init,
        )
        pixels, finite = self.generate(draws, settings.static(self.model, from_image=init is not None))
        pictures = Pictures(PIL.Image.fromarray(image) for image in gather_rows(pixels))
        about = _recorded(settings, prompt, negative)
        for index, picture in enumerate(pictures):
            picture.info[DRAWN] = {**about, "index": index}
        whole = gather_rows(finite)
        good = {number: picture for number, picture in enumerate(pictures) if whole[number]}
        if len(good) < count:
            raise NotFiniteError(count, good)
        return pictures

    def generate(
        self, draws: Draws, static: StaticSettings
    ) -> tuple[UInt8[jax.Array, "B H W 3"], Bool[jax.Array, " B"]]:
        """Many prompts at once: pictures, and whether each is finite; on the device, computed when they are
        read.

        draws: host arrays; where an entry names no rows, all pictures are made from its one prompt, or each
        from its own. On a mesh every process passes the same arrays, and the result is divided over the batch
        axes; B that does not divide is filled up for the computation.
        """
        self.bundle.need("unet", "vae")
        count = len(draws.seeds)
        with self.placement.active():
            pixels, finite = self._generate(
                self.bundle.components,
                self.placement.placed(self.placement.filled(draws)),
                keep=SAMPLERS[static.sampler] is OWN.get(static.sampler),
                static=static,
            )
            return (pixels, finite) if count == pixels.shape[0] else (pixels[:count], finite[:count])

    def embed(self, prompt: PromptLike | None, *, site: str | None = None) -> Condition:
        """The Condition of one prompt, hidden [1, S, D]; None is the null prompt."""
        return self.embed_batch(self.bundle.to_batch([prompt], site=site))

    def embed_batch(self, batch: PromptBatch) -> Condition:
        """The Condition of every prompt of a batch."""
        with self.placement.active():
            return self._embed(self.bundle.components, self.placement.placed(batch))

    def features(self, pixels: Float32[Array, "B H W 3"]) -> Float[jax.Array, "B T C"]:
        """The image encoder's features of preprocessed images."""
        self.bundle.need("image_encoder")
        with self.placement.active():
            return self._features(self.bundle.components, self.placement.placed(pixels))

    def denoise(
        self,
        latents: Float[Array, "B h w C"],
        t: Num[Array, ""] | Num[Array, " B"] | float,
        condition: Condition,
    ) -> Float[jax.Array, "B h w C"]:
        """The UNet's noise prediction eps; t: timesteps, 0 to 999."""
        self.bundle.need("unet")
        latents = jnp.asarray(latents)
        timesteps = jnp.broadcast_to(jnp.asarray(t), (latents.shape[0],))
        return self._denoise(self.bundle.components["unet"], latents, timesteps, condition)

    def encode(self, images: Num[Array, "B H W 3"] | Sequence[ImageSource]) -> Float32[jax.Array, "B h w C"]:
        """Images -> scaled latents.

        images: an array, float in [-1, 1] or uint8; or a sequence of pictures, which are resized
        (short side) and cropped to the model's size.
        """
        self.bundle.need("vae")
        if not hasattr(images, "ndim"):
            height, width = image_size(self.model)
            images = np.stack([to_vae_pixels(load_image(image), height, width) for image in images])
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = to_float(images)
        return self._encode(self.bundle.components, images)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float32[jax.Array, "B H W 3"]:
        """Scaled latents -> images, clipped to [-1, 1]."""
        self.bundle.need("vae")
        return jnp.clip(self._decode(self.bundle.components, jnp.asarray(latents)), -1.0, 1.0)


def _recorded(
    settings: SamplingSettings, prompt: PromptLike | None, negative: PromptLike | None
) -> dict[str, Any]:
    """What a picture is drawn with, as JSON values."""
    shown, away = (None if one is None else Prompt.of(one) for one in (prompt, negative))
    if shown is not None:
        balance = shown.balance if settings.balance is None else settings.balance
        settings = settings.changed(site=settings.site or shown.site, balance=balance)
    parts = {"prompt": shown, "negative": away}
    return {
        **{key: [] if one is None else one.to_json() for key, one in parts.items()},
        **settings.recorded(),
    }


def init_images(
    pictures: ImageSource | Sequence[ImageSource],
    shares: Sequence[float] | None,
    count: int,
    size: tuple[int, int],
) -> InitImages:
    """`count` equal rows of pictures to start from. Raises UserError where the shares do not fit them."""
    chosen: list[ImageSource] = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]  # type: ignore[list-item]
    parts = np.full(len(chosen), 1.0 / max(len(chosen), 1)) if shares is None else np.asarray(shares, float)
    if not chosen or parts.shape != (len(chosen),):
        raise UserError(f"{len(chosen)} pictures to start from have {parts.size} shares; one each is needed")
    if not np.all(parts >= 0) or abs(parts.sum() - 1.0) > 1e-6:
        raise UserError(f"the shares {parts.tolist()} are not numbers of at least 0 that sum to 1")
    pixels = np.stack([to_vae_pixels(picture, *size) for picture in chosen])
    rows = np.repeat(parts.astype(np.float32)[None], count, axis=0)
    return InitImages(np.repeat(pixels[None], count, axis=0), rows)
