"""docs/weights.md from nothing: its commands, in its order, on small files under the public names."""

from __future__ import annotations

import ast
import functools
import io
import json
import os
import signal
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import img2dataset_like
import jax
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import twins
from hub_server import Hub, Repository, read_folder
from pages import commands
from vocabularies import clip_vocabulary

from mvader_jax.cli.main import main
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.prompt.tokenizer import train_tokenizer
from mvader_jax.storage.describe import describe
from mvader_jax.train import loop
from mvader_jax.train.config import load_config
from mvader_jax.train.loop import PREEMPTED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
CONFIGS = [ROOT / "configs" / f"{name}.py" for name in ("open_s_magma", "open_v1", "open_v2")]
WORDS = ["a photo of a lighthouse", "a red circle"] * 3
TRIPLET = {"anchor": ["a"] * 2, "positive": ["b"] * 2, "negative": ["c", "d"]}


def stand_ins(folder: Path, hub: Hub) -> dict[str, bytes]:
    """Puts small models under the public names onto the hub; returns what other servers hold, by address."""
    sd = twins.save_diffusers(folder / "sd", twins.unet(), twins.vae(), twins.clip_text())
    clip_vocabulary(sd / "tokenizer")
    for part in ("unet", "vae"):
        (sd / part / "diffusion_pytorch_model.bin").write_bytes(b"not to be read" * 100)
    hub.add("CompVis/stable-diffusion-v1-4", sd)

    gptj, magma = twins.gptj(vocab_size=280), twins.magma(1, vocab_size=280)
    half = {name: tensor.half() for name, tensor in gptj.state_dict().items()}
    base = twins.save_folder(folder / "gptj", half, gptj.config.to_dict(), kind="bin")
    train_tokenizer(WORDS, 280).save(base)
    hub.add("EleutherAI/gpt-j-6b", {"config.json": b"{}", "flax_model.msgpack": b"never" * 1000})
    hub.add("EleutherAI/gpt-j-6b", base, "float16")
    bitfit = twins.save_folder(folder / "bitfit", twins.finetuned(gptj), gptj.config.to_dict(), kind="bin")
    hub.add("Muennighoff/SGPT-5.8B-weightedmean-nli-bitfit", bitfit)
    file = twins.save_magma(folder / "magma", magma)
    torch.save({**torch.load(file), "skipped": set()}, folder / "magma" / "magma_demo.pt")
    file.unlink()
    hub.add("Aleph-Alpha/magma-research", folder / "magma")

    pyarrow.parquet.write_table(pa.table(TRIPLET), folder / "triplets")
    triplets = {"triplet/train-00000-of-00001.parquet": (folder / "triplets").read_bytes(), "README.md": b"x"}
    hub.datasets["sentence-transformers/all-nli"] = Repository(triplets)

    clip = folder / "RN50x16.pt"
    torch.jit.save(torch.jit.trace(twins.clip(), torch.randn(1, 3, 96, 96)), clip)
    picture = img2dataset_like.jpeg(img2dataset_like.np.random.default_rng(0), 50, 37)
    coco = {
        "images": [{"id": 1, "file_name": "000000000009.jpg"}],
        "annotations": [{"image_id": 1, "id": 2, "caption": "a lighthouse"}],
    }
    return {
        "RN50x16.pt": clip.read_bytes(),
        "train2017.zip": zipped({"train2017/000000000009.jpg": picture}),
        "annotations_trainval2017.zip": zipped(
            {"annotations/captions_train2017.json": json.dumps(coco).encode()}
        ),
    }


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


#: Settings of the stage that is trained, in small.
SMALL = {
    **{"steps": 4, "batch_size": 8, "save_every": 10, "remat": "none", "objective.caption_length": 16},
    **{"optimizer.warmup_steps": 1, "data.image_size": 64, "data.threads": 1},
    **{"dtype": "float32", "frozen_dtype": "float32"},
}


