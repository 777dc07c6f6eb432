"""Where a result is put together before it takes its place: nothing half-made is left, nothing foreign replaced."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mvader_jax.errors import UserError
from mvader_jax.storage.bundle import staged

_MARK = ".being-written"


@contextmanager
def workplace(
    out: Path, *, overwrite: bool, ours: Callable[[Path], bool], needed: int, source: Path | None = None
) -> Iterator[Path]:
    """A directory that becomes `out` when the block ends well (see `bundle.staged`).

    ours: whether what stands at `out` may be overwritten. needed: bytes that will be written. What a
    killed run left beside `out` is removed first. Raises UserError where `out` exists and must not be
    replaced, is the source itself, or the disk has no room.
    """
    out = out.absolute()
    if source is not None and out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the source itself; choose another place")
    if out.exists() and overwrite and not ours(out):
        raise UserError(
            f"{out} holds something else than a result of this command; remove it or choose another place"
        )
    _sweep(out)
    with staged(out, overwrite=overwrite) as work:
        free = shutil.disk_usage(work).free
        if needed > free:
            raise UserError(f"{out} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left")
        mark = work / _MARK
        with mark.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            try:
                yield work
            except OSError as error:
                if "No space left" in str(error):
                    raise UserError(f"no space is left on the disk of {out}") from None
                raise
            mark.unlink()


def _sweep(out: Path) -> None:
    """Removes what earlier runs left when they were killed: their marks are no longer held."""
    for mark in out.parent.glob(f".{out.name}.*/{_MARK}"):
        try:
            with mark.open() as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
        except OSError:
            continue
