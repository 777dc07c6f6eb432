"""`mvader demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvader_jax.cli._options import BundleName, FastIfThere, Quiet, Seed, WaitSteps, chosen_fast, sampling_of
from mvader_jax.sampling.seeds import SEED
from mvader_jax.sampling.settings import image_count


def demo(
    bundle: BundleName = "tiny",
    out: Annotated[Path, typer.Option(help="directory for the pictures")] = Path("outputs/demo"),
    num_images: Annotated[int, typer.Option(help="pictures per task")] = 4,
    seed: Seed = SEED,
    steps: WaitSteps = None,
    fast: FastIfThere = None,
    quiet: Quiet = False,
) -> None:
    """Draw the paper's four tasks with the embedded model. Says how to draw each alone.

    \b
    Examples:
      mvader demo
      mvader demo --seed 3 --num-images 2 --out outputs/demo-3
    """
    from mvader_jax.cli._loading import load_pipeline
    from mvader_jax.cli._progress import status
    from mvader_jax.paper.demo import demo as run
    from mvader_jax.sampling.output import check_writable

    few = chosen_fast(fast, bundle, steps)
    settings, count = sampling_of(few, seed=seed, steps=steps), image_count(num_images)
    check_writable(out)
    with status("loading the model", quiet) as say:
        pipe = load_pipeline(bundle, fast=few)
        say("drawing (the first time compiles a program, which takes half a minute)")
        drawn = run(pipe, out, settings, num_images=count, fast=few)
    for one in drawn:
        print(f"{one.task}: {one.path}\n    {one.command}")
