"""What both ways of saving Stable Diffusion share: the model of its parts, and whether they fit."""

from __future__ import annotations

from mvader_jax.convert.kinds.clip_text import clip_tokenizer
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

#: What a UNet with these channels in and four out is.
_OTHER_UNETS = {
    5: "an upscaler or depth-to-image UNet",
    7: "an upscaler's UNet",
    8: "an InstructPix2Pix UNet (an image beside the noise)",
    9: "an inpainting UNet (a mask and an image beside the noise)",
}


def sd_model(
    unet: UNetConfig | None,
    vae: VAEConfig | None,
    text: ClipTextConfig | None,
    schedule: ScheduleConfig | None,
) -> ModelConfig:
    """The model of these parts. Raises UserError where they do not fit each other, or nothing here."""
    if unet is not None and unet.in_channels != unet.out_channels:
        what = _OTHER_UNETS.get(unet.in_channels, "no text-to-image UNet")
        raise UserError(
            f"this UNet takes {unet.in_channels} channels and gives {unet.out_channels}: {what}; only those that "
            "take as many as they give are drawn with"
        )
    if vae is not None and vae.in_channels != 3:
        raise UserError(f"this VAE is of pictures with {vae.in_channels} channels; only colour (3) is drawn")
    latents = unet.in_channels if unet is not None else 4
    if vae is not None and vae.latent_channels != latents:
        of = "this UNet's" if unet is not None else "Stable Diffusion's"
        raise UserError(
            f"this VAE's latents have {vae.latent_channels} channels, but {of} have {latents}; they do not fit"
        )
    if unet is not None and vae is None and latents != 4:
        raise UserError(f"this UNet's latents have {latents} channels, but Stable Diffusion's have 4")
    if unet is not None and text is not None and unet.cross_attention_dim != text.width:
        raise UserError(
            f"this UNet attends to states of width {unet.cross_attention_dim}, but this text encoder gives "
            f"{text.width}; they do not fit"
        )
    return ModelConfig(
        embedder="clip_text" if text is not None else "s_magma",
        text_encoder=text,
        unet=unet,
        vae=vae,
        schedule=schedule if unet is not None else None,
        tokenizer=clip_tokenizer(text) if text is not None else None,
    )
