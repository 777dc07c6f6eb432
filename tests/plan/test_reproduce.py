"""The measured steps as they are compiled: their arithmetic, and what is recorded of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mvader_jax.errors import UserError
from mvader_jax.models import convolution
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan import reproduce
from mvader_jax.plan.expected import read_measured, recorded
from mvader_jax.train.flops import count_flops


def test_the_step_has_the_arithmetic_that_was_measured() -> None:
    """2.41 TFLOP per sample, forward and backward; weights in float32, no average, text states in the batch."""
    mesh = make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])
    program = reproduce.measured_program(mesh, 2)
    with jax.set_mesh(mesh):
        flops = count_flops(jax.jit(program.function).trace(*program.arguments).jaxpr, padding=True)
    assert flops / 2 == pytest.approx(2.41e12, rel=0.01)
    state, batch = program.arguments
    assert sum(x.size for x in jax.tree.leaves(state.trainable)) == 865_910_724
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    assert not jax.tree.leaves((state.frozen, state.ema))
    assert batch["states"].shape == (2, 77, 1024) and "pixels" not in batch


def test_every_measured_step_is_recorded() -> None:
    """A chip does the FLOPs of its samples, and some more: a gradient of a convolution may touch padding."""
    steps = {step.key: step for step in read_measured()}
    assert recorded().keys() == steps.keys()
    for key, program in recorded().items():
        assert 2.38e12 < program["flops"] / steps[key].batch < 1.2 * 2.41e12
        assert program["convolution_flops"] + program["kernel_flops"] < program["flops"]
        assert program["reduced"] == pytest.approx(2 * 865_910_724, rel=0.01)  # gradients in bfloat16


def test_what_is_recorded_is_of_any_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = dict.fromkeys(
        ("flops", "convolution_flops", "kernel_flops", "bytes", "launches", "others"), 1.0
    )
    compiled |= {"collectives": [{"wire": 7.0}, {"wire": 7.0}], "versions": {"jax": "1"}}
    found: list[Any] = []

    def compile_program(program: Any, topology: Any, *_: Any) -> dict[str, Any]:
        found.append((program, topology.name))
        assert convolution._plainly.get()  # as it was run, not as ours would be
        return compiled

    monkeypatch.setattr(reproduce, "devices", lambda topology: list(range(topology.chips)))
    monkeypatch.setattr(reproduce, "make_mesh", lambda config, devices: len(devices))
    monkeypatch.setattr(reproduce, "measured_program", lambda mesh, batch: (mesh, batch))
    monkeypatch.setattr(reproduce, "compile_program", compile_program)
    one = reproduce.record("v5p", 16)
    assert found == [((8, 128), "v5p:2x2x2")]
    # A ring of eight sends 2 x 7/8 of what is summed.
    assert one == {name: 1.0 for name in one if name not in ("reduced", "by")} | {
        "reduced": 8.0,
        "by": {"jax": "1"},
    }
    reproduce.record("v6e", 4)
    assert found[1] == ((8, 32), "v6e:2x4")
    del compiled["flops"]
    with pytest.raises(UserError, match="16 samples does not fit TPU v5p"):
        reproduce.record("v5p", 16)
