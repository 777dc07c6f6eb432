"""The command line as a whole: what every command has in common."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import micro
import PIL.Image
import pytest
import typer

from mvader_jax.cli import main as cli
from mvader_jax.cli import register
from mvader_jax.cli.main import _EXTRAS, main
from mvader_jax.cli.streams import Lasting, notices
from mvader_jax.errors import Notice, UserError
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


def helps() -> dict[str, typer.main.TyperCommand]:
    """Every command by its words, as in 'data build'."""
    if not cli.app.registered_commands:
        register(cli.app)
    found = {}
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        for words, one in [
            (name, command),
            *((f"{name} {n}", c) for n, c in getattr(command, "commands", {}).items()),
        ]:
            found[words] = one
    return found


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("group", [[], ["data"]])
def test_no_description_is_cut_short(
    group: list[str], capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = shown([*group, "--help"], capsys).split("Commands:\n")[1].splitlines()
    assert len(listed) > 5
    assert [line for line in listed if line.endswith("...") or len(line) > 80] == []


@pytest.mark.parametrize(
    "words", sorted(words for words, one in helps().items() if not hasattr(one, "commands"))
)
def test_every_help_shows_commands_that_are_taken(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    help = shown([*words.split(), "--help"], capsys)
    examples = [line.strip() for line in help.splitlines() if line.strip().startswith("mvader ")]
    assert examples and help.count("Examples:") == 1
    for example in examples:
        assert example.startswith(f"mvader {words}") and len(example) < 80
        arguments = shlex.split(example.split(" > ")[0])[1 + len(words.split()) :]
        helps()[words].make_context(words, arguments)


def test_bare_commands_are_answered_by_their_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ([], ["data"]):
        with pytest.raises(SystemExit) as stopped:
            main(group)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.startswith("Usage: mvader") and said.count("\n") > 10


def test_versions_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"mvader \S+, JAX \S+, Python \S+\n", shown(["--version"], capsys))


def test_words_are_completed() -> None:
    env = {**os.environ, "_MVADER_COMPLETE": "complete_bash", "COMP_WORDS": "mvader sam", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mvader_jax.cli.main"], env=env, cwd=ROOT, text=True, capture_output=True
    )
    assert done.stdout.split() == ["sample", "samplers"] and done.stderr == ""


def test_help_waits_for_no_library() -> None:
    code = """
import sys
from mvader_jax.cli.main import main
for words in ["--help"], ["--version"], ["sample", "--help"], ["data", "build", "--help"]:
    try:
        main(words)
    except SystemExit as stopped:
        assert not stopped.code
print([name for name in ("jax", "flax", "orbax", "PIL", "rich", "tokenizers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.splitlines()[-1] == "[]" and done.stderr == ""


def test_a_sentence_is_one_line_however_long(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(UserError("word " * 200 + "\n  a library's own second line"), monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith("a library's own second line\n")


def test_a_notice_is_one_sentence_without_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    with notices():
        warnings.warn("a name is odd", Notice, stacklevel=1)
    assert capsys.readouterr().err == "mvader: a name is odd\n"


#: What every command that has --quiet is asked in vain.
WRONG = {
    "bundle": ["out", "--unet", "nope"],
    "convert": ["nope", "out"],
    "data build": ["nope", "source", "out"],
    "data encode": ["nope.py", "scenes", "out"],
    "demo": ["--bundle", "nope"],
    "evaluate": ["--bundle", "nope"],
    "export": ["nope", "out", "--to", "diffusers"],
    "figure": ["3", "nope.png"],
    "plan": ["nope.py"],
    "sample": ["nope.png"],
    "score": ["nope", "--reference", "nope", "--inception", "nope"],
    "train": ["nope.py"],
    "web": ["--bundle", "nope"],
}


def test_quiet_hides_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {words for words, one in helps().items() if any("--quiet" in p.opts for p in one.params)}
    assert taken == WRONG.keys()
    monkeypatch.chdir(tmp_path)
    for words, arguments in WRONG.items():
        with pytest.raises(SystemExit) as stopped:
            main([*words.split(), *arguments, "--quiet"])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and re.fullmatch("mvader: .*nope.*\n", said), words
