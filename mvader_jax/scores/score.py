"""`mvader score`: a folder of pictures against a reference and what they were asked to be."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mvader_jax.bounds import NonNegativeInt, PositiveInt, Seed
from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import first_process
from mvader_jax.sampling.output import check_writable
from mvader_jax.scores.asked import Asked, read_asked
from mvader_jax.scores.features import Kept, keeping
from mvader_jax.scores.formulas import Moments, moments
from mvader_jax.scores.metrics import METRICS, Measured
from mvader_jax.scores.networks import Network, check_named, clip_texts, load_judge, open_network, pictures_in
from mvader_jax.scores.statistics import read_moments, write_moments
from mvader_jax.settings import Checked
from mvader_jax.storage.atomic import local
from mvader_jax.storage.bundle import Bundle

#: How a file of statistics is told from a folder of pictures.
STATISTICS = ".npz"
#: Called with (what is looked at, pictures done, pictures in all).
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Scoring(Checked):
    """metrics: names of METRICS. inception, clip: bundles. reference: a folder of pictures, or an .npz of FID's
    statistics. prompts: what the pictures were drawn of; keep: a folder where features stay; save_stats: an .npz to
    write the pictures' own statistics to. bootstrap: resamplings for the intervals."""

    metrics: tuple[str, ...] = ("fid",)
    inception: str | None = None
    clip: str | None = None
    reference: Path | None = None
    prompts: Path | None = None
    resize: str = "pytorch-fid"
    batch: PositiveInt = 50
    bootstrap: NonNegativeInt = 0
    seed: Seed = 0
    keep: Path | None = None
    save_stats: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for place in (self.keep, self.save_stats):
            if place is not None:
                local(place)
        if self.save_stats is not None and self.save_stats.suffix != STATISTICS:
            raise UserError(
                f"--save-stats is {str(self.save_stats)!r}; name a file that ends in {STATISTICS}, as --reference knows it"
            )
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"unknown metric {name!r}; accepted: {', '.join(METRICS)}")
            if self.metrics.count(name) > 1:
                raise UserError(f"the metrics name {name!r} twice; name it once")
        if not self.metrics and self.save_stats is None:
            raise UserError(f"no metric is named; accepted: {', '.join(METRICS)}")
        for name in self.metrics:
            metric = METRICS[name]
            if metric.reference and self.reference is None:
                raise UserError(
                    f"{name} compares with other pictures; name them with --reference FOLDER"
                    + (" or STATS.npz" if metric.reference == "moments" else "")
                )
            if metric.reference == "pictures" and self.statistics:
                raise UserError(
                    f"{name} needs the reference's pictures, and {str(self.reference)!r} has their statistics alone"
                )
        if self.statistics and "clip-image" in self.metrics and self.prompts is None:
            raise UserError("clip-image compares with pictures; name their folder with --reference")

        for name in self.networks:
            check_named(name, getattr(self, name))

    @property
    def statistics(self) -> bool:
        """Whether the reference is a file of statistics."""
        return self.reference is not None and self.reference.suffix == STATISTICS

    @property
    def networks(self) -> list[str]:
        """Those that are needed."""
        needed = {METRICS[name].network for name in self.metrics}
        return sorted(needed | ({"inception"} if self.save_stats else set()))

    @property
    def heeds(self) -> set[str]:
        """The fields that change anything for these metrics."""
        chosen = [METRICS[name] for name in self.metrics]
        found = {"metrics", "batch", "keep", "save_stats", *self.networks}
        found |= {"resize"} if "inception" in self.networks else set()
        like = any(metric.asked == "pairs" for metric in chosen) and self.prompts is None
        found |= {"reference"} if like or any(metric.reference for metric in chosen) else set()
        found |= {"prompts"} if any(metric.asked for metric in chosen) else set()
        # KID draws subsets, and no resamples.
        found |= {"bootstrap"} if {*self.metrics} - {"kid"} else set()
        return found | ({"seed"} if self.bootstrap or "kid" in self.metrics else set())


