"""The configs that come with the project go with it when it is installed, and are known by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mvader_jax.cli.main import main
from mvader_jax.errors import UserError
from mvader_jax.train.config import load_config
from mvader_jax.train.shipped import find_config, shipped_configs

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def test_the_repository_has_them_once() -> None:
    assert sorted(shipped_configs()) == NAMES
    assert all(path.samefile(ROOT / "configs" / path.name) for path in shipped_configs().values())


@pytest.mark.parametrize("name", NAMES)
def test_each_is_known_by_its_name(name: str) -> None:
    assert load_config(name) == load_config(ROOT / "configs" / f"{name}.py")
    assert load_config(name).name == name


def test_an_installed_package_has_them(tmp_path: Path) -> None:
    """A wheel built of the repository: its configs by name, from a folder that holds none."""
    source, here = tmp_path / "source", tmp_path / "here"
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(ROOT / "mvader_jax", source / "mvader_jax", symlinks=True, ignore=ignored)
    shutil.copytree(ROOT / "configs", source / "configs", ignore=ignored)
    shutil.copytree(ROOT / "tpu", source / "tpu", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    measured = tmp_path / "installed" / "mvader_jax" / "plan" / "measured.toml"
    assert measured.read_bytes() == (ROOT / "tpu" / "measured.toml").read_bytes()
    assert (measured.parent / "recorded.json").is_file()
    here.mkdir()

    def mvader(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        command = [sys.executable, "-m", "mvader_jax.cli.main", *words]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert [line.split()[0] for line in mvader("configs").splitlines()] == NAMES
    assert "unknown stage 'x' in config 'open_v2'" in mvader("train", "open_v2", "--stage", "x")


def test_one_is_printed_to_be_edited(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["configs", "tiny"])
    mine = tmp_path / "mine.py"
    mine.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(mine) == load_config("tiny")


def test_each_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.endswith((".", "!")) and len(line) > 40 for line in lines)


@pytest.mark.parametrize("command", [["train"], ["plan"], ["data", "encode"]], ids=lambda words: words[-1])
@pytest.mark.parametrize("name", ["nope", "configs", "", "configs/nope.py"])
def test_an_unknown_one_is_told_what_there_is(
    command: list[str], name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rest = ["scenes", f"{tmp_path}/out"] if "encode" in command else []
    with pytest.raises(SystemExit) as stopped:
        main([*command, name, *rest])
    assert stopped.value.code == 2
    said = f"mvader: no config {name!r}: it is neither a file nor one of {', '.join(NAMES)}\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nope", "", "pyproject.toml", "configs/tiny.py"])
def test_only_shipped_ones_are_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["configs", name])
    assert stopped.value.code == 2
    said = f"mvader: no config {name!r} comes with the package; there are {', '.join(NAMES)}\n"
    assert capsys.readouterr() == ("", said)


def test_a_file_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").touch()
    assert find_config("tiny.py") == Path("tiny.py") and find_config("tiny") == shipped_configs()["tiny"]
    with pytest.raises(UserError, match=r"tiny.py defines no get_config\(\)"):
        load_config("tiny.py")
