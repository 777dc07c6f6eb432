"""Every container of weights, and everything that can be wrong with one."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvader_jax.convert.read import open_file, open_folder, open_index
from mvader_jax.convert.tensors import Weights
from mvader_jax.errors import UserError


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(7, 5),
        "a.bias": torch.randn(7, dtype=torch.float16),
        "b": torch.randn(3, 2, 4).to(torch.bfloat16),
        "count": torch.tensor(3),
    }


def check(weights: Weights, expected: dict[str, torch.Tensor]) -> None:
    assert set(weights.tensors) == set(expected)
    for name, tensor in expected.items():
        found = weights.tensors[name]
        array = found.read()
        assert found.shape == array.shape == tuple(tensor.shape)
        assert found.dtype == array.dtype
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        assert array.tobytes() == bits.contiguous().numpy().tobytes(), name


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "ckpt"])
def test_plain_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights.{suffix}"
    save_file(state(), file) if suffix == "safetensors" else torch.save(state(), file)
    check(open_file(file), state())


@pytest.mark.parametrize("wrapper", ["state_dict", "module"])
def test_wrapped_and_with_other_entries(tmp_path: Path, wrapper: str) -> None:
    file = tmp_path / "x.ckpt"
    torch.save({"epoch": 3, wrapper: {**state(), "note": "text"}, "optimizer_states": [{}]}, file)
    weights = open_file(file)
    check(weights, state())
    assert weights.others == ("note",)


def test_old_torch_files_and_views(tmp_path: Path) -> None:
    big = torch.randn(6, 8)
    views = {"turned": big.T, "part": big[2:4], "same": big[2:4]}
    torch.save(views, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(views, tmp_path / "new.bin")
    for name in ("old.bin", "new.bin"):
        weights = open_file(tmp_path / name)
        check(weights, views)
        assert weights.tensors["part"].storage == weights.tensors["same"].storage


def test_old_torch_files_whose_numbers_are_not_there(tmp_path: Path) -> None:
    """torch itself hands out memory as it finds it where a storage's name was damaged."""
    file = tmp_path / "old.bin"
    ones = torch.ones(6, 8)
    torch.save({"a": ones, "b": ones.T}, file, _use_new_zipfile_serialization=False)
    # The storage's name stands three times: at both tensors, and before its numbers.
    data = file.read_bytes()
    place = data.index(b"cpu") - 10
    second = data.index(data[place - 8 : place], place) + 3
    file.write_bytes(data[:second] + bytes([data[second] ^ 1]) + data[second + 1 :])
    with pytest.raises(UserError, match="lacks the numbers of tensors that it names"):
        open_file(file)


def test_torchscript_without_running_it(tmp_path: Path) -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float16))
            self.register_buffer("mean", torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.mean

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.Sequential(Inner(), Inner())
            self.scale = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(x) * self.scale

    model = Outer()
    torch.jit.save(torch.jit.script(model), tmp_path / "script.pt")
    torch.jit.save(torch.jit.trace(model, torch.randn(2, 4)), tmp_path / "trace.pt")
    for name in ("script.pt", "trace.pt"):
        check(open_file(tmp_path / name), dict(model.state_dict()))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    names = list(state())
    weight_map = {}
    for i in range(2):
        file = f"model-{i}.{kind}"
        part = {name: state()[name] for name in names[i::2]}
        save_file(part, tmp_path / file) if kind == "safetensors" else torch.save(part, tmp_path / file)
        weight_map.update(dict.fromkeys(part, file))
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    check(open_index(index), state())
    check(open_folder(tmp_path), state())

    index.write_text(json.dumps({"weight_map": {**weight_map, "absent": f"model-0.{kind}"}}))
    with pytest.raises(UserError, match="do not agree on absent"):
        open_index(index)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in weight_map.items() if k != "b"}}))
    with pytest.raises(UserError, match="do not agree on b"):
        open_index(index)
    index.write_text(json.dumps({"weight_map": {**weight_map, "x": "../elsewhere.bin"}}))
    with pytest.raises(UserError, match="outside its own folder"):
        open_index(index)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / f"model-1.{kind}").unlink()
    with pytest.raises(UserError, match=f"names 1 shards that are missing: model-1.{kind}"):
        open_index(index)


