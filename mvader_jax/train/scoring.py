"""Scores of what a stage's model draws while it trains, of few held-out prompts, and the best of its models."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import by_first, first_process
from mvader_jax.prompt.elements import Prompt, Text
from mvader_jax.sampling.generate import Draws, Prompted
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.scores.features import embedded
from mvader_jax.scores.metrics import METRICS, Measured
from mvader_jax.scores.networks import Network, clip_texts, load_judge, open_network
from mvader_jax.storage.atomic import write_file
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.samples import grid_settings, held_out, on_host

if TYPE_CHECKING:
    # They hold what is set here.
    from mvader_jax.train.run import Run

_NAMES = "scores/"
#: Pictures that a network looks at together.
_BATCH = 32


class Scores:
    """One object scores all models of a run: `Scores(run, directory)(bundle)`, in every process together."""

    def __init__(self, run: Run, directory: Path) -> None:
        """For a stage that `check_stage` accepts. Raises UserError where a network or captions are missing: now, and not
        at the first scores, hours later."""
        self.stage, self._file = run.stage, directory / "best.json"
        names = self.stage.validate_with
        drawn = self.stage.objective.drawn(run.start.bundle)
        bundles = {
            name: load_judge(name, getattr(self.stage.judges, name), run.mesh)
            for name in sorted({METRICS[name].network for name in names})
        }
        self._networks: dict[str, Network] = {
            name: open_network(name, bundle, run.mesh) for name, bundle in bundles.items()
        }
        count = self.stage.judges.pictures
        records = list(itertools.islice(held_out(self.stage, drawn.model), count))
        if len(records) < count:
            raise UserError(
                f"validate_with draws {count} held-out captions (judges.pictures), and the validation split of the data "
                f"has {len(records)}"
            )
        self._captions = [str(record["caption"]) for record in records]
        real = [record["image"] for record in records]
        self._reference = {name: self._features(network, real) for name, network in self._networks.items()}
        texts = [METRICS[name].asked == "texts" for name in names]
        self._texts = clip_texts(bundles["clip"], run.mesh, self._captions, _BATCH)[0] if any(texts) else None
        self._pipeline = Pipeline(drawn, dtype=self.stage.dtype, mesh=run.mesh)

    def __call__(self, bundle: Bundle) -> dict[str, float]:
        """{"scores/fid": ...} of pictures drawn by a model of the run, of the same noise every time."""
        self._pipeline.bundle = self.stage.objective.drawn(bundle)
        pictures = self._draw()
        own = {name: self._features(network, pictures) for name, network in self._networks.items()}
        pairs = (np.arange(len(pictures)), self._reference["clip"]) if "clip" in own else None
        at = Measured(own, self._reference, None, self._texts, pairs)
        return {f"{_NAMES}{name}": METRICS[name].measure(at)["value"] for name in self.stage.validate_with}

    def is_best(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether the first score is better than at every step before that was kept. Together."""
        return bool(by_first(lambda: self._better(step, values)))

    def keep(self, step: int, values: Mapping[str, float]) -> None:
        """Notes that a step's model is kept as the best."""
        if first_process():
            write_file(self._file, json.dumps({"step": step, **values}, indent=1) + "\n")

    def _better(self, step: int, values: Mapping[str, float]) -> bool:
        name = self.stage.validate_with[0]
        try:
            known: Any = json.loads(self._file.read_text(encoding="utf-8"))
            before = float(known[f"{_NAMES}{name}"])
        except (OSError, ValueError, TypeError, KeyError):  # nothing was kept, or by another score
            return True
        # A step that is done again, from a checkpoint before it, may replace itself.
        sign = 1 if METRICS[name].higher else -1
        return known.get("step", 0) >= step or sign * values[f"{_NAMES}{name}"] > sign * before

    def _features(self, network: Network, pictures: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(embedded(network, pictures, min(_BATCH, len(pictures)))))

    def _draw(self) -> list[np.ndarray]:
        """uint8 [H, W, 3] of every caption; what is not finite is a grey picture, which scores as it deserves."""
        pipe = self._pipeline
        settings = grid_settings(self.stage, pipe.bundle.model)
        size = min(len(self._captions), max(1, self.stage.batch_size // self.stage.accumulate))
        length = pipe.bundle.to_batch([Prompt((Text(text),)) for text in self._captions]).token_ids.shape[1]
        null = Prompted(pipe.bundle.to_batch([None]))
        found: list[np.ndarray] = []
        for start in range(0, len(self._captions), size):
            part = self._captions[start : start + size]
            texts = part + part[-1:] * (size - len(part))
            prompts = pipe.bundle.to_batch([Prompt((Text(text),)) for text in texts], length=length)
            draws = Draws.of(settings, Prompted(prompts), null, np.arange(start, start + size))
            pixels, finite = pipe.generate(draws, settings.static(pipe.bundle.model))
            whole, good = on_host(pipe, pixels), on_host(pipe, finite)
            found += [
                picture if fine else np.full_like(picture, 128)
                for picture, fine in zip(whole[: len(part)], good[: len(part)], strict=True)
            ]
        return found
