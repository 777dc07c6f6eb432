"""COCO-30k: captions of COCO's validation pictures as prompts, drawn once from a seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local, make_directory, write_file

COUNT = 30_000
PROMPTS_FILE = "prompts.jsonl"


def read_captions(file: Path) -> dict[int, list[str]]:
    """{picture's id: its captions} of an annotation file, captions_val2014.json. Raises UserError for another file."""
    try:
        data = json.loads(local(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the captions {str(file)!r}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the captions {str(file)!r} are no JSON: {error}") from None
    rows = data.get("annotations") if isinstance(data, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{str(file)!r} has no 'annotations'; expected COCO's captions_val2014.json")
    found: dict[int, list[str]] = {}
    for number, row in enumerate(rows):
        known = (
            isinstance(row, dict) and type(row.get("image_id")) is int and isinstance(row.get("caption"), str)
        )
        if not known:
            raise UserError(
                f"{str(file)!r}: annotation {number} has no image_id and caption; expected those of captions, not of objects"
            )
        caption = " ".join(row["caption"].split())
        if caption:
            found.setdefault(row["image_id"], []).append(caption)
    return found


def chosen(captions: Mapping[int, list[str]], count: int, seed: int) -> list[tuple[int, str]]:
    """(picture's id, caption): pictures drawn without replacement, and of each one caption. Raises UserError where there
    are fewer. What comes first of a larger count is what a smaller one gives."""
    if count > len(captions):
        raise UserError(f"there are captions of {len(captions):,} pictures, and {count:,} are asked for")
    rng = np.random.default_rng(seed)
    ids = sorted(captions)
    order, picks = rng.permutation(len(ids)), rng.random(len(ids))
    found = []
    for which in order[:count]:
        texts = captions[ids[which]]
        found.append((ids[which], texts[int(picks[which] * len(texts))]))
    return found


def write_prompts(folder: Path, file: Path, count: int, seed: int) -> Path:
    """`prompts.jsonl` for `mvader sample --prompts` and `mvader score --prompts`: ids are the pictures', and each line
    has a seed of its own, so that no two pictures begin from the same noise. Raises UserError as `chosen`."""
    rows: list[dict[str, Any]] = [
        {"id": f"{image:012d}", "prompt": [{"text": text}], "seed": seed + number}
        for number, (image, text) in enumerate(chosen(read_captions(file), count, seed))
    ]
    make_directory(folder)
    target = folder / PROMPTS_FILE
    write_file(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target
