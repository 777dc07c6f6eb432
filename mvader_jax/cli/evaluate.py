"""`mvader evaluate`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, cast

import typer

from mvader_jax.bounds import POSITIVE, Share, above
from mvader_jax.cli._given import listed, refuse
from mvader_jax.cli._judges import EMOJI, SCENES, Asked, Ways
from mvader_jax.cli._options import (
    BalanceAttention,
    BundleName,
    DrawMesh,
    Fast,
    FastSampler,
    FastSteps,
    GuidanceInterval,
    GuidanceScale,
    KeptIn,
    Lora,
    Quiet,
    Reuse,
    Seed,
    read_balance,
    sampling_of,
)
from mvader_jax.cli._protocols import COCO, CONJUNCTION
from mvader_jax.errors import UserError
from mvader_jax.sampling.seeds import SEED
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.settings import convert


def evaluate(
    context: typer.Context,
    bundle: BundleName = "tiny",
    lora: Lora = None,
    fast: Fast = False,
    world: Annotated[
        str,
        typer.Option(help="scenes; emoji: docs/benchmark.md; conjunction, coco: protocols of docs/scores.md"),
    ] = "scenes",
    parts: Annotated[
        str | None,
        typer.Option(
            help="scenes: of reader,reconstruction,text,variation,change,style,pairs,order,three "
            "[default: the first five]; emoji: told,shown,style,... [default: all]; conjunction: text,images,mixed"
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="held-out scenes, or prompts of each part [default: 500; conjunction: 250; coco: 30000]"
        ),
    ] = None,
    steps: FastSteps = None,
    guidance_scale: GuidanceScale = SamplingSettings.guidance_scale,
    sampler: FastSampler = None,
    guidance_interval: GuidanceInterval = None,
    reuse: Reuse = SamplingSettings.reuse,
    thetas: Annotated[
        str | None,
        typer.Option(help="curves: weights of the element that has them [default: 1,.5,.2,.1,.05,.02,0]"),
    ] = None,
    sites: Annotated[
        str | None, typer.Option(help="curves: where they act [default: decoder,cross_attention,both]")
    ] = None,
    image_first: Annotated[
        bool, typer.Option("--image-first", help="change, style, three: the text last")
    ] = False,
    balance: Annotated[bool, typer.Option("--balance", help="curves: weights are total shares")] = False,
    balance_attention: BalanceAttention = False,
    phrase: Annotated[
        str | None, typer.Option(help="change: the text beside the image [default: a {color} shape]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="emoji: the set that was built of emoji_styles [default: data/emoji]; coco: captions_val2014.json; "
            "conjunction: folder of pictures of things, 'green vase.png' [default: scenes]"
        ),
    ] = None,
    subjects: Annotated[
        int | None, POSITIVE, typer.Option(help="emoji: subjects of the world [default: all]")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="emoji: of prompt,text,told,picture,img2img,... [default: all]")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="emoji: of img2img and interpolation [default: .1,.2,...,1]")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="emoji, conjunction: judge this folder of pictures, ID.png each, in place of a bundle"
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="write the prompts and their pictures to this folder, and end")
    ] = None,
    drawn: Annotated[
        Path | None,
        typer.Option(
            help="coco, conjunction: keep the pictures in this folder; the same command goes on there"
        ),
    ] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="emoji: a folder for a contact sheet of each part")
    ] = None,
    minutes: Annotated[
        float | None,
        above(0),
        typer.Option(help="emoji: begin nothing more after so many; --out goes on there"),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            help="emoji: say what these numbers reach, and end: zero_shot.json,interleaved.json; conjunction: what "
            "people judged, judged.csv"
        ),
    ] = None,
    seed: Seed = SEED,
    batch: Annotated[int, typer.Option(help="pictures drawn at a time")] = 50,
    mesh: DrawMesh = "",
    frozen_dtype: KeptIn = None,
    out: Annotated[
        Path | None, typer.Option(help="also write the numbers as JSON; emoji: after each row, to go on from")
    ] = None,
    quiet: Quiet = False,
) -> int | None:
    """Judge a bundle by its pictures.

    Of scenes by reading them back, of emoji by which picture of their world is nearest: no judge was trained.

    \b
    Examples:
      mvader evaluate --parts text,variation --count 100
      mvader evaluate --parts change --thetas 1,.2,.1 --out change.json
      mvader evaluate --world emoji --bundle runs/emoji/interleaved/bundle
      mvader evaluate --world emoji --pictures mine --parts told
      mvader evaluate --world conjunction --bundle tiny --count 50
      mvader evaluate --world coco --data captions_val2014.json --drawn coco30k
    """
    from mvader_jax.prompt.checks import check_weight

    if world not in _WORLDS:
        raise UserError(f"unknown world {world!r}; accepted: {', '.join(_WORLDS)}")
    ways, usual = _WORLDS[world]
    named = {"report": report, "prompts": prompts, "pictures": pictures, "drawn": drawn}
    way = next((name for name in ways if name and named[name] is not None), "")
    if way not in ways:
        raise UserError(f"--world {world} draws many pictures: name a folder for them with --drawn")
    run, what, takes = ways[way]
    refuse(context, what, {*takes.split(), way, "world", "quiet"})
    chosen = {
        "thetas": listed("--thetas", thetas, lambda theta: check_weight(theta, "the curves' image")),
        "sites": listed("--sites", sites),
        "order": "image first" if image_first else None,
        "balance": read_balance(balance, balance_attention) or None,
        "phrase": phrase,
        "data": data,
        "subjects": subjects,
        "names": listed("--methods", methods),
        "strengths": listed("--strengths", strengths, check_share),
        "pictures": pictures,
        "prompts": prompts,
        "drawn": drawn,
        "sheets": sheets,
        "minutes": minutes,
        "report": listed("--report", report),
    }
    sampling = sampling_of(
        fast,
        steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        seed=seed,
        guidance_interval=guidance_interval,
        reuse=reuse,
    )
    number = usual if count is None else count
    asked = Asked(
        bundle,
        tuple(lora or ()),
        listed("--parts", parts),
        number,
        batch,
        sampling,
        mesh,
        frozen_dtype,
        out,
        quiet,
        fast,
    )
    return run(asked, {name: value for name, value in chosen.items() if value is not None})


#: Their ways, and how many prompts of each part are asked by default.
_WORLDS: dict[str, tuple[Ways, int]] = {
    "scenes": (SCENES, 500),
    "emoji": (EMOJI, 500),
    "conjunction": (CONJUNCTION, 250),
    "coco": (COCO, 30_000),
}


def check_share(text: str) -> float:
    """A strength. Raises UserError unless it is a number from 0 to 1."""
    value: float | str = text.strip()
    with contextlib.suppress(ValueError):
        value = float(value)  # .5 as well as 0.5
    return cast(float, convert(Share, value, "strengths"))
