"""Steps of a run on disk: other meshes, what is kept, and every way a newest step can be damaged."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.storage.checkpoint import Checkpoints, restore_tree, save_tree
from mvader_jax.storage.fingerprint import fingerprint

EIGHT = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
TWO = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])


def state(mesh: Any, number: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """A small tree with everything a training state has: a key, an optimizer's tuples, sharded matrices."""
    params = {"unet": {"kernel": jnp.arange(32.0).reshape(4, 8) + number, "bias": jnp.full(8, 1.5 + number)}}
    tree = {
        "step": jnp.int32(number),
        "key": jax.random.key(number),
        "trainable": params,
        "opt_state": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
    }

    def sharding(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec("fsdp", "tensor") if leaf.ndim == 2 else PartitionSpec())

    shardings = jax.tree.map(sharding, tree)
    return jax.device_put(tree, shardings), shardings


def values(tree: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return [np.asarray(jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x) for x in leaves]


def written(directory: Path, *steps: int, **options: Any) -> None:
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, state(EIGHT, step)[0], data={"samples": 8 * step}, metadata={"version": "0"})
    checkpoints.close()


def test_a_step_goes_onto_another_mesh(tmp_path: Path) -> None:
    written(tmp_path / "c", 7)
    example, shardings = state(TWO)
    found = Checkpoints(tmp_path / "c").restore(example, shardings)
    assert (found.step, found.data, found.metadata["version"]) == (7, {"samples": 56}, "0")
    for a, b in zip(values(found.state), values(state(TWO, 7)[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    kernel = found.state["trainable"]["unet"]["kernel"]
    assert kernel.sharding == shardings["trainable"]["unet"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8)
    assert found.state["key"].dtype == jax.random.key(0).dtype


def test_what_is_kept(tmp_path: Path) -> None:
    written(tmp_path / "c", 1, 2, 3, 4, 5, 6, keep=2, keep_every=3)
    assert sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == [3, 5, 6]


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(step: Path) -> None:
    for path in (step / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def gone(step: Path) -> None:
    shutil.rmtree(step / "state")


def no_data(step: Path) -> None:
    shutil.rmtree(step / "data")


def half_json(step: Path) -> None:
    file = next(p for p in (step / "metadata").iterdir() if p.is_file())
    file.write_text(file.read_text()[:-9])


def other_numbers(step: Path) -> None:
    """A whole checkpoint of numbers that are not the saved ones: what no file format notices."""
    shutil.rmtree(step / "state")
    tree = state(EIGHT, int(step.name))[0]
    tree["key"] = jax.random.key_data(tree["key"])
    kernel = tree["trainable"]["unet"]["kernel"]
    tree["trainable"]["unet"]["kernel"] = kernel.at[3, 7].set(jnp.nextafter(kernel[3, 7], jnp.inf))
    save_tree(step / "state", tree)


@pytest.mark.parametrize("damage", [cut, gone, no_data, half_json, other_numbers])
def test_a_damaged_newest_step_gives_way_to_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "c", 1, 2, 3, keep=3)
    (tmp_path / "damaged-3").mkdir()  # of another time
    damage(tmp_path / "c" / "3")
    example, shardings = state(EIGHT)
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    with caplog.at_level(logging.WARNING, "mvader_jax.storage.checkpoint"):
        found = checkpoints.restore(example, shardings)
    assert found.step == 2
    assert "step 3 is damaged, going back to the one before" in caplog.text
    for a, b in zip(values(found.state), values(state(EIGHT, 2)[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    # The damaged files are kept, out of the way of the step that is written again.
    assert (tmp_path / "damaged-3").is_dir() and (tmp_path / "damaged-3-2").is_dir()
    checkpoints.save(3, state(EIGHT, 3)[0], data={"samples": 24}, metadata={})
    checkpoints.close()
    assert Checkpoints(tmp_path / "c").restore(example, shardings).step == 3


def test_a_step_that_was_being_written_is_no_step(tmp_path: Path) -> None:
    written(tmp_path / "c", 1, 2, keep=3)
    # What a killed process leaves: everything but the rename.
    (tmp_path / "c" / "2").rename(tmp_path / "c" / "2.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    assert checkpoints.latest() == 1
    assert checkpoints.restore(*state(EIGHT)).step == 1
    checkpoints.save(2, state(EIGHT, 2)[0], data={"samples": 16}, metadata={})
    checkpoints.close()
    assert not list((tmp_path / "c").glob("*tmp*"))


def test_nothing_whole_is_one_sentence(tmp_path: Path) -> None:
    written(tmp_path / "c", 1)
    gone(tmp_path / "c" / "1")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step 1: "):
        Checkpoints(tmp_path / "c").restore(*state(EIGHT))
    # It stays where it was: nothing took its place.
    assert (tmp_path / "c" / "1").is_dir()


def test_other_parameters_are_named_and_nothing_is_lost(tmp_path: Path) -> None:
    written(tmp_path / "c", 1, 2)
    example, shardings = state(EIGHT)
    example["trainable"]["vae"] = {"kernel": jnp.zeros(3)}
    shardings["trainable"]["vae"] = {"kernel": NamedSharding(EIGHT, PartitionSpec())}
    with pytest.raises(UserError, match=r"does not fit the parameters.*missing trainable/vae/kernel"):
        Checkpoints(tmp_path / "c").restore(example, shardings)
    assert Checkpoints(tmp_path / "c").latest() == 2


def test_a_step_without_fingerprint_is_read(tmp_path: Path) -> None:
    """Steps written before fingerprints were."""
    tree = state(EIGHT, 4)[0]
    tree["key"] = jax.random.key_data(tree["key"])
    names = ("state", "data", "metadata")
    with ocp.CheckpointManager((tmp_path / "c").absolute(), item_names=names) as manager:
        json = {"data": ocp.args.JsonSave({"samples": 1}), "metadata": ocp.args.JsonSave({})}
        manager.save(4, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), **json))
    assert Checkpoints(tmp_path / "c").restore(*state(TWO)).step == 4


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_a_fingerprint_sees_every_number_and_no_mesh(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the sum is made on the devices or on the host, which come to the same."""
    tree = state(EIGHT, 5)[0]["trainable"]
    either = fingerprint(tree)
    monkeypatch.setattr("mvader_jax.storage.fingerprint._SMALL_BYTES", small)
    assert fingerprint(tree) == either
    a, b = state(EIGHT, 5)[0]["trainable"], state(TWO, 5)[0]["trainable"]
    assert fingerprint(a) == fingerprint(b)
    seen = {fingerprint(a)}
    for row, column in [(0, 0), (1, 3), (3, 7)]:
        kernel = a["unet"]["kernel"]
        changed = kernel.at[row, column].set(jnp.nextafter(kernel[row, column], jnp.inf))
        seen.add(fingerprint({"unet": {**a["unet"], "kernel": changed}}))
    seen.add(fingerprint({"unet": {**a["unet"], "kernel": a["unet"]["kernel"][::-1]}}))
    seen.add(fingerprint({"unet": {**a["unet"], "bias": a["unet"]["bias"].astype(jnp.bfloat16)}}))
    assert len(seen) == 6


def test_a_large_array_is_written_in_pieces(tmp_path: Path) -> None:
    """So that a process that wants a shard does not read the whole array."""
    save_tree(tmp_path / "t", {"kernel": jnp.zeros((4, 1024, 4096))})
    import tensorstore as ts

    store = {"driver": "ocdbt", "base": f"file://{tmp_path / 't'}", "path": "kernel"}
    array = ts.open({"driver": "zarr", "kvstore": store}, open=True).result()
    assert np.prod(array.chunk_layout.read_chunk.shape) * 4 <= 32 << 20
    assert restore_tree(tmp_path / "t")["kernel"].shape == (4, 1024, 4096)
