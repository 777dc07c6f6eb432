"""The table of plans in tpu/README.md, and the plans behind it.

    python tpu/table.py                          prints the table from tpu/plans/*.json
    python tpu/table.py --write                  puts it into tpu/README.md
    python tpu/table.py --plan v5e-256 v4-8      compiles these pods' plans again (all of them: --plan all);
                                                 --config open_v2 for one config alone

Each plan is one `mvader plan` with the pod's mesh of tpu/pods.toml, latents and image features computed
before; the commands are printed as they run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pods import pods  # noqa: E402

CONFIGS = ("open_v2", "luminous_v2")
BEGIN, END = "<!-- plans: begin -->", "<!-- plans: end -->"


def command(pod: str, config: str) -> list[str]:
    """The `mvader plan` behind one row."""
    row = pods()[pod]
    mesh, microbatches = row["meshes"][config]
    words = ["mvader", "plan", f"configs/{config}.py", "--topology", row["topology"], "--mesh", mesh]
    words += ["--accumulate", str(microbatches), "--precomputed", "latents,features"]
    words += ["--slices", str(row["slices"])] if row["slices"] > 1 else []
    return [*words, "--out", f"tpu/plans/{config}_{pod}.json"]


def table() -> str:
    """The rows there are, configs together, pods in the order of tpu/pods.toml."""
    from mvader_jax.plan.request import table as as_table

    files = [HERE / "plans" / f"{config}_{pod}.json" for config in CONFIGS for pod in pods()]
    return as_table([json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()])


def write() -> None:
    """Replaces the table in tpu/README.md."""
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", nargs="+", metavar="POD", help="pods to plan again, or all")
    parser.add_argument("--config", action="append", choices=CONFIGS, help="default: all")
    parser.add_argument("--write", action="store_true", help="put the table into tpu/README.md")
    options = parser.parse_args()
    chosen = list(pods()) if options.plan == ["all"] else options.plan or []
    for pod in chosen:
        if pod not in pods():
            parser.error(f"unknown pod {pod!r}; known: {', '.join(pods())}")
        for config in options.config or CONFIGS:
            words = command(pod, config)
            print(" ".join(words), file=sys.stderr, flush=True)
            subprocess.run(
                [str(Path(sys.executable).parent / "mvader"), *words[1:]], check=True, cwd=HERE.parent
            )
    if options.write:
        write()
    elif not chosen:
        print(table())


if __name__ == "__main__":
    main()
