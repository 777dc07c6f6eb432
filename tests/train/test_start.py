"""Where a stage starts: the words of a small world grow by what it is trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import micro

from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.start import gather_start


def test_words_grow_by_a_stage_s_captions(tmp_path: Path) -> None:
    bundle = micro.bundle(micro.NANO, "decoder")
    assert bundle.tokenizer is not None
    for name, words in (("small", frozenset({"hat"})), ("open", None)):
        tokenizer = Tokenizer(bundle.tokenizer.backend, bundle.tokenizer.config, words)
        save_bundle(tmp_path / name, dataclasses.replace(bundle, tokenizer=tokenizer))
        config = micro.language_config(str(tmp_path / name))
        start = gather_start(config, config.stages["language"], tmp_path, make_mesh(MeshConfig(data=-1)))
        assert start.bundle.tokenizer is not None
        known = start.bundle.tokenizer.words
        assert known is None if words is None else known is not None and {"hat", "circle", "kreis"} <= known
