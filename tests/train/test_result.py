"""What a finished stage's bundle says of what trained it."""

from __future__ import annotations

import dataclasses

from micro import DATA, MODEL

from mvader_jax.data.sources import Records
from mvader_jax.storage.bundle import Bundle
from mvader_jax.storage.describe import is_fresh, training
from mvader_jax.train.origin import data_in_words, trained_records


def test_what_trained_a_component_is_recorded() -> None:
    """In config.json, for `mvader bundle --describe`; a UNet trained in its cross-attention is fresh no more."""
    bundle = Bundle(
        MODEL, {"unet": {}, "vae": {}}, None, {"unet": {"fresh": "attn2"}, "vae": {"trained": "vae"}}
    )
    laion = dataclasses.replace(DATA, source=Records(paths=("data/laion",)))
    trained = {"stage": "diffusion", "config": "open_v2", "steps": 90_000, "data": data_in_words(laion)}
    trained["code"] = "0.1.0+abc"
    records = trained_records(bundle, ["unet/down_0/attn2/to_k/kernel", "unet/conv_in/bias"], trained)
    assert records == {"unet": {"trained": trained}, "vae": {"trained": "vae"}}
    assert training(records["unet"]) == (
        "stage diffusion of open_v2, 90,000 steps on records of data/laion, code 0.1.0+abc"
    )
    assert training(records["vae"]) == "stage vae"
    records = trained_records(bundle, ["unet/conv_in/bias"], trained)
    assert is_fresh(records) and "trained" in records["unet"]
    assert data_in_words(dataclasses.replace(DATA, precomputed=("runs/e",))) == "precomputed scenes of runs/e"
