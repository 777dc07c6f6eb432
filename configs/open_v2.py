"""M-VADER V2 on public weights: GPT-J-6B with MAGMA's adapters and SGPT's biases, Stable Diffusion 1.4.

V2 (table 1): the UNet trains; biases and adapters are frozen. Convert the public weights, put them
together (the UNet's to_k and to_v are made anew, 4096 wide), train:

    mvader convert magma/mp_rank_00_model_states.pt bundles/magma
    mvader convert sgpt-nli-bitfit bundles/sgpt --base gpt-j-6b
    mvader convert stable-diffusion-v1-4 bundles/sd14
    mvader bundle bundles/open_v2 --decoder bundles/magma --adapters bundles/magma \\
        --image-prefix bundles/magma --image-encoder bundles/magma --biases bundles/sgpt \\
        --unet bundles/sd14 --vae bundles/sd14
    mvader train configs/open_v2.py --mesh data=16,fsdp=16

The stages before are here for who wants to train them too, with `--objective`: `captioning` as MAGMA
(from GPT-J and CLIP RN50x16), `contrastive` as SGPT. `mvader plan configs/open_v2.py --topology v5e:16x16`
says beforehand what a pod makes of it.
"""

from mvader_jax.config import ModelConfig
from mvader_jax.train import paper
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
            "diffusion": paper.diffusion("v2", init=("bundles/open_v2",), data=paper.laion()),
        },
    )
