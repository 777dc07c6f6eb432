"""What a change of a block saves on a TPU, by XLA's own cycles: python tests/bench/blocks.py [--gradients] [ROW ...]

Blocks of Stable Diffusion 1.4's UNet, bfloat16, two samples on one v5e chip, compiled at XLA's default effort, each as it is
and as it was. A row takes a minute of an idle core, with gradients three. Two are compiled where they are named: `unet`, the
whole, three minutes by columns, ten plain; and `step`, its train step on v5e:4x4 with fsdp=16, which wants
--effort -1. What was compiled is kept. docs/planning.md holds the table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from typing import Any, get_args

from mvader_jax.models.remat import Remat
from mvader_jax.parallel.libtpu import prepare


@dataclasses.dataclass(frozen=True)
class Row:
    """kind, level, channels: of a `plan.blocks.Block`, or WHOLE or STEP; plain: its convolutions as anyone writes them."""

    kind: str
    level: int
    channels: int
    plain: bool = False


#: The rows of all blocks together.
WHOLE, STEP = "unet", "step"
ROWS = {
    f"{name}, plain" if plain else name: Row(*block, plain)
    for name, block in {
        "upsampler": ("upsample", 1, 640),
        "resnet": ("resnet", 0, 320),
        "transformer": ("transformer", 0, 320),
        WHOLE: (WHOLE, 0, 0),
        STEP: (STEP, 0, 0),
    }.items()
    for plain in (True, False)
}


def compiled(row: Row, gradients: bool, rows: int, effort: float, remat: Remat) -> dict[str, Any]:
    """What one run of a block costs."""
    import jax
    import jax.numpy as jnp

    from mvader_jax.models.convolution import plainly
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.parallel.mesh import MeshConfig, make_mesh
    from mvader_jax.parallel.pods import Topology, chips
    from mvader_jax.plan.blocks import Block, block_program, module_of
    from mvader_jax.plan.compile import compile_program
    from mvader_jax.plan.topology import devices

    config, block, dtype = UNetConfig.sd14(), Block(row.kind, row.level, row.channels), jnp.dtype("bfloat16")
    chip = chips()["v5e"]
    topology = Topology("v5e", (1,) * chip.torus, 1, chip)
    mesh = make_mesh(MeshConfig(), devices(topology)[:1])
    if row.kind == STEP:
        topology = Topology("v5e", (4, 4), 1, chip)
        mesh = make_mesh(MeshConfig(data=1, fsdp=16), devices(topology))
        program = step_program(16 * rows, mesh, remat)
        with plainly() if row.plain else contextlib.nullcontext():
            return compile_program(program, topology, effort, lambda message: None)
    if row.kind == WHOLE:
        program = whole_program(gradients, rows, mesh, remat)
    else:
        program = block_program(config, block, rows, dtype, remat, mesh)
        if not gradients:
            module = module_of(config, block, dtype, "none")
            program = dataclasses.replace(
                program, function=lambda params, inputs: module.apply({"params": params}, *inputs)
            )
    with jax.set_mesh(mesh), plainly() if row.plain else contextlib.nullcontext():
        return compile_program(program, topology, effort, lambda message: None)


def whole_program(gradients: bool, rows: int, mesh: Any, remat: Remat) -> Any:
    """The whole UNet on 64 x 64 latents and 77 states; its weights in float32 where they have gradients."""
    import jax
    import jax.numpy as jnp

    from mvader_jax.condition import Condition
    from mvader_jax.models.components import abstract_components
    from mvader_jax.models.config import ModelConfig
    from mvader_jax.models.unet import UNet, UNetConfig
    from mvader_jax.parallel.sharding import replicated
    from mvader_jax.plan.program import Program

    def of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    config, half = UNetConfig.sd14(), jnp.dtype("bfloat16")
    network, width = UNet(config, dtype=half, remat=remat), config.cross_attention_dim
    shapes, _ = abstract_components(ModelConfig(unet=config), ["unet"])
    params = jax.tree.map(lambda x: of(jnp.float32 if gradients else half, *x.shape), shapes["unet"])
    condition = Condition(of(half, rows, 77, width), of(jnp.float32, rows, 77))
    inputs = of(half, rows, 64, 64, config.in_channels), of(jnp.int32, rows), condition

    def forward(params: Any, *inputs: Any) -> Any:
        return network.apply({"params": params}, *inputs)

    def loss(params: Any, *inputs: Any) -> Any:
        return jnp.square(forward(params, *inputs).astype(jnp.float32)).mean()

    return Program(jax.grad(loss) if gradients else forward, (params, *inputs), mesh, rows, {})


def step_program(batch: int, mesh: Any, remat: Remat) -> Any:
    """A step of training the UNet on states of 1,024, with AdamW and an average."""
    from mvader_jax.diffusion.schedule import ScheduleConfig
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.plan.reproduce import unet_step

    unet = dataclasses.replace(UNetConfig.sd14(), cross_attention_dim=1024)
    return unet_step(unet, ScheduleConfig(), mesh, batch, ema_decay=0.9999, remat=remat)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW", help="all where none is named")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--gradients", action="store_true", help="backward too, as `step` always is")
    parser.add_argument("--effort", type=float, default=0.0, help="XLA's; cycles mean something at 0 alone")
    parser.add_argument("--remat", choices=get_args(Remat), default="none", help="of blocks and `step`")
    options = parser.parse_args()
    if options.samples < 1:
        parser.error(f"--samples is {options.samples}; accepted: 1 or more")
    names = options.rows or [name for name, row in ROWS.items() if row.kind not in (WHOLE, STEP)]
    forward = [] if options.gradients else [name for name in names if ROWS[name].kind != STEP]
    if forward and options.remat != "none":
        parser.error(f"--remat is of the backward pass, which {forward[0]} has with --gradients alone")
    prepare()
    print(
        "| block | cycles, M | traffic, MB | GFLOPs | temporaries, MB | peak, MB | instructions |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name in names:
        found = compiled(ROWS[name], options.gradients, options.samples, options.effort, options.remat)
        cells = (found["cycles"] / 1e6, found["bytes"] / 1e6, found["flops"] / 1e9)
        held, peak = (found["memory"][part] / 1e6 for part in ("temporaries", "peak"))
        told = (
            f"{cells[0]:.2f}",
            f"{cells[1]:.0f}",
            f"{cells[2]:.0f}",
            f"{held:.0f}",
            f"{peak:.0f}",
            f"{found['launches']}",
        )
        print(f"| {name} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
