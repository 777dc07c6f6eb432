"""What `mvader evaluate` runs: the judges of each world, and what the benchmark does without a bundle."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvader_jax.cli._progress import bars
from mvader_jax.sampling.settings import SamplingSettings

if TYPE_CHECKING:
    from mvader_jax.data.emoji.world import World
    from mvader_jax.paper.evaluate import Evaluation
    from mvader_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Asked:
    """What goes with every world. parts: None for those that it takes by itself."""

    bundle: str
    lora: tuple[str, ...]
    parts: tuple[str, ...] | None
    count: int
    batch: int
    sampling: SamplingSettings
    mesh: str
    frozen_dtype: str | None
    out: Path | None
    quiet: bool
    fast: bool

    def pipeline(self) -> Pipeline:
        from mvader_jax.cli._loading import load_pipeline

        return load_pipeline(
            self.bundle, mesh=self.mesh, frozen_dtype=self.frozen_dtype, fast=self.fast, lora=self.lora
        )

    @property
    def evaluation(self) -> Evaluation:
        from mvader_jax.paper.evaluate import Evaluation

        return Evaluation(self.count, self.batch, self.sampling)


def _scenes(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.curves import Curves, check_options
    from mvader_jax.paper.evaluate import DEFAULT, as_markdown, check, check_place, evaluate, save

    named = asked.parts or DEFAULT
    check(named)
    check_options(given, named)
    curves, settings = Curves(**given), asked.evaluation
    if asked.out is not None:
        check_place(asked.out)
    pipe = asked.pipeline()
    with bars(asked.quiet, "images") as progress:
        result = evaluate(pipe, settings, named, curves=curves, progress=progress)
    print(as_markdown(result))
    if asked.out is not None:
        save(result, asked.out)


def _emoji(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.emoji.evaluate import evaluate
    from mvader_jax.paper.emoji.methods import Methods
    from mvader_jax.paper.emoji.sheets import Strips
    from mvader_jax.paper.emoji.table import Table
    from mvader_jax.paper.emoji.tasks import PARTS

    options = [field.name for field in dataclasses.fields(Methods)]
    methods = Methods(**{name: given[name] for name in options if name in given})
    named, world = _emoji_parts(asked, tuple(PARTS)), _emoji_world(given)
    table = Table(_known(asked.out), _kept(asked.out), Strips(given["sheets"]) if "sheets" in given else None)
    settings, pipe = asked.evaluation, asked.pipeline()
    with bars(asked.quiet, "images") as progress:
        result = evaluate(
            pipe,
            world,
            named,
            methods,
            settings,
            table=table,
            minutes=given.get("minutes"),
            progress=progress,
        )
    _tell_emoji(result, asked.out)


def _emoji_pictures(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.emoji.folder import judge_folder
    from mvader_jax.paper.emoji.sheets import Strips
    from mvader_jax.paper.emoji.tasks import ASKED

    named, world = _emoji_parts(asked, ASKED), _emoji_world(given)
    strips = Strips(given["sheets"]) if "sheets" in given else None
    _tell_emoji(judge_folder(world, given["pictures"], named, asked.count, strips), asked.out)


def _emoji_prompts(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.emoji.folder import write_prompts
    from mvader_jax.paper.emoji.tasks import ASKED

    named, world = _emoji_parts(asked, ASKED), _emoji_world(given)
    written = write_prompts(world, given["prompts"], named, asked.count)
    print(f"{written:,} prompts in {given['prompts']}; draw each as ID.png and judge them with --pictures")


def _emoji_report(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.emoji.report import read_numbers, report

    del asked
    paths = [Path(path) for path in given["report"]]
    print(report({path.stem: read_numbers(path) for path in paths}))


def _emoji_parts(asked: Asked, accepted: tuple[str, ...]) -> tuple[str, ...]:
    """The parts that are asked for. Raises UserError for an unknown one, and where --out cannot be written."""
    from mvader_jax.paper.emoji.tasks import PARTS, check
    from mvader_jax.paper.evaluate import check_place

    named = asked.parts or accepted
    check(named, accepted)
    if asked.out is not None:
        check_place(asked.out, tuple(PARTS))
    return named


def _emoji_world(given: dict[str, Any]) -> World:
    from mvader_jax.data.sources import Emoji

    return Emoji(given.get("data", Emoji.path), given.get("subjects", 0)).world()


def _tell_emoji(result: dict[str, Any], out: Path | None) -> None:
    from mvader_jax.paper.emoji.table import Table, as_markdown
    from mvader_jax.paper.evaluate import save

    print(as_markdown(result))
    if out is not None:
        Table(_known(out)).begin(result["settings"])
        save(result, out)


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


#: What goes with all that is drawn and judged in one.
_DRAWN = "bundle lora fast parts count steps guidance_scale sampler guidance_interval reuse seed batch mesh frozen_dtype out "
_SCENES = _DRAWN + "thetas sites image_first balance balance_attention phrase"
_EMOJI = _DRAWN + "thetas sites data subjects methods strengths sheets minutes"
#: Ways of a world: by the option that names one, "" where none does; what does it, how it is called, and the
#: parameters that go with it.
Ways = dict[str, tuple[Callable[[Asked, dict[str, Any]], int | None], str, str]]
SCENES: Ways = {"": (_scenes, "--world scenes", _SCENES)}
EMOJI: Ways = {
    "": (_emoji, "--world emoji", _EMOJI),
    "report": (_emoji_report, "--report, which draws nothing", ""),
    "prompts": (_emoji_prompts, "--prompts, which draws nothing", "parts count data subjects"),
    "pictures": (
        _emoji_pictures,
        "--pictures, which are drawn already",
        "parts count data subjects sheets out",
    ),
}
