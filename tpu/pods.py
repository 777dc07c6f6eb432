"""What Google's tools want to be told of a pod, for the launchers; without JAX, on any Python from 3.11.

python3 tpu/pods.py             the pods there are
python3 tpu/pods.py POD gcloud  options of `gcloud compute tpus queued-resources create`, one a line
python3 tpu/pods.py POD xpk     --tpu-type of xpk
python3 tpu/pods.py POD slices  how many slices it is
python3 tpu/pods.py POD chips   how many chips in all
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mvader_jax.errors import UserError
from mvader_jax.parallel.pods import Topology, chips, offered, parse_topology


def answers(pod: Topology) -> dict[str, list[str]]:
    """{question: lines}. Raises UserError for a shape that Google does not offer."""
    chip, shape = pod.chip, "x".join(map(str, pod.shape))
    if pod.google is None and chip.torus == 2:
        raise UserError(f"there is no slice {pod.name}; accepted: {offered(pod.generation)}")
    named = ["--accelerator-type", pod.google or ""]
    shaped = ["--type", chip.google, "--topology", shape]
    return {
        "gcloud": [*(named if pod.google else shaped), "--runtime-version", chip.runtime],
        "xpk": [pod.google or f"{chip.google}-{shape}"],
        "slices": [str(pod.slices)],
        "chips": [str(pod.chips)],
    }


def main(words: list[str]) -> None:
    if not words:
        print("\n".join(f"{name}: {offered(name)}" for name in chips()))
        return
    try:
        found = answers(parse_topology(words[0]))
    except UserError as error:
        print(f"pods.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if len(words) != 2 or words[1] not in found:
        print(f"pods.py: ask one of {', '.join(found)} of a pod", file=sys.stderr)
        raise SystemExit(2)
    print("\n".join(found[words[1]]))


if __name__ == "__main__":
    main(sys.argv[1:])
