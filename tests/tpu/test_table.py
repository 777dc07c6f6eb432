"""The table of tpu/README.md is what tpu/table.py prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_s_table_is_the_plans() -> None:
    done = subprocess.run(
        [sys.executable, "tpu/table.py"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    text = (ROOT / "tpu" / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- plans: begin -->\n")[1].split("\n<!-- plans: end -->")[0]
    assert done.stdout.strip() == table.strip() != ""


def test_a_pod_that_is_not_there_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "tpu/table.py", "--plan", "v9"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and "unknown pod 'v9'; known: v4-8" in done.stderr
