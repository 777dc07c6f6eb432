"""Rows at their own length: what the decoder does not compute, read from programs compiled for a TPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import micro
import pytest

from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.compile import compile_program
from mvader_jax.plan.program import Program, embedding_program
from mvader_jax.plan.topology import devices, parse_topology
from mvader_jax.train.config import load_config
from mvader_jax.train.flops import count_flops

CONFIGS = Path(__file__).parents[2] / "configs"


def layer_flops(tokens: int, width: int, inner: int, mlp: int, bottleneck: int) -> float:
    """Products of one decoder layer with an adapter on its MLP, for one row of `tokens`."""
    linear = 4 * width * inner + 2 * width * mlp + 2 * width * bottleneck
    return 2.0 * tokens * linear + 4.0 * tokens**2 * inner


def counted(program: Program) -> float:
    with jax.set_mesh(program.mesh):
        return count_flops(jax.jit(program.function).trace(*program.arguments).jaxpr)


def test_the_compiled_decoder_does_the_work_of_its_rows_and_no_more() -> None:
    """Micro: 4 tokens an image, captions of 12; ten samples a chip, two of them images."""
    config = micro.train_config(batch_size=40)
    stage = config.stages["diffusion"]
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, caption_length=3))
    pod = parse_topology("v5e:2x2")
    mesh = make_mesh(MeshConfig(fsdp=4), devices(pod))
    own, padded = (
        compile_program(
            embedding_program(config, stage, mesh, padded=p), pod, -1.0, lambda _: None, cache=False
        )["flops"]
        for p in (False, True)
    )
    layers = 2
    image, caption = (layer_flops(n, 48, 48, 96, 16) for n in (4, 3))
    # The null prompt's one row is on every chip: each multiplies it by its quarter of the weights.
    null = layer_flops(8, 48, 48, 96, 16) - 3 / 4 * 2.0 * 8 * (4 * 48 * 48 + 2 * 48 * 96 + 2 * 48 * 16)
    prefix = 2.0 * 4 * 256 * 48
    # A chip: ten rows of 4 tokens against two of 4 and eight of 3; the null prompt beside either.
    assert padded == pytest.approx(layers * (10 * image + null), rel=0.01)
    assert own == pytest.approx(layers * (2 * image + 8 * caption + null) + 2 * prefix, rel=0.01)


@pytest.mark.parametrize("name", ["open_v2", "luminous_v2"])
def test_captions_of_77_tokens_save_a_third_of_the_decoder(name: str) -> None:
    """By the jaxpr, at full size: .2 x 144 + .8 x 77 = 90.4 tokens a sample in place of 144."""
    config = load_config(CONFIGS / f"{name}.py")
    stage = config.stages["diffusion"]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    own, padded = (counted(embedding_program(config, stage, mesh, padded=p)) for p in (False, True))
    assert own / padded == pytest.approx(90.4 / 144, rel=0.02)
