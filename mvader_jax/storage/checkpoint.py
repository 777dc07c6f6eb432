"""The only save and restore: component trees of a bundle, and the steps of a training run. Orbax does the I/O."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mvader_jax.errors import UserError, first_line
from mvader_jax.parallel.processes import barrier, everywhere, first_process
from mvader_jax.parallel.sharding import Tree
from mvader_jax.storage.fingerprint import fingerprint
from mvader_jax.storage.quiet import quiet

_log = logging.getLogger(__name__)

#: Size of the pieces an array is written in: a process that restores its shard reads little more than that.
_CHUNK_BYTES = 32 << 20
#: Bytes that may be under way between the files and the devices while restoring; the largest shard, if that is more.
_IN_FLIGHT_BYTES = 256 << 20


def save_tree(path: str | Path, tree: Tree) -> None:
    """Writes a tree of arrays into a new directory `path`; orbax commits it with one rename."""
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), tree, save_args=_in_chunks(tree))
    if first_process():
        forget_place(Path(path))


def forget_place(path: Path) -> None:
    """Takes the directory's own name, which Orbax writes into its mark, out of a saved tree: bundles are published."""
    mark = path / "commit_success.txt"
    if mark.is_file():
        mark.write_text("Checkpoint commit was successful", encoding="utf-8")


def tree_metadata(path: str | Path) -> Tree:
    """Shapes and dtypes of a saved tree, as ShapeDtypeStructs, without reading its data.

    Raises UserError where there is no whole checkpoint at `path`.
    """
    return _shapes(_metadata(path))


def _metadata(path: str | Path) -> Tree:
    try:
        with quiet(), ocp.StandardCheckpointer() as checkpointer:
            tree = _tree(checkpointer.metadata(Path(path).absolute()))
    # Orbax and tensorstore raise many kinds for a file that is cut, altered or gone.
    except Exception as error:
        raise UserError(f"{path} is not a whole checkpoint: {first_line(error)}") from None
    if not tree:
        raise UserError(f"{path} is not a whole checkpoint")
    return tree


def _tree(metadata: Any) -> Tree:
    """The leaves of what orbax returns as a checkpoint's metadata."""
    tree = getattr(metadata, "item_metadata", metadata)
    return getattr(tree, "tree", tree)


def _shapes(metadata: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), metadata)


def restore_tree(
    path: str | Path, abstract: Tree | None = None, shardings: Tree | None = None, dtype: Any = None
) -> Tree:
    """Reads a saved tree.

    abstract: ShapeDtypeStructs that the tree must match leaf by leaf in name and shape. shardings: where
    the leaves go, each process reading only its shards; None gives NumPy arrays. dtype: what floating
    leaves are cast to, None keeps them as stored. Raises UserError naming what does not match, or is missing.
    """
    if not Path(path).is_dir():
        raise UserError(f"{path} is missing")
    metadata = _metadata(path)
    stored = _shapes(metadata)
    if abstract is not None:
        _check(path, stored, abstract)
    try:
        return _read(path, stored, shardings, dtype, _in_flight(metadata, shardings))
    except Exception as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


def _read(path: str | Path, stored: Tree, shardings: Tree | None, dtype: Any, in_flight: int) -> Tree:
    def target(leaf: jax.ShapeDtypeStruct) -> Any:
        return jnp.dtype(dtype) if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else None

    if shardings is None:
        arguments = jax.tree.map(
            lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=target(leaf)), stored
        )
    else:
        arguments = jax.tree.map(
            lambda leaf, sharding: ocp.ArrayRestoreArgs(sharding=sharding, dtype=target(leaf)),
            stored,
            shardings,
        )
    with quiet(), ocp.Checkpointer(_reading_handler(in_flight)) as checkpointer:
        return checkpointer.restore(
            Path(path).absolute(), args=ocp.args.PyTreeRestore(item=stored, restore_args=arguments)
        )


@dataclasses.dataclass(frozen=True)
class Restored:
    """step: its number; state: the tree; data: the loader's state; metadata: config and version."""

    step: int
    state: Tree
    data: dict[str, Any]
    metadata: dict[str, Any]


