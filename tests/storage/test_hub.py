"""The Hugging Face hub as a source and as a place for bundles, against a server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as constants
import numpy as np
import pytest
import twins
from hub_server import Hub

from mvader_jax.cli.main import main
from mvader_jax.convert.files import fetch, needed
from mvader_jax.errors import UserError
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import load_bundle
from mvader_jax.storage.bundle_config import ASSETS, read_config
from mvader_jax.storage.hub import Address, names_below, parse


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small stand-ins for the public repositories, with files beside them that no conversion reads."""
    folder = tmp_path_factory.mktemp("public")
    sd = twins.save_diffusers(folder / "sd", twins.unet(), twins.vae(), twins.clip_text())
    for name in ("unet", "vae"):
        weights = (sd / name / "diffusion_pytorch_model.safetensors").read_bytes()
        (sd / name / "diffusion_pytorch_model.bin").write_bytes(b"\x80 not to be read" * 100)
        (sd / name / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights)
    (sd / "safety_checker").mkdir()
    (sd / "safety_checker" / "model.safetensors").write_bytes(b"never" * 1000)
    (sd / "safety_checker" / "config.json").write_text("{}")
    (sd / "README.md").write_text("x" * 2000)
    gptj = twins.gptj()
    folder_j = twins.save_folder(folder / "gptj", gptj.state_dict(), gptj.config.to_dict(), shards=3)
    for name in ("flax_model.msgpack", "tf_model.h5", "pytorch_model.bin"):
        (folder_j / name).write_bytes(b"never" * 1000)
    return {"sd": sd, "gptj": folder_j}


def test_addresses() -> None:
    assert parse("hf:a/b") == Address("a/b")
    assert parse("hf:a/b@refs/pr/6") == Address("a/b", "", "refs/pr/6")
    assert parse("hf:a/b.c/folder/file.pt@v1") == Address("a/b.c", "folder/file.pt", "v1")
    assert str(parse("hf:a/b/file.pt@v1")) == "hf:a/b/file.pt@v1"
    for wrong in ("hf:", "hf:a", "hf:a/", "hf:/b", "hf:a/b@", "hf:a/../b", "hf:a/b/../../c", "hf://a/b"):
        with pytest.raises(UserError, match="no address of the hub; accepted: hf:ORG/NAME"):
            parse(wrong)


