"""The picture world: 1,938 subjects in seven styles at 64 x 64, M-VADER V2 on pictures that were not made for it.

Fetch the packages and build the set as docs/data.md says, then run the stages in this order:

    for stage in vae language encoder diffusion interleaved distill; do
        mvader train configs/emoji.py --stage $stage
    done
    mvader evaluate --world emoji --bundle runs/emoji/diffusion/bundle --out zero_shot.json
    mvader evaluate --world emoji --bundle runs/emoji/interleaved/bundle --out interleaved.json
    mvader sample --fast --bundle runs/emoji/distill/bundle "a fox"

`diffusion` is the paper's training, single pictures and single texts; `interleaved` goes on from it with prompts of
several elements; `distill` makes of its UNet one that draws in four steps. Sized for one large GPU: an H100 took 66
steps a second of `language`, 31 of `encoder`, 24 of `diffusion`, 22 of `interleaved`, 58 of `vae` at a batch of 128, and
half a minute to a minute to compile each. `configs/emoji_small.py` is for two CPU cores. Captions are of five languages,
but in `diffusion` English: whether its UNet then understands the others is what the benchmark's told-de, -fr, -es and
-it measure. What of the set no stage sees: docs/data.md.
"""

import dataclasses

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Emoji
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig
from mvader_jax.train.config import Group, Stage, TrainConfig
from mvader_jax.train.objectives import Autoencoding, Captioning, Contrastive, Diffusion, Distillation
from mvader_jax.train.optim.optimizer import OptimizerConfig

#: Parts of captions are left out, so that a style is a word of its own, and not a part of a name.
WORLD = Emoji(omit=0.3, couples=0.3, grounds=0.1)
DATA = DataConfig(WORLD, image_size=64, workers=8)
ENGLISH = dataclasses.replace(DATA, source=dataclasses.replace(WORLD, languages=("en",)))
#: Tokens of a caption: two names and two styles.
LENGTH = 40
#: Width of the decoder's hidden states, which the UNet reads.
WIDTH = 256


def get_config() -> TrainConfig:
    model = ModelConfig(
        embedder="s_magma",
        decoder=DecoderConfig(
            vocab_size=4096,
            head_vocab_size=4096,
            width=WIDTH,
            num_layers=4,
            num_heads=8,
            head_dim=32,
            mlp_width=4 * WIDTH,
            max_positions=192,
            rotary_dim=16,
        ),
        adapters=AdaptersConfig(width=64),
        image_encoder=ImageEncoderConfig(layers=(1, 1, 1, 1), width=16, image_size=128),
        image_prefix=ImagePrefixConfig(in_width=512, width=WIDTH),
        unet=UNetConfig(
            in_channels=16,
            out_channels=16,
            block_out_channels=(104, 208),
            layers_per_block=1,
            attention=(True, True),
            cross_attention_dim=WIDTH,
            num_heads=4,
            norm_groups=8,
            sample_size=8,
        ),
        # 16 numbers for 8 x 8 pixels: four, as for the scenes, would blur faces.
        vae=VAEConfig(
            block_out_channels=(16, 32, 64, 96),
            layers_per_block=1,
            latent_channels=16,
            norm_groups=4,
            scaling_factor=1.0,
            sample_size=64,
        ),
        # Small models draw more surely where they predict v: a quick trial on these pictures was all with it.
        schedule=ScheduleConfig(prediction_type="v_prediction"),
        tokenizer=TokenizerConfig(eos_id=0, max_positions=192),
    )
    adam = OptimizerConfig(warmup_steps=100, decay="cosine", ema_decay=0.999)
    parallel = dataclasses.replace(DATA, source=dataclasses.replace(WORLD, parallel=0.7))
    single = Diffusion(dropout=0.1, posterior="mean", caption_length=LENGTH, p_image=0.3)
    # The UNet's data: as configs/tiny.py, which says why.
    groups = {
        "cross_attention": Group("unet/.*/attn2/to_[kv]/.*", 0.005),
        "unet": Group("unet/.*", 1.5e-3),
    }
    muon = OptimizerConfig(
        warmup_steps=200,
        decay="cosine",
        final_fraction=0.05,
        ema_decay=0.999,
        muon=("cross_attention",),
        whiten=("cross_attention",),
    )
    return TrainConfig(
        name="emoji",
        model=model,
        stages={
            "vae": Stage(
                objective=Autoencoding(kl_weight=1e-5),
                data=DATA,
                groups={"vae": Group("vae/.*", 1.5e-3)},
                steps=4_000,
                batch_size=128,
                optimizer=adam,
            ),
            "language": Stage(
                objective=Captioning(images=False, caption_length=2 * LENGTH),
                data=parallel,
                groups={"decoder": Group("decoder/.*", 2e-3)},
                steps=1_500,
                batch_size=128,
                optimizer=adam,
            ),
            # A picture's caption, name and style, told from those of others and of its own subject in another style:
            # it teaches all of S-MAGMA at once, on pictures and in five languages.
            "encoder": Stage(
                objective=Contrastive(picture_queries=True, caption_length=LENGTH),
                init=("language",),
                data=DATA,
                groups={
                    "encoder": Group("image_encoder/(?!.*/(mean|var)$).*", 1.5e-3),
                    "decoder": Group("(image_prefix|decoder|adapters|biases)/.*", 1e-3),
                },
                steps=2_000,
                batch_size=128,
                optimizer=adam,
            ),
            "diffusion": Stage(
                objective=single,
                init=("vae", "encoder"),
                data=ENGLISH,
                groups=groups,
                steps=12_000,
                batch_size=256,
                optimizer=muon,
                dtype="bfloat16",
                save_every=1_000,
            ),
            "interleaved": Stage(
                objective=dataclasses.replace(single, p_interleaved=0.4, p_image=0.15),
                init=("diffusion",),
                data=DATA,
                groups={
                    "cross_attention": Group("unet/.*/attn2/to_[kv]/.*", 0.003),
                    "unet": Group("unet/.*", 1e-3),
                },
                steps=4_000,
                batch_size=256,
                optimizer=muon,
                dtype="bfloat16",
                save_every=1_000,
            ),
            "distill": Stage(
                objective=Distillation(
                    posterior="mean", caption_length=LENGTH, p_interleaved=0.4, p_image=0.15
                ),
                init=("interleaved",),
                data=DATA,
                groups={"unet_fast": Group("unet_fast/.*", 5e-4)},
                steps=6_000,
                batch_size=192,
                optimizer=OptimizerConfig(
                    warmup_steps=100, decay="cosine", final_fraction=0.05, ema_decay=0.99
                ),
                save_every=1_000,
                sample_steps=4,
            ),
        },
    )
