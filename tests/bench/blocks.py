"""What a change of a block saves on a TPU, by XLA's own cycles: python tests/bench/blocks.py [--gradients] [ROW ...]

Blocks of Stable Diffusion 1.4's UNet, bfloat16, two samples on one v5e chip, compiled at XLA's default effort, each as it is
and as it was. A row takes a minute of an idle core, with gradients three; what was compiled is kept. docs/planning.md holds
the table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from typing import Any

from mvader_jax.parallel.libtpu import prepare


@dataclasses.dataclass(frozen=True)
class Row:
    """kind, level, channels: of a `plan.blocks.Block`; plain: its convolutions as anyone writes them."""

    kind: str
    level: int
    channels: int
    plain: bool = False


ROWS = {
    f"{name}, plain" if plain else name: Row(*block, plain)
    for name, block in {
        "upsampler": ("upsample", 1, 640),
        "resnet": ("resnet", 0, 320),
        "transformer": ("transformer", 0, 320),
    }.items()
    for plain in (True, False)
}


def compiled(row: Row, gradients: bool, rows: int) -> dict[str, Any]:
    """What one run of a block costs."""
    import jax
    import jax.numpy as jnp

    from mvader_jax.models.convolution import plainly
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.parallel.mesh import MeshConfig, make_mesh
    from mvader_jax.parallel.pods import Topology, chips
    from mvader_jax.plan.blocks import EFFORT, Block, block_program, module_of
    from mvader_jax.plan.compile import compile_program
    from mvader_jax.plan.topology import devices

    config, block, dtype = UNetConfig.sd14(), Block(row.kind, row.level, row.channels), jnp.dtype("bfloat16")
    chip = chips()["v5e"]
    topology = Topology("v5e", (1,) * chip.torus, 1, chip)
    mesh = make_mesh(MeshConfig(), devices(topology)[:1])
    program = block_program(config, block, rows, dtype, "none", mesh)
    if not gradients:
        module = module_of(config, block, dtype, "none")
        program = dataclasses.replace(
            program, function=lambda params, inputs: module.apply({"params": params}, *inputs)
        )
    with jax.set_mesh(mesh), plainly() if row.plain else contextlib.nullcontext():
        return compile_program(program, topology, EFFORT, lambda message: None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW", help="all where none is named")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--gradients", action="store_true")
    options = parser.parse_args()
    prepare()
    print("| block | cycles, M | traffic, MB | GFLOPs | temporaries, MB |\n|---|---|---|---|---|")
    for name in options.rows or ROWS:
        found = compiled(ROWS[name], options.gradients, options.samples)
        cells = (found["cycles"] / 1e6, found["bytes"] / 1e6, found["flops"] / 1e9)
        held = found["memory"]["temporaries"] / 1e6
        print(f"| {name} | {cells[0]:.2f} | {cells[1]:.0f} | {cells[2]:.0f} | {held:.0f} |", flush=True)


if __name__ == "__main__":
    main()
