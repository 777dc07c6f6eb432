"""What a pipeline's methods take, checked before a program is traced: one sentence in place of a library's error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from mvader_jax.bounds import ComputeDtype, FrozenDtype
from mvader_jax.condition import Array, Condition, take
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import check_pixels
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.images.sources import held
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.parallel.sharding import MESH_AXES
from mvader_jax.prompt.elements import ImageSource, Prompt, PromptLike
from mvader_jax.sampling.drawing import Drawing
from mvader_jax.sampling.generate import Draws, InitImages, Prompted
from mvader_jax.sampling.placement import Placement
from mvader_jax.sampling.settings import SamplingSettings, StaticSettings, image_size
from mvader_jax.settings import convert
from mvader_jax.storage.bundle import Bundle

T = TypeVar("T")


def compute_dtype(value: Any) -> str:
    """Raises UserError for what nothing is computed in."""
    return str(convert(ComputeDtype, value, "dtype"))


def frozen_dtype(value: Any, dtype: str) -> str:
    """What parameters are kept in; None: `dtype`. Raises UserError for what they are not kept in."""
    return dtype if value is None else str(convert(FrozenDtype, value, "frozen_dtype"))


def instance(value: Any, kind: type[T], name: str, hint: str = "") -> T:
    """`value`. Raises UserError where it is of another kind; hint: how to come by one."""
    if not isinstance(value, kind):
        what = f"of type {type(value).__name__}" if len(repr(value)) > 40 else repr(value)
        raise UserError(f"{name} is {what}; expected a {kind.__name__}{hint}")
    return value


def mesh(value: Any) -> Mesh | None:
    """A mesh with the axes of this package. Raises UserError for another, as `jax.make_mesh` makes them."""
    found = optional(value, Mesh, "mesh")
    if found is None or (
        set(found.axis_names) <= set(MESH_AXES) and set(found.axis_types) == {AxisType.Auto}
    ):
        return found
    raise UserError(
        f"the mesh has the axes {', '.join(map(str, found.axis_names))}, each {found.axis_types[0].name}; expected one "
        "of mvader_jax.parallel.mesh.make_mesh"
    )


def optional(value: Any, kind: type[T], name: str) -> T | None:
    """The same of what may be None."""
    return None if value is None else instance(value, kind, name)


def array(value: Any, name: str, axes: Sequence[str | int], kinds: str = "f") -> Array:
    """`value` as an array of these axes: numbers are lengths, names stand for any.

    kinds: NumPy's letters of the types that are accepted, "f" for floats, "u" for uint8.
    Raises UserError for anything else.
    """
    shown = f"[{', '.join(map(str, axes))}]"
    try:
        found = value if isinstance(value, jax.Array) else np.asarray(value)
        shape, dtype = tuple(found.shape), found.dtype
    except Exception as error:  # a ragged list, a tensor on a GPU
        raise UserError(f"{name} is no array: {error}") from None
    wanted = [length if isinstance(axis, str) else axis for axis, length in zip(axes, shape, strict=False)]
    if len(shape) != len(axes) or list(shape) != wanted or 0 in shape:
        what = f"has shape {list(shape)}" if shape else f"is {value!r:.40}"
        raise UserError(f"{name} {what}; expected an array {shown}")
    known = ("f" * jax.numpy.issubdtype(dtype, np.floating)) or ("u" * (dtype == np.uint8)) or dtype.kind
    if known not in kinds:
        accepted = " or ".join({"f": "floats", "u": "uint8", "i": "whole numbers"}[kind] for kind in kinds)
        raise UserError(f"{name} holds {dtype}; expected {accepted}")
    return found


def latents(model: ModelConfig, value: Any) -> Array:
    """Latents [B, h, w, C] of the model. Raises UserError for anything else."""
    return array(value, "latents", ("B", "h", "w", model.require(VAEConfig).latent_channels))


def noisy_latents(model: ModelConfig, value: Any) -> Array:
    """The same as the UNet takes them: its sizes divide. Raises UserError for anything else."""
    unet = model.require(UNetConfig)
    found = array(value, "latents", ("B", "h", "w", unet.in_channels))
    if found.shape[1] % unet.multiple or found.shape[2] % unet.multiple:
        raise UserError(
            f"latents has shape {list(found.shape)}; height and width are multiples of {unet.multiple}"
        )
    return found


def timesteps(model: ModelConfig, value: Any, count: int) -> Array:
    """A timestep, or one for each of `count` rows. Raises UserError for anything else, as far as the host knows it."""
    last = model.require(ScheduleConfig).num_train_steps - 1
    shape = np.shape(value) if not isinstance(value, jax.Array) else value.shape
    found = array(value, "t", ("B",) if shape else (), "fiu")
    if shape not in ((), (1,), (count,)):
        raise UserError(
            f"t has {shape[0]} timesteps; expected one, or {count}, one for each row of the latents"
        )
    if isinstance(found, np.ndarray) and not np.all((found >= 0) & (found <= last)):
        raise UserError(f"t is {value!r:.40}; timesteps are 0 to {last}")
    return found


def condition(model: ModelConfig, value: Any, count: int) -> Condition:
    """A Condition of `count` rows; of one that has a single row all are the same. Raises UserError for anything else."""
    found = instance(value, Condition, "condition", ": pipe.embed(prompt) makes one")
    width = model.require(UNetConfig).cross_attention_dim
    hidden = array(found.hidden, "the condition's hidden", ("B", "S", width))
    if hidden.shape[0] not in (1, count):
        raise UserError(
            f"the condition has {hidden.shape[0]} rows; expected 1, or {count} as the latents have"
        )
    return found if hidden.shape[0] == count else take(found, np.zeros(count, np.int32))


def pixels(model: ModelConfig, value: Any) -> Array:
    """A person's pictures [B, H, W, 3], as the VAE takes them: its sizes divide. Raises UserError for anything else."""
    found, multiple = array(value, "images", ("B", "H", "W", 3), "fu"), model.require(VAEConfig).multiple
    if found.shape[1] % multiple or found.shape[2] % multiple:
        raise UserError(
            f"images has shape {list(found.shape)}; height and width are multiples of {multiple} "
            "(a list of pictures is resized)"
        )
    if not isinstance(found, jax.core.Tracer):
        check_pixels(np.asarray(found))
    return found


