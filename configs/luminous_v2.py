"""M-VADER V2 as the paper describes it, on Luminous-13B. Its weights are not public: this plans, it cannot start.

The decoder's dimensions are inferred (`DecoderConfig.luminous_13b`), the width of 5120 is known, and so is
that adapters follow attention and MLP (MultiFusion, figure 2); their bottleneck is MAGMA's v2, an eighth.
V2 (table 1): the UNet trains; biases and adapters are frozen. The stages before, with `--stage`:
`captioning` as MAGMA, `contrastive` as SGPT.

    mvader plan configs/luminous_v2.py --topology v5e-256
    mvader train configs/luminous_v2.py
"""

from mvader_jax.models.config import ModelConfig
from mvader_jax.paper import recipes as paper
from mvader_jax.train.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="luminous_v2",
        model=ModelConfig.luminous_m_vader(),
        stages={
            "captioning": paper.captioning(
                init=("bundles/luminous_13b", "bundles/clip_rn50x16"), data=paper.laion("data/captions")
            ),
            "contrastive": paper.contrastive(init=("bundles/luminous_13b",)),
            "diffusion": paper.diffusion("v2", init=("bundles/luminous_v2",), data=paper.laion()),
        },
    )
