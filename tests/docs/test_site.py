"""The site is built without a warning, loads nothing from elsewhere, and its references are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import docstrings
import dry
import pytest
from pages import ROOT

import mvader_jax as mv
from mvader_jax.data.sources import Source
from mvader_jax.train.objectives import Objective


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the site lies, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    """With a heading; notebooks, and pages from outside docs/ too."""
    pages = {path.stem for end in ("md", "ipynb") for path in (ROOT / "docs").glob(f"*.{end}")}
    pages |= {"pods", "contributing"}
    built = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    assert pages <= built.keys()
    assert [name for name in pages if "<h1" not in built[name]] == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Links may lead out; scripts, styles, fonts and pictures are the site's own."""
    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*href=\"?(?:https?:)?//"
    )
    assert [
        path.name for path in site.rglob("*.html") if loaded.search(path.read_text(encoding="utf-8"))
    ] == []
    styles = [
        path
        for path in site.rglob("*.css")
        if re.search(r"(url\(|@import)[\"' ]*(https?:)?//", path.read_text())
    ]
    assert styles == []


def test_every_command_is_in_the_reference(site: Path) -> None:
    """Every command and sub-command, and every argument and option, none without words."""
    page = (site / "commands.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<h[23] id="([^"]+)"', page))
    missing = []

    def walk(command: Any, name: str) -> None:
        if name.replace(" ", "-") not in shown:
            missing.append(name)
        for parameter in command.params:
            if not parameter.hidden and (not parameter.help or parameter.opts[0] not in page):
                missing.append(f"{name} {parameter.opts[0]}")
        for inner, found in getattr(command, "commands", {}).items():
            walk(found, f"{name} {inner}")

    walk(dry.command(), "mvader")
    assert missing == []


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    assert [name for name in mv.__all__ if f'id="mvader_jax.{name}"' not in page] == []
    assert 'id="mvader_jax.Pipeline.__call__"' in page


def test_every_objective_and_source_is_in_the_reference(site: Path) -> None:
    page = (site / "parts.html").read_text(encoding="utf-8")
    kinds = {"train.objectives": Objective.kinds, "data.sources": Source.kinds}
    shown = [f'id="mvader_jax.{room}.{cls.__name__}"' for room, of in kinds.items() for cls in of.values()]
    assert [one for one in shown if one not in page] == []


def test_search_finds_what_pages_say(site: Path) -> None:
    assert "latent consistency" in (site / "search" / "search_index.json").read_text(encoding="utf-8").lower()


def test_names_of_a_docstring_become_a_list() -> None:
    text = "Words.\n\nIt is so;\nsize, crop: of the\npicture. seed: of it; else: no name. Raises UserError."
    assert docstrings.listed(text, ["size", "crop", "seed"]) == (
        "Words.\n\nIt is so.\n\n- `size`, `crop`: of the picture.\n- `seed`: of it; else: no name.\n\nRaises UserError."
    )
    assert docstrings.listed("    seed: 1", ["seed"]) == "    seed: 1"
