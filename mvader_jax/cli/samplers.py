"""`mvader samplers`."""

from __future__ import annotations


def samplers() -> None:
    """Print every sampler beside its reference: model calls, and the largest relative error in float64."""
    from mvader_jax.diffusion.recorded import RECORDED, measure

    print(f"{'sampler':16}{'steps':>6}{'calls':>7}{'max error':>11}  reference")
    for row in measure(RECORDED):
        recorded = row.recorded
        source = recorded.source + (", alpha-bar 1 at the end" if recorded.set_alpha_to_one else "")
        print(f"{recorded.sampler:16}{recorded.steps:6}{row.calls:7}{row.error:11.1e}  {source}")
