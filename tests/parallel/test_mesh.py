"""The mesh: its axes, which process feeds which rows, and how a host learns that it has siblings."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from mvader_jax.errors import UserError
from mvader_jax.parallel import processes
from mvader_jax.parallel.mesh import (
    MeshConfig,
    make_global,
    make_mesh,
    parse_mesh,
    process_share,
)
from mvader_jax.parallel.processes import gather_json, on_tpu_pod
from mvader_jax.parallel.sharding import MESH_AXES, ShardingError, partition_spec, partitioned


def test_axes_are_read_and_filled() -> None:
    assert parse_mesh("data=2,fsdp=-1") == MeshConfig(data=2, fsdp=-1)
    assert parse_mesh("data=2,fsdp=-1").resolve(8) == MeshConfig(data=2, fsdp=4)
    assert dict(make_mesh(parse_mesh("replica=2,data=1,fsdp=2,tensor=2")).shape) == {
        "replica": 2,
        "data": 1,
        "fsdp": 2,
        "tensor": 2,
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model=2", "unknown mesh axis in 'model=2'; accepted: replica=N, data=N, fsdp=N, tensor=N"),
        ("data=0", "MeshConfig.data is 0; accepted: a positive number"),
        ("data=two", "must be a positive number"),
        ("data=2,data=4", "names data twice"),
        ("data=3,fsdp=-1", "does not divide the 8 devices"),
        ("data=-1,fsdp=-1", "only one axis may be -1"),
        ("data=4", "has 4 devices, but there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_mesh(parse_mesh(text))


def fake_mesh(shape: tuple[int, int, int, int], processes: list[int]) -> Any:
    """A mesh of devices that belong to these processes, in order."""
    devices = np.array([types.SimpleNamespace(process_index=p) for p in processes], object).reshape(shape)
    return types.SimpleNamespace(
        devices=devices, axis_names=MESH_AXES, shape=dict(zip(MESH_AXES, shape, strict=True))
    )


@pytest.mark.parametrize(
    ("shape", "processes", "shares"),
    [
        ((1, 2, 2, 1), [0, 0, 1, 1], [(0, 2), (1, 2)]),
        ((2, 1, 1, 2), [0, 0, 1, 1], [(0, 2), (1, 2)]),
        # A tensor axis over two hosts: both hold the same rows and make the same.
        ((1, 2, 1, 2), [0, 1, 2, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 1, 4), [0, 0, 1, 1], [(0, 1), (0, 1)]),
    ],
)
def test_each_process_makes_its_own_rows(
    shape: Any, processes: list[int], shares: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert process_share(fake_mesh(shape, processes)) == share


def test_rows_that_overlap_in_part_are_an_error() -> None:
    with pytest.raises(UserError, match="overlap in part"):
        process_share(fake_mesh((1, 2, 1, 3), [0, 0, 0, 0, 1, 1]))


def test_a_batch_goes_to_the_devices_row_by_row() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = make_global({"x": np.arange(16).reshape(8, 2), "flag": np.arange(8) > 3}, mesh)
    np.testing.assert_array_equal(batch["x"], np.arange(16).reshape(8, 2))
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 2)}
    assert gather_json({"a": [1, "ü"]}) == [{"a": [1, "ü"]}]


def test_when_a_host_looks_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", "MVADER_POD", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: object())
    # A Cloud TPU VM: the metadata server knows.
    assert on_tpu_pod()
    # No chips (JAX says so at import): a laptop.
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert not on_tpu_pod()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert on_tpu_pod()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert not on_tpu_pod()
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    assert on_tpu_pod()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not on_tpu_pod()


def test_half_a_set_of_variables_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    with pytest.raises(
        UserError, match="JAX_NUM_PROCESSES is not set; a job needs all of JAX_COORDINATOR_ADDRESS"
    ):
        processes.initialize_distributed()


def test_large_arrays_are_never_left_whole() -> None:
    mesh = AbstractMesh((1, 2, 4, 2), MESH_AXES)
    assert partition_spec(("embed", "mlp"), (4096, 16384), mesh) == PartitionSpec("fsdp", "tensor")
    # Small and indivisible: whole. Large and indivisible: an error.
    assert partition_spec(("channels_in", None), (3, 8), mesh) == PartitionSpec(None, None)
    with pytest.raises(ShardingError, match="length 50257 does not divide over 2 devices"):
        partition_spec(("vocab", "embed"), (50257, 4096), mesh)
    # Biases have no axes of their own; those of forty layers together are large.
    assert partition_spec((None, None), (40, 20480), mesh) == PartitionSpec(None, "fsdp")
    assert partition_spec((None, None), (40, 1024), mesh) == PartitionSpec(None, None)
    tensor_only = AbstractMesh((1, 1, 1, 8), MESH_AXES)
    assert partition_spec((None, None), (40, 20480), tensor_only) == PartitionSpec(None, "tensor")
    with pytest.raises(ShardingError, match="unknown logical axis 'widht'"):
        partitioned(jax.nn.initializers.zeros, "widht")
    with pytest.raises(ShardingError, match="meet on one mesh axis"):
        partitioned(jax.nn.initializers.zeros, "embed", "context")


def test_a_cpu_is_cut_into_the_devices_a_mesh_names() -> None:
    program = (
        "from mvader_jax.parallel.mesh import open_mesh\n"
        "assert open_mesh('') is None\n"
        "print(open_mesh('data=2').size)\n"
        "import jax; assert jax.device_count() == 2"
    )
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2\n", done.stderr
