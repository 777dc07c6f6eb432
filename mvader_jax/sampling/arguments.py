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
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.parallel.sharding import MESH_AXES
from mvader_jax.prompt.elements import ImageSource
from mvader_jax.sampling.generate import InitImages
from mvader_jax.settings import convert

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


def init_images(
    pictures: ImageSource | Sequence[ImageSource],
    shares: Sequence[float] | None,
    count: int,
    size: tuple[int, int],
) -> InitImages:
    """`count` equal rows of pictures to start from. Raises UserError where the shares do not fit them."""
    chosen = listed(pictures)
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
    pixels = np.stack([to_vae_pixels(picture, *size) for picture in chosen])
    rows = np.repeat(parts.astype(np.float32)[None], count, axis=0)
    return InitImages(np.repeat(pixels[None], count, axis=0), rows)
