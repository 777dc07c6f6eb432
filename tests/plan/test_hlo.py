"""Reading compiled programs: loops, products, bytes and who talks to whom, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mvader_jax.plan.hlo.cost import SATURATED, cost
from mvader_jax.plan.hlo.flops import kernel_flops
from mvader_jax.plan.hlo.groups import parse_groups, parse_pairs
from mvader_jax.plan.hlo.parse import Array, parse

#: A loop of six layers, each gathered from eight chips, as a TPU's compiler prints it.
LOOP = (Path(__file__).parent / "loop.hlo").read_text(encoding="utf-8")
MESH = {"replica": 1, "data": 2, "fsdp": 8, "tensor": 1}


def test_a_loop_counts_as_often_as_it_runs() -> None:
    found = cost(LOOP)
    product = 2 * 64 * 1024 * 1024
    assert found.loops == {"loop": 6} and found.unknown_loops == 0
    assert (found.flops, found.once_flops) == (6 * product, product)
    assert (found.convolution_flops, found.launches) == (0, 6 * 3)  # the slice, the gather, the product


def test_bytes_are_slices_and_what_lies_in_hbm() -> None:
    shard, x = 128 * 1024 * 2, 64 * 1024 * 2
    sliced = 4 + 2 * shard  # the counter, one layer read, the slice written
    gathered = shard  # read; the gathered layer lies in fast memory
    product = 2 * x  # read and written
    counting = 3 * 4
    condition = 4 + 4 + 1
    assert cost(LOOP).bytes == 6 * (sliced + gathered + product + counting + condition)


def test_a_collective_knows_its_axis_and_what_it_sends() -> None:
    (gather,) = cost(LOOP).collectives
    assert (gather.kind, gather.times, gather.payload) == ("all-gather", 6, 2 * 1024 * 1024)
    assert gather.groups is not None
    assert gather.groups.size == 8 and gather.groups.axes(MESH) == ("fsdp",)
    assert gather.wire_bytes == pytest.approx(6 * 2 * 1024 * 1024 * 7 / 8)


def test_overflowed_cycles_are_left_out_and_counted() -> None:
    found = cost(LOOP)
    assert SATURATED == 9223372036854775807
    assert (found.cycles, found.saturated) == (600, 1)


def test_text_that_is_no_program_is_an_error() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        parse("func.func @main() {}")


@pytest.mark.parametrize(
    ("written", "axes", "size"),
    [
        ("replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}", ("fsdp",), 8),
        ("replica_groups=[2,8]<=[16]", ("fsdp",), 8),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", ("data",), 2),
        ("replica_groups=[1,16]<=[16]", ("data", "fsdp"), 16),
        ("replica_groups=mesh['a'=2,'b'=8] {'a'}", ("data",), 2),
        ("replica_groups=mesh['a'=8,'b'=2], device_ids=([2,8]T(1,0)) {'a'}", ("fsdp",), 8),
        ("replica_groups=mesh['a'=2,'b'=8] {'a','b'}", ("data", "fsdp"), 16),
    ],
)
def test_all_spellings_of_groups_name_their_axes(written: str, axes: tuple[str, ...], size: int) -> None:
    groups = parse_groups(f"channel_id=1, {written}, use_global_device_ids=true")
    assert groups is not None
    assert groups.axes(MESH) == axes and groups.size == size
    assert sorted(m for group in groups.members for m in group) == list(range(16))


def test_a_permutation_s_pairs_are_groups() -> None:
    groups = parse_pairs("source_target_pairs={{0,1},{1,2},{3,3}}")
    assert groups is not None
    assert groups.members == ((0, 1), (1, 2)) and groups.axes(MESH) == ("fsdp",)


def test_a_compiled_step_of_convolutions_has_the_flops_of_its_mathematics() -> None:
    """A scan of 3x3 convolutions and its gradient, compiled for this CPU: forward, and twice that back."""
    layers, rows, side, width = 5, 2, 8, 16

    def loss(kernels: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            dims = ("NHWC", "HWIO", "NHWC")
            return jnp.tanh(
                jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)
            ), None

        return jnp.sum(jax.lax.scan(layer, x, kernels)[0] ** 2)

    kernels, x = jnp.zeros((layers, 3, 3, width, width)), jnp.zeros((rows, side, side, width))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(kernels, x).compile()
    found = cost(compiled.as_text())
    taps = (3 * side - 2) ** 2  # of 9 at each of 64 positions, less those over the border
    assert found.flops == 3 * layers * 2 * rows * width * width * taps
    assert found.convolution_flops == found.flops and found.kernel_flops == 0
    assert set(found.loops.values()) == {layers} and found.unknown_loops == 0


def test_attention_kernels_count_by_their_shapes() -> None:
    q, k, v = Array("bf16", (2, 8, 1024, 42)), Array("bf16", (2, 8, 256, 42)), Array("bf16", (2, 8, 256, 40))
    pairs = 2 * 2 * 8 * 1024 * 256
    assert kernel_flops("splash_mha_fwd_residuals.1", [q, k, v]) == pairs * (42 + 40)
    assert kernel_flops("splash_mha_dq_no_residuals", [q, k, v]) == pairs * (2 * 42 + 40)
    assert kernel_flops("splash_mha_dkv_no_residuals", [q, k, v]) == pairs * (2 * 42 + 2 * 40)
    assert kernel_flops("another_kernel", [q, k, v]) == 0


def test_a_kernel_s_metadata_over_several_lines_ends_nothing() -> None:
    """As a TPU's compiler prints Pallas calls: a line of it begins with a brace."""
    shape = "bf16[2,8,128,42]{3,2,1,0}"
    kernel = (
        "  %splash_mha_fwd_residuals.1 = bf16[64,1024]{1,0} custom-call(%q, %q, %q), "
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
        '"xprof_metadata":"{\\"block_q\\": 128}"\n'
        '}}, metadata={op_name="jit(f)/splash_mha_fwd_residuals/pallas_call"}\n'
    )
    start = "  %start = s32[]{:T(128)} constant(0)\n"
    text = LOOP.replace(start, f"{start}  %q = {shape} parameter(2)\n{kernel}")
    found = cost(text)
    assert found.kernel_flops == 2.0 * 2 * 8 * 128 * 128 * (42 + 42)
    assert found.loops == {"loop": 6} and len(found.collectives) == 1
