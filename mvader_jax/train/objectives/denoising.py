"""What objectives share whose UNet sees noised pictures, conditioned on H(image), H(caption) or H(interleaved prompt).

The frozen decoder runs on the rows of each kind at their own length (an image prompt is 144 tokens, a
caption 10 to 77: padding them to one length would cost more than the UNet), and all are joined in one
Condition. `data/rows.py` lays the rows out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from mvader_jax.bounds import NonNegativeInt, PositiveInt, Share, at_least
from mvader_jax.condition import Array, Condition, PromptBatch, spread, spread_rows, where
from mvader_jax.data.batches import (
    Batch,
    BatchFn,
    Feed,
    Shape,
    abstract_encoder_input,
    abstract_pixels,
)
from mvader_jax.data.config import DataConfig
from mvader_jax.data.mixed import STATES, MixedBatches, MixedRows
from mvader_jax.data.order import Reader
from mvader_jax.data.prompts import abstract_rows, caption_length, null_row
from mvader_jax.data.rows import RowLayout, row_layout
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import EncodedShapes
from mvader_jax.data.sources.open import open_interleaved
from mvader_jax.diffusion.schedule import Schedule
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_float
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed_rows, embedder_of
from mvader_jax.models.remat import Remat
from mvader_jax.models.vae import VAE, VAEConfig
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig
from mvader_jax.train.objectives.base import (
    Components,
    Metrics,
    Objective,
    mean_metric,
    needed_tokenizer,
)


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
    """A UNet learns from noised pictures and their prompts."""

    #: What of the autoencoder's posterior is noised; Stable Diffusion was trained on samples.
    posterior: Literal["sample", "mean"] = "sample"
    #: 1 draws timesteps as eq. 1 does, uniformly; more, noisy ones up to this many times as often as clean ones
    #: (diffusion/loss.py).
    timestep_bias: Annotated[float, at_least(1)] = 1.0
    #: Tokens of a caption row; longer captions are cut.
    caption_length: PositiveInt = 77
    #: Share of samples conditioned on their own image, exact over the run (paper section 3: 0.2). An embedder that
    #: reads no pictures, as Stable Diffusion's, takes 0.
    p_image: Share = 0.2
    #: Share conditioned on a prompt of several elements.
    p_interleaved: Share = 0.0
    #: JSONL files of such prompts and targets; none for those that the data's source makes itself.
    interleaved: tuple[str, ...] = ()
    #: Images that every such prompt is padded to; longer ones are left out.
    interleaved_images: PositiveInt = 2
    #: Tokens that every such prompt is padded to; 0: those of so many images and a caption.
    interleaved_length: NonNegativeInt = 0

    #: The UNets that it computes with.
    unets: ClassVar[tuple[str, ...]] = ("unet",)
    #: Settings that prompts of several elements alone make use of.
    of_interleaved: ClassVar[tuple[str, ...]] = ("interleaved", "interleaved_images", "interleaved_length")

    def check(self, data: DataConfig) -> None:
        super().check(data)
        if not self.p_interleaved:
            for name in self.of_interleaved:
                if getattr(self, name) != getattr(type(self), name):
                    raise UserError(
                        f"objective.{name} is set, but p_interleaved is 0: no such prompt is read"
                    )
        if data.aspect_buckets and self.p_interleaved:
            raise UserError("aspect_buckets do not go with interleaved prompts")

    def check_model(self, model: ModelConfig) -> None:
        if embedder_of(model).image_encoder is not None:
            return
        for name in ("p_image", "p_interleaved"):
            if getattr(self, name):
                raise UserError(
                    f"objective.{name} is {getattr(self, name)}, but the model's embedder ({model.embedder}) reads no "
                    f"pictures in prompts; set objective.{name}=0"
                )

    def components(
        self, model: ModelConfig, known: Collection[str] = (), drawn: bool = False
    ) -> tuple[str, ...]:
        # Interleaved prompts bring pictures that nobody has encoded.
        known = () if self.p_interleaved else known
        # Latents need no autoencoder to be trained on, but one to be looked at.
        vae = ("vae",) if "latents" not in known or drawn else ()
        reads = () if "states" in known else embedder_of(model).components
        embedder = (name for name in reads if name != "image_encoder" or "features" not in known)
        return (*embedder, *self.unets, *vae)

    def rows(self, shape: Shape) -> MixedRows:
        """How the rows of its batches are laid out."""
        length = self.interleaved_length
        if not length:
            length = self.interleaved_images * shape.image_tokens + self.caption_length
        return MixedRows(
            self.layout(shape.batch_size // shape.groups),
            self.caption_length,
            self.interleaved_images,
            length,
            self.tells_data_sets,
        )

    @property
    def tells_data_sets(self) -> bool:
        """Whether its loss asks which data set a sample is of."""
        return False

    def layout(self, samples: int) -> RowLayout:
        """Which of a group's samples have which rows."""
        return row_layout(samples, self.p_image, self.p_interleaved)

    def batches(
        self, feed: Feed, data: DataConfig, shape: Shape, tokenizer: Tokenizer | None, split: Split
    ) -> BatchFn:
        """{"pixels", "image_prompt", "text_prompt", "use_image": bool [B]}: see `data/mixed.py`."""
        tokens = needed_tokenizer(self, tokenizer)
        interleaved = None
        if self.p_interleaved:
            sources = open_interleaved(data, self.interleaved, split)
            interleaved = Reader(sources, (), data.seed + 1, data.shuffle)
        return MixedBatches(feed, interleaved, self.rows(shape), data, shape, tokens)

    def abstract_batch(
        self, data: DataConfig, shape: Shape, tokenizer: TokenizerConfig | None, encoded: EncodedShapes
    ) -> Batch:
        rows, layout = self.rows(shape), self.layout(shape.batch_size // shape.groups)
        groups = shape.groups // shape.process_count
        images, texts = groups * layout.image_rows, groups * layout.text_rows
        side = shape.encoder_size
        seen = None if encoded.states else abstract_encoder_input(images, shape, encoded)
        batch: Batch = {
            "image_prompt": abstract_rows(images, shape.image_tokens, pixels=seen, side=side),
            "text_prompt": abstract_rows(texts, caption_length(tokenizer, self.caption_length), side=side),
            "use_image": jax.ShapeDtypeStruct((shape.rows,), jnp.bool_),
        }
        if self.tells_data_sets:
            batch["data_set"] = jax.ShapeDtypeStruct((shape.rows,), jnp.int32)
        if encoded.states:
            *lengths, width = encoded.states
            for name, count, length in zip(STATES, (images, texts, groups), lengths, strict=True):
                if length or name != STATES[2]:
                    batch[name] = jax.ShapeDtypeStruct((count, length, width), jnp.bfloat16)
        mixed = groups * layout.interleaved_rows
        if encoded.latents is None:
            batch["pixels"] = abstract_pixels(shape.rows, data.image_size)
        else:
            moments = jax.ShapeDtypeStruct((shape.rows, *encoded.latents[1:]), jnp.bfloat16)
            batch |= {"latent_mean": moments, "latent_logvar": moments}
            if mixed:
                batch["interleaved_pixels"] = abstract_pixels(mixed, data.image_size)
        if mixed:
            batch["interleaved_prompt"] = abstract_rows(
                mixed, rows.interleaved_length, side=side, images=self.interleaved_images
            )
            batch["use_interleaved"] = jax.ShapeDtypeStruct((shape.rows,), jnp.bool_)
        return batch

    def null_prompt(self, model: ModelConfig) -> PromptBatch | None:
        """The null condition's prompt, one row: the empty prompt, as sampling has it; None for zeros."""
        if model.tokenizer is None:
            raise UserError("the null condition needs a tokenizer in the model's config")
        embedder = embedder_of(model)
        side = embedder.image_encoder.image_size if embedder.image_encoder is not None else 0
        return null_row(model.tokenizer, side, embedder.max_positions)

    def latents_of(self, model: ModelConfig, dtype: str) -> Callable[..., jax.Array]:
        """(components, batch, key, groups) -> the scaled latents that are noised, float32 [B, h, w, C]."""
        config = model.require(VAEConfig)
        vae, scale = VAE(config, dtype=jnp.dtype(dtype)), config.scaling_factor

        def posterior(components: Components, pixels: jax.Array) -> jax.Array:
            """float32 [2, N, h, w, C]: mean and log variance."""
            moments = vae.apply({"params": components["vae"]}, to_float(pixels), method="encode")
            return jnp.stack(moments).astype(jnp.float32)

        def latents(components: Components, batch: Batch, key: jax.Array, groups: int) -> jax.Array:
            if "pixels" in batch:
                mean, logvar = posterior(components, batch["pixels"])
            else:
                moments = jnp.stack([batch["latent_mean"], batch["latent_logvar"]]).astype(jnp.float32)
                if "interleaved_pixels" in batch:
                    layout = self.layout(batch["use_image"].shape[0] // groups)
                    drawn = jax.vmap(
                        lambda x: spread_rows(x, groups, layout.samples, layout.interleaved_start)
                    )(posterior(components, batch["interleaved_pixels"]))
                    moments = jnp.where(batch["use_interleaved"][:, None, None, None], drawn, moments)
                mean, logvar = moments
            out: jax.Array = scale * mean
            if self.posterior == "sample":
                out += scale * jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
            return out

        return latents

    def conditions_of(
        self, model: ModelConfig, dtype: str, remat: Remat
    ) -> Callable[..., tuple[Condition, Condition]]:
        """(components, batch, groups) -> (what each sample's UNet attends to, the null condition: one row, or with
        precomputed states one for each sample)."""
        null_prompt = self.null_prompt(model)

        def conditions(components: Components, batch: Batch, groups: int) -> tuple[Condition, Condition]:
            use_image = batch["use_image"]
            layout = self.layout(use_image.shape[0] // groups)
            prompts = [batch["image_prompt"], batch["text_prompt"]]
            prompts += [batch["interleaved_prompt"]] if layout.interleaved_rows else []
            prompts += [null_prompt] if null_prompt is not None else []
            if STATES[0] in batch:
                image, text, *rest = _stored(batch, prompts, jnp.dtype(dtype))
            else:
                image, text, *rest = embed_rows(
                    model, components, prompts, dtype=jnp.dtype(dtype), remat=remat
                )

            def spread_out(rows: Condition, start: int) -> Condition:
                return spread(rows, groups, layout.samples, start)

            # Every sample uses rows of one kind. Groups follow the batch's shards, so joining moves nothing
            # between devices.
            joined = where(use_image, spread_out(image, 0), spread_out(text, layout.text_start))
            if layout.interleaved_rows:
                mixed = spread_out(rest.pop(0), layout.interleaved_start)
                joined = where(batch["use_interleaved"], mixed, joined)
            zeros = Condition(jnp.zeros_like(joined.hidden[:1, :1]), jnp.zeros((1, 1), jnp.float32))
            return joined, rest[0] if rest else zeros

        return conditions

    def encoder_input(self, batch: Batch) -> Float[Array, "N h w 3"]:
        pixels: Array = batch["image_prompt"].pixels[:, 0]
        return pixels

    def condition_width(self, model: ModelConfig) -> int:
        if model.unet is None:
            return super().condition_width(model)
        return model.unet.cross_attention_dim


def _stored(batch: Batch, prompts: Sequence[PromptBatch], dtype: Any) -> list[Condition]:
    """The conditions of prompts whose hidden states were computed before; of the null prompt, one for each sample."""
    count = batch["use_image"].shape[0]
    found = []
    for name, prompt in zip(STATES, prompts, strict=False):
        condition = prompt.condition(batch[name].astype(dtype))
        if name == STATES[2]:
            # Each group of rows brings its own copy: none has to be sent between devices.
            condition = Condition(
                jnp.repeat(condition.hidden, count // condition.hidden.shape[0], axis=0),
                jnp.broadcast_to(condition.log_weights, (count, condition.log_weights.shape[1])),
            )
        found.append(condition)
    return found


def losses_by_prompt(
    batch: Batch, losses: Float[jax.Array, " B"], dropped: Bool[jax.Array, " B"] | None = None
) -> Metrics:
    """The loss by what a sample was conditioned on, and how many there are of each. dropped: samples left out."""
    use_image = batch["use_image"]
    use_text, used = ~use_image, batch.get("use_interleaved")
    if used is not None:
        use_text &= ~used

    def kept(rows: jax.Array) -> jax.Array:
        return rows if dropped is None else rows & ~dropped

    metrics = {
        "loss_image": mean_metric(losses, kept(use_image)),
        "loss_text": mean_metric(losses, kept(use_text)),
        "image_rows": mean_metric(use_image),
    }
    if used is not None:
        metrics["loss_interleaved"] = mean_metric(losses, kept(used))
        metrics["interleaved_rows"] = mean_metric(used)
    return metrics


def losses_by_timestep(
    losses: Float[jax.Array, " B"], timesteps: Int[jax.Array, " B"], schedule: Schedule
) -> Metrics:
    """The loss in each quarter of the schedule."""
    quarter = timesteps * 4 // schedule.config.num_train_steps
    return {f"loss_quarter{index + 1}": mean_metric(losses, quarter == index) for index in range(4)}
