"""M-VADER V2 on public weights: GPT-J-6B with MAGMA's adapters and SGPT's biases, Stable Diffusion 1.4.

V2 (table 1): the UNet trains; biases and adapters are frozen. `docs/weights.md` says how the public weights
become `bundles/open_s_magma`, the UNet's to_k and to_v made anew, 4096 wide, and where the data comes from. Then:

    mvader train configs/open_v2.py

The stages before are here for who wants to train them too, with `--stage`: `captioning` as MAGMA
(from GPT-J and CLIP RN50x16), `contrastive` as SGPT. `mvader plan configs/open_v2.py --topology v5e-256`
says beforehand what a pod makes of it.
"""

from mvader_jax.models.config import ModelConfig
from mvader_jax.paper import recipes as paper
from mvader_jax.train.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="open_v2",
        model=ModelConfig.open_m_vader(),
        stages={
            "captioning": paper.captioning(
                init=("bundles/gptj", "bundles/clip_rn50x16"), data=paper.laion("data/captions")
            ),
            "contrastive": paper.contrastive(init=("bundles/gptj",)),
            "diffusion": paper.diffusion("v2", init=("bundles/open_s_magma",), data=paper.laion()),
        },
    )
