"""A second witness of what a UNet's training step takes: XLA's own cycles, at its default effort.

At that effort a whole step takes hours to compile, and at the lowest its cycles mean nothing. So each distinct block is
compiled alone, once, forward and backward, kept on disk as any plan is, and the cycles are summed.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvader_jax.condition import Condition
from mvader_jax.errors import UserError
from mvader_jax.models.remat import Remat, rematerialised
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.unet_blocks import Downsample, ResnetBlock, Transformer2D, Upsample
from mvader_jax.parallel.libtpu import prepare
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import Chip, Topology, chips
from mvader_jax.parallel.sharding import replicated, shapes_alone
from mvader_jax.plan.compile import compile_program
from mvader_jax.plan.program import Program
from mvader_jax.plan.topology import devices
from mvader_jax.settings import from_dict

Say = Callable[[str], None]
#: XLA's default effort.
EFFORT = 0.0
#: Positions of the condition in a block that is compiled alone: a caption's.
POSITIONS = 77


@dataclasses.dataclass(frozen=True)
class Block:
    """kind: resnet, transformer, downsample or upsample; level: from the highest resolution; channels: that go in."""

    kind: str
    level: int
    channels: int

    def __str__(self) -> str:
        return f"{self.kind} of level {self.level}, {self.channels} channels in"


def blocks(config: UNetConfig) -> dict[Block, int]:
    """How often each block stands in a UNet, in the order of `UNet.__call__`."""
    found: collections.Counter[Block] = collections.Counter()
    widths, last = config.block_out_channels, len(config.block_out_channels) - 1
    x, skips = widths[0], [widths[0]]

    def layer(level: int, channels: int, attention: bool) -> int:
        found[Block("resnet", level, channels)] += 1
        found[Block("transformer", level, widths[level])] += attention
        return widths[level]

    for level in range(last + 1):
        for _ in range(config.layers_per_block):
            x = layer(level, x, config.attention[level])
            skips.append(x)
        if level < last:
            found[Block("downsample", level, x)] += 1
            skips.append(x)
    layer(last, layer(last, x, True), False)
    for level in reversed(range(last + 1)):
        for _ in range(config.layers_per_block + 1):
            x = layer(level, x + skips.pop(), config.attention[level])
        if level > 0:
            found[Block("upsample", level, x)] += 1
    return {block: count for block, count in found.items() if count}


def module_of(config: UNetConfig, block: Block, dtype: Any, remat: Remat) -> nn.Module:
    """A block as `UNet` makes it."""
    c, width = config, config.block_out_channels[block.level]
    if block.kind == "resnet":
        return rematerialised(ResnetBlock, remat)(width, c.norm_groups, c.norm_eps, dtype)
    if block.kind == "transformer":
        module = rematerialised(Transformer2D, remat)
        return module(c.heads(block.level), c.norm_groups, dtype, c.depth(block.level), c.linear_projection)
    if block.kind == "downsample":
        return Downsample(width, dtype=dtype)
    return Upsample(width, dtype)


def inputs_of(config: UNetConfig, block: Block, rows: int, dtype: Any) -> tuple[Any, ...]:
    """Shapes of what a block reads."""
    side = config.sample_size >> block.level
    x = jax.ShapeDtypeStruct((rows, side, side, block.channels), dtype)
    if block.kind == "resnet":
        return x, jax.ShapeDtypeStruct((rows, 4 * config.block_out_channels[0]), dtype)
    if block.kind == "transformer":
        hidden: Any = jax.ShapeDtypeStruct((rows, POSITIONS, config.cross_attention_dim), dtype)
        log_weights: Any = jax.ShapeDtypeStruct((rows, POSITIONS), jnp.float32)
        return x, Condition(hidden, log_weights)
    return (x,)


def params_of(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Shapes of a block's parameters."""

    def made(key: jax.Array, inputs: tuple[Any, ...]) -> Any:
        return nn.unbox(module.init(key, *inputs)["params"])

    with shapes_alone():
        return jax.eval_shape(made, jax.random.key(0), inputs)


def block_program(
    config: UNetConfig, block: Block, rows: int, dtype: Any, remat: Remat, mesh: Any
) -> Program:
    """A block forward and backward on `rows` samples of one chip: gradients of its parameters and of what it reads."""
    module, inputs = module_of(config, block, dtype, remat), inputs_of(config, block, rows, dtype)
    params = params_of(module, inputs)
    whole = replicated(mesh)
    params, inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), (params, inputs)
    )

    def both(params: Any, inputs: Any) -> Any:
        out, back = jax.vjp(lambda p, i: module.apply({"params": p}, *i), params, inputs)
        return out, back(out)

    return Program(both, (params, inputs), mesh, rows, {})


def cycles_of(
    config: UNetConfig, block: Block, generation: str, rows: int, dtype: str, remat: Remat, say: Say
) -> dict[str, float]:
    """Compiles a block for one chip: {"cycles", "kernel_flops"}. XLA tells no cycles of attention kernels."""
    chip = clocked(generation)
    topology = Topology(generation, (1,) * chip.torus, 1, chip)
    mesh = make_mesh(MeshConfig(), devices(topology)[:1])
    program = block_program(config, block, rows, jnp.dtype(dtype), remat, mesh)
    found = compile_program(program, topology, EFFORT, say)
    if "cycles" not in found:
        raise UserError(f"a {block} does not fit {chip.name} with {rows} samples")
    return {"cycles": found["cycles"], "kernel_flops": found["kernel_flops"]}


def clocked(generation: str) -> Chip:
    """The chip of a generation. Raises UserError where no document tells its clock, by which cycles are seconds."""
    chip = chips()[generation]
    if not chip.clock_ghz:
        raise UserError(f"nobody says what clock {chip.name} runs at: its cycles are no time")
    return chip


def table(found: Sequence[tuple[str, int, Mapping[str, float]]], generation: str) -> str:
    """Blocks (name, how often, as `cycles_of`) and their sum, for people."""
    chip = clocked(generation)
    lines, total, kernels = [], 0.0, 0.0
    for name, count, one in found:
        total += count * one["cycles"]
        kernels += count * one["kernel_flops"]
        lines.append(f"  {count:>2} x {name:<44}{one['cycles'] / 1e6:>9.2f} M cycles")
    seconds, floor = total / (chip.clock_ghz * 1e9), kernels / chip.peak
    lines.append(f"  together {total / 1e6:.1f} M cycles, {1e3 * seconds:.1f} ms at {chip.clock_ghz:g} GHz")
    lines.append(f"  and at least {1e3 * floor:.1f} ms in attention kernels, of which XLA tells no cycles")
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments of `cycles_of` as JSON from standard input; writes {"block": ...} or {"error": ...}."""
    prepare()
    os.nice(19)
    asked = json.loads(sys.stdin.read())

    def say(message: str) -> None:
        print(f"progress: {message}", file=sys.stderr, flush=True)

    try:
        config, block = from_dict(UNetConfig, asked.pop("config")), Block(**asked.pop("block"))
        answer: dict[str, Any] = {"block": cycles_of(config, block, say=say, **asked)}
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
