"""The package is typed for those who use it: mypy --strict passes a small script, and finds its mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = """
from pathlib import Path

import mvader_jax as mv


def draw(folder: Path) -> list[Path]:
    pipe = mv.Pipeline.load("tiny", dtype="bfloat16")
    settings = mv.SamplingSettings(steps=20, seed=3)
    prompt = mv.Prompt.of([mv.Text("a red shape", 0.5), mv.Image(folder / "circle.png")])
    pictures: mv.Pictures = pipe(prompt, settings, negative="a cross", num_images=4)
    many: list[mv.Pictures] = pipe.batch(["a hat", {"prompt": prompt, "seed": 1}], steps=10)

    def watch(step: mv.Step) -> bool:
        step.preview.grid().save(folder / f"{step.number}.png")
        return step.number < 30

    try:
        pipe(["in blue", (folder / "circle.png", 0.3)], callback=watch, callback_every=5, progress=True)
    except mv.Cancelled as cancelled:
        print(cancelled.step.total)
    condition: mv.Condition = pipe.embed(["a red shape"])
    eps = pipe.denoise(pipe.encode(pictures), 500, condition)
    mv.grid(many[0] + mv.tasks.variation(pipe, pictures[0], num_images=2), columns=2).save(folder / "a.png")
    print(pipe.decode(eps).shape)
    return pictures[:2].save(folder)


def mistaken(pipe: mv.Pipeline) -> None:
    pipe(5)  # type: ignore[arg-type]
    pipe("a hat", num_images="4")  # type: ignore[arg-type]
    pipe.batch(5)  # type: ignore[arg-type]
    mv.Image(5)  # type: ignore[arg-type]
    mv.Pipelin  # type: ignore[attr-defined]
    pipe.denoise([1], 5, "text")  # type: ignore[arg-type]
"""


def test_a_script_passes_mypy_strict(tmp_path: Path) -> None:
    """As for an installed package, only the script is judged; of the libraries below only what it sees is read."""
    script, config = tmp_path / "script.py", tmp_path / "mypy.ini"
    script.write_text(SCRIPT)
    unread = [
        "jax",
        "jaxlib",
        "flax",
        "orbax",
        "optax",
        "grain",
        "tensorboardX",
        "jaxtyping",
        "typer",
        "rich",
        "tokenizers",
        "torch",
    ]
    sections = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in unread)
    config.write_text(
        f"[mypy]\nstrict = true\nfollow_imports = silent\nignore_missing_imports = true\n{sections}"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        config,
        "--cache-dir",
        tmp_path / "cache",
        script,
    ]
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_mark_is_shipped() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["mvader_jax"] and (ROOT / "mvader_jax" / "py.typed").is_file()
