"""Attention kernels: which is chosen, that they compute the reference, and that a TPU's compiler takes them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mvader_jax.condition import PADDING, SUPPRESSED
from mvader_jax.models import attention_kernels
from mvader_jax.models.attention import attend, key_bias, plain
from mvader_jax.models.attention_kernels import choose, current_platform, run
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan.compile import effort_option
from mvader_jax.plan.hlo.cost import cost
from mvader_jax.plan.topology import devices

BF16 = jnp.bfloat16


@pytest.mark.parametrize(
    ("platform", "dtype", "queries", "keys", "width", "expected"),
    [
        ("tpu", BF16, 4096, 4096, 40, "splash"),
        ("tpu", BF16, 4096, 144, 40, "splash"),
        ("tpu", BF16, 4096, 77, 40, "splash"),
        ("tpu", BF16, 1024, 1024, 80, "splash"),
        ("tpu", BF16, 1024, 144, 80, "splash"),
        ("tpu", BF16, 256, 256, 160, "plain"),
        ("tpu", BF16, 64, 144, 160, "plain"),
        ("tpu", BF16, 144, 144, 256, "plain"),
        ("tpu", BF16, 2048, 2048, 256, "splash"),
        ("tpu", jnp.float32, 4096, 4096, 40, "plain"),
        ("tpu", jnp.float16, 4096, 4096, 40, "plain"),
        ("gpu", BF16, 4096, 4096, 40, "cudnn"),
        ("cuda", BF16, 1024, 1024, 80, "cudnn"),
        ("gpu", BF16, 4096, 77, 40, "cudnn"),
        ("gpu", BF16, 256, 256, 160, "plain"),
        ("gpu", BF16, 576, 576, 160, "plain"),
        ("gpu", jnp.float16, 4096, 4096, 40, "plain"),
        ("gpu", BF16, 4096, 4096, 128, "plain"),
        ("gpu", jnp.float32, 4096, 4096, 40, "plain"),
        ("cpu", BF16, 4096, 4096, 40, "blocks"),
        ("cpu", jnp.float32, 1024, 1024, 80, "blocks"),
        ("cpu", jnp.float32, 256, 256, 160, "plain"),
        ("cpu", jnp.float32, 1024, 144, 80, "plain"),
        ("rocm", BF16, 4096, 4096, 40, "plain"),
    ],
)
def test_the_choice_is_the_platforms_and_the_shapes(
    platform: str, dtype: Any, queries: int, keys: int, width: int, expected: str
) -> None:
    found = choose(platform, dtype, (1, queries, 8, width), (1, keys, 8, width), biased=True)
    assert found == expected


def test_without_a_bias_heads_of_128_fit_cudnn() -> None:
    shape = (2, 4096, 8, 128)
    assert choose("gpu", BF16, shape, shape, biased=False) == "cudnn"


def test_a_gpu_says_where_scores_fill_its_memory(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(UserWarning, match=r"keeps 2.0 GiB of scores.*bfloat16.*this is float32 and 40"):
        choose("gpu", jnp.float32, (4, 4096, 8, 40), (4, 4096, 8, 40), biased=False)
    with pytest.warns(UserWarning, match=r"keeps 1.0 GiB of scores.*this is bfloat16 and 512"):
        choose("gpu", BF16, (16, 4096, 1, 512), (16, 4096, 1, 512), biased=False)
    # Of Stable Diffusion's UNet in bfloat16, 32 samples of 512 x 512 pictures, nothing is to be said.
    for length, width in ((4096, 40), (1024, 80), (256, 160), (64, 160)):
        for keys in (length, 77):
            choose("gpu", BF16, (32, length, 8, width), (32, keys, 8, width), biased=keys == 77)
    choose("cpu", jnp.float32, (32, 4096, 8, 40), (32, 4096, 8, 40), biased=False)
    assert not recwarn.list


def lowered_for_cuda(queries: int, keys: int, width: int) -> str:
    """`attend` and its gradients with log weights, as they are handed to a GPU's compiler."""

    def total(q: Any, k: Any, v: Any, logs: Any) -> jax.Array:
        return jnp.sum(attend(q, k, v, log_weights=logs).astype(jnp.float32) ** 2)

    q, k, v = (jax.ShapeDtypeStruct((2, n, 8, width), BF16) for n in (queries, keys, keys))
    logs = jax.ShapeDtypeStruct((2, keys), jnp.float32)
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, v, logs)
    return str(traced.lower(lowering_platforms=("cuda",)).as_text())


