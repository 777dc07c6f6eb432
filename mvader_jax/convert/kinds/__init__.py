"""The kinds of public checkpoints: a file each, and a line here. The first that recognises a source reads it."""

from __future__ import annotations

from mvader_jax.convert.kinds.base import Kind
from mvader_jax.convert.kinds.clip import Clip
from mvader_jax.convert.kinds.clip_resnet import ClipResNet
from mvader_jax.convert.kinds.clip_text import ClipText
from mvader_jax.convert.kinds.gpt_neox import GptNeoX
from mvader_jax.convert.kinds.gptj import GptJ
from mvader_jax.convert.kinds.inception import Inception
from mvader_jax.convert.kinds.magma import Magma
from mvader_jax.convert.kinds.sd_compvis import CompVis
from mvader_jax.convert.kinds.sd_diffusers import Diffusers
from mvader_jax.convert.kinds.sgpt import SgptBiases

KINDS: list[Kind] = [
    Diffusers(),
    CompVis(),
    GptJ(),
    GptNeoX(),
    Magma(),
    SgptBiases(),
    ClipResNet(),
    Clip(),
    ClipText(),
    Inception(),
]
