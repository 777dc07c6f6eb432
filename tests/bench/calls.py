"""What one step's call of the UNet costs, compiled: python tests/bench/calls.py [--topology v5e:1x1 | --topology cpu]

The UNet of Stable Diffusion 1.4 at conditions as wide as the open S-MAGMA's (4,096), `--batch` guided pictures in bfloat16,
no weights: keys and values of the cross-attentions made in every call, as they were; made before the steps, as they are; and
the calls that cost less, without guidance, from deep features, both, and of a UNet distilled to few steps. FLOPs and bytes
per call of the compiled program, and what of them is left. For a TPU that is not there libtpu compiles, minutes for each row
at the lowest effort; what was compiled is kept. There a second table says what each call is expected to take, as `mvader
plan` does, and pictures a second per chip of whole runs, added up from their calls and the autoencoder's decoder. `--small`
is the same of the embedded model's UNet; `--rows 2` makes the first two rows alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from mvader_jax.parallel.libtpu import prepare

ROWS = (
    "keys and values in every call",
    "keys and values before the steps",
    "without guidance",
    "from deep features",
    "from deep features, without guidance",
    "of few steps",
)
#: Runs, and how often they make each of ROWS.
RUNS: dict[str, tuple[int, ...]] = {
    "50 steps, keys and values in every call": (50,),
    "50 steps": (0, 50),
    "50 steps, reuse 2": (0, 25, 0, 25),
    "50 steps, reuse 3": (0, 17, 0, 33),
    "4 steps of `lcm`": (0, 0, 0, 0, 0, 4),
}
DECODER = "the autoencoder's decoder"


def calls(unet: Any, length: int, dtype: str, batch: int = 1) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(what, function, shapes of its arguments) of every row."""
    import jax
    import jax.numpy as jnp

    from mvader_jax.condition import Condition
    from mvader_jax.diffusion.guidance import alone, guided
    from mvader_jax.models.components import abstract_components
    from mvader_jax.models.config import ModelConfig
    from mvader_jax.models.unet import UNet, with_keys_values

    kind = jnp.dtype(dtype)
    student = dataclasses.replace(unet, time_cond_proj_dim=256)
    size, network, few = unet.sample_size, UNet(unet, dtype=kind), UNet(student, dtype=kind)

    def params_of(unet: Any) -> Any:
        shapes, _ = abstract_components(ModelConfig(unet=unet), ["unet"])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, kind), shapes["unet"])

    def of(shape: tuple[int, ...], dtype: Any = kind) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    params = params_of(unet)
    hidden = of((batch, length, unet.cross_attention_dim))
    condition = Condition(hidden, of((batch, length), jnp.float32))
    ready = jax.eval_shape(lambda p, c: with_keys_values(unet, p, c, kind), params, condition)
    unread = dataclasses.replace(ready, hidden=hidden)
    latents, t = of((batch, size, size, unet.in_channels), jnp.float32), of((), jnp.int32)

    def left(p: Any, x: Any, t: Any, c: Any) -> Any:
        return network.apply({"params": p}, x, jnp.broadcast_to(t, batch), c, mutable=["intermediates"])[1]

    deep = jax.tree.leaves(jax.eval_shape(left, params, latents, t, condition))[0]

    def whole(p: Any, x: Any, t: Any, c: Any, null: Any, *deep: Any) -> Any:
        return guided(lambda *inputs: network.apply({"params": p}, *inputs, *deep), c, null, 8.0)(x, t)

    def half(p: Any, x: Any, t: Any, c: Any, *deep: Any) -> Any:
        return alone(lambda *inputs: network.apply({"params": p}, *inputs, *deep), c)(x, t)

    def led(p: Any, x: Any, t: Any, c: Any, scale: Any) -> Any:
        return alone(lambda *inputs: few.apply({"params": p}, *inputs, guidance=scale), c)(x, t)

    twice = of((2 * batch, *deep.shape[1:]), deep.dtype)
    yield ROWS[0], whole, (params, latents, t, condition, condition)
    yield ROWS[1], whole, (params, latents, t, unread, unread)
    yield ROWS[2], half, (params, latents, t, unread)
    yield ROWS[3], whole, (params, latents, t, unread, unread, twice)
    yield ROWS[4], half, (params, latents, t, unread, deep)
    yield ROWS[5], led, (params_of(student), latents, t, unread, of((batch,), jnp.float32))


