"""The language model: GPT-J's block, GPT-NeoX's and GPT-3's, with rotary positions and adapters.

Layers are scanned: every layer parameter is stacked on axis 0, and compile time does not grow with
depth. References: EleutherAI/gpt-neox, kingoflolz/mesh-transformer-jax (GPT-J), Aleph-Alpha/magma.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, Float32, Int

from mvader_jax.bounds import LARGEST_INT, Bound, PositiveFloat, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.models.attention import attend
from mvader_jax.models.quantised import Dense
from mvader_jax.models.remat import Remat, rematerialised
from mvader_jax.parallel.sharding import constrain, partitioned
from mvader_jax.settings import Checked

Dtype = Any
Tree = Any
States = tuple[Float[jax.Array, "_ _ D"], ...]
LogWeights = tuple[Float[jax.Array, "_ _"], ...]
Factors = tuple[jax.Array | None, ...]
#: Dimensions rotate in pairs.
_EVEN = Bound(lambda x: 0 <= x <= LARGEST_INT and x % 2 == 0, "an even number, 0 or more")


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Checked):
    """vocab_size: rows of `wte`; head_vocab_size: columns of `lm_head` (GPT-J's differ in MAGMA).

    block: "parallel" (GPT-J: attention and MLP read one norm), "parallel_two_norms" (GPT-NeoX),
        "sequential" (GPT-3: norm, attention, norm, MLP).
    rotary: which dimensions form a pair: neighbours ("interleaved", GPT-J) or those half the width
        apart ("half", GPT-NeoX). rotary_dim: leading dimensions of a head that rotate. Raises UserError where
        there are more of them than a head has.
    """

    vocab_size: PositiveInt = 50400
    head_vocab_size: PositiveInt = 50400
    width: PositiveInt = 4096
    num_layers: PositiveInt = 28
    num_heads: PositiveInt = 16
    head_dim: PositiveInt = 256
    mlp_width: PositiveInt = 16384
    max_positions: PositiveInt = 2048
    block: Literal["parallel", "parallel_two_norms", "sequential"] = "parallel"
    rotary: Literal["interleaved", "half"] = "interleaved"
    rotary_dim: Annotated[int, _EVEN] = 64
    rotary_base: PositiveFloat = 10000.0
    activation: Literal["gelu_new", "gelu"] = "gelu_new"
    attention_bias: bool = False
    out_bias: bool = False
    head_bias: bool = True
    norm_eps: PositiveFloat = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary_dim > self.head_dim:
            raise UserError(
                f"the decoder's rotary_dim of {self.rotary_dim} is more than its head_dim, {self.head_dim}"
            )

    @classmethod
    def gptj_6b(cls) -> DecoderConfig:
        """GPT-J-6B as released."""
        return cls()

    @classmethod
    def luminous_13b(cls) -> DecoderConfig:
        """Luminous-13B's dimensions as far as they are known: width 5120, rotary, decoder-only.

        Layers, heads and vocabulary are inferred from its parameter count; the model is not public.
        """
        return cls(
            vocab_size=128_000,
            head_vocab_size=128_000,
            width=5120,
            num_layers=40,
            num_heads=40,
            head_dim=128,
            mlp_width=20480,
            block="sequential",
            rotary="half",
            rotary_dim=128,
            attention_bias=True,
            out_bias=True,
            head_bias=False,
        )

    @classmethod
    def tiny(cls) -> DecoderConfig:
        """GPT-J's block at 1.4 M parameters."""
        return cls(
            vocab_size=512,
            head_vocab_size=512,
            width=160,
            num_layers=4,
            num_heads=5,
            head_dim=32,
            mlp_width=640,
            max_positions=192,
            rotary_dim=16,
        )


@dataclasses.dataclass(frozen=True)
class AdaptersConfig(Checked):
    """y + up(relu(down(y))) after a sub-layer (MAGMA section 3.3); width: of the bottleneck.

    parallel: the adapter reads the sub-layer's input instead of its output.
    """

    width: PositiveInt
    mlp: bool = True
    attention: bool = False
    parallel: bool = False

    @classmethod
    def magma_v1(cls) -> AdaptersConfig:
        """On the MLP, downsampled 4 times: 235,024,384 parameters on GPT-J-6B."""
        return cls(width=1024)

    @classmethod
    def magma_v2(cls) -> AdaptersConfig:
        """On attention and MLP, downsampled 8 times: 235,139,072 parameters on GPT-J-6B."""
        return cls(width=512, attention=True)

    @classmethod
    def tiny(cls) -> AdaptersConfig:
        return cls(width=40)


def rotate(
    x: Float[jax.Array, "B S H K"], positions: Int[jax.Array, " S"], config: DecoderConfig
) -> Float[jax.Array, "B S H K"]:
    """Rotary position embedding (Su et al. 2021) of the first `rotary_dim` dimensions.

    x: [B, S, H, K]; positions: [S]. Angles are computed in float32.
    """
    width = config.rotary_dim
    turned, rest = x[..., :width].astype(jnp.float32), x[..., width:]
    frequencies = config.rotary_base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    sin, cos = jnp.sin(angles)[None, :, None, :], jnp.cos(angles)[None, :, None, :]
    if config.rotary == "interleaved":
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([out.astype(x.dtype), rest], axis=-1)


class SelfAttention(nn.Module):
    """Causal self-attention with rotary positions and log weights. [B, S, D] -> [B, S, D]."""

    config: DecoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B S D"],
        log_weights: Float[jax.Array, "B S"],
        factors: Float[jax.Array, " H"] | Float[jax.Array, "B H"] | None,
    ) -> Float[jax.Array, "B S D"]:
        c = self.config
        inner = c.num_heads * c.head_dim

        def heads(name: str) -> jax.Array:
            y = Dense(inner, ("embed", "heads"), self.dtype, c.attention_bias, name=name)(x)
            return y.reshape(*y.shape[:-1], c.num_heads, c.head_dim)

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        positions = jnp.arange(x.shape[1])
        q, k = rotate(q, positions, c), rotate(k, positions, c)
        out = attend(q, k, v, log_weights=log_weights, causal=True, factors=factors)
        out = out.reshape(*x.shape[:-1], inner)
        return Dense(c.width, ("heads", "embed"), self.dtype, c.out_bias, name="out_proj")(out)