def read_step(directory: str | Path, part: str) -> tuple[Tree, dict[str, Any]]:
    """(tree `part` of a step's state as NumPy arrays, the step's metadata), read beside a run that may be going on.

    Raises UserError where the step in `directory` cannot be read.
    """
    directory = Path(directory).absolute()
    try:
        metadata = ocp.JsonCheckpointHandler().restore(epath.Path(directory / "metadata"))
        wanted = {
            part: _shapes(_tree(ocp.StandardCheckpointHandler().metadata(epath.Path(directory / "state"))))[
                part
            ]
        }
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        state = _reading_handler(_whole(wanted)).restore(
            epath.Path(directory / "state"),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
        )
    except Exception as error:
        raise UserError(f"{directory} cannot be read: {first_line(error)}") from None
    return state[part], dict(metadata)


def newest_metadata(directory: str | Path) -> dict[str, Any]:
    """The metadata of the newest step in a directory of checkpoints that has some; empty where none has."""
    steps = [path for path in Path(directory).absolute().glob("*") if path.name.isdigit()]
    for step in sorted(steps, key=lambda path: int(path.name), reverse=True):
        with contextlib.suppress(Exception):  # cut, altered or gone: restoring says so
            return dict(ocp.JsonCheckpointHandler().restore(epath.Path(step / "metadata")))
    return {}


class _Damaged(Exception):
    """A step that cannot be read; the message says why."""


class Checkpoints:
    """The steps of one run: saved asynchronously, the newest `keep` of them kept.

    keep_every: steps that are a multiple of it are kept for good; 0 keeps none.
    All processes of a job call every method together, on a directory that they share.
    """

    def __init__(self, directory: str | Path, keep: int = 2, keep_every: int = 0) -> None:
        self.directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                create=True,
                # What a killed process was writing goes when the next one starts.
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "data", "metadata"),
        )

    def latest(self) -> int | None:
        """The newest step that was committed, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree, *, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Saves a step in the background. state may hold typed random keys; data and metadata are JSON.

        A step that is there already is left as it is: it holds the same. Raises UserError where this one, or the
        one before, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        state = _without_keys(state)
        metadata = {**metadata, _FINGERPRINT: fingerprint(state)}
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state, save_args=_in_chunks(state)),
                    data=ocp.args.JsonSave(data),
                    metadata=ocp.args.JsonSave(metadata),
                ),
            )

    def restore(self, example: Tree, shardings: Tree) -> Restored:
        """The newest step that can be read, onto `shardings` (another mesh or number of processes than it
        was saved from is fine). example: a tree like the one saved, of arrays or of shapes.

        A step that is damaged in any process's eyes is moved aside, with a warning, into `damaged-STEP`
        beside the directory, and the one before is taken. Raises UserError where none is whole, or the
        steps hold other parameters than `example`.
        """
        shapes = jax.eval_shape(_without_keys, example)
        target = jax.tree.map(_as_target, shapes, _for_key_data(example, shardings))
        problems: list[str] = []
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            problem, found = "", None
            try:
                with quiet():
                    found = self._read(step, target)
            except _Damaged as error:
                problem = str(error)
            if not everywhere(found is not None):
                problems.append(f"step {step}: {problem or 'another process could not read it'}")
                _log.warning(
                    "the checkpoint of step %d is damaged, going back to the one before: %s",
                    step,
                    problem or "another process could not read it",
                )
                damaged.append(step)
                continue
            assert found is not None
            self._move_aside(damaged)
            state = jax.tree.map(_with_key, example, found.state)
            return dataclasses.replace(found, state=state)
        raise UserError(
            f"no checkpoint in {self.directory} can be read ({'; '.join(problems) or 'none there'})"
        )

    def close(self) -> None:
        """Waits for what is being written. Raises UserError where it cannot be."""
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        # Of the file system, of tensorstore, of orbax' threads.
        except (OSError, ValueError, RuntimeError) as error:
            whole = [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]
            last = f"; step {max(whole)} is whole" if whole else ""
            raise UserError(f"cannot save a checkpoint in {self.directory}: {_reason(error)}{last}") from None

    def _read(self, step: int, target: Tree) -> Restored:
        """One step. Handlers are called directly: a manager's restore would wait for processes that failed."""
        directory = self._manager.directory / str(step)
        try:
            data = ocp.JsonCheckpointHandler().restore(directory / "data")
            metadata = ocp.JsonCheckpointHandler().restore(directory / "metadata")
            stored = _tree(ocp.StandardCheckpointHandler().metadata(directory / "state"))
            _check(directory, _shapes(stored), target, "the parameters that the config trains")
            places = jax.tree.map(lambda leaf: leaf.sharding, target)
            state = _reading_handler(_in_flight(stored, places)).restore(
                directory / "state",
                args=ocp.args.PyTreeRestore(
                    item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
                ),
            )
        except UserError:
            raise
        except Exception as error:
            raise _Damaged(first_line(error)) from None
        if metadata.get(_FINGERPRINT, _UNKNOWN) not in (_UNKNOWN, fingerprint(state)):
            raise _Damaged("its numbers are not those that were saved")
        return Restored(step, state, dict(data), dict(metadata))

    def _move_aside(self, damaged: list[int]) -> None:
        if not damaged:
            return
        if first_process():
            for step in damaged:
                aside, again = self.directory.parent / f"damaged-{step}", 1
                while aside.exists():
                    aside, again = aside.with_name(f"damaged-{step}-{again + 1}"), again + 1
                (self.directory / str(step)).rename(aside)
        barrier()
        self._manager.reload()


