"""Commands of pages, run up to where the work begins: the real parser, the real checks, the real configs.

`mvader` runs its own code; the first call into what takes time (`BEGINS`) ends it, and is looked at. Scripts of this
repository must have the flags they are given, and launchers run with --dry-run. Of other people's programs the flags
are those written down here (`OTHERS`).
"""

from __future__ import annotations

import contextlib
import functools
import glob
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import ROOT

from mvader_jax.cli.main import app, main
from mvader_jax.parallel.mesh import parse_mesh
from mvader_jax.storage.bundle_config import ASSETS
from mvader_jax.train.config import TrainConfig, load_config
from mvader_jax.train.shipped import shipped_configs

#: Where the work of a command begins: the function that is not called.
BEGINS = [
    "mvader_jax.cli._loading.load_pipeline",
    "mvader_jax.data.sources.emoji.Emoji.world",
    "mvader_jax.train.loop.train",
    "mvader_jax.plan.runner.run_request",
    "mvader_jax.plan.runner.ask",
    "mvader_jax.convert.files.fetch",
    "mvader_jax.convert.compose.compose",
    "mvader_jax.convert.export.export",
    "mvader_jax.convert.lora.merge.export_lora",
    "mvader_jax.convert.lora.merge.merge_lora",
    "mvader_jax.storage.push.push",
    "mvader_jax.storage.describe.describe",
    "mvader_jax.storage.bundle_config.find_bundle",
    "mvader_jax.train.snapshot.Snapshot.of",
    "mvader_jax.data.building.catalogue.find_parts",
    "mvader_jax.data.building.describe.describe",
    "mvader_jax.data.building.pairs.write_pairs",
    "mvader_jax.data.scenes.parts.write_files",
    "mvader_jax.precompute.encode.encode",
    "mvader_jax.scores.score.score",
    "mvader_jax.paper.coco.write_prompts",
    "mvader_jax.paper.conjunction.tasks.read_things",
    "mvader_jax.paper.conjunction.folder.read_form",
    "mvader_jax.train.bench.bench",
]
#: {program, and what it is told first: its flags}. From the programs' own pages.
OTHERS = {
    "curl": {"-L", "-O"},
    "unzip": {"-q"},
    "tar xzf": set(),
    "npm pack": set(),
    "npm install": {"--prefix", "--ignore-scripts", "--no-audit", "--no-fund"},
    "export": set(),
    "taskset": {"-c"},
    "tensorboard": {"--logdir"},
    "docker build": {"-f", "-t"},
    "docker push": set(),
    "gcloud auth configure-docker": set(),
    "gcloud artifacts repositories create": {"--repository-format", "--location"},
    "gcloud storage buckets create": {
        "--location",
        "--enable-hierarchical-namespace",
        "--uniform-bucket-level-access",
    },
    "gcloud storage cp": {"-r"},
    "xpk": set(),
    "img2dataset": {
        *("--url_list", "--input_format", "--url_col", "--caption_col", "--output_format", "--output_folder"),
        *("--image_size", "--resize_mode", "--resize_only_if_bigger", "--save_additional_columns"),
    },
}
#: Packages that pages install beside this one.
PACKAGES = {"xpk", "img2dataset"}
#: What stands in a page for a name of the reader's.
NAMES = {"CONFIG": "configs/tiny.py", "STAGE": "diffusion", "DIR": "runs", "RUN": "runs/tiny"}
NAMES |= {"FILE": "prompts.jsonl", "BUNDLE": "tiny"}


class Begun(BaseException):
    """The work would begin here: what is called, with what."""

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        super().__init__(name)
        self.name, self.given = name, given


