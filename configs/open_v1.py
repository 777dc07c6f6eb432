"""M-VADER V1 on public weights: GPT-J-6B, MAGMA's image encoder and prefix, SGPT's biases, Stable Diffusion 1.4.

V1 (table 1): the UNet and the semantic biases train, adapters are not used. Put the public weights
together without the adapters, then train:

    mvader bundle bundles/open_v1 --decoder bundles/magma --biases bundles/sgpt \\
        --image-prefix bundles/magma --image-encoder bundles/magma \\
        --unet bundles/sd14 --vae bundles/sd14
    mvader train configs/open_v1.py

`docs/weights.md` says how the bundles and the data come about. The stage before, semantic biases as SGPT trains
them, is here too: `mvader train configs/open_v1.py --stage contrastive`.
"""

import dataclasses

from mvader_jax.models.config import ModelConfig
from mvader_jax.paper import recipes as paper
from mvader_jax.train.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="open_v1",
        model=dataclasses.replace(ModelConfig.open_m_vader(), adapters=None),
        stages={
            "contrastive": paper.contrastive(init=("bundles/gptj",)),
            "diffusion": paper.diffusion("v1", init=("bundles/open_v1",), data=paper.laion()),
        },
    )
