"""A new kind of checkpoint is one file (toy.py) and one line in `kinds.KINDS`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mvader_jax.cli.main import main
from mvader_jax.convert.kinds import KINDS
from mvader_jax.storage.bundle import load_bundle


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


@pytest.fixture
def registered() -> Iterator[None]:
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
    assert spec is not None and spec.loader is not None
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    KINDS.append(toy.Toy())  # the one line
    yield
    KINDS.pop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    torch.manual_seed(0)
    names = {"proj.weight": (6, 4), "proj.bias": (6,), "ln.weight": (6,), "ln.bias": (6,)}
    save_file(
        {f"toy.{name}": torch.randn(shape) for name, shape in names.items()}, folder / "toy.safetensors"
    )
    return folder


def test_a_toy_kind(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], registered: None
) -> None:
    (source / "config.json").write_text(json.dumps({"width": 6, "colour": "red"}))
    assert run("convert", source, tmp_path / "bundle") == 0
    assert f"{source} is toy" in capsys.readouterr().out
    state = load_file(source / "toy.safetensors")
    tree = load_bundle(tmp_path / "bundle").components["image_prefix"]
    np.testing.assert_array_equal(tree["proj"]["kernel"], state["toy.proj.weight"].numpy().T)
    # The same bits the other way.
    assert run("export", tmp_path / "bundle", tmp_path / "back", "--to", "toy") == 0
    assert "toys are for playing" in capsys.readouterr().out
    back = load_file(tmp_path / "back" / "toy.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    # Its settings are accounted for, and it is named where a kind is asked for.
    (source / "config.json").write_text(json.dumps({"width": 6, "wheels": 3}))
    assert run("convert", source, tmp_path / "x", "--as", "toy") == 2
    assert "wheels is 3" in capsys.readouterr().err
    assert run("convert", source, tmp_path / "x", "--as", "bert") == 2
    assert "clip-text, inception, toy" in capsys.readouterr().err


def test_without_the_line_it_is_unknown(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", source, tmp_path / "bundle") == 2
    assert "none of the kinds that are known" in capsys.readouterr().err
