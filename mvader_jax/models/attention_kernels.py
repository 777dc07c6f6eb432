"""Which kernel computes an attention, and how the libraries' kernels take log weights.

The fast kernels have no argument for a bias that is the same for every query, but such a bias is one more
dimension of the heads: a query's coordinate there is 1, a key's is its bias. Two dimensions hold it here,
what bfloat16 keeps of the bias and what it drops, so a weight is as exact as in float32. Where a kernel
pads heads to 128 anyway (TPU), 40 + 2 dimensions cost what 40 do.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Float

from mvader_jax.parallel.sharding import mesh_axes

#: plain: XLA, all scores in memory. blocks: XLA, the scores of some queries of one head at a time.
#: splash: Pallas' kernel for TPUs (jax.experimental.pallas.ops.tpu).
#: cudnn: NVIDIA's fused attention (jax.nn.dot_product_attention).
Kernel = Literal["plain", "blocks", "splash", "cudnn"]

#: Scores of a head below which keeping them in memory costs less than a kernel's padding and start: less
#: than 1024 queries by 128 keys (the decoder's prompts, the UNet's two lowest levels).
FEWEST_SCORES = 1024 * 128
#: Score of a key that only fills a block up; as `condition.PADDING`.
_NOWHERE = -1e9
#: Score of a key that causality hides. Finite, so that no row is NaN; below `PADDING`, so that a row whose
#: keys are all padding looks at none that comes after it.
HIDDEN = -2e9
#: Of the two dimensions that carry a bias.
_BIAS_DIMS = 2
#: The longest side of a splash block; 1024 at heads of up to 256 dimensions fills a TPU's scoped memory.
_BLOCK = 1024
_LANES = 128
#: Bytes of scores kept in a GPU's memory from which on `choose` says so.
_MANY_BYTES = 2**30
#: Scores that "blocks" computes at once: 4 MB, which a CPU's cache holds.
_SCORES = 1024 * 1024
#: Scores of a head up to which "blocks" has nothing to gain.
_FEW_SCORES = 512 * 512


def choose(
    platform: str, dtype: Any, q_shape: tuple[int, ...], v_shape: tuple[int, ...], *, biased: bool
) -> Kernel:
    """The kernel for an attention of q [B, Sq, H, K] to values [B, Sk, H, V] on a platform ("tpu", "gpu", "cpu").

    The libraries' kernels compute in bfloat16, so float32 takes the plain path, or on a CPU its blocks; so do
    float16, which cannot hold a padded key's bias, small attentions, for which the scores fit, and heads that cuDNN does
    not take on every GPU (more than 128 dimensions, a bias's two among them). Warns where a GPU then keeps much in memory.
    """
    scores = q_shape[1] * v_shape[1]
    if platform == "cpu":
        return "blocks" if scores > _FEW_SCORES else "plain"
    half = jnp.dtype(dtype) == jnp.dtype(jnp.bfloat16)
    if half and scores >= FEWEST_SCORES:
        if platform == "tpu":
            return "splash"
        if platform in ("gpu", "cuda") and max(_cudnn_head_dim(q_shape[3], biased), v_shape[3]) <= 128:
            return "cudnn"
    held = 4 * q_shape[0] * q_shape[2] * scores
    if platform in ("gpu", "cuda") and held >= _MANY_BYTES:
        warnings.warn(
            f"an attention of {q_shape[2]} heads keeps {held / 2**30:.1f} GiB of scores in memory: cuDNN's kernel "
            f"takes bfloat16 and heads of up to 128 dimensions, and this is {jnp.dtype(dtype)} and {q_shape[3]}",
            stacklevel=2,
        )
    return "plain"


def current_platform() -> str:
    """The platform that is being compiled for: the mesh's, which need not be here, or the default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return str(device.platform) if device is not None else jax.default_backend()


def run(
    kernel: Kernel,
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    v: Float[jax.Array, "B Sk H V"],
    bias: Float[jax.Array, " B #H 1 Sk"] | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> Float[jax.Array, "B Sq H V"]:
    """Attention by any kernel but "plain", every device on its own rows and heads.

    q: [B, Sq, H, K]; k: [B, Sk, H, K]; v: [B, Sk, H, V]; bias: float32 [B, H or 1, 1, Sk], added to the scores of a key.
    interpret: run the TPU's kernel on another platform, slowly (for tests). Returns [B, Sq, H, V].
    """
    mesh = jax.sharding.get_abstract_mesh()
    inner = functools.partial(_run, kernel, causal=causal, interpret=interpret)
    if mesh.empty or mesh.are_all_axes_manual:
        return inner(q, k, v, bias)
    rows = _axes(mesh, "batch", q.shape[0])
    heads = _axes(mesh, "heads", q.shape[2])
    qkv = PartitionSpec(rows, None, heads, None)
    specs: tuple[Any, ...] = (qkv, qkv, qkv)
    if bias is not None:
        specs += (PartitionSpec(rows, heads if bias.shape[1] > 1 else None, None, None),)
    else:
        specs += (None,)
    # A Pallas call says nothing of which axes its result varies over.
    return jax.shard_map(inner, in_specs=specs, out_specs=qkv, check_vma=False)(q, k, v, bias)


def _axes(mesh: Any, name: str, length: int) -> tuple[str, ...] | None:
    """The mesh axes that divide a dimension; None, every device the whole of it, where they do not.

    Axes of one device are among them: over one that no dimension names, gradients would be summed, and XLA for TPUs runs
    a sum over one device as any other.
    """
    axes = tuple(axis for axis in mesh_axes(name) if axis in mesh.shape)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    return axes if length % ways == 0 else None


def _run(
    kernel: Kernel,
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    v: Float[jax.Array, "B Sk H V"],
    bias: Float[jax.Array, " B #H 1 Sk"] | None,
    *,
    causal: bool,
    interpret: bool,
) -> Float[jax.Array, "B Sq H V"]:
    dtype = q.dtype
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(dtype)
    if kernel == "blocks":
        return blocks(q, k, v, bias, causal=causal)
    if kernel == "cudnn":
        return cudnn(q, k, v, bias, causal=causal)
    return splash(q, k, v, bias, causal=causal, interpret=interpret)


def splash(
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    v: Float[jax.Array, "B Sk H V"],
    bias: Float[jax.Array, " B #H 1 Sk"] | None,
    *,
    causal: bool,
    interpret: bool,
) -> Float[jax.Array, "B Sq H V"]:
    """Pallas' splash attention, q scaled already. Shapes as `run`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, keys = q.shape[1], k.shape[1]
    q_len, k_len = _round(length, _LANES), _round(keys, _LANES)
    if k_len > keys and bias is None and not causal:
        bias = jnp.zeros((k.shape[0], 1, 1, keys), jnp.float32)
    q, k, v = _fill(q, q_len), _fill(k, k_len), _fill(v, k_len)
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, k_len - keys)), constant_values=_NOWHERE)
        q, k = _with_bias(q, k, bias)
    # Wide heads (the VAE's one of 512) leave room for smaller blocks only.
    limit = _BLOCK if q.shape[-1] <= 256 else 512
    block_q, block_k = _block(q_len, limit), _block(k_len, limit)
    mask = masks.CausalMask((q_len, k_len)) if causal else masks.FullMask((q_len, k_len))
    attention = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_kv_compute=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_kv_dkv_compute=block_k,
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    out = jax.vmap(attention)(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)))
    return jnp.swapaxes(out, 1, 2)[:, :length]


def cudnn(
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    v: Float[jax.Array, "B Sk H V"],
    bias: Float[jax.Array, " B #H 1 Sk"] | None,
    *,
    causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[jax.Array, "B Sq H V"]:
    """cuDNN's fused attention, q scaled already; `implementation` "xla" is the same call without a GPU."""
    width, keys = v.shape[-1], k.shape[1]
    k_len = _round(keys, 8)
    if k_len > keys and bias is None and not causal:
        bias = jnp.zeros((k.shape[0], 1, 1, keys), jnp.float32)
    # Causal queries see no key behind them, so filled-up keys need no bias there.
    k, v = _fill(k, k_len), _fill(v, k_len)
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, k_len - keys)), constant_values=_NOWHERE)
        q, k = _with_bias(q, k, bias)
    wide = _round(max(q.shape[-1], width), 8)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, wide - x.shape[-1]))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=causal, implementation=implementation)
    return out[..., :width]


