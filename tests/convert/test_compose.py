"""Components of several bundles put together; bundles that lack some; what a bundle says of itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import twins
from converting import convert

from mvader_jax.cli._loading import load_pipeline
from mvader_jax.cli.main import main
from mvader_jax.convert.compose import compose
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import TokenizerConfig, train_tokenizer
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle
from mvader_jax.storage.bundle_config import read_config
from mvader_jax.storage.describe import describe, origin

S_MAGMA = ("decoder", "adapters", "image_prefix", "image_encoder")


@dataclasses.dataclass
class Public:
    """Bundles of the public files: MAGMA, SGPT's biases, Stable Diffusion; and GPT-2's kind of vocabulary."""

    magma: Path
    sgpt: Path
    sd: Path
    tokenizer: Path

    def v2(self) -> dict[str, Path]:
        """What `configs/open_s_magma.py` puts together."""
        parts = dict.fromkeys(S_MAGMA, self.magma)
        return {**parts, "biases": self.sgpt, "unet": self.sd, "vae": self.sd}


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Public:
    folder = tmp_path_factory.mktemp("public")
    gptj, magma = twins.gptj(vocab_size=280), twins.magma(1, vocab_size=280)
    vocabulary = folder / "vocabulary"
    train_tokenizer(["a photo of a red circle"] * 3, 280).save(vocabulary)
    base = twins.save_folder(folder / "gptj", gptj.state_dict(), gptj.config.to_dict())
    bitfit = twins.save_folder(folder / "bitfit", twins.finetuned(gptj), gptj.config.to_dict())
    convert(twins.save_magma(folder / "magma", magma), folder / "m", tokenizer=vocabulary)
    convert(bitfit, folder / "b", base=base)
    convert(twins.save_diffusers(folder / "sd", twins.unet(), twins.vae(), twins.clip_text()), folder / "s")
    return Public(folder / "m", folder / "b", folder / "s", vocabulary)


def options(parts: dict[str, Path]) -> list[str]:
    return [item for name, path in parts.items() for item in (f"--{name.replace('_', '-')}", str(path))]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_open_s_magma(public: Public, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The start of V2's training (paper, table 1): all parts, and a UNet that attends to wider states."""
    out = tmp_path / "v2"
    assert run("bundle", out, *options(public.v2())) == 0
    said = capsys.readouterr().out
    # 36 wide states of CLIP become 48 wide ones of the decoder; two up, one down and one in the middle.
    assert (
        "the UNet's cross-attention was 36 wide and the hidden states are 48: 8 matrices attn2 to_k and to_v "
        "are freshly initialised and need training"
    ) in said

    bundle = load_bundle(out)
    assert set(bundle.components) == set(public.v2())
    assert bundle.model.unet is not None and bundle.model.unet.cross_attention_dim == 48
    assert bundle.model.embedder == "s_magma" and bundle.model.text_encoder is None
    for name, path in public.v2().items():
        if name != "unet":
            assert bundle.records[name] == read_config(path)["components"][name]
    before = flat(load_bundle(public.sd, components=["unet"]).components["unet"])
    after = flat(bundle.components["unet"])
    assert before.keys() == after.keys()
    fresh = {path for path in after if after[path].shape != before[path].shape}
    assert len(fresh) == 8 and all("/attn2/to_k/" in path or "/attn2/to_v/" in path for path in fresh)
    for path in after:
        if path in fresh:
            # Of unit gain, and no two alike.
            assert after[path].shape == (48, before[path].shape[1])
            assert 0.8 < float(np.std(after[path])) * 48**0.5 < 1.2
        else:
            np.testing.assert_array_equal(after[path], before[path])
    firsts = [float(after[path][0, 0]) for path in fresh]
    assert len(set(firsts)) == len(firsts)

    pipe = Pipeline(bundle)
    picture = np.random.default_rng(0).integers(0, 256, (70, 99, 3)).astype(np.uint8)
    hidden = np.asarray(pipe.embed(["a red circle", picture]).hidden)
    assert hidden.shape[2] == 48 and bool(np.all(np.isfinite(hidden)))


