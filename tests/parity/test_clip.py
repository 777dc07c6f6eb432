"""CLIP's two towers and projections against transformers' CLIPModel and OpenAI's own code, converted, on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import twins
from converting import converted
from openai_clip import openai_clip

from mvader_jax.convert.engine import external, manifest
from mvader_jax.convert.kinds.base import Options, open_weights, settings_of
from mvader_jax.convert.kinds.clip import Clip
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipText
from mvader_jax.models.clip_vision import (
    ClipProjections,
    ClipProjectionsConfig,
    ClipVision,
    ClipVisionConfig,
)
from mvader_jax.scores.clip import at_end
from mvader_jax.storage.bundle import Bundle

VOCABULARY = 99
TOKENS = np.array([[97, 5, 6, 98, 98, 98], [97, 7, 8, 9, 10, 98]], np.int32)


def close(ours: Any, theirs: torch.Tensor, bound: float = 2e-5) -> None:
    reference = theirs.detach().double().numpy()
    assert np.linalg.norm(np.asarray(ours, np.float64) - reference) <= bound * np.linalg.norm(reference)


def features(bundle: Bundle, pixels: np.ndarray, tokens: np.ndarray) -> tuple[Any, Any]:
    model = bundle.model
    images = ClipVision(model.require(ClipVisionConfig)).apply(
        {"params": bundle.components["vision_encoder"]}, jnp.asarray(pixels)
    )
    assert model.text_encoder is not None and model.tokenizer is not None
    states = ClipText(model.text_encoder).apply(
        {"params": bundle.components["text_encoder"]}, jnp.asarray(tokens)
    )
    projections = ClipProjections(model.require(ClipProjectionsConfig))
    return projections.apply(
        {"params": bundle.components["clip_projections"]},
        at_end(states, jnp.asarray(tokens), model.tokenizer.eos_id),
        images,
    )


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_folder_of_transformers(tmp_path: Path, activation: str) -> None:
    theirs = twins.whole_clip(activation)
    theirs.save_pretrained(tmp_path / "clip")
    bundle = converted(tmp_path / "clip", tmp_path / "out")
    assert sorted(bundle.components) == ["clip_projections", "text_encoder", "vision_encoder"]
    pixels = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)
    texts, images = features(bundle, pixels, TOKENS)
    with torch.no_grad():
        of_text = theirs.text_model(torch.tensor(TOKENS)).pooler_output @ theirs.text_projection.weight.T
        seen = theirs.vision_model(torch.tensor(pixels).permute(0, 3, 1, 2)).pooler_output
        of_image = seen @ theirs.visual_projection.weight.T
        whole = theirs(torch.tensor(TOKENS), torch.tensor(pixels).permute(0, 3, 1, 2))
    close(texts, torch.nn.functional.normalize(of_text))
    close(images, torch.nn.functional.normalize(of_image))
    close(np.asarray(texts) @ np.asarray(images).T, whole.logits_per_text / theirs.logit_scale.exp())


@pytest.fixture(scope="module")
def openai() -> Any:
    torch.manual_seed(2)
    model = (
        openai_clip()
        .CLIP(
            embed_dim=24,
            image_resolution=48,
            vision_layers=2,
            vision_width=64,
            vision_patch_size=16,
            context_length=6,
            vocab_size=VOCABULARY,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=2,
        )
        .eval()
    )
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("archive", [True, False])
def test_an_archive_of_openai(tmp_path: Path, openai: Any, archive: bool) -> None:
    file = tmp_path / "clip" / "ViT-tiny.pt"
    file.parent.mkdir()
    pixels = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    seen = torch.tensor(pixels).permute(0, 3, 1, 2)
    if archive:
        torch.jit.save(torch.jit.trace(openai, (seen, torch.tensor(TOKENS))), file)
    else:
        torch.save(openai.state_dict(), file)
    (file.parent / "config.json").write_text(json.dumps({"num_attention_heads": 1}))
    bundle = converted(file, tmp_path / "out")
    texts, images = features(bundle, pixels, TOKENS)
    with torch.no_grad():
        close(texts, torch.nn.functional.normalize(openai.encode_text(torch.tensor(TOKENS))))
        close(images, torch.nn.functional.normalize(openai.encode_image(seen)))


def test_the_map_goes_both_ways(tmp_path: Path) -> None:
    theirs = twins.whole_clip()
    theirs.save_pretrained(tmp_path / "clip")
    bundle = converted(tmp_path / "clip", tmp_path / "out")
    source = Clip().read(
        open_weights(tmp_path / "clip", Options()), settings_of(tmp_path / "clip", Options()), Options()
    )

    def read(component: str, path: str, layer: int | None) -> np.ndarray:
        leaf: Any = bundle.components[component]
        for key in path.split("/"):
            leaf = leaf[key]
        return np.asarray(leaf if layer is None else leaf[layer])

    state = theirs.state_dict()
    back = dict(external(source.parts[0].source_map, source.abstract, read))
    assert set(back) == set(manifest(source.parts[0].source_map, source.abstract))
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name].numpy())
    assert set(state) - set(back) <= {"logit_scale"} | {name for name in state if "position_ids" in name}


def test_an_image_tower_alone_is_told(tmp_path: Path) -> None:
    theirs = twins.whole_clip()
    (tmp_path / "clip").mkdir()
    torch.save(theirs.vision_model.state_dict(), tmp_path / "clip" / "pytorch_model.bin")
    state = {f"vision_model.{name}": value for name, value in theirs.vision_model.state_dict().items()}
    torch.save(state, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(UserError, match="the image tower of a CLIP alone"):
        converted(tmp_path / "clip", tmp_path / "out")
