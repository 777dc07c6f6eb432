"""`mvader evaluate`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvader_jax.bounds import POSITIVE, Share
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
    Quiet,
    Reuse,
    Seed,
    read_balance,
    sampling_of,
)
from mvader_jax.errors import UserError
from mvader_jax.sampling.seeds import SEED
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.settings import convert

if TYPE_CHECKING:
    from mvader_jax.cli._progress import Bar
    from mvader_jax.data.emoji.world import World
    from mvader_jax.paper.emoji.methods import Methods
    from mvader_jax.paper.emoji.table import Table


def evaluate(
    bundle: BundleName = "tiny",
    fast: Fast = False,
    world: Annotated[
        str, typer.Option(help="scenes, or emoji: the benchmark of docs/benchmark.md")
    ] = "scenes",
    parts: Annotated[
        str | None,
        typer.Option(
            help="scenes: of reader,reconstruction,text,variation,change,style,pairs,order,three "
            "[default: the first five]; emoji: told,shown,style,... [default: all]"
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="held-out scenes, or prompts of each part")] = 500,
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
        str | None, typer.Option(help="emoji: the set that was built of emoji_styles [default: data/emoji]")
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
        typer.Option(help="emoji: judge this folder of pictures, ID.png each, in place of a bundle"),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="emoji: write the prompts and their pictures to this folder, and end")
    ] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="emoji: a folder for a contact sheet of each part")
    ] = None,
    minutes: Annotated[
        float | None,
        POSITIVE,
        typer.Option(help="emoji: begin nothing more after so many; --out goes on there"),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(help="emoji: say what these numbers reach, and end: zero_shot.json,interleaved.json"),
    ] = None,
    seed: Seed = SEED,
    batch: Annotated[int, typer.Option(help="pictures drawn at a time")] = 50,
    mesh: DrawMesh = "",
    frozen_dtype: KeptIn = None,
    out: Annotated[
        Path | None, typer.Option(help="also write the numbers as JSON; emoji: after each row, to go on from")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Judge a bundle by its pictures.

    Of scenes by reading them back, of emoji by which picture of their world is nearest: no judge was trained.

    \b
    Examples:
      mvader evaluate --parts text,variation --count 100
      mvader evaluate --parts change --thetas 1,.2,.1 --out change.json
      mvader evaluate --world emoji --bundle runs/emoji/interleaved/bundle
      mvader evaluate --world emoji --pictures mine --parts told
    """
    from mvader_jax.prompt.checks import check_weight

    chosen = {
        "thetas": thetas and tuple(check_weight(theta, "the curves' image") for theta in thetas.split(",")),
        "sites": _split(sites),
        "order": "image first" if image_first else None,
        "balance": read_balance(balance, balance_attention) or None,
        "phrase": phrase,
        "data": data,
        "subjects": subjects,
        "methods": _split(methods),
        "strengths": strengths and tuple(check_share(share) for share in strengths.split(",")),
        "pictures": pictures,
        "prompts": prompts,
        "sheets": sheets,
        "minutes": minutes,
        "report": _split(report),
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if world not in _WORLDS:
        raise UserError(f"unknown world {world!r}; accepted: {', '.join(_WORLDS)}")
    run, options = _WORLDS[world]
    for name in [name for name in given if name not in options]:
        takers = ", ".join(other for other, (_, own) in _WORLDS.items() if name in own)
        raise UserError(f"{name} belongs to --world {takers}, not to {world}")
    sampling = sampling_of(
        fast,
        steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        seed=seed,
        guidance_interval=guidance_interval,
        reuse=reuse,
    )
    run(_Asked(bundle, _split(parts), count, batch, sampling, mesh, frozen_dtype, out, quiet, fast), given)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What is asked of any world. parts: None for those that the world takes by itself."""

    bundle: str = "tiny"
    parts: tuple[str, ...] | None = None
    count: int = 500
    batch: int = 50
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    mesh: str = ""
    frozen_dtype: str | None = None
    out: Path | None = None
    quiet: bool = False
    fast: bool = False

    @property
    def given(self) -> list[str]:
        """What is not as it is where nothing is said."""
        own = [f.name for f in dataclasses.fields(self) if f.name != "sampling"]
        drawing = [f.name for f in dataclasses.fields(self.sampling)]
        usual = _Asked()
        return [
            *(name for name in own if getattr(self, name) != getattr(usual, name)),
            *(n for n in drawing if getattr(self.sampling, n) != getattr(usual.sampling, n)),
        ]


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def check_share(text: str) -> float:
    """A strength. Raises UserError unless it is a number from 0 to 1."""
    from typing import cast

    value: float | str = text.strip()
    with contextlib.suppress(ValueError):
        value = float(value)  # .5 as well as 0.5
    return cast(float, convert(Share, value, "strengths"))


def _scenes(asked: _Asked, given: dict[str, Any]) -> None:
    from mvader_jax.cli.sample import load_pipeline
    from mvader_jax.paper.curves import Curves, check_options
    from mvader_jax.paper.evaluate import DEFAULT, Evaluation, as_markdown, check, check_place, save
    from mvader_jax.paper.evaluate import evaluate as run

    named = asked.parts or DEFAULT
    check(named)
    check_options(given, named)
    curves = Curves(**given)
    settings = Evaluation(asked.count, asked.batch, asked.sampling)
    if asked.out is not None:
        check_place(asked.out)
    pipe = load_pipeline(asked.bundle, mesh=asked.mesh, frozen_dtype=asked.frozen_dtype, fast=asked.fast)
    with _bars(asked.quiet) as progress:
        result = run(pipe, settings, named, curves=curves, progress=progress)
    print(as_markdown(result))
    if asked.out is not None:
        save(result, asked.out)


def _emoji(asked: _Asked, given: dict[str, Any]) -> None:
    from mvader_jax.data.sources import Emoji
    from mvader_jax.paper.emoji.folder import judge_folder, write_prompts
    from mvader_jax.paper.emoji.methods import Methods
    from mvader_jax.paper.emoji.report import read_numbers, report
    from mvader_jax.paper.emoji.sheets import Strips
    from mvader_jax.paper.emoji.table import Table, as_markdown
    from mvader_jax.paper.emoji.tasks import ASKED, PARTS, check
    from mvader_jax.paper.evaluate import check_place, save

    way = next((name for name in _UNDRAWN if name in given), None)
    if way is not None:
        for name in [*given, *asked.given]:
            if name not in (way, "quiet", *_UNDRAWN[way]):
                raise UserError(f"{name} does not go with --{way}: no bundle draws")
    if way == "report":
        paths = [Path(path) for path in given["report"]]
        print(report({path.stem: read_numbers(path) for path in paths}))
        return
    accepted = tuple(PARTS) if way is None else ASKED
    named = asked.parts or accepted
    check(named, accepted)
    fields = {"methods": "names", "thetas": "thetas", "sites": "sites", "strengths": "strengths"}
    methods = Methods(**{field: given[name] for name, field in fields.items() if name in given})
    if asked.out is not None:
        check_place(asked.out, tuple(PARTS))
    world = Emoji(given.get("data", Emoji.path), given.get("subjects", 0)).world()
    if way == "prompts":
        written = write_prompts(world, given["prompts"], named, asked.count)
        print(
            f"{written:,} prompts in {given['prompts']}; draw each as ID.png and judge them with --pictures"
        )
        return
    strips = Strips(given["sheets"]) if "sheets" in given else None
    if way == "pictures":
        result = judge_folder(world, given["pictures"], named, asked.count, strips)
    else:
        table = Table(_known(asked.out), _kept(asked.out), strips)
        result = _emoji_bundle(asked, given, world, named, methods, table)
    print(as_markdown(result))
    if asked.out is not None:
        Table(_known(asked.out)).begin(result["settings"])
        save(result, asked.out)


def _known(out: Path | None) -> dict[str, Any] | None:
    """The numbers that are there. Raises UserError where a file holds something else."""
    from mvader_jax.paper.emoji.report import read_numbers

    return read_numbers(out) if out is not None and out.is_file() else None


def _kept(out: Path | None) -> Callable[[dict[str, Any]], None]:
    """Writes the numbers after each row; a pipe gets them once, at the end."""
    from mvader_jax.paper.evaluate import save

    if out is None or (out.exists() and not out.is_file()):
        return lambda result: None
    return functools.partial(save, path=out)


def _emoji_bundle(
    asked: _Asked,
    given: dict[str, Any],
    world: World,
    named: Sequence[str],
    methods: Methods,
    table: Table,
) -> dict[str, Any]:
    from mvader_jax.cli.sample import load_pipeline
    from mvader_jax.paper.emoji.evaluate import evaluate
    from mvader_jax.paper.evaluate import Evaluation

    settings = Evaluation(asked.count, asked.batch, asked.sampling)
    minutes = given.get("minutes")
    pipe = load_pipeline(asked.bundle, mesh=asked.mesh, frozen_dtype=asked.frozen_dtype, fast=asked.fast)
    with _bars(asked.quiet) as progress:
        return evaluate(
            pipe, world, named, methods, settings, table=table, minutes=minutes, progress=progress
        )


#: Ways to use the benchmark without a bundle, and the options that go with each.
_UNDRAWN = {
    "report": (),
    "prompts": ("parts", "count", "data", "subjects"),
    "pictures": ("parts", "count", "data", "subjects", "sheets", "out"),
}
_SCENES = "thetas sites order balance phrase"
_EMOJI = "thetas sites data subjects methods strengths pictures prompts sheets minutes report"
#: What judges a bundle in each world, and the options that it takes beside those of all.
_WORLDS: dict[str, tuple[Callable[[_Asked, dict[str, Any]], None], tuple[str, ...]]] = {
    "scenes": (_scenes, tuple(_SCENES.split())),
    "emoji": (_emoji, tuple(_EMOJI.split())),
}


@contextlib.contextmanager
def _bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar after another, named by what is drawn."""
    from mvader_jax.cli._progress import bar

    with contextlib.ExitStack() as shown:
        bars: dict[str, Bar] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                shown.close()
                bars[what] = shown.enter_context(bar(what, "images", quiet=quiet))
                bars[what].begin(total, done)  # the first pictures waited for the compiler too
            bars[what].update(done)

        yield progress
