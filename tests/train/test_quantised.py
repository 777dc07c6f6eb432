"""A stage whose decoder is kept as integers."""

from __future__ import annotations

from pathlib import Path

import jax
import micro
import pytest

from mvader_jax.errors import UserError
from mvader_jax.models.quantised import has_integers, quantised
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.storage.bundle_config import read_config
from mvader_jax.train.assemble import split
from mvader_jax.train.banner import banner
from mvader_jax.train.job import begin
from mvader_jax.train.loop import train
from mvader_jax.train.snapshot import Snapshot, load_snapshot, write_snapshot


def test_biases_train_over_it_and_the_result_keeps_the_decoder_it_began_with(tmp_path: Path) -> None:
    save_bundle(tmp_path / "captioning" / "bundle", micro.bundle(micro.NANO))
    config = micro.nano_config(frozen_dtype="int8", steps=2, save_every=1)
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    assert train(config, "contrastive", tmp_path, mesh, quiet=True) == 0
    result, start = tmp_path / "contrastive" / "bundle", tmp_path / "captioning" / "bundle"
    records = [read_config(path)["components"] for path in (result, start)]
    assert records[0]["decoder"] == records[1]["decoder"]
    assert records[0]["biases"]["trained"]["steps"] == 2
    assert not has_integers(load_bundle(result).components["decoder"])
    snapshot = Snapshot.of(tmp_path / "contrastive")
    assert has_integers(load_snapshot(snapshot, dtype="float32").components["decoder"])
    write_snapshot(snapshot, tmp_path / "out")
    assert read_config(tmp_path / "out")["components"]["decoder"] == records[1]["decoder"]
    job = begin(config, "contrastive", tmp_path, mesh)
    said = dict(line.split(maxsplit=1) for line in banner(job))
    size = sum(leaf.size for leaf in jax.tree.leaves(load_bundle(start).components["decoder"]))
    assert (
        said["frozen"]
        == f"{size:,} parameters in int8 (the decoder's matrices) and float32 (decoder {size:,})"
    )


def test_integers_of_a_bundle_do_not_train() -> None:
    stage = micro.nano_config().stages["language"]
    with pytest.raises(UserError, match="is stored as integers; its matrices cannot train"):
        split(quantised(micro.bundle(micro.NANO, "decoder").components, "int8"), stage)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("vae", "frozen_dtype int8 is for the matrices of a decoder that stays frozen; there are none"),
        ("language", "frozen_dtype int8 is for a decoder that stays frozen; here its matrices train"),
    ],
)
def test_without_a_frozen_decoder_it_is_refused(
    stage: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvader_jax.train.start.TOKENIZER_CAPTIONS", 300)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match=message):
        begin(micro.nano_config(frozen_dtype="int8"), stage, tmp_path, mesh)
