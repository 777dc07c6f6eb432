"""The abstract programs: the batch a loader makes, the state a run starts with, without a weight."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import micro
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mvader_jax.data.mixed import STATES
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, compiler_options, make_mesh
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.parallel.sharding import bytes_per_device, constrain
from mvader_jax.plan.compile import compile_program, effort_option
from mvader_jax.plan.counted import step_flops
from mvader_jax.plan.program import Program, sample_program, train_program
from mvader_jax.plan.states import states_note
from mvader_jax.plan.topology import devices
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.train.assemble import batch_shape
from mvader_jax.train.config import load_config
from mvader_jax.train.sizes import encoded_parts

CONFIGS = Path(__file__).parents[2] / "configs"


def test_precomputed_parts_stand_for_pictures() -> None:
    config = load_config(CONFIGS / "open_v2.py")
    stage = config.stages["diffusion"]
    data, shape = batch_shape(config.model, stage, 256)
    encoded = encoded_parts(config.model, data, ("latents", "features"))
    batch = stage.objective.abstract_batch(data, shape, config.model.tokenizer, encoded)
    assert "pixels" not in batch
    assert batch["latent_mean"].shape == batch["latent_logvar"].shape == (2048, 64, 64, 4)
    # Of 8 rows a chip 1.6 are images: room for 2, and for 7 captions.
    assert batch["image_prompt"].pixels.shape == (2 * 256, 1, 144, 3072)
    assert batch["image_prompt"].token_ids.shape == (2 * 256, 144)
    assert batch["text_prompt"].token_ids.shape == (7 * 256, 77)


def test_the_state_is_sharded_and_nothing_is_computed() -> None:
    """13.9 billion parameters on eight devices, in bytes that can be worked out by hand."""
    config = load_config(CONFIGS / "luminous_v2.py")
    mesh = make_mesh(MeshConfig(fsdp=8))
    program = train_program(config, config.stages["diffusion"], mesh, ("latents", "features"))
    sizes = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
    trained = 840_351_684 + 127_795_200
    frozen = 13_896_304_640 + 2_257_920 + 524_748_800 + 15_744_000
    # What is below a megabyte (biases, norms) is whole on every device.
    assert sizes["trained weights"] == pytest.approx(4 * trained / 8, rel=0.01)
    assert sizes["optimizer"] == pytest.approx(8 * trained / 8, rel=0.01)
    assert sizes["average"] == sizes["trained weights"]
    assert sizes["frozen weights"] == pytest.approx(2 * frozen / 8, rel=0.01)


def test_a_batch_that_does_not_divide_is_one_sentence() -> None:
    config = micro.train_config(batch_size=12)
    with pytest.raises(
        UserError, match="a batch of 12 does not divide into 8 groups of rows: 8 for the mesh"
    ):
        train_program(config, config.stages["diffusion"], make_mesh(MeshConfig(data=8)))
    with pytest.raises(UserError, match="accepted: latents, features, states"):
        train_program(config, config.stages["diffusion"], make_mesh(MeshConfig(data=8)), ("pixels",))


def test_sampling_is_the_pipeline_s_own_program() -> None:
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    program = sample_program(micro.MODEL, mesh, 2, SamplingSettings(steps=3), dtype="float32")
    with jax.set_mesh(mesh):
        out = jax.eval_shape(program.function, *program.arguments)
    assert [(one.shape, one.dtype) for one in out] == [((2, 64, 64, 3), jnp.uint8), ((2,), jnp.bool_)]
    with pytest.raises(UserError, match="3 images do not divide over 2 chips"):
        sample_program(micro.MODEL, mesh, 3)


def test_a_step_s_flops_are_its_decoder_s_its_unet_s_and_its_vae_s() -> None:
    """The decoder goes forward only; what remat repeats is less than one more walk through the UNet."""
    config = micro.train_config(batch_size=10)
    stage = dataclasses.replace(config.stages["diffusion"], remat="blocks")
    needs, does = step_flops(config, stage), step_flops(config, stage, remat=True)
    without_vae = step_flops(config, stage, ("latents", "features"))
    assert needs > without_vae > 0
    assert 1.0 < does / needs < 4 / 3


def test_gathered_weights_do_not_become_loops() -> None:
    """What a training step is compiled with, on the mesh where XLA left alone adds to a product sixteen times."""
    mesh = make_mesh(MeshConfig(fsdp=16), devices(parse_topology("v4:2x2x4")))
    x, w = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in (
            ((128, 4096, 320), jnp.bfloat16, PartitionSpec("fsdp")),
            ((320, 2560), jnp.float32, PartitionSpec("fsdp", "tensor")),
        )
    )
    with jax.set_mesh(mesh):
        product = jax.jit(lambda x, w: constrain(x @ w.astype(x.dtype), "batch", "sequence", "activation"))
        lowered = product.trace(x, w).lower(lowering_platforms=("tpu",))
    quick = effort_option(-1.0)
    assert " while(" in lowered.compile(compiler_options=quick).as_text()
    text = lowered.compile(compiler_options={**quick, **compiler_options(mesh)}).as_text()
    assert " while(" not in text and "all-gather" in text
    assert compiler_options(make_mesh(MeshConfig(fsdp=8))) == {}


@pytest.mark.parametrize("pod", ["v4:2x2x1", "v5p:2x2x1", "v5e:2x2", "v6e:2x2", "tpu7x:2x2x1"])
def test_every_generation_takes_the_options(pod: str) -> None:
    mesh = make_mesh(MeshConfig(fsdp=-1), devices(parse_topology(pod)))
    options = compiler_options(mesh)
    x = jax.ShapeDtypeStruct((8, 128), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    lowered = jax.jit(lambda x: x @ x.T).trace(x).lower(lowering_platforms=("tpu",))
    assert options and lowered.compile(compiler_options={**effort_option(-1.0), **options})
    with pytest.raises(Exception, match="xla_tpu_no_such_option"):
        lowered.compile(compiler_options={"xla_tpu_no_such_option": "false"})


def test_flags_of_the_environment_are_other_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MVADER_CACHE", str(tmp_path))
    topology = parse_topology("v5e:2x2")
    mesh = make_mesh(MeshConfig(fsdp=4), devices(topology))
    x = jax.ShapeDtypeStruct((8, 128), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    program = Program(lambda x: x @ x.T, (x,), mesh, 8, {})
    compiled: list[bool] = []
    # LIBTPU read it when it was loaded: here it names what is kept, and no more.
    for flags in ("", "", "--xla_tpu_this=true"):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
        said: list[str] = []
        compile_program(program, topology, -1.0, said.append)
        compiled.append(any(line.startswith("compiling") for line in said))
    assert compiled == [True, False, True]


def test_a_weight_s_gradient_is_one_product() -> None:
    """Left alone XLA computes it piece by piece, and passes the sums round the chips."""
    mesh = make_mesh(MeshConfig(fsdp=16), devices(parse_topology("v5e:4x4")))
    sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
    x, y = (jax.ShapeDtypeStruct((65536, width), jnp.bfloat16, sharding=sharded) for width in (640, 2560))
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda x, y: x.T @ y, out_shardings=sharded).trace(x, y)
        lowered = lowered.lower(lowering_platforms=("tpu",))
    quick = effort_option(-1.0)
    assert "collective-permute" in lowered.compile(compiler_options=quick).as_text()
    text = lowered.compile(compiler_options={**quick, **compiler_options(mesh)}).as_text()
    assert "collective-permute" not in text and ("reduce-scatter" in text or "all-reduce" in text)


def test_states_stand_for_the_decoder_and_what_is_in_front_of_it() -> None:
    """A step loads the UNet alone; both kinds of rows are as long as their prompts, and their bytes are told."""
    config = load_config(CONFIGS / "open_v2.py")
    stage = config.stages["diffusion"]
    mesh = make_mesh(MeshConfig(data=8))
    program = train_program(config, dataclasses.replace(stage, batch_size=80), mesh, ("latents", "states"))
    state, batch = program.arguments
    assert not state.frozen and set(state.trainable) == {"unet"}
    assert [batch[name].shape for name in STATES] == [(16, 144, 4096), (64, 77, 4096), (8, 8, 4096)]
    said = states_note((144, 77, 8, 4096), batch, 80, 2.0)
    # 221 positions against (16 x 144 + 64 x 77) / 80.
    assert said.startswith("states: 1.81 MB a sample in the bucket, 0.1 GB/s from the bucket at this step;")
    assert said.endswith("of 2.4 epochs, so that they save work from epoch 3 on")
    v1 = load_config(CONFIGS / "open_v1.py")
    with pytest.raises(UserError, match="in which biases train"):
        train_program(v1, v1.stages["diffusion"], mesh, ("states",))
