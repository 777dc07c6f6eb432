"""Files of statistics: pytorch-fid's and clean-fid's, an .npz of mu and sigma."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.scores.formulas import Moments
from mvader_jax.storage.atomic import local, write_file


def read_moments(path: Path) -> Moments:
    """Mean and covariance. Raises UserError where the file is no such statistics."""
    file = local(path)
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UserError(
                f"{str(path)!r} holds one array without a name; statistics of FID are mu and sigma"
            )
        with loaded as held:
            if not {"mu", "sigma"} <= set(held.files):
                raise UserError(
                    f"{str(path)!r} holds {', '.join(held.files) or 'nothing'}; statistics of FID are mu and sigma"
                )
            mean, covariance = (_real(held[name], name, path) for name in ("mu", "sigma"))
            count = int(held["count"]) if "count" in held.files else 0
    except FileNotFoundError:
        raise UserError(f"the statistics {str(path)!r} do not exist") from None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(path)!r} is no .npz of statistics that can be read: {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
        raise UserError(
            f"{str(path)!r} has mu of {list(mean.shape)} and sigma of {list(covariance.shape)}; expected [D] and [D, D]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{str(path)!r} holds NaN or infinity")
    return Moments(mean, covariance, count)


def _real(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{str(path)!r} has {name} of {array.dtype}, where real numbers are expected")
    return array.astype(np.float64)


def write_moments(path: Path, moments: Moments) -> None:
    """As both programs read it. count stands beside what they look for. Raises UserError where it cannot be written."""
    held = io.BytesIO()
    np.savez_compressed(held, mu=moments.mean, sigma=moments.covariance, count=np.asarray(moments.count))
    write_file(local(path), held.getvalue())
