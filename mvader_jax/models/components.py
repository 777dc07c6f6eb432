"""Shapes, axes and fresh parameters of every component a model names."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from mvader_jax.condition import Condition
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipText
from mvader_jax.models.clip_vision import ClipProjections, ClipVision
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import Decoder, DecoderConfig, adapter_leaves, bias_leaves, without_adapters
from mvader_jax.models.image_encoder import ImageEncoder
from mvader_jax.models.image_prefix import ImagePrefix
from mvader_jax.models.inception import Inception
from mvader_jax.models.unet import UNet
from mvader_jax.models.vae import VAE
from mvader_jax.parallel.sharding import Tree, abstract_init, init_params, param_shardings
from mvader_jax.storage.programs import kept_file, read_kept, write_kept

#: Every component a bundle may hold, and the field of ModelConfig that shapes it.
COMPONENTS = {
    "decoder": "decoder",
    "biases": "decoder",
    "adapters": "adapters",
    "image_encoder": "image_encoder",
    "image_prefix": "image_prefix",
    "text_encoder": "text_encoder",
    "unet": "unet",
    "unet_fast": "unet_fast",
    "vae": "vae",
    "inception": "inception",
    "vision_encoder": "vision_encoder",
    "clip_projections": "clip_projections",
}
#: Those that judge pictures: no model that draws has them.
JUDGES = ("inception", "vision_encoder", "clip_projections")
#: Components that begin as a copy of another, which must be there before them; what they have beside it, as zeros.
COPIES = {"unet_fast": "unet"}


def outdated(changed: Collection[str], there: Collection[str]) -> dict[str, str]:
    """Components that are there and learnt from one of `changed`, as that was before: they draw what it drew then.

    Returns {component: a sentence for whoever leaves it out}.
    """
    return {
        name: f"{name} is left out: it learnt from another {origin}"
        for name, origin in COPIES.items()
        if name in there and origin in changed and name not in changed
    }


def abstract_components(model: ModelConfig, names: Iterable[str]) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """({component: shapes}, {component: logical axes}), computed without any weights.

    Raises UserError for an unknown component, one that the model has no config for, or settings that make none.
    """
    shapes, axes = {}, {}
    for name in names:
        shape, axis = _abstract_component(_shaping(model, name), name)
        # Copies: the trees are kept for the next who asks.
        shapes[name] = jax.tree.map(lambda leaf: leaf, shape)
        axes[name] = jax.tree.map(lambda leaf: leaf, axis, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return shapes, axes


def _shaping(model: ModelConfig, name: str) -> ModelConfig:
    """The model without what does not shape a component: the key under which its shapes are kept."""
    fields = {"decoder", COMPONENTS.get(name, "decoder")}
    return ModelConfig(**{field: getattr(model, field) for field in fields})


@functools.lru_cache(maxsize=64)
def _abstract_component(model: ModelConfig, name: str) -> tuple[Tree, Tree]:
    """(shapes, logical axes) of one component; tracing a UNet takes a second, unless an earlier run did it."""
    file = kept_file(f"shapes-{name}", model)
    data = None if file is None else read_kept(file)
    if data is not None:
        flat = json.loads(data)
        shapes = {path: jax.ShapeDtypeStruct(shape, dtype) for path, (shape, dtype, _) in flat.items()}
        axes = {path: tuple(names) for path, (_, _, names) in flat.items()}
        return unflatten_dict(shapes, sep="/"), unflatten_dict(axes, sep="/")
    try:
        module, arguments, method, part = _recipe(model, name)
        shape, axis = abstract_init(module, *arguments, method=method)
    except UserError:
        raise
    # JAX, flax and the layers raise many kinds for numbers that do not fit each other.
    except Exception as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"the settings of the {name} do not fit each other: {what}") from None
    shape, axis = part(shape), part(axis)
    if file is not None:
        axes = flatten_dict(axis, sep="/")
        flat = {
            path: [leaf.shape, str(leaf.dtype), axes[path]]
            for path, leaf in flatten_dict(shape, sep="/").items()
        }
        write_kept(file, json.dumps(flat).encode())
    return shape, axis


def init_component(
    model: ModelConfig, name: str, key: jax.Array, mesh: Mesh | None, others: Mapping[str, Tree]
) -> Tree:
    """A component made anew. Biases start as a copy of the decoder's own, and those of COPIES as one of the whole
    other component, which `others` must hold."""
    if name == "biases":
        if "decoder" not in others:
            raise UserError("semantic biases start from the decoder's own, and there is no decoder")
        return jax.tree.map(jnp.copy, bias_leaves(others["decoder"]))
    if name in COPIES:
        return _copied(model, name, mesh, others)
    module, arguments, method, part = _recipe(model, name)
    return part(init_params(module, key, *arguments, mesh=mesh, method=method))


def _copied(model: ModelConfig, name: str, mesh: Mesh | None, others: Mapping[str, Tree]) -> Tree:
    origin = COPIES[name]
    if origin not in others:
        raise UserError(f"the {name} starts as a copy of the {origin}, and there is no {origin}")
    shapes, axes = _abstract_component(_shaping(model, name), name)
    theirs, own = flatten_dict(others[origin], sep="/"), flatten_dict(shapes, sep="/")
    if any(path not in own or own[path].shape != leaf.shape for path, leaf in theirs.items()):
        raise UserError(f"the {name} starts as a copy of the {origin}, but its architecture is another")
    added = {path: leaf for path, leaf in own.items() if path not in theirs}
    named = {path: leaf for path, leaf in flatten_dict(axes, sep="/").items() if path in added}
    place = None if mesh is None else param_shardings(added, named, mesh)

    def zeros() -> Tree:
        return {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in added.items()}

    made = jax.jit(zeros, out_shardings=place)()
    return unflatten_dict({**{path: jnp.copy(leaf) for path, leaf in theirs.items()}, **made}, sep="/")


def _recipe(model: ModelConfig, name: str) -> tuple[Any, tuple[Any, ...], Any, Any]:
    """(module, arguments of init, its method, which part of the result is the component)."""
    if name not in COMPONENTS:
        raise UserError(f"unknown component {name!r}; known: {', '.join(COMPONENTS)}")
    config = getattr(model, COMPONENTS[name])
    if config is None:
        raise UserError(f"the model's config has no {COMPONENTS[name]}, so it has no {name}")
    tokens = jnp.zeros((1, 2), jnp.int32)

    def whole(tree: Tree) -> Tree:
        return tree

    if name in ("decoder", "biases"):
        part = without_adapters if name == "decoder" else bias_leaves
        return Decoder(config), (tokens,), "everything", part
    if name == "adapters":
        return Decoder(model.require(DecoderConfig), config), (tokens,), "everything", adapter_leaves
    if name == "image_encoder":
        return ImageEncoder(config), (jnp.zeros((1, 64, 64, 3)),), None, whole
    if name == "image_prefix":
        return ImagePrefix(config), (jnp.zeros((1, 1, config.in_width)),), None, whole
    if name == "text_encoder":
        return ClipText(config), (tokens,), None, whole
    if name == "inception":
        side = config.image_size
        return Inception(config), (jnp.zeros((1, side, side, 3)),), None, whole
    if name == "vision_encoder":
        return ClipVision(config), (jnp.zeros((1, config.image_size, config.image_size, 3)),), None, whole
    if name == "clip_projections":
        states = (jnp.zeros((1, config.text_width)), jnp.zeros((1, config.image_width)))
        return ClipProjections(config), states, None, whole
    if name == "vae":
        side = config.multiple
        return VAE(config), (jnp.zeros((1, side, side, config.in_channels)), jax.random.key(0)), None, whole
    side = config.multiple
    condition = Condition(jnp.zeros((1, 1, config.cross_attention_dim)), jnp.zeros((1, 1)))
    inputs = (jnp.zeros((1, side, side, config.in_channels)), jnp.zeros((1,)), condition)
    return UNet(config), (*inputs, None, jnp.ones((1,)) if config.distilled else None), None, whole
