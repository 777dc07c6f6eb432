"""Drawing with LoRA files: as strongly as is wanted, several at once, and never a second compile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.convert.lora.files import write_lora
from mvader_jax.errors import UserError
from mvader_jax.lora.factors import Factors, Lora, changed, factor_shapes, kernels, largest_rank
from mvader_jax.models.quantised import quantised
from mvader_jax.sampling.batch.requests import read_requests
from mvader_jax.sampling.batch.run import sample_all
from mvader_jax.sampling.lora import Applied, Loras
from mvader_jax.sampling.manifest import read_rows
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.storage.bundle import Bundle, save_bundle


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return micro.bundle(micro.NANO)


def lora_of(bundle: Bundle, seed: int, *components: str) -> Lora:
    random, weights = np.random.default_rng(seed), {}
    for component in components:
        weights[component] = {}
        for path, leaf in kernels(bundle.components[component]).items():
            down, up = (random.normal(0, 0.2, s).astype(np.float32) for s in factor_shapes(leaf.shape, 2))
            layers = leaf.shape[0] if leaf.ndim == 3 else 1
            weights[component][path] = Factors(down, up, (2,) * layers, (np.array(1.0),) * layers)
    return Lora(weights)


@pytest.fixture(scope="module")
def files(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of the UNet, one of the decoder too."""
    folder = tmp_path_factory.mktemp("lora")
    write_lora(folder / "a.safetensors", lora_of(bundle, 0, "unet"), bundle.model)
    write_lora(folder / "b.safetensors", lora_of(bundle, 1, "unet", "decoder"), bundle.model)
    return folder / "a.safetensors", folder / "b.safetensors"


def draw(pipe: Pipeline) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pipe("a red circle", steps=2, num_images=1, seed=1)])


def test_strengths_and_compiles(bundle: Bundle, files: tuple[Path, Path]) -> None:
    pipe = Pipeline(bundle)
    plain = draw(pipe)
    pipe.use_lora(files[0])
    strong = draw(pipe)
    assert pipe._loras is not None
    assert not np.array_equal(plain, strong)
    compiled = pipe.compiled, pipe._loras.compiled
    assert compiled[0] == 1
    drawn = []
    for strength in ("0", "0.5", "-1", "1"):
        pipe.use_lora(f"{files[0]}@{strength}")
        drawn.append(draw(pipe))
    assert (pipe.compiled, pipe._loras.compiled) == compiled
    np.testing.assert_array_equal(drawn[0], plain)
    np.testing.assert_array_equal(drawn[3], strong)
    assert len({picture.tobytes() for picture in drawn}) == 4
    assert pipe("a", steps=1, num_images=1)[0].info["mvader"]["lora"] == ["a.safetensors@1"]
    pipe.use_lora()
    np.testing.assert_array_equal(draw(pipe), plain)
    assert "lora" not in pipe("a", steps=1, num_images=1)[0].info["mvader"]


def test_several_are_added(bundle: Bundle, files: tuple[Path, Path]) -> None:
    both = Loras(bundle).with_files([Applied(files[0], 0.5), Applied(files[1], 2.0)])
    first, second = lora_of(bundle, 0, "unet"), lora_of(bundle, 1, "unet", "decoder")
    found = flatten_dict(both.components["unet"], sep="/")
    for path, weight in kernels(bundle.components["unet"]).items():
        one, other = first.weights["unet"][path], second.weights["unet"][path]
        expected = weight + 0.25 * (one.down @ one.up) + 1.0 * (other.down @ other.up)
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-5)
    changed_decoder = flatten_dict(both.components["decoder"], sep="/")
    for path, weight in flatten_dict(bundle.components["decoder"], sep="/").items():
        assert np.array_equal(changed_decoder[path], weight) == (not path.endswith("kernel")), path
    for mine, old in zip(*(jax.tree.leaves(b.components["vae"]) for b in (both, bundle)), strict=True):
        assert mine is old


