"""The picture world for two CPU cores: the first 300 subjects, all of which seven styles draw, 2,100 pictures.

The stages are those of `configs/emoji.py`, with smaller batches:

    for stage in vae language encoder; do
        mvader train configs/emoji_small.py --stage $stage
    done
    mvader data encode configs/emoji_small.py emoji runs/emoji_small/encoded
    mvader train configs/emoji_small.py --stage diffusion \\
        'stages.diffusion.data.precomputed=["runs/emoji_small/encoded"]'
    mvader train configs/emoji_small.py --stage interleaved
    mvader train configs/emoji_small.py --stage distill
    mvader evaluate --world emoji --subjects 300 --bundle runs/emoji_small/interleaved/bundle

Every stage goes on where it stopped when started again. 300 subjects teach pictures by heart: unseen pairs of subject
and style ask for more of them.
"""

import dataclasses
from pathlib import Path

from mvader_jax.train.config import TrainConfig, load_config

SUBJECTS = 300
#: (steps, samples of a batch) of each stage.
SIZES = {
    "vae": (4_000, 16),
    "language": (2_000, 32),
    "encoder": (800, 48),
    "diffusion": (8_000, 48),
    "interleaved": (3_000, 48),
    "distill": (3_000, 48),
}


def get_config() -> TrainConfig:
    config = load_config(Path(__file__).with_name("emoji.py"))
    stages = {}
    for name, (steps, batch) in SIZES.items():
        stage = config.stages[name]
        source = dataclasses.replace(stage.data.source, subjects=SUBJECTS)
        data = dataclasses.replace(stage.data, source=source, workers=0)
        stages[name] = dataclasses.replace(stage, data=data, steps=steps, batch_size=batch, dtype="float32")
    return dataclasses.replace(config, name="emoji_small", stages=stages)
