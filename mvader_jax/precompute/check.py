"""Whether stored records are what their networks compute."""

from __future__ import annotations

import contextlib
import dataclasses

import jax.numpy as jnp
import numpy as np

from mvader_jax.data.order import DamagedRecord
from mvader_jax.data.sources.encoded import BF16, Encoded
from mvader_jax.errors import UserError
from mvader_jax.precompute.job import Job


@dataclasses.dataclass(frozen=True)
class Check:
    """How far stored arrays lie from those computed anew, in units of the last place of bfloat16 of the
    array's own scale (its root mean square); `records` were compared."""

    records: int
    worst: float

    #: Other batches round differently by an ulp or so; anything wrong is off by hundreds.
    LIMIT = 8.0


def check(job: Job, out: str, sample: int) -> Check:
    """Compares `sample` stored records with ones computed anew. Raises UserError where they differ."""
    stored = Encoded(out, "train", job.data)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(stored))[: max(sample // job.rows, 1) * job.rows]
    compared, worst = 0, 0.0
    for at in range(0, len(chosen), job.rows):
        kept, pictures, captions = [], [], []
        for number in chosen[at : at + job.rows]:
            row = job.picture("train", int(number))
            with contextlib.suppress(DamagedRecord):
                record = stored.record(int(number), rng)
                if "image" in row:
                    kept.append(record)
                    pictures.append(row["image"])
                    captions.append(row["captions"])
        arrays = job.arrays(pictures, captions)
        compared += len(kept)
        for part, values in arrays.items():
            for value, record in zip(values, kept, strict=True):
                worst = max(worst, _distance(value, record[part]))
    if worst > Check.LIMIT:
        raise UserError(
            f"{out!r} does not hold what its model computes: a record differs by {worst:.0f} units in the last "
            "place; delete the folder and encode again"
        )
    return Check(compared, worst)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    scale = float(np.sqrt(np.mean(np.square(a)))) or 1.0
    ulp = np.maximum(np.abs(a), scale) * float(jnp.finfo(BF16).eps)
    return float(np.max(np.abs(a - b) / ulp))
