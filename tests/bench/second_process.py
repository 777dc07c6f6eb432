"""What the persistent cache saves: python tests/bench/second_process.py [--bundle tiny]

Two processes, one after the other, with a cache that is empty at first; each draws twice. Printed: seconds
from the process's start until the first pictures, less the second drawing, which is sampling alone; and how
many programs the second drawing compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

CHILD = """
import json, sys, time
start = time.time()
import mvader_jax as mv
pipe = mv.Pipeline.load(sys.argv[1], cache=True)
loaded = time.time()
def draw(seed):
    return pipe("a large solid red circle on the left", num_images=4, seed=seed, steps=int(sys.argv[2]))
draw(0)
first, programs = time.time(), pipe.compiled
draw(1)
second = time.time()
print(json.dumps({"import and load": loaded - start, "first drawing": first - loaded,
                  "second drawing": second - first, "programs": programs, "more": pipe.compiled - programs}))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    starts = []
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first process", "second process"):
            environment = {**os.environ, "MVADER_CACHE": cache, "JAX_PLATFORMS": "cpu"}
            command = [sys.executable, "-c", CHILD, options.bundle, str(options.steps)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout)
            starts.append(told["import and load"] + told["first drawing"] - told["second drawing"])
            print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in told.items()))
            print(f"  until it samples: {starts[-1]:.2f} s")
    print(f"second / first: {starts[1] / starts[0]:.2f}")


if __name__ == "__main__":
    main()