def test_seed_of_the_fresh_matrices(public: Public, tmp_path: Path) -> None:
    hashes = []
    for number, seed in enumerate((3, 3, 4)):
        compose(
            tmp_path / str(number), {"decoder": public.magma, "unet": public.sd, "vae": public.sd}, seed=seed
        )
        record = read_config(tmp_path / str(number))["components"]["unet"]
        assert record["fresh"] == f"attn2 to_k, to_v from seed {seed}"
        hashes.append(record["sha256"])
    assert hashes[0] == hashes[1] != hashes[2]
    # A UNet whose width fits is left as it is.
    notes = compose(tmp_path / "again", {"decoder": public.magma, "unet": tmp_path / "0", "vae": public.sd})
    assert notes == ()
    assert read_config(tmp_path / "again")["components"]["unet"]["sha256"] == hashes[0]


def test_v1_has_no_adapters(public: Public, tmp_path: Path) -> None:
    parts = {name: path for name, path in public.v2().items() if name != "adapters"}
    compose(tmp_path / "v1", parts)
    bundle = load_bundle(tmp_path / "v1", components=["decoder", "biases"])
    assert bundle.model.adapters is None
    hidden = Pipeline(bundle).embed("a red circle").hidden
    # The semantic biases act: without them the states are others.
    del bundle.components["biases"]
    assert float(np.abs(hidden - Pipeline(bundle).embed("a red circle").hidden).max()) > 1e-2


def test_a_bundle_may_lack_components(public: Public, tmp_path: Path) -> None:
    compose(tmp_path / "text", {"decoder": public.magma, "biases": public.sgpt})
    pipe = Pipeline.load(tmp_path / "text", cache=False)
    assert pipe.embed("a red circle").hidden.shape[2] == 48
    with pytest.raises(UserError, match="this bundle has no unet and no vae; it holds biases, decoder"):
        pipe("a red circle")
    with pytest.raises(UserError, match="takes text only, but the prompt holds an image"):
        pipe.embed([np.zeros((32, 32, 3), np.uint8)])
    with pytest.raises(UserError, match="has no vae"):
        pipe.decode(np.zeros((1, 8, 8, 4), np.float32))

    compose(tmp_path / "prefix", {"adapters": public.magma, "image_prefix": public.magma})
    pipe = Pipeline.load(tmp_path / "prefix", cache=False)
    with pytest.raises(UserError, match="has no tokenizer"):
        pipe.embed("a red circle")
    batch = load_bundle(public.magma).to_batch(["a red circle"])
    with pytest.raises(UserError, match=r"needs the component 'decoder'; there are: adapters, image_prefix"):
        pipe._embed(pipe.bundle.components, batch)

    compose(tmp_path / "pictures", {"unet": public.sd, "vae": public.sd})
    pipe = Pipeline.load(tmp_path / "pictures", cache=False)
    assert pipe.decode(np.zeros((1, 2, 2, 4), np.float32)).shape == (1, 8, 8, 3)
    with pytest.raises(UserError, match="has no tokenizer"):
        pipe("a red circle")


def test_which_embedder(public: Public, tmp_path: Path) -> None:
    parts = {"decoder": public.magma, "text_encoder": public.sd, "unet": public.sd}
    (note, fresh) = compose(tmp_path / "both", parts)
    assert "the text encoder is carried along unused" in note and "freshly initialised" in fresh
    (note,) = compose(tmp_path / "clip", parts, embedder="clip_text")
    assert note == "prompts go through the text encoder (clip_text); the decoder is carried along unused"
    model = load_bundle(tmp_path / "clip", components=[]).model
    assert model.embedder == "clip_text" and model.unet is not None
    assert model.unet.cross_attention_dim == 36
    with pytest.raises(UserError, match="unknown embedder 'bert'; accepted: s_magma, clip_text"):
        compose(tmp_path / "x", parts, embedder="bert")


