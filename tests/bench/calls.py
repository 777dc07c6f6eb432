"""What one step's call of the UNet costs, compiled: python tests/bench/calls.py [--topology v5e:1x1 | --topology cpu]

The UNet of Stable Diffusion 1.4 at conditions as wide as the open S-MAGMA's (4,096), one guided picture in bfloat16, no
weights: keys and values of the cross-attentions made in every call, as they were; made before the steps, as they are; and
the calls that cost less, without guidance, from deep features, and both. FLOPs and bytes per call of the compiled program,
and what of them is left. For a TPU that is not there libtpu compiles, minutes for each row at the lowest effort; what was
compiled is kept. `--small` is the same of the embedded model's UNet.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from mvader_jax.parallel.libtpu import prepare

ROWS = (
    "keys and values in every call",
    "keys and values before the steps",
    "without guidance",
    "from deep features",
    "from deep features, without guidance",
)


def calls(unet: Any, length: int, dtype: str) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(what, function, shapes of its arguments) of every row."""

    import jax
    import jax.numpy as jnp

    from mvader_jax.condition import Condition
    from mvader_jax.diffusion.guidance import alone, guided
    from mvader_jax.models.components import abstract_components
    from mvader_jax.models.config import ModelConfig
    from mvader_jax.models.unet import UNet, with_keys_values

    kind = jnp.dtype(dtype)
    shapes, _ = abstract_components(ModelConfig(unet=unet), ["unet"])
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, kind), shapes["unet"])
    size, network = unet.sample_size, UNet(unet, dtype=kind)

    def of(shape: tuple[int, ...], dtype: Any = kind) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    condition = Condition(of((1, length, unet.cross_attention_dim)), of((1, length), jnp.float32))
    ready = jax.eval_shape(lambda p, c: with_keys_values(unet, p, c, kind), params, condition)
    unread = dataclasses.replace(ready, hidden=of((1, length, unet.cross_attention_dim)))
    latents, t = of((1, size, size, unet.in_channels), jnp.float32), of((), jnp.int32)

    def left(p: Any, x: Any, t: Any, c: Any) -> Any:
        return network.apply({"params": p}, x, jnp.broadcast_to(t, 1), c, mutable=["intermediates"])[1]

    deep = jax.tree.leaves(jax.eval_shape(left, params, latents, t, condition))[0]

    def whole(p: Any, x: Any, t: Any, c: Any, null: Any, *deep: Any) -> Any:
        return guided(lambda *inputs: network.apply({"params": p}, *inputs, *deep), c, null, 8.0)(x, t)

    def half(p: Any, x: Any, t: Any, c: Any, *deep: Any) -> Any:
        return alone(lambda *inputs: network.apply({"params": p}, *inputs, *deep), c)(x, t)

    twice = of((2, *deep.shape[1:]), deep.dtype)
    yield ROWS[0], whole, (params, latents, t, condition, condition)
    yield ROWS[1], whole, (params, latents, t, unread, unread)
    yield ROWS[2], half, (params, latents, t, unread)
    yield ROWS[3], whole, (params, latents, t, unread, unread, twice)
    yield ROWS[4], half, (params, latents, t, unread, deep)


def compiled(function: Any, shapes: tuple[Any, ...], topology: str, effort: float) -> dict[str, float]:
    """flops and bytes of a run."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from mvader_jax.parallel.pods import parse_topology
    from mvader_jax.plan.compile import compile_program
    from mvader_jax.plan.program import Program
    from mvader_jax.plan.topology import devices

    if topology == "cpu":
        cost: Any = jax.jit(function).lower(*shapes).compile().cost_analysis()
        return {"flops": cost["flops"], "bytes": cost["bytes accessed"]}
    pod = parse_topology(topology)
    mesh = Mesh(np.array(devices(pod)[:1]), ("data",))
    place = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    return compile_program(Program(function, placed, mesh, 1, {}), pod, effort, lambda said: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5e:1x1", help="a TPU that need not be there, or cpu")
    parser.add_argument("--length", type=int, default=144, help="positions of the prompt")
    parser.add_argument("--width", type=int, default=4096, help="of the condition")
    parser.add_argument("--effort", type=float, default=-1.0, help="XLA's, -1 to 1")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.topology != "cpu":
        prepare()
    from mvader_jax.models.unet import UNetConfig

    unet = UNetConfig.tiny() if args.small else UNetConfig.sd14()
    unet = dataclasses.replace(unet, cross_attention_dim=args.width)
    first: dict[str, float] = {}
    print(f"{args.topology}, {args.length} positions of {args.width}\n")
    print("| a call | GFLOP | of it | GB accessed | of it |\n|---|---|---|---|---|")
    for what, function, shapes in calls(unet, args.length, args.dtype):
        cost = compiled(function, shapes, args.topology, args.effort)
        first = first or cost
        parts = [f"{cost[name] / 1e9:.3g} | {cost[name] / first[name]:.3f}" for name in ("flops", "bytes")]
        print(f"| {what} | {' | '.join(parts)} |", flush=True)


if __name__ == "__main__":
    main()