@pytest.mark.parametrize(("queries", "keys", "width"), [(4096, 4096, 40), (4096, 77, 40), (1024, 1024, 80)])
def test_the_large_attentions_of_a_unet_go_to_cudnn(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, width: int
) -> None:
    """JAX looks for cuDNN where it traces, and there is none here: 9.10 is what it is told."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: "gpu")
    text = lowered_for_cuda(queries, keys, width)
    assert text.count("@__cudnn$fmhaSoftmax(") == 1 and text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    # Nothing of the size of the scores is left outside.
    assert f"{queries}x{keys}x" not in text


def example(queries: int, keys: int, heads: int, width: int, rows: int = 2) -> tuple[jax.Array, ...]:
    """(q, k, v, log weights): some positions weighted, one suppressed, the last quarter of row 1 padding."""
    rng = np.random.default_rng(queries + keys)
    q, k, v = (jnp.asarray(rng.normal(size=(rows, n, heads, width)), BF16) for n in (queries, keys, keys))
    logs = np.zeros((rows, keys), np.float32)
    logs[:, : keys // 2] = np.log(rng.uniform(0.05, 3.0, (rows, keys // 2)))
    logs[0, 3] = SUPPRESSED
    logs[1, keys - keys // 4 :] = PADDING
    return q, k, v, jnp.asarray(logs)


def gradients(kernel: Any, q: Any, k: Any, v: Any, logs: Any, factors: Any = None) -> tuple[Any, Any]:
    """(result, gradients by q, k, v and the log weights) of a sum with fixed coefficients."""
    shape = q.shape
    coefficients = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def total(q: Any, k: Any, v: Any, logs: Any) -> tuple[jax.Array, jax.Array]:
        out = kernel(q, k, v, None if logs is None else key_bias(logs, factors))
        return jnp.sum(out.astype(jnp.float32) * coefficients), out

    wanted = (0, 1, 2) if logs is None else (0, 1, 2, 3)
    found, out = jax.jit(jax.grad(total, argnums=wanted, has_aux=True))(q, k, v, logs)
    return out, found


def assert_within_bf16(found: Any, expected: Any) -> None:
    """Every number within 2 % of the array's largest: bfloat16 has 8 bits, and sums round more than once."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.all(np.isfinite(a))
        assert np.max(np.abs(a - b)) <= 0.02 * np.max(np.abs(b)), np.max(np.abs(a - b)) / np.max(np.abs(b))


def reference(
    q: Any, k: Any, v: Any, logs: Any, factors: Any = None, causal: bool = False
) -> tuple[Any, Any]:
    """The plain path in float32 on the same bfloat16 numbers."""
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    return gradients(functools.partial(plain, causal=causal), *wide, logs, factors)


SHAPES = [
    pytest.param(256, 144, 2, 40, False, id="cross-attention to an image's 144 tokens"),
    pytest.param(200, 77, 1, 80, False, id="lengths that fill no block"),
    pytest.param(160, 160, 2, 32, True, id="causal"),
]


@pytest.mark.parametrize(("queries", "keys", "heads", "width", "causal"), SHAPES)
def test_splash_is_the_reference_and_so_are_its_gradients(
    queries: int, keys: int, heads: int, width: int, causal: bool
) -> None:
    inputs = example(queries, keys, heads, width)
    kernel = functools.partial(run, "splash", causal=causal, interpret=True)
    assert_within_bf16(gradients(kernel, *inputs), reference(*inputs, causal=causal))


