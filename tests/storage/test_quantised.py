"""A bundle whose decoder is read, or stored, as integers."""

from __future__ import annotations

from pathlib import Path

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.cli.main import main
from mvader_jax.convert.export import export
from mvader_jax.errors import UserError
from mvader_jax.models.quantised import SCALE, is_matrix
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.sharding import bytes_per_device
from mvader_jax.plan.program import sample_program
from mvader_jax.sampling.batch.run import _digest
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import load_bundle, parameter_count, save_bundle, verify
from mvader_jax.storage.bundle_config import read_config


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised") / "bundle"
    save_bundle(path, micro.bundle(micro.NANO))
    return path


def same(a: object, b: object) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_it_is_stored_and_read_again_on_any_mesh(name: str, bundle: Path, tmp_path: Path) -> None:
    whole = load_bundle(bundle)
    found = load_bundle(bundle, integers=name)
    assert parameter_count(found.components["decoder"]) == parameter_count(whole.components["decoder"])
    kinds = {path[1:]: leaf.dtype for path, leaf in flatten_dict(found.components).items() if is_matrix(path)}
    assert len(kinds) == 6 and {str(kind) for kind in kinds.values()} == {name}
    mesh = make_mesh(MeshConfig(fsdp=8))
    assert same(load_bundle(bundle, integers=name, mesh=mesh).components, found.components)
    save_bundle(tmp_path / "stored", found)
    assert name in read_config(tmp_path / "stored")["components"]["decoder"]["dtypes"]
    assert verify(tmp_path / "stored")["decoder"]
    assert same(load_bundle(tmp_path / "stored").components, found.components)
    assert same(load_bundle(tmp_path / "stored", mesh=mesh).components, found.components)
    again = load_bundle(tmp_path / "stored", dtype="bfloat16", integers=name).components["decoder"]
    assert str(again["layers"]["attn"]["q_proj"]["kernel"].dtype) == name
    with pytest.raises(
        UserError, match=r"the decoder of .* is stored as integers, for which magma has no place"
    ):
        export(tmp_path / "stored", tmp_path / "out", "magma")
    other = "int4" if name == "int8" else "int8"
    with pytest.raises(UserError, match=f"the decoder is stored in {name}; {other} cannot be made of it"):
        load_bundle(tmp_path / "stored", integers=other)


def test_a_bundle_without_a_decoder_has_no_integers(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"int8 is for the matrices of a decoder .* none among unet, vae"):
        load_bundle(bundle, components=["unet", "vae"], integers="int8")


def test_a_pipeline_draws_with_it(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, exact = Pipeline.load(bundle, frozen_dtype="int8"), Pipeline.load(bundle)
    assert f"{sum(map(parameter_count, exact.bundle.components.values())):,} parameters" in repr(pipe)
    layers = flatten_dict(pipe.bundle.components["decoder"]["layers"])
    assert sum(path[-1] == SCALE for path in layers) == 6
    hidden, near = (np.asarray(p.embed("a red circle").hidden) for p in (exact, pipe))
    assert 0 < np.sqrt(np.mean((hidden - near) ** 2) / np.mean(hidden**2)) < 0.03
    # A plan counts what is really held.
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    planned = sample_program(pipe.model, one, 1, dtype="float32", frozen_dtype="int8")
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(pipe.bundle.components))
    assert bytes_per_device(planned.parts["frozen weights"]) == held
    # Pictures that were drawn otherwise are not taken for its own.
    assert _digest(pipe) != _digest(exact)
    command = [
        "sample",
        "a red circle",
        "--bundle",
        str(bundle),
        "--steps",
        "2",
        "--num-images",
        "1",
        "--quiet",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path), "--frozen-dtype", "int4"])
    assert not ended.value.code and (tmp_path / "00000.png").is_file()
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path), "--frozen-dtype", "int2"])
    assert "--frozen-dtype is 'int2'" in capsys.readouterr().err
