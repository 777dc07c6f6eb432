"""Real pictures with real names: emoji at 64 x 64, the whole path on something that was not made for it.

    mvader data build emoji_styles emoji_packages data/emoji  # docs/data.md fetches the packages
    for stage in vae language captioning diffusion; do
        mvader train configs/emoji.py --stage $stage
    done
    mvader sample "red apple" --bundle runs/emoji/diffusion/bundle

Sized for about 40 minutes of two CPU cores. None of the pictures is in this repository (docs/credits.md).
There are no pairs to learn similarity from: the semantic biases stay the decoder's own.
"""

import dataclasses

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Records
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig
from mvader_jax.train.config import Group, Stage, TrainConfig
from mvader_jax.train.objectives import Autoencoding, Captioning, Diffusion
from mvader_jax.train.optim.optimizer import OptimizerConfig

EMOJI = DataConfig(Records(("data/emoji",)), image_size=64)


def get_config() -> TrainConfig:
    model = ModelConfig(
        embedder="s_magma",
        decoder=dataclasses.replace(DecoderConfig.tiny(), vocab_size=2048, head_vocab_size=2048),
        adapters=AdaptersConfig.tiny(),
        image_encoder=ImageEncoderConfig.tiny(),
        image_prefix=ImagePrefixConfig.tiny(),
        unet=UNetConfig.tiny(),
        vae=VAEConfig.tiny(),
        schedule=ScheduleConfig(),
        tokenizer=TokenizerConfig(eos_id=0, max_positions=192),
    )
    adam = OptimizerConfig(warmup_steps=100, decay="cosine", ema_decay=0.999)
    return TrainConfig(
        name="emoji",
        model=model,
        stages={
            "vae": Stage(
                objective=Autoencoding(kl_weight=1e-5),
                data=EMOJI,
                groups={"vae": Group("vae/.*", 1.5e-3)},
                steps=1_200,
                batch_size=16,
                optimizer=adam,
            ),
            "language": Stage(
                objective=Captioning(images=False, caption_length=16),
                data=EMOJI,
                groups={"decoder": Group("decoder/.*", 2e-3)},
                steps=400,
                batch_size=32,
                optimizer=adam,
            ),
            "captioning": Stage(
                objective=Captioning(caption_length=16),
                init=("language",),
                data=EMOJI,
                groups={
                    "adapters": Group("(adapters|image_prefix)/.*", 2e-3),
                    # The statistics of batch norm stay as calibrated.
                    "encoder": Group("image_encoder/(?!.*/(mean|var)$).*", 2e-3),
                },
                steps=400,
                batch_size=32,
                optimizer=adam,
            ),
            "diffusion": Stage(
                objective=Diffusion(posterior="mean", timestep_bias=15.0, caption_length=16),
                init=("vae", "captioning"),
                data=EMOJI,
                # As configs/tiny.py, which says why.
                groups={
                    "cross_attention": Group("unet/.*/attn2/to_[kv]/.*", 0.02),
                    "unet": Group("unet/.*", 1e-3),
                },
                steps=2_500,
                batch_size=32,
                optimizer=OptimizerConfig(
                    warmup_steps=200,
                    decay="cosine",
                    final_fraction=0.05,
                    ema_decay=0.999,
                    muon=("cross_attention",),
                ),
                save_every=250,
            ),
        },
    )
