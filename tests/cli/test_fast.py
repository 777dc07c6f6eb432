"""The few-step UNet where a person waits: chosen where the bundle holds one, or as said; added to a bundle, and dropped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import PIL.Image
import pytest

from mvader_jax.cli.main import main
from mvader_jax.convert.lora.files import write_lora
from mvader_jax.images.png import read_png_metadata
from mvader_jax.lora.factors import Factors, Lora, factor_shapes, kernels
from mvader_jax.paper import demo, figures
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle
from mvader_jax.storage.bundle_config import holds_fast, read_config
from mvader_jax.train.objectives import Distillation

Said = Callable[..., tuple[int, str, str]]


def with_student(bundle: Bundle, **schedule: Any) -> Bundle:
    """The bundle with a few-step UNet that was taught nothing."""
    model = Distillation(time_cond_proj_dim=8, original_steps=20).extended(bundle.model)
    assert model.schedule is not None
    model = dataclasses.replace(model, schedule=dataclasses.replace(model.schedule, **schedule))
    student = micro.bundle(model, "unet_fast").components["unet_fast"]
    return dataclasses.replace(bundle, model=model, components={**bundle.components, "unet_fast": student})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, `both` with a student beside, and `lcm`, whose one UNet was distilled."""
    folder = tmp_path_factory.mktemp("bundles")
    plain = micro.bundle(micro.NANO)
    both = with_student(plain)
    save_bundle(folder / "plain", plain)
    save_bundle(folder / "both", both)
    save_bundle(folder / "lcm", both.fast())
    other = with_student(plain, prediction_type="v_prediction").fast()
    save_bundle(folder / "other", dataclasses.replace(other, components={"unet": other.components["unet"]}))
    return folder


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        out = capsys.readouterr()
        return int(stopped.value.code or 0), out.out, out.err

    return run


@pytest.mark.parametrize(
    ("bundle", "options", "few"),
    [
        ("both", [], True),
        ("both", ["--no-fast"], False),
        ("both", ["--steps", "3"], False),
        ("both", ["--sampler", "euler"], False),
        ("both", ["--fast", "--steps", "3"], True),
        ("plain", [], False),
    ],
)
def test_figures_are_drawn_with_it_where_it_is(
    place: Path, said: Said, monkeypatch: pytest.MonkeyPatch, bundle: str, options: list[str], few: bool
) -> None:
    seen: list[Any] = []

    def drawn(which: str, pipe: Pipeline, elements: Any, options: Any, say: Any) -> PIL.Image.Image:
        seen.append((pipe.model.unet, options.sampling))
        return PIL.Image.new("RGB", (8, 8))

    monkeypatch.setattr(figures, "draw_figure", drawn)
    assert said("figure", "9", "--bundle", str(place / bundle), "--out", "f.png", "--quiet", *options)[0] == 0
    ((unet, sampling),) = seen
    steps = 3 if "--steps" in options else 4 if few else 50
    sampler = "euler" if "euler" in options else "lcm" if few else "ddim"
    assert (unet.distilled, sampling.sampler, sampling.steps) == (few, sampler, steps)
    record = read_png_metadata(Path("f.png"))
    assert (record["sampler"], record["steps"]) == (sampler, str(steps))


def test_the_demo_says_so(place: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def drawn(pipe: Pipeline, out: Path, settings: Any, **more: Any) -> list[Any]:
        seen.append((pipe.model.unet.distilled, settings.sampler, more["fast"]))  # type: ignore[union-attr]
        return []

    monkeypatch.setattr(demo, "demo", drawn)
    for options in ([], ["--no-fast"]):
        assert said("demo", "--bundle", str(place / "both"), "--quiet", *options)[0] == 0
    assert seen == [(True, "lcm", True), (False, "ddim", False)]
    code, _, error = said("demo", "--bundle", str(place / "plain"), "--fast", "--quiet")
    assert code == 2 and "has no unet_fast" in error


@pytest.mark.parametrize("source", ["both", "lcm"])
def test_it_is_added_to_a_bundle_and_dropped(place: Path, said: Said, tmp_path: Path, source: str) -> None:
    plain, from_ = str(place / "plain"), str(place / source)
    code, _, error = said("bundle", "made", "--base", plain, "--unet-fast", from_, "--quiet")
    assert code == 0, error
    made, both = load_bundle(tmp_path / "made"), load_bundle(place / "both")
    assert made.model == both.model and holds_fast(tmp_path / "made") and not holds_fast(plain)
    jax.tree.map(np.testing.assert_array_equal, made.components, both.components)
    assert made.tokenizer is not None
    assert said("bundle", "less", "--base", "made", "--without", "unet_fast", "--quiet")[0] == 0
    less, alone = read_config(tmp_path / "less"), read_config(plain)
    assert less["components"] == alone["components"] and "unet_fast" in json.dumps(less["model"])
    assert load_bundle(tmp_path / "less").model.unet_fast is None


def test_a_student_of_another_unet_is_left_out(place: Path, said: Said, tmp_path: Path) -> None:
    both, plain = str(place / "both"), str(place / "plain")
    note = "unet_fast is left out: it learnt from another unet\n"
    code, out, _ = said("bundle", "other", "--base", both, "--unet", plain, "--quiet")
    assert code == 0 and note in out
    assert said("bundle", "kept", "--base", both, "--vae", plain, "--quiet")[0] == 0
    assert said("bundle", "named", "--base", both, "--unet", plain, "--unet-fast", both, "--quiet")[0] == 0
    bundle = load_bundle(place / "both")
    weight = next(path for path in kernels(bundle.components["unet"]) if path.endswith("to_q/kernel"))
    shapes = factor_shapes(kernels(bundle.components["unet"])[weight].shape, 2)
    down, up = (np.ones(shape, np.float32) for shape in shapes)
    lora = Lora({"unet": {weight: Factors(down, up, (2,), (None,))}})
    write_lora(tmp_path / "style.safetensors", lora, bundle.model)
    code, out, _ = said("bundle", "merged", "--base", both, "--merge-lora", "style.safetensors")
    assert code == 0 and note in out
    held = {name: holds_fast(tmp_path / name) for name in ("other", "kept", "named", "merged")}
    assert held == {"other": False, "kept": True, "named": True, "merged": False}
    code, _, error = said("sample", "red", "--fast", "--bundle", "merged")
    assert code == 2 and "has no unet_fast" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--without", "unet_fast"], "--without leaves out what --base brings"),
        (["--base", "PLAIN", "--without", "unet_fast"], "unet_fast is to be left out, but PLAIN has none"),
        (["--base", "BOTH", "--without", "vae", "--vae", "PLAIN"], "vae is to be left out, but is given"),
        (["--base", "PLAIN", "--unet-fast", "PLAIN"], "has no unet_fast; it holds"),
        (
            ["--base", "PLAIN", "--unet-fast", "OTHER"],
            "was taught with prediction_type v_prediction, but the",
        ),
    ],
)
def test_what_does_not_fit_is_told(place: Path, said: Said, arguments: list[str], message: str) -> None:
    names = {name.upper(): str(place / name) for name in ("plain", "both", "other")}
    code, _, error = said("bundle", "made", "--quiet", *(names.get(one, one) for one in arguments))
    assert code == 2 and message.replace("PLAIN", names["PLAIN"]) in error
    assert not Path("made").exists()
