"""The command line as a whole: what every command has in common."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import micro
import PIL.Image
import pytest

from mvader_jax.cli import main as cli
from mvader_jax.cli.main import _EXTRAS, main
from mvader_jax.cli.streams import Lasting
from mvader_jax.storage.bundle import save_bundle

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


def ended(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of a command that ends in an error."""

    class Command:
        registered_commands = (None,)

        def __call__(self, **_: object) -> None:
            raise error

    monkeypatch.setattr(cli, "app", Command())
    with pytest.raises(SystemExit) as stopped:
        main([])
    return stopped.value.code


NO_ROOM = "not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "'/a/b': Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EMFILE, "Too many open files", "c.txt"), "'c.txt': Too many open files"),
        (FileExistsError(errno.EEXIST, "File exists", "a", None, "b"), "'a' -> 'b': File exists"),
        (MemoryError(), "not enough memory: this machine has no more"),
        (MemoryError("Unable to allocate 8 TiB"), "not enough memory: Unable to allocate 8 TiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"), NO_ROOM),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error, monkeypatch) == (130 if said == "interrupted" else 2)
    assert capsys.readouterr().err == f"mvader: {said}\n"


def test_what_jax_cannot_start_with_is_one_sentence() -> None:
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "many"}
    words = [sys.executable, "-m", "mvader_jax.cli.main", "samplers"]
    done = subprocess.run(words, env=env, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr == 'mvader: JAX cannot start: Invalid value "many" for JAX flag jax_num_cpu_devices\n'


@pytest.mark.parametrize("error", [RuntimeError("x"), ZeroDivisionError("x"), OSError("a library's own")])
def test_a_fault_of_ours_is_shown_whole(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        ended(error, monkeypatch)


def test_stderr_that_goes_away_ends_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    stream = Lasting(Gone())
    assert stream.write("abc") == 3
    stream.flush()
    print("to nobody", file=stream)


def test_no_command_shows_what_libtpu_says(tmp_path: Path) -> None:
    """Without JAX_PLATFORMS, on a machine that has libtpu and no TPU: what commands print is their own."""
    save_bundle(tmp_path / "micro", micro.bundle())
    commands = [
        ["samplers"],
        ["sample", "a red circle", "--num-images", "1", "--steps", "1", "--bundle", "micro"],
        ["bundle", "joined", "--unet", "micro", "--vae", "micro", "--decoder", "micro"],
        ["data", "scenes", "scenes", "--count", "2"],
    ]
    names = ("JAX_PLATFORMS", "TPU_", "TF_CPP")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    env |= {"PYTHONPATH": str(ROOT), "MVADER_CACHE": str(tmp_path), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    code = """
import json, sys
from mvader_jax.cli.main import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as stopped:
        assert not stopped.code, words
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        env=env,
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    ours = re.compile(r"\[ *\d+ s\] |copying: ")
    assert [line for line in done.stderr.splitlines() if not ours.match(line)] == []
