"""The notebook runs top to bottom: its training for two steps, its drawing by programs that are traced and never compiled."""

from __future__ import annotations

import ast
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from test_python import pipe as pipe  # a fixture

import mvader_jax as mv

NOTEBOOK = ROOT / "docs" / "play.ipynb"


def test_every_cell_runs(pipe: mv.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mv.Pipeline, "load", lambda *_, **__: pipe)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MVADER_QUICK", "1")
    # Of a process of its own, which trains: one device.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        try:
            exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
        except Exception as error:
            error.add_note(f"cell {number} of {NOTEBOOK.name}")
            raise
    pictures = [one for one in shown if hasattr(one, "_repr_png_")]
    assert len(pictures) >= 8 and all(one._repr_png_() for one in pictures)
    assert set(names["losses"]) == {2} and len(names["drawing"].prompt.elements) == 2


def test_it_is_small_and_holds_no_errors() -> None:
    data = NOTEBOOK.read_bytes()
    assert len(data) < 300_000
    cells = json.loads(data)["cells"]
    assert not [out for cell in cells for out in cell.get("outputs", ()) if out["output_type"] == "error"]
