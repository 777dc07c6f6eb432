"""The embedded model: M-VADER V2 of the paper at a size that two CPU cores train in under six hours.

Run the stages in this order; each starts from the bundles its `init` names:

    for stage in vae language encoder captioning contrastive diffusion interleaved pairs pairs_again distill; do
        mvader train configs/tiny.py --stage $stage
    done

The result is runs/tiny/distill/bundle: that of `pairs_again`, and beside its UNet one that draws in four steps.
runs/tiny/diffusion/bundle is what the paper trains, that has seen no prompt of several elements. Every stage goes on
where it stopped when started again.
V1 of the paper (semantic biases train too, no adapters) is a setting away:

    mvader train configs/tiny.py --stage diffusion model.adapters=null \\
        'stages.diffusion.groups.biases={"parameters": "biases/.*", "learning_rate": 0.0015}'
"""

import dataclasses

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Scenes
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

SCENES = DataConfig(Scenes(num_records=40_000, omit=0.3), image_size=64)
#: Tokens of a caption.
LENGTH = 22


def get_config() -> TrainConfig:
    model = ModelConfig(
        embedder="s_magma",
        decoder=DecoderConfig.tiny(),
        adapters=AdaptersConfig.tiny(),
        image_encoder=ImageEncoderConfig.tiny(),
        image_prefix=ImagePrefixConfig.tiny(),
        unet=UNetConfig.tiny(),
        vae=VAEConfig.tiny(),
        schedule=ScheduleConfig(),
        tokenizer=TokenizerConfig(eos_id=0, max_positions=192),
    )
    adam = OptimizerConfig(warmup_steps=100, decay="cosine", ema_decay=0.999)
    diffusion = Stage(
        objective=Diffusion(
            dropout=0.1,
            # The noise of this posterior, 4 to 11 % of a latent's variance, cannot be predicted: two
            # thirds of the loss, and of the noise in the gradient, were its. Means carry the same pictures.
            posterior="mean",
            # A latent of 8 x 8 shows through the noise up to t = 700. What only the prompt tells is learnt
            # beyond, where eq. 1 counts an error next to nothing. At 4, a tenth of the batch is below 250.
            timestep_bias=4.0,
            caption_length=LENGTH,
        ),
        init=("vae", "contrastive"),
        data=SCENES,
        groups={
            # Under Adam they learnt a colour in 10,000 steps, and no shape: what sets the hidden states
            # of prompts apart is a small part of their variance. Muon treats it like the rest.
            "cross_attention": Group("unet/.*/attn2/to_[kv]/.*", 0.005),
            "unet": Group("unet/.*", 1.5e-3),
        },
        steps=16_000,
        batch_size=32,
        optimizer=OptimizerConfig(
            warmup_steps=200,
            decay="cosine",
            final_fraction=0.05,
            ema_decay=0.999,
            muon=("cross_attention",),
            # What a shown colour changes in the hidden states is next to nothing of their variance.
            whiten=("cross_attention",),
        ),
        save_every=1_000,
    )
    taught = interleaved(diffusion)
    again = pairs(taught, init="pairs", steps=6_000)
    return TrainConfig(
        name="tiny",
        model=model,
        stages={
            "vae": Stage(
                objective=Autoencoding(kl_weight=1e-5),
                data=SCENES,
                groups={"vae": Group("vae/.*", 1.5e-3)},
                steps=3_200,
                batch_size=16,
                optimizer=adam,
            ),
            # The language model itself: captions alone, every weight of the decoder. Most of them are
            # followed by another of the same scene: what stands before a caption is worth reading.
            "language": Stage(
                objective=Captioning(images=False, caption_length=2 * LENGTH),
                data=dataclasses.replace(SCENES, source=dataclasses.replace(SCENES.source, parallel=0.7)),
                groups={"decoder": Group("decoder/.*", 2e-3)},
                steps=1_800,
                batch_size=32,
                optimizer=adam,
            ),
            # What CLIP's pretraining is to MAGMA: an image encoder that has learnt to see, by telling the
            # picture's caption from others. The decoder that learns beside it is thrown away.
            "encoder": Stage(
                objective=Contrastive(picture_queries=True, caption_length=LENGTH),
                init=("language",),
                data=SCENES,
                groups={
                    # The statistics of batch norm stay as calibrated.
                    "encoder": Group("image_encoder/(?!.*/(mean|var)$).*", 2e-3),
                    "decoder": Group("(image_prefix|decoder)/.*", 1e-3),
                },
                steps=500,
                batch_size=48,
                optimizer=adam,
            ),
            # MAGMA: the language model as it was and frozen; adapters and prefix learn to caption.
            "captioning": Stage(
                objective=Captioning(caption_length=LENGTH),
                init=("encoder", "language"),
                data=SCENES,
                groups={
                    "adapters": Group("(adapters|image_prefix)/.*", 2e-3),
                    # Fast, too: at 2e-4 and 1,000 steps two colours in three were told wrong, and then the UNet
                    # does not learn them from pictures either.
                    "encoder": Group("image_encoder/(?!.*/(mean|var)$).*", 1.5e-3),
                },
                steps=2_500,
                batch_size=32,
                optimizer=adam,
            ),
            # Semantic search: biases alone, on the bare language model.
            "contrastive": Stage(
                objective=Contrastive(caption_length=LENGTH),
                init=("captioning",),
                data=SCENES,
                groups={"biases": Group("biases/.*", 4e-3)},
                steps=150,
                batch_size=64,
                optimizer=adam,
            ),
            "diffusion": diffusion,
            "interleaved": taught,
            # Two pictures were still getting better where the rate had fallen: it rises twice more.
            "pairs": pairs(taught, init="interleaved", steps=5_000),
            "pairs_again": again,
            "distill": distilled(again, init="pairs_again"),
        },
    )


