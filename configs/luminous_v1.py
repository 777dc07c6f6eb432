"""M-VADER V1 as the paper describes it, on Luminous-13B. Its weights are not public: this plans, it cannot start.

The decoder's dimensions are inferred (`DecoderConfig.luminous_13b`), the width of 5120 is known. V1
(table 1): the UNet and the semantic biases train, adapters are not used.

    mvader plan configs/luminous_v1.py --topology v5e-256
    mvader train configs/luminous_v1.py
"""

import dataclasses

from mvader_jax.models.config import ModelConfig
from mvader_jax.paper import recipes as paper
from mvader_jax.train.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="luminous_v1",
        model=dataclasses.replace(ModelConfig.luminous_m_vader(), adapters=None),
        stages={
            "contrastive": paper.contrastive(init=("bundles/luminous_13b",)),
            "diffusion": paper.diffusion("v1", init=("bundles/luminous_v1",), data=paper.laion()),
        },
    )
