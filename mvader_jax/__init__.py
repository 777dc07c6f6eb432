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
    from mvader_jax.errors import UserError
    from mvader_jax.images.sheet import grid
    from mvader_jax.prompt.elements import Image, Prompt, Text
    from mvader_jax.sampling import tasks
    from mvader_jax.sampling.attention import Attention
    from mvader_jax.sampling.drawing import Drawing, read_drawing
    from mvader_jax.sampling.pictures import NotFiniteError, Pictures
    from mvader_jax.sampling.pipeline import Pipeline
    from mvader_jax.sampling.settings import SamplingSettings
    from mvader_jax.sampling.steps import Cancelled, Step
    from mvader_jax.storage.programs import compilation_cache

__version__ = "0.1.0"
__all__ = [
    "Attention",
    "Cancelled",
    "Condition",
    "Drawing",
    "Image",
    "NotFiniteError",
    "Pictures",
    "Pipeline",
    "Prompt",
    "SamplingSettings",
    "Step",
    "Text",
    "UserError",
    "compilation_cache",
    "grid",
    "read_drawing",
    "tasks",
]

#: Where the public names live; a module has its own name.
_HOMES = {
    "Attention": "sampling.attention",
    "Cancelled": "sampling.steps",
    "Condition": "condition",
    "Drawing": "sampling.drawing",
    "Image": "prompt.elements",
    "NotFiniteError": "sampling.pictures",
    "Pictures": "sampling.pictures",
    "Pipeline": "sampling.pipeline",
    "Prompt": "prompt.elements",
    "SamplingSettings": "sampling.settings",
    "Step": "sampling.steps",
    "Text": "prompt.elements",
    "UserError": "errors",
    "compilation_cache": "storage.programs",
    "grid": "images.sheet",
    "read_drawing": "sampling.drawing",
    "tasks": "sampling",
}


if not TYPE_CHECKING:  # or every name would be one

    def __getattr__(name: str) -> Any:
        # JAX is loaded when something is used, not when the package is named.
        if name in _HOMES:
            home = f"mvader_jax.{_HOMES[name]}"
            module = importlib.import_module(home)
            return (
                getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{home}.{name}")
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"annotations", "importlib", "TYPE_CHECKING", "Any"})


# Before JAX, which loads libtpu, does.
importlib.import_module("mvader_jax.parallel.libtpu").hush()
