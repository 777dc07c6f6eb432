"""The embedded model's twin that has seen interleaved prompts, the data the paper's limitations ask for.

The other stages are those of `configs/tiny.py`, which run first. Three samples in ten are conditioned on a
picture and a phrase ("in red", another style) or on two pictures, the target being what they ask for:

    for stage in vae language encoder captioning contrastive; do
        mvader train configs/tiny.py --stage $stage
    done
    mvader train configs/tiny_interleaved.py

The result is runs/tiny_interleaved/diffusion/bundle; `mvader evaluate` compares it with its twin.
"""

import dataclasses

from mvader_jax.train.config import TrainConfig, load_config


def get_config() -> TrainConfig:
    tiny = load_config("tiny")
    twin = tiny.stages["diffusion"]
    stage = dataclasses.replace(
        twin,
        objective=dataclasses.replace(twin.objective, p_interleaved=0.3),
        init=tuple(f"runs/{tiny.name}/{name}/bundle" for name in twin.init),
    )
    return TrainConfig(name="tiny_interleaved", model=tiny.model, stages={"diffusion": stage})
