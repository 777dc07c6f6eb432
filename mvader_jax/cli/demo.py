"""`mvader demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    bundle: Annotated[str, typer.Option(help="name of an embedded bundle, or a directory")] = "tiny",
    out: Annotated[Path, typer.Option(help="directory for the pictures")] = Path("outputs/demo"),
    num_images: Annotated[int, typer.Option(help="pictures a task")] = 4,
    seed: Annotated[int, typer.Option(help="same seed, same pictures")] = 0,
    steps: Annotated[int, typer.Option(help="sampling steps, 1 to 1000")] = 50,
) -> None:
    """Draw the four tasks of the paper with the embedded model, and say how to draw each alone."""
    from mvader_jax.errors import UserError
    from mvader_jax.sampling.output import make_writable

    if num_images < 1:
        raise UserError(f"num_images is {num_images}; at least 1 is needed")
    make_writable(out)
    import rich.console

    from mvader_jax.paper.demo import demo as run
    from mvader_jax.sampling.pipeline import Pipeline, check_seed

    check_seed(seed)
    console = rich.console.Console(stderr=True)
    with console.status("loading the model"):
        pipe = Pipeline.load(bundle)
    with console.status("drawing (the first time compiles a program, which takes half a minute)"):
        drawn = run(pipe, out, num_images=num_images, seed=seed, steps=steps)
    for one in drawn:
        print(f"{one.task}: {one.path}\n    {one.command}")
