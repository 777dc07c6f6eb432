"""The tables of tpu/README.md are what tpu/table.py prints."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "tpu/table.py", *words], capture_output=True, text=True, cwd=ROOT)


def test_the_readme_s_tables_are_the_plans() -> None:
    text = (ROOT / "tpu" / "README.md").read_text(encoding="utf-8")
    parts = [
        text.split(f"<!-- {which}: begin -->\n")[1].split(f"\n<!-- {which}: end -->")[0].strip()
        for which in ("measured", "drawing", "plans")
    ]
    assert run().stdout.strip() == "\n\n".join(parts) and all(parts)


def test_every_row_has_its_command() -> None:
    lines = run("--commands").stdout.splitlines()
    assert len(lines) == len(list((ROOT / "tpu" / "plans").glob("*.json")))
    for words in map(shlex.split, lines):
        assert (
            words[:2] == ["mvader", "plan"] and (ROOT / words[2]).is_file() and (ROOT / words[-1]).is_file()
        )


def test_a_plan_that_is_not_there_is_one_sentence() -> None:
    done = run("--plan", "v9")
    assert done.returncode == 2 and "unknown plan 'v9'; known: open_v2_v4-8" in done.stderr
