"""`mvader samplers`."""

from __future__ import annotations


def samplers() -> None:
    """Print every sampler, and how often it calls the model. In 50 steps.

    \b
    Examples:
      mvader samplers
    """
    from mvader_jax.diffusion.samplers import SAMPLERS

    print(f"{'sampler':16}{'calls':>7}  what it is")
    for name, sampler in SAMPLERS.items():
        print(f"{name:16}{sampler.calls(50):7}  {sampler.about}")
