"""Configs whose fields do not fit together are refused when they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClipTextConfig(width=100, num_heads=3), "width of 100 does not divide by its num_heads, 3"),
        (lambda: DecoderConfig(rotary_dim=64, head_dim=32), "rotary_dim of 64 is more than its head_dim, 32"),
        (lambda: DecoderConfig(rotary_dim=7), "rotary_dim is 7"),
        (lambda: ImageEncoderConfig(image_size=100), "image_size is 100.* multiple of 32"),
        (lambda: ImageEncoderConfig(image_size=2**31 - 32), "image_size is .*at most 16384"),
        (lambda: UNetConfig(num_heads=7), "must divide by norm_groups"),
        (
            lambda: UNetConfig(transformer_depth=(1, 2)),
            r"transformer_depth is \(1, 2\); give one number, or one a",
        ),
        (lambda: VAEConfig(norm_groups=7), "must divide by norm_groups"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_require_names_what_is_missing() -> None:
    model = ModelConfig(vae=VAEConfig.tiny(), decoder=DecoderConfig.tiny())
    assert model.require(VAEConfig) is model.vae and model.require(DecoderConfig) is model.decoder
    with pytest.raises(UserError, match="this model has no unet; it has decoder, vae"):
        model.require(UNetConfig)
    with pytest.raises(UserError, match="this model has no vae; it has no parts"):
        ModelConfig().require(VAEConfig)