def blocks(
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    v: Float[jax.Array, "B Sk H V"],
    bias: Float[jax.Array, " B #H 1 Sk"] | None,
    *,
    causal: bool,
) -> Float[jax.Array, "B Sq H V"]:
    """Softmax over the keys for one head and some queries at a time, q scaled already. Shapes as `run`.

    In float32 whatever the dtype, as a CPU computes anyway: gradients of k and v are sums over the blocks.
    """
    dtype = q.dtype
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    (batch, length, heads, width), keys = q.shape, k.shape[1]
    rows = min(length, max(1, _SCORES // keys))
    parts = -(-length // rows)

    def by_head(x: jax.Array, *shape: int) -> jax.Array:
        return jnp.swapaxes(x, 1, 2).reshape(batch * heads, *shape)

    queries = by_head(_fill(q, parts * rows), parts, rows, width)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (batch, heads, 1, keys)).reshape(batch * heads, keys)

    def head(inputs: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        queries, k, v, bias = inputs

        def block(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            q, first = inputs
            scores = q @ k.T
            scores = scores if bias is None else scores + bias
            if causal:
                scores = jnp.where(first + jnp.arange(rows)[:, None] >= jnp.arange(keys), scores, HIDDEN)
            probs = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
            # Divided after the product, which is smaller than the scores.
            return (probs @ v) / probs.sum(axis=-1, keepdims=True)

        return jax.lax.map(block, (queries, jnp.arange(parts) * rows))

    out = jax.lax.map(head, (queries, by_head(k, keys, width), by_head(v, keys, v.shape[-1]), bias))
    return jnp.swapaxes(out.reshape(batch, heads, parts * rows, v.shape[-1]), 1, 2)[:, :length].astype(dtype)


def _cudnn_head_dim(width: int, biased: bool) -> int:
    return _round(width + _BIAS_DIMS * biased, 8)


def _with_bias(q: jax.Array, k: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """q and k with two more dimensions, whose products are the bias [B, H or 1, 1, Sk]."""
    of_key = jnp.broadcast_to(jnp.transpose(bias, (0, 3, 1, 2)), (*k.shape[:3], 1))
    kept = of_key.astype(k.dtype)
    rest = (of_key - kept.astype(jnp.float32)).astype(k.dtype)
    ones = jnp.ones((*q.shape[:3], _BIAS_DIMS), q.dtype)
    return jnp.concatenate([q, ones], axis=-1), jnp.concatenate([k, kept, rest], axis=-1)


def _fill(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


def _round(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _block(length: int, limit: int) -> int:
    """The largest multiple of 128 up to `limit` that divides `length`, itself a multiple of 128."""
    return max(size for size in range(_LANES, limit + 1, _LANES) if length % size == 0)
