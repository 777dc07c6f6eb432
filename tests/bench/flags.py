"""What LIBTPU's flags change of a compiled train step: python tests/bench/flags.py [--pod v6e-16] [ROW ...]

Compiles a train step in small as XLA would, with what every train step is compiled with (`compiler_options` of
`parallel/mesh.py`), with each of these alone, and, beside them, with what others set: the feed-forward part of a
transformer of 640 channels at 32x32, float32 weights over the chips, AdamW, four samples a chip. A row takes half a
minute of an idle core. Cycles mean something at XLA's default effort alone and tell nothing of collectives.
tpu/README.md holds the table.
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Mapping
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.parallel.libtpu import prepare
from mvader_jax.plan.hlo.cost import COLLECTIVES, cost
from mvader_jax.plan.hlo.parse import parse

#: What others set and we do not: maxtext's groups by their names (benchmarks/xla_flags_library.py), MaxDiffusion's
#: (README.md, end_to_end/tpu/run_wan_fast_inference.sh).
ROWS: dict[str, tuple[str, ...]] = {
    "fused gathers": (
        "xla_tpu_enable_async_collective_fusion=true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
        "xla_tpu_overlap_compute_collective_tc=true",
    ),
    "data-parallel sums": (
        "xla_tpu_enable_data_parallel_all_reduce_opt=true",
        "xla_tpu_data_parallel_opt_different_sized_ops=true",
    ),
    "no collective matmul": ("xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",),
    "collective matmul": (
        "xla_jf_spmd_threshold_for_windowed_einsum_mib=0",
        "xla_tpu_enable_windowed_einsum_for_all_gather=true",
    ),
    "fused all-reduce": (
        "xla_tpu_enable_async_collective_fusion=true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",
        "xla_enable_async_all_reduce=true",
    ),
    "asynchronous gathers and permutes": (
        "xla_enable_async_all_gather=true",
        "xla_enable_async_collective_permute=true",
        "xla_tpu_enable_async_all_to_all=true",
    ),
    "layouts for reduce-scatter": (
        "xla_tpu_use_minor_sharding_for_major_trivial_input=true",
        "xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1",
        "xla_tpu_assign_all_reduce_scatter_layout=true",
    ),
    "schedulers' experiments": (
        "xla_tpu_enable_latency_hiding_scheduler=true",
        "xla_tpu_enable_all_experimental_scheduler_features=true",
        "xla_tpu_enable_scheduler_memory_pressure_tracking=true",
        "xla_tpu_aggressive_opt_barrier_removal=ENABLED",
        "xla_lhs_prioritize_async_depth_over_stall=ENABLED",
        "xla_tpu_scheduler_percent_shared_memory_limit=100",
        "xla_latency_hiding_scheduler_rerun=2",
    ),
    "pipelined gathers": (
        "xla_tpu_enable_ag_backward_pipelining=true",
        "xla_should_allow_loop_variant_parameter_in_chain=ENABLED",
        "xla_should_add_loop_invariant_op_in_chain=ENABLED",
    ),
}
#: Of generations that have sparse cores; and what v6e is given more scoped memory with.
SPARSE_GENERATIONS = ("v5p", "v6e", "tpu7x")
SPARSE: dict[str, tuple[str, ...]] = {
    "collectives on sparse cores": (
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather=false",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=false",
        "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter=false",
        "xla_tpu_enable_sparse_core_collective_offload_all_gather=true",
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true",
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce=true",
        "xla_tpu_enable_all_gather_offload_tracing=true",
        "xla_tpu_enable_reduce_scatter_offload_tracing=true",
        "xla_tpu_enable_all_reduce_offload_tracing=true",
    ),
    "scoped memory of 64 MiB": ("xla_tpu_scoped_vmem_limit_kib=65536",),
    "scoped memory of 96 MiB": ("xla_tpu_scoped_vmem_limit_kib=98304",),
}
NONE, OURS = "none", "all of ours"
CHANNELS, POSITIONS = 640, 32 * 32


def rows(generation: str, ours: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What is compiled for a generation: {name: flags}."""
    alone = {f"{flag}={value}": {flag: value} for flag, value in ours.items()}
    others = {**ROWS, **(SPARSE if generation in SPARSE_GENERATIONS else {})}
    beside = {name: {**ours, **dict(flag.split("=", 1) for flag in flags)} for name, flags in others.items()}
    return {NONE: {}, OURS: dict(ours), **alone, **beside}


