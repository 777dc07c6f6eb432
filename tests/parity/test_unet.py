"""The UNet and its blocks against diffusers' PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from flax.traverse_util import flatten_dict
from torch_trees import array, close, jitter, nchw, nhwc, tree_of

from mvader_jax.condition import PADDING, Condition
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.unet_blocks import (
    Downsample,
    ResnetBlock,
    TimeEmbedding,
    Transformer2D,
    TransformerBlock,
    Upsample,
    guidance_embedding,
    timestep_embedding,
)
from mvader_jax.parallel.sharding import abstract_init

BLOCK, WHOLE = 2e-5, 1e-4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("width", [20, 33, 64])
def test_timestep_embedding(width: int) -> None:
    timesteps = torch.tensor([0, 1, 17, 100, 345, 999])
    theirs = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)(timesteps)
    # One rounding of a frequency is 3e-5 at an angle of 999, in theirs as in ours.
    close(timestep_embedding(array(timesteps), width), theirs, 1e-4)

    embedding = jitter(TimestepEmbedding(width, 4 * width))
    ours = TimeEmbedding(4 * width).apply({"params": tree_of(embedding.state_dict())}, array(theirs))
    close(ours, embedding(theirs), BLOCK)


@pytest.mark.parametrize(("channels", "features"), [(24, 40), (40, 40)], ids=["shortcut", "same-width"])
def test_resnet_block(channels: int, features: int) -> None:
    theirs = jitter(
        ResnetBlock2D(in_channels=channels, out_channels=features, temb_channels=56, groups=8, eps=1e-5)
    )
    x, time = 3 + torch.randn(2, channels, 6, 10), torch.randn(2, 56)
    params = tree_of(theirs.state_dict())
    assert ("conv_shortcut" in params) == (channels != features)
    ours = ResnetBlock(features, 8, 1e-5).apply({"params": params}, nhwc(x), array(time))
    close(nchw(ours), theirs(x, time), BLOCK)


def test_samplers() -> None:
    x = torch.randn(2, 12, 6, 10)
    down = jitter(Downsample2D(12, use_conv=True, out_channels=12, padding=1, name="op"))
    # Older checkpoints hold the convolution under two names.
    params = tree_of({k: v for k, v in down.state_dict().items() if not k.startswith("Conv2d_0")})
    close(nchw(Downsample(12).apply({"params": params}, nhwc(x))), down(x), BLOCK)
    up = jitter(Upsample2D(12, use_conv=True, out_channels=12))
    params = tree_of({k: v for k, v in up.state_dict().items() if not k.startswith("Conv2d_0")})
    close(nchw(Upsample(12).apply({"params": params}, nhwc(x))), up(x), BLOCK)


@pytest.mark.parametrize(("heads", "head_width", "context_width"), [(5, 8, 28), (3, 12, 40)])
def test_transformer_block(heads: int, head_width: int, context_width: int) -> None:
    width = heads * head_width
    theirs = jitter(
        BasicTransformerBlock(
            width, heads, head_width, cross_attention_dim=context_width, activation_fn="geglu"
        )
    )
    x, context = torch.randn(2, 21, width), torch.randn(2, 9, context_width)
    log_weights = torch.randn(2, 9)
    ours = TransformerBlock(heads).apply(
        {"params": tree_of(theirs.state_dict())}, array(x), Condition(array(context), array(log_weights))
    )
    # A mask in diffusers is what is added to the scores: eq. 2 itself.
    close(ours, theirs(x, encoder_hidden_states=context, encoder_attention_mask=log_weights[:, None]), BLOCK)


def test_transformer_2d() -> None:
    theirs = jitter(Transformer2DModel(4, 10, in_channels=40, norm_num_groups=8, cross_attention_dim=28))
    x, context = torch.randn(2, 40, 6, 4), torch.randn(2, 9, 28)
    ours = Transformer2D(4, 8).apply(
        {"params": tree_of(theirs.state_dict())}, nhwc(x), Condition(array(context), jnp.zeros((2, 9)))
    )
    close(nchw(ours), theirs(x, encoder_hidden_states=context).sample, BLOCK)


def torch_unet(config: UNetConfig) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.num_heads,
        transformer_layers_per_block=config.transformer_depth,
        norm_num_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        use_linear_projection=config.linear_projection,
        time_cond_proj_dim=config.time_cond_proj_dim,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
    )


# in, out, channels, layers, attention, width of the condition, heads, groups, eps, sample size
CONFIGS = {
    "two-levels": UNetConfig(4, 4, (24, 40), 1, (True, True), 28, 4, 8, 1e-5, 8),
    "gap-in-attention": UNetConfig(4, 4, (16, 24, 40), 2, (True, False, True), 36, 2, 4, 1e-6, 8),
    "heads-a-level": UNetConfig(4, 8, (20, 30, 60), 1, (False, True, True), 24, (2, 3, 5), 5, 1e-5, 8),
    "deep-transformers": UNetConfig(4, 4, (24, 40), 1, (True, True), 28, 4, 8, 1e-5, 8, (1, 3)),
    "linear-projections": UNetConfig(4, 4, (16, 32), 1, (True, True), 28, (2, 4), 8, 1e-5, 8, 1, True),
    "guided-inside": UNetConfig(4, 4, (24, 40), 1, (True, True), 28, 4, 8, 1e-5, 8, 1, False, 33),
    "sd-shaped": UNetConfig(5, 3, (32, 48, 64, 64), 2, (True, True, True, False), 20, 8, 16, 1e-5, 16),
}


def add_to_scores(unet: UNet2DConditionModel, log_weights: torch.Tensor) -> None:
    """Eq. 2 in every cross-attention; the model's own mask argument is for zeros and ones alone."""

    def give(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": log_weights[:, None]}

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_pre_hook(give, with_kwargs=True)


def scale_embedding(w: torch.Tensor, width: int) -> torch.Tensor:
    """diffusers' embedding of a guidance scale less 1."""
    method = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    return method(None, w, embedding_dim=width)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [20, 33, 256])
