"""The networks that judge, read from bundles: what turns a picture into features, in batches over a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from mvader_jax.errors import UserError
from mvader_jax.images.names import READABLE
from mvader_jax.images.preprocess import clip_preprocess
from mvader_jax.images.read import load_image
from mvader_jax.models.clip_vision import ClipProjectionsConfig, ClipVisionConfig
from mvader_jax.models.inception import Inception, InceptionConfig
from mvader_jax.parallel.sharding import Tree
from mvader_jax.prompt.elements import ImageSource, Prompt, Text
from mvader_jax.sampling.placement import Placement
from mvader_jax.scores import clip
from mvader_jax.scores.preprocess import RESIZES
from mvader_jax.storage.bundle import Bundle, load_bundle

#: What a file is called that makes such a bundle, for the sentence that asks for it.
_FILES = {
    "inception": "pt_inception-2015-12-05-6726825d.pth",
    "clip": "hf:openai/clip-vit-large-patch14-336",
}
#: What of a bundle each of them is.
COMPONENTS = {"inception": ("inception",), "clip": clip.COMPONENTS}


@dataclasses.dataclass(frozen=True)
class Network:
    """width: features of a picture. read: a picture to pixels, on the host, in any thread. embed: a batch of them to
    features, on the devices, not waited for. about: all that shapes features beside the picture.
    """

    name: str
    width: int
    read: Callable[[ImageSource], Float32[np.ndarray, "S S 3"]]
    embed: Callable[[Float32[np.ndarray, "N S S 3"]], jax.Array]
    about: dict[str, Any]


def check_named(name: str, bundle: str | None) -> str:
    """The bundle of one of COMPONENTS. Raises UserError, saying how to make one, where none was named."""
    if bundle is None:
        raise UserError(
            f"these scores need {name}'s weights: name a bundle with --{name}; `mvader convert {_FILES[name]} "
            f"bundles/{name}` makes one"
        )
    return bundle


def load_judge(name: str, bundle: str | None, mesh: Mesh | None) -> Bundle:
    """Read, in float32. Raises UserError as `check_named` and `load_bundle`."""
    return load_bundle(check_named(name, bundle), components=COMPONENTS[name], mesh=mesh, dtype="float32")


def _identity(bundle: Bundle) -> dict[str, str]:
    """What tells these weights from others: hashes, where the bundle has them."""
    return {name: str(record.get("sha256", "")) for name, record in sorted(bundle.records.items())}


def _program(
    place: Placement, function: Callable[[Any, jax.Array], jax.Array], params: Tree
) -> Callable[[np.ndarray], jax.Array]:
    run = jax.jit(function, **place.whole())

    def embed(rows: np.ndarray) -> jax.Array:
        missing = -len(rows) % place.shards
        if not missing:
            with place.active():
                return run(params, place.placed(rows))
        # What does not divide would be computed whole by every device.
        return embed(np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]))[: len(rows)]

    return embed


def inception(bundle: Bundle, mesh: Mesh | None, resize: str) -> Network:
    """Features of the last pool, 2048. resize: one of RESIZES. Raises UserError for another."""
    if resize not in RESIZES:
        raise UserError(f"unknown resize {resize!r}; accepted: {', '.join(RESIZES)}")
    config, how = bundle.model.require(InceptionConfig), RESIZES[resize]

    def read(source: ImageSource) -> np.ndarray:
        return how.pixels(np.asarray(load_image(source)), config.image_size)

    def features(params: Any, pixels: jax.Array) -> jax.Array:
        return Inception(config).apply({"params": params["inception"]}, pixels)[0]

    embed = _program(Placement(mesh), features, bundle.components)
    return Network("inception", config.width, read, embed, {**_identity(bundle), "resize": resize})


def clip_images(bundle: Bundle, mesh: Mesh | None) -> Network:
    """Unit vectors of CLIP's space; pictures are read as OpenAI's `preprocess` reads them."""
    size = bundle.model.require(ClipVisionConfig).image_size
    width = bundle.model.require(ClipProjectionsConfig).width
    embed = _program(Placement(mesh), functools.partial(clip.embed_images, bundle.model), bundle.components)
    return Network("clip", width, functools.partial(clip_preprocess, size=size), embed, _identity(bundle))


def open_network(name: str, bundle: Bundle, mesh: Mesh | None, resize: str = "pytorch-fid") -> Network:
    """One of COMPONENTS."""
    return inception(bundle, mesh, resize) if name == "inception" else clip_images(bundle, mesh)


def clip_texts(
    bundle: Bundle, mesh: Mesh | None, texts: Sequence[str], batch: int
) -> tuple[Float32[np.ndarray, "N W"], int]:
    """(unit vectors of texts, how many of these were cut: CLIP reads 75 tokens). Raises UserError where the bundle has no
    tokenizer."""
    if bundle.tokenizer is None:
        raise UserError(
            "this CLIP has no tokenizer, so it reads no texts; convert it again with --tokenizer FOLDER (its vocab.json "
            "and merges.txt), or from a Hugging Face folder that holds them"
        )
    run = _program(Placement(mesh), functools.partial(clip.embed_texts, bundle.model), bundle.components)
    found, cut = [], []
    for start in range(0, len(texts), batch):
        prompts = [Prompt((Text(text),)) for text in texts[start : start + batch]]
        told: list[str] = []
        ids = bundle.to_batch(prompts, long_prompts="cut", notify=told.append).token_ids
        cut += told
        rows = np.concatenate([ids, np.repeat(ids[-1:], batch - len(ids), axis=0)])
        found.append(np.asarray(run(rows))[: len(prompts)])
    return np.concatenate(found), len(cut)


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below a folder, by name. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder of pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE and path.is_file())
    if not found:
        raise UserError(f"{str(folder)!r} holds no pictures ({', '.join(READABLE)})")
    return found
