"""An encoding knows which pictures and captions it is of: those of another state are never taken for it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import micro
import numpy as np
import PIL.Image
import pytest

from mvader_jax.cli.main import main
from mvader_jax.data.building.catalogue import find_parts
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.run import build
from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Records
from mvader_jax.data.sources.encoded import INFO, EncodedInfo
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.precompute.check import Check
from mvader_jax.precompute.encode import encode
from mvader_jax.precompute.job import Job, Options, prepare
from mvader_jax.storage.bundle import save_bundle

OPTIONS = Options(parts=("latents",), batch_size=8)


def write(folder: Path, captions: list[str]) -> None:
    """A data set of pictures with these captions, in `folder`/built."""
    shutil.rmtree(folder / "built", ignore_errors=True)
    (folder / "in").mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        PIL.Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(folder / "in" / f"{number}.png")
        (folder / "in" / f"{number}.txt").write_text(caption)
    parts = find_parts("image_captions", str(folder / "in"))
    build(parts, folder / "built", "image_captions", FilterConfig())


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    for stage in ("vae", "contrastive"):
        save_bundle(tmp_path / stage / "bundle", micro.bundle(micro.NANO))
    write(tmp_path, ["a cat", "a dog", "a horse"])
    return DataConfig(Records((str(tmp_path / "built"),)))


def job_of(tmp_path: Path, data: DataConfig) -> Job:
    config = micro.nano_config()
    stage = dataclasses.replace(config.stages["diffusion"], data=data)
    return prepare(config, stage, tmp_path, make_mesh(MeshConfig(), jax.devices()[:1]), OPTIONS)


@pytest.mark.parametrize("finished", [True, False])
def test_mended_captions_are_not_taken_from_an_old_encoding(
    tmp_path: Path, data: DataConfig, finished: bool
) -> None:
    job, out = job_of(tmp_path, data), tmp_path / "out"
    if finished:
        out.mkdir()
        (out / INFO).write_text(json.dumps(job.info.to_json()))
    else:
        from mvader_jax.precompute.encode import _begin

        _begin(out, job)
    assert job_of(tmp_path, data).info == job.info
    write(tmp_path, ["a cat", "a wolf", "a horse"])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    message = (
        "holds an encoded set of other data" if finished else "holds an unfinished encoding of other data"
    )
    with pytest.raises(UserError, match=message):
        encode(micro.nano_config(), "diffusion", data, out, mesh, workdir=tmp_path, options=OPTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 0}, "shard_size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sample": -1}, "sample is -1"),
    ],
)
def test_numbers_have_bounds(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**changes)  # type: ignore[arg-type]


def test_the_command_says_that_a_set_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = EncodedInfo((2, 8, 8, 4), None, 64, 0, {"train": 9, "validation": 1}, 4096, {}, {})

    def encoded(*_: object, **__: object) -> tuple[EncodedInfo, Check]:
        (tmp_path / INFO).touch()
        return info, Check(1, 0.0)

    monkeypatch.setattr("mvader_jax.precompute.encode.encode", encoded)
    for said in (str(tmp_path), f"{tmp_path} is already encoded, from the same data by the same models"):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "encode", "tiny", "scenes", str(tmp_path)])
        assert not stopped.value.code
        assert capsys.readouterr().out.splitlines()[-1] == said