def test_a_pipeline_is_converted_from_the_hub(
    hub: Hub, public: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add("CompVis/stable-diffusion-v1-4", public["sd"])
    assert run("convert", "hf:CompVis/stable-diffusion-v1-4", tmp_path / "sd14") == 0
    out = capsys.readouterr()
    assert "hf:CompVis/stable-diffusion-v1-4 is stable-diffusion" in out.out
    assert "files, 0.00 GB, of hf:CompVis/stable-diffusion-v1-4" in out.err
    assert hub.fetched() == [
        "model_index.json",
        "safety_checker/config.json",
        "scheduler/scheduler_config.json",
        *(f"text_encoder/{name}" for name in ("config.json", "model.safetensors")),
        *(f"{part}/{name}" for part in ("unet", "vae") for name in ("config.json", "diffusion_pytorch_model.safetensors")),
    ]  # fmt: skip
    record = read_config(tmp_path / "sd14")["components"]["unet"]
    assert record["source"] == f"hf:CompVis/stable-diffusion-v1-4@{commit}"
    assert run("convert", public["sd"], tmp_path / "local") == 0
    assert read_config(tmp_path / "local")["components"]["unet"]["sha256"] == record["sha256"]

    # What is there is not fetched again, nor announced.
    hub.asked.clear()
    assert run("convert", "hf:CompVis/stable-diffusion-v1-4", tmp_path / "again") == 0
    assert hub.fetched() == [] and "downloading" not in capsys.readouterr().err


def test_variants_shards_and_single_files(hub: Hub, public: dict[str, Path]) -> None:
    hub.add("CompVis/sd", public["sd"])
    with pytest.raises(
        UserError, match=r"hf:CompVis/sd/.* has no weights of variant 'bf16'; pass --variant with"
    ):
        fetch(Path("hf:CompVis/sd"), "bf16")
    assert hub.fetched() == []
    fetch(Path("hf:CompVis/sd"), "fp16")
    assert [name for name in hub.fetched() if name.endswith(("safetensors", "bin"))] == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]

    hub.add("EleutherAI/gpt-j-6b", public["gptj"], "float16")
    found = fetch(Path("hf:EleutherAI/gpt-j-6b@float16"), None)
    assert sorted(file.name for file in found.path.iterdir()) == [
        "config.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    hub.add("Aleph-Alpha/magma-research", {"magma_demo.pt": b"a" * 2000, "README.md": b"x"})
    assert fetch(Path("hf:Aleph-Alpha/magma-research"), None).path.is_dir()
    assert hub.fetched()[-1] != "README.md"
    hub.add("CompVis/original", {"sd-v1-4.ckpt": b"a" * 2000, "sd-v1-4-full-ema.ckpt": b"b" * 2000})
    with pytest.raises(UserError, match=r"it has sd-v1-4-full-ema.ckpt, sd-v1-4.ckpt: name one"):
        fetch(Path("hf:CompVis/original"), None)
    file = fetch(Path("hf:CompVis/original/sd-v1-4.ckpt"), None)
    assert file.path.read_bytes() == b"a" * 2000 and file.origin.startswith(
        "hf:CompVis/original/sd-v1-4.ckpt@"
    )
    with pytest.raises(
        UserError, match=r"hf:CompVis/original has no file x.ckpt; it has sd-v1-4-full-ema.ckpt, sd"
    ):
        fetch(Path("hf:CompVis/original/x.ckpt"), None)


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "a.h5"], None, ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack", "rust_model.ot"], None, ["pytorch_model.bin"]),
        (
            [
                "m.md",
                "model.safetensors.index.json",
                "model-00001-of-00001.safetensors",
                "model.fp16.safetensors",
            ],
            None,
            ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
        ),
        (
            [
                *("model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"),
                *("model.fp16-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"),
                "model.safetensors.index.json",
            ],
            "fp16",
            [
                *("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
                "model.safetensors.index.fp16.json",
            ],
        ),
    ],
)
def test_what_is_needed(names: list[str], variant: str | None, chosen: list[str]) -> None:
    small = ["config.json", "vocab.json", "merges.txt"]
    assert needed([*names, *small], variant, "here") == sorted([*chosen, *small])


