"""The walk from prompts to pictures as pure functions: embed, sample, decode."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8, UInt32

from mvader_jax.condition import Array, Condition, PromptBatch, shapes, take
from mvader_jax.diffusion.balance import balanced, nothing_moved
from mvader_jax.diffusion.guidance import Eps, alone, guided
from mvader_jax.diffusion.levels import Kept, Levels, Loop, Together
from mvader_jax.diffusion.noise import initial_noise, sampler_keys
from mvader_jax.diffusion.pndm import Denoise
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.savings import Reuse, guided_within, guides
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_uint8
from mvader_jax.models.attention_maps import element_maps, element_shares
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed_rows
from mvader_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from mvader_jax.models.unet import UNet, UNetConfig, with_keys_values
from mvader_jax.models.unet_blocks import ATTENTION
from mvader_jax.models.vae import VAE, VAEConfig
from mvader_jax.parallel.sharding import shapes_alone
from mvader_jax.sampling.seeds import one_seed
from mvader_jax.sampling.settings import WHOLE_CALLS, SamplingSettings, StaticSettings

Components = Mapping[str, Any]


@flax.struct.dataclass
class Prompted:
    """Prompts, and which of them each picture is made from.

    prompts: P rows laid out, or their Condition. rows: int32 [B]; None where picture i is made from prompt i.
    """

    prompts: PromptBatch | Condition
    rows: Int[Array, " B"] | None = None

    __repr__ = shapes

    @property
    def count(self) -> int:
        """P."""
        prompts = self.prompts
        return int((prompts.token_ids if isinstance(prompts, PromptBatch) else prompts.hidden).shape[0])


@flax.struct.dataclass
class InitImages:
    """Pictures that sampling starts from in place of pure noise.

    pixels: float32 [B, J, H, W, 3] in [-1, 1]; shares: float32 [B, J], the part that each of a row's J
    pictures has in the latents it starts from. One picture of share 1 is img2img.
    """

    pixels: Float32[Array, "B J H W 3"]
    shares: Float32[Array, "B J"]

    __repr__ = shapes


@flax.struct.dataclass
class Draws:
    """What B pictures are drawn from: all that may change without another compiled program.

    prompt: what they show. base: what guidance leads away from: the null prompt, or a negative prompt in its
    place. seeds: uint32 [B], indices: int32 [B]: a picture's noise depends on these two alone.
    guidance_scale: float32 [B]. negative: negative prompts beside the null prompts that `base` then holds;
    negative_strength: float32 [B], how far each of them replaces its null prompt (`guided`). init: what
    sampling starts from; start: int32 [], the step at which it does, None for that of `StaticSettings`.
    """

    prompt: Prompted
    base: Prompted
    seeds: UInt32[Array, " B"]
    indices: Int[Array, " B"]
    guidance_scale: Float32[Array, " B"]
    negative: Prompted | None = None
    negative_strength: Float32[Array, " B"] | None = None
    init: InitImages | None = None
    start: Int[Array, ""] | None = None

    __repr__ = shapes

    @classmethod
    def of(
        cls,
        settings: SamplingSettings,
        prompt: Prompted,
        base: Prompted,
        indices: Int[np.ndarray, " B"],
        *,
        seeds: UInt32[np.ndarray, " B"] | None = None,
        negative: Prompted | None = None,
        init: InitImages | None = None,
    ) -> Draws:
        """Pictures number `indices` of their `seeds`, all by the same settings; default, its one seed's.

        Raises UserError where there are several and `seeds` does not say whose each is.
        """
        count = len(indices)
        strength = None if negative is None else np.full(count, settings.negative_strength, np.float32)
        return cls(
            prompt,
            base,
            np.full(count, one_seed(settings.seed), np.uint32) if seeds is None else seeds,
            np.asarray(indices, np.int32),
            np.full(count, settings.guidance_scale, np.float32),
            negative,
            strength,
            init,
            traced_start(settings, init is not None),
        )


def traced_start(settings: SamplingSettings, from_image: bool) -> Int[np.ndarray, ""] | None:
    """`Draws.start`: None where sampling starts from noise, or the sampler takes its start from `StaticSettings`."""
    walks = from_image and SAMPLERS[settings.sampler].walks
    return np.asarray(settings.start(), np.int32) if walks else None


@shapes_alone()
def generate(
    components: Components, draws: Draws, *, model: ModelConfig, static: StaticSettings, dtype: str
) -> tuple[UInt8[jax.Array, "B H W 3"], Bool[jax.Array, " B"]]:
    """The whole walk from prompts to pictures; pure, jitted once per shape and `static`.

    Every prompt is embedded once, however many pictures are made from it. The latents live inside the program
    alone, so that they are never held twice. Returns the pictures, uint8 [B, H, W, 3], and whether each came
    out finite, bool [B]: what a picture shows that did not is meaningless.
    """
    latents = sampled(components, draws, model=model, static=static, dtype=dtype)
    return finished(components, latents, model=model, dtype=dtype)


def sampled(
    components: Components,
    draws: Draws,
    *,
    model: ModelConfig,
    static: StaticSettings,
    dtype: str,
    seen: Callable[[Denoise, Levels], Denoise] | None = None,
    loop: Loop | None = None,
    looked: Kept | None = None,
) -> Float[jax.Array, "B h w C"]:
    """The latents of the pictures. seen: what stands between the sampler and the model; loop: see `Levels`; looked: where
    the attention of each call is added up (`attended`)."""
    method = SAMPLERS[static.sampler]
    levels = method.levels(model.require(ScheduleConfig), static.steps)[static.start :]
    seeds, indices = jnp.asarray(draws.seeds), jnp.asarray(draws.indices)
    latents = initial_noise(seeds, indices, (*static.latent_size, model.require(UNetConfig).in_channels))
    if draws.start is not None:
        levels = levels.late(jnp.asarray(draws.start))
    if draws.init is not None:
        clean = mixed_latents(components, draws.init, model=model, dtype=dtype)
        latents = levels.noised(clean, latents)
    keys = sampler_keys(seeds, indices) if method.draws(static.eta) else None
    denoise, kept = denoiser(
        components, draws, latents, levels, model=model, static=static, dtype=jnp.dtype(dtype), looked=looked
    )
    levels = dataclasses.replace(levels, loop=loop, kept=kept)
    return method(seen(denoise, levels) if seen else denoise, latents, levels, eta=static.eta, keys=keys)


@shapes_alone()
def attended(
    components: Components, draws: Draws, *, model: ModelConfig, static: StaticSettings, dtype: str
) -> tuple[UInt8[jax.Array, "B H W 3"], Bool[jax.Array, " B"], Float32[jax.Array, "B E h w"]]:
    """`generate`'s results, and the attention that each element of the prompts got at each place of the latents: the mean
    of all calls of the model. The prompts mark their elements."""
    elements = draws.prompt.prompts.elements
    assert elements is not None
    shape = (len(draws.seeds), elements.shape[-1], *static.latent_size)
    looked = Kept((jnp.zeros(shape, jnp.float32), jnp.zeros((), jnp.float32)))
    latents = sampled(components, draws, model=model, static=static, dtype=dtype, looked=looked)
    total, calls = looked.value
    return *finished(components, latents, model=model, dtype=dtype), total / jnp.maximum(calls, 1)


def finished(
    components: Components, latents: Float[jax.Array, "B h w C"], *, model: ModelConfig, dtype: str
) -> tuple[UInt8[jax.Array, "B H W 3"], Bool[jax.Array, " B"]]:
    """Latents -> what `generate` returns."""
    images = decode_latents(components, latents, model=model, dtype=dtype)
    finite = jnp.isfinite(images).all((1, 2, 3)) & jnp.isfinite(latents).all((1, 2, 3))
    return to_uint8(images), finite


def denoiser(
    components: Components,
    draws: Draws,
    latents: Float[jax.Array, "B h w C"],
    levels: Levels,
    *,
    model: ModelConfig,
    static: StaticSettings,
    dtype: jnp.dtype,
    looked: Kept | None = None,
) -> tuple[Denoise, Kept | None]:
    """The UNet under guidance, its conditions embedded and a row per picture; and what it keeps between calls."""
    draws = embedded(components, draws, model=model, dtype=dtype)
    unet, params = UNet(model.require(UNetConfig), dtype=dtype), {"params": components["unet"]}
    scale = jnp.asarray(draws.guidance_scale)
    condition = _by_picture(draws.prompt)
    if unet.config.distilled:
        few, kept = _balanced(functools.partial(unet.apply, params, guidance=scale), [condition], looked)
        return alone(few, condition), kept
    base = _by_picture(draws.base)
    against = () if draws.negative is None else (_by_picture(draws.negative), draws.negative_strength)
    eps, kept = _balanced(functools.partial(unet.apply, params), [base, *against[:1], condition], looked)
    where = guides(levels, static.guidance_interval)

    def ways(eps: Eps) -> tuple[Denoise, Denoise]:
        return guided(eps, condition, base, scale, *against), alone(eps, condition)

    if static.reuse == 1:
        whole, cheap = ways(eps)
        return (whole if where.all() else guided_within(whole, cheap, where, kept)), kept
    if kept is not None:
        raise UserError(WHOLE_CALLS)

    def deep_eps(*inputs: Any) -> tuple[jax.Array, Any]:
        predicted, left = unet.apply(params, *inputs, mutable=["intermediates"])
        return cast(jax.Array, predicted), next(iter(jax.tree.leaves(left)), None)

    reuse = Reuse(deep_eps, static.reuse)
    return reuse.denoise(*ways(reuse.eps), latents, None if where.all() else where), reuse.kept


def _balanced(
    apply: Callable[..., Any], conditions: list[Condition], looked: Kept | None
) -> tuple[Eps, Kept | None]:
    """A UNet's `apply` under thetas that move, and these; as it is where no condition wants shares. looked: where the
    attention that the last condition's elements get is added up, if anywhere."""
    moved = nothing_moved(conditions)
    if moved is None and looked is None:
        return cast(Eps, apply), None

    def observed(*inputs: Any) -> tuple[jax.Array, Any]:
        predicted, left = apply(*inputs, mutable=[ATTENTION])
        if looked is not None:
            total, calls = looked.value
            rows, count = total.shape[:2]
            looked.value = total + element_maps(left, inputs[0].shape[1:3])[-rows:, :count], calls + 1
        return predicted, element_shares(left) if ATTENTION in left else None

    if moved is None:
        return lambda *inputs: observed(*inputs)[0], looked
    return balanced(observed, moved), moved if looked is None else Together(moved, looked)


