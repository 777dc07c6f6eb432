"""Every command of every page: run up to where its work begins, or, what is no command, read as what it is."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dry
import numpy as np
import PIL.Image
import pytest
from pages import CONFIGS, PAGES, ROOT, Block, blocks, quoted, simple, text_of

import mvader_jax as mv
from mvader_jax.data.sources.jsonl import Interleaved, PairLines
from mvader_jax.images.png import save_png
from mvader_jax.sampling.batch.requests import read_requests
from mvader_jax.sampling.pictures import kept
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.train.config import load_config

EVERY = [*PAGES, *CONFIGS]
#: Files that pages name and readers have.
PICTURES = (
    *(f"{name}.png" for name in ("photo", "circle", "square", "cross", "a", "b", "mask", "ugly")),
    *("cup.jpg", "red_cup.jpg", "first/00000.png"),
)
#: Programs whose names in a sentence are commands.
OWN = ("mvader", "make", "python", "pytest", "tpu/launch.sh", "tpu/launch_gke.sh", "hf")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder: a checkout, and his pictures, prompts and config; `mvader` stops where its work begins."""
    for name in ("configs", "docs", "tests", "tpu", "mvader_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    put_pictures(tmp_path, 8)
    (tmp_path / "style.safetensors").touch()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red hat"}\n')
    (tmp_path / "mine.py").write_text(next(block.text for block in blocks(text_of("docs/configs.md"))))
    monkeypatch.chdir(tmp_path)
    with dry.before_the_work(monkeypatch):
        yield tmp_path


def put_pictures(folder: Path, size: int) -> None:
    """The files that pages name and readers have."""
    for name in PICTURES:
        (folder / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(np.full((size, size, 3), 120, np.uint8)).save(folder / name)
    drawn = PIL.Image.new("RGB", (size, size))
    drawn.info.update(mv.Drawing(mv.Prompt.of("a red hat")).note(1, 0, {"bundle": "tiny"}))
    (folder / "outputs").mkdir()
    save_png(folder / "outputs" / "00001.png", drawn, kept(drawn.info))


def made() -> set[str]:
    """What commands of the pages make: the last path that is not a flag's, or that of their flag."""
    found = set()
    for page in EVERY:
        for block in blocks(text_of(page)):
            if kind_of(block) != "shell":
                continue
            for words in simple(block.text):
                if words[:2] == ["mvader", "bundle"]:
                    found.add(words[2])
                elif words[:2] == ["mvader", "convert"] or words[:3] == ["mvader", "data", "build"]:
                    found.update(word for word in words[3:] if not word.startswith("-"))
                elif words[:3] == ["mvader", "data", "encode"]:
                    found.update(word for word in words[5:6])
    return found


def kind_of(block: Block) -> str:
    """shell, json, python, overrides or figure; "" for what is none of these."""
    if block.kind:
        named = {"bash": "shell", "sh": "shell", "text": "figure", "python": "python", "json": "json"}
        return named.get(block.kind, "")
    try:
        if all(dry.Dry(set()).knows(words) for words in simple(block.text)):
            return "shell"
    except ValueError:  # a quote that is not closed
        pass
    try:
        json.loads(block.text)
        return "json"
    except ValueError:
        pass
    try:
        compile(block.text, "page", "exec")
        return "python"
    except SyntaxError:
        pass
    with contextlib.suppress(ValueError):
        if all("=" in word for word in shlex.split(block.text, comments=True)):
            return "overrides"
    return ""


@pytest.fixture(scope="session")
def checker() -> dry.Dry:
    return dry.Dry(made())


@pytest.mark.parametrize("page", EVERY)
def test_blocks(page: str, checker: dry.Dry) -> None:
    """Every block is a command, data or Python; commands are run up to where their work begins."""
    for block in blocks(text_of(page)):
        kind = kind_of(block)
        assert kind, f"{page}:{block.line} is no command, no data and no Python: {block.text[:80]!r}"
        if kind == "shell":
            for words in simple(block.text):
                try:
                    checker.check(words)
                except AssertionError as error:
                    raise AssertionError(f"{page}:{block.line}: {error}") from None
        elif kind == "overrides":
            load_config(ROOT / "configs/tiny.py", shlex.split(block.text, comments=True))
        elif kind == "json":
            check_json(block.text)


def check_json(text: str) -> None:
    """A line of a file that some command reads, or a prompt, by its keys; its pictures are there."""
    value = json.loads(text)
    Path("lines.jsonl").write_text(json.dumps(value) + "\n", encoding="utf-8")
    if isinstance(value, list):
        assert len(mv.Prompt.from_json(value).elements) == len(value)
    elif "query" in value:
        PairLines(["lines.jsonl"], hold_out=0).record(0, np.random.default_rng(0))
    elif "target" in value:
        Interleaved(["lines.jsonl"], hold_out=0).record(0, np.random.default_rng(0))
    else:
        requests, problems = read_requests(Path("lines.jsonl"), SamplingSettings(), num_images=1)
        assert (len(requests), problems) == (1, [])


@pytest.mark.parametrize("page", EVERY)
def test_commands_in_sentences(page: str, checker: dry.Dry) -> None:
    """What a sentence quotes is a command that runs, or, where it leaves something out, one that is there."""
    for text in quoted(text_of(page)):
        try:
            words = shlex.split(text)
        except ValueError:
            continue
        if len(words) < 2 or words[0] not in OWN:
            continue
        try:
            if words[0] == "mvader":
                dry.named(words[1:])
                if words[-1] != "..." and dry.is_whole(words[1:]):
                    checker.check(words)
            else:
                checker.check(words)
        except AssertionError as error:
            raise AssertionError(f"{page}: `{text}`: {error}") from None


def examples(inside: Any) -> Iterator[str]:
    """The command lines that any --help shows."""
    yield from re.findall(r"^\s*(mvader .*)$", inside.help or "", re.M)
    for inner in getattr(inside, "commands", {}).values():
        yield from examples(inner)


@pytest.mark.parametrize("line", list(examples(dry.command())))
def test_examples_of_help(line: str, checker: dry.Dry) -> None:
    for words in simple(line):
        checker.check(words)


@pytest.mark.parametrize("page", EVERY)
def test_flags_in_sentences(page: str) -> None:
    """Flags that stand alone belong to some command of this project."""
    known = dry.options()
    scripts = "".join(
        path.read_text(encoding="utf-8")
        for path in (*ROOT.glob("tpu/*.*"), *ROOT.glob("tests/**/*.py"))
        if path.suffix in (".sh", ".py") and path.parent != ROOT / "tests/docs"
    )
    for text in quoted(text_of(page)):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w-])", text):
            if not text.startswith("--xla") and text.split()[0] not in ("hf", "tensorboard"):
                assert flag in known or flag in scripts, f"{page}: `{text}`: no command has {flag}"


