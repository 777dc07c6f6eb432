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

from mvader_jax.condition import PADDING, PromptBatch
from mvader_jax.data.rows import row_layout
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed_rows
from mvader_jax.parallel.mesh import compiler_options
from mvader_jax.parallel.sharding import batch_sharding, param_shardings, replicated
from mvader_jax.sampling.generate import Draws, Prompted, generate
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.assemble import batch_shards, state_shardings
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.objectives import OBJECTIVES
from mvader_jax.train.optim.optimizer import make_optimizer
from mvader_jax.train.optim.whitening import condition_width
from mvader_jax.train.start import Start, needed_components, stage_model
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
    needed = [
        name
        for name in needed_components(config.model, dataclasses.replace(stage, data=_unread(stage)))
        if not (name == "vae" and "latents" in known and stage.objective == "diffusion")
        and not (name == "image_encoder" and "features" in known)
    ]
    shapes, _ = abstract_components(config.model, needed)
    model = stage_model(config.model, stage)
    patterns = {name: group.parameters for name, group in stage.groups.items()}
    trainable, frozen, groups = partition(shapes, patterns)
    trainable = _cast(trainable, jnp.float32)
    frozen = _cast(frozen, jnp.dtype(stage.frozen_dtype))
    peaks = {name: group.learning_rate for name, group in stage.groups.items()}
    # Its numbers come from the data; a plan needs its shape.
    whitening = np.eye(condition_width(config.model, stage)) if stage.optimizer.whiten else None
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
    batch = jax.tree.map(
        lambda x: _placed(x, batch_sharding(mesh, x.ndim)),
        abstract_batch(model, stage, ways * stage.accumulate, known),
    )
    loss_fn = OBJECTIVES[stage.objective](model, stage, abstract_null_prompt(model, stage))
    return Program(
        function=make_train_step(loss_fn, optimizer, stage, groups, ways),
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


def embedding_program(config: TrainConfig, stage: Stage, mesh: Mesh, *, padded: bool) -> Program:
    """The decoder's part of a diffusion step: image rows, caption rows and the null prompt, embedded.

    Images come as features. padded: every row as long as an image prompt, B rows in all, what a step
    would do that knows one length. Raises UserError where the batch does not divide.
    """
    model = config.model
    names = ["decoder", "biases", "image_prefix", *(("adapters",) if model.adapters else ())]
    shapes, axes = abstract_components(model, names)
    shapes = _cast(shapes, jnp.dtype(stage.frozen_dtype))
    components = jax.tree.map(_placed, shapes, param_shardings(shapes, axes, mesh))
    groups = batch_shards(mesh) * stage.accumulate
    batch = abstract_batch(model, stage, groups, PRECOMPUTED)
    rows = [batch["image_prompt"], batch["text_prompt"]]
    if padded:
        assert model.image_encoder is not None
        one = _prompt(stage.batch_size, model.image_encoder.num_tokens, (stage.batch_size, 0, 0, 0, 3))
        rows = [one]
    placed = jax.tree.map(lambda x: _placed(x, batch_sharding(mesh, x.ndim)), rows)
    null = abstract_null_prompt(model, stage)

    def embedding(components: Tree, rows: list[PromptBatch]) -> Tree:
        prompts = rows if null is None else [*rows, null]
        return [c.hidden for c in embed_rows(model, components, prompts, dtype=jnp.dtype(stage.dtype))]

    return Program(embedding, (components, placed), mesh, stage.batch_size, {"frozen weights": components})


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
    picture = (images, 1 if encoder else 0, side, side, 3)
    prompts = _prompt(images, length, picture)
    sharded = jax.tree.map(lambda x: _placed(x, batch_sharding(mesh, x.ndim)), prompts)
    row = NamedSharding(mesh, replicated(mesh).spec)
    negatives = jax.tree.map(lambda x: _placed(x, row), _prompt(1, 8, (1, 0, side, side, 3)))

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


def abstract_batch(
    model: ModelConfig, stage: Stage, groups: int, precomputed: Collection[str] = ()
) -> dict[str, Any]:
    """Shapes of one global batch of a stage, laid out as `data/batches.py` does; groups: see `data/rows.py`."""
    rows, length, data = stage.batch_size, stage.data.caption_length, stage.data
    encoder = model.image_encoder
    side, tokens = (encoder.image_size, encoder.num_tokens) if encoder else (0, 0)
    size = _image_size(model, stage)
    pixels = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)

    def pictures(count: int) -> Any:
        if encoder is not None and "features" in precomputed:
            return jax.ShapeDtypeStruct((count, 1, tokens, encoder.token_width), jnp.bfloat16)
        return (count, 1, side, side, 3)

    if stage.objective == "vae":
        return {"pixels": pixels}
    if stage.objective == "contrastive":
        return {name: _prompt(rows, length, (rows, 0, 0, 0, 3)) for name in ("query", "positive", "negative")}
    if stage.objective == "captioning":
        total = length + (tokens if stage.images else 0)
        shown = pictures(rows) if stage.images else (rows, 0, 0, 0, 3)
        return {
            "prompt": _prompt(rows, total, shown),
            "labels": jax.ShapeDtypeStruct((rows, total), jnp.int32),
        }
    layout = row_layout(rows // groups, data.p_image, data.p_interleaved)
    if layout.interleaved_rows:
        raise UserError("plans know no interleaved prompts yet; set data.p_interleaved=0")
    if model.tokenizer is not None and model.tokenizer.length:
        length = model.tokenizer.length
    of_images, of_texts = groups * layout.image_rows, groups * layout.text_rows
    target: dict[str, Any] = {"pixels": pixels}
    if "latents" in precomputed:
        assert model.vae is not None
        factor = model.vae.multiple
        moments = jax.ShapeDtypeStruct(
            (rows, size // factor, size // factor, model.vae.latent_channels), jnp.bfloat16
        )
        target = {"latent_mean": moments, "latent_logvar": moments}
    return {
        **target,
        "image_prompt": _prompt(of_images, tokens, pictures(of_images)),
        "text_prompt": _prompt(of_texts, length, (of_texts, 0, side, side, 3)),
        "use_image": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }


def abstract_null_prompt(model: ModelConfig, stage: Stage) -> PromptBatch | None:
    """The null condition's prompt with the shape that a tokenizer gives it: one EOS in eight positions."""
    if stage.objective != "diffusion" or stage.null == "zeros":
        return None
    length = model.tokenizer.length if model.tokenizer and model.tokenizer.length else 8
    encoder = model.image_encoder if model.embedder == "s_magma" else None
    side = encoder.image_size if encoder else 0
    logs = np.full((1, length), PADDING, np.float32)
    logs[:, 0] = 0.0
    empty = np.zeros((1, 0, side, side, 3), np.float32)
    index = np.full((1, length), -1, np.int32)
    return PromptBatch(np.zeros((1, length), np.int32), empty, index, logs, logs.copy())


def bytes_a_chip(tree: Tree) -> int:
    """Bytes of a tree of abstract arrays on one device, by their shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        itemsize = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += int(np.prod(shape, dtype=np.int64)) * itemsize
    return total


def _prompt(rows: int, length: int, pixels: Any) -> PromptBatch:
    # Shapes stand where arrays will.
    ids: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    logs: Any = jax.ShapeDtypeStruct((rows, length), jnp.float32)
    if isinstance(pixels, tuple):
        pixels = jax.ShapeDtypeStruct(pixels, jnp.float32)
    return PromptBatch(ids, pixels, ids, logs, logs)


def _image_size(model: ModelConfig, stage: Stage) -> int:
    if model.unet is not None and model.vae is not None:
        return int(model.unet.sample_size * model.vae.multiple)
    return stage.data.image_size


def _known(precomputed: Collection[str]) -> frozenset[str]:
    for name in precomputed:
        if name not in PRECOMPUTED:
            raise UserError(f"unknown precomputed part {name!r}; accepted: {', '.join(PRECOMPUTED)}")
    return frozenset(precomputed)


def _unread(stage: Stage) -> Any:
    """The stage's data without folders of precomputed parts: plans are made where there is no data."""
    empty = type(stage.data)().precomputed
    return dataclasses.replace(stage.data, precomputed=empty)


def _cast(tree: Tree, dtype: Any) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