def embedded(components: Components, draws: Draws, *, model: ModelConfig, dtype: jnp.dtype) -> Draws:
    """The draws, every prompt of theirs that the UNet reads a Condition with its keys and values: once for all steps
    and all of its pictures."""
    read = ("prompt",) if model.require(UNetConfig).distilled else ("prompt", "base", "negative")
    names = [name for name in read if getattr(draws, name) is not None]
    kinds = {name: getattr(draws, name) for name in names}
    batches = [kind.prompts for kind in kinds.values() if isinstance(kind.prompts, PromptBatch)]
    made = iter(embed_rows(model, components, batches, dtype=dtype) if batches else ())
    for name, kind in kinds.items():
        condition = next(made) if isinstance(kind.prompts, PromptBatch) else kind.prompts
        if condition.keys_values is None:
            condition = with_keys_values(model.require(UNetConfig), components["unet"], condition, dtype)
        kinds[name] = dataclasses.replace(kind, prompts=condition)
    return dataclasses.replace(draws, **kinds)


def _by_picture(kind: Prompted) -> Condition:
    """A row for each picture, of prompts that are embedded."""
    assert isinstance(kind.prompts, Condition)
    return kind.prompts if kind.rows is None else take(kind.prompts, jnp.asarray(kind.rows))


def mixed_latents(
    components: Components, init: InitImages, *, model: ModelConfig, dtype: str
) -> Float32[jax.Array, "B h w C"]:
    """The convex combination of each row's pictures, in latents."""
    batch, count = init.pixels.shape[:2]
    flat = jnp.asarray(init.pixels).reshape(batch * count, *init.pixels.shape[2:])
    latents = encode_images(components, flat, model=model, dtype=dtype)
    latents = latents.reshape(batch, count, *latents.shape[1:])
    return jnp.einsum("bj,bjhwc->bhwc", init.shares, latents)


