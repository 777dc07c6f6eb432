"""docs/configs.md: its example trains, its tables are those of the code."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import micro
import numpy as np
import PIL.Image
import pytest

from mvader_jax.cli.main import main
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.settings import Choice, type_hints
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.config import Stage, TrainConfig, load_config
from mvader_jax.train.fields import HEADING, meanings, tables
from mvader_jax.train.fields import main as write
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Diffusion

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.split("```python\n")[1].split("```")[0]


def held(hint: Any) -> Iterator[type]:
    """The dataclasses that a value of a type holds, of every kind; of a model nothing more."""
    if isinstance(hint, type) and issubclass(hint, Choice) and hint not in hint.kinds.values():
        for cls in hint.kinds.values():
            yield from held(cls)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint is not ModelConfig:
        yield hint
        for inner in type_hints(hint).values():
            yield from held(inner)
    else:
        for inner in get_args(hint):
            yield from held(inner)


CLASSES = list(dict.fromkeys(held(TrainConfig)))


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.partition(HEADING)[2].strip() == tables().strip(), (
        "python -m mvader_jax.train.fields docs/configs.md"
    )


def test_everything_a_config_holds_has_a_table() -> None:
    assert len(CLASSES) >= 13
    assert sorted(re.findall(r"^### (\w+)", PAGE, flags=re.M)) == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_has_a_row_and_a_meaning(cls: type) -> None:
    section = re.split(rf"^### {cls.__name__}\b.*$", PAGE, flags=re.M)[1].partition("\n### ")[0]
    for name, meaning in meanings(cls).items():
        assert len(meaning) > 8 and meaning[0].isupper() | meaning[0].isdigit() and meaning.endswith("."), (
            name
        )
        row = re.search(rf"^\| `{name}` \|.*$", section, flags=re.M)
        assert row is not None and meaning.replace("|", "\\|") in row[0]
        assert len(re.split(r"(?<!\\)\|", row[0])) == 7


def test_rows_say_default_and_range() -> None:
    assert "| `steps` | integer | required | 1 or more | Updates in all. |" in PAGE
    assert '| `null` | one of | `"empty"` | `"empty"`, `"zeros"` | ' in PAGE
    assert "| `hold_out` | integer | `100` | 0, or 2 and more | " in PAGE
    assert "| `data` | `DataConfig` | required |  | " in PAGE
    assert f"| `p_image` | number | `{Diffusion.p_image}` | 0 to 1 | " in PAGE


def test_one_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "configs.md"
    stale.write_text(PAGE.replace("Updates in all.", "Nothing."), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["fields", str(stale)])
    write()
    assert stale.read_text(encoding="utf-8") == PAGE


def test_the_command_line_tells_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["configs", "--fields"])
    assert not done.value.code and capsys.readouterr().out == tables()
    with pytest.raises(SystemExit) as done:
        main(["configs", "tiny", "--fields"])
    assert done.value.code == 2 and "leave 'tiny' out" in capsys.readouterr().err


def test_the_example_is_short_and_passes_ruff(tmp_path: Path) -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 15
    (tmp_path / "mine.py").write_text(EXAMPLE, encoding="utf-8")
    ruff = [str(Path(sys.executable).with_name("ruff")), "check", "--no-cache", "--ignore", "E302"]
    subprocess.run([*ruff, str(tmp_path)], check=True, capture_output=True)


def test_the_example_trains_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a smaller bundle than it names: the model is whatever that holds."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(EXAMPLE, encoding="utf-8")
    config = load_config("mine.py")
    assert config.model == ModelConfig() and list(config.stages) == ["diffusion"]
    assert config.stages["diffusion"].init == ("tiny",) and isinstance(config.stages["diffusion"], Stage)
    save_bundle("start", micro.bundle(micro.NANO))
    Path("pictures").mkdir()
    for number in range(4):
        PIL.Image.fromarray(np.full((20, 30, 3), 60 * number, np.uint8)).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(f"a grey of {number}", encoding="utf-8")
    with pytest.raises(SystemExit) as done:
        main(["data", "build", "image_captions", "pictures", "data/mine"])
    assert not done.value.code
    small = ['init=["start"]', "steps=1", "batch_size=5"]
    config = load_config("mine.py", [f"stages.diffusion.{one}" for one in small])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert train(config, "diffusion", "runs/mine", mesh, quiet=True) == 0
    assert Path("runs/mine/diffusion/bundle/config.json").is_file()