def score(
    pictures: Path,
    settings: Scoring,
    *,
    mesh: Mesh | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """{"settings", "pictures", "reference", "scores": {metric: {"value", ...}}, "notes"}.

    Raises UserError for what is missing, before any picture is read; for pictures that cannot be, naming the first.
    Together; the first process alone gets the scores.
    """
    files = pictures_in(pictures)
    _check_count(settings, len(files))
    asked = _asked(settings, files, pictures)
    others = _others(settings, files)
    bundles = {name: load_judge(name, getattr(settings, name), mesh) for name in settings.networks}
    networks = {name: open_network(name, bundle, mesh, settings.resize) for name, bundle in bundles.items()}
    _check_place(settings.save_stats)
    given = read_moments(settings.reference) if settings.statistics and settings.reference else None
    _check_width(given, networks)
    with keeping(settings.keep) as kept:
        look = _Look(kept, settings.batch, progress)
        own = {name: look("pictures", network, files) for name, network in networks.items()}
        refer = {name: look("reference", networks[name], others) for name in _referring(settings)}
        texts, cut = _texts(settings, asked, bundles, mesh)
        measured = Measured(
            own,
            refer,
            given,
            texts,
            _pairs(settings, asked, files, others, networks, look),
            settings.bootstrap,
            settings.seed,
        )
        scores = {}
        if first_process():
            scores = {name: METRICS[name].measure(measured) for name in settings.metrics}
            if settings.save_stats is not None:
                write_moments(settings.save_stats, moments(own["inception"]))
    count = (given.count or None) if given is not None else len(others) or None
    return {
        "settings": _recorded(settings, networks),
        "pictures": len(files),
        "reference": count,
        "scores": scores,
        "notes": _notes(settings, len(files), count, cut),
    }


def _notes(settings: Scoring, pictures: int, reference: int | None, cut: int) -> list[str]:
    """What must be said beside the values."""
    found = [f"{cut} of {pictures} texts are longer than CLIP reads, and cut"] if cut else []
    for metric in (METRICS[name] for name in settings.metrics):
        found += metric.notes(pictures, reference if metric.reference else None)
    return found


@dataclasses.dataclass(frozen=True)
class _Look:
    """Features of files, told as they come."""

    kept: Kept
    batch: int
    progress: Progress

    def __call__(self, what: str, network: Network, files: Sequence[Path]) -> np.ndarray:
        def told(done: int, total: int) -> None:
            self.progress(f"{what}, {network.name}", done, total)

        return self.kept.features(network, files, self.batch, told)


def _check_place(path: Path | None) -> None:
    """Raises UserError where statistics would replace what is none."""
    if path is None:
        return
    check_writable(local(path).parent)
    if os.path.lexists(path):
        try:
            read_moments(path)
        except UserError:
            raise UserError(f"{str(path)!r} exists already and holds no statistics; name another") from None


def _check_count(settings: Scoring, count: int) -> None:
    for name in settings.metrics:
        if count < METRICS[name].least:
            raise UserError(f"{name} needs at least {METRICS[name].least} pictures, and there is {count}")


def _asked(settings: Scoring, files: Sequence[Path], folder: Path) -> list[Asked]:
    """What the pictures were asked to be, where a metric reads it."""
    wants = {METRICS[name].asked for name in settings.metrics}
    if "texts" not in wants and ("pairs" not in wants or settings.prompts is None):
        return []
    asked = read_asked(files, folder, settings.prompts)
    wordless = [file.name for file, one in zip(files, asked, strict=True) if not one.text]
    if "texts" in wants and wordless:
        raise UserError(
            f"clip compares with texts, and {len(wordless)} of {len(files)} pictures were asked for without any; the "
            f"first is {wordless[0]}"
        )
    return asked


def _others(settings: Scoring, files: Sequence[Path]) -> list[Path]:
    if settings.reference is None or settings.statistics:
        return []
    others = pictures_in(settings.reference)
    if any(METRICS[name].reference for name in settings.metrics) and len(others) < 2:
        raise UserError(f"the reference {str(settings.reference)!r} holds one picture; 2 are the least")
    return others


def _referring(settings: Scoring) -> list[str]:
    """Networks that look at the whole reference."""
    if settings.statistics:
        return []
    return sorted({METRICS[name].network for name in settings.metrics if METRICS[name].reference})


def _check_width(given: Moments | None, networks: Mapping[str, Network]) -> None:
    if given is not None and "inception" in networks and len(given.mean) != networks["inception"].width:
        raise UserError(
            f"the reference's statistics are of {len(given.mean)} features, and this Inception gives "
            f"{networks['inception'].width}"
        )


def _texts(
    settings: Scoring, asked: Sequence[Asked], bundles: Mapping[str, Bundle], mesh: Mesh | None
) -> tuple[np.ndarray | None, int]:
    """(features, how many texts were cut)."""
    if not any(METRICS[name].asked == "texts" for name in settings.metrics):
        return None, 0
    return clip_texts(bundles["clip"], mesh, [one.text for one in asked], settings.batch)


def _pairs(
    settings: Scoring,
    asked: Sequence[Asked],
    files: Sequence[Path],
    others: Sequence[Path],
    networks: Mapping[str, Network],
    look: _Look,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Each picture with the pictures of its prompt, or without prompts with that of its own name in the reference."""
    if not any(METRICS[name].asked == "pairs" for name in settings.metrics):
        return None
    if settings.prompts is not None:
        which = [number for number, one in enumerate(asked) for _ in one.images]
        like = [image for one in asked for image in one.images]
        if not like:
            raise UserError(f"clip-image compares with pictures, and {str(settings.prompts)!r} has none")
    else:
        if not others:
            raise UserError(
                "clip-image compares with pictures: name those of the same names with --reference FOLDER, or what the "
                "prompts showed with --prompts FILE"
            )
        named = {path.stem: path for path in others}
        missing = [file.name for file in files if file.stem not in named]
        if missing:
            raise UserError(
                f"{str(settings.reference)!r} has no picture of the name of {len(missing)} of {len(files)}; the first "
                f"is {missing[0]}"
            )
        which, like = list(range(len(files))), [named[file.stem] for file in files]
    # A picture that many prompts show is looked at once.
    unique = sorted(set(like))
    features = look("shown", networks["clip"], unique)
    place = {path: number for number, path in enumerate(unique)}
    return np.asarray(which), np.asarray(features[[place[path] for path in like]])


def _recorded(settings: Scoring, networks: Mapping[str, Network]) -> dict[str, Any]:
    """What another must know to get the same numbers."""
    return {
        "metrics": list(settings.metrics),
        **{name: {"bundle": getattr(settings, name), **network.about} for name, network in networks.items()},
        "reference": None if settings.reference is None else str(settings.reference),
        "prompts": None if settings.prompts is None else str(settings.prompts),
        "bootstrap": settings.bootstrap,
        "seed": settings.seed,
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    """The scores as a table."""
    lines = ["| score | value | |", "|---|---|---|"]
    for name, found in result["scores"].items():
        beside = []
        if "interval" in found:
            low, high = found["interval"]
            beside.append(f"95 % of resamples: {low:.4g} to {high:.4g}")
        if "std" in found:
            beside.append(f"std of subsets: {found['std']:.3g}")
        lines.append(f"| {name} | {found['value']:.4g} | {'; '.join(beside)} |")
    return "\n".join(lines)
