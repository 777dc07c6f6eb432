"""The steps that others measured on TPUs, compiled as they ran them: what `expected` is fitted to.

Stable Diffusion 2's UNet learns from latents and text states that were computed before (MLPerf Training's text
to image benchmark): pure data parallelism, bfloat16 over float32 weights, no remat, no average, and convolutions as anyone
writes them: our own cheaper forms are not what was run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mvader_jax.bounds import Share
from mvader_jax.condition import Condition
from mvader_jax.data.batches import Batch, EncodedShapes, Shape
from mvader_jax.data.config import DataConfig
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.convolution import plainly
from mvader_jax.models.remat import Remat
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.parallel.libtpu import prepare
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import Topology, chips
from mvader_jax.plan.compile import compile_program
from mvader_jax.plan.expected import EFFORT
from mvader_jax.plan.program import Program, train_program
from mvader_jax.plan.topology import devices
from mvader_jax.prompt.tokenizer import TokenizerConfig
from mvader_jax.train.config import Group, Stage, TrainConfig
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.objectives.base import Components
from mvader_jax.train.optim.optimizer import OptimizerConfig

Say = Callable[[str], None]
#: Text states of a sample: CLIP's 77 positions, 1024 wide.
POSITIONS = 77


@dataclasses.dataclass(frozen=True)
class StatesKnown(Diffusion):
    """`Diffusion` on text states that stand in the batch, nothing of them dropped."""

    p_image: Share = 0.0
    dropout: Share = 0.0

    def check_model(self, model: ModelConfig) -> None:
        del model

    def components(
        self, model: ModelConfig, known: Collection[str] = (), drawn: bool = False
    ) -> tuple[str, ...]:
        return ("unet",)

    def abstract_batch(
        self, data: DataConfig, shape: Shape, tokenizer: TokenizerConfig | None, encoded: EncodedShapes
    ) -> Batch:
        assert encoded.latents is not None
        moments = jax.ShapeDtypeStruct((shape.rows, *encoded.latents[1:]), jnp.bfloat16)
        return {
            "latent_mean": moments,
            "latent_logvar": moments,
            "states": jax.ShapeDtypeStruct(
                (shape.rows, POSITIONS, UNetConfig.sd2().cross_attention_dim), jnp.bfloat16
            ),
            "use_image": jax.ShapeDtypeStruct((shape.rows,), jnp.bool_),
        }

    def conditions_of(
        self, model: ModelConfig, dtype: str, remat: Remat
    ) -> Callable[..., tuple[Condition, Condition]]:
        def conditions(components: Components, batch: Batch, groups: int) -> tuple[Condition, Condition]:
            states = batch["states"]
            known = Condition(states, jnp.zeros(states.shape[:2], jnp.float32))
            return known, Condition(jnp.zeros_like(states[:1]), jnp.zeros((1, POSITIONS), jnp.float32))

        return conditions


def measured_program(mesh: Mesh, batch: int) -> Program:
    """The step of Stable Diffusion 2's UNet on `batch` samples over the whole mesh."""
    unet = dataclasses.replace(UNetConfig.sd2(), norm_groups=16)
    schedule = ScheduleConfig(prediction_type="v_prediction")
    return _without_average(unet_step(unet, schedule, mesh, batch, ema_decay=0.0))


def unet_step(
    unet: UNetConfig,
    schedule: ScheduleConfig,
    mesh: Mesh,
    batch: int,
    ema_decay: float,
    remat: Remat = "none",
) -> Program:
    """The train step of a UNet alone, in bfloat16, from latents and states that are known."""
    model = ModelConfig(embedder="clip_text", unet=unet, vae=VAEConfig.sd14(), schedule=schedule)
    stage = Stage(
        objective=StatesKnown(),
        groups={"unet": Group("unet/.*", 1e-4)},
        steps=1000,
        batch_size=batch,
        data=DataConfig(),
        optimizer=OptimizerConfig(warmup_steps=100, ema_decay=ema_decay),
        dtype="bfloat16",
        remat=remat,
    )
    config = TrainConfig(name="unet", model=model, stages={"unet": stage})
    return train_program(config, stage, mesh, ("latents",))


def _without_average(program: Program) -> Program:
    """A train step whose state holds no average of the parameters: ours keeps one, and where it is off a copy."""
    state, batch = program.arguments
    state_shardings, metrics_sharding = program.jit_options["out_shardings"]

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        new, metrics = program.function(dataclasses.replace(state, ema=state.trainable), batch)
        return dataclasses.replace(new, ema=None), metrics

    shardings = dataclasses.replace(state_shardings, ema=None), metrics_sharding
    return dataclasses.replace(
        program,
        function=step,
        arguments=(dataclasses.replace(state, ema=None), batch),
        jit_options={**program.jit_options, "out_shardings": shardings},
    )


def record(
    generation: str, batch: int, say: Say = lambda message: None, cache: bool = True
) -> dict[str, Any]:
    """Compiles that step, and says what it does per chip, whatever the pod: flops, convolution_flops, kernel_flops,
    bytes, launches, and `reduced`, the bytes that are summed over all chips."""
    chip = chips()[generation]
    topology = Topology(generation, (2, 2, 2) if chip.torus == 3 else (2, 4), 1, chip)
    mesh = make_mesh(MeshConfig(data=topology.devices), devices(topology))
    program = measured_program(mesh, batch * topology.chips)
    with plainly():
        compiled = compile_program(program, topology, EFFORT, say, cache)
    if "flops" not in compiled:
        raise UserError(f"the step of {batch} samples does not fit {chip.name}")
    names = ("flops", "convolution_flops", "kernel_flops", "bytes", "launches")
    wire = sum(row["wire"] for row in compiled["collectives"])
    ways = topology.devices
    return {name: compiled[name] for name in names} | {
        "reduced": wire / (2 * (ways - 1) / ways),
        "by": compiled["versions"],
    }


def main() -> None:
    """Reads {"generation", "batch", "cache"} from standard input; writes {"step": ...} or {"error": ...}."""
    prepare()
    asked = json.loads(sys.stdin.read())

    def say(message: str) -> None:
        print(f"progress: {message}", file=sys.stderr, flush=True)

    try:
        answer: dict[str, Any] = {"step": record(**asked, say=say)}
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