@pytest.mark.parametrize("page", EVERY)
def test_files_and_links(page: str) -> None:
    """Files of the repository that a page names are there, and so is what its links lead to."""
    text = text_of(page)
    for name in quoted(text):
        if re.fullmatch(r"(mvader_jax|configs|tpu|tests|docs)/[\w./-]+", name):
            assert (ROOT / name).exists(), f"{page} names {name}"
    if page.endswith(".md"):
        for target in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", text):
            path = (ROOT / page).parent / target[0] if target[0] else ROOT / page
            assert path.exists(), f"{page} links to {target[0]}"
            if target[1]:
                heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
                assert target[1] in {anchor(head) for head in heads}, f"{page}: {target[0]}#{target[1]}"


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "words",
    [
        "mvader train configs/tiny.py --stage difusion",
        "mvader train configs/tiny.py stages.vae.stps=100",
        "mvader train configs/tinny.py",
        "mvader train configs/tiny.py --mesh data=x",
        "mvader train configs/tiny.py 'stages.diffusion.init=[\"runs/tiny/none/bundle\"]'",
        "mvader sample a.png --sampler heun",
        "mvader sample missing.png",
        "mvader sample a.png --bundle bundles/nobody",
        "mvader sample a.png --task style --num-picture 4",
        "mvader plan configs/open_v2.py --topology v99e:16x16",
        "mvader data build imagecaptions IN OUT",
        "mvader data biuld scenes 4 OUT",
        "python tests/bench/throughput.py --images 4",
        "python tests/bench/nothing.py",
        "pytest -m slow tests/data/building/test_listed.py",
        "pip install 'mvader-jax[everything]'",
        "make cake",
        "tpu/launch.sh train --pod v5e-256 --cake",
        "docker build -f tpu/Nofile -t x .",
        "hf auth enter",
    ],
)
def test_a_lie_is_found(words: str, checker: dry.Dry) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        checker.check(shlex.split(words))
