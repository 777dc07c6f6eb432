"""`mvader samplers`."""

from __future__ import annotations


def samplers() -> None:
    """Print every sampler: how often 50 steps of it call the model, and what it is."""
    from mvader_jax.diffusion.samplers import SAMPLERS

    print(f"{'sampler':16}{'calls':>7}  what it is")
    for name, sampler in SAMPLERS.items():
        print(f"{name:16}{sampler.calls(50):7}  {sampler.about}")
