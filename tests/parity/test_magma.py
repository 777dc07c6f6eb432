"""S-MAGMA against a PyTorch twin: GPT-J with adapters hooked behind its sub-layers, prefix and encoder."""

from __future__ import annotations

from typing import Any

import jax
import micro
import numpy as np
import pytest
import torch
from openai_clip import openai_clip
from test_decoder import stacked
from torch_trees import close, jitter, tree_of
from transformers import GPTJConfig, GPTJModel

from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig
from mvader_jax.models.s_magma import SMagmaConfig, s_magma
from mvader_jax.prompt.elements import Image, Prompt, Text
from mvader_jax.prompt.layout import lay_out

WIDTH, LAYERS, TOKENS = 60, 2, 4


class Adapter(torch.nn.Module):
    """y + up(relu(down(y)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Linear(WIDTH, width), torch.nn.Linear(width, WIDTH)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y + self.up(torch.relu(self.down(y)))


@pytest.fixture(scope="module", params=["v1", "v2"])
def twin(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(5)
    model = jitter(
        GPTJModel(
            GPTJConfig(
                vocab_size=320,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=3,
                rotary_dim=8,
                n_positions=96,
                n_inner=90,
            )
        )
    )
    encoder = openai_clip().ModifiedResNet((1, 1, 1, 1), 64, 4, 64, 8)
    encoder.attnpool = torch.nn.Identity()
    encoder = jitter(encoder)
    projection, norm = torch.nn.Linear(256, WIDTH), jitter(torch.nn.LayerNorm(WIDTH))
    tree = tree_of(model.state_dict())
    layers = stacked(tree, "h", LAYERS)
    sites = ("mlp",) if request.param == "v1" else ("mlp", "attn")
    adapters: dict[str, Any] = {}
    for site in sites:
        hooked = [Adapter(14) for _ in range(LAYERS)]
        for block, adapter in zip(model.h, hooked, strict=True):
            if site == "mlp":
                block.mlp.register_forward_hook(lambda _, __, out, adapter=adapter: adapter(out))
            else:
                block.attn.register_forward_hook(
                    lambda _, __, out, adapter=adapter: (adapter(out[0]), *out[1:])
                )
        trees = {f"a_{i}": tree_of(adapter.state_dict()) for i, adapter in enumerate(hooked)}
        adapters[f"adapter_{site}"] = stacked(trees, "a", LAYERS)
    state = {k: v for k, v in encoder.state_dict().items() if "num_batches" not in k}
    components = {
        "decoder": {"wte": {"embedding": tree["wte"]["kernel"].T}, "layers": layers, "ln_f": tree["ln_f"]},
        "adapters": {"layers": adapters},
        "image_encoder": tree_of(
            state, lambda n: n.replace("running_mean", "mean").replace("running_var", "var")
        ),
        "image_prefix": {"proj": tree_of(projection.state_dict()), "ln": tree_of(norm.state_dict())},
    }
    config = SMagmaConfig(
        DecoderConfig(320, 320, WIDTH, LAYERS, 3, 20, 90, 96, rotary_dim=8),
        AdaptersConfig(width=14, attention=request.param == "v2"),
        ImageEncoderConfig((1, 1, 1, 1), 8, 64),
        ImagePrefixConfig(256, WIDTH),
    )

    def embed(pixels: np.ndarray) -> torch.Tensor:
        features = encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        return norm(projection(features))

    return {"model": model, "embed": embed, "components": components, "config": config}


def element(kind: str, rng: np.random.Generator) -> Text | Image:
    return Text(f"a {kind}") if kind != "image" else Image(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    "kinds", [["image", "red circle"], ["large", "image", "green cross"], ["image", "image"]]
)
def test_interleaved_prompts(twin: dict[str, Any], kinds: list[str]) -> None:
    rng = np.random.default_rng(0)
    prompt = Prompt(tuple(element(kind, rng) for kind in kinds))
    tokenizer = micro.bundle().tokenizer
    assert tokenizer is not None
    batch = lay_out(tokenizer, [prompt], image_size=64, image_tokens=TOKENS, max_positions=96)
    parts, images = [], iter(batch.pixels[0])
    for part in prompt.elements:
        if isinstance(part, Text):
            parts.append(twin["model"].wte(torch.tensor([tokenizer.encode(part.text)])))
        else:
            parts.append(twin["embed"](next(images)[None]))
    embeddings = torch.cat(parts, dim=1)
    expected = twin["model"](inputs_embeds=embeddings).last_hidden_state
    ours = jax.jit(lambda c, b: s_magma(twin["config"], c, b).hidden)(twin["components"], batch)
    close(ours[:, : embeddings.shape[1]], expected, 1e-4)