def test_variants_of_a_folder(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    torch.save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"x": torch.full((1,), 2.0)}, tmp_path / "model.fp16.safetensors")
    assert open_folder(tmp_path).tensors["x"].read() == 0
    assert open_folder(tmp_path, variant="fp16").tensors["x"].read() == 2
    with pytest.raises(UserError, match="no weights of variant 'bf16'"):
        open_folder(tmp_path, variant="bf16")
    (tmp_path / "model.safetensors").unlink()
    assert open_folder(tmp_path).tensors["x"].read() == 1
    (tmp_path / "pytorch_model.bin").unlink()
    assert open_folder(tmp_path).tensors["x"].read() == 2
    (tmp_path / "model.fp16.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        open_folder(tmp_path)


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("new_format", [True, False])
def test_malicious_pickle_does_not_run(tmp_path: Path, new_format: bool) -> None:
    file, touched = tmp_path / "evil.ckpt", tmp_path / "touched"
    torch.save(
        {"state_dict": state(), "x": Malicious(touched)}, file, _use_new_zipfile_serialization=new_format
    )
    with pytest.raises(UserError, match=r"more than tensors \(\S*system\).*--trust-pickle"):
        open_file(file)
    assert not touched.exists()
    # The test itself: with trust it does run.
    check(open_file(file, trust_pickle=True), state())
    assert touched.exists()


def test_malicious_torchscript_is_refused(tmp_path: Path) -> None:
    import pickle
    import zipfile

    file, touched = tmp_path / "evil.pt", tmp_path / "touched"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/code/__torch__.py", "")
        archive.writestr("x/data.pkl", pickle.dumps(Malicious(touched), protocol=2))
    with pytest.raises(UserError, match=r"its pickle names \w+\.system"):
        open_file(file)
    assert not touched.exists()


def test_trainers_leftovers_of_public_files_are_inert(tmp_path: Path) -> None:
    """Stable Diffusion's .ckpt names a class of pytorch_lightning, which need not be installed."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    file = tmp_path / "sd.ckpt"
    try:
        sys.modules.update(dict.fromkeys(names, module))
        callbacks = {module.ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}}
        torch.save({"state_dict": state(), "callbacks": callbacks, "global_step": 470000}, file)
    finally:
        for name in names:
            del sys.modules[name]
    check(open_file(file), state())


def test_own_class_opens_only_with_trust(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"module": state(), "args": Path("somewhere")}, file)
    with pytest.raises(UserError, match=r"more than tensors.*pass --trust-pickle"):
        open_file(file)
    check(open_file(file, trust_pickle=True), state())


def test_git_lfs_pointer(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        file = tmp_path / name
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 24207819307\n")
        with pytest.raises(UserError, match="is a Git LFS pointer, not weights"):
            open_file(file)


@pytest.mark.parametrize("script", [False, True], ids=["state dict", "TorchScript"])
def test_archives_that_were_packed_again(tmp_path: Path, script: bool) -> None:
    """A deflated archive has its numbers nowhere as they are: a map of the file would read garbage."""
    import zipfile

    layer = torch.nn.Linear(50, 40)
    expected = dict(layer.state_dict())
    if script:
        torch.jit.save(torch.jit.trace(layer, torch.randn(1, 50)), tmp_path / "x.pt")
    else:
        torch.save(expected, tmp_path / "x.pt")
    ways = {"stored": 0, "deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2}
    for name, way in ways.items():
        with (
            zipfile.ZipFile(tmp_path / "x.pt") as before,
            zipfile.ZipFile(tmp_path / f"{name}.pt", "w", way) as after,
        ):
            for member in before.namelist():
                after.writestr(member, before.read(member))
    for name in ("stored", "deflated", *(["bzip2"] if script else [])):
        check(open_file(tmp_path / f"{name}.pt"), expected)
    if not script:
        with pytest.raises(UserError, match="packed again in a way that PyTorch does not read"):
            open_file(tmp_path / "bzip2.pt")


def test_a_flipped_byte_of_a_torchscript_archive(tmp_path: Path) -> None:
    layer = torch.nn.Linear(50, 40)
    file = tmp_path / "x.pt"
    torch.jit.save(torch.jit.trace(layer, torch.randn(1, 50)), file)
    data = bytearray(file.read_bytes())
    data[data.index(layer.weight.detach().numpy().tobytes()) + 1000] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="has not its checksum"):
        open_file(file).tensors["weight"].read()


def test_what_trainers_wrap_around(tmp_path: Path) -> None:
    for content in ({"model": state()}, {"epoch": 3, "model": {"state_dict": state()}}, {"params": state()}):
        torch.save(content, tmp_path / "x.pt")
        check(open_file(tmp_path / "x.pt"), state())
    torch.save({"model": state(), "ema": state()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"holds several sets of tensors \(model, ema\); save the one"):
        open_file(tmp_path / "x.pt")


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("new_format", [True, False])
def test_newer_pickle_protocols(tmp_path: Path, protocol: int, new_format: bool) -> None:
    file = tmp_path / "x.pt"
    torch.save(state(), file, pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        UserError, match=rf"a pickle of protocol {protocol}, which PyTorch's weights-only loader"
    ):
        open_file(file)
    check(open_file(file, trust_pickle=True), state())


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "float8_e4m3fn, a float of 8 bits or fewer"),
        (torch.zeros(2, dtype=torch.complex64), "complex64, complex numbers"),
        (torch.eye(2).to_sparse(), "sparse_coo, which no model here has"),
    ],
)
def test_types_that_are_not_read(tmp_path: Path, tensor: torch.Tensor, what: str) -> None:
    torch.save({"x": tensor}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=f"x is .*{what}"):
        open_file(tmp_path / "x.pt")


def test_whole_numbers_are_read_as_what_they_are(tmp_path: Path) -> None:
    tensors = {f"u{bits}": torch.arange(3).to(getattr(torch, f"uint{bits}")) for bits in (16, 32, 64)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        check(open_file(tmp_path / name), tensors)


def test_truncated(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "x.safetensors")
    torch.save(state(), tmp_path / "x.bin")
    for name in ("x.safetensors", "x.bin"):
        data = (tmp_path / name).read_bytes()
        for length in (len(data) - 3, len(data) // 2, 100, 5):
            (tmp_path / name).write_bytes(data[:length])
            with pytest.raises(UserError, match=r"truncated|damaged|wrong safetensors header"):
                open_file(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match="is empty"):
            open_file(tmp_path / name)


def with_header(header: object, data: bytes = b"\0" * 24) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_header(b"not json"), "wrong safetensors header"),
        (with_header([1]), "no JSON object"),
        (with_header({"x": 3}), "the entry of 'x' is 3"),
        (
            with_header({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}),
            "x is of the type F99, which is not read",
        ),
        (
            with_header({"x": {"dtype": "F8_E4M3", "shape": [24], "data_offsets": [0, 24]}}),
            "a float of 8 bits",
        ),
        (with_header({"x": {"dtype": "U8", "shape": [4.0], "data_offsets": [0, 4]}}), "the entry of 'x'"),
        (with_header({"x": {"dtype": "U8", "shape": [4], "data_offsets": [20, 24]}}), "begins at 20, not 0"),
        (
            with_header({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}),
            "20 bytes after its last tensor",
        ),
        (with_header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "but 4 bytes"),
        (
            with_header({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}),
            "wrong safetensors header",
        ),
        (with_header({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}), "is truncated"),
        (with_header(b'{"x": 1, "x": 2}'), "repeated names x"),
        (b"\xff" * 40, "it claims"),
    ],
)
def test_wrong_headers(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        open_file(file)


def test_what_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "page.ckpt").write_text("not found" * 10)
    with pytest.raises(UserError, match="neither safetensors nor a PyTorch file"):
        open_file(tmp_path / "page.ckpt")
    with pytest.raises(UserError, match="does not exist"):
        open_file(tmp_path / "absent.ckpt")
    with pytest.raises(UserError, match="is not a file"):
        open_file(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list, not a dict of tensors"):
        open_file(tmp_path / "list.pt")
    torch.save({"x": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "complex.pt")
    with pytest.raises(UserError, match="complex64"):
        open_file(tmp_path / "complex.pt")