def ways(text: str) -> collections.Counter[str]:
    """How a compiled program's collectives run, each counted once, however often its loop does.

    waited: the core does nothing meanwhile; started: it goes on, and waits later; fused: with other work in one kernel.
    """
    computations, _ = parse(text)
    inside = {}
    for computation in computations.values():
        for i in computation.instructions:
            if i.opcode in ("fusion", "async-start"):
                inside[i.called("calls") or ""] = "fused" if i.opcode == "fusion" else "started"
    found: dict[tuple[str, str], str] = {}
    for computation in computations.values():
        for i in computation.instructions:
            if i.opcode.removesuffix("-start") in COLLECTIVES:
                way = "started" if i.opcode.endswith("-start") else inside.get(computation.name, "waited")
                # The steps of a fused one repeat it under one channel.
                _, _, channel = i.attributes.partition("channel_id=")
                found[way, channel.partition(",")[0] if way == "fused" and channel else i.name] = way
    return collections.Counter(found.values())


def step(mesh: Any, samples: int) -> Any:
    """A step of training a transformer's feed-forward part, as a stage trains a UNet's: float32 weights, AdamW."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from mvader_jax.models.unet_blocks import FeedForward, layer_norm
    from mvader_jax.parallel.sharding import (
        abstract_init,
        batch_sharding,
        constrain,
        param_shardings,
        replicated,
    )
    from mvader_jax.plan.program import Program

    class Part(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            hidden = FeedForward(jnp.bfloat16, name="ff")(layer_norm(x, name="norm"))
            return constrain(x + hidden, "batch", "sequence", "activation")

    def placed(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    module, optimizer = Part(), optax.adamw(1e-4)
    x = jax.ShapeDtypeStruct((samples, POSITIONS, CHANNELS), jnp.bfloat16, sharding=batch_sharding(mesh, 3))
    shapes, names = abstract_init(module, jnp.zeros((1, 8, CHANNELS)))
    params = jax.tree.map(placed, shapes, param_shardings(shapes, names, mesh))
    state = jax.eval_shape(optimizer.init, params)
    state = optax.tree_map_params(
        optimizer,
        lambda leaf, like: placed(leaf, like.sharding),
        state,
        params,
        transform_non_params=lambda leaf: placed(leaf, replicated(mesh)),
    )

    def train(params: Any, state: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.square(module.apply({"params": params}, x).astype(jnp.float32)).mean()

        updates, new = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), new

    options = {
        "donate_argnums": (0, 1),
        "out_shardings": jax.tree.map(lambda leaf: leaf.sharding, (params, state)),
    }
    return Program(train, (params, state, x), mesh, samples, {}, options)


def told(name: str, lowered: Any, options: dict[str, Any], seen: dict[str, str]) -> str:
    """A row of the table. seen: the programs so far, by the first row that gave them."""
    from mvader_jax.plan.compile import memory_of

    started = time.process_time()
    compiled = lowered.compile(compiler_options=options)
    seconds = time.process_time() - started
    text = compiled.as_text()
    found, way = cost(text), ways(text)
    memory = memory_of(compiled.memory_analysis())
    # Without its first line, which names options.
    before = seen.setdefault(text.partition("\n")[2], name)
    cells = (
        f"{way['started']} / {way['fused']} / {way['waited']}",
        f"{memory['peak'] / 1e9:.2f}",
        f"{found.bytes / 1e9:.2f}",
        f"{sum(c.wire_bytes for c in found.collectives) / 1e6:.0f}",
        f"{found.launches}",
        f"{found.cycles / 1e6:.1f}",
        f"{seconds:.0f}",
        "" if before == name else f"as {before}",
    )
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all where none is named")
    parser.add_argument("--pod", default="v5e-16")
    parser.add_argument("--mesh", default="data=4,fsdp=4")
    parser.add_argument("--samples", type=int, default=4, help="a chip")
    parser.add_argument("--effort", type=float, default=0.0, help="XLA's; cycles mean something at 0 alone")
    options = parser.parse_args()
    prepare()
    from mvader_jax.parallel.mesh import compiler_options, make_mesh, parse_mesh
    from mvader_jax.parallel.pods import parse_topology
    from mvader_jax.plan.compile import effort_option
    from mvader_jax.plan.topology import devices

    if options.samples < 1:
        parser.error(f"--samples is {options.samples}; accepted: 1 or more")
    try:
        topology = parse_topology(options.pod)
        mesh = make_mesh(parse_mesh(options.mesh), devices(topology))
    except UserError as error:
        parser.error(str(error))
    table = rows(topology.generation, compiler_options(mesh))
    for name in options.rows:
        if name not in table:
            parser.error(f"no row is named {name!r}; rows: {', '.join(table)}")
    program = step(mesh, options.samples * topology.chips)
    lowered = program.lower()
    print(
        "| flags | collectives started / fused / waited for | peak, GB | traffic, GB | between chips, MB | instructions "
        "| cycles, M | compiled in, s | the program |\n|---|---|---|---|---|---|---|---|---|"
    )
    seen: dict[str, str] = {}
    for name in [NONE, *(row for row in options.rows or table if row != NONE)]:
        given = {**effort_option(options.effort), **table[name]}
        try:
            line = told(name, lowered, given, seen)
        except Exception as error:  # jaxlib's XlaRuntimeError
            line = f"XLA refuses: {str(error).splitlines()[0]}"
        print(f"| {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
