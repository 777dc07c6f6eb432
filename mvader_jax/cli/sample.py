"""`mvader sample`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mvader_jax.errors import UserError


def sample(
    parts: Annotated[
        list[str], typer.Argument(help="texts and image files, in order; a weight is a suffix @0.3")
    ],
    negative: Annotated[
        list[str] | None, typer.Option(help="a part of the negative prompt; may be repeated")
    ] = None,
    num_images: Annotated[int, typer.Option(help="pictures to draw")] = 4,
    seed: Annotated[int, typer.Option(help="same seed, same pictures")] = 0,
    steps: Annotated[int, typer.Option(help="sampling steps, 1 to 1000")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="classifier-free guidance")] = 8.0,
    sampler: Annotated[str, typer.Option(help="plms is the paper's")] = "plms",
    site: Annotated[str, typer.Option(help="where weights act: decoder, cross_attention or both")] = "both",
    bundle: Annotated[str, typer.Option(help="name of an embedded bundle, or a directory")] = "tiny",
    out: Annotated[Path, typer.Option(help="directory for the pictures")] = Path("outputs"),
    dtype: Annotated[str, typer.Option(help="compute dtype: float32 or bfloat16")] = "float32",
) -> None:
    """Draw pictures of a prompt of texts and images."""
    from mvader_jax.pipeline import Pipeline, check_seed, check_steps
    from mvader_jax.prompt import Prompt, parse_part

    prompt = Prompt(tuple(parse_part(part) for part in parts), site=_site(site))
    against = Prompt(tuple(parse_part(part) for part in negative), site=_site(site)) if negative else None
    check_steps(steps)
    check_seed(seed)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"unknown dtype {dtype!r}; accepted: float32, bfloat16")
    writable(out)
    pipe = Pipeline.load(bundle, dtype=dtype)
    settings: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "site": site,
        "bundle": bundle,
    }
    images = pipe(
        prompt,
        negative=against,
        num_images=num_images,
        **{key: value for key, value in settings.items() if key != "bundle"},
    )
    for path in write_pictures(out, images, {"prompt": parts, "negative": negative or [], **settings}):
        print(path)


def _site(site: str) -> Any:
    from mvader_jax.prompt import SITES

    if site not in SITES:
        raise UserError(f"unknown site {site!r}; accepted: {', '.join(SITES)}")
    return site


def writable(out: Path) -> None:
    """Makes the output directory. Raises UserError when that, or writing in it, is not possible."""
    import os

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {str(out)!r}: {error.strerror}") from None
    if not os.access(out, os.W_OK):
        raise UserError(f"cannot write into {str(out)!r}: permission denied")


def write_pictures(out: Path, images: list[Any], settings: dict[str, Any]) -> list[Path]:
    """Writes each picture and their grid as PNG, and a manifest row a picture; returns the paths."""
    import numpy as np

    from mvader_jax.images import grid, save_png

    start = 0
    while (out / f"{start:05d}.png").exists():
        start += 1
    paths = []
    with (out / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
        for index, image in enumerate(images):
            path = out / f"{start + index:05d}.png"
            row = {**settings, "index": index}
            save_png(path, np.asarray(image), row)
            manifest.write(json.dumps({"file": path.name, **row}, ensure_ascii=False) + "\n")
            paths.append(path)
    path = out / f"grid-{start:05d}.png"
    save_png(path, grid([np.asarray(image) for image in images], columns=min(len(images), 4)), settings)
    return [*paths, path]