def decode_latents(
    components: Components, latents: Float[jax.Array, "B h w C"], *, model: ModelConfig, dtype: str
) -> Float32[jax.Array, "B H W 3"]:
    """Latents -> images in [-1, 1] (not clipped)."""
    config = model.require(VAEConfig)
    latents = latents / config.scaling_factor
    images = VAE(config, dtype=jnp.dtype(dtype)).apply(
        {"params": components["vae"]}, latents, method="decode"
    )
    return images.astype(jnp.float32)


def encode_images(
    components: Components, images: Float[jax.Array, "B H W 3"], *, model: ModelConfig, dtype: str
) -> Float32[jax.Array, "B h w C"]:
    """Images in [-1, 1] -> latents, the posterior's mean, scaled."""
    config = model.require(VAEConfig)
    vae = VAE(config, dtype=jnp.dtype(dtype))
    mean, _ = vae.apply({"params": components["vae"]}, images, method="encode")
    return mean.astype(jnp.float32) * config.scaling_factor


def image_features(
    components: Components, images: Float32[Array, "B H W 3"], *, model: ModelConfig, dtype: str
) -> Float[jax.Array, "B T C"]:
    """Preprocessed images -> the encoder's features, as `PromptBatch.pixels` may hold them in place of the
    images."""
    encoder = ImageEncoder(model.require(ImageEncoderConfig), jnp.dtype(dtype))
    return encoder.apply({"params": components["image_encoder"]}, images)
