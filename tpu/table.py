"""The table of plans in tpu/README.md, and the plans behind it.

    python tpu/table.py                          prints the table from tpu/plans/*.json
    python tpu/table.py --write                  puts it into tpu/README.md
    python tpu/table.py --plan v5e-256 v4-8      compiles these pods' plans again (all of them: --plan all);
                                                 --config open_v2 for one config alone
    python tpu/table.py --estimate               asks the search's model for every pod: the rows of what is
                                                 not compiled, and the mesh that the model prefers

Each plan is one `mvader plan` with the pod's mesh of tpu/pods.toml, latents and image features computed
before; the commands are printed as they run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pods import pods  # noqa: E402

CONFIGS = ("open_v2", "luminous_v2")
ESTIMATES = HERE / "plans" / "estimated.json"
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
    """What is compiled, configs together, pods in the order of tpu/pods.toml; then what is estimated only."""
    names = [(config, pod) for config in CONFIGS for pod in pods()]
    files = {name: HERE / "plans" / f"{name[0]}_{name[1]}.json" for name in names}
    done = [json.loads(file.read_text(encoding="utf-8")) for file in files.values() if file.exists()]
    parts = []
    if done:
        from mvader_jax.plan.request import table as as_table

        parts = ["Compiled:", as_table(done)]
    if ESTIMATES.exists():
        rows = json.loads(ESTIMATES.read_text(encoding="utf-8"))
        left = [row for row in rows if not files[row["config"], row["pod"]].exists()]
        if left:
            parts += ["Estimated by the search's model alone, nothing compiled:", estimated_table(left)]
    return "\n\n".join(parts)


def estimated_table(rows: list[dict[str, Any]]) -> str:
    """Rows of tpu/plans/estimated.json as Markdown."""
    head = (
        "| config | pod | chips | mesh | microbatches | memory a chip, GiB | arithmetic / interconnect, ms | "
        "images/s, at most | utilisation, at most | the model prefers |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        seconds = max(row["arithmetic_ms"], row["interconnect_ms"]) / 1e3
        use = row["model_flops"] / row["chips"] / row["peak"] / seconds
        cells = [row["config"], row["pod"], str(row["chips"]), row["mesh"], str(row["microbatches"])]
        cells += [f"{row['memory_gib']:.1f} of {row['hbm_gib']:.0f}"]
        cells += [f"{row['arithmetic_ms']:,.0f} / {row['interconnect_ms']:,.0f}"]
        cells += [f"{row['batch'] / seconds:,.0f}", f"{100 * use:.0f} %", row["best"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def estimate(configs: list[str]) -> None:
    """Writes tpu/plans/estimated.json: the model's figures for every pod's mesh, and the mesh it ranks first."""
    from mvader_jax.parallel.pods import parse_topology
    from mvader_jax.plan.request import Request, candidates

    rows = []
    if ESTIMATES.exists():
        rows = [r for r in json.loads(ESTIMATES.read_text(encoding="utf-8")) if r["config"] not in configs]
    for config in configs:
        for pod, row in pods().items():
            topology = parse_topology(row["topology"], row["slices"])
            mesh, microbatches = row["meshes"][config]
            request = Request(
                f"configs/{config}.py", topology.name, topology.slices, precomputed=("latents", "features")
            )
            found = candidates(request)
            best = found["candidates"][0]
            own = next(
                c for c in found["candidates"] if (c["mesh"], c["microbatches"]) == (mesh, microbatches)
            )
            rows.append(
                {
                    "config": config,
                    "pod": pod,
                    "chips": topology.chips,
                    **own,
                    "batch": 2048,
                    "model_flops": found["model_flops"],
                    "peak": topology.chip.peak,
                    "hbm_gib": topology.chip.hbm_gib,
                    "best": f"{best['mesh']} x {best['microbatches']}",
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    rows.sort(key=lambda r: (CONFIGS.index(r["config"]), list(pods()).index(r["pod"])))
    ESTIMATES.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


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
    parser.add_argument("--estimate", action="store_true", help="ask the model, compile nothing")
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
    if options.estimate:
        estimate(options.config or list(CONFIGS))
    if options.write:
        write()
    elif not chosen and not options.estimate:
        print(table())


if __name__ == "__main__":
    main()