def interleaved(diffusion: Stage) -> Stage:
    """The data that the paper's limitations ask for: its model goes on with prompts of several elements, the target
    being what they ask for."""
    return dataclasses.replace(
        diffusion,
        objective=dataclasses.replace(
            diffusion.objective,
            p_image=0.15,
            p_interleaved=0.55,
            # Which colour goes where is learnt last, and only at the noise that still hides it.
            timestep_bias=20.0,
        ),
        init=("diffusion",),
        data=dataclasses.replace(
            SCENES,
            # Two pictures are the hardest.
            source=dataclasses.replace(
                SCENES.source, prompts=("color", "style", "pair", "pair", "pair", "pair_color")
            ),
        ),
        groups={
            "cross_attention": dataclasses.replace(diffusion.groups["cross_attention"], learning_rate=0.004),
            "unet": dataclasses.replace(diffusion.groups["unet"], learning_rate=1.2e-3),
        },
        steps=8_000,
    )


def pairs(taught: Stage, init: str, steps: int) -> Stage:
    """Interleaved prompts go on, with more of what came out wrong: two pictures, and those whose objects stand in the
    same place, of which one must move."""
    source = dataclasses.replace(
        SCENES.source, prompts=("color", "style", "pair", "pair", "pair_place", "pair_place", "pair_color")
    )
    return dataclasses.replace(
        taught,
        objective=dataclasses.replace(taught.objective, p_interleaved=0.7),
        init=(init,),
        data=dataclasses.replace(SCENES, source=source),
        steps=steps,
    )


def distilled(taught: Stage, init: str) -> Stage:
    """Its UNet learns to draw in four steps of one call each, from the prompts that it was taught with."""
    learnt = taught.objective
    assert isinstance(learnt, Diffusion)
    return dataclasses.replace(
        taught,
        objective=Distillation(
            posterior="mean",
            timestep_bias=4.0,
            caption_length=LENGTH,
            p_image=learnt.p_image,
            p_interleaved=learnt.p_interleaved,
        ),
        init=(init,),
        groups={"unet_fast": Group("unet_fast/.*", 3e-4)},
        steps=3_000,
        optimizer=OptimizerConfig(warmup_steps=100, decay="cosine", final_fraction=0.05, ema_decay=0.99),
        sample_steps=4,
    )
