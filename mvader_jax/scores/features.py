"""Features of many pictures, in a file that grows by the batch: memory stays flat, and a stopped run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import by_first, first_process
from mvader_jax.prompt.elements import ImageSource
from mvader_jax.sampling.batch.requests import fingerprint
from mvader_jax.scores.networks import Network
from mvader_jax.storage.atomic import explained, local
from mvader_jax.storage.lock import only_user

#: Called with (how many are done, how many there are).
Progress = Callable[[int, int], None]


class Kept:
    """Where features lie: a folder that stays, or one that goes with the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def features(
        self,
        network: Network,
        pictures: Sequence[Path],
        batch: int,
        progress: Progress = lambda done, total: None,
    ) -> np.ndarray:
        """float32 [N, D] in the order of the pictures, in a file. Rows that an earlier run left are not made again.

        Raises UserError for a picture that cannot be read, after those before it were kept. Together: the first process
        alone has them then, the others get zeros.
        """
        file = self.folder / f"{network.name}-{_mark(network, pictures)}.f32"
        row = 4 * network.width
        there = int(by_first(lambda: _whole_rows(file, row, len(pictures))))
        progress(there, len(pictures))
        with contextlib.ExitStack() as opened:
            out = None
            if first_process():
                opened.enter_context(explained(file, self.folder))
                out = opened.enter_context(file.open("ab"))
            for rows in embedded(network, pictures[there:], batch):
                if out is not None:
                    out.write(np.ascontiguousarray(rows, np.float32).tobytes())
                    out.flush()
                there += len(rows)
                progress(there, len(pictures))
        if not first_process():
            return np.zeros((len(pictures), network.width), np.float32)
        return np.memmap(file, np.float32, "r", shape=(len(pictures), network.width))


@contextlib.contextmanager
def keeping(folder: Path | None) -> Iterator[Kept]:
    """folder: where features stay for the next run. Raises UserError where it cannot be used, or another run does."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="mvader-scores-") as made:
            yield Kept(Path(made))
        return
    with only_user(local(folder)):
        yield Kept(folder)


def _mark(network: Network, pictures: Sequence[Path]) -> str:
    """Of the network and of the files as they are: another size or time of writing is another picture."""
    files: list[Any] = []
    for path in pictures:
        try:
            state = path.stat()
        except OSError as error:
            raise UserError(f"the image {str(path)!r} cannot be read: {error.strerror}") from None
        files.append([os.path.abspath(path), state.st_size, state.st_mtime_ns])
    return fingerprint({"network": network.about, "files": fingerprint({"files": json.dumps(files)})})


def _whole_rows(file: Path, row: int, most: int) -> int:
    """How many rows a file has; half a row at its end is cut off."""
    if not file.is_file():
        return 0
    count = min(file.stat().st_size // row, most)
    with explained(file, file.parent):
        os.truncate(file, count * row)
    return count


def embedded(network: Network, pictures: Sequence[ImageSource], batch: int) -> Iterator[np.ndarray]:
    """Features by the batch. While the devices work on one, the next waits for them and the host reads the one after."""
    groups = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

        def begin(number: int) -> list[Future[np.ndarray]]:
            following = groups[number] if number < len(groups) else []
            return [pool.submit(network.read, path) for path in following]

        coming = begin(0)
        working: list[tuple[jax.Array, int]] = []
        for number, group in enumerate(groups):
            try:
                rows = [future.result() for future in coming]
            except UserError:
                yield from _arrived(working)  # what was before the picture that cannot be read
                raise
            # The last batch is filled up, so that every batch is one program's.
            given = np.stack(rows + rows[-1:] * (batch - len(rows)))
            coming = begin(number + 1)
            working.append((network.embed(given), len(group)))
            yield from _arrived(working[:-1])
            del working[:-1]
        yield from _arrived(working)


def _arrived(working: Sequence[tuple[jax.Array, int]]) -> Iterator[np.ndarray]:
    """Waits for batches, and cuts off what filled them up."""
    for features, count in working:
        yield np.asarray(features)[:count]
