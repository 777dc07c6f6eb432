"""`mvader plan` from the command line: a real step for four chips that are not there, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mvader_jax.cli.main import main
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNetConfig
from mvader_jax.plan import runner
from mvader_jax.plan.blocks import Block, blocks
from mvader_jax.plan.expected import read_measured, recorded, table
from mvader_jax.settings import from_dict

TESTS = Path(__file__).parents[1]
CONFIG = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import micro

def get_config():
    return micro.train_config(batch_size=16, accumulate=2, dtype="bfloat16", frozen_dtype="bfloat16")
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MVADER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "micro_config.py"
    path.write_text(CONFIG)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["plan", *arguments])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def check_plan(plan: dict[str, Any]) -> None:
    f = {name: figure["value"] for name, figure in plan["figures"].items()}
    assert plan["fits"] and plan["topology"]["chips"] == 4
    # Counted by the jaxpr and read from what was compiled: the same work, a row or two of padding more.
    assert 1.0 <= f["flops"] / f["counted_flops"] < 1.35
    assert f["peak"] >= f["trained_weights"] + f["optimizer"] + f["activations"]
    assert f["step_seconds"] == max(f[f"{n}_seconds"] for n in ("arithmetic", "memory", "interconnect"))
    axes = {(row["kind"], row["axes"]) for row in plan["collectives"]}
    assert ("all-gather", "fsdp") in axes  # the weights
    assert any("data" in a for _, a in axes)  # the gradients
    assert not any(a == "none" for _, a in axes)


def test_a_step_is_compiled_once_and_kept(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(config), "--stage", "language", "--topology", "v5e:2x2", "--mesh", "data=2,fsdp=2"]
    code, out, err = run(capsys, *arguments, "--json", "--out", str(tmp_path / "plan.json"))
    assert code == 0, err
    (plan,) = json.loads(out)["plans"]
    check_plan(plan)
    assert plan["settings"]["microbatches"] == 2
    assert json.loads((tmp_path / "plan.json").read_text()) == plan
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "the program was compiled before" in err and "compiling" not in err
    assert "compiled" in out and "counted" in out and "estimated" in out
    assert "data=2,fsdp=2" in out and "all-gather" in out


@pytest.mark.slow
def test_the_diffusion_step_and_the_sampler_compile(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, str(config), "--topology", "v5e:2x2", "--search", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["candidates"]) > 5
    f = found["plans"][0]["figures"]
    assert f["flops"]["value"] == pytest.approx(f["counted_flops"]["value"], rel=0.35)
    code, out, err = run(
        capsys, str(config), "--topology", "v5e:2x2", "--mesh", "data=4", "--job", "sample", "--json"
    )
    assert code == 0, err
    (plan,) = json.loads(out)["plans"]
    assert plan["settings"]["steps"] == 50 and plan["figures"]["images_per_second"]["value"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "no config 'nowhere.py'"),
        (["{config}", "--topology", "v5e-255"], "there is no slice v5e-255; accepted: v5e-1, v5e-4, v5e-8"),
        (["{config}", "--topology", "big"], "'big' is no pod; accepted: Google's name"),
        (["{config}", "--topology", "2xv5e-16", "--slices", "4"], "'2xv5e-16' is 2 slices, not 4"),
        (["{config}", "--job", "sample", "--search"], "--search is for --job train"),
        (["{config}", "--job", "sample", "--stage", "vae"], "--stage does nothing for --job sample"),
        (["{config}", "--job", "sample", "--accumulate", "2"], "--accumulate does nothing for --job sample"),
        (["{config}", "--job", "sample", "--precomputed", "latents"], "--precomputed does nothing for --job"),
        (["{config}", "--batch", "4"], "--batch does nothing for --job train"),
        (["{config}", "--search", "--mesh", "data=2"], "--mesh does nothing for --search"),
        (["{config}", "--search", "--accumulate", "2"], "--accumulate does nothing for --search"),
        (["{config}", "--compiled", "2"], "--compiled does nothing for --job train"),
        (["{config}", "--topology", "v5e:2x2", "--mesh", "data=3"], "has 3 devices, but there are 4"),
        (["{config}", "--topology", "v5e:2x2", "--stage", "difusion"], "did you mean 'diffusion'"),
        (["{config}", "--topology", "v5e:2x2", "stages.vae.stepz=3"], "did you mean 'steps'"),
        (["{config}", "--effort", "2"], "--effort is 2.0; accepted: -1 to 1"),
        (["{config}", "--accumulate", "0"], "--accumulate is 0; accepted: 1 to 2147483647"),
        (["{config}", "--slices", "0"], "--slices is 0"),
        (["{config}", "--batch=-1"], "--batch is -1"),
        ([], "plan needs a config, a file or a name of `mvader configs`; or --reproduce"),
        (["{config}", "--measured", "x.toml"], "--measured does nothing for --job train"),
        (["{config}", "--reproduce"], "does nothing for --reproduce, whose steps are given"),
        (["--reproduce", "--mesh", "data=2"], "--mesh does nothing for --reproduce"),
        (["--reproduce", "--topology", "v5e-8"], "--topology does nothing for --reproduce"),
        (["--reproduce", "--frozen-dtype", "int8"], "--frozen-dtype does nothing for --reproduce"),
        (["--reproduce", "--search"], "--search does nothing for --reproduce"),
        (["{config}", "--blocks", "--effort", "0"], "--effort does nothing for --blocks"),
        (["{config}", "--blocks", "--topology", "v6e-8"], "what clock TPU v6e runs at"),
        (["{config}", "--blocks", "--topology", "v5e-64"], "a batch of 16 does not divide over 64 devices"),
        (["--reproduce", "--measured", "nowhere.toml"], "'nowhere.toml' cannot be read: No such file"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, *(a.format(config=config) for a in arguments))
    assert code == 2 and not out
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1 and message in lines[0]


def test_measured_steps_are_compiled_once_each_and_told_beside_what_is_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(module: str, text: str, say: Any) -> dict[str, Any]:
        assert module == "mvader_jax.plan.reproduce"
        asked.append(json.loads(text))
        return {"step": recorded()[f"{asked[-1]['generation']} x {asked[-1]['batch']}"]}

    monkeypatch.setattr(runner, "ask", ask)
    out = tmp_path / "programs.json"
    for _ in range(2):  # the second time it may replace what it wrote itself
        code, printed, err = run(capsys, "--reproduce", "--out", str(out))
        assert code == 0, err
    assert printed.strip() == table(read_measured(), recorded())
    assert json.loads(out.read_text()) == recorded()
    assert len(asked) == 2 * len(recorded()) and all(one["cache"] for one in asked)
    monkeypatch.setattr(runner, "ask", lambda *_: {"error": "it does not fit"})
    code, printed, err = run(capsys, "--reproduce", "--quiet")
    assert code == 2 and not printed and err == "mvader: v5p x 32: it does not fit\n"


def test_the_blocks_of_a_unet_are_asked_for_once_each_and_summed(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(module: str, text: str, say: Any) -> dict[str, Any]:
        asked.append((module, json.loads(text)))
        return {"block": {"cycles": 1.5e6, "kernel_flops": 0.0}}

    monkeypatch.setattr(runner, "ask", ask)
    code, out, err = run(capsys, str(config), "--blocks", "--topology", "v5e:2x2")
    assert code == 0, err
    unet = from_dict(UNetConfig, asked[0][1]["config"])
    assert [Block(**one["block"]) for _, one in asked] == list(blocks(unet))
    assert {(module, one["rows"], one["dtype"]) for module, one in asked} == {
        ("mvader_jax.plan.blocks", 2, "bfloat16")
    }
    total = 1.5 * sum(blocks(unet).values())
    assert f"together {total:.1f} M cycles, {total / 1.5:.1f} ms at 1.5 GHz" in out


def test_a_mesh_that_does_not_compile_is_told_even_quietly(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"mesh": "fsdp=4", "microbatches": 1, "memory_gib": 1, "arithmetic_ms": 1, "interconnect_ms": 1}
    monkeypatch.setattr(runner, "ask", lambda *_: {"candidates": [best]})

    def refuse(*_: Any) -> None:
        raise UserError("it is too large")

    monkeypatch.setattr(runner, "run_request", refuse)
    code, _, err = run(capsys, str(config), "--search", "--quiet")
    assert code == 2
    assert err == "mvader: fsdp=4: it is too large\nmvader: none of the meshes compiles\n"