def test_tokenizer_of_another_place(public: Public, tmp_path: Path) -> None:
    for number, given in enumerate((public.tokenizer, public.magma)):
        compose(tmp_path / str(number), {"decoder": public.magma}, tokenizer=given)
        bundle = load_bundle(tmp_path / str(number), components=[])
        assert bundle.tokenizer is not None
        assert bundle.model.tokenizer == TokenizerConfig(eos_id=0, max_positions=64)
    with pytest.raises(UserError, match="has no tokenizer"):
        compose(tmp_path / "x", {"decoder": public.magma}, tokenizer=public.sgpt)


def changed(bundle: Path, out: Path, name: str, **fields: Any) -> Path:
    """A bundle of random parameters like another's, some numbers of one config different."""
    from mvader_jax.models.components import abstract_components

    model = load_bundle(bundle, components=[]).model
    model = dataclasses.replace(model, **{name: dataclasses.replace(getattr(model, name), **fields)})
    shapes, _ = abstract_components(model, [name])
    save_bundle(out, Bundle(model, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)))
    return out


def test_components_that_do_not_belong_together(public: Public, tmp_path: Path) -> None:
    wide = changed(public.magma, tmp_path / "wide", "image_prefix", width=50)
    thin = changed(public.magma, tmp_path / "thin", "image_prefix", in_width=100)
    latent = changed(public.sd, tmp_path / "latent", "vae", latent_channels=3)
    inpainting = changed(public.sd, tmp_path / "inpainting", "unet", in_channels=9)
    shallow = changed(public.magma, tmp_path / "shallow", "decoder", num_layers=2)
    cases: list[tuple[dict[str, Path], str]] = [
        ({**public.v2(), "image_prefix": wide}, "image prefix's width is 50, but the decoder's width 48"),
        ({**public.v2(), "image_prefix": thin}, "input is 100, but the image encoder's output 384"),
        ({"unet": public.sd, "vae": latent}, "UNet's channels is 4, but the VAE's latent channels 3"),
        ({"unet": inpainting}, "UNet's input is 9, but the UNet's output 4"),
        ({"decoder": shallow, "adapters": public.magma}, "adapters of .* does not fit"),
        ({"decoder": shallow, "biases": public.sgpt}, "biases of .* does not fit"),
        ({"unet": public.magma}, "has no unet; it holds adapters, decoder"),
        ({"decoder": tmp_path / "absent"}, "no bundle .*absent"),
        ({}, "no components were given; pass some of: --decoder, --biases"),
    ]
    for parts, reason in cases:
        with pytest.raises(UserError, match=reason):
            compose(tmp_path / "out", parts)
        assert not (tmp_path / "out").exists()