def test_guidance_embedding(width: int) -> None:
    w = torch.tensor([0.0, 1.0, 6.5, 13.0])
    # Angles go up to 13,000, where one rounding of a frequency is 1e-3.
    close(guidance_embedding(array(w + 1), width), scale_embedding(w, width), 2e-3)

    embedding = jitter(TimestepEmbedding(24, 96, cond_proj_dim=width))
    x, given = torch.randn(4, 24), scale_embedding(w, width)
    params = tree_of(embedding.state_dict())
    assert params["cond_proj"]["kernel"].shape == (width, 24)
    ours = TimeEmbedding(96).apply({"params": params}, array(x), array(given))
    close(ours, embedding(x, given), BLOCK)


@pytest.mark.parametrize(("config", "scales"), [("two-levels", True), ("guided-inside", False)])
def test_a_guidance_scale_is_given_where_it_is_read(config: str, scales: bool) -> None:
    unet, condition = UNet(CONFIGS[config]), Condition(jnp.zeros((1, 2, 28)), jnp.zeros((1, 2)))
    given = (None, jnp.ones(1)) if scales else ()
    with pytest.raises(UserError, match="takes no guidance scale" if scales else "and there is none"):
        jax.eval_shape(unet.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), condition, *given)


def whole(config: UNetConfig, height: int, width: int) -> None:
    theirs = jitter(torch_unet(config))
    x, timesteps = torch.randn(2, config.in_channels, height, width), torch.tensor([981, 3])
    context, log_weights = torch.randn(2, 11, config.cross_attention_dim), torch.randn(2, 11)
    log_weights[1, 7:] = PADDING
    condition = Condition(jnp.asarray(context.numpy()), jnp.asarray(log_weights.numpy()))
    params = tree_of(theirs.state_dict())
    inputs: tuple[Any, ...] = (nhwc(x), array(timesteps), condition)
    scales = None
    if config.time_cond_proj_dim is not None:
        scales = scale_embedding(torch.tensor([7.3, 1.0]), config.time_cond_proj_dim)
        inputs += (None, jnp.array([8.3, 2.0]))
    expected, _ = abstract_init(UNet(config), *inputs)
    assert {k: v.shape for k, v in flatten_dict(params).items()} == {
        k: v.shape for k, v in flatten_dict(expected).items()
    }
    ours = jax.jit(UNet(config).apply)({"params": params}, *inputs)
    add_to_scores(theirs, log_weights)
    with torch.no_grad():
        reference = theirs(x, timesteps, context, timestep_cond=scales).sample
    close(nchw(ours), reference, WHOLE)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole(name: str) -> None:
    whole(CONFIGS[name], 16, 24)


@pytest.mark.slow
def test_whole_at_full_size() -> None:
    whole(UNetConfig.sd14(), 16, 24)
