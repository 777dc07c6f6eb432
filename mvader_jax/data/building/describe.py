"""What a built data set holds, as text and as a sheet of its pictures."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from mvader_jax.data.building.report import Report
from mvader_jax.data.building.schema import REPORT
from mvader_jax.data.decode import crop
from mvader_jax.data.order import DamagedRecord
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError
from mvader_jax.images.sheet import grid

if TYPE_CHECKING:
    import PIL.Image

#: Records looked at where all would take too long.
SAMPLE = 2000
_BAR = 40
_THUMBNAIL = 160
#: Characters of a caption on a sheet; there are some of thousands.
_CAPTION = 160


def describe(path: str | os.PathLike[str]) -> list[str]:
    """Lines of text: counts, sizes, what the build rejected, histograms of size, shape, score and captions.

    Raises UserError if there is no data set at `path`.
    """
    source = Stored(os.fspath(path), None)
    if not len(source):
        return ["records        0"]
    columns = source.columns()
    sides = np.minimum(columns["width"], columns["height"])
    lines = [
        f"records        {len(source):,} in {len(source.files)} files, {source.bytes:,} bytes",
        f"a record       {source.bytes // max(len(source), 1):,} bytes",
        f"shorter side   {sides.min()} to {sides.max()}, median {int(np.median(sides))} pixels",
    ]
    report = epath.Path(path) / REPORT
    if report.exists():
        try:
            built = Report.from_json(json.loads(report.read_text())["report"]).lines()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            built = [f"! {os.fspath(report)} cannot be read: {type(error).__name__}"]
        lines += ["", "the build", *(f"  {line}" for line in built)]
    lines += ["", "shorter side in pixels", *histogram(sides, _round_edges(sides))]
    aspects = columns["width"] / columns["height"]
    lines += [
        "",
        "width / height",
        *histogram(aspects, (0, 0.5, 0.67, 0.75, 0.9, 1.11, 1.34, 1.5, 2, np.inf)),
    ]
    scores = columns["aesthetic"][~np.isnan(columns["aesthetic"])]
    unscored = len(columns) - len(scores)
    lines += ["", f"aesthetic score ({unscored:,} records have none)"]
    lines += histogram(scores, (-np.inf, 3, 4, 4.5, 5, 5.5, 6, 6.5, 7, np.inf))
    chosen = _spread(len(source), SAMPLE)
    lengths = [len(caption) for number in chosen for caption in source.captions(int(number))]
    lines += ["", f"characters of a caption ({len(chosen):,} records looked at)"]
    return lines + histogram(np.array(lengths), (0, 10, 20, 40, 80, 160, 320, 640, np.inf))


def contact_sheet(path: str | os.PathLike[str], count: int = 24, seed: int = 0) -> PIL.Image.Image:
    """`count` records drawn by `seed`, each picture's middle with its captions underneath."""
    source = Stored(os.fspath(path), None)
    rng = np.random.default_rng(seed)
    pictures: list[np.ndarray] = []
    labels = []
    for number in rng.permutation(len(source)):
        if len(pictures) == count:
            break
        with contextlib.suppress(DamagedRecord, UserError):  # the next one is drawn
            record = source.record(int(number), rng)
            pictures.append(crop(record["image"], (_THUMBNAIL, _THUMBNAIL)))
            labels.append(_shortened(record["caption"]))
    if not pictures:
        raise UserError(f"the data set at {os.fspath(path)!r} has no picture that can be read")
    return grid(pictures, labels=labels, columns=min(count, 6), gap=6)


def _shortened(caption: str) -> str:
    return caption if len(caption) <= _CAPTION else f"{caption[: _CAPTION - 1].rstrip()}…"


def histogram(values: np.ndarray, edges: tuple[float, ...]) -> list[str]:
    """A line for each interval [edge, next edge) that is not empty at the ends, with a bar."""
    counts = np.histogram(values, np.array(edges))[0]
    used = np.flatnonzero(counts)
    if not len(used):
        return ["  (none)"]
    lines = []
    for i in range(used[0], used[-1] + 1):
        bar = "#" * round(_BAR * counts[i] / counts.max())
        lines.append(f"  {_span(edges[i], edges[i + 1]):>14}  {counts[i]:>10,}  {bar}".rstrip())
    return lines


def _span(low: float, high: float) -> str:
    if np.isinf(low):
        return f"< {high:g}"
    return f">= {low:g}" if np.isinf(high) else f"{low:g} - {high:g}"


def _round_edges(values: np.ndarray) -> tuple[float, ...]:
    steps = [0, 32, 64, 128, 192, 256, 384, 512, 640, 768, 1024, 1536, 2048, 4096]
    return (*(float(step) for step in steps if step <= max(2 * int(values.max()), 32)), np.inf)


def _spread(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(int)) if total else np.zeros(0, int)
