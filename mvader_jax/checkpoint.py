"""The only save and restore: component trees of a bundle, and the steps of a training run. Orbax does the I/O."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from mvader_jax.errors import UserError

Tree = Any
_log = logging.getLogger(__name__)


def save_tree(path: str | Path, tree: Tree) -> None:
    """Writes a tree of arrays into a new directory `path`; orbax commits it with one rename."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), tree)


def tree_metadata(path: str | Path) -> Tree:
    """Shapes and dtypes of a saved tree, as ShapeDtypeStructs, without reading its data.

    Raises UserError where there is no whole checkpoint at `path`.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(Path(path).absolute())
            tree = getattr(saved, "item_metadata", saved)
            tree = getattr(tree, "tree", tree)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a whole checkpoint: {_first_line(error)}") from None
    if not tree:
        raise UserError(f"{path} is not a whole checkpoint")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), tree)


def restore_tree(
    path: str | Path, abstract: Tree | None = None, shardings: Tree | None = None, dtype: Any = None
) -> Tree:
    """Reads a saved tree.

    abstract: ShapeDtypeStructs that the tree must match leaf by leaf in name and shape. shardings: where
    the leaves go, each process reading only its shards; None gives NumPy arrays. dtype: what floating
    leaves are cast to, None keeps them as stored. Raises UserError naming what does not match.
    """
    stored = tree_metadata(path)
    if abstract is not None:
        _check(path, stored, abstract)

    def target(leaf: jax.ShapeDtypeStruct) -> Any:
        return (
            jnp.dtype(dtype) if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        )

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
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(Path(path).absolute(), item=stored, restore_args=arguments)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from None


@dataclasses.dataclass(frozen=True)
class Restored:
    """step: its number; state: the tree; data: the loader's state; metadata: config and version."""

    step: int
    state: Tree
    data: dict[str, Any]
    metadata: dict[str, Any]


class Checkpoints:
    """The steps of one run: saved asynchronously, the newest `keep` of them kept."""

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_names=("state", "data", "metadata"),
        )

    def latest(self) -> int | None:
        """The newest step that was committed, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree, *, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Saves a step in the background. state may hold typed random keys; data and metadata are JSON."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_without_keys(state)),
                data=ocp.args.JsonSave(data),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )

    def restore(self, example: Tree, shardings: Tree) -> Restored:
        """The newest step that can be read, onto `shardings` (another mesh than it was saved from is fine).

        A step that is damaged is removed with a warning and the one before is taken. Raises UserError
        where none is whole.
        """
        target = jax.tree.map(_as_target, _without_keys(example), _for_key_data(example, shardings))
        problems = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target),
                        data=ocp.args.JsonRestore(),
                        metadata=ocp.args.JsonRestore(),
                    ),
                )
            # Orbax and tensorstore raise many kinds for a file that is cut or altered.
            except Exception as error:
                problems.append(f"step {step}: {_first_line(error)}")
                _log.warning(
                    "checkpoint of step %d cannot be read, going back to the one before: %s", step, error
                )
                continue
            for damaged in [s for s in self._manager.all_steps() if s > step]:
                self._manager.delete(damaged)
            state = jax.tree.map(_with_key, example, found["state"])
            return Restored(step, state, found["data"], found["metadata"])
        raise UserError(
            f"no checkpoint in {self._manager.directory} can be read ({'; '.join(problems) or 'none there'})"
        )

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


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


def _check(path: str | Path, stored: Tree, abstract: Tree) -> None:
    have, want = flatten_dict(stored, sep="/"), flatten_dict(abstract, sep="/")
    complaints = [f"missing {name}" for name in want if name not in have]
    complaints += [f"unexpected {name}" for name in have if name not in want]
    complaints += [
        f"{name} is {have[name].shape}, expected {want[name].shape}"
        for name in want
        if name in have and have[name].shape != want[name].shape
    ]
    if complaints:
        raise UserError(f"{path} does not fit its config: {'; '.join(complaints)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