def decoder(vae: Any, side: int, dtype: str, batch: int) -> tuple[str, Any, tuple[Any, ...]]:
    """The same of the autoencoder's decoder, from latents of so many a side."""
    import jax
    import jax.numpy as jnp

    from mvader_jax.models.components import abstract_components
    from mvader_jax.models.config import ModelConfig
    from mvader_jax.sampling.generate import decode_latents

    shapes, _ = abstract_components(ModelConfig(vae=vae), ["vae"])
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes["vae"])
    latents = jax.ShapeDtypeStruct((batch, side, side, vae.latent_channels), jnp.float32)

    def decode(p: Any, x: Any) -> Any:
        return decode_latents({"vae": p}, x, model=ModelConfig(vae=vae), dtype=dtype)

    return DECODER, decode, (params, latents)


def compiled(function: Any, shapes: tuple[Any, ...], topology: str, effort: float) -> dict[str, float]:
    """flops and bytes of a run, and on a TPU the seconds that it is expected to take."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from mvader_jax.parallel.pods import parse_topology
    from mvader_jax.plan.compile import compile_program
    from mvader_jax.plan.program import Program
    from mvader_jax.plan.report import Subject, Work, make_plan
    from mvader_jax.plan.topology import devices

    if topology == "cpu":
        cost: Any = jax.jit(function).lower(*shapes).compile().cost_analysis()
        return {"flops": cost["flops"], "bytes": cost["bytes accessed"]}
    pod = parse_topology(topology)
    mesh = Mesh(np.array(devices(pod)[:1]), ("data",))
    place = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    found = compile_program(Program(function, placed, mesh, 1, {}), pod, effort, lambda said: None)
    plan = make_plan(Subject("a call", pod, {}, {"effort": effort}), {}, found, Work(1))
    seconds = {name: plan.figures[f"expected_{name}"].value for name in ("seconds", "least", "most")}
    return {"flops": found["flops"], "bytes": found["bytes"], **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5e:1x1", help="a TPU that need not be there, or cpu")
    parser.add_argument("--length", type=int, default=144, help="positions of the prompt")
    parser.add_argument("--width", type=int, default=4096, help="of the condition")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call")
    parser.add_argument("--effort", type=float, default=-1.0, help="XLA's, -1 to 1")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first so many")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.topology != "cpu":
        prepare()
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.models.vae import VAEConfig

    unet = UNetConfig.tiny() if args.small else UNetConfig.sd14()
    vae = VAEConfig.tiny() if args.small else VAEConfig.sd14()
    unet = dataclasses.replace(unet, cross_attention_dim=args.width)
    found: dict[str, dict[str, float]] = {}
    print(f"{args.topology}, {args.batch} pictures, {args.length} positions of {args.width}\n")
    print("| a call | GFLOP | of it | GB accessed | of it |\n|---|---|---|---|---|")
    for what, function, shapes in itertools.islice(
        calls(unet, args.length, args.dtype, args.batch), args.rows
    ):
        found[what] = cost = compiled(function, shapes, args.topology, args.effort)
        first = found[ROWS[0]]
        parts = [f"{cost[name] / 1e9:.3g} | {cost[name] / first[name]:.3f}" for name in ("flops", "bytes")]
        print(f"| {what} | {' | '.join(parts)} |", flush=True)
    if args.topology == "cpu" or args.rows < len(ROWS):
        return
    what, function, shapes = decoder(vae, unet.sample_size, args.dtype, args.batch)
    found[what] = compiled(function, shapes, args.topology, args.effort)
    print("\n" + as_runs(found, args.batch))


def as_runs(found: dict[str, dict[str, float]], batch: int) -> str:
    """Of each of RUNS what it is expected to take, and pictures a second per chip. found: {row: `compiled`}."""
    lines = ["| a run | milliseconds a call | pictures/s per chip | of 50 steps |\n|---|---|---|---|"]

    def seconds(times: tuple[int, ...], kind: str) -> float:
        made = dict(zip(ROWS, times, strict=False)) | {DECODER: 1}
        return sum(count * found[what][kind] for what, count in made.items() if count)

    for run, times in RUNS.items():
        each = [found[what]["seconds"] for what, count in zip(ROWS, times, strict=False) if count]
        expected, least, most = (batch / seconds(times, kind) for kind in ("seconds", "most", "least"))
        times_as_fast = seconds(RUNS["50 steps"], "seconds") / seconds(times, "seconds")
        calls_ms = " and ".join(f"{1e3 * one:.1f}" for one in each)
        lines.append(
            f"| {run} | {calls_ms} | {expected:.3g} ({least:.2g} to {most:.2g}) | {times_as_fast:.2f} |"
        )
    lines.append(f"\nThe decoder takes {1e3 * found[DECODER]['seconds']:.1f} ms of each.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