def test_splash_takes_factors_by_head() -> None:
    inputs, factors = example(128, 144, 2, 40), jnp.asarray([0.0, 1.5])
    kernel = functools.partial(run, "splash", causal=False, interpret=True)
    assert_within_bf16(gradients(kernel, *inputs, factors), reference(*inputs, factors))


def test_splash_without_weights_sees_no_filled_up_key() -> None:
    q, k, v, _ = example(128, 100, 2, 40)
    kernel = functools.partial(run, "splash", causal=False, interpret=True)
    assert_within_bf16(gradients(kernel, q, k, v, None), reference(q, k, v, None))


def test_a_weight_is_as_exact_as_in_float32() -> None:
    """log 0.3 is not a bfloat16; two keys of equal scores show the weight itself."""
    theta = 0.3
    q = jnp.zeros((1, 128, 1, 40), BF16)
    k = jnp.zeros((1, 128, 1, 40), BF16)
    v = jnp.zeros((1, 128, 1, 40), BF16).at[0, 0].set(1.0)
    logs = jnp.full((1, 128), PADDING).at[0, :2].set(jnp.asarray([np.log(theta), 0.0]))
    out = run("splash", q, k, v, key_bias(logs, None), causal=False, interpret=True)
    np.testing.assert_allclose(np.asarray(out, np.float32), theta / (1 + theta), rtol=2**-8)


@pytest.mark.parametrize(("queries", "keys", "heads", "width", "causal"), SHAPES)
def test_what_cudnn_is_given_is_the_reference(
    queries: int, keys: int, heads: int, width: int, causal: bool
) -> None:
    """The same call of jax.nn.dot_product_attention, computed by XLA where there is no GPU."""

    def kernel(q: Any, k: Any, v: Any, bias: Any) -> jax.Array:
        q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
        return attention_kernels.cudnn(q, k, v, bias, causal=causal, implementation="xla")

    inputs = example(queries, keys, heads, width)
    assert_within_bf16(gradients(kernel, *inputs), reference(*inputs, causal=causal))


def test_a_mesh_splits_rows_and_heads() -> None:
    inputs = example(128, 144, 2, 40, rows=4)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spec = PartitionSpec(("data", "fsdp"))
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in inputs]
    kernel = functools.partial(run, "splash", causal=False, interpret=True)
    with jax.set_mesh(mesh):
        found = gradients(kernel, *placed)
    assert_within_bf16(found, reference(*inputs))


@pytest.mark.parametrize(
    "scores", [40 * 77, 33 * 160, 1], ids=["parts that divide", "a part to fill up", "rows"]
)
@pytest.mark.parametrize(("queries", "keys", "heads", "width", "causal"), SHAPES)
def test_blocks_are_the_reference_and_so_are_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
    queries: int,
    keys: int,
    heads: int,
    width: int,
    causal: bool,
    scores: int,
) -> None:
    monkeypatch.setattr(attention_kernels, "_SCORES", scores)
    *qkv, logs = example(queries, keys, heads, width)
    inputs = [x.astype(jnp.float32) for x in qkv] + [logs]
    kernel = functools.partial(run, "blocks", causal=causal)
    expected = gradients(functools.partial(plain, causal=causal), *inputs)
    for a, b in zip(jax.tree.leaves(gradients(kernel, *inputs)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert_within_bf16(gradients(kernel, *qkv, logs), reference(*qkv, logs, causal=causal))


def test_blocks_take_head_factors_and_a_mesh_and_keep_few_scores() -> None:
    q, k, v, logs = (x.astype(jnp.float32) for x in example(1024, 640, 2, 40, rows=4))
    factors = jnp.asarray([0.5, 2.0])
    mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in (q, k, v, logs)]
        program = (
            jax.jit(lambda *x: attend(*x[:3], log_weights=x[3], factors=factors)).lower(*placed).compile()
        )
    np.testing.assert_allclose(
        program(*placed), plain(q, k, v, key_bias(logs, factors)), rtol=1e-4, atol=1e-5
    )
    # Two rows of one head are a device's: 10 MB of scores, were they all in memory.
    assert program.memory_analysis().temp_size_in_bytes < 8e6


def test_rows_that_do_not_divide_are_computed_whole() -> None:
    inputs = example(128, 128, 1, 40, rows=2)
    mesh = make_mesh(MeshConfig(data=8))
    kernel = functools.partial(run, "splash", causal=False, interpret=True)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda q, k, v, logs: kernel(q, k, v, key_bias(logs, None)))(*inputs)
    assert_within_bf16(out, reference(*inputs)[0])