def encoder_pixels(model: ModelConfig, value: Any) -> Array:
    """Pictures [B, side, side, 3] as the image encoder takes them. Raises UserError for anything else."""
    side = model.require(ImageEncoderConfig).image_size
    return array(value, "pixels", ("B", side, side, 3))


def check_negative(model: ModelConfig, negative: bool) -> None:
    """Raises UserError for a negative prompt beside a UNet that guidance does not lead away from anything."""
    if negative and model.require(UNetConfig).distilled:
        raise UserError(
            "there is a negative prompt, but this UNet was distilled to few steps, and its guidance leads away from "
            "the empty prompt alone"
        )


def guidance(value: Any, count: int) -> Array | None:
    """A guidance scale as that of `count` rows; None where there is none. Raises UserError for what is no number."""
    found = convert(float | None, value, "guidance_scale")
    return None if found is None else np.full(count, found, np.float32)


def listed_files(value: Any, name: str) -> list[str | Path]:
    """Files of a list. Raises UserError for one that is given without a list."""
    if isinstance(value, (str, Path)) or not isinstance(value, Sequence):
        raise UserError(f"{name} is {value!r:.80}; expected a list of files, as in [{str(value)!r:.40}]")
    return list(value)


def listed(pictures: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """Pictures of a list, or the one that is given alone."""
    return list(pictures) if isinstance(pictures, (list, tuple)) else [cast("ImageSource", pictures)]


def asked(
    model: ModelConfig,
    prompt: PromptLike | None,
    settings: SamplingSettings,
    negative: PromptLike | None = None,
    init_image: ImageSource | Sequence[ImageSource] | None = None,
    shares: Sequence[float] | None = None,
) -> Drawing:
    """What is to be drawn. Raises UserError where its parts do not go together, or with the model."""
    strength = settings.negative_strength
    if negative is None and strength != 1.0:
        raise UserError(f"negative_strength is {strength:g}, but there is no negative prompt")
    check_negative(model, negative is not None)
    if init_image is None and (settings.strength is not None or shares is not None):
        raise UserError("strength and shares belong to an init_image, but there is none to start from")
    shown, away = (None if one is None else Prompt.of(one) for one in (prompt, negative))
    sources, parts = ((), None) if init_image is None else starts(init_image, shares)
    return Drawing(shown, settings, away, 0, sources, parts)


def draws(
    bundle: Bundle,
    placement: Placement,
    drawing: Drawing,
    numbered: list[tuple[int, int]],
    *,
    elements: bool = False,
) -> tuple[Draws, StaticSettings]:
    """What is drawn of a drawing with these seeds and indices. elements: whether the prompt's elements are marked."""
    settings, strength = drawing.settings, drawing.settings.negative_strength
    # Filled up with the last one: the same program draws 3 pictures and 4, 5 and 8.
    filled = numbered + numbered[-1:] * (placement.rounded(len(numbered)) - len(numbered))

    def laid_out(one: Prompt | None, **marks: bool) -> Prompted:
        meaning = {name: getattr(settings, name) for name in ("site", "balance", "long_prompts")}
        return Prompted(bundle.to_batch([one], **meaning, **marks))

    # A strength of 0 is the null prompt, of 1 the negative one in its place; others take both.
    away = drawing.negative
    both = away is not None and strength not in (0.0, 1.0)
    init = None
    if drawing.init_images:
        size = image_size(bundle.model, settings.height, settings.width)
        init = init_images(drawing.init_images, drawing.shares, len(filled), size)
    found = Draws.of(
        settings,
        laid_out(drawing.prompt, elements=elements),
        laid_out(away if strength == 1.0 else None),
        np.array([index for _, index in filled], np.int32),
        seeds=np.array([seed for seed, _ in filled], np.uint32),
        negative=laid_out(away) if both else None,
        init=init,
    )
    return found, settings.static(bundle.model, from_image=init is not None, changed=bundle.changed)


def starts(
    pictures: ImageSource | Sequence[ImageSource], shares: Sequence[float] | None
) -> tuple[tuple[ImageSource, ...], tuple[float, ...]]:
    """Pictures to start from, and the share of each. Raises UserError where the shares do not fit them."""
    chosen = tuple(held(picture) for picture in listed(pictures))
    try:
        parts = (
            np.full(len(chosen), 1.0 / max(len(chosen), 1)) if shares is None else np.asarray(shares, float)
        )
    except (TypeError, ValueError):
        raise UserError(f"shares is {shares!r:.80}; expected a number for each picture") from None
    if not chosen or parts.shape != (len(chosen),):
        raise UserError(f"{len(chosen)} pictures to start from have {parts.size} shares; one each is needed")
    if not np.all(parts >= 0) or abs(parts.sum() - 1.0) > 1e-6:
        raise UserError(f"the shares {parts.tolist()} are not numbers of at least 0 that sum to 1")
    return chosen, tuple(parts.tolist())


def init_images(
    pictures: ImageSource | Sequence[ImageSource],
    shares: Sequence[float] | None,
    count: int,
    size: tuple[int, int],
) -> InitImages:
    """`count` equal rows of pictures to start from. Raises UserError as `starts`."""
    chosen, parts = starts(pictures, shares)
    pixels = np.stack([to_vae_pixels(picture, *size) for picture in chosen])
    rows = np.repeat(np.asarray(parts).astype(np.float32)[None], count, axis=0)
    return InitImages(np.repeat(pixels[None], count, axis=0), rows)
