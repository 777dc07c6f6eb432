"""The scores by name: what each needs, and what it makes of features. A score is an object here and a line in METRICS."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mvader_jax.scores.formulas import (
    Features,
    Moments,
    clip_scores,
    cmmd,
    frechet,
    frechet_again,
    frechet_of,
    interval,
    kid,
    moments,
    resamplings,
)

#: Pictures that FID, KID and CMMD are usually reported of: fewer are said.
USUAL = 10_000


@dataclasses.dataclass(frozen=True)
class Measured:
    """What scores are made of.

    pictures, reference: {network: features}; moments: of the reference's Inception features, where a file has nothing
    else; texts: of each picture, in CLIP's space; pairs: (which picture, features of a picture that it should be like).
    times: resamplings for an interval, 0 for none; seed: of all that is drawn.
    """

    pictures: Mapping[str, Features]
    reference: Mapping[str, Features] = dataclasses.field(default_factory=dict)
    moments: Moments | None = None
    texts: np.ndarray | None = None
    pairs: tuple[np.ndarray, np.ndarray] | None = None
    times: int = 0
    seed: int = 0

    def rng(self, name: str) -> np.random.Generator:
        """A generator of a score's own, whatever others are asked for."""
        return np.random.default_rng([self.seed, *name.encode()])

    def again(self, name: str, count: int) -> np.ndarray:
        """[R, N] resamplings."""
        return resamplings(count, self.times, self.rng(f"{name} again"))


Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Metric:
    """network: of the pictures; reference: "moments" (a file of statistics will do), "pictures" or "" for none; asked:
    "texts", "pairs" or ""; least: pictures below which it has no value; higher: whether more is better. measure: the
    value, with "interval": [low, high] where resamplings were asked for; notes: what of so many pictures (own, of the
    reference) is said beside it.
    """

    name: str
    network: str
    reference: str
    asked: str
    least: int
    higher: bool
    measure: Callable[[Measured], Result]
    notes: Callable[[int, int | None], list[str]]


def _fid(at: Measured) -> Result:
    features = at.pictures["inception"]
    if at.moments is not None:
        value = frechet(moments(features), at.moments)
    else:
        value = frechet_of(features, at.reference["inception"])
    if not at.times:
        return {"value": value}
    reference = at.moments or moments(at.reference["inception"])
    again = frechet_again(features, reference, at.again("fid", features.shape[0]))
    return {"value": value, "interval": interval(value, again)}


def _kid(at: Measured) -> Result:
    value, deviation = kid(at.pictures["inception"], at.reference["inception"], at.rng("kid"))
    return {"value": value, "std": deviation}


def _cmmd(at: Measured) -> Result:
    features, reference = at.pictures["clip"], at.reference["clip"]
    value = float(cmmd(features, reference)[0])
    if not at.times:
        return {"value": value}
    return {
        "value": value,
        "interval": interval(value, cmmd(features, reference, at.again("cmmd", features.shape[0]))),
    }


def _mean(name: str, scores: np.ndarray, at: Measured) -> Result:
    value = float(scores.mean())
    if not at.times:
        return {"value": value}
    return {"value": value, "interval": interval(value, at.again(name, len(scores)) @ scores / len(scores))}


def _clip(at: Measured) -> Result:
    assert at.texts is not None
    return _mean("clip", clip_scores(at.pictures["clip"][:], at.texts), at)


def _clip_image(at: Measured) -> Result:
    assert at.pairs is not None
    which, like = at.pairs
    return _mean("clip-image", clip_scores(at.pictures["clip"][which], like), at)


def _few(what: str) -> Callable[[int, int | None], list[str]]:
    def notes(pictures: int, reference: int | None) -> list[str]:
        found = []
        for count, of in ((pictures, ""), (reference, " of the reference")):
            if count is not None and count < USUAL:
                found.append(f"{what} of {count:,} pictures{of}: others report it of {USUAL:,} to 50,000")
        return found

    return notes


def _few_for_fid(pictures: int, reference: int | None) -> list[str]:
    found = _few("fid")(pictures, reference)
    if pictures <= 2048:
        found.append(
            f"fid of {pictures:,} pictures is too high: their covariance of 2,048 features is singular; kid and cmmd "
            "do not suffer from that"
        )
    return found


def _few_for_kid(pictures: int, reference: int | None) -> list[str]:
    least = min(pictures, reference if reference is not None else pictures)
    if least >= 1000:
        return []
    return [f"kid's subsets are of all {least:,} pictures, where others draw 1,000: its std says little"]


def _none(pictures: int, reference: int | None) -> list[str]:
    return []


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("fid", "inception", "moments", "", 2, False, _fid, _few_for_fid),
        Metric("kid", "inception", "pictures", "", 2, False, _kid, _few_for_kid),
        Metric("cmmd", "clip", "pictures", "", 2, False, _cmmd, _few("cmmd")),
        Metric("clip", "clip", "", "texts", 1, True, _clip, _none),
        Metric("clip-image", "clip", "", "pairs", 1, True, _clip_image, _none),
    )
}