def test_a_lora_may_distil_a_unet(bundle: Bundle, files: tuple[Path, Path]) -> None:
    """LCM's: `lcm` draws with a UNet that it changed, guided from outside, and with no other."""
    changed_unet = Loras(bundle).with_files([Applied(files[0])])
    settings = SamplingSettings(sampler="lcm", steps=2, guidance_scale=1.0)
    assert changed_unet.changed and not bundle.changed
    assert settings.static(bundle.model, changed=True).sampler == "lcm"
    with pytest.raises(UserError, match="this one was not"):
        settings.static(bundle.model, changed=bundle.changed)
    (picture,) = Pipeline(changed_unet)("a", settings, num_images=1)
    assert picture.size == (8, 8)


def test_a_convolutions_factors_are_two_convolutions() -> None:
    random = np.random.default_rng(0)
    weight, down, up = (
        random.normal(size=s).astype(np.float32) for s in ((3, 3, 4, 5), (3, 3, 4, 2), (2, 5))
    )
    x = random.normal(size=(1, 6, 6, 4)).astype(np.float32)

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    whole = conv(x, changed(weight, down, up, 0.3))
    np.testing.assert_allclose(whole, conv(x, weight) + 0.3 * conv(x, down) @ up, rtol=1e-4, atol=1e-4)
    assert largest_rank((3, 3, 4, 50)) == 36 and largest_rank((7, 9, 4)) == 4 and largest_rank((5, 3)) == 3


def test_names_of_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert Applied.of(f"{files[0]}@0.8") == Applied(files[0], 0.8) and Applied.of(files[0]) == Applied(
        files[0]
    )
    odd = tmp_path / "x@2"
    odd.write_bytes(files[0].read_bytes())
    assert Applied.of(odd) == Applied(odd) and Applied.of(f"{odd}@-1") == Applied(odd, -1.0)
    refused = {
        f"{files[0]}@x": "expected a number",
        f"{files[0]}@nan": "expected a number",
        "none.safetensors": "does not exist",
        "@0.5": "is named by '@0.5'",
        3: "expected FILE",
    }
    for wrong, said in refused.items():
        with pytest.raises(UserError, match=said):
            Applied.of(wrong)
    with pytest.raises(UserError, match="expected a list of files"):
        Pipeline.load("tiny", lora=str(files[0]))  # type: ignore[arg-type]


def test_what_a_bundle_lacks_is_said(bundle: Bundle, files: tuple[Path, Path]) -> None:
    alone = dataclasses.replace(bundle, components={"unet": bundle.components["unet"]})
    with pytest.raises(UserError, match="changes the decoder, and this bundle has none"):
        Loras(alone).with_files([Applied(files[1])])
    integers = dataclasses.replace(bundle, components=quantised(bundle.components, "int8"))
    with pytest.raises(UserError, match="kept as integers"):
        Loras(integers).with_files([Applied(files[1])])


def test_a_file_of_prompts_is_drawn_anew_with_another_strength(
    bundle: Bundle, files: tuple[Path, Path], tmp_path: Path
) -> None:
    save_bundle(tmp_path / "bundle", bundle)
    pipe = Pipeline.load(tmp_path / "bundle", lora=[f"{files[0]}@0.5"])
    (tmp_path / "p.jsonl").write_text('{"prompt": "a red circle"}\n')
    requests, problems = read_requests(tmp_path / "p.jsonl", SamplingSettings(steps=1), num_images=1)

    def drawn() -> tuple[int, int]:
        report = sample_all(pipe, requests, problems, tmp_path / "out", size=1)
        return report.drawn, report.present

    assert (drawn(), drawn()) == ((1, 0), (0, 1))
    (row,) = read_rows(tmp_path / "out")
    assert row["lora"] == ["a.safetensors@0.5"]
    pipe.use_lora(files[0])
    assert drawn() == (1, 0)
