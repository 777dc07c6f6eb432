"""`mvader train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvader_jax.bounds import NonNegativeInt
from mvader_jax.cli._options import Quiet
from mvader_jax.cli._progress import tell
from mvader_jax.cli._stage import Config, Objective, chosen_stage


def train(
    config: Config,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as in stages.vae.steps=100")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="which of the config's stages to train [default: diffusion]")
    ] = None,
    workdir: Annotated[Path | None, typer.Option(help="where runs live [default: runs/NAME]")] = None,
    mesh: Annotated[
        str, typer.Option(help="axes of the mesh, as in data=4,fsdp=2 [default: one that fits]")
    ] = "",
    profile: Annotated[NonNegativeInt, typer.Option(help="steps to profile, from the third on")] = 0,
    quiet: Quiet = False,
    show: Annotated[
        bool,
        typer.Option("--show", help="print the config, overrides applied, as a config file; train nothing"),
    ] = False,
    objective: Objective = None,
) -> int:
    """Train one stage of a config, or go on with it. Exit code 75: stopped by SIGTERM and saved; 130: by Ctrl-C.

    \b
    Examples:
      mvader train tiny --stage vae stages.vae.steps=100
      mvader train configs/open_v2.py --mesh data=4,fsdp=64
      mvader train tiny --show > mine.py
    """
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.plan.choice import training_mesh
    from mvader_jax.storage import quiet as asides
    from mvader_jax.storage.programs import compilation_cache
    from mvader_jax.train.config import load_config
    from mvader_jax.train.finished import finished
    from mvader_jax.train.show import as_python

    loaded, name = load_config(config, overrides or ()), chosen_stage(stage, objective)
    if loaded.stages or not show:
        loaded.stage(name)
    if show:
        print(as_python(loaded), end="")
        return 0
    place = workdir or Path("runs") / loaded.name
    done = finished(loaded, name, place)
    if done:
        if not quiet:
            tell("\n".join(done))
        return 0
    from mvader_jax.train.loop import train as run
    from mvader_jax.train.samples import SampleGrid

    chosen_mesh = open_mesh(mesh)
    compilation_cache()
    if chosen_mesh is None:
        chosen_mesh, loaded, why = training_mesh(loaded, name, place)
        if why and first_process() and not quiet:
            tell(why)
    with asides.quiet():
        return run(
            loaded,
            name,
            place,
            chosen_mesh,
            quiet=quiet,
            profile=profile,
            on_sample=SampleGrid(),
        )
