"""Pictures a second beside PyTorch: python tests/bench/throughput.py [--bundle tiny] [--batches 1,8,32]

Both draw the same pictures with the same weights (the largest difference is printed) by the same loop: PLMS,
classifier-free guidance, decoding to uint8, in float32, in one process with the same number of threads. They
take turns; the median of the rounds counts. Ours has a device a core (`mvader sample --prompts ... --mesh
data=2`) and one thread each, theirs as many threads. Ours embeds the prompt as well, theirs is given it. The last ratio
is of processor time, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import os
import time

THREADS = len(os.sched_getaffinity(0))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402
from twin import Twin  # noqa: E402

from mvader_jax.diffusion.noise import initial_noise  # noqa: E402
from mvader_jax.models.components import COMPONENTS, init_component  # noqa: E402
from mvader_jax.parallel.mesh import open_mesh  # noqa: E402
from mvader_jax.sampling.generate import Draws, Prompted  # noqa: E402
from mvader_jax.sampling.pipeline import Pipeline  # noqa: E402
from mvader_jax.sampling.settings import SamplingSettings  # noqa: E402
from mvader_jax.storage.bundle import Bundle, load_bundle  # noqa: E402
from mvader_jax.storage.programs import compilation_cache  # noqa: E402

PROMPT = "a large solid red circle on the left"


def random_tiny() -> Bundle:
    """The tiny model's architecture with random weights, for want of trained ones."""
    import dataclasses

    import jax

    from mvader_jax.data.scenes.captions import caption
    from mvader_jax.data.scenes.world import scene_at
    from mvader_jax.prompt.tokenizer import train_tokenizer
    from mvader_jax.train.config import load_config

    model = load_config("configs/tiny.py").model
    rng = np.random.default_rng(0)
    texts = [caption(scene_at(0, i), rng) for i in range(300)]
    tokenizer = train_tokenizer(texts, model.decoder.vocab_size if model.decoder else 512, max_positions=192)
    components: dict = {}
    for number, name in enumerate(name for name, part in COMPONENTS.items() if getattr(model, part)):
        components[name] = init_component(model, name, jax.random.key(number), None, components)
    return Bundle(dataclasses.replace(model, tokenizer=tokenizer.config), components, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default="tiny", help="a name, a directory, or 'random'")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--mesh", default=f"data={THREADS}", help="of ours, where the batch divides; empty: one device"
    )
    options = parser.parse_args()
    compilation_cache()
    mesh = open_mesh(options.mesh)
    bundle = random_tiny() if options.bundle == "random" else load_bundle(options.bundle, dtype="float32")
    pipe, twin = Pipeline(bundle), Twin(bundle, THREADS)
    over = pipe if mesh is None else Pipeline.load(options.bundle, mesh=mesh)
    settings = SamplingSettings(steps=options.steps)
    prompts, nulls = bundle.to_batch([PROMPT]), bundle.to_batch([None])
    rows = [pipe.embed_batch(batch) for batch in (prompts, nulls)]
    condition, null = (
        np.asarray(row.hidden[0])[np.asarray(row.log_weights[0]) > -1e8].astype(np.float32) for row in rows
    )
    assert bundle.model.unet is not None
    side, channels = bundle.model.unet.sample_size, bundle.model.unet.in_channels
    print(f"{THREADS} threads, {options.steps} steps, medians of {options.rounds} rounds")
    print(
        f"{'batch':>5} {'ours/s':>8} {'PyTorch/s':>10} {'ratio':>6} {'cpu ratio':>10}  largest difference of a pixel"
    )
    for batch in map(int, options.batches.split(",")):
        seeds, indices = np.zeros(batch, np.uint32), np.arange(batch, dtype=np.int32)
        draws = Draws.of(settings, Prompted(prompts), Prompted(nulls), indices)
        noise = np.asarray(initial_noise(seeds, indices, (side, side, channels)))

        # A single picture cannot be divided over devices.
        chosen = pipe if batch % over.shards else over

        def ours(draws: Draws = draws, chosen: Pipeline = chosen) -> np.ndarray:
            return np.asarray(chosen.generate(draws, settings.static(bundle.model))[0])

        def theirs(noise: np.ndarray = noise) -> np.ndarray:
            return twin.draw(condition, null, noise, steps=options.steps, guidance_scale=8.0)

        difference = int(np.abs(ours().astype(int) - theirs()).max())
        spent: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        for _ in range(options.rounds):
            for name, draw in (("ours", ours), ("theirs", theirs)):
                start = time.perf_counter(), time.process_time()
                draw()
                spent[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        mine, others = (batch / np.median(spent[name], axis=0) for name in ("ours", "theirs"))
        ratio, cpu = mine / others
        print(
            f"{batch:5} {mine[0]:8.2f} {others[0]:10.2f} {ratio:6.2f} {cpu:10.2f}  {difference}", flush=True
        )


if __name__ == "__main__":
    main()