def test_on_a_cpu_attend_is_the_reference_bit_for_bit() -> None:
    q, k, v, logs = example(1024, 144, 1, 8)
    assert current_platform() == "cpu"
    np.testing.assert_array_equal(
        np.asarray(attend(q, k, v, log_weights=logs), np.float32),
        np.asarray(plain(q, k, v, key_bias(logs, None)), np.float32),
    )


@pytest.fixture(scope="module")
def pod() -> Any:
    return make_mesh(MeshConfig(fsdp=4), devices(parse_topology("v5e:2x2")))


def compiled_for(pod: Any, queries: int, keys: int, heads: int, width: int, dtype: Any = BF16) -> Any:
    """`attend` and its gradients, two rows a chip, compiled for four chips that are not there."""

    def total(q: Any, k: Any, v: Any, logs: Any) -> jax.Array:
        return jnp.sum(attend(q, k, v, log_weights=logs).astype(jnp.float32) ** 2)

    def shape(*dims: int, dtype: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(pod, PartitionSpec("fsdp")))

    arguments = (
        shape(8, queries, heads, width),
        shape(8, keys, heads, width),
        shape(8, keys, heads, width),
        shape(8, keys, dtype=jnp.float32),
    )
    with jax.set_mesh(pod):
        assert current_platform() == "tpu"
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*arguments)
        return traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=effort_option(-1.0))


def test_a_tpus_compiler_takes_the_kernel_and_keeps_no_scores(pod: Any) -> None:
    compiled = compiled_for(pod, 4096, 144, 8, 40)
    text = compiled.as_text()
    assert text.count("tpu_custom_call") >= 3  # forward, gradient by queries, gradient by keys
    found = cost(text)
    assert found.collectives == []  # every chip attends to its own rows
    assert " all-reduce(" not in text  # nor sums with itself alone, over the mesh's axes of one device
    # Two rows a chip, keys filled up to 256, two dimensions for the weights: forward, dq and dkv.
    pairs = 2.0 * 2 * 8 * 4096 * 256
    assert found.kernel_flops == pairs * ((42 + 40) + (2 * 42 + 40) + (2 * 42 + 2 * 40))
    scores = 2 * 8 * 4096 * 144 * 4
    without = compiled_for(pod, 4096, 144, 8, 40, jnp.float32)
    assert "tpu_custom_call" not in without.as_text()
    assert without.memory_analysis().temp_size_in_bytes > scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "width"),
    [(4096, 4096, 8, 40), (1024, 1024, 8, 80), (1024, 144, 8, 80), (4096, 4096, 1, 512)],
)
def test_every_large_attention_of_stable_diffusion_compiles(
    pod: Any, queries: int, keys: int, heads: int, width: int
) -> None:
    compiled = compiled_for(pod, queries, keys, heads, width)
    assert compiled.as_text().count("tpu_custom_call") >= 3
    if keys > 144:  # to 144 keys the scores are no larger than the heads filled up to 128 dimensions
        assert compiled.memory_analysis().temp_size_in_bytes < 2 * heads * queries * keys * 4
