"""The training objectives. Adding one: a file here, and its line in `Objective.kinds`."""

from mvader_jax.train.objectives.base import LossFn, Metrics, Objective, average_of
from mvader_jax.train.objectives.captioning import Captioning
from mvader_jax.train.objectives.contrastive import Contrastive
from mvader_jax.train.objectives.diffusion import Diffusion
from mvader_jax.train.objectives.distillation import Distillation
from mvader_jax.train.objectives.vae import Autoencoding

Objective.kinds = {
    "vae": Autoencoding,
    "captioning": Captioning,
    "contrastive": Contrastive,
    "diffusion": Diffusion,
    "distillation": Distillation,
}

__all__ = [
    "Autoencoding",
    "Captioning",
    "Contrastive",
    "Diffusion",
    "Distillation",
    "LossFn",
    "Metrics",
    "Objective",
    "average_of",
]
