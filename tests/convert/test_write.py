"""Files that are written are those of the libraries that read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from mvader_jax.convert.formats.safetensors import write_safetensors
from mvader_jax.convert.formats.torch_archive import write_torch
from mvader_jax.convert.tensors import DTYPES


def test_written_files_are_what_the_libraries_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((5, 3)).astype(np.float32),
        "b.c": rng.standard_normal((130,)).astype(DTYPES["F16"]),
        "half": rng.standard_normal((3, 1, 2)).astype(DTYPES["BF16"]),
        "scalar": np.float32(2.5).reshape(()),
    }
    described = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_safetensors(tmp_path / "x.safetensors", described, iter(arrays.items()))
    write_torch(tmp_path / "x.pt", described, iter(arrays.items()), "module")
    loaded = [
        load_file(tmp_path / "x.safetensors"),
        torch.load(tmp_path / "x.pt", weights_only=True)["module"],
        torch.load(tmp_path / "x.pt", weights_only=True, mmap=True)["module"],
    ]
    for tensors in loaded:
        assert set(tensors) == set(arrays)
        for name, array in arrays.items():
            bits = tensors[name].view(torch.int16) if tensors[name].dtype == torch.bfloat16 else tensors[name]
            assert tuple(tensors[name].shape) == array.shape
            assert bits.numpy().tobytes() == array.tobytes(), name
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pt", "x.safetensors"]
