"""The open S-MAGMA alone, with no stage to train: GPT-J-6B, MAGMA, SGPT's biases and Stable Diffusion 1.4.

MAGMA's adapters, prefix and encoder and SGPT's semantic biases on one frozen GPT-J-6B. All of it is public
(`docs/weights.md`: sizes, licences, what it takes):

    mvader convert hf:CompVis/stable-diffusion-v1-4 bundles/sd14
    mvader convert hf:EleutherAI/gpt-j-6b@float16 bundles/gptj
    mvader convert hf:Muennighoff/SGPT-5.8B-weightedmean-nli-bitfit bundles/sgpt --base bundles/gptj
    mvader convert hf:Aleph-Alpha/magma-research bundles/magma --tokenizer bundles/gptj/tokenizer
    mvader bundle bundles/open_s_magma --decoder bundles/magma --biases bundles/sgpt \\
        --adapters bundles/magma --image-prefix bundles/magma --image-encoder bundles/magma \\
        --unet bundles/sd14 --vae bundles/sd14

The UNet's cross-attention becomes as wide as GPT-J's hidden states, its to_k and to_v freshly initialised:
M-VADER's training starts there (`configs/open_v2.py`; V1 of the paper leaves out --adapters). For MAGMA's second
version: model.adapters.width=512 model.adapters.attention=true.
"""

from mvader_jax.models.config import ModelConfig
from mvader_jax.train.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(name="open_s_magma", model=ModelConfig.open_m_vader(), stages={})