def test_describe(public: Public, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compose(tmp_path / "some", {"biases": public.sgpt, "adapters": public.magma, "unet": public.sd})
    assert run("bundle", tmp_path / "some", "--describe") == 0
    lines = capsys.readouterr().out.splitlines()
    records = read_config(tmp_path / "some")["components"]
    adapters = 3 * (48 * 12 + 12 + 12 * 48 + 48)
    total = sum(record["parameters"] for record in records.values())
    nbytes = sum(file.stat().st_size for file in (tmp_path / "some").rglob("*") if file.is_file())
    assert lines[:6] == [
        "draws nothing: it has no decoder and no vae",
        "embedder s_magma",
        f"{total:,} parameters, {nbytes / 1e6:.1f} MB",
        f"adapters: {adapters:,} parameters, float32",
        "  from kind magma; source mp_rank_00_model_states.pt; files mp_rank_00_model_states.pt",
        f"  sha256 {records['adapters']['sha256']}",
    ]
    assert lines[6] == f"biases: {3 * (48 + 100 + 48) + 48:,} parameters, float32"
    assert lines[7].startswith("  from kind sgpt-biases; source bitfit; files model.safetensors")
    assert len(lines) == 12 and lines[9].startswith("unet: ")
    assert run("bundle", tmp_path / "some", "--describe", "--json") == 0
    assert json.loads(capsys.readouterr().out)["components"] == records
    assert run("bundle", tmp_path / "x", "--unet", public.sd, "--json") == 2
    assert "--json does nothing for components put together" in capsys.readouterr().err
    assert run("bundle", tmp_path / "some", "--describe", "--unet", public.sd) == 2
    assert "does nothing for --describe" in capsys.readouterr().err
    assert run("bundle", tmp_path / "some", "--verify", "--overwrite") == 2
    assert "--overwrite does nothing for --verify" in capsys.readouterr().err
    assert run("bundle", tmp_path / "none", "--describe") == 2
    assert "no bundle" in capsys.readouterr().err


def test_what_a_bundle_can_do(
    public: Public, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert describe(public.sd).lines()[:2] == [
        "draws",
        "embedder clip_text of texts, prompts of up to 20 tokens, pictures of 32 x 32",
    ]
    assert describe(public.magma).lines()[:2] == [
        "embeds only: it has no unet and no vae",
        "embedder s_magma of texts and pictures, prompts of up to 64 tokens",
    ]
    compose(tmp_path / "v2", public.v2())
    fresh = "the UNet's cross-attention is freshly initialised: until it is trained, it draws noise"
    assert describe(tmp_path / "v2").can == f"will draw noise: {fresh}"
    assert "fresh attn2 to_k, to_v from seed 0" in origin(describe(tmp_path / "v2").components["unet"])

    # Sampling says so, once, on stderr.
    monkeypatch.setattr(
        Pipeline, "load", lambda *_, **__: Pipeline(load_bundle(tmp_path / "v2", components=["unet"]))
    )
    monkeypatch.setattr(Pipeline, "__init__", lambda self, bundle: setattr(self, "bundle", bundle))
    load_pipeline("runs/v2")
    assert capsys.readouterr().err == f"runs/v2: {fresh}\n"

    text = repr(load_bundle(public.magma))
    assert len(text) < 300 and text.startswith("Bundle(s_magma; parameters: adapters 3,636, decoder ")


def test_a_composed_bundle_shares_its_files_and_stands_alone(
    public: Public, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(public.sd, tmp_path / "sd")
    compose(tmp_path / "out", {"vae": tmp_path / "sd", "text_encoder": tmp_path / "sd"})

    def files(bundle: Path) -> dict[str, Path]:
        folder = bundle / "vae"
        return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    first, second = files(tmp_path / "sd"), files(tmp_path / "out")
    assert first.keys() == second.keys()
    assert all(first[name].stat().st_ino == second[name].stat().st_ino for name in first)
    before = flat(load_bundle(tmp_path / "out").components)

    # What replaces the source, or removes it, leaves the other whole.
    compose(tmp_path / "sd", {"vae": tmp_path / "out"}, overwrite=True)
    save_bundle(tmp_path / "sd", changed_values(load_bundle(tmp_path / "out")), overwrite=True)
    shutil.rmtree(tmp_path / "sd")
    after = flat(load_bundle(tmp_path / "out").components)
    assert all(np.array_equal(before[name], after[name]) for name in before)

    def no_link(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", no_link)
    compose(tmp_path / "copy", {"vae": tmp_path / "out"})
    copied = files(tmp_path / "copy")
    assert all(
        copied[name].stat().st_ino != path.stat().st_ino for name, path in files(tmp_path / "out").items()
    )
    assert np.array_equal(
        flat(load_bundle(tmp_path / "copy").components)["vae/decoder/conv_in/bias"],
        before["vae/decoder/conv_in/bias"],
    )


def changed_values(bundle: Bundle) -> Bundle:
    return dataclasses.replace(
        bundle, components=jax.tree.map(lambda leaf: np.asarray(leaf) + 1, bundle.components)
    )


def test_overwriting(public: Public, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compose(out, {"vae": public.sd})
    with pytest.raises(UserError, match="exists already"):
        compose(out, {"unet": public.sd})
    compose(out, {"unet": public.sd}, overwrite=True)
    assert set(json.loads((out / "config.json").read_text())["components"]) == {"unet"}
    # In place, out of itself, as long as nothing of it is lost.
    compose(out, {"unet": out, "vae": public.sd}, overwrite=True)
    with pytest.raises(UserError, match="is a source itself and would lose its vae; name another place"):
        compose(out, {"unet": out}, overwrite=True)
    with pytest.raises(UserError, match="unet is a part of the source"):
        compose(out / "unet", {"unet": out}, overwrite=True)
    assert set(load_bundle(out).components) == {"unet", "vae"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