class MLP(nn.Module):
    """fc_in, gelu, fc_out. [B, S, D] -> [B, S, D]."""

    config: DecoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        c = self.config
        x = Dense(c.mlp_width, ("embed", "mlp"), self.dtype, name="fc_in")(x)
        x = nn.gelu(x, approximate=c.activation == "gelu_new")
        return Dense(c.width, ("mlp", "embed"), self.dtype, name="fc_out")(x)


def _adapter_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    return jnp.clip(1e-3 * jax.random.normal(key, shape, dtype), -2e-3, 2e-3)


class Adapter(nn.Module):
    """up(relu(down(x))), without the residual."""

    config: AdaptersConfig
    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        def dense(features: int, axes: tuple[str, str], name: str) -> nn.Dense:
            init = partitioned(_adapter_init, *axes)
            return nn.Dense(features, kernel_init=init, bias_init=_adapter_init, dtype=self.dtype, name=name)

        x = nn.relu(dense(self.config.width, ("embed", "mlp"), "down")(x))
        return dense(self.width, ("mlp", "embed"), "up")(x)


class Block(nn.Module):
    """One layer, as `nn.scan` runs it: carries the hidden states, takes its layer's `factors`.

    The hidden states are several batches of rows, each of its own length, that share the layer's
    parameters: on a mesh these are gathered once for all of them.
    """

    config: DecoderConfig
    adapters: AdaptersConfig | None
    dtype: Dtype

    @nn.compact
    def __call__(self, states: States, log_weights: LogWeights, factors: Factors) -> tuple[States, None]:
        c = self.config
        two_norms = c.block != "parallel"
        ln_1, ln_2 = self.norm("ln_1"), self.norm("ln_2") if two_norms else None
        attn, mlp = SelfAttention(c, self.dtype, name="attn"), MLP(c, self.dtype, name="mlp")
        on_attention = self.adapter("adapter_attn", self.adapters is not None and self.adapters.attention)
        on_mlp = self.adapter("adapter_mlp", self.adapters is not None and self.adapters.mlp)

        def one(x: jax.Array, weights: jax.Array, factors: jax.Array | None) -> jax.Array:
            x = constrain(x, "batch", "sequence", "activation")
            normed = ln_1(x).astype(self.dtype)
            attention = self.adapted(on_attention, normed, attn(normed, weights, factors))
            if c.block == "sequential":
                x = x + attention
            if ln_2 is not None:
                normed = ln_2(x).astype(self.dtype)
            out = self.adapted(on_mlp, normed, mlp(normed))
            return x + out if c.block == "sequential" else x + attention + out

        return tuple(map(one, states, log_weights, factors)), None

    def norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.config.norm_eps, dtype=jnp.float32, name=name)

    def adapter(self, name: str, used: bool) -> Adapter | None:
        if self.adapters is None or not used:
            return None
        return Adapter(self.adapters, self.config.width, self.dtype, name=name)

    def adapted(self, adapter: Adapter | None, given: jax.Array, y: jax.Array) -> jax.Array:
        """y + adapter(y), or of the sub-layer's input where the adapters are parallel."""
        if adapter is None or self.adapters is None:
            return y
        return y + adapter(given if self.adapters.parallel else y)