def test_a_bundle_is_loaded_from_the_hub(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add("me/tiny", ASSETS / "tiny", "v1")
    pipe = Pipeline.load("hf:me/tiny@v1", cache=False, fast=None)
    here = load_bundle("tiny")
    for name, tree in here.components.items():
        for a, b in zip(_leaves(tree), _leaves(pipe.bundle.components[name]), strict=True):
            np.testing.assert_array_equal(a, b)
    assert pipe.bundle.tokenizer is not None
    assert run("bundle", "hf:me/tiny@v1", "--describe") == 0
    assert "decoder: 1,397,952 parameters" in capsys.readouterr().out
    hub.add("me/other", {"config.json": b"{}", "model.safetensors": b"x" * 2000})
    with pytest.raises(UserError, match=r"hf:me/other is no bundle of mvader; .* with `mvader convert`"):
        Pipeline.load("hf:me/other")


def _leaves(tree: object) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_components_of_a_bundle_on_the_hub_are_composed(hub: Hub, tmp_path: Path) -> None:
    hub.add("me/tiny", ASSETS / "tiny")
    assert run("bundle", tmp_path / "out", "--vae", "hf:me/tiny", "--unet", ASSETS / "tiny") == 0
    files = [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()]
    assert files and not any(path.is_symlink() for path in files)
    shutil.rmtree(constants.HF_HUB_CACHE)
    here, there = (load_bundle(name, components=["vae"]) for name in ("tiny", tmp_path / "out"))
    for a, b in zip(_leaves(here.components), _leaves(there.components), strict=True):
        np.testing.assert_array_equal(a, b)


def test_offline_the_cache_serves(
    hub: Hub, public: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("EleutherAI/gpt-j-6b", public["gptj"])
    online = fetch(Path("hf:EleutherAI/gpt-j-6b"), None)
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(Path("hf:EleutherAI/gpt-j-6b"), None) == online
    with pytest.raises(
        UserError, match=r"HF_HUB_OFFLINE is set, and hf:some/thing is not in the cache .*cache"
    ):
        fetch(Path("hf:some/thing"), None)
    with pytest.raises(
        UserError, match=r"HF_HUB_OFFLINE is set, and hf:EleutherAI/gpt-j-6b@v9 is not in the cache"
    ):
        fetch(Path("hf:EleutherAI/gpt-j-6b@v9"), None)
    with pytest.raises(
        UserError, match=r"holds not all of hf:EleutherAI/gpt-j-6b/tf_model.h5: .* has no file tf_model"
    ):
        fetch(Path("hf:EleutherAI/gpt-j-6b/tf_model.h5"), None)
    for file in online.path.glob("model*"):
        file.unlink()
    with pytest.raises(UserError, match=r"holds not all of hf:EleutherAI/gpt-j-6b: .* holds no weights"):
        fetch(Path("hf:EleutherAI/gpt-j-6b"), None)
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"http://127.0.0.1:9 cannot be reached, and hf:some/thing is not in the cache"
    ):
        fetch(Path("hf:some/thing"), None)


def test_a_connection_that_breaks_goes_on_where_it_stopped(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    content = bytes(range(256)) * 400
    hub.add("me/large", {"model.safetensors": content})
    hub.cut["model.safetensors"] = 40_000
    assert (fetch(Path("hf:me/large"), None).path / "model.safetensors").read_bytes() == content
    (asked,) = hub.ranges
    start = int(asked.rpartition("=")[2].rstrip("-"))
    assert 0 < start <= 40_000


def test_each_refusal_is_one_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = {"model.safetensors": b"x" * 2000}
    hub.add("me/private", files, private=True)
    hub.add("me/gated", files, gated=True)
    hub.add("me/open", files)

    def refused(source: str) -> str:
        assert run("convert", source, tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert said.startswith("mvader: ") and said.count("\n") == 1 and "Traceback" not in said
        assert not (tmp_path / "out").exists()
        return said

    (tmp_path / "there").mkdir()
    assert run("convert", "hf:me/open", tmp_path / "there") == 2
    assert "there exists already" in capsys.readouterr().err and hub.asked == []

    assert "hf:me/open has no revision 'v7'" in refused("hf:me/open@v7")
    assert "the hub has no hf:me/absent that is open to you: check the name" in refused("hf:me/absent")
    assert "is no address of the hub" in refused("hf:me")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert "the hub does not take the token that it was sent for hf:me/open" in refused("hf:me/open")
    monkeypatch.delenv("HF_TOKEN")
    assert "hf:me/private that is open to you" in refused("hf:me/private")
    assert f"is gated: accept its terms at {hub.url}/me/gated, then log in with `hf auth login`" in refused(
        "hf:me/gated"
    )
    hub.status = 500
    assert "the hub answered 500 for hf:me/open" in refused("hf:me/open")
    hub.status = None
    monkeypatch.setattr("mvader_jax.storage.hub.shutil.disk_usage", lambda _: type("Use", (), {"free": 100}))
    assert "needs 0.00 GB, but the disk of the cache" in refused("hf:me/open")


def test_the_environment_is_heeded(hub: Hub, public: dict[str, Path], tmp_path: Path) -> None:
    """Of a process of its own: HF_ENDPOINT, HF_HOME; and the package itself does not load the library."""
    hub.add("EleutherAI/gpt-j-6b", public["gptj"])
    code = (
        "import sys, mvader_jax\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "from pathlib import Path\n"
        "from mvader_jax.convert.files import fetch\n"
        "print(fetch(Path('hf:EleutherAI/gpt-j-6b'), None, quiet=True).path)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")
    assert json.loads((Path(done.stdout.strip()) / "config.json").read_text())["n_layer"] == 3


def test_what_is_pushed_loads_again_bitwise(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("push", "tiny", "me/mine", "--license", "apache-2.0", "--private") == 0
    commit = hub.repositories["me/mine"].branches["main"]
    assert capsys.readouterr().out == f"pushed to hf:me/mine@{commit}\n"
    assert hub.repositories["me/mine"].private
    here, there = load_bundle("tiny"), Pipeline.load("hf:me/mine", cache=False, fast=None).bundle
    assert (here.model, here.records) == (there.model, there.records)
    assert here.components.keys() == there.components.keys()
    for a, b in zip(_leaves(here.components), _leaves(there.components), strict=True):
        np.testing.assert_array_equal(a, b)
    files = hub.repositories["me/mine"].commits[commit]
    card = files["README.md"].decode()
    for text in (
        "license: apache-2.0\n",
        'mv.Pipeline.load("hf:me/mine")',
        "| unet | 3,148,468 | bfloat16 |",
        "- draws\n",
    ):
        assert text in card
    assert files.keys() - {".gitattributes", "README.md"} == set(names_below(ASSETS / "tiny"))

    # Again, in place: what the bundle no longer has goes, a card of one's own stays.
    files = {**files, "unet/stale": b"x", "README.md": b"my own card", "samples/grid.png": b"mine"}
    hub.repositories["me/mine"].commit(files)
    assert run("push", "tiny", "hf:me/mine", "--license", "apache-2.0") == 0
    files = hub.repositories["me/mine"].commits[hub.repositories["me/mine"].branches["main"]]
    assert "unet/stale" not in files and files["README.md"] == b"my own card"
    assert files["samples/grid.png"] == b"mine"
    assert "hf:me/mine has a README.md of its own, which is kept" in capsys.readouterr().err
    assert run("push", "tiny", "me/mine", "--license", "mit", "--revision", "v2") == 0
    assert set(hub.repositories["me/mine"].branches) == {"main", "v2"}


def test_what_is_not_pushed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("me/weights", {"model.safetensors": b"x" * 2000})
    hub.add("me/gpt", {"config.json": b'{"n_layer": 3}', "model.safetensors": b"x" * 2000})
    hub.add("me/public", {"README.md": b""})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 3}')
    shutil.copytree(ASSETS / "tiny", tmp_path / "damaged")
    (tmp_path / "damaged" / "unet" / "_METADATA").unlink()
    cases = [
        (("tiny", "me/new"), "say under which licence the weights are, with --license"),
        (("tiny", "me/new", "--license", "My Licence"), "'My Licence' is no name of a licence on the hub"),
        (("tiny", "new", "--license", "mit"), "'hf:new' is no address of the hub"),
        ((tmp_path / "model", "me/new", "--license", "mit"), "is not a bundle config"),
        ((tmp_path / "damaged", "me/new", "--license", "mit"), "unet is not a whole checkpoint"),
        ((tmp_path / "none", "me/new", "--license", "mit"), "no bundle"),
        (("tiny", "me/weights", "--license", "mit"), "holds something else than a bundle: model.safetensors"),
        (
            ("tiny", "me/gpt", "--license", "mit"),
            "something else than a bundle: config.json, model.safetensors",
        ),
        (("tiny", "me/public", "--license", "mit", "--private"), "hf:me/public exists and is public"),
    ]
    before = {name: dict(repository.branches) for name, repository in hub.repositories.items()}

    def refused(*arguments: object) -> str:
        assert run("push", *arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "Traceback" not in said
        return said

    for arguments, reason in cases:
        assert reason in refused(*arguments)
    monkeypatch.setenv("HF_TOKEN", "hf_that_reads")
    hub.readers.add("hf_that_reads")
    assert "the token that was sent may not do this with hf:me/new" in refused(
        "tiny", "me/new", "--license", "mit"
    )
    monkeypatch.delenv("HF_TOKEN")
    assert "log in with `hf auth login`, or set HF_TOKEN" in refused("tiny", "me/new", "--license", "mit")
    assert {name: dict(repository.branches) for name, repository in hub.repositories.items()} == before
