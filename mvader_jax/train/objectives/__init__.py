"""The training objectives, by name. Adding one: a file here, and a line in OBJECTIVES."""

from mvader_jax.train.objectives.base import LossFn, Metrics
from mvader_jax.train.objectives.captioning import captioning
from mvader_jax.train.objectives.contrastive import contrastive
from mvader_jax.train.objectives.diffusion import diffusion
from mvader_jax.train.objectives.vae import vae

OBJECTIVES = {"vae": vae, "captioning": captioning, "contrastive": contrastive, "diffusion": diffusion}

__all__ = ["OBJECTIVES", "LossFn", "Metrics"]
