"""`mvader train --show`: any config as Python that loads back equal, passes ruff and trains."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import micro
import pytest

from mvader_jax.cli.main import main
from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Pairs, Records, Scenes
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.config import Group, Stage, TrainConfig, load_config
from mvader_jax.train.objectives import Captioning, Contrastive, Diffusion
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.shipped import shipped_configs
from mvader_jax.train.show import as_python

ROOT = Path(__file__).parents[2]
OVERRIDES = {
    "tiny": [
        "stages.vae.steps=7",
        "model.adapters=null",
        'stages.diffusion.groups.biases={"parameters": "biases/.*", "learning_rate": 1e-3}',
    ],
    "emoji": ['stages.diffusion.init=["tiny"]', 'stages.vae.data.source={"kind": "scenes", "omit": 0.25}'],
    "open_v2": [
        "stages.diffusion.objective.p_interleaved=0.25",
        'stages.diffusion.objective.interleaved=["a \\"quoted\\" file.jsonl", "it\'s.jsonl"]',
        "stages.diffusion.data.aspect_buckets=[[512, 512], [384, 640]]",
        "stages.captioning.optimizer.eps=1e-12",
    ],
}
#: Nothing but what is hard to write down.
STRANGE = TrainConfig(
    'a "name", C:\\tmp\\new\n\t"""\'\'\'{}{{ ä \x01',
    ModelConfig(unet=UNetConfig.sd14()),
    {
        'it\'s "a" stage': Stage(
            Diffusion(
                interleaved=tuple(f"a rather long path of a file of prompts {i}.jsonl" for i in range(9))
            ),
            {"\\": Group(r"a\\.*['\"]\d{2}", 1e-38)},
            2**31 - 1,
            1,
            DataConfig(Records(("one",), (0.1,)), aspect_buckets=((64, 32),)),
            optimizer=OptimizerConfig(muon=("\\",)),
            sample_prompts=("a | b.png@0.3", "", "x" * 200),
            sample_guidance=-0.0,
        ),
        "...": Stage(Contrastive(), {}, 1, 1, DataConfig(Pairs())),
        "captions": Stage(Captioning(False), {}, 1, 1, DataConfig(Scenes(languages=()))),
    },
)


def back(text: str, folder: Path) -> TrainConfig:
    (folder / "shown.py").write_text(text, encoding="utf-8")
    return load_config(folder / "shown.py")


def ruff(folder: Path, *words: str) -> str:
    command = [
        str(Path(sys.executable).with_name("ruff")),
        *words,
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
    ]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configs_come_back_equal(name: str, tmp_path: Path) -> None:
    for overrides in ([], OVERRIDES.get(name, [])):
        config = load_config(name, overrides)
        text = as_python(config)
        assert back(text, tmp_path) == config
        assert as_python(back(text, tmp_path)) == text
        assert ruff(tmp_path, "check") == ruff(tmp_path, "format", "--check") == ""


def test_strange_values_come_back_equal(tmp_path: Path) -> None:
    text = as_python(STRANGE)
    assert back(text, tmp_path) == STRANGE
    assert ruff(tmp_path, "format", "--check") == ""
    assert ruff(tmp_path, "check", "--ignore", "E501") == ""


def test_what_has_its_default_is_left_out() -> None:
    stage = STRANGE.stages["captions"]
    shown = as_python(dataclasses.replace(STRANGE, stages={"captions": stage}))
    assert "objective=Captioning(images=False)" in shown and "optimizer" not in shown
    assert "learning_rate" not in shown and "DataConfig(source=Scenes(languages=()))" in shown


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as done:
        main(["train", "open_v2", "stages.diffusion.remat=none", "--mesh", "data=4,fsdp=64", "--show"])
    assert done.value.code == 0
    assert back(capsys.readouterr().out, tmp_path) == load_config("open_v2", ["stages.diffusion.remat=none"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "--show", "--stage", "nope"], "unknown stage 'nope'"),
        (["tiny", "--show", "stages.vae.stepps=1"], "did you mean 'steps'"),
        (["nope", "--show"], "no config 'nope'"),
    ],
)
def test_mistakes_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["train", *words])
    printed = capsys.readouterr()
    assert done.value.code == 2 and said in printed.err and printed.out == ""


def test_a_class_of_the_file_itself_cannot_be_shown(tmp_path: Path) -> None:
    text = as_python(load_config("tiny", ["stages.vae.steps=5"]))
    text = text.replace("import Scenes\n", "import Scenes as Base\n\n\nclass Scenes(Base):\n    pass\n")
    with pytest.raises(UserError, match="Scenes, a class that its own file defines"):
        as_python(back(text, tmp_path))


def test_what_is_shown_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_bundle(tmp_path / "start", micro.bundle(micro.NANO, "decoder"))
    config = micro.language_config("start", steps=2, batch_size=8, save_every=2)
    Path("mine.py").write_text(as_python(config), encoding="utf-8")
    with pytest.raises(SystemExit) as done:
        main(["train", "mine.py", "--stage", "language", "--mesh", "data=8", "stages.language.log_every=1"])
    assert done.value.code == 0
    assert re.search(r"finished: .*language", capsys.readouterr().err)
