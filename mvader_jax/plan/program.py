"""The programs that a plan compiles: the real train step of a stage, or the sampler, without any weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mvader_jax.data.prompts import abstract_rows
from mvader_jax.data.sources.encoded import PARTS
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embedder_of
from mvader_jax.models.quantised import kept_in, quantised, with_scales
from mvader_jax.parallel.sharding import batch_sharding, param_shardings, replicated
from mvader_jax.sampling.generate import Draws, Prompted, generate
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.train.assemble import assemble, batch_groups, batch_shape, batch_shards
from mvader_jax.train.check import check_stage
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.sizes import encoded_parts
from mvader_jax.train.start import check_states

Tree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A function and the shapes, dtypes and shardings of its arguments.

    images: how many pictures one run of it makes or learns from, over all devices. parts: {name of a part of the
    memory, as "optimizer": the arguments that lie in it}. jit_options: of `jax.jit`, the same as in training.
    """

    function: Any
    arguments: tuple[Tree, ...]
    mesh: Mesh
    images: int
    parts: Mapping[str, Tree]
    jit_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def compiler_options(self) -> dict[str, str]:
        return dict(self.jit_options.get("compiler_options") or {})

    def lower(self, platform: str = "tpu") -> Any:
        options = {name: value for name, value in self.jit_options.items() if name != "compiler_options"}
        with jax.set_mesh(self.mesh):
            traced = jax.jit(self.function, **options).trace(*self.arguments)
            return traced.lower(lowering_platforms=(platform,))


def train_program(
    config: TrainConfig, stage: Stage, mesh: Mesh, precomputed: Collection[str] = ()
) -> Program:
    """The train step of a stage on a mesh, its state born sharded and abstract.

    precomputed: which of `encoded.PARTS` the batch holds in place of pictures. Raises UserError for a batch
    that does not divide, or where a large parameter does not.
    """
    check_stage(stage)
    known = _known(precomputed)
    objective = stage.objective
    model = objective.extended(config.model)
    objective.check_model(model)
    states = check_states(model, stage) if "states" in known else None
    shapes, _ = abstract_components(model, objective.components(model, known, drawn=stage.sample_every > 0))
    # Its numbers come from the data; a plan needs its shape.
    whitening = np.eye(objective.condition_width(model)) if stage.optimizer.whiten else None
    assembly, trainable, frozen = assemble(model, shapes, stage, mesh, whitening)
    state = assembly.abstract_state(trainable, frozen)
    data, shape = batch_shape(model, stage, batch_groups(stage, mesh))
    encoded = encoded_parts(model, data, known, states)
    abstract = objective.abstract_batch(data, shape, model.tokenizer, encoded)
    batch = jax.tree.map(lambda x: _placed(x, batch_sharding(mesh, x.ndim)), abstract)
    return Program(
        function=assembly.step(),
        arguments=(state, batch),
        mesh=mesh,
        images=stage.batch_size,
        parts={
            "frozen weights": state.frozen,
            "trained weights": state.trainable,
            "optimizer": state.opt_state,
            "average": state.ema,
            "batch": batch,
        },
        jit_options=assembly.jit_options,
    )


def sample_program(
    model: ModelConfig,
    mesh: Mesh,
    images: int,
    settings: SamplingSettings | None = None,
    *,
    dtype: str = "bfloat16",
    frozen_dtype: str | None = None,
) -> Program:
    """Drawing `images` pictures, a prompt of one image and a caption each, in one program.

    dtype, frozen_dtype: as `Pipeline.load` takes them. Raises UserError where the pictures do not divide over the mesh,
    or the model lacks a part.
    """
    if model.unet is None or model.vae is None:
        raise UserError("sampling needs a unet and a vae in the model's config")
    ways = batch_shards(mesh)
    if images % ways:
        raise UserError(f"{images} images do not divide over {ways} chips")
    embedder = embedder_of(model)
    shapes, axes = drawing_components(model, dtype, frozen_dtype)
    components = jax.tree.map(_placed, shapes, param_shardings(shapes, axes, mesh))
    encoder = embedder.image_encoder
    tokens, side = (encoder.num_tokens, encoder.image_size) if encoder else (0, 0)
    length = -(-(tokens + 32) // 64) * 64
    if model.tokenizer is not None and model.tokenizer.length:
        length = model.tokenizer.length
    prompts = abstract_rows(images, length, side=side, images=1 if encoder else 0)
    sharded = jax.tree.map(lambda x: _placed(x, batch_sharding(mesh, x.ndim)), prompts)
    row = NamedSharding(mesh, replicated(mesh).spec)
    negatives = jax.tree.map(lambda x: _placed(x, row), abstract_rows(1, 8, side=side))

    def each(dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((images,), dtype, sharding=batch_sharding(mesh))

    draws = Draws(
        Prompted(sharded, each(jnp.int32)),
        Prompted(negatives, each(jnp.int32)),
        seeds=each(jnp.uint32),
        indices=each(jnp.int32),
        guidance_scale=each(jnp.float32),
    )
    static = (settings or SamplingSettings(sampler="plms")).static(model)
    return Program(
        function=functools.partial(generate, model=model, static=static, dtype=dtype),
        arguments=(components, draws),
        mesh=mesh,
        images=images,
        parts={"frozen weights": components, "batch": sharded},
    )


def drawing_components(model: ModelConfig, dtype: str, frozen_dtype: str | None) -> tuple[Tree, Tree]:
    """Shapes and logical axes of what draws, as `Pipeline.load` keeps it."""
    shapes, axes = abstract_components(model, (*embedder_of(model).components, "unet", "vae"))
    kept, integers = kept_in(frozen_dtype or dtype, dtype)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(kept)), shapes)
    if integers is not None:
        shapes = quantised(shapes, integers)
    return shapes, with_scales(axes, shapes)


def _known(precomputed: Collection[str]) -> frozenset[str]:
    for name in precomputed:
        if name not in PARTS:
            raise UserError(f"unknown precomputed part {name!r}; accepted: {', '.join(PARTS)}")
    return frozenset(precomputed)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
