"""`mvader data`: building data sets and looking at them."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvader_jax.bounds import PositiveFloat, PositiveInt, Seed, Workers, above, between
from mvader_jax.cli._options import Quiet
from mvader_jax.cli._progress import bar
from mvader_jax.cli._stage import Config, Objective, chosen_stage

if TYPE_CHECKING:
    from mvader_jax.data.sources.encoded import EncodedInfo
    from mvader_jax.precompute.check import Check

app = typer.Typer(
    name="data", help="Build, describe and precompute data sets.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="laion_aesthetics, image_captions, emoji_styles or scenes")],
    source: Annotated[
        str,
        typer.Argument(
            help="img2dataset's output, captions' folder or file, parquet, tars, hf:ORG/NAME, npm packages' folder, "
            "number of scenes"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="folder of the data set; an unfinished one is gone on with")],
    workers: Annotated[Workers, typer.Option(help="processes, a part each [default: one a core]")] = 0,
    pictures: Annotated[Path | None, typer.Option(help="what paths in a caption file start from")] = None,
    size: Annotated[
        int | None, between(8, 1024), typer.Option(help="emoji: sides of the pictures in pixels [64]")
    ] = None,
    style: Annotated[
        list[str] | None, typer.Option(help="emoji: a style to draw; may be repeated [all but openmoji]")
    ] = None,
    image_column: Annotated[
        str, typer.Option(help="of parquet the pictures' column, of tars their ending [default: found]")
    ] = "",
    caption_column: Annotated[
        str,
        typer.Option(help="of parquet the captions' column, of tars an ending or JSON key [default: found]"),
    ] = "",
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
    quiet: Quiet = False,
) -> None:
    """Write a TFDS data set over ArrayRecord. Every sample that is left out is counted with its reason.

    \b
    Examples:
      mvader data build laion_aesthetics shards data/laion_aesthetics
      mvader data build image_captions hf:ORG/NAME data/mine
      mvader data build scenes 10000 data/scenes --workers 2
    """
    from mvader_jax.data.building.catalogue import find_parts, known
    from mvader_jax.data.building.columns import Columns
    from mvader_jax.data.building.filters import FilterConfig
    from mvader_jax.data.building.plan import finished, make_plan
    from mvader_jax.data.building.run import build as run
    from mvader_jax.storage.atomic import local

    local(out)
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
    options = {
        "pictures": pictures,
        "size": size,
        "styles": tuple(style) if style else None,
        "columns": Columns(image_column, caption_column) if image_column or caption_column else None,
    }
    parts = find_parts(name, source, out, **options)
    before = finished(out, make_plan(parts, name, filters))
    if before is not None:
        print("\n".join(before.lines()))
        print(f"{out} is already built, from the same files and with the same filters")
        return
    total = sum(len(part.key_list()) for part in parts)
    with bar("building", "samples", total=total or None, quiet=quiet) as progress:
        report = run(
            parts,
            out,
            name,
            filters,
            workers=workers or os.cpu_count() or 1,
            on_progress=progress.update,
        )
    print("\n".join(report.lines()))
    print(out)


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="new folder for the pictures and their captions")],
    count: Annotated[PositiveInt, typer.Option(help="scenes")] = 100,
    seed: Annotated[Seed, typer.Option(help="which scenes")] = 0,
    split: Annotated[str, typer.Option(help="train or validation")] = "train",
    format: Annotated[str, typer.Option(help="png or jpg")] = "png",
) -> None:
    """Write scenes of the synthetic world as pictures with captions.

    \b
    Examples:
      mvader data scenes scenes --count 1000 --split validation
    """
    from typing import cast

    from mvader_jax.data.scenes.parts import write_files
    from mvader_jax.errors import UserError

    if split not in ("train", "validation"):
        raise UserError(f"unknown split {split!r}; accepted: train, validation")
    if format not in ("png", "jpg"):
        raise UserError(f"unknown format {format!r}; accepted: png, jpg")
    written = write_files(out, count, seed=seed, split=cast(Any, split), format=cast(Any, format))
    print(out if written else f"{out} is already written, with the same scenes")


@app.command()
def describe(
    out: Annotated[Path, typer.Argument(help="folder of a data set")],
    sheet: Annotated[Path | None, typer.Option(help="where the contact sheet goes")] = None,
    count: Annotated[PositiveInt, typer.Option(help="pictures on the contact sheet")] = 24,
    seed: Annotated[Seed, typer.Option(help="which pictures")] = 0,
) -> None:
    """Print what a data set holds, and draw a sheet of its pictures.

    \b
    Examples:
      mvader data describe data/scenes --sheet scenes.png --count 12
    """
    from mvader_jax.data.building.describe import contact_sheet, describe
    from mvader_jax.errors import UserError
    from mvader_jax.images.png import save_png
    from mvader_jax.sampling.output import check_replaceable
    from mvader_jax.storage.atomic import local

    target = local(sheet or "contact_sheet.png")
    if target.suffix.lower() != ".png":
        raise UserError(f"{str(target)!r} is no name of a PNG; a contact sheet is written as NAME.png")
    check_replaceable(target, "contact_sheet")
    print("\n".join(describe(out)))
    save_png(target, contact_sheet(out, count, seed), {"contact_sheet": str(out)})
    print(f"\n{target}")


@app.command()
def encode(
    config: Config,
    data: Annotated[
        str, typer.Argument(help="folder of a data set, or the kind of the config's own (scenes, emoji)")
    ],
    out: Annotated[str, typer.Argument(help="folder of the result; an unfinished one is gone on with")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, as in stages.diffusion.data.source.num_records=1000"),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="the stage whose init bundles hold the models [default: diffusion]")
    ] = None,
    workdir: Annotated[Path | None, typer.Option(help="where runs live [default: runs/NAME]")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="latents, features or states; may be repeated [default: latents, features, if the model has them]"
        ),
    ] = None,
    mesh: Annotated[str, typer.Option(help="axes of the mesh, as in data=4,fsdp=2")] = "data=-1",
    batch_size: Annotated[PositiveInt, typer.Option(help="pictures a step, of all processes together")] = 64,
    shard_size: Annotated[PositiveInt, typer.Option(help="records a file")] = 4096,
    quiet: Quiet = False,
    objective: Objective = None,
) -> None:
    """Compute latents and image features once, before training. Of every picture of a data set, in bfloat16.

    With --part states also the hidden states of each picture's and caption's prompt, in place of which nothing of the
    decoder is loaded in training.

    \b
    Examples:
      mvader data encode tiny scenes runs/encoded 'stages.diffusion.init=["tiny"]'
      mvader data encode open_v2 data/laion_aesthetics data/encoded --part latents
    """
    from mvader_jax.data.sources import Records
    from mvader_jax.data.sources.encoded import INFO
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.precompute.encode import encode as run
    from mvader_jax.precompute.job import Options
    from mvader_jax.storage.atomic import local
    from mvader_jax.storage.programs import compilation_cache
    from mvader_jax.train.config import load_config

    before = (local(out) / INFO).exists()
    chosen_mesh = open_mesh(mesh or "data=-1")
    assert chosen_mesh is not None
    compilation_cache()
    loaded = load_config(config, overrides or ())
    name = chosen_stage(stage, objective)
    chosen = loaded.stage(name).data
    if data != chosen.source.kind:
        chosen = dataclasses.replace(chosen, source=Records((data,)))
    with bar("encoding", "records", quiet=quiet) as progress:
        info, check = run(
            loaded,
            name,
            chosen,
            out,
            chosen_mesh,
            workdir=workdir or Path("runs") / loaded.name,
            options=Options(tuple(part or ()), batch_size, shard_size),
            on_progress=progress.update,
        )
    print("\n".join(_summary(info, check)))
    print(f"{out} is already encoded, from the same data by the same models" if before else out)


def _summary(info: EncodedInfo, check: Check) -> list[str]:
    """What an encoded set holds, in lines of text."""
    bad, total = sum(info.damaged.values()), sum(info.splits.values())
    splits = ", ".join(f"{count:,} {split}" for split, count in info.splits.items())
    lines = [f"records   {total:,} ({splits})", f"encoded   {total - bad:,}"]
    lines += [f"          {count:,} not: {reason}" for reason, count in info.damaged.items()]
    for name, shape in info.shapes.items():
        size = f"{2 * math.prod(shape) / 1000:,.0f} kB a record"
        lines.append(f"{name:9} {' x '.join(map(str, shape))}, bfloat16, {size}")
    worst = f"at most {check.worst:.1f} units in the last place"
    return [*lines, f"checked   {check.records} records against recomputation: {worst}"]


@app.command()
def bench(
    path: Annotated[Path, typer.Argument(help="img2dataset's tars, a built data set or an encoded one")],
    size: Annotated[PositiveInt, typer.Option(help="side of the pictures that are loaded, in pixels")] = 512,
    seconds: Annotated[PositiveFloat, typer.Option(help="processor time for each rate")] = 10.0,
    needed: Annotated[
        float | None,
        above(0),
        typer.Option(help="samples a second that a training run takes: how many cores is that?"),
    ] = None,
) -> None:
    """Measure reading, decoding, building and loading, per core.

    \b
    Examples:
      mvader data bench data/laion_aesthetics --size 512 --needed 2000
    """
    from mvader_jax.train.bench import bench as run
    from mvader_jax.train.bench import lines

    rates = run(path, size=size, seconds=seconds)
    print("\n".join(lines(rates)))
    if needed:
        for rate in rates:
            print(f"{needed:,.0f} a second: {needed / rate.per_core:,.1f} cores ({rate.what})")


@app.command()
def pairs(
    source: Annotated[
        str,
        typer.Argument(
            help="parquet or JSONL of anchor, positive and negative: files, or hf:datasets/ORG/NAME/FILE"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="JSONL file to write, for data of source 'pairs'")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
) -> None:
    """Write text pairs for the contrastive objective. With their hard negatives.

    \b
    Examples:
      mvader data pairs nli.parquet data/nli.jsonl
    """
    from mvader_jax.data.building.pairs import write_pairs

    report = write_pairs(source, out, overwrite=overwrite)
    print("\n".join(report.lines()))
    if report.already:
        print(f"{out} is already built, from the same rows")
