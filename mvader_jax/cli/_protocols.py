"""What `mvader evaluate` runs of other people's protocols: COCO-30k, and prompts of two coloured objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvader_jax.cli._judges import Asked, Ways
from mvader_jax.cli._progress import bars
from mvader_jax.errors import UserError

if TYPE_CHECKING:
    from mvader_jax.paper.conjunction.tasks import Conjunction


def _draw(asked: Asked, prompts: Path, out: Path) -> int:
    """The pictures of a file of prompts, as `mvader sample --prompts` draws them; its exit code."""
    from mvader_jax.cli._loading import Place
    from mvader_jax.cli._prompts import sample_file

    place = Place(
        asked.bundle,
        "float32",
        asked.frozen_dtype,
        asked.mesh,
        out,
        asked.quiet,
        raw=False,
        fast=asked.fast,
        lora=asked.lora,
    )
    return sample_file(prompts, asked.sampling, 1, asked.batch, place)


def _coco_prompts(asked: Asked, given: dict[str, Any]) -> None:
    print(_write_coco(asked, given, given["prompts"]))


def _coco_drawn(asked: Asked, given: dict[str, Any]) -> int:
    return _draw(asked, _write_coco(asked, given, given["drawn"]), given["drawn"])


def _write_coco(asked: Asked, given: dict[str, Any], folder: Path) -> Path:
    from mvader_jax.paper.coco import write_prompts

    if "data" not in given:
        raise UserError(
            "--world coco takes its prompts from captions: name captions_val2014.json with --data"
        )
    return write_prompts(folder, Path(given["data"]), asked.evaluation.count, _seed(asked))


def _seed(asked: Asked) -> int:
    """Of the first picture; each has the next one's."""
    seed = asked.sampling.seed
    assert isinstance(seed, int)  # `--seed` of evaluate is one number
    return seed


def _conjunctions(asked: Asked, given: dict[str, Any]) -> list[Conjunction]:
    from mvader_jax.paper.conjunction.tasks import PARTS, conjunctions, read_things, scene_things

    count = asked.evaluation.count  # which refuses what is no count
    things = read_things(Path(given["data"])) if "data" in given else scene_things()
    return [task for part in asked.parts or PARTS for task in conjunctions(things, part, count)]


def _conjunction(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.conjunction.evaluate import as_markdown, evaluate
    from mvader_jax.paper.conjunction.tasks import PARTS
    from mvader_jax.paper.evaluate import check_place, save

    named = asked.parts or PARTS
    _conjunctions(asked, given)  # refuses before a bundle is read
    if asked.out is not None:
        check_place(asked.out, PARTS)
    pipe = asked.pipeline()
    with bars(asked.quiet, "images") as progress:
        result = evaluate(pipe, asked.evaluation, named, progress=progress)
    print(as_markdown(result))
    if asked.out is not None:
        save(result, asked.out)


def _conjunction_prompts(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.conjunction.folder import write_prompts

    print(write_prompts(given["prompts"], _conjunctions(asked, given)))


def _conjunction_drawn(asked: Asked, given: dict[str, Any]) -> int:
    from mvader_jax.paper.conjunction.folder import write_prompts
    from mvader_jax.parallel.processes import first_process

    tasks, folder = _conjunctions(asked, given), given["drawn"]
    code = _draw(asked, write_prompts(folder, tasks, _seed(asked)), folder)
    if code == 0 and first_process():
        _judge(tasks, folder, given)
    return code


def _conjunction_pictures(asked: Asked, given: dict[str, Any]) -> None:
    _judge(_conjunctions(asked, given), given["pictures"], given)


def _judge(tasks: list[Conjunction], folder: Path, given: dict[str, Any]) -> None:
    """Scenes are read; for pictures of real things a form is written, which people fill in."""
    from mvader_jax.paper.conjunction.evaluate import as_markdown, judged
    from mvader_jax.paper.conjunction.folder import FORM_FILE, find_pictures, read_pictures, write_form

    paths = find_pictures(folder, tasks)
    if "data" in given:
        write_form(folder / FORM_FILE, tasks, paths)
        print(
            f"open {folder / FORM_FILE} in a browser, judge, save, and count with `mvader evaluate --world conjunction "
            "--report judged.csv`"
        )
        return
    pictures = read_pictures(paths)
    by_part: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        by_part.setdefault(task.part, []).append(number)
    rows = {
        part: judged([tasks[i] for i in which], [pictures[i] for i in which])
        for part, which in by_part.items()
    }
    print(as_markdown(rows))


def _conjunction_report(asked: Asked, given: dict[str, Any]) -> None:
    from mvader_jax.paper.conjunction.evaluate import as_markdown
    from mvader_jax.paper.conjunction.folder import read_form
    from mvader_jax.paper.conjunction.tasks import shares

    del asked
    rows = {}
    for name in given["report"]:
        found = read_form(Path(name))
        for part in dict.fromkeys(part for part, _ in found):
            seen = [one for own, one in found if own == part]
            rows[f"{Path(name).stem}, {part}, {len(seen)} pictures"] = shares(seen)
    print(as_markdown(rows))


_SAMPLED = "bundle lora fast count steps guidance_scale sampler guidance_interval reuse seed batch mesh frozen_dtype "
COCO: Ways = {
    "prompts": (_coco_prompts, "--prompts, which draws nothing", "data count seed"),
    "drawn": (_coco_drawn, "--world coco", _SAMPLED + "data"),
}
CONJUNCTION: Ways = {
    "": (_conjunction, "--world conjunction", _SAMPLED + "parts out"),
    "prompts": (_conjunction_prompts, "--prompts, which draws nothing", "parts count data"),
    "drawn": (_conjunction_drawn, "--world conjunction with --drawn", _SAMPLED + "parts data"),
    "pictures": (_conjunction_pictures, "--pictures, which are drawn already", "parts count data"),
    "report": (_conjunction_report, "--report, which draws nothing", ""),
}
