"""`mvader show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import Element
    from mvader_jax.sampling.drawing import Drawing


def show(
    pictures: Annotated[list[Path], typer.Argument(help="PNGs that mvader drew")],
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object per line")] = False,
) -> None:
    """Print what pictures were drawn with. It is prompt, weights, seed, settings, and the command that draws each again.

    \b
    Examples:
      mvader show outputs/00001.png
      mvader show --json outputs/0*.png
    """
    import json

    from mvader_jax.cli._progress import tell
    from mvader_jax.errors import UserError
    from mvader_jax.sampling.drawing import read_drawing

    problems: list[UserError] = []
    for path in pictures:
        try:
            drawing = read_drawing(path, root=".")
            print(json.dumps(_row(path, drawing), ensure_ascii=False) if as_json else _told(path, drawing))
        except UserError as error:
            problems.append(error)
    for problem in problems[:-1]:
        tell(f"mvader: {problem}")
    if problems:
        raise problems[-1]


def _row(path: Path, drawing: Drawing) -> dict[str, Any]:
    about = {**drawing.recorded, **drawing.loaded, "index": drawing.index}
    return {"file": str(path), **about, "command": _command(path, drawing)}


def _told(path: Path, drawing: Drawing) -> str:
    settings, loaded = drawing.settings, drawing.loaded
    lines = [str(path)]
    for name, prompt in (("prompt", drawing.prompt), ("negative", drawing.negative)):
        elements = () if prompt is None else prompt.elements
        lines += [f"  {name if i == 0 else '':9} {_part(one)}" for i, one in enumerate(elements)]
    lines += [f"  {'from':9} {_picture(source)}" for source in drawing.init_images]
    shown = {"seed", "index", "steps", "sampler", "guidance_scale", "prompt", "negative", "init_image"}
    usual = {"site": "both", "balance": False, "negative_strength": 1.0}
    other = {key: value for key, value in drawing.recorded.items() if value != usual.get(key)}
    more = [f"{key} {value}" for key, value in other.items() if key not in shown]
    lines.append(f"  {'seed':9} {settings.seed}, number {drawing.index}")
    how = [f"{settings.steps} steps of {settings.sampler}", f"guidance {settings.guidance_scale:g}", *more]
    lines.append(f"  {'drawn in':9} {', '.join(how)}")
    by = [str(value) if key in ("bundle", "dtype") else f"{key} {value}" for key, value in loaded.items()]
    lines.append(f"  {'drawn by':9} {', '.join(by)}")
    import shlex

    lines.append(f"  {'again':9} {shlex.join(_command(path, drawing))}")
    # What a stranger's picture says does not steer a terminal.
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)


def _part(element: Element) -> str:
    from mvader_jax.prompt.elements import Text

    weight = "" if element.weight == 1 else f", weight {element.weight:g}"
    if isinstance(element, Text):
        return f"{element.text!r}{weight}" + "".join(
            f", {word!r} x {by:g}" for word, by in element.span_weights
        )
    regions = [
        f", {'box ' + str(where) if isinstance(where, tuple) else f'mask of {where.shape[1]} x {where.shape[0]}'} x {by:g}"
        for where, by in element.checked_regions
    ]
    return f"{_picture(element.image)}{weight}{''.join(regions)}"


def _picture(source: Any) -> str:
    from mvader_jax.images.inputs import LostPicture

    if isinstance(source, str):
        return f"picture {source}"
    if isinstance(source, LostPicture):
        return f"picture {source.name or ''}".strip() + " (not kept, and not to be found)"
    return f"picture of {source.width} x {source.height}, kept in it"


def _command(path: Path, drawing: Drawing) -> list[str]:
    from mvader_jax.sampling.command import command

    said = command(drawing)
    return said if said and all(map(str.isprintable, said)) else ["mvader", "sample", "--like", str(path)]
