"""The command line as a whole: what every command has in common."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import PIL.Image
import pytest

from mvader_jax.cli.main import _EXTRAS, main

ROOT = Path(__file__).parents[2]


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    PIL.Image.new("RGB", (70, 70)).save(source / "a.png")
    (source / "a.txt").write_text("a picture")
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorflow_datasets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "build", "image_captions", str(source), str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "this needs tensorflow_datasets, of the data extra: pip install 'mvader-jax[data]'" in said
    assert "Traceback" not in said


def test_the_extras_bring_the_packages_they_are_said_to() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brings = {
        name: {re.split(r"[\[<>=]", word)[0].replace("-", "_") for word in words}
        for name, words in extras.items()
    }
    assert all(package in brings[extra] for package, extra in _EXTRAS.items())
