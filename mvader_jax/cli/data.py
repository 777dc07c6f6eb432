"""`mvader data`: building data sets and looking at them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="data", help="Build, describe and precompute data sets.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="laion_aesthetics, image_captions, emoji_captions or scenes")],
    source: Annotated[
        str, typer.Argument(help="img2dataset's output, captions' folder or file, or the number of scenes")
    ],
    out: Annotated[Path, typer.Argument(help="folder of the data set; an unfinished one is gone on with")],
    workers: Annotated[int, typer.Option(help="processes, a part each [default: one a core]")] = 0,
    pictures: Annotated[Path | None, typer.Option(help="what paths in a caption file start from")] = None,
    no_filters: Annotated[
        bool, typer.Option("--no-filters", help="only the filters named here, not the data set's own")
    ] = False,
    min_aesthetic: Annotated[float | None, typer.Option(help="keep scores above [laion: 5]")] = None,
    min_size: Annotated[int | None, typer.Option(help="least original side in pixels [laion: 512]")] = None,
    max_watermark: Annotated[float | None, typer.Option(help="greatest probability [laion: 0.5]")] = None,
    max_punsafe: Annotated[float | None, typer.Option(help="greatest probability [off]")] = None,
    nsfw: Annotated[list[str] | None, typer.Option(help="tags to keep; may be repeated [all]")] = None,
    language: Annotated[list[str] | None, typer.Option(help="languages to keep; may be repeated")] = None,
    min_caption: Annotated[int | None, typer.Option(help="least characters of a caption [1]")] = None,
    max_caption: Annotated[int | None, typer.Option(help="most characters of a caption [2000]")] = None,
    max_aspect: Annotated[float | None, typer.Option(help="greatest ratio of the sides [20]")] = None,
) -> None:
    """Write a TFDS data set over ArrayRecord. Every sample that is left out is counted with its reason."""
    from mvader_jax.data.build import build as run
    from mvader_jax.data.catalogue import find_parts, known
    from mvader_jax.data.filters import FilterConfig

    chosen: dict[str, Any] = {
        "min_aesthetic": min_aesthetic,
        "min_size": min_size,
        "max_watermark": max_watermark,
        "max_punsafe": max_punsafe,
        "nsfw": tuple(nsfw) if nsfw else None,
        "languages": tuple(language) if language else None,
        "min_caption": min_caption,
        "max_caption": max_caption,
        "max_aspect": max_aspect,
    }
    own = FilterConfig() if no_filters else known(name).filters
    filters = dataclasses.replace(own, **{k: v for k, v in chosen.items() if v is not None})
    parts = find_parts(name, source, pictures)
    total = sum(len(part.key_list()) for part in parts)
    with _progress(total, "samples") as on_progress:
        report = run(
            parts,
            out,
            name,
            filters,
            description=known(name).description,
            workers=workers or os.cpu_count() or 1,
            on_progress=on_progress,
        )
    print("\n".join(report.lines()))
    print(out)


@app.command()
def describe(
    out: Annotated[Path, typer.Argument(help="folder of a data set")],
    sheet: Annotated[Path | None, typer.Option(help="where the contact sheet goes")] = None,
    count: Annotated[int, typer.Option(help="pictures on the contact sheet")] = 24,
    seed: Annotated[int, typer.Option(help="which pictures")] = 0,
) -> None:
    """Print what a data set holds, and draw a sheet of its pictures with their captions."""
    from mvader_jax.data.describe import contact_sheet, describe

    print("\n".join(describe(out)))
    target = sheet or Path("contact_sheet.png")
    contact_sheet(out, count, seed).save(target)
    print(f"\n{target}")


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with the rate and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {what}/s" if speed else "")

    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
