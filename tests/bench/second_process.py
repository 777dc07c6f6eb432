"""What the persistent cache saves: python tests/bench/second_process.py [--bundle tiny]

Two processes, one after the other, with a cache that is empty at first; each draws twice. Printed: what each part takes,
in seconds on the clock and of the processor, which other work on the machine changes less; until it samples, which is
all before the second drawing less that drawing, sampling alone; and how many programs the second drawing compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

CHILD = """
import json, sys, time
now = lambda: (time.time(), time.process_time())
marks = [("Python", (float(sys.argv[3]), 0.0)), ("", now())]
def mark(name):
    marks[-1] = (name, marks[-1][1])
    marks.append(("", now()))
import mvader_jax as mv
import jax
mark("import jax")
import flax.linen
mark("import flax")
import mvader_jax.sampling.pipeline
mark("import the rest")
pipe = mv.Pipeline.load(sys.argv[1], cache=True)
mark("load")
def draw(seed):
    return pipe("a large solid red circle on the left", num_images=4, seed=seed, steps=int(sys.argv[2]))
draw(0)
mark("first drawing")
programs = pipe.compiled
draw(1)
mark("second drawing")
spent = {name: [b - a for a, b in zip(start, after)] for (name, start), (_, after) in zip(marks, marks[1:])}
print(json.dumps({"spent": spent, "more": pipe.compiled - programs}))
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
            command = [sys.executable, "-c", CHILD, options.bundle, str(options.steps), str(time.time())]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout)
            spent = told["spent"]
            starts.append(
                [sum(each[i] for each in spent.values()) - 2 * spent["second drawing"][i] for i in (0, 1)]
            )
            shown = (f"{part} {clock:.2f} ({cpu:.2f})" for part, (clock, cpu) in spent.items())
            print(f"{name}, seconds (of the processor): {', '.join(shown)}; {told['more']} programs more")
            print(f"  until it samples: {starts[-1][0]:.2f} ({starts[-1][1]:.2f})")
    print("second / first: {:.2f} ({:.2f})".format(*(starts[1][i] / starts[0][i] for i in (0, 1))))


if __name__ == "__main__":
    main()