class Shell:
    """Runs the page's commands in the current folder: `mvader` for real, other programs as far as the page uses them.

    The first `mvader train` is told to stop at its second step.
    """

    def __init__(self, files: dict[str, bytes], patch: pytest.MonkeyPatch) -> None:
        self.files, self.patch, self.trained = files, patch, 0
        self.programs: dict[str, Callable[[list[str]], None]] = {
            "mvader": self.mvader,
            "pip": self.pip,
            "curl": self.curl,
            "unzip": self.unzip,
            "img2dataset": self.img2dataset,
        }

    def run(self, words: list[str]) -> None:
        self.programs[words[0]](words[1:])

    def mvader(self, words: list[str]) -> None:
        small, code = ["--steps", "1", "--num-images", "1"] if words[0] == "sample" else [], 0
        if words[0] == "train":
            small = [f"stages.diffusion.{name}={value}" for name, value in SMALL.items()]
            self.trained += 1
            code = PREEMPTED if self.trained == 1 else 0
        with self.patch.context() as within:
            within.setattr(ModelConfig, "open_m_vader", ModelConfig)  # the bundles', which are small
            if words[0] == "train":  # one device costs less than eight
                one = make_mesh(MeshConfig(), jax.devices()[:1])
                within.setattr("mvader_jax.parallel.mesh.open_mesh", lambda text: one)
            if code:
                within.setattr(loop, "train", functools.partial(loop.train, on_step=stop_at_two))
            with pytest.raises(SystemExit) as stopped:
                main([*words, *small])
        assert (stopped.value.code or 0) == code, words

    def pip(self, words: list[str]) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        command, what = words
        name, _, extras = what.removesuffix("]").partition("[")
        assert (command, name) == ("install", project["name"])
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()

    def curl(self, words: list[str]) -> None:
        *flags, address = words
        assert flags == ["-L", "-O"]
        name = address.rpartition("/")[2]
        Path(name).write_bytes(self.files[name])

    def unzip(self, words: list[str]) -> None:
        flag, name = words
        assert flag == "-q"
        zipfile.ZipFile(name).extractall()

    def img2dataset(self, words: list[str]) -> None:
        assert {"pwatermark", "AESTHETIC_SCORE"} <= set(
            json.loads(option(words, "--save_additional_columns"))
        )
        assert option(words, "--output_format") == "webdataset"
        img2dataset_like.make(Path(option(words, "--output_folder")), shards=1, per_shard=4)


def stop_at_two(number: int) -> None:
    if number == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_page_from_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(stand_ins(tmp_path / "public", hub), monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for words in commands(PAGE):
        shell.run(words)
    said, told = capsys.readouterr()

    # Everything that the open configs start from and read.
    wanted = set()
    for config in CONFIGS[1:]:
        for stage in load_config(config).stages.values():
            wanted |= {*stage.init, *getattr(stage.data.source, "paths", ())}
    assert wanted == {
        *(f"bundles/{name}" for name in ("gptj", "clip_rn50x16", "open_v1", "open_s_magma")),
        *("data/nli.jsonl", "data/captions", "data/laion_aesthetics_5plus"),
    }
    assert [path for path in wanted if not Path(path).exists()] == []
    assert json.loads(Path("data/nli.jsonl").read_text())["negatives"] == ["c", "d"]

    start = describe("bundles/open_s_magma")
    assert start.can.startswith("will draw noise") and start.takes == ("texts", "pictures")
    assert start.components.keys() - describe("bundles/open_v1").components.keys() == {"adapters"}
    source = start.components["decoder"]["source"]
    assert source.startswith("hf:Aleph-Alpha/magma-research@")
    decoders = [next(Path(f"bundles/{name}/decoder").rglob("*/0*")) for name in ("magma", "open_s_magma")]
    assert decoders[0].stat().st_ino == decoders[1].stat().st_ino

    # Only what is read was fetched, and many names are told as patterns.
    fetched = set(hub.fetched())
    assert not {name for name in fetched if name.endswith((".msgpack", "diffusion_pytorch_model.bin", ".md"))}
    assert "left out (repeats another tensor, checked equal): transformer.*." in said
    assert max(map(len, said.splitlines())) < 1000
    assert list(Path("outputs").glob("*.png"))

    # The run that was stopped was drawn from, and went on to its end, which is on the hub.
    drawn = [json.loads(line)["bundle"] for line in Path("outputs/manifest.jsonl").read_text().splitlines()]
    assert drawn == ["bundles/sd14", "runs/open_v2/diffusion"]
    assert "told to stop: step 2 is saved" in told
    pushed = hub.repositories["ORG/NAME"].at("main")
    assert pushed is not None and "license: creativeml-openrail-m" in pushed[1]["README.md"].decode()
    trained = describe("runs/open_v2/diffusion/bundle").components["unet"]["trained"]
    assert trained["steps"] == 4


def test_what_the_page_names_is_there(hub: Hub, tmp_path: Path) -> None:
    stand_ins(tmp_path / "public", hub)
    for name in (*hub.repositories, *(f"datasets/{name}" for name in hub.datasets)):
        assert f"`{name}`" in PAGE and f"hf:{name}" in PAGE
    files = read_folder(tmp_path / "public" / "magma")
    assert "magma_demo.pt" in files and "`magma_demo.pt`" in PAGE


@pytest.mark.parametrize(
    "place", [*CONFIGS, ROOT / "README.md", ROOT / "docs" / "convert.md"], ids=lambda path: path.name
)
def test_other_places_make_bundles_as_the_page_does(place: Path) -> None:
    """Whatever names the hub or the page's bundles is a command that the page runs."""
    text: Any = place.read_text(encoding="utf-8")
    if place.suffix == ".py":
        text = ast.get_docstring(ast.parse(text))
    of_page = list(commands(PAGE))
    own = [
        words
        for words in commands(text, "mvader ")
        if words[:2] in (["mvader", "convert"], ["mvader", "bundle"])
    ]
    own = [words for words in own if any(word.startswith(("hf:", "bundles/")) for word in words)]
    assert [words for words in own if words not in of_page] == []
