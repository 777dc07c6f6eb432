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

from mvader_jax.data.batches import EncodedShapes
from mvader_jax.data.prompts import abstract_rows
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.mesh import compiler_options
from mvader_jax.parallel.sharding import batch_sharding, param_shardings, replicated
from mvader_jax.sampling.generate import Draws, Prompted, generate
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.assemble import batch_shape, batch_shards, stage_loss, state_shardings
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.optim.optimizer import make_optimizer
from mvader_jax.train.start import Start
from mvader_jax.train.state import TrainState, labels, partition
from mvader_jax.train.step import make_train_step

Tree = Any

#: Parts of a batch that may come computed before.
PRECOMPUTED = ("latents", "features")


@dataclasses.dataclass(frozen=True)
class Program:
    """A function and the shapes, dtypes and shardings of its arguments.

    images: pictures it makes or learns from, on the whole mesh; parts: {what of the memory it is: its
    arguments}; donate: arguments whose memory the results take over; compiler_options: XLA's, as where it runs.
    """

    function: Any
    arguments: tuple[Tree, ...]
    mesh: Mesh
    images: int
    parts: Mapping[str, Tree]
    donate: tuple[int, ...] = ()
    out_shardings: Any = None
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def lower(self, platform: str = "tpu") -> Any:
        options: dict[str, Any] = {"donate_argnums": self.donate} if self.donate else {}
        if self.out_shardings is not None:
            options["out_shardings"] = self.out_shardings
        with jax.set_mesh(self.mesh):
            traced = jax.jit(self.function, **options).trace(*self.arguments)
            return traced.lower(lowering_platforms=(platform,))


def train_program(
    config: TrainConfig, stage: Stage, mesh: Mesh, precomputed: Collection[str] = ()
) -> Program:
    """The train step of a stage on a mesh, its state born sharded and abstract.

    precomputed: which of PRECOMPUTED the batch holds in place of pictures. Raises UserError for a batch
    that does not divide, or where a large parameter does not.
    """
    known = _known(precomputed)
    objective = stage.objective
    needed = objective.components(config.model, known, drawn=stage.sample_every > 0)
    shapes, _ = abstract_components(config.model, needed)
    model = objective.stage_model(config.model)
    patterns = {name: group.parameters for name, group in stage.groups.items()}
    trainable, frozen, groups = partition(shapes, patterns)
    trainable = _cast(trainable, jnp.float32)
    frozen = _cast(frozen, jnp.dtype(stage.frozen_dtype))
    peaks = {name: group.learning_rate for name, group in stage.groups.items()}
    # Its numbers come from the data; a plan needs its shape.
    whitening = np.eye(objective.condition_width(config.model)) if stage.optimizer.whiten else None
    optimizer = make_optimizer(
        stage.optimizer, peaks, stage.steps, trainable, labels(trainable, groups), whitening
    )
    start = Start(Bundle(config.model, shapes), {}, ())
    shardings = state_shardings(start, trainable, frozen, patterns, optimizer, mesh)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        key=jax.eval_shape(lambda: jax.random.key(0)),
        trainable=trainable,
        frozen=frozen,
        opt_state=jax.eval_shape(optimizer.init, trainable),
        ema=trainable,
    )
    state = jax.tree.map(_placed, state, shardings)
    ways = batch_shards(mesh)
    if stage.batch_size % (ways * stage.accumulate):
        raise UserError(
            f"a batch of {stage.batch_size} does not divide over {ways} chips in {stage.accumulate} microbatches"
        )
    data, shape = batch_shape(config.model, stage, ways * stage.accumulate)
    abstract = objective.abstract_batch(
        data, shape, config.model.tokenizer, encoded_parts(config.model, stage, known)
    )
    batch = jax.tree.map(lambda x: _placed(x, batch_sharding(mesh, x.ndim)), abstract)
    return Program(
        function=make_train_step(stage_loss(model, stage), optimizer, stage, groups, ways),
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
        donate=(0,),
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=compiler_options(mesh),
    )


def sample_program(
    model: ModelConfig,
    mesh: Mesh,
    images: int,
    settings: SamplingSettings | None = None,
    *,
    dtype: str = "bfloat16",
) -> Program:
    """Drawing `images` pictures, a prompt of one image and a caption each, in one program.

    Raises UserError where they do not divide over the mesh, or the model lacks a part.
    """
    if model.unet is None or model.vae is None:
        raise UserError("sampling needs a unet and a vae in the model's config")
    ways = batch_shards(mesh)
    if images % ways:
        raise UserError(f"{images} images do not divide over {ways} chips")
    images_too = ("image_encoder", "image_prefix", *(("adapters",) if model.adapters else ()))
    names = ["decoder", "biases", *images_too, "unet", "vae"]
    if model.embedder == "clip_text":
        names = ["text_encoder", "unet", "vae"]
    shapes, axes = abstract_components(model, names)
    shapes = _cast(shapes, jnp.dtype(dtype))
    components = jax.tree.map(_placed, shapes, param_shardings(shapes, axes, mesh))
    encoder = model.image_encoder if model.embedder == "s_magma" else None
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
    static = (settings or SamplingSettings()).static(model)
    return Program(
        function=functools.partial(generate, model=model, static=static, dtype=dtype),
        arguments=(components, draws),
        mesh=mesh,
        images=images,
        parts={"frozen weights": components, "batch": sharded},
    )


def encoded_parts(model: ModelConfig, stage: Stage, known: Collection[str]) -> EncodedShapes:
    """Shapes of the parts of a batch that come computed before, as the model makes them."""
    data, _ = batch_shape(model, stage)
    latents = features = None
    if "latents" in known and model.vae is not None:
        side = data.image_size // model.vae.multiple
        latents = (2, side, side, model.vae.latent_channels)
    if "features" in known and model.image_encoder is not None:
        features = (model.image_encoder.num_tokens, model.image_encoder.token_width)
    return EncodedShapes(latents, features)


def bytes_a_chip(tree: Tree) -> int:
    """Bytes of a tree of abstract arrays on one device, by their shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        itemsize = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += int(np.prod(shape, dtype=np.int64)) * itemsize
    return total


def _known(precomputed: Collection[str]) -> frozenset[str]:
    for name in precomputed:
        if name not in PRECOMPUTED:
            raise UserError(f"unknown precomputed part {name!r}; accepted: {', '.join(PRECOMPUTED)}")
    return frozenset(precomputed)


def _cast(tree: Tree, dtype: Any) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
