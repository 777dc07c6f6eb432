"""Bundle + prompts + seed -> images, in one compiled program: embed, sample, decode."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh, NamedSharding

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.diffusion.samplers import OWN, SAMPLERS, start_at
from mvader_jax.errors import UserError
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.images.read import load_image
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed
from mvader_jax.models.unet import UNet
from mvader_jax.parallel.processes import gather_rows
from mvader_jax.parallel.sharding import batch_sharding, replicated
from mvader_jax.prompt.elements import Prompt
from mvader_jax.sampling.generate import (
    Against,
    Init,
    decode_latents,
    encode_images,
    generate,
    image_features,
)
from mvader_jax.storage.bundle import Bundle, load_bundle
from mvader_jax.storage.programs import Program


class Pipeline:
    """A bundle ready to draw: `Pipeline.load("tiny")(["a red circle"], num_images=4, seed=0)`."""

    def __init__(self, bundle: Bundle, *, dtype: str = "float32", mesh: Mesh | None = None) -> None:
        """dtype: compute dtype; mesh: where the bundle's components are sharded, if they are: pictures
        are then drawn by all of its devices, a batch divided over its batch axes."""
        self.bundle = bundle
        self.dtype = dtype
        self.mesh = mesh
        static: dict[str, Any] = {"model": bundle.model, "dtype": dtype}
        # Small results that every process reads whole; pictures stay where they were drawn.
        whole: dict[str, Any] = {} if mesh is None else {"out_shardings": replicated(mesh)}
        by_row: dict[str, Any] = {} if mesh is None else {"out_shardings": batch_sharding(mesh, 4)}
        walk = functools.partial(generate, **static)
        self._generate = Program(walk, "generate", (bundle.model, dtype), **by_row)
        self._embed = jax.jit(functools.partial(embed, bundle.model, dtype=jnp.dtype(dtype)), **whole)
        self._features = jax.jit(functools.partial(image_features, **static), **whole)
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

    @property
    def compiled(self) -> int:
        """How many programs that draw pictures this pipeline has compiled: one a shape and setting."""
        return self._generate.compiled

    @property
    def shards(self) -> int:
        """The number of devices that a batch of pictures is divided over."""
        if self.mesh is None:
            return 1
        sharding = batch_sharding(self.mesh)
        axes = sharding.spec[0] or () if sharding.spec else ()
        names = (axes,) if isinstance(axes, str) else axes
        return int(np.prod([self.mesh.shape[name] for name in names], dtype=np.int64))

    def __call__(
        self,
        prompt: Any,
        *,
        negative: Any = None,
        negative_strength: float = 1.0,
        num_images: int = 1,
        seed: int = 0,
        steps: int = 50,
        guidance_scale: float = 8.0,
        sampler: str = "plms",
        site: str | None = None,
        balance: bool | None = None,
        height: int | None = None,
        width: int | None = None,
        init: Any = None,
        shares: Sequence[float] | None = None,
        strength: float = 1.0,
        eta: float = 0.0,
    ) -> list[PIL.Image.Image]:
        """Draws `num_images` pictures of one prompt.

        prompt, negative: a string, Text, Image, picture, or a sequence of these (`Prompt.of`); None is
        the null prompt. negative_strength: how far guidance leads away from the negative prompt in place
        of the null prompt: 0 not at all, 1 wholly, more is further. Image number i of a seed is the same
        picture whatever `num_images` is. site: where weights act ("decoder", "cross_attention", "both"),
        balance: whether they are shares (`Prompt`); None takes the prompt's own. height, width: pixels;
        None takes the model's size.
        init: a picture, or a list of pictures mixed by `shares` (default: equal ones, and they sum to 1),
        to start from: noised to `strength` (0: the picture itself; 1: noise alone) and denoised from
        there. eta: fresh noise of a stochastic sampler. Raises UserError for input it cannot take.
        """
        if num_images < 1:
            raise UserError(f"num_images is {num_images}; at least 1 is needed")
        size = self.image_size(height, width)
        check_strength(negative_strength)

        def laid_out(one: Any) -> PromptBatch:
            prompts = [None if one is None else Prompt.of(one)]
            return self.bundle.to_batch(prompts, site=site, balance=balance)

        # A strength of 0 or 1 is the null prompt or the negative one; others take both.
        base = negative if negative_strength == 1.0 else None
        against = None
        if negative is not None and negative_strength not in (0.0, 1.0):
            against = Against(laid_out(negative), None, np.full(num_images, negative_strength, np.float32))
        pixels = self.generate(
            laid_out(prompt),
            laid_out(base),
            seeds=np.full(num_images, check_seed(seed), np.uint32),
            indices=np.arange(num_images, dtype=np.int32),
            guidance_scale=guidance_scale,
            steps=steps,
            sampler=sampler,
            size=size,
            init=None if init is None else self.init_of(init, shares, num_images, size),
            strength=strength,
            against=against,
            eta=eta,
        )
        return [PIL.Image.fromarray(image) for image in gather_rows(pixels)]

    def init_of(
        self, pictures: Any, shares: Sequence[float] | None, count: int, size: tuple[int, int]
    ) -> Init:
        """`count` equal rows of an `Init`. Raises UserError where the shares do not fit the pictures."""
        chosen = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
        parts = (
            np.full(len(chosen), 1.0 / max(len(chosen), 1)) if shares is None else np.asarray(shares, float)
        )
        if not chosen or parts.shape != (len(chosen),):
            raise UserError(
                f"{len(chosen)} pictures to start from have {parts.size} shares; one each is needed"
            )
        if not np.all(parts >= 0) or abs(parts.sum() - 1.0) > 1e-6:
            raise UserError(f"the shares {parts.tolist()} are not numbers of at least 0 that sum to 1")
        pixels = np.stack([to_vae_pixels(picture, *size) for picture in chosen])
        return Init(
            np.repeat(pixels[None], count, axis=0), np.repeat(parts.astype(np.float32)[None], count, axis=0)
        )

    def generate(
        self,
        prompts: PromptBatch,
        negatives: PromptBatch | Condition,
        *,
        seeds: np.ndarray,
        indices: np.ndarray,
        rows: np.ndarray | None = None,
        negative_rows: np.ndarray | None = None,
        guidance_scale: float | np.ndarray = 8.0,
        steps: int = 50,
        sampler: str = "plms",
        size: tuple[int, int] | None = None,
        init: Init | None = None,
        strength: float = 1.0,
        against: Against | None = None,
        eta: float = 0.0,
    ) -> jax.Array:
        """The batch form of `__call__`: uint8 [B, H, W, 3] on the device, computed when it is read.

        rows, negative_rows: which prompt each image is made from (default: the first). negatives may be
        a Condition, already embedded. On a mesh every process passes the same arrays, and the result is
        divided over the batch axes; B that does not divide is filled up for the computation.
        """
        self.bundle.need("unet", "vae")
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler {sampler!r}; accepted: {', '.join(SAMPLERS)}")
        check_steps(steps)
        if eta and not SAMPLERS[sampler].stochastic:
            raise UserError(f"eta is {eta}, but the sampler {sampler} adds no noise; ddim does")
        scale = np.broadcast_to(np.asarray(guidance_scale, np.float32), seeds.shape)
        if not np.all(np.isfinite(scale)):
            raise UserError(f"the guidance scale is {guidance_scale}; it must be a finite number")
        height, width = size or self.image_size()
        count = len(seeds)
        missing = -count % self.shards

        def filled(tree: Any) -> Any:
            """Rows repeated until they divide over the mesh."""
            return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), tree)

        by_row = filled(
            (
                self._rows(rows, count, _count(prompts)),
                self._rows(negative_rows, count, _count(negatives)),
                seeds,
                indices,
                scale,
                init,
            )
        )
        if against is not None:
            own = self._rows(against.rows, count, _count(against.prompts))
            against = Against(against.prompts, filled(own), filled(against.strength))
        with self.on_mesh():
            pixels = self._generate(
                self.bundle.components,
                *self.placed((prompts, negatives, *by_row, against)),
                keep=SAMPLERS[sampler] is OWN.get(sampler),
                steps=steps,
                sampler=sampler,
                latent_size=(height // self._factor, width // self._factor),
                start=start_at(steps, strength) if init is not None else 0,
                eta=float(eta),
            )
            return pixels[:count] if missing else pixels

    def _rows(self, rows: Any, count: int, prompts: int) -> np.ndarray | None:
        """int32 [count]; None where every image is made from a prompt of its own, which needs no gathering."""
        chosen = np.zeros(count, np.int32) if rows is None else np.asarray(rows, np.int32)
        own = count == prompts and count % self.shards == 0 and np.array_equal(chosen, np.arange(count))
        return None if own else chosen

    def on_mesh(self) -> Any:
        """The context in which this pipeline's programs run."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def placed(self, tree: Any) -> Any:
        """Host arrays that every process holds whole, on the mesh: by row where the rows divide."""
        if self.mesh is None:
            return tree
        mesh, shards = self.mesh, self.shards

        def one(x: Any) -> jax.Array:
            host = np.asarray(x)
            divides = host.ndim > 0 and host.shape[0] % shards == 0
            sharding: NamedSharding = batch_sharding(mesh, host.ndim) if divides else replicated(mesh)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(one, tree)

    def embed(self, prompt: Any, *, site: str | None = None) -> Condition:
        """The Condition of one prompt, hidden [1, S, D]; None is the null prompt."""
        return self.embed_batch(self.bundle.to_batch([prompt], site=site))

    def embed_batch(self, batch: PromptBatch) -> Condition:
        """The Condition of every prompt of a batch."""
        with self.on_mesh():
            return self._embed(self.bundle.components, self.placed(batch))

    def features(self, pixels: np.ndarray) -> jax.Array:
        """The image encoder's features [B, T, C] of preprocessed images [B, H, W, 3]."""
        self.bundle.need("image_encoder")
        with self.on_mesh():
            return self._features(self.bundle.components, self.placed(pixels))

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


def _count(prompts: PromptBatch | Condition) -> int:
    return int((prompts.token_ids if isinstance(prompts, PromptBatch) else prompts.hidden).shape[0])


def check_strength(strength: float) -> float:
    """Raises UserError for a negative prompt's strength that is no finite number of at least 0."""
    if not 0.0 <= strength < np.inf:
        raise UserError(
            f"the negative prompt's strength is {strength}; accepted are finite numbers of at least 0"
        )
    return strength


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