@contextlib.contextmanager
def before_the_work(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it `mvader` stops where the work begins, and no mesh is made of this machine's devices."""

    def stop(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def begun(*args: Any, **given: Any) -> None:
            raise Begun(name, dict(signature.bind(*args, **given).arguments))

        return begun

    with patch.context() as within:
        for name in BEGINS:
            place, _, function = name.rpartition(".")
            holder = pkgutil.resolve_name(place)
            within.setattr(holder, function, stop(name, getattr(holder, function)))
        within.setattr("mvader_jax.parallel.mesh.open_mesh", lambda text: parse_mesh(text) if text else None)
        within.setattr("mvader_jax.storage.programs.compilation_cache", lambda *_: None)
        yield


def readable(words: list[str]) -> list[str]:
    """Words in which a reader puts names of his own, as he might; brackets are around what may be left out."""
    found: list[str] = []
    for word in words:
        if word == "NAME" and found[-1:] == ["--sampler"]:
            word = "ddim"
        word = word.strip("[]") if not word.startswith(("[{", '["')) and "=" not in word else word
        if word in ("[KEY=VALUE", "KEY=VALUE", "..."):
            continue
        found.append(
            re.sub(
                r"\b([A-Z]{3,6})\b", lambda name: NAMES.get(name[1], name[1]), word.replace("[@STEP", "@8")
            )
        )
    return found


class Dry:
    """Checks commands. made: what commands of any page make, by their paths."""

    def __init__(self, made: set[str]) -> None:
        self.made = made
        self.programs: dict[str, Callable[[list[str]], None]] = {
            "mvader": self.mvader,
            "make": self.make,
            "pip": self.pip,
            "python": self.python,
            "python3": self.python,
            "pytest": self.pytest,
            "tpu/launch.sh": functools.partial(self.launcher, "tpu/launch.sh"),
            "tpu/launch_gke.sh": functools.partial(self.launcher, "tpu/launch_gke.sh"),
            "hf": self.hub,
        }

    def knows(self, words: list[str]) -> bool:
        return bool(words) and (words[0] in self.programs or self._other(words) is not None)

    def check(self, words: list[str]) -> None:
        """Fails where a command would not do what the page says. Raises KeyError for a program that is not known."""
        if words[0] in self.programs:
            self.programs[words[0]](words[1:])
            return
        name = self._other(words)
        if name is None:
            raise KeyError(words[0])
        flags = {word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)}
        assert flags <= OTHERS[name], f"{words}: unknown {flags - OTHERS[name]}"
        for flag, value in itertools.pairwise(words):
            assert flag != "-f" or (ROOT / value).is_file(), f"{words}: no file {value}"

    def _other(self, words: list[str]) -> str | None:
        named = [" ".join(words[:count]) for count in range(len(words), 0, -1)]
        return next((name for name in named if name in OTHERS), None)

    # mvader

    def mvader(self, words: list[str]) -> None:
        if words[-1] == "...":
            named(words[:-1])
            return
        words = [name for word in readable(words) for name in sorted(glob.glob(word)) or [word]]
        try:
            with pytest.raises(SystemExit) as stopped:
                main(words)
            assert not stopped.value.code, f"mvader {' '.join(words)} is refused"
        except Begun as begun:
            self.begun(words, begun.given)

    def begun(self, words: list[str], given: dict[str, Any]) -> None:
        """Looks at what the work would be begun with."""
        config, request = given.get("config"), given.get("request")
        if isinstance(config, TrainConfig):
            config.stage(str(given.get("stage") or given.get("name") or given["stage_name"]))
        if request is not None and not isinstance(request, str):
            load_config(Path(request.config), request.overrides).stage(request.stage)
            parse_mesh(request.mesh)
        flags = {"--bundle", "--decoder", "--biases", "--adapters", "--image-prefix", "--image-encoder"}
        flags |= {"--unet", "--unet-fast", "--vae", "--text-encoder", "--base", "--checkpoint"}
        named = [value for flag, value in itertools.pairwise(words) if flag in flags]
        listed = [word for word in words if re.search(r"\.(init|precomputed|paths)=\[", word)]
        named += [path for word in listed for path in re.findall(r'"([^"]+)"', word)]
        for path in named:
            assert self.is_made(path), f"mvader {' '.join(words)}: no page makes {path}"

    def is_made(self, path: str) -> bool:
        """Whether a bundle or data set is there: embedded, on the hub, made by a command of a page, or a stage's."""
        if path in self.made:
            return True
        run = re.fullmatch(r"runs/(\w+)/(\w+)(/bundle|@\d+)?", path)
        configs = {**shipped_configs(), "mine": Path("mine.py")}
        if run and run[1] in configs:
            return run[2] in load_config(configs[run[1]]).stages
        return bool(
            re.match(r"\w+/(mine|other)(/|$)", path)  # the reader's own
            or path.startswith("hf:")
            or (ASSETS / path).is_dir()
            or re.fullmatch(r"[A-Z0-9_]+", path)
        )

    # Programs of this repository, and pip

    def make(self, words: list[str]) -> None:
        text = (ROOT / "Makefile").read_text()
        for word in words:
            assert re.search(rf"^{re.escape(word)}:", text, re.M), f"make {word}: no such target"

    def pip(self, words: list[str]) -> None:
        assert words.pop(0) == "install"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for word in words:
            name, _, extras = word.removesuffix("]").partition("[")
            assert word == "-e" or name in (project["name"], ".") or word in PACKAGES, f"pip install {word}"
            assert set(filter(None, extras.split(","))) <= project["optional-dependencies"].keys(), word

    def python(self, words: list[str]) -> None:
        if words[:2] == ["-m", "pytest"]:
            self.pytest(words[2:])
            return
        if words[0] == "-m":
            words = [f"{words[1].replace('.', '/')}.py", *words[2:]]
        text = (ROOT / words[0]).read_text()
        for word in words[1:]:
            assert not word.startswith("--") or f'"{word.partition("=")[0]}"' in text, (
                f"{words[0]} has no {word}"
            )

    def pytest(self, words: list[str]) -> None:
        for word in words:
            if "/" in word:
                assert (ROOT / word).exists(), f"pytest {word}: not there"
                assert "slow" not in words or "mark.slow" in (ROOT / word).read_text(), (
                    f"{word}: nothing slow"
                )

    def launcher(self, script: str, words: list[str]) -> None:
        if len(words) == 1:  # in a sentence
            assert words[0] in (ROOT / script).read_text(), f"{script} has no {words[0]}"
            return
        with tempfile.TemporaryDirectory() as stubs:
            for program in ("gcloud", "xpk", "docker", "kubectl"):  # a dry run calls none of them
                stub = Path(stubs) / program
                stub.write_text(f"#!/bin/sh\necho {program} was called >&2\nexit 99\n")
                stub.chmod(0o755)
            # Behind a bare -- flags are mvader's.
            call = ["bash", str(ROOT / script), words[0], "--dry-run", *words[1:]]
            env = {**os.environ, "PATH": f"{stubs}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
            done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=env)
        assert done.returncode == 0, f"{script} {' '.join(words)}: {done.stderr}"

    def hub(self, words: list[str]) -> None:
        from huggingface_hub.cli.hf import app as theirs

        found: Any = theirs
        _find(found if hasattr(found, "get_command") else typer.main.get_command(found), words)


def options() -> set[str]:
    """Every flag of every command of mvader."""
    found: set[str] = {"--help"}

    def walk(command: Any) -> None:
        for parameter in command.params:
            found.update(parameter.opts)
        for inner in getattr(command, "commands", {}).values():
            walk(inner)

    walk(command())
    return found


def command() -> Any:
    """The whole of mvader, as its parser has it."""
    from mvader_jax.cli import register

    if not app.registered_commands:
        register(app)
    return typer.main.get_command(app)


def named(words: list[str]) -> None:
    """Fails where words that name a command in a sentence, perhaps without all it needs, are not one's."""
    found, rest = _find(command(), words)
    known = {flag for parameter in found.params for flag in parameter.opts}
    for word in rest:
        assert not word.startswith("--") or word.partition("=")[0] in known, (
            f"mvader {' '.join(words)}: {word}"
        )


def is_whole(words: list[str]) -> bool:
    """Whether words give a command of mvader all that it needs, as far as its parser knows."""
    found, rest = _find(command(), words)
    try:
        given = found.make_context("mvader", readable(rest)).params
    except (Exception, SystemExit):  # the parser's complaints have many kinds
        return False
    return len(rest) > 0 and bool(given.get("parts", True) or given.get("prompts"))


def _find(inside: Any, words: list[str]) -> tuple[Any, list[str]]:
    """(the command that words name, what else they say)."""
    rest = list(words)
    while hasattr(inside, "get_command") and rest and not rest[0].startswith("-"):
        found = inside.get_command(typer.Context(inside), rest[0])
        assert found is not None, f"{' '.join(words)}: no command {rest[0]!r}"
        inside = found
        rest.pop(0)
    return inside, rest
