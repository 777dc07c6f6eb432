"""M-VADER in JAX: image diffusion conditioned on any sequence of texts and images.

import mvader_jax as mv
pipe = mv.Pipeline.load("tiny")
pipe([mv.Text("a red circle"), mv.Image("photo.png", weight=0.3)], num_images=4, seed=0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvader_jax.condition import Condition
    from mvader_jax.prompt.elements import Image, Prompt, Text
    from mvader_jax.sampling.pipeline import Pipeline
    from mvader_jax.sampling.settings import SamplingSettings
    from mvader_jax.storage.programs import compilation_cache

__version__ = "0.1.0"
__all__ = ["Condition", "Image", "Pipeline", "Prompt", "SamplingSettings", "Text", "compilation_cache"]

_HOMES = {
    "Condition": "condition",
    "Pipeline": "sampling.pipeline",
    "Image": "prompt.elements",
    "Prompt": "prompt.elements",
    "SamplingSettings": "sampling.settings",
    "Text": "prompt.elements",
    "compilation_cache": "storage.programs",
}


def __getattr__(name: str) -> Any:
    # JAX is loaded when something is used, not when the package is named.
    if name in _HOMES:
        return getattr(importlib.import_module(f"mvader_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
