"""Latent consistency distillation (Luo et al. 2023): the UNet learns to draw in few steps of one call each.

The student, component `unet_fast`, is the teacher's UNet with the guidance scale as an input. It starts from the
teacher's weights, or from a student's that a bundle of `init` holds, and learns to say at once where the teacher, under
classifier-free guidance, would lead (`diffusion/consistency.py`). It reads the prompts that the teacher was trained on,
the elements of some weighted by random thetas, so that a weight does to its pictures what it does to the teacher's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.bounds import ComputeDtype, PositiveFloat, PositiveInt, Share, at_least
from mvader_jax.condition import PromptBatch, take
from mvader_jax.data.batches import Batch
from mvader_jax.diffusion.consistency import Path, Solver
from mvader_jax.diffusion.schedule import Schedule, ScheduleConfig, by_row
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embedder_of
from mvader_jax.models.remat import Remat
from mvader_jax.models.unet import GuidanceWidth, UNet, UNetConfig
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.objectives.base import Components, LossFn, Metrics, average_of
from mvader_jax.train.objectives.denoising import Denoising, losses_by_prompt, losses_by_timestep
from mvader_jax.train.samples import Drawing, Pictures

#: What the guidance scale may be in training: below 1 it leads away from the prompt.
_Guidance = Annotated[float, at_least(0)]


@dataclasses.dataclass(frozen=True)
class Distillation(Denoising):
    """A few-step UNet, `unet_fast`, learns where its frozen teacher leads under guidance (Luo et al. 2023)."""

    #: Guidance scales that it learns, drawn uniformly from the first to the second.
    guidance: tuple[_Guidance, _Guidance] = (2.0, 14.0)
    #: Steps in which the teacher is followed from noise to a picture; a model call of sampling stands at one of them.
    original_steps: PositiveInt = 50
    #: How one of them is taken: DDIM's step, or Heun's, of two calls of the teacher and second order.
    solver: Solver = "ddim"
    #: The pseudo-Huber loss's c: the absolute error where it is small, the squared one where it is large.
    huber: PositiveFloat = 0.001
    #: Width of the embedding of the guidance scale.
    time_cond_proj_dim: GuidanceWidth = 256
    #: Share of the prompts of several elements whose elements, the text and each picture, get random weights.
    p_theta: Share = 0.5
    #: These weights, drawn from the first to the second, evenly in their logarithm.
    theta: tuple[PositiveFloat, PositiveFloat] = (0.02, 2.0)
    #: What the student's parameters are written in when it is finished.
    stored: ComputeDtype = "bfloat16"

    unets: ClassVar[tuple[str, ...]] = ("unet", "unet_fast")
    averages: ClassVar[tuple[str, ...]] = ("unet_fast",)
    teachers: ClassVar[tuple[str, ...]] = ("unet",)
    of_interleaved: ClassVar[tuple[str, ...]] = (*Denoising.of_interleaved, "p_theta", "theta")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("guidance", "theta"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"objective.{name} is {low:g} to {high:g}; the first is the smaller one")

    def extended(self, model: ModelConfig) -> ModelConfig:
        """With the student, and the steps that it is drawn in among those of its teacher."""
        teacher, schedule = model.require(UNetConfig), model.require(ScheduleConfig)
        if teacher.distilled:
            raise UserError("the unet was distilled to few steps already: there is no teacher to learn from")
        student = dataclasses.replace(teacher, time_cond_proj_dim=self.time_cond_proj_dim)
        if model.unet_fast not in (None, student):
            raise UserError(
                f"the unet_fast that the stage starts from is not its teacher with time_cond_proj_dim "
                f"{self.time_cond_proj_dim}: {model.unet_fast} against {student}"
            )
        schedule = dataclasses.replace(schedule, original_steps=self.original_steps)
        return dataclasses.replace(model, unet_fast=student, schedule=schedule)

    def loss(self, model: ModelConfig, *, dtype: str = "float32", remat: Remat = "none") -> LossFn:
        """The loss of a batch, by the embedder, both UNets, and the VAE where it holds pixels."""
        teacher = UNet(model.require(UNetConfig), dtype=jnp.dtype(dtype))
        student = UNet(model.fast.require(UNetConfig), dtype=jnp.dtype(dtype), remat=remat)
        schedule = Schedule.create(model.require(ScheduleConfig))
        path = Path(schedule, self.solver, self.timestep_bias, self.huber)
        conditions_of, latents_of = self.conditions_of(model, dtype, remat), self.latents_of(model, dtype)
        encoder = embedder_of(model).image_encoder
        image_tokens = encoder.num_tokens if encoder is not None else 0

        def loss_fn(
            components: Components, batch: Batch, key: jax.Array, groups: int
        ) -> tuple[jax.Array, Metrics]:
            posterior_key, theta_key, scale_key, path_key = jax.random.split(key, 4)
            latents = latents_of(components, batch, posterior_key, groups)
            rows = latents.shape[0]
            condition, null = conditions_of(components, self.weighted(batch, image_tokens, theta_key), groups)
            null = take(null, np.zeros(rows, np.int32))
            low, high = self.guidance
            scale = jax.random.uniform(scale_key, (rows,), minval=low, maxval=high)

            def led(x: jax.Array, t: jax.Array) -> jax.Array:
                """Each condition at its own length: the null prompt's is a few tokens."""
                frozen = {"params": components["unet"]}
                base, conditional = (
                    teacher.apply(frozen, x, t, one).astype(jnp.float32) for one in (null, condition)
                )
                return base + by_row(scale, x) * (conditional - base)

            def few_step(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
                return lambda x, t: student.apply(
                    {"params": components[name]}, x, t, condition, guidance=scale
                )

            losses, timesteps = path.loss(
                few_step("unet_fast"), few_step(average_of("unet_fast")), led, latents, path_key
            )
            return jnp.mean(losses), {
                **losses_by_prompt(batch, losses),
                **losses_by_timestep(losses, timesteps, schedule),
            }

        return loss_fn

    def weighted(self, batch: Batch, image_tokens: int, key: jax.Array) -> Batch:
        """The batch, its interleaved prompts under random thetas. image_tokens: those of a picture."""
        if "interleaved_prompt" not in batch:
            return batch
        prompt: PromptBatch = batch["interleaved_prompt"]
        rows, images = prompt.pixels.shape[:2]
        which_key, theta_key = jax.random.split(key)
        low, high = np.log(self.theta)
        logs = jax.random.uniform(theta_key, (rows, 1 + images), jnp.float32, low, high)
        logs = jnp.where(jax.random.bernoulli(which_key, self.p_theta, (rows, 1)), logs, 0.0)
        # 0 for text, and for padding, whose weight nothing changes; 1 + i for picture i.
        element = jnp.where(prompt.image_index < 0, 0, 1 + prompt.image_index // image_tokens)
        added = jnp.take_along_axis(logs, element, axis=1)
        weighted = dataclasses.replace(
            prompt,
            log_weights=prompt.log_weights + added,
            condition_log_weights=prompt.condition_log_weights + added,
        )
        return {**batch, "interleaved_prompt": weighted}

    def drawing(self) -> Drawing:
        return Pictures()

    def drawn(self, bundle: Bundle) -> Bundle:
        return bundle.fast()

    def finished(self, bundle: Bundle, batches: Iterator[Batch]) -> Bundle:
        """The student's parameters as `stored`."""
        del batches
        student = jax.tree.map(lambda leaf: leaf.astype(self.stored), bundle.components["unet_fast"])
        return dataclasses.replace(bundle, components={**bundle.components, "unet_fast": student})
