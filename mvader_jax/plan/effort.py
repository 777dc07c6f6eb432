"""How far a quick compilation's figures are from a thorough one's, on a part that affords both.

    python -m mvader_jax.plan.effort [-1.0 -0.5 0.0]

The part: a resnet and a transformer of Stable Diffusion's highest level, forward and backward, four samples on
a v5e chip, the attention by its kernel.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def measure(
    efforts: list[float], topology: str = "v5e:2x2", side: int = 64, channels: int = 320
) -> list[dict[str, Any]]:
    """{effort, seconds of compiling, flops, bytes, temporaries, cycles, saturated} a chip, an effort each."""
    from mvader_jax.plan.topology import devices, parse_topology, prepare_environment

    prepare_environment()
    import jax
    import jax.numpy as jnp

    from mvader_jax.models.unet_blocks import ResnetBlock, Transformer2D
    from mvader_jax.parallel.mesh import MeshConfig, make_mesh
    from mvader_jax.parallel.sharding import abstract_init, batch_sharding, replicated
    from mvader_jax.plan.compile import memory_of
    from mvader_jax.plan.hlo import cost as hlo_cost

    mesh = make_mesh(MeshConfig(data=-1), devices(parse_topology(topology)))
    rows, tokens, width = 4 * mesh.size, 144, 4096
    resnet, transformer = (
        ResnetBlock(channels, 32, 1e-5, jnp.bfloat16),
        Transformer2D(8, 32, jnp.bfloat16),
    )

    def shape(*dims: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=batch_sharding(mesh, len(dims)))

    x, time_ = shape(rows, side, side, channels), shape(rows, 4 * channels)
    context = shape(rows, tokens, width), shape(rows, tokens, dtype=jnp.float32)
    small = jnp.zeros((1, 8, 8, channels))
    params = {
        "resnet": abstract_init(resnet, small, jnp.zeros((1, 4 * channels)))[0],
        "transformer": abstract_init(transformer, small, jnp.zeros((1, 2, width)), jnp.zeros((1, 2)), None)[
            0
        ],
    }
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=replicated(mesh)), params)

    def loss(params: Any, x: Any, time_: Any, states: Any, weights: Any) -> jax.Array:
        x = resnet.apply({"params": params["resnet"]}, x, time_)
        x = transformer.apply({"params": params["transformer"]}, x, states, weights, None)
        return jnp.sum(x.astype(jnp.float32) ** 2)

    found = []
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, x, time_, *context)
        lowered = traced.lower(lowering_platforms=("tpu",))
        for effort in efforts:
            started = time.monotonic()
            compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": effort})
            cost = hlo_cost.cost(compiled.as_text())
            found.append(
                {
                    "effort": effort,
                    "seconds": time.monotonic() - started,
                    "flops": cost.flops,
                    "bytes": cost.bytes,
                    "temporaries": memory_of(compiled.memory_analysis())["temporaries"],
                    "cycles": cost.cycles,
                    "saturated": cost.saturated,
                }
            )
    return found


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    efforts = [float(word) for word in sys.argv[1:]] or [-1.0, -0.5, 0.0]
    print("effort  compiling, s  FLOPs, T  bytes, GB  temporaries, MiB  XLA's cycles, M  overflowed")
    for row in measure(efforts):
        print(
            f"{row['effort']:>6.1f}{row['seconds']:>14.1f}{row['flops'] / 1e12:>10.4f}{row['bytes'] / 1e9:>11.3f}"
            f"{row['temporaries'] / 2**20:>18.1f}{row['cycles'] / 1e6:>17.2f}{row['saturated']:>12}"
        )


if __name__ == "__main__":
    main()
