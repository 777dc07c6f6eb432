"""The prompts written to a folder, pictures of them read from one, and the form by which people judge."""

from __future__ import annotations

import csv
import html
import json
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.images.names import READABLE
from mvader_jax.images.read import load_image
from mvader_jax.paper.conjunction.tasks import Conjunction, Seen, Thing
from mvader_jax.storage.atomic import local, make_directory, write_file

PROMPTS_FILE, FORM_FILE = "prompts.jsonl", "form.html"
_COLUMNS = ("id", "first", "first_color", "second", "second_color")


def write_prompts(folder: Path, tasks: Sequence[Conjunction], seed: int = 0) -> Path:
    """`prompts.jsonl` as `mvader sample --prompts` reads it, each line with a seed of its own, and the pictures in it.

    Raises UserError where the folder cannot be written.
    """
    make_directory(folder / "shown")
    lines = []
    for number, task in enumerate(tasks):
        prompt = []
        for part in task.elements:
            if isinstance(part, Thing):
                suffix = ".png" if part.picture is None else part.picture.suffix
                name = f"shown/{part.color}-{part.noun.replace(' ', '-')}{suffix}"
                write_file(folder / name, part.file())
                prompt.append({"image": name})
            else:
                prompt.append({"text": part})
        lines.append(json.dumps({"id": task.id, "prompt": prompt, "seed": seed + number}, ensure_ascii=False))
    file = folder / PROMPTS_FILE
    write_file(file, "\n".join(lines) + "\n")
    return file


def find_pictures(folder: Path, tasks: Sequence[Conjunction]) -> list[Path]:
    """Of each prompt the file ID.png, ID-000.png or of another kind. Raises UserError, naming the first that is missing."""
    place = local(folder)
    if not place.is_dir():
        raise UserError(f"{str(folder)!r} is no folder of pictures")
    named = {path.stem: path for path in place.iterdir() if path.suffix.lower() in READABLE}
    found = [named.get(task.id) or named.get(f"{task.id}-000") for task in tasks]
    missing = [task.id for task, path in zip(tasks, found, strict=True) if path is None]
    if missing:
        raise UserError(
            f"{str(folder)!r} has no picture of {len(missing)} of {len(tasks)} prompts; the first is {missing[0]}.png"
        )
    return [path for path in found if path is not None]


def read_pictures(paths: Sequence[Path]) -> list[np.ndarray]:
    """uint8 [H, W, 3] each. Raises UserError as `load_image`."""
    return [np.asarray(load_image(path)) for path in paths]


def write_form(file: Path, tasks: Sequence[Conjunction], pictures: Sequence[Path], seed: int = 0) -> None:
    """A page that shows every picture and asks four questions of it; it saves what is answered as a CSV.

    It needs no server and fetches nothing; answers are kept in the browser until they are saved. The pictures are in a
    drawn order, so that nobody sees which part they are of. Raises UserError where it cannot be written.
    """
    cards = []
    for number in np.random.default_rng(seed).permutation(len(tasks)):
        task, path = tasks[number], pictures[number]
        source = urllib.parse.quote(os.path.relpath(path, file.parent).replace(os.sep, "/"))
        asked = []
        for thing, name in zip(task.things, ("first", "second"), strict=True):
            there, right = html.escape(thing.noun), html.escape(str(thing))
            asked.append(
                f'<label><input type="checkbox" name="{name}"> there is a {there}</label> '
                f'<label><input type="checkbox" name="{name}_color"> and it is a {right}</label><br>'
            )
        done = '<label><input type="checkbox" name="seen"> judged</label>'
        cards.append(
            f'<fieldset id="{html.escape(task.id)}"><img src="{source}" alt="">{"".join(asked)}{done}</fieldset>'
        )
    write_file(file, _FORM.replace("COLUMNS", json.dumps(_COLUMNS)).replace("CARDS", "\n".join(cards)))


def read_form(file: Path) -> list[tuple[str, Seen]]:
    """(part, what a person judged) of each picture, from the CSV that the form saves. Raises UserError for another file."""
    try:
        with local(file).open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{str(file)!r} is no CSV: {error}") from None
    if not rows or set(_COLUMNS) - set(rows[0]):
        raise UserError(f"{str(file)!r} is no CSV of the form; its columns are {', '.join(_COLUMNS)}")
    found = []
    for number, row in enumerate(rows, start=2):
        values = [row[name] for name in _COLUMNS[1:]]
        if set(values) - {"0", "1"}:
            raise UserError(f"{str(file)!r}, line {number}: {values} is not four of 0 and 1")
        there, color, also, its = (value == "1" for value in values)
        found.append((row["id"].rpartition("-")[0], Seen((there, also), (color, its))))
    return found


_FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Two objects</title><style>
body { font-family: sans-serif; max-width: 60em; margin: 1em auto; }
fieldset { display: inline-block; width: 17em; margin: .3em; vertical-align: top; }
img { width: 100%; image-rendering: auto; }
header { position: sticky; top: 0; background: white; padding: .5em; border-bottom: 1px solid; }
.done { background: #e4e4e4; }
</style></head><body>
<header>Tick what is in each picture, then "judged". <b id="left"></b>
<button id="save" type="button">Save as CSV</button></header>
CARDS
<script>
const columns = COLUMNS, key = "conjunction " + location.pathname;
const kept = JSON.parse(localStorage.getItem(key) || "{}");
const cards = [...document.querySelectorAll("fieldset")];
const boxes = card => [...card.querySelectorAll("input")];
function tell() {
  const left = cards.filter(card => !card.querySelector("[name=seen]").checked).length;
  document.getElementById("left").textContent = left + " left";
  cards.forEach(card => card.classList.toggle("done", card.querySelector("[name=seen]").checked));
}
for (const card of cards) {
  for (const box of boxes(card)) box.checked = (kept[card.id] || []).includes(box.name);
  card.addEventListener("change", event => {
    const name = event.target.name;
    // A thing in its colour is there; what is not there has no colour.
    if (name.endsWith("_color") && event.target.checked)
      card.querySelector("[name=" + name.replace("_color", "") + "]").checked = true;
    if (columns.includes(name + "_color") && !event.target.checked)
      card.querySelector("[name=" + name + "_color]").checked = false;
    kept[card.id] = boxes(card).filter(box => box.checked).map(box => box.name);
    localStorage.setItem(key, JSON.stringify(kept));
    tell();
  });
}
document.getElementById("save").addEventListener("click", () => {
  const rows = cards.filter(card => card.querySelector("[name=seen]").checked).map(card =>
    [card.id, ...columns.slice(1).map(name => +card.querySelector("[name=" + name + "]").checked)].join(","));
  const file = new Blob([[columns.join(","), ...rows, ""].join("\\n")], {type: "text/csv"});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = "judged.csv";
  link.click();
});
tell();
</script></body></html>
"""
