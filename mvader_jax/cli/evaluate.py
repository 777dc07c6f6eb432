"""`mvader evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    bundle: Annotated[str, typer.Option(help="name of an embedded bundle, or a directory")] = "tiny",
    parts: Annotated[
        str, typer.Option(help="of reader,reconstruction,text,variation,change")
    ] = "reader,reconstruction,text,variation,change",
    count: Annotated[int, typer.Option(help="held-out scenes")] = 500,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="classifier-free guidance")] = 8.0,
    sampler: Annotated[str, typer.Option(help="plms is the paper's")] = "plms",
    thetas: Annotated[str, typer.Option(help="weights of the image in the curves")] = "1,.5,.2,.1,.05,.02,0",
    sites: Annotated[str, typer.Option(help="where they act")] = "decoder,cross_attention,both",
    image_first: Annotated[bool, typer.Option("--image-first", help="the image before the text")] = False,
    balance: Annotated[bool, typer.Option("--balance", help="weights are an element's total share")] = False,
    phrase: Annotated[str, typer.Option(help="the text beside the image in the curves")] = "a {color} shape",
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    batch: Annotated[int, typer.Option(help="pictures drawn at a time")] = 50,
    mesh: Annotated[str, typer.Option(help="devices to draw on, as in data=4,fsdp=2 [default: one]")] = "",
    out: Annotated[Path | None, typer.Option(help="also write the numbers as JSON")] = None,
) -> None:
    """Judge a bundle trained on scenes: held-out scenes, told and shown, read back from its pictures."""
    import rich.console
    import rich.progress

    from mvader_jax.errors import UserError
    from mvader_jax.paper.evaluate import Settings, as_markdown, check, save
    from mvader_jax.paper.evaluate import evaluate as run
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.sampling.output import check_writable
    from mvader_jax.sampling.pipeline import Pipeline
    from mvader_jax.storage.atomic import local

    try:
        values = [float(theta) for theta in thetas.split(",")]
    except ValueError:
        raise UserError(f"cannot read the thetas {thetas!r}; expected numbers such as 1,.5,0") from None
    settings = Settings(count, steps, guidance_scale, sampler, max(1, min(batch, count)), seed)
    named = [part.strip() for part in parts.split(",")]
    places = [site.strip() for site in sites.split(",")]
    check(settings, named, places, phrase)
    if out is not None:
        check_writable(local(out).parent)
    pipe = Pipeline.load(bundle, mesh=open_mesh(mesh))
    # Batches may lie minutes apart.
    with rich.progress.Progress(console=rich.console.Console(stderr=True), speed_estimate_period=600) as bar:
        tasks: dict[str, rich.progress.TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        result = run(
            pipe,
            settings,
            named,
            thetas=values,
            sites=places,
            order="image first" if image_first else "text first",
            balance=balance,
            phrase=phrase,
            progress=progress,
        )
    print(as_markdown(result))
    if out is not None:
        save(result, out)
