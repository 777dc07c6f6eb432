"""The blocks of a UNet, each counted where it stands, and what their cycles come to."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest

from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.blocks import (
    Block,
    block_program,
    blocks,
    clocked,
    inputs_of,
    module_of,
    params_of,
    table,
)

SMALL = UNetConfig(4, 4, (16, 32), 1, (False, True), 20, (1, 2), 8, 1e-5, 8, (1, 2), True)


def size(tree: object) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("config", [UNetConfig.sd2(), UNetConfig.tiny(), SMALL])
def test_the_blocks_are_all_of_a_unet_but_its_ends(config: UNetConfig) -> None:
    whole = abstract_components(ModelConfig(unet=config), ("unet",))[0]["unet"]
    ends = [whole[name] for name in ("time_embedding", "conv_in", "conv_norm_out", "conv_out")]
    total = 0
    for block, count in blocks(config).items():
        module = module_of(config, block, jnp.float32, "none")
        total += count * size(params_of(module, inputs_of(config, block, 1, jnp.float32)))
    assert total == size(whole) - size(ends)


def test_equal_blocks_are_counted_not_repeated() -> None:
    found = blocks(UNetConfig.sd14())
    assert found[Block("transformer", 0, 320)] == 5 and found[Block("transformer", 3, 1280)] == 1
    assert found[Block("resnet", 3, 1280)] == 4 and found[Block("resnet", 3, 2560)] == 3
    assert sum(n for block, n in found.items() if block.kind == "resnet") == 22
    assert len(found) < 26
    assert str(Block("upsample", 1, 640)) == "upsample of level 1, 640 channels in"


@pytest.mark.parametrize("kind", ["resnet", "transformer", "downsample", "upsample"])
def test_a_block_runs_forward_and_backward(kind: str) -> None:
    mesh = make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])
    block = Block(kind, 0 if kind == "downsample" else 1, 16 if kind == "downsample" else 32)
    program = block_program(SMALL, block, 2, jnp.bfloat16, "blocks", mesh)
    with jax.set_mesh(mesh):
        out, (of_params, of_inputs) = jax.eval_shape(program.function, *program.arguments)
    params, inputs = program.arguments
    assert jax.tree.map(jnp.shape, of_params) == jax.tree.map(jnp.shape, params)
    assert of_inputs[0].shape == inputs[0].shape and out.dtype == jnp.bfloat16


def test_cycles_are_summed_and_kernels_named() -> None:
    one, two = {"cycles": 3e6, "kernel_flops": 0.0}, {"cycles": 1.5e6, "kernel_flops": 1.97e12}
    text = table([("a resnet", 2, one), ("a transformer", 1, two)], "v5e")
    assert "together 7.5 M cycles, 5.0 ms at 1.5 GHz" in text
    assert "at least 10.0 ms in attention kernels" in text


def test_cycles_of_a_chip_whose_clock_is_not_known_are_no_time() -> None:
    assert clocked("v5p").clock_ghz == 1.75
    with pytest.raises(UserError, match="what clock TPU v6e runs at"):
        clocked("v6e")
