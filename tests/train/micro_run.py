"""The stage that starts fastest as a config file, for tests that go through the command line.

NANO_BUNDLE names the bundle with the decoder and tokenizer that it starts from.
"""

import os

import micro

from mvader_jax.train.config import TrainConfig


def get_config() -> TrainConfig:
    return micro.language_config(
        os.environ["NANO_BUNDLE"],
        **{
            "steps": 300,
            "batch_size": 4,
            "save_every": 10,
            "keep": 3,
            "log_every": 1,
            "validate_every": 1000,
        },
    )