class Decoder(nn.Module):
    """The language model. remat: what of its layers is kept for the backward pass."""

    config: DecoderConfig
    adapters: AdaptersConfig | None = None
    dtype: Dtype = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        c = self.config
        self.wte = nn.Embed(
            c.vocab_size,
            c.width,
            embedding_init=partitioned(nn.initializers.normal(0.02), "vocab", "embed"),
            dtype=self.dtype,
        )
        block = rematerialised(Block, self.remat, scanned=True)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.adapters, self.dtype)
        self.ln_f = nn.LayerNorm(epsilon=c.norm_eps, dtype=jnp.float32)
        self.lm_head = nn.Dense(
            c.head_vocab_size,
            use_bias=c.head_bias,
            kernel_init=partitioned(nn.initializers.normal(0.02), "embed", "vocab"),
            dtype=self.dtype,
        )

    def embed(self, token_ids: Int[jax.Array, "B S"]) -> Float[jax.Array, "B S D"]:
        """Token ids -> their embeddings."""
        return self.wte(token_ids)

    def __call__(
        self,
        embeddings: Float[jax.Array, "B S D"],
        log_weights: Float[jax.Array, "B S"],
        factors: Float[jax.Array, "L H"] | Float[jax.Array, "B L H"] | None = None,
    ) -> Float[jax.Array, "B S D"]:
        """Hidden states after `ln_f`.

        log_weights: added to every self-attention score of that key (eq. 2); factors: multiplies them by
        layer and head, for all rows or for each; None means 1.
        """
        return self.together((embeddings,), (log_weights,), (factors,))[0]

    def together(self, embeddings: States, log_weights: LogWeights, factors: Factors | None = None) -> States:
        """`__call__` of several batches in one walk through the layers, each batch at its own length."""
        states = tuple(x.astype(self.dtype) for x in embeddings)
        by_layer = tuple(
            jnp.swapaxes(f, 0, 1) if f is not None and f.ndim == 3 else f
            for f in factors or (None,) * len(states)
        )
        states, _ = self.layers(states, log_weights, by_layer)
        return tuple(self.ln_f(x).astype(self.dtype) for x in states)

    def logits(self, hidden: Float[jax.Array, "B S D"]) -> Float32[jax.Array, "B S V"]:
        """Of the next token, from the hidden states."""
        return self.lm_head(hidden).astype(jnp.float32)

    def everything(self, token_ids: Int[jax.Array, "B S"]) -> Float32[jax.Array, "B S V"]:
        """Tokens to logits, through every parameter: what `init` runs."""
        return self.logits(self(self.embed(token_ids), jnp.zeros(token_ids.shape, jnp.float32)))


def adapter_leaves(params: Tree) -> Tree:
    """The `adapters` component of a decoder's parameters: its adapter_* sub-trees."""
    return _select(params, lambda path: any(part.startswith("adapter_") for part in path))


def without_adapters(params: Tree) -> Tree:
    """The `decoder` component of a decoder's parameters."""
    return _select(params, lambda path: not any(part.startswith("adapter_") for part in path))


def bias_leaves(params: Tree) -> Tree:
    """The `biases` component (BitFit): every bias of the layers and `ln_f`; not the head's, not adapters'."""

    def is_bias(path: tuple[str, ...]) -> bool:
        return path[-1] == "bias" and path[0] in ("layers", "ln_f") and "adapter" not in path[1]

    return _select(params, is_bias)


def assemble(decoder: Tree, adapters: Tree | None = None, biases: Tree | None = None) -> Tree:
    """One parameter tree for `Decoder.apply`: adapters added, biases laid over the decoder's own.

    Raises UserError where an adapter's place is taken, or a bias has no counterpart of its shape.
    """
    flat = dict(flatten_dict(decoder))
    for path, leaf in flatten_dict(adapters or {}).items():
        if path in flat:
            raise UserError(f"adapters would replace the decoder's {'/'.join(path)}")
        flat[path] = leaf
    for path, leaf in flatten_dict(biases or {}).items():
        if path not in flat or flat[path].shape != leaf.shape:
            raise UserError(f"the bias {'/'.join(path)} {leaf.shape} has no counterpart in the decoder")
        flat[path] = leaf
    return unflatten_dict(flat)


def _select(params: Mapping[str, Any], keep: Any) -> Tree:
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if keep(path)})
