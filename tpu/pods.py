"""Reads tpu/pods.toml for the launchers, without JAX and on any Python from 3.11.

python3 tpu/pods.py                            the pods there are
python3 tpu/pods.py v5e-256 configs/open_v2.py the arguments of `mvader train` on it, one a line
python3 tpu/pods.py v5e-256 --field type       one of the pod's fields
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any


def pods() -> dict[str, Any]:
    """{pod: its row}."""
    return tomllib.loads((Path(__file__).parent / "pods.toml").read_text(encoding="utf-8"))


def pod(name: str) -> dict[str, Any]:
    """The row of a pod. Exits with code 2 and one sentence for an unknown one."""
    rows = pods()
    if name not in rows:
        print(f"pods.py: unknown pod {name!r}; known: {', '.join(rows)}", file=sys.stderr)
        raise SystemExit(2)
    return dict(rows[name])


def arguments(name: str, config: str) -> list[str]:
    """What `mvader train CONFIG` wants to know of the pod: mesh and microbatches.

    V1 trains on V2's mesh; a config the file does not know gets fsdp over everything, and its own microbatches.
    """
    row = pod(name)
    stem = Path(config).stem
    known = row["meshes"].get(stem) or row["meshes"].get(stem.replace("_v1", "_v2"))
    if known is not None:
        mesh, microbatches = known
        return [f"stages.diffusion.accumulate={microbatches}", "--mesh", mesh]
    return ["--mesh", f"replica={row['slices']},fsdp=-1" if row["slices"] > 1 else "fsdp=-1"]


def main(words: list[str]) -> None:
    if not words:
        print("\n".join(pods()))
    elif len(words) == 3 and words[1] == "--field":
        row = pod(words[0])
        if words[2] not in row:
            print(f"pods.py: {words[0]} has no {words[2]!r}; it has: {', '.join(row)}", file=sys.stderr)
            raise SystemExit(2)
        print(row[words[2]])
    elif len(words) == 2:
        print("\n".join(arguments(*words)))
    else:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
