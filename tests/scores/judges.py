"""Networks that judge, small and random, in bundles; and folders of pictures for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import micro
import numpy as np
import PIL.Image

from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.clip_vision import ClipProjectionsConfig, ClipVisionConfig
from mvader_jax.models.components import JUDGES, abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.inception import InceptionConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig, train_tokenizer
from mvader_jax.storage.bundle import Bundle, save_bundle

TEXT = ClipTextConfig(vocab_size=300, width=32, num_layers=1, num_heads=2, mlp_width=48, max_positions=12)
CLIP = ModelConfig(
    embedder="clip_text",
    text_encoder=TEXT,
    vision_encoder=ClipVisionConfig.tiny(),
    clip_projections=ClipProjectionsConfig(24, TEXT.width, ClipVisionConfig.tiny().width),
)


def _random(model: ModelConfig, *names: str) -> dict[str, object]:
    rng = np.random.default_rng(1)
    shapes, _ = abstract_components(model, names)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: micro.draw(rng, path, leaf), shapes)


def save_inception(path: Path) -> Path:
    model = ModelConfig(inception=InceptionConfig.tiny())
    save_bundle(path, Bundle(model, _random(model, "inception")))
    return path


def save_clip(path: Path, *, tokenizer: bool = True) -> Path:
    trained = train_tokenizer(["a red circle on the left", "a blue square"] * 3, TEXT.vocab_size)
    # Of CLIP's kind: one token before, one after that pads too.
    config = dataclasses.replace(
        TokenizerConfig.clip(), kind="gpt2", eos_id=0, bos_id=0, pad_id=0, length=12, max_positions=12
    )
    model = dataclasses.replace(CLIP, tokenizer=config)
    trained.config, trained.words = config, None
    components = _random(model, "text_encoder", *JUDGES[1:])
    save_bundle(path, Bundle(model, components, trained if tokenizer else None))
    return path


def save_pictures(folder: Path, count: int, *, seed: int = 0, level: int = 0) -> Path:
    """Odd sizes, noise about a colour of their own."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)))
        colour = rng.integers(level, 200, 3)
        noise = rng.integers(0, 50, (*size, 3))
        picture = PIL.Image.fromarray((colour + noise).astype(np.uint8))
        picture.save(folder / f"{number:03d}.png")
    return folder
