"""The tables in tpu/README.md: what was measured and is predicted of it, and plans; and the plans behind them.

    python tpu/table.py                     prints the tables from tpu/plans/*.json
    python tpu/table.py --write             puts them into tpu/README.md
    python tpu/table.py --plan NAME ...     compiles these plans again (of tpu/plans; all of them: --plan all)
    python tpu/table.py --commands          prints the command behind every row

What a plan expects is fitted anew whenever it is printed: a row more in tpu/measured.toml compiles no plan again.
Each plan is one `mvader plan` with the pod, mesh and microbatches that its file names; in training, latents and image
features are computed before. The commands are printed as they run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from mvader_jax.parallel.pods import chips, parse_topology  # noqa: E402

#: Of what was measured, of what is drawn and of what is trained, in the order of the page.
TABLES = ("measured", "drawing", "plans")


def plans() -> dict[str, dict[str, Any]]:
    """{name: plan}, configs together, pods by generation and size."""
    from mvader_jax.plan.report import from_dict, refitted

    found = {
        path.stem: refitted(from_dict(json.loads(path.read_text(encoding="utf-8")))).to_dict()
        for path in (HERE / "plans").glob("*.json")
    }
    generations = list(chips())

    def order(name: str) -> tuple[Any, ...]:
        topology = found[name]["topology"]
        generation = generations.index(topology["name"].split(":")[0])
        return not name.startswith("open"), generation, topology["chips"], name

    return {name: found[name] for name in sorted(found, key=order)}


def is_drawing(plan: dict[str, Any]) -> bool:
    return "images" in plan["settings"]


def mesh_of(plan: dict[str, Any]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "data=1"


def pod_of(plan: dict[str, Any]) -> str:
    """The pod's short name, as v5e-8."""
    topology = parse_topology(plan["topology"]["name"])
    return (topology.google or topology.name).replace(topology.chip.google, topology.generation)


def command(name: str, plan: dict[str, Any]) -> list[str]:
    """The `mvader plan` behind one row."""
    topology, settings = plan["topology"], plan["settings"]
    words = ["mvader", "plan", f"configs/{plan['title'].split(':')[0]}.py", "--topology", topology["name"]]
    words += ["--slices", str(topology["slices"])] if topology["slices"] > 1 else []
    words += ["--mesh", mesh_of(plan)]
    if is_drawing(plan):
        words += ["--job", "sample", "--dtype", settings["dtype"], "--batch", str(settings["images"])]
        words += ["--frozen-dtype", settings["kept in"]] if "kept in" in settings else []
    else:
        words += ["--accumulate", str(settings["microbatches"]), "--precomputed", "latents,features"]
    return [*words, "--out", f"tpu/plans/{name}.json"]


def table(which: str) -> str:
    """One of TABLES as Markdown."""
    from mvader_jax.plan.expected import read_measured, recorded
    from mvader_jax.plan.expected import table as of_measured
    from mvader_jax.plan.request import table as of_training

    if which == "measured":
        return of_measured(read_measured(), recorded())
    chosen = [plan for plan in plans().values() if is_drawing(plan) == (which == "drawing")]
    return of_drawing(chosen) if which == "drawing" else of_training(chosen)


def of_drawing(rows: list[dict[str, Any]]) -> str:
    from mvader_jax.plan.request import span

    head = (
        "| pod | dtype | mesh | pictures at once | peak of HBM, GiB | fits | all of them, at least, s | expected, s | "
        "from - to | images/s per chip |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for plan in rows:
        f = {name: figure["value"] for name, figure in plan["figures"].items()}
        settings = plan["settings"]
        dtype = ", decoder in ".join(settings[key] for key in ("dtype", "kept in") if key in settings)
        cells = [pod_of(plan), dtype, mesh_of(plan), str(settings["images"])]
        cells += [f"{f['peak'] / 2**30:.1f} of {f['hbm'] / 2**30:.0f}", "yes" if plan["fits"] else "**no**"]
        cells += [f"{f['step_seconds']:.1f}", f"{f['expected_seconds']:.1f}", span(f, 1.0, 1)]
        lines.append("| " + " | ".join([*cells, f"{f['images_per_second_per_chip']:.2f}"]) + " |")
    return "\n".join(lines)


def write() -> None:
    """Replaces the tables in tpu/README.md."""
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    for which in TABLES:
        begin, end = f"<!-- {which}: begin -->", f"<!-- {which}: end -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n{table(which)}\n{end}{rest.split(end, 1)[1]}"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", nargs="+", metavar="NAME", help="plans to compile again, or all")
    parser.add_argument("--commands", action="store_true", help="print the command behind every row")
    parser.add_argument("--write", action="store_true", help="put the tables into tpu/README.md")
    options = parser.parse_args()
    known = plans()
    chosen = list(known) if options.plan == ["all"] else options.plan or []
    for name in chosen:
        if name not in known:
            parser.error(f"unknown plan {name!r}; known: {', '.join(known)}")
        words = command(name, known[name])
        print(" ".join(words), file=sys.stderr, flush=True)
        mvader = str(Path(sys.executable).parent / "mvader")
        subprocess.run([mvader, *words[1:]], check=True, cwd=HERE.parent)
    if options.commands:
        print("\n".join(" ".join(command(name, plan)) for name, plan in known.items()))
    if options.write:
        write()
    elif not chosen and not options.commands:
        print("\n\n".join(table(which) for which in TABLES))


if __name__ == "__main__":
    main()