_FINGERPRINT, _UNKNOWN = "fingerprint", "unknown"


def _in_chunks(tree: Tree) -> Tree:
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)


def _reading_handler(in_flight: int) -> ocp.PyTreeCheckpointHandler:
    # Orbax refuses a read that takes all the room there is.
    return ocp.PyTreeCheckpointHandler(restore_concurrent_gb=(in_flight + 1) / 10**9)


def _in_flight(metadata: Tree, shardings: Tree | None) -> int:
    """Bytes to allow under way: as many as the chunks that hold this process's largest shard have."""
    if shardings is None:
        return _whole(_shapes(metadata))

    def read(leaf: Any, sharding: jax.sharding.Sharding) -> int:
        shape = tuple(leaf.shape)
        chunk = getattr(leaf.storage, "chunk_shape", None) or shape
        most = 0
        for index in sharding.addressable_devices_indices_map(shape).values():
            size = jnp.dtype(leaf.dtype).itemsize
            for part, length, step in zip(index or (), shape, chunk, strict=True):
                start, stop, _ = part.indices(length)
                size *= (-(-stop // step) - start // step) * step
            most = max(most, size)
        return most

    leaves, places = _named(metadata), _named(shardings)
    return max([_IN_FLIGHT_BYTES, *(read(leaf, places[name]) for name, leaf in leaves.items())])


def _whole(shapes: Tree) -> int:
    """The same where whole arrays are read; their last chunks may stick out, by less than the array."""
    sizes = [leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes)]
    return 2 * max([_IN_FLIGHT_BYTES, *sizes])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _with_key(example: Any, leaf: Any) -> Any:
    return jax.random.wrap_key_data(leaf) if _is_key(example) else leaf


def _for_key_data(example: Tree, shardings: Tree) -> Tree:
    """The shardings, with that of a key made fit for the extra axis of its data."""
    return jax.tree.map(
        lambda leaf, s: s.update(spec=jax.sharding.PartitionSpec()) if _is_key(leaf) else s,
        example,
        shardings,
    )


def _as_target(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check(path: str | Path, stored: Tree, abstract: Tree, what: str = "its config") -> None:
    have, want = _named(stored), _named(abstract)
    complaints = [f"missing {name}" for name in want if name not in have]
    complaints += [f"unexpected {name}" for name in have if name not in want]
    complaints += [
        f"{name} is {have[name].shape}, expected {want[name].shape}"
        for name in want
        if name in have and have[name].shape != want[name].shape
    ]
    if complaints:
        more = f"; and {len(complaints) - 5} more" if len(complaints) > 5 else ""
        raise UserError(f"{path} does not fit {what}: {'; '.join(complaints[:5])}{more}")


def _named(tree: Tree) -> dict[str, Any]:
    """{path: leaf}, with the same path for a field and for the dictionary's key it is stored under."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _reason(error: BaseException) -> str:
    """The system's own words, which tensorstore gives by number at the end of a long message."""
    number = getattr(error, "errno", None)
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(number or int(found[1])) if number or found else first_line(error)  # type: ignore[index]
